use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Check, Finding, Mend, Repair,
    node::{Node, entries, files_below, processes, settings, stopped, text, unread},
};
use crate::host::{HostError, exec::Program, initiator_name, iscsid_answers};

pub(super) const INITIATOR_NAME: Check = Check {
    id: "initiator-name",
    looks_at: "/etc/iscsi/initiatorname.iscsi, and the name that the sessions were made with",
    why: "Storage lets a node in by this name. Without a valid one nothing is attached; where it was changed, new sessions have another one than the old ones.",
};
pub(super) const RUNNING: Check = Check {
    id: "iscsid-running",
    looks_at: "iscsid's socket, and its process",
    why: "iscsid makes the sessions and brings lost ones back. Without it nothing is attached, and a path that fails stays away.",
};
pub(super) const VERSIONS: Check = Check {
    id: "iscsi-versions",
    looks_at: "the versions of iscsiadm, of iscsid, and of the iscsid that runs",
    why: "They talk to each other by a private protocol: one of another version answers nonsense or nothing.",
};
pub(super) const CONFIGURATION: Check = Check {
    id: "iscsid-conf",
    looks_at: "/etc/iscsi/iscsid.conf: what new node records get from it",
    why: "attachd sets what it needs in its own records; liveness checks, failover times and global CHAP come from here.",
};
pub(super) const RECORDS: Check = Check {
    id: "node-records",
    looks_at: "open-iscsi's node records: node.startup, and who may read their secrets",
    why: "A record with automatic startup logs in at boot, without attachd: a disk of a volume that was given to another node by then appears here, too.",
};
pub(super) const LOCK: Check = Check {
    id: "iscsi-lock",
    looks_at: "/run/lock/iscsi/lock.write, the lock of open-iscsi's database",
    why: "iscsiadm holds it for milliseconds. One that was left behind makes every iscsiadm wait 30 s and fail.",
};

pub(super) async fn name(node: &Node) -> Finding {
    let (root, sessions) = (node.config.root.clone(), node.sysfs("class/iscsi_session"));
    let look = move || {
        let names: BTreeSet<String> = entries(&sessions)
            .iter()
            .map(|session| text(&session.join("initiatorname")).trim().to_owned())
            // An iscsid before 2.0-873 doesn't tell.
            .filter(|name| !name.is_empty() && name != "(null)")
            .collect();
        (initiator_name(&root), names)
    };
    match node.read("the initiator's name", look).await {
        Ok((Err(error), _)) => {
            let file = "/etc/iscsi/initiatorname.iscsi";
            let make = format!("echo InitiatorName=$(iscsi-iname) > {file} && chmod 600 {file}");
            match error {
                HostError::NoInitiatorName { .. } => {
                    Finding::failed("the node has no valid iSCSI name").run(make).mend(node.restart("iscsid", "iscsid"))
                }
                error => unread(&error),
            }
        }
        Ok((Ok(name), sessions)) => match sessions.iter().find(|used| **used != name.as_str()) {
            Some(used) => Finding::warning(format!("the node is {name}, and has sessions as {used}"))
                .advise("detach what was attached under the old name, and let the storage's administrator know the new one; or write the old name back and restart iscsid"),
            None => Finding::ok(name.as_str()),
        },
        Err(error) => unread(&error),
    }
}

pub(super) async fn running(node: &Node) -> Finding {
    let proc = node.host("proc");
    if !iscsid_answers().await {
        return Finding::failed("nobody listens on iscsid's socket")
            .mend(node.start("iscsid", "iscsid"));
    }
    match node.read("/proc", move || stopped(&proc, &["iscsid"])).await {
        Ok(Some(pids)) => {
            Finding::failed(format!("iscsid (process {pids}) was stopped by a signal"))
                .run(format!("kill -CONT {pids}"))
        }
        Ok(None) => Finding::ok("it listens on its socket"),
        Err(error) => unread(&error),
    }
}

