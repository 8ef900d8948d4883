//! Node records that somebody else made: set aside while attachd has its own, and given back.
//!
//! A login needs a record with attachd's settings and credentials, and iscsiadm knows one record for a
//! portal. So a record that is there before the first login is renamed, never copied: its secrets stay in
//! one file, and a crash leaves it in exactly one of the two places.
//!
//! ```text
//! nodes/<target>/<address>,<port>…                    what iscsiadm uses
//! attachd-kept/<target>/taking-<address>,<port>/…     they are being set aside
//! attachd-kept/<target>/kept-<address>,<port>/…       they are; what iscsiadm uses is attachd's own
//! attachd-kept/<target>/giving-<address>,<port>/…     attachd's own is gone, they are being given back
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    HostError,
    node_records::{is_of, list, remove},
};
use crate::model::{Iqn, Portal, Target};

/// The records of one target and portal below one root of the database. Whoever uses it has the
/// database's lock.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    target: Target,
    nodes: PathBuf,
    directory: PathBuf,
}

impl Kept {
    /// `root` is `etc/iscsi` or `var/lib/iscsi` of the host.
    pub(super) fn new(root: &Path, target: &Target) -> Self {
        Self {
            target: target.clone(),
            nodes: root.join("nodes").join(target.iqn.as_str()),
            directory: root.join("attachd-kept").join(target.iqn.as_str()),
        }
    }

    fn at(&self, stage: &str) -> PathBuf {
        let portal = self.target.portal;
        self.directory.join(format!("{stage}-{},{}", portal.address(), portal.port()))
    }

    /// What iscsiadm uses is attachd's own, if there is anything.
    pub(super) fn is_set_aside(&self) -> bool {
        self.at("kept").is_dir()
    }

    /// Sets aside what is there, unless that was done before.
    pub(super) fn set_aside(&self) -> Result<(), HostError> {
        self.finish_giving()?;
        if self.is_set_aside() {
            return Ok(());
        }
        let (taking, kept) = (self.at("taking"), self.at("kept"));
        make(&taking)?;
        for record in self.in_use()? {
            tracing::warn!(record = %record.display(), "a node record that attachd did not make is set aside until the logout");
            rename_into(&record, &taking)?;
        }
        rename(&taking, &kept)?;
        // Where it was the last one of its target, attachd's own makes the directory anew.
        let _ = fs::remove_dir(&self.nodes);
        Ok(())
    }

    /// Removes attachd's own record, and gives back what was set aside for it. Other records are left.
    pub(super) fn give_back(&self) -> Result<(), HostError> {
        if self.is_set_aside() {
            // Discovery by somebody makes a directory for a portal; attachd's own is a plain file.
            for record in self.in_use()?.into_iter().filter(|record| record.is_file()) {
                remove(&record)?;
            }
            rename(&self.at("kept"), &self.at("giving"))?;
        } else if self.at("taking").is_dir() {
            // attachd had made none of its own yet.
            rename(&self.at("taking"), &self.at("giving"))?;
        }
        self.finish_giving()
    }

    fn finish_giving(&self) -> Result<(), HostError> {
        let giving = self.at("giving");
        for record in list(&giving)? {
            let there = record.file_name().map(|name| self.nodes.join(name));
            if there.is_some_and(|there| there.exists()) {
                // Somebody has made it anew meanwhile, and means the new one.
                let removed = if record.is_dir() {
                    fs::remove_dir_all(&record)
                } else {
                    fs::remove_file(&record)
                };
                removed.map_err(HostError::io("remove", &record))?;
            } else {
                make(&self.nodes)?;
                rename_into(&record, &self.nodes)?;
            }
        }
        if giving.is_dir() {
            fs::remove_dir(&giving).map_err(HostError::io("remove", &giving))?;
        }
        // Unless other targets or portals have something in there. Whoever was killed may have left them empty.
        let _ = fs::remove_dir(&self.directory);
        let _ = self.directory.parent().map(fs::remove_dir);
        Ok(())
    }

    /// The entries that iscsiadm uses for this portal.
    fn in_use(&self) -> Result<Vec<PathBuf>, HostError> {
        let entries = list(&self.nodes)?.into_iter();
        Ok(entries.filter(|path| is_of(path, self.target.portal)).collect())
    }
}

/// A target whose node record is attachd's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptRecords {
    /// The target.
    pub target: Target,
    /// Records of others are set aside for it.
    pub holds_others: bool,
}

/// Adds all of them below one root of the database; a target may be known from another root.
pub(super) fn add_all(root: &Path, found: &mut Vec<KeptRecords>) -> Result<(), HostError> {
    for directory in list(&root.join("attachd-kept"))? {
        let iqn = directory.file_name().and_then(|name| name.to_str()?.parse::<Iqn>().ok());
        let Some(iqn) = iqn else { continue };
        for stage in list(&directory)? {
            let portal = stage.file_name().and_then(|name| portal_of(name.to_str()?));
            let Some(portal) = portal else { continue };
            let target = Target { portal, iqn: iqn.clone() };
            let holds_others = !list(&stage)?.is_empty();
            match found.iter_mut().find(|known| known.target == target) {
                Some(known) => known.holds_others |= holds_others,
                None => found.push(KeptRecords { target, holds_others }),
            }
        }
    }
    Ok(())
}

