use clap::Args;
use serde_json::json;

use super::{Format, attach, context, exit::Failure, output, progress::Reporter};
use crate::{attach::Resized, config::Options, model::VolumeId};

#[derive(Debug, Args)]
pub(super) struct Resize {
    /// The Cinder volume's id
    #[arg(value_name = "VOLUME")]
    volume: VolumeId,

    /// Say nothing on the way
    #[arg(short, long)]
    quiet: bool,
}

impl Resize {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let engine = context::engine(options)?;
        let stop = context::stop_signal()?;
        let reporter = Reporter::new(self.quiet);
        let report = |progress| reporter.report(progress);
        let result = engine.resize(self.volume, None, &report, &stop).await;
        reporter.finish();
        let resized = result?;
        output::print(format, &as_json(&resized), || as_text(&resized))?;
        Ok(())
    }
}

fn as_json(resized: &Resized) -> serde_json::Value {
    let mut value = attach::as_json(&resized.attached);
    value["sizeBytesBefore"] = json!(resized.before_bytes);
    value["filesystemGrown"] = json!(resized.filesystem_grown);
    value
}

fn as_text(resized: &Resized) -> String {
    let (attached, before) = (&resized.attached, resized.before_bytes);
    let mut lines = vec![if attached.changed {
        format!("resized volume {}", attached.volume)
    } else {
        format!("volume {} has the size that Cinder states; nothing to do", attached.volume)
    }];
    let device = attached.device.display();
    lines.push(if attached.size_bytes == before {
        format!("device      {device} ({before} bytes)")
    } else {
        format!("device      {device} ({before} bytes before, {} now)", attached.size_bytes)
    });
    if let Some(path) = &attached.mount_path {
        let grown = if resized.filesystem_grown { "grown" } else { "as it was" };
        lines.push(format!("mounted on  {} (file system {grown})", path.display()));
    }
    lines.extend(attached.warnings.iter().map(|warning| format!("warning     {warning}")));
    lines.join("\n")
}