pub(super) async fn versions(node: &Node) -> Finding {
    let proc = node.host("proc");
    let replaced = move || {
        let is_iscsid = |process: &super::node::Process| process.comm == "iscsid";
        let exe = |directory: PathBuf| fs::read_link(directory.join("exe")).ok();
        let exes =
            processes(&proc).into_iter().filter(is_iscsid).filter_map(|it| exe(it.directory));
        exes.into_iter().any(|exe| exe.to_string_lossy().ends_with(" (deleted)"))
    };
    let (admin, daemon, replaced) = futures::join!(
        node.tool(Program::Iscsiadm, &["--version"]),
        node.tool(Program::Iscsid, &["--version"]),
        node.read("/proc", replaced),
    );
    let version = |output: Result<crate::host::exec::Output, HostError>| {
        // `iscsiadm version 2.1.8`
        output.map(|output| output.stdout.split_whitespace().last().unwrap_or_default().to_owned())
    };
    let (admin, daemon) = match (version(admin), version(daemon)) {
        (Ok(admin), Ok(daemon)) => (admin, daemon),
        (Err(HostError::ProgramMissing { .. }), _) | (_, Err(HostError::ProgramMissing { .. })) => {
            return Finding::left_out("iscsiadm or iscsid is not installed; see programs");
        }
        (Err(error), _) | (_, Err(error)) => return unread(&error),
    };
    if admin != daemon {
        return Finding::failed(format!("iscsiadm is of version {admin}, iscsid of {daemon}"))
            .advise("install both from one package (open-iscsi, iscsi-initiator-utils), and restart iscsid");
    }
    match replaced {
        Ok(true) => Finding::warning("iscsid was upgraded, and the old one still runs")
            .mend(node.restart("iscsid", "iscsid")),
        Ok(false) => Finding::ok(format!("both {admin}")),
        Err(error) => unread(&error),
    }
}

pub(super) async fn configuration(node: &Node) -> Finding {
    let file = node.host("etc/iscsi/iscsid.conf");
    let look = move || file.exists().then(|| text(&file));
    match node.read("iscsid.conf", look).await {
        Ok(Some(text)) => judge(&settings(&text)),
        Ok(None) => Finding::warning("/etc/iscsi/iscsid.conf is not there")
            .advise("install the package of open-iscsi again: its defaults are built in, but iscsid complains at every start"),
        Err(error) => unread(&error),
    }
}

fn judge(settings: &[(&str, &str)]) -> Finding {
    let set =
        |name: &str| settings.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let number = |name: &str| set(name).and_then(|value| value.parse::<i64>().ok());
    let change = |name: &str, to: &str| {
        let pattern = name.replace('.', "\\.").replace('[', "\\[").replace(']', "\\]");
        format!("sed -i 's|^ *{pattern} *=.*|{name} = {to}|' /etc/iscsi/iscsid.conf")
    };
    let mut parts = Vec::new();
    let interval = "node.conn[0].timeo.noop_out_interval";
    if number(interval) == Some(0) {
        parts.push(
            Finding::warning(format!("{interval} = 0: a path that dies silently is never noticed"))
                .run(change(interval, "5")),
        );
    }
    let replacement = "node.session.timeo.replacement_timeout";
    match number(replacement) {
        Some(seconds) if seconds < 0 => parts.push(
            Finding::warning(format!("{replacement} = {seconds}: I/O of a lost session waits for ever"))
                .run(change(replacement, "120")),
        ),
        Some(0) => parts.push(
            Finding::warning(format!("{replacement} = 0: I/O fails at the first hiccup of the network"))
                .run(change(replacement, "120")),
        ),
        Some(seconds) if seconds > 600 => parts.push(
            Finding::warning(format!("{replacement} = {seconds}: without multipath, I/O of a lost session hangs that long"))
                .run(change(replacement, "120")),
        ),
        Some(_) | None => {}
    }
    if set("node.session.auth.authmethod").is_some_and(|method| method.eq_ignore_ascii_case("CHAP"))
    {
        parts.push(
            Finding::warning("node.session.auth.authmethod = CHAP: targets that want no login get one, and may refuse it")
                .run("sed -i 's|^ *node\\.session\\.auth\\.|#&|' /etc/iscsi/iscsid.conf"),
        );
    }
    if parts.is_empty() { Finding::ok("nothing in it is in the way") } else { Finding::all(parts) }
}

pub(super) async fn records(node: &Node) -> Finding {
    let roots = ["etc/iscsi/nodes", "var/lib/iscsi/nodes"].map(|root| node.host(root));
    let look = move || {
        let files: Vec<PathBuf> = roots.iter().flat_map(|root| files_below(root, 4)).collect();
        let count = files.len();
        (files.into_iter().filter_map(|file| flaw(&file)).collect::<Vec<_>>(), count)
    };
    match node.read("node records", look).await {
        Ok((flaws, count)) if flaws.is_empty() => Finding::ok(match count {
            0 => "there are none".to_owned(),
            1 => "one, by hand or by attachd to be logged in to".to_owned(),
            count => format!("{count}, none of them logs in by itself"),
        }),
        Ok((flaws, _)) => Finding::all(flaws),
        Err(error) => unread(&error),
    }
}

