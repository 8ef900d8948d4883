//! From a request as it is written to what the engine takes: the same rules as the schema's, for
//! requests that no API server has checked.

use std::path::{Component, Path, PathBuf};

use uuid::Uuid;

use super::{
    AccessModeSpec, FilesystemType, FormatSpec, MultipathSpec, VolumeAttachRequestSpec,
    VolumeModeSpec,
};
use crate::model::{
    AccessMode, AttachSpec, Filesystem, FormatPolicy, IdError, MultipathPolicy, Usage,
    mount_option_flaw,
};

/// A request that can't be served as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// `volumeID` is none.
    #[error("spec.volumeID")]
    Volume(#[from] IdError),
    /// `instanceUUID` is none.
    #[error("spec.instanceUUID: {text:?} is not a UUID")]
    Instance {
        /// What stands there.
        text: String,
    },
    /// `mountPath` is no absolute, plain path.
    #[error(
        "spec.mountPath: {path:?} is not an absolute path without ., .. and control characters"
    )]
    MountPath {
        /// What stands there.
        path: String,
    },
    /// A mount option that isn't let through.
    #[error("spec.filesystem.mountOptions: {option:?} can't be asked for: {why}")]
    MountOption {
        /// What stands there.
        option: String,
        /// Why not.
        why: &'static str,
    },
    /// Fields that exclude each other.
    #[error("spec.{field} belongs to volumeMode Filesystem, and volumeMode is Block")]
    BlockWith {
        /// The field.
        field: &'static str,
    },
}

impl InvalidRequest {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Volume(_)
            | Self::Instance { .. }
            | Self::MountPath { .. }
            | Self::MountOption { .. }
            | Self::BlockWith { .. } => "InvalidRequest",
        }
    }
}

/// Longest text of a request that an error quotes.
const MAX_QUOTED: usize = 200;

/// The longest path that the kernel takes (`PATH_MAX`, with the NUL).
const MAX_PATH: usize = 4096;

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// Whether a path is absolute and names what it says: no `.`, no `..`, nothing that a table or a
/// message would show as something else.
pub fn is_plain_absolute(path: &Path) -> bool {
    let mut components = path.components();
    // `components` drops a `.`, so the text is looked at too.
    components.next() == Some(Component::RootDir)
        && components.all(|part| matches!(part, Component::Normal(_)))
        && !path.as_os_str().as_encoded_bytes().split(|b| *b == b'/').any(|part| part == b".")
        && !path.to_string_lossy().contains(char::is_control)
        && path.as_os_str().len() < MAX_PATH
        && path != Path::new("/")
}

impl VolumeAttachRequestSpec {
    /// What the engine is to do; a request without a mount path is mounted on `default_mount_path`.
    ///
    /// # Errors
    /// The first field that can't be.
    pub fn to_attach_spec(&self, default_mount_path: &Path) -> Result<AttachSpec, InvalidRequest> {
        let instance = self.instance_uuid.as_deref().map(|text| {
            Uuid::try_parse(text).map_err(|_| InvalidRequest::Instance { text: quoted(text) })
        });
        Ok(AttachSpec {
            volume: self.volume_id.parse()?,
            mode: match self.mode {
                AccessModeSpec::Rw => AccessMode::Rw,
                AccessModeSpec::Ro => AccessMode::Ro,
            },
            usage: self.usage(default_mount_path)?,
            multipath: match self.multipath {
                MultipathSpec::Auto => MultipathPolicy::Auto,
                MultipathSpec::Required => MultipathPolicy::Required,
                MultipathSpec::Disabled => MultipathPolicy::Disabled,
            },
            instance: instance.transpose()?,
        })
    }

