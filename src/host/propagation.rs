//! Whether mounts that are made in a container reach the host (`mount_namespaces(7)`).
//!
//! A mount made below a shared mount shows up below every peer of it. A Pod's hostPath volume with
//! `mountPropagation: Bidirectional` is a peer of the host's mount that it comes from; without, it is a
//! copy of its own.

use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, MountOptFields};

use crate::model::MountEntry;

use super::{HostError, mountinfo};

/// What mends it.
pub(crate) const ADVICE: &str = "give the Pod's hostPath volume for it mountPropagation: Bidirectional, at the same path as on the host";

/// Where the mounts of both sides are listed.
#[derive(Debug, Clone)]
pub(crate) struct Propagation {
    /// attachd's own mounts.
    pub(crate) own: PathBuf,
    /// The host's.
    pub(crate) host: PathBuf,
}

/// The mount that a path lies on.
#[derive(Debug, PartialEq, Eq)]
struct Cover {
    mount_point: PathBuf,
    /// Mounts of one peer group see each other's mounts.
    peer_group: Option<u32>,
    /// The path within its file system.
    within: PathBuf,
}

impl Propagation {
    /// Why a mount made at this path would not reach the host; None where it would.
    pub(crate) fn obstacle(&self, target: &Path) -> Result<Option<String>, HostError> {
        let own = cover(&mountinfo::infos(&self.own)?, target);
        let host = cover(&mountinfo::infos(&self.host)?, target);
        Ok(compare(own, host).map(|why| format!("a mount there would not reach the host: {why}")))
    }
}

/// The mounts of block devices, without the copies that propagation made outside the roots of what was
/// mounted below one: where the directory above is itself a bind mount (`/data/attachd` at
/// `/var/lib/attachd`), every mount in it shows at both places. Copies go with their original.
pub(crate) fn without_copies(
    mountinfo: &Path,
    roots: &[PathBuf],
) -> Result<Vec<MountEntry>, HostError> {
    let mounts = mountinfo::infos(mountinfo)?;
    let below_a_root = |mount: &MountInfo| {
        let point = mountinfo::unescaped_path(&mount.mount_point);
        roots.iter().any(|root| point.starts_with(root))
    };
    let originals: Vec<(&MountInfo, Place)> = mounts
        .iter()
        .filter(|mount| below_a_root(mount))
        .filter_map(|mount| Some((mount, place(&mounts, mount)?)))
        .collect();
    let is_copy = |mount: &MountInfo| {
        let Some(there) = place(&mounts, mount).filter(|_| !below_a_root(mount)) else {
            return false;
        };
        originals.iter().any(|(original, place)| {
            original.majmin == mount.majmin
                && place.within == there.within
                && place.peer_group.is_some()
                && (place.peer_group == there.peer_group || place.peer_group == there.master)
        })
    };
    let kept = mounts.iter().filter(|mount| !is_copy(mount));
    Ok(mountinfo::of_block_devices(kept))
}

/// Where a mount stands on the mount above it.
struct Place {
    peer_group: Option<u32>,
    /// The peer group whose mounts it gets without passing on its own.
    master: Option<u32>,
    within: PathBuf,
}

fn place(mounts: &[MountInfo], mount: &MountInfo) -> Option<Place> {
    let above =
        mounts.iter().find(|above| above.mnt_id == mount.pid && above.mnt_id != mount.mnt_id)?;
    let within = within(above, &mountinfo::unescaped_path(&mount.mount_point))?;
    let master = above.opt_fields.iter().find_map(|field| match field {
        MountOptFields::Master(group) => Some(*group),
        _ => None,
    });
    Some(Place { peer_group: peer_group(above), master, within })
}

/// A path below a mount, as a path within the mount's file system.
fn within(mount: &MountInfo, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(mountinfo::unescaped_path(&mount.mount_point)).ok()?;
    Some(mountinfo::unescaped_path(Path::new(&mount.root)).join(rest))
}

fn peer_group(mount: &MountInfo) -> Option<u32> {
    mount.opt_fields.iter().find_map(|field| match field {
        MountOptFields::Shared(group) => Some(*group),
        _ => None,
    })
}

fn compare(own: Option<Cover>, host: Option<Cover>) -> Option<String> {
    let (Some(own), Some(host)) = (own, host) else {
        return Some("it lies on no mount that can be seen".to_owned());
    };
    let (here, there) = (own.mount_point.display(), host.mount_point.display());
    if host.peer_group.is_none() {
        Some(format!("the host's mount {there} is private; share it: mount --make-rshared /"))
    } else if own.peer_group == host.peer_group && own.within == host.within {
        None
    } else {
        Some(format!(
            "it lies on {here} of attachd's container, which is no peer of the host's mount {there}; {ADVICE}"
        ))
    }
}

