use clap::Args;
use serde_json::json;

use super::{Format, context, exit::Failure, output, progress::Reporter};
use crate::{attach::Origin, config::Options, model::VolumeId};

#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The Cinder volume's id
    #[arg(value_name = "VOLUME")]
    volume: VolumeId,

    /// Give up what can't be written any more, where the volume can't be detached otherwise: no path
    /// to it is left, or processes don't let go of it. What other volumes, mounts and devices of this
    /// node need is refused as without it
    #[arg(long)]
    force: bool,

    /// Say nothing on the way
    #[arg(short, long)]
    quiet: bool,
}

impl Detach {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let engine = context::engine(options)?;
        let stop = context::stop_signal()?;
        let reporter = Reporter::new(self.quiet);
        let report = |progress| reporter.report(progress);
        let origin = Origin::CommandLine;
        let result = if self.force {
            engine.detach_by_force(self.volume, &origin, &report, &stop).await
        } else {
            engine.detach(self.volume, &origin, &report, &stop).await
        };
        reporter.finish();
        let changed = result?;
        let value = json!({"volumeID": self.volume, "changed": changed});
        output::print(format, &value, || {
            if changed {
                format!("detached volume {}", self.volume)
            } else {
                format!(
                    "volume {} is not attached to this node by attachd; nothing to do",
                    self.volume
                )
            }
        })?;
        Ok(())
    }
}
