//! A walk of all there is, that need not read again what the last one saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{HostError, OneSession, Snapshot, Sysfs, one_session, resolved};
use crate::model::{MultipathMap, Session, Target};

/// What a walk must read, whatever the last one saw of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// All there is.
    pub(crate) everything: bool,
    /// The sessions to these targets, and all that hangs on them.
    pub(crate) targets: BTreeSet<Target>,
    /// The sessions of these SCSI hosts, the same.
    pub(crate) hosts: BTreeSet<u32>,
    /// Maps, by their kernel names (`dm-3`).
    pub(crate) maps: BTreeSet<String>,
}

impl Scope {
    /// All there is.
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Takes in another one.
    pub(crate) fn add(&mut self, other: Self) {
        self.everything |= other.everything;
        self.targets.extend(other.targets);
        self.hosts.extend(other.hosts);
        self.maps.extend(other.maps);
    }

    fn has_session(&self, session: &Session) -> bool {
        self.hosts.contains(&session.host)
            || self.targets.iter().any(|target| session.is_to(target))
    }
}

/// How long a walk may take what the last one saw for what is there, at least: the kernel has no event for
/// each change of a session's or a disk's state.
const GOOD: Duration = Duration::from_secs(5);

/// And at least so many times as long as reading all of it takes: where much is attached, a busy processor has
/// more to do than to read again what no event told of.
const SHARE: u32 = 20;

/// What the last walk saw, by the inode numbers of the directory entries: sysfs gives none of them twice
/// (`kernfs_ino()`), so that another session of the same name is another one here.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    sessions: BTreeMap<u64, Seen<OneSession>>,
    maps: BTreeMap<u64, Seen<Arc<MultipathMap>>>,
}

#[derive(Debug)]
struct Seen<T> {
    what: T,
    at: Instant,
    took: Duration,
}

/// Reads something that may have vanished.
fn see<T>(
    read: impl FnOnce() -> Result<Option<T>, HostError>,
) -> Result<Option<Seen<T>>, HostError> {
    let at = Instant::now();
    let what = read()?;
    Ok(what.map(|what| Seen { what, at, took: at.elapsed() }))
}

impl Sysfs {
    /// Walks sessions, their disks and the maps. What isn't in the scope may be what the last walk saw, at most
    /// [`GOOD`] ago, or longer where all of it takes long to read; of a map its path, which `node` tells, is
    /// asked for always. Blocks.
    pub(crate) fn walk(
        &self,
        memory: &mut Memory,
        scope: &Scope,
        node: impl Fn(&MultipathMap) -> Option<PathBuf>,
    ) -> Result<Snapshot, HostError> {
        let mut last = mem::take(memory);
        let (now, limit) = (Instant::now(), GOOD.max(last.reading_it_all() * SHARE));
        let good = |at: Instant| !scope.everything && now.duration_since(at) < limit;
        // Of what was not read anew.
        let mut known = BTreeSet::new();
        let mut held_by = BTreeSet::new();
        for (name, link, number) in self.list("class/iscsi_session")? {
            let seen = last.sessions.remove(&number);
            let seen = seen.filter(|seen| good(seen.at) && !scope.has_session(&seen.what.session));
            let seen = if let Some(seen) = seen {
                known.extend(seen.what.devices.iter().map(|device| device.name.clone()));
                seen
            } else {
                let Some(seen) = see(|| one_session(&name, link))? else { continue };
                held_by.extend(seen.what.devices.iter().flat_map(|device| device.holders.clone()));
                seen
            };
            memory.sessions.insert(number, seen);
        }
        for (name, link, number) in self.maps_and_others()? {
            let seen = last.maps.remove(&number).filter(|seen| {
                good(seen.at)
                    && !scope.maps.contains(&name)
                    && !held_by.contains(&seen.what.device)
                    && !seen.what.members.is_empty()
                    && seen.what.members.iter().all(|member| known.contains(&member.device))
            });
            let mut seen = match seen {
                Some(seen) => seen,
                None => match see(|| Ok(Self::map(&name, &resolved(link))?.map(Arc::new)))? {
                    Some(seen) => seen,
                    None => continue,
                },
            };
            let node = node(&seen.what);
            if seen.what.node != node {
                Arc::make_mut(&mut seen.what).node = node;
            }
            memory.maps.insert(number, seen);
        }
        Ok(memory.snapshot())
    }
}

impl Memory {
    fn reading_it_all(&self) -> Duration {
        let sessions = self.sessions.values().map(|seen| seen.took);
        sessions.chain(self.maps.values().map(|seen| seen.took)).sum()
    }