fn cover(mounts: &[MountInfo], target: &Path) -> Option<Cover> {
    let point = |mount: &MountInfo| mountinfo::unescaped_path(&mount.mount_point);
    // The deepest, and of those the one on top, which is the last.
    let above = mounts.iter().filter(|mount| target.starts_with(point(mount)));
    let mount = above.max_by_key(|mount| point(mount).components().count())?;
    Some(Cover {
        mount_point: point(mount),
        peer_group: peer_group(mount),
        within: within(mount, target)?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HOST: &str = "\
22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 22 8:2 / /var/lib/attachd rw shared:9 - ext4 /dev/sda2 rw
31 22 8:3 / /srv rw - ext4 /dev/sda3 rw
";

    fn obstacle(own: &str, target: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let (own_file, host_file) = (directory.path().join("own"), directory.path().join("host"));
        fs::write(&own_file, own).unwrap();
        fs::write(&host_file, HOST).unwrap();
        let both = Propagation { own: own_file, host: host_file };
        both.obstacle(Path::new(target)).unwrap()
    }

    #[test]
    fn a_bidirectional_volume_is_a_peer_of_the_hosts_mount() {
        let own = "\
90 80 0:40 / / rw - overlay overlay rw
91 90 8:1 /mnt /mnt rw shared:1 - ext4 /dev/sda1 rw
92 90 8:2 / /var/lib/attachd rw shared:9 - ext4 /dev/sda2 rw
";
        assert_eq!(obstacle(own, "/mnt/db"), None);
        assert_eq!(obstacle(own, "/var/lib/attachd/mounts/db"), None);
    }

    #[test]
    fn a_private_a_slave_or_another_directory_and_none_at_all_are_told() {
        for (own, words) in [
            ("91 90 8:1 /mnt /mnt rw - ext4 /dev/sda1 rw\n", "on /mnt of attachd's container"),
            (
                "91 90 8:1 /mnt /mnt rw master:1 - ext4 /dev/sda1 rw\n",
                "no peer of the host's mount /",
            ),
            ("91 90 8:1 /other /mnt rw shared:1 - ext4 /dev/sda1 rw\n", "no peer"),
            ("90 80 0:40 / / rw shared:55 - overlay overlay rw\n", "on / of attachd's container"),
            // One mounted over another: the last is seen.
            (
                "91 90 8:1 /mnt /mnt rw shared:1 - ext4 /dev/sda1 rw\n95 91 0:50 / /mnt rw - tmpfs tmpfs rw\n",
                "no peer",
            ),
            ("", "on no mount"),
        ] {
            let why = obstacle(own, "/mnt/db").unwrap();
            assert!(why.contains(words), "{why}");
        }
        let own = "93 90 8:3 / /srv rw - ext4 /dev/sda3 rw\n";
        assert!(obstacle(own, "/srv/db").unwrap().contains("make-rshared"));
    }

    #[test]
    fn a_copy_that_propagation_made_is_no_other_mount_but_a_bind_is() {
        let mounts = "\
22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
23 22 8:2 / /data rw shared:2 - ext4 /dev/sda2 rw
24 22 8:2 /attachd /var/lib/attachd rw shared:2 - ext4 /dev/sda2 rw
25 22 8:2 /attachd /slave rw master:2 - ext4 /dev/sda2 rw
26 22 8:2 /attachd /private rw - ext4 /dev/sda2 rw
40 24 253:0 / /var/lib/attachd/mounts/db rw shared:7 - ext4 /dev/dm-0 rw
41 23 253:0 / /data/attachd/mounts/db rw shared:7 - ext4 /dev/dm-0 rw
42 25 253:0 / /slave/mounts/db rw master:7 - ext4 /dev/dm-0 rw
43 22 253:0 / /bind rw shared:7 - ext4 /dev/dm-0 rw
44 26 253:0 / /private/mounts/db rw - ext4 /dev/dm-0 rw
45 23 253:1 / /data/attachd/mounts/other rw shared:8 - ext4 /dev/dm-1 rw
";
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), mounts).unwrap();
        let roots = [PathBuf::from("/var/lib/attachd/mounts"), PathBuf::from("/mnt")];
        let kept = without_copies(file.path(), &roots).unwrap();
        let of_devices: Vec<_> = kept
            .iter()
            .filter(|mount| mount.number.major == 253)
            .map(|mount| mount.target.to_str().unwrap())
            .collect();
        let expected = [
            "/var/lib/attachd/mounts/db",
            "/bind",
            "/private/mounts/db",
            "/data/attachd/mounts/other",
        ];
        assert_eq!(of_devices, expected);
        let elsewhere = without_copies(file.path(), &[]).unwrap();
        assert_eq!(elsewhere.len(), kept.len() + 2);
    }
}