/// The portal in `kept-<address>,<port>`.
fn portal_of(name: &str) -> Option<Portal> {
    let (stage, portal) = name.split_once('-')?;
    let (address, port) = portal.split_once(',')?;
    ["taking", "kept", "giving"].contains(&stage).then_some(())?;
    Some(Portal::new(address.parse().ok()?, port.parse().ok()?))
}

fn make(directory: &Path) -> Result<(), HostError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(HostError::io("make", directory))
}

fn rename_into(path: &Path, directory: &Path) -> Result<(), HostError> {
    match path.file_name() {
        Some(name) => rename(path, &directory.join(name)),
        None => Ok(()),
    }
}

/// Renames, and returns when both directories are on the disk.
fn rename(from: &Path, to: &Path) -> Result<(), HostError> {
    let synced = || -> io::Result<()> {
        fs::rename(from, to)?;
        for parent in [to.parent(), from.parent()].into_iter().flatten() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    synced().map_err(HostError::io("rename", from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IQN: &str = "iqn.2003-01.org.example:shared";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn kept(&self) -> Kept {
            let target =
                Target { portal: "10.0.2.2:3260".parse().unwrap(), iqn: IQN.parse().unwrap() };
            Kept::new(self.0.path(), &target)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Every file with its text.
        fn files(&self) -> Vec<(String, String)> {
            let mut found = Vec::new();
            let mut left = vec![self.0.path().to_owned()];
            while let Some(directory) = left.pop() {
                for path in list(&directory).unwrap() {
                    if path.is_dir() {
                        left.push(path);
                    } else {
                        let name = path.strip_prefix(self.0.path()).unwrap().display().to_string();
                        found.push((name, fs::read_to_string(path).unwrap()));
                    }
                }
            }
            found.sort();
            found
        }
    }

    fn plain() -> String {
        format!("nodes/{IQN}/10.0.2.2,3260")
    }

    fn discovered() -> String {
        format!("nodes/{IQN}/10.0.2.2,3260,1/default")
    }

    #[test]
    fn somebody_elses_record_is_there_again_after_attachds_own() {
        for record in [plain(), discovered()] {
            let root = Root::new();
            root.write(&record, "theirs");
            root.write(&format!("nodes/{IQN}/10.0.9.9,3260"), "of another portal");
            let before = root.files();
            root.kept().set_aside().unwrap();
            assert!(!root.0.path().join(&record).exists());
            root.write(&plain(), "attachd's");
            // A second login finds it done.
            root.kept().set_aside().unwrap();
            assert_eq!(fs::read_to_string(root.0.path().join(plain())).unwrap(), "attachd's");
            root.kept().give_back().unwrap();
            assert_eq!(root.files(), before);
            assert!(!root.0.path().join("attachd-kept").exists());
            root.kept().give_back().unwrap();
            assert_eq!(root.files(), before);
        }
    }

    #[test]
    fn without_a_record_of_somebody_else_nothing_is_left() {
        let root = Root::new();
        root.kept().set_aside().unwrap();
        root.write(&plain(), "attachd's");
        root.kept().give_back().unwrap();
        assert_eq!(root.files(), []);
        assert!(!root.0.path().join(format!("nodes/{IQN}")).exists());
    }

    #[test]
    fn a_record_that_somebody_made_meanwhile_is_the_one_that_stays() {
        let root = Root::new();
        root.write(&discovered(), "old");
        root.kept().set_aside().unwrap();
        root.write(&plain(), "attachd's");
        root.write(&discovered(), "new");
        root.kept().give_back().unwrap();
        assert_eq!(root.files(), [(discovered(), "new".to_owned())]);
    }

    #[test]
    fn a_crash_between_any_two_renames_loses_no_record_and_gives_none_of_attachds_away() {
        // While they are taken: one is set aside, the other is not.
        let root = Root::new();
        let taking = format!("attachd-kept/{IQN}/taking-10.0.2.2,3260/10.0.2.2,3260");
        root.write(&taking, "theirs, plain");
        root.write(&discovered(), "theirs, discovered");
        root.kept().set_aside().unwrap();
        root.write(&plain(), "attachd's");
        root.kept().give_back().unwrap();
        let theirs = [
            (plain(), "theirs, plain".to_owned()),
            (discovered(), "theirs, discovered".to_owned()),
        ];
        assert_eq!(root.files(), theirs);
        // While they are given back: a plain one already is, and is not taken for attachd's.
        let root = Root::new();
        root.write(&plain(), "theirs, plain");
        let giving = format!("attachd-kept/{IQN}/giving-10.0.2.2,3260/10.0.2.2,3260,1/default");
        root.write(&giving, "theirs, discovered");
        root.kept().give_back().unwrap();
        assert_eq!(root.files(), theirs);
    }

    #[test]
    fn directories_that_a_killed_login_or_logout_left_empty_go_with_the_next_logout() {
        for left in [String::new(), format!("/{IQN}")] {
            let root = Root::new();
            fs::create_dir_all(root.0.path().join(format!("attachd-kept{left}"))).unwrap();
            root.kept().give_back().unwrap();
            assert!(!root.0.path().join("attachd-kept").exists());
        }
    }

    #[test]
    fn a_login_that_was_cut_short_while_records_were_taken_gives_them_back_at_the_logout() {
        let root = Root::new();
        root.write(&format!("attachd-kept/{IQN}/taking-10.0.2.2,3260/10.0.2.2,3260"), "theirs");
        root.kept().give_back().unwrap();
        assert_eq!(root.files(), [(plain(), "theirs".to_owned())]);
    }
}
