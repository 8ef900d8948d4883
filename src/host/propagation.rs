//! Whether mounts that are made in a container reach the host (`mount_namespaces(7)`).
//!
//! A mount made below a shared mount shows up below every peer of it. A Pod's hostPath volume with
//! `mountPropagation: Bidirectional` is a peer of the host's mount that it comes from; without, it is a
//! copy of its own.

use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, MountOptFields};

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
    let mount_point = point(mount);
    let rest = target.strip_prefix(&mount_point).ok()?;
    let within = mountinfo::unescaped_path(Path::new(&mount.root)).join(rest);
    let peer_group = mount.opt_fields.iter().find_map(|field| match field {
        MountOptFields::Shared(group) => Some(*group),
        _ => None,
    });
    Some(Cover { mount_point, peer_group, within })
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
}
