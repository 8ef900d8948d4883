//! The process itself, under the names that every Prometheus client uses.

use procfs::{ProcResult, WithCurrentSystemInfo as _, process::Process};
use prometheus_client::{
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// Without the values that /proc didn't tell.
pub(super) fn registered() -> Registry {
    let mut registry = Registry::with_prefix("process");
    if let Err(error) = register(&mut registry) {
        tracing::debug!(%error, "/proc/self can't be read");
    }
    registry
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn register(registry: &mut Registry) -> ProcResult<()> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    registry.register_with_unit(
        "cpu",
        "Processor time used, in user and kernel mode",
        Unit::Seconds,
        ConstCounter::new((stat.utime + stat.stime) as f64 / ticks),
    );
    registry.register_with_unit(
        "resident_memory",
        "Resident memory",
        Unit::Bytes,
        ConstGauge::new(stat.rss_bytes().get()),
    );
    registry.register_with_unit(
        "virtual_memory",
        "Virtual memory",
        Unit::Bytes,
        ConstGauge::new(stat.vsize),
    );
    registry.register("threads", "Threads", ConstGauge::new(stat.num_threads));
    registry.register_with_unit(
        "start_time",
        "When the process started, since the Unix epoch",
        Unit::Seconds,
        ConstGauge::new(procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks),
    );
    registry.register("open_fds", "Open file descriptors", ConstGauge::new(process.fd_count()?));
    if let procfs::process::LimitValue::Value(limit) = process.limits()?.max_open_files.soft_limit {
        registry.register("max_fds", "How many may be open", ConstGauge::new(limit));
    }
    Ok(())
}