fn flaw(file: &Path) -> Option<Finding> {
    let content = text(file);
    let settings = settings(&content);
    let set = |name: &str| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let target = set("node.name").unwrap_or("a target");
    let startup = set("node.startup").filter(|startup| matches!(*startup, "automatic" | "onboot"));
    let mode = fs::metadata(file).map_or(0, |data| data.permissions().mode() & 0o777);
    let mut parts = Vec::new();
    if let Some(startup) = startup {
        parts.push(
            Finding::warning(format!("the record of {target} has node.startup = {startup}"))
                .run(format!("iscsiadm -m node -T {target} -o update -n node.startup -v manual")),
        );
    }
    if mode & 0o077 != 0 && set("node.session.auth.password").is_some() {
        parts.push(
            Finding::warning(format!(
                "others may read the CHAP secret in the record of {target} (mode {mode:o})"
            ))
            .mend(Mend::Repair(Repair::ProtectFile(file.to_owned()))),
        );
    }
    (!parts.is_empty()).then(|| Finding::all(parts))
}

/// The lock is held for milliseconds.
const STALE: Duration = Duration::from_secs(10);

pub(super) async fn lock(node: &Node) -> Finding {
    let file = node.host("run/lock/iscsi/lock.write");
    let look = move || {
        // Making the link is the last thing that changes its file.
        let made = fs::symlink_metadata(&file).ok()?.ctime();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(now.saturating_sub(Duration::from_secs(u64::try_from(made).ok()?)))
    };
    match node.read("open-iscsi's lock", look).await {
        Ok(Some(held)) if held > STALE => {
            Finding::warning(format!("it was taken {} s ago, and not given back", held.as_secs()))
                .run("rm -f /run/lock/iscsi/lock.write")
                .advise("attachd takes such a lock away by itself when it needs it")
        }
        Ok(_) => Finding::ok("nobody holds it for long"),
        Err(error) => unread(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// What Debian ships.
    const DEBIAN: &str = "node.startup = manual\nnode.session.timeo.replacement_timeout = 120\n\
        #node.session.auth.authmethod = CHAP\nnode.conn[0].timeo.noop_out_interval = 5\nnode.session.scan = auto\n";

    #[test]
    fn the_defaults_are_well_and_what_hurts_is_named_with_the_command_that_mends_it() {
        assert_eq!(judge(&settings(DEBIAN)).verdict, Verdict::Ok);
        for (changed, word) in [
            (DEBIAN.replace("= 120", "= -1"), "waits for ever"),
            (DEBIAN.replace("= 120", "= 0"), "first hiccup"),
            (DEBIAN.replace("= 120", "= 86400"), "hangs that long"),
            (DEBIAN.replace("interval = 5", "interval = 0"), "never noticed"),
            (DEBIAN.replace("#node.session.auth", "node.session.auth"), "may refuse it"),
        ] {
            let finding = judge(&settings(&changed));
            assert_eq!(finding.verdict, Verdict::Warning, "{changed}");
            assert!(finding.saw[0].contains(word), "{finding:?}");
            assert!(
                matches!(&finding.mends[0], Mend::Command(line) if line.starts_with("sed")),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn a_record_that_logs_in_at_boot_or_that_others_can_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10.0.2.2,3260");
        let record = |startup: &str, mode: u32| {
            let secret = "node.session.auth.password = SECRET\n";
            fs::write(
                &file,
                format!(
                    "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\nnode.startup = {startup}\n{secret}"
                ),
            )
            .unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            flaw(&file)
        };
        assert_eq!(record("manual", 0o600), None);
        let automatic = record("automatic", 0o600).unwrap();
        assert!(automatic.saw[0].contains("iqn.x") && automatic.saw.len() == 1, "{automatic:?}");
        let readable = record("manual", 0o644).unwrap();
        assert!(readable.saw[0].contains("mode 644"), "{readable:?}");
        assert!(!format!("{readable:?}").contains("SECRET"));
    }
}
