use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde_json::json;
use uuid::Uuid;

use super::{Format, context, exit::Failure, output, progress::Reporter};
use crate::{
    attach::{Attached, Origin},
    config::Options,
    crd::is_plain_absolute,
    model::{
        AccessMode, AttachSpec, Filesystem, FormatPolicy, MultipathPolicy, Usage, VolumeId,
        mount_option_flaw,
    },
};

#[derive(Debug, Args)]
pub(super) struct Attach {
    #[command(flatten)]
    pub(super) spec: SpecArgs,

    /// Say nothing on the way
    #[arg(short, long)]
    quiet: bool,
}

/// What describes an attachment; `plan attach` takes the same.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("use").args(["mount", "block"])))]
pub(super) struct SpecArgs {
    /// The Cinder volume's id
    #[arg(value_name = "VOLUME")]
    volume: VolumeId,

    /// Mount it here; by default on STATE_DIR/mounts/VOLUME
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,

    /// Leave it as a block device
    #[arg(long, conflicts_with_all = ["fs", "format", "mount_options"])]
    block: bool,

    /// rw or ro
    #[arg(long, value_name = "MODE", default_value = "rw")]
    mode: AccessMode,

    /// ext4 or xfs
    #[arg(long, value_name = "TYPE", default_value = "ext4")]
    fs: Filesystem,

    /// if-blank formats a device on which nothing at all is found; never formats none
    #[arg(long, value_name = "WHEN", default_value = "if-blank")]
    format: FormatPolicy,

    /// Mount options, separated by commas
    #[arg(long, value_name = "OPTIONS", value_delimiter = ',')]
    mount_options: Vec<String>,

    /// auto uses a map where multipathd claims disks, required insists on one, disabled uses one path
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    multipath: MultipathPolicy,

    /// Cinder's instance_uuid for the attachment. Cinder then asks Nova before it lets the attachment
    /// go, unless the user holds the role service
    #[arg(long, value_name = "UUID")]
    instance: Option<Uuid>,
}

impl SpecArgs {
    pub(super) fn spec(&self, options: &Options) -> Result<AttachSpec, Failure> {
        let usage = if self.block {
            Usage::Block
        } else {
            let default = || options.mounts_dir().join(self.volume.to_string());
            let mount_path = self.mount.clone().unwrap_or_else(default);
            if !is_plain_absolute(&mount_path) {
                return Err(Failure::Usage(format!(
                    "--mount {:?}: must be an absolute path without ., .. and control characters",
                    mount_path.to_string_lossy()
                )));
            }
            let flaw = |option: &String| Some((option.clone(), mount_option_flaw(option)?));
            if let Some((option, why)) = self.mount_options.iter().find_map(flaw) {
                return Err(Failure::Usage(format!(
                    "--mount-options: {option:?} can't be asked for: {why}"
                )));
            }
            Usage::Filesystem {
                filesystem: self.fs,
                format: self.format,
                mount_path,
                options: self.mount_options.clone(),
            }
        };
        Ok(AttachSpec {
            volume: self.volume,
            mode: self.mode,
            usage,
            multipath: self.multipath,
            instance: self.instance,
        })
    }
}

impl Attach {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let spec = self.spec.spec(options)?;
        let engine = context::engine(options)?;
        let stop = context::stop_signal()?;
        let reporter = Reporter::new(self.quiet);
        let report = |progress| reporter.report(progress);
        let result = engine.attach_or_roll_back(&spec, &Origin::CommandLine, &report, &stop).await;
        reporter.finish();
        let attached = result?;
        output::print(format, &as_json(&attached), || as_text(&attached))?;
        Ok(())
    }
}

pub(super) fn as_json(attached: &Attached) -> serde_json::Value {
    let paths: Vec<serde_json::Value> = attached
        .paths
        .iter()
        .map(|path| {
            json!({
                "portal": path.target.portal,
                "targetIQN": path.target.iqn,
                "lun": path.lun,
                "hctl": path.disk.as_ref().map(|(hctl, _)| hctl),
                "device": path.disk.as_ref().map(|(_, name)| name),
                "state": path.state.to_string(),
            })
        })
        .collect();
    let trouble = attached.trouble.iter().map(ToString::to_string);
    let warnings: Vec<String> = trouble.chain(attached.warnings.iter().cloned()).collect();
    json!({
        "volumeID": attached.volume,
        "attachmentID": attached.attachment,
        "device": attached.device,
        "wwid": attached.wwid,
        "sizeBytes": attached.size_bytes,
        "mountPath": attached.mount_path,
        "paths": paths,
        "warnings": warnings,
        "changed": attached.changed,
    })
}

fn as_text(attached: &Attached) -> String {
    let mut lines = vec![
        format!(
            "{} volume {}",
            if attached.changed { "attached" } else { "already attached:" },
            attached.volume
        ),
        format!("attachment  {}", attached.attachment),
        format!("device      {} ({} bytes)", attached.device.display(), attached.size_bytes),
        format!("identity    {}", attached.wwid),
    ];
    if let Some(path) = &attached.mount_path {
        lines.push(format!("mounted on  {}", path.display()));
    }
    for path in &attached.paths {
        let disk =
            path.disk.as_ref().map_or(String::new(), |(hctl, name)| format!("{name} ({hctl}) "));
        lines.push(format!("path        {disk}{} LUN {}: {}", path.target, path.lun, path.state));
    }
    lines.extend(attached.trouble.iter().map(|trouble| format!("warning     {trouble}")));
    lines.extend(attached.warnings.iter().map(|warning| format!("warning     {warning}")));
    lines.join("\n")
}
