//! Whether the disks that appeared are the volume that was asked for. Pure.
//!
//! A WWID proves identity only where the storage derives it from the volume's UUID, as Cinder's tgt
//! driver does. Elsewhere a WWID may come back with another volume (a bare tgtd numbers them by
//! target), so it is never trusted alone: disks that stood at the volume's address before this
//! attach scanned it are deleted and scanned anew, all paths must agree in WWID and size, the size
//! must be the one that Cinder states, and no other disk of the node may carry the same WWID.

use crate::model::{ScsiDevice, VolumeId, Wwid};

const GIB: u64 = 1 << 30;

/// Whether a size is what Cinder states. Backends round a size up within the GiB, never down.
pub(super) fn is_size_of(size_gib: u64, size_bytes: u64) -> bool {
    let stated = size_gib.saturating_mul(GIB);
    size_bytes >= stated && size_bytes < stated.saturating_add(GIB)
}

/// The WWID that Cinder's tgt driver gives a volume: NAA 6, `e0`, then the UUID with `0` for `-`, cut
/// to 32 digits (seen with Cinder 29.0.0); multipath writes `3` before a NAA designator.
fn tgt_wwid(volume: VolumeId) -> String {
    let digits = format!("6e0{}", volume.to_string().replace('-', "0"));
    format!("3{}", &digits[..32])
}

/// What is wrong with a volume's disks; `Ok` gives the identity that they share.
///
/// `size_gib` is what Cinder states.
pub(super) fn shared_identity(
    volume: VolumeId,
    size_gib: Option<u64>,
    recorded: Option<&Wwid>,
    devices: &[&ScsiDevice],
) -> Result<Wwid, String> {
    let Some(first) = devices.first() else {
        return Err("there is none".to_owned());
    };
    let Some(wwid) = &first.wwid else {
        return Err(format!("{} has no identity in VPD page 0x83", first.name));
    };
    for device in devices {
        match &device.wwid {
            Some(other) if other == wwid => {}
            Some(other) => {
                return Err(format!("{} is {wwid}, {} is {other}", first.name, device.name));
            }
            None => return Err(format!("{} has no identity in VPD page 0x83", device.name)),
        }
        if device.size_bytes != first.size_bytes {
            return Err(format!(
                "{} has {} bytes, {} has {} bytes",
                first.name, first.size_bytes, device.name, device.size_bytes
            ));
        }
    }
    if let Some(recorded) = recorded.filter(|recorded| *recorded != wwid) {
        return Err(format!(
            "it was {recorded} when it was attached, and {} is {wwid}",
            first.name
        ));
    }
    let cinders_tgt = first.vendor.trim() == "IET" && wwid.as_str().starts_with("36e0");
    if cinders_tgt && wwid.as_str() != tgt_wwid(volume) {
        return Err(format!("{} carries {wwid}, which is another volume's UUID", first.name));
    }
    if let Some(size_gib) = size_gib
        && !is_size_of(size_gib, first.size_bytes)
    {
        return Err(format!(
            "Cinder states {size_gib} GiB ({} bytes), {} has {} bytes",
            size_gib.saturating_mul(GIB),
            first.name,
            first.size_bytes
        ));
    }
    Ok(wwid.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceName, DeviceNumber, DeviceState};

    const VOLUME: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";

    fn disk(name: &str, wwid: Option<&str>, size_bytes: u64) -> ScsiDevice {
        ScsiDevice {
            hctl: "2:0:0:1".parse().unwrap(),
            name: DeviceName::new(name).unwrap(),
            number: DeviceNumber { major: 8, minor: 0 },
            diskseq: None,
            size_bytes,
            wwid: wwid.map(|wwid| wwid.parse().unwrap()),
            vendor: "IET".to_owned(),
            model: "VIRTUAL-DISK".to_owned(),
            state: DeviceState::Running,
            read_only: false,
            holders: Vec::new(),
        }
    }

    fn check(
        size: Option<u64>,
        recorded: Option<&str>,
        disks: &[ScsiDevice],
    ) -> Result<Wwid, String> {
        let recorded = recorded.map(|wwid| wwid.parse().unwrap());
        let disks: Vec<&ScsiDevice> = disks.iter().collect();
        shared_identity(VOLUME.parse().unwrap(), size, recorded.as_ref(), &disks)
    }

    #[test]
    fn the_wwid_of_cinders_tgt_driver_carries_the_volumes_uuid() {
        let own = tgt_wwid(VOLUME.parse().unwrap());
        assert_eq!(own, "36e07a29c609053cc041340830f06d08a");
        assert!(
            check(Some(1), None, &[disk("sda", Some(&own), GIB), disk("sdb", Some(&own), GIB)])
                .is_ok()
        );
    }

    #[test]
    fn another_volumes_uuid_in_the_wwid_is_refused() {
        let error =
            check(Some(1), None, &[disk("sda", Some("36e0ff1b7fa0030b80049ac085cb020d1"), GIB)]);
        assert!(error.unwrap_err().contains("another volume's UUID"));
    }

    #[test]
    fn paths_that_differ_in_wwid_or_size_are_refused() {
        let (a, b) = ("360000000000000000e00000000010001", "360000000000000000e00000000020001");
        assert!(
            check(None, None, &[disk("sda", Some(a), GIB), disk("sdb", Some(b), GIB)]).is_err()
        );
        assert!(
            check(None, None, &[disk("sda", Some(a), GIB), disk("sdb", Some(a), 2 * GIB)]).is_err()
        );
        assert!(check(None, None, &[disk("sda", Some(a), GIB), disk("sdb", None, GIB)]).is_err());
        assert!(check(None, None, &[disk("sda", None, GIB)]).is_err());
        assert!(check(None, None, &[]).is_err());
    }

    #[test]
    fn a_size_that_cinder_does_not_state_is_refused() {
        let a = "360000000000000000e00000000010001";
        assert!(check(Some(2), None, &[disk("sda", Some(a), GIB)]).is_err());
        assert!(check(Some(1), None, &[disk("sda", Some(a), 2 * GIB)]).is_err());
        assert!(check(Some(1), None, &[disk("sda", Some(a), GIB + 4_194_304)]).is_ok());
    }

    #[test]
    fn an_identity_other_than_the_recorded_one_is_refused() {
        let a = "360000000000000000e00000000010001";
        assert!(check(Some(1), Some(a), &[disk("sda", Some(a), GIB)]).is_ok());
        assert!(
            check(Some(1), Some("3600000000000000000000000000000ff"), &[disk("sda", Some(a), GIB)])
                .is_err()
        );
    }
}