    fn snapshot(&self) -> Snapshot {
        let (mut sessions, mut devices, mut nascent) = (Vec::new(), Vec::new(), Vec::new());
        for one in self.sessions.values().map(|seen| &seen.what) {
            sessions.push(one.session.clone());
            devices.extend_from_slice(&one.devices);
            nascent.extend_from_slice(&one.nascent);
        }
        let mut maps: Vec<_> = self.maps.values().map(|seen| seen.what.clone()).collect();
        sessions.sort_by_key(|session| session.sid);
        devices.sort_by_key(|device| device.hctl);
        nascent.sort();
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Snapshot { sessions: sessions.into(), devices: devices.into(), nascent, maps: maps.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{host::fixtures, model::DeviceState};

    /// Takes each disk of the captured node offline, and gives the map another size: no event tells of it.
    fn change_quietly(tree: &Path) {
        for disk in ["host0/session4/target0:0:0/0:0:0:1", "host1/session5/target1:0:0/1:0:0:1"] {
            fs::write(tree.join("devices/platform").join(disk).join("state"), "offline\n").unwrap();
        }
        fs::write(tree.join("devices/virtual/block/dm-0/size"), "8\n").unwrap();
    }

    /// Which disks are seen offline, and whether the map is seen with its new size.
    fn changes_seen(snapshot: &Snapshot) -> (Vec<&str>, bool) {
        let offline = snapshot.devices.iter().filter(|disk| disk.state == DeviceState::Offline);
        (offline.map(|disk| disk.name.as_str()).collect(), snapshot.maps[0].size_bytes == 8 * 512)
    }

    #[test]
    fn a_walk_reads_what_is_in_its_scope_and_takes_the_rest_from_the_last_one() {
        let of_target = Target {
            portal: "10.0.3.2:27551".parse().unwrap(),
            iqn: Sysfs::new(fixtures::sysfs("two-paths").path()).snapshot().unwrap().sessions[0]
                .iqn
                .clone(),
        };
        let target = Scope { targets: [of_target].into(), ..Scope::default() };
        let host = Scope { hosts: [0].into(), ..Scope::default() };
        let map = Scope { maps: ["dm-0".to_owned()].into(), ..Scope::default() };
        for (scope, disks, the_map) in [
            (Scope::default(), vec![], false),
            // A map over a disk that is read is read, too.
            (target, vec!["sda"], true),
            (host, vec!["sdb"], true),
            (map, vec![], true),
            (Scope::everything(), vec!["sdb", "sda"], true),
        ] {
            let tree = fixtures::sysfs("two-paths");
            let (sysfs, mut memory) = (Sysfs::new(tree.path()), Memory::default());
            let first = sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
            assert_eq!(first, sysfs.snapshot().unwrap(), "without a memory all is read");
            change_quietly(tree.path());
            let second = sysfs.walk(&mut memory, &scope, |_| None).unwrap();
            assert_eq!(changes_seen(&second), (disks, the_map), "{scope:?}");
            let third = sysfs.walk(&mut memory, &Scope::everything(), |_| None).unwrap();
            assert_eq!(third, sysfs.snapshot().unwrap());
        }
    }

    #[test]
    fn what_came_or_went_is_seen_in_any_scope() {
        let tree = fixtures::sysfs("two-paths");
        let (sysfs, mut memory) = (Sysfs::new(tree.path()), Memory::default());
        sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        let class = tree.path().join("class/iscsi_session");
        let link = fs::read_link(class.join("session4")).unwrap();
        fs::remove_file(class.join("session4")).unwrap();
        let seen = sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        assert_eq!((seen.sessions.len(), seen.devices.len()), (1, 1));
        std::os::unix::fs::symlink(link, class.join("session4")).unwrap();
        let seen = sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        assert_eq!(seen, sysfs.snapshot().unwrap());
        fs::remove_file(tree.path().join("block/dm-0")).unwrap();
        assert!(sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap().maps.is_empty());
    }

    #[test]
    fn what_was_seen_is_not_taken_for_what_is_there_for_long() {
        let tree = fixtures::sysfs("two-paths");
        let (sysfs, mut memory) = (Sysfs::new(tree.path()), Memory::default());
        sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        for seen in memory.sessions.values_mut() {
            seen.at = seen.at.checked_sub(GOOD).unwrap();
        }
        change_quietly(tree.path());
        let seen = sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        assert_eq!(seen, sysfs.snapshot().unwrap());
    }

    #[test]
    fn what_takes_long_to_read_is_read_again_the_less_often() {
        let tree = fixtures::sysfs("two-paths");
        let (sysfs, mut memory) = (Sysfs::new(tree.path()), Memory::default());
        sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
        change_quietly(tree.path());
        for (age, is_seen) in [(39, false), (45, true)] {
            for seen in memory.sessions.values_mut() {
                seen.took = Duration::from_secs(1);
                seen.at = Instant::now().checked_sub(Duration::from_secs(age)).unwrap();
            }
            let seen = sysfs.walk(&mut memory, &Scope::default(), |_| None).unwrap();
            assert_eq!(seen == sysfs.snapshot().unwrap(), is_seen, "{age} s");
        }
    }
}
