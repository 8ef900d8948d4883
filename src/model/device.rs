use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// Not `host:channel:target:lun`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SCSI address: expected host:channel:target:lun, such as 2:0:0:1")]
pub struct HctlError(String);

/// A SCSI address: host, channel, target, LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hctl {
    /// The SCSI host; each iSCSI session has its own.
    pub host: u32,
    /// The channel (bus).
    pub channel: u32,
    /// The target on that bus.
    pub target: u32,
    /// The logical unit.
    pub lun: u64,
}

impl FromStr for Hctl {
    type Err = HctlError;

    fn from_str(text: &str) -> Result<Self, HctlError> {
        let error = || HctlError(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split(':').collect();
        let [host, channel, target, lun] = parts.as_slice() else {
            return Err(error());
        };
        Ok(Self {
            host: host.parse().map_err(|_| error())?,
            channel: channel.parse().map_err(|_| error())?,
            target: target.parse().map_err(|_| error())?,
            lun: lun.parse().map_err(|_| error())?,
        })
    }
}

impl TryFrom<String> for Hctl {
    type Error = HctlError;

    fn try_from(text: String) -> Result<Self, HctlError> {
        text.parse()
    }
}

impl From<Hctl> for String {
    fn from(hctl: Hctl) -> String {
        hctl.to_string()
    }
}

impl fmt::Display for Hctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.host, self.channel, self.target, self.lun)
    }
}

/// Not `major:minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device number: expected major:minor, such as 253:0")]
pub struct DeviceNumberError(String);

/// A block device's number: what mountinfo, sysfs and `stat` agree on, whatever names are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

impl FromStr for DeviceNumber {
    type Err = DeviceNumberError;

    fn from_str(text: &str) -> Result<Self, DeviceNumberError> {
        let error = || DeviceNumberError(text.chars().take(80).collect());
        let (major, minor) = text.trim().split_once(':').ok_or_else(error)?;
        Ok(Self {
            major: major.parse().map_err(|_| error())?,
            minor: minor.parse().map_err(|_| error())?,
        })
    }
}

impl TryFrom<String> for DeviceNumber {
    type Error = DeviceNumberError;

    fn try_from(text: String) -> Result<Self, DeviceNumberError> {
        text.parse()
    }
}

impl From<DeviceNumber> for String {
    fn from(number: DeviceNumber) -> String {
        number.to_string()
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The kernel's name of a block device, as in `/sys/block`: `sda`, `dm-0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceName(String);

impl DeviceName {
    /// A name as sysfs lists it; `None` for what can't be one.
    pub fn new(name: &str) -> Option<Self> {
        let plain = !name.is_empty()
            && !name.starts_with(['.', '-'])
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'!' | b'.'));
        plain.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node that devtmpfs makes for it, without udev's help.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/dev").join(self.0.replace('!', "/"))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A block device that is meant, and no other that the kernel gives its name and number to later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DeviceId {
    /// Its name.
    pub name: DeviceName,
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's count of block devices when this one came (`/sys/block/*/diskseq`): it is never given
    /// again. `None` before Linux 5.15.
    pub diskseq: Option<u64>,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Not a WWID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WWID")]
pub struct WwidError(String);

/// A device's world wide identifier as multipath and `scsi_id` write it: a digit for the kind of
/// designator in VPD page 0x83 (3 NAA, 2 EUI-64, 8 SCSI name string, 1 T10 vendor), then its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Wwid(String);

impl Wwid {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Wwid {
    type Err = WwidError;

    fn from_str(text: &str) -> Result<Self, WwidError> {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'"' | b'\'' | b'\\');
        // Not an option either: it stands on multipath's command line.
        let is_option = text.starts_with('-');
        if text.is_empty() || text.len() > 255 || is_option || !text.bytes().all(plain) {
            return Err(WwidError(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Wwid {
    type Error = WwidError;

    fn try_from(text: String) -> Result<Self, WwidError> {
        text.parse()
    }
}

impl From<Wwid> for String {
    fn from(wwid: Wwid) -> String {
        wwid.0
    }
}

impl fmt::Display for Wwid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file system that attachd formats, checks and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
}

impl Filesystem {
    /// The name that the kernel and blkid use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A file system that attachd doesn't handle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown file system {0:?}: attachd handles ext4 and xfs")]
pub struct UnknownFilesystem(String);

impl FromStr for Filesystem {
    type Err = UnknownFilesystem;

    fn from_str(text: &str) -> Result<Self, UnknownFilesystem> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(UnknownFilesystem(other.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scsi_addresses_and_device_numbers_are_parsed_whole_or_not_at_all() {
        assert_eq!("2:0:0:1".parse::<Hctl>().unwrap().lun, 1);
        assert_eq!("253:7\n".parse::<DeviceNumber>().unwrap().minor, 7);
        for bad in ["", "2:0:0", "2:0:0:1:4", "a:0:0:1", "-1:0:0:1"] {
            assert!(bad.parse::<Hctl>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_device_name_can_not_leave_dev() {
        assert_eq!(DeviceName::new("dm-0").unwrap().path(), PathBuf::from("/dev/dm-0"));
        for bad in ["", "..", "../sda", "a/b", "sd a", "-", "-sda"] {
            assert!(DeviceName::new(bad).is_none(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_wwid_can_not_be_an_option_a_path_or_quoted() {
        assert_eq!("1IET_00010001".parse::<Wwid>().unwrap().as_str(), "1IET_00010001");
        for bad in ["", "-W", "--help", "3a b", "3/a", "3\"", "3'", "3\n", "3\\", &"3".repeat(256)]
        {
            assert!(bad.parse::<Wwid>().is_err(), "{bad:?} was accepted");
        }
    }
}