    fn usage(&self, default_mount_path: &Path) -> Result<Usage, InvalidRequest> {
        if self.volume_mode == VolumeModeSpec::Block {
            return match (&self.filesystem, &self.mount_path) {
                (Some(_), _) => Err(InvalidRequest::BlockWith { field: "filesystem" }),
                (None, Some(_)) => Err(InvalidRequest::BlockWith { field: "mountPath" }),
                (None, None) => Ok(Usage::Block),
            };
        }
        let mount_path = match &self.mount_path {
            None => default_mount_path.to_owned(),
            Some(path) if is_plain_absolute(Path::new(path)) => PathBuf::from(path),
            Some(path) => return Err(InvalidRequest::MountPath { path: quoted(path) }),
        };
        let filesystem = self.filesystem.clone().unwrap_or_default();
        for option in &filesystem.mount_options {
            if let Some(why) = mount_option_flaw(option) {
                return Err(InvalidRequest::MountOption { option: quoted(option), why });
            }
        }
        Ok(Usage::Filesystem {
            filesystem: match filesystem.type_ {
                FilesystemType::Ext4 => Filesystem::Ext4,
                FilesystemType::Xfs => Filesystem::Xfs,
            },
            format: match filesystem.format {
                FormatSpec::IfBlank => FormatPolicy::IfBlank,
                FormatSpec::Never => FormatPolicy::Never,
            },
            mount_path,
            options: filesystem.mount_options,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VOLUME: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";

    fn parse(yaml: &str) -> Result<AttachSpec, String> {
        let spec: VolumeAttachRequestSpec =
            serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        spec.to_attach_spec(Path::new("/var/lib/attachd/mounts/db"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_with_only_a_node_and_a_volume_is_ext4_rw_formatted_if_blank() {
        let spec = parse(&format!("{{nodeName: n1, volumeID: {VOLUME}}}")).unwrap();
        assert_eq!(spec.mode, AccessMode::Rw);
        assert_eq!(
            spec.usage,
            Usage::Filesystem {
                filesystem: Filesystem::Ext4,
                format: FormatPolicy::IfBlank,
                mount_path: PathBuf::from("/var/lib/attachd/mounts/db"),
                options: vec![],
            }
        );
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_field_that_is_wrong() {
        for (yaml, field) in [
            ("{nodeName: n1, volumeID: nope}", "volumeID"),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, mountPath: relative}}"), "mountPath"),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, mountPath: /a/../etc}}"), "mountPath"),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, mountPath: /a/./b}}"), "mountPath"),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, mountPath: /}}"), "mountPath"),
            (
                &*format!("{{nodeName: n1, volumeID: {VOLUME}, volumeMode: Block, mountPath: /a}}"),
                "mountPath",
            ),
            (
                &*format!(
                    "{{nodeName: n1, volumeID: {VOLUME}, volumeMode: Block, filesystem: {{}}}}"
                ),
                "filesystem",
            ),
            (
                &*format!(
                    "{{nodeName: n1, volumeID: {VOLUME}, filesystem: {{mountOptions: ['a,b']}}}}"
                ),
                "mountOptions",
            ),
            (
                &*format!("{{nodeName: n1, volumeID: {VOLUME}, filesystem: {{type: btrfs}}}}"),
                "btrfs",
            ),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, instanceUUID: x}}"), "instanceUUID"),
            (&*format!("{{nodeName: n1, volumeID: {VOLUME}, mountpath: /a}}"), "mountpath"),
        ] {
            let error = parse(yaml).expect_err(yaml);
            assert!(error.contains(field), "{yaml}: {error}");
        }
    }

    #[test]
    fn what_a_hostile_request_could_ask_for_is_refused_and_not_quoted_at_length() {
        let path = |path: &str| json!({"mountPath": path});
        let option = |option: &str| json!({"filesystem": {"mountOptions": ["noatime", option]}});
        for extra in [
            path("/mnt/../etc"),
            path("/mnt/./x"),
            path("/mnt/x\0y"),
            path("/mnt/x\n/etc"),
            path("/mnt/x\u{1b}[2J"),
            path("mnt/x"),
            path("//"),
            path(&format!("/mnt/{}", "x/".repeat(1_000_000))),
            option("nodev,suid"),
            option("noatime\nsuid"),
            option("noatime\0"),
            option(""),
            option("loop"),
            option("loop=/dev/loop0"),
            option("journal_path=/dev/sda1"),
            option("journal_dev=0x801"),
            option("logdev=/dev/sda1"),
            option("rtdev=/dev/sda1"),
            option("remount"),
            option("bind"),
            option("rshared"),
            json!({"volumeID": "../../etc/passwd"}),
            json!({"volumeID": "7a29c609-53cc-4134-830f-6d08a0b9da91\n"}),
            json!({"volumeID": "7a29c60953cc4134830f6d08a0b9da91"}),
            json!({"volumeID": "x".repeat(1_000_000)}),
            json!({"instanceUUID": "x".repeat(1_000_000)}),
        ] {
            let mut spec = json!({"nodeName": "n1", "volumeID": VOLUME});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let spec: VolumeAttachRequestSpec = serde_json::from_value(spec).unwrap();
            let shown = format!("{:.200}", extra.to_string());
            let error = spec.to_attach_spec(Path::new("/mnt/db")).expect_err(&shown).to_string();
            assert!(error.len() < 1000 && !error.contains(char::is_control), "{shown}");
        }
        let good: VolumeAttachRequestSpec = serde_json::from_value(json!({
            "nodeName": "n1", "volumeID": VOLUME, "mountPath": "/mnt/my data-\u{e4}",
            "filesystem": {"mountOptions": ["noatime", "commit=30", "x-gvfs-hide", "context=system_u:object_r:x_t:s0"]}
        }))
        .unwrap();
        good.to_attach_spec(Path::new("/mnt/db")).unwrap();
    }
}
