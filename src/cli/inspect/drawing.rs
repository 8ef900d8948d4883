use std::collections::BTreeSet;

use super::super::{output, tree::Tree};
use crate::{
    attach::{Chain, Foreign, Inventory, OtherSession, PathChain},
    host::Users,
    model::{DeviceState, Iqn, MountEntry, MultipathMap, ScsiDevice, Session, SessionState},
};

/// `by_handle`: something was asked for.
pub(super) fn draw(inventory: &Inventory, by_handle: bool) -> String {
    let mut parts: Vec<String> =
        inventory.attachments.iter().map(|chain| chain_tree(chain).draw()).collect();
    parts.extend(inventory.other_sessions.iter().map(|other| other_tree(other).draw()));
    parts.extend(inventory.foreign.iter().map(|foreign| foreign_tree(foreign).draw()));
    parts.extend(inventory.unreadable.iter().map(|error| output::wrapped("! ", "  ", error)));
    if parts.is_empty() {
        return if by_handle {
            "attachd holds no attachment on this node that goes by this, and nothing else here does"
        } else {
            "attachd holds no attachment on this node, and there are no other iSCSI sessions"
        }
        .to_owned();
    }
    parts.join("\n")
}

fn chain_tree(chain: &Chain) -> Tree {
    let mut tree = Tree::new(format!("volume {}", chain.volume));
    tree.push(Tree::labelled("asked for by", &chain.origin.to_string()));
    let status = match chain.cinder_status.as_deref() {
        Some("gone") => "gone in Cinder".to_owned(),
        Some(status) => format!("{status} in Cinder"),
        None => "Cinder not asked".to_owned(),
    };
    let attachment = chain.attachment.map_or("id unknown".to_owned(), |id| id.to_string());
    tree.push(Tree::labelled("attachment", &format!("{attachment}, {status}")));
    if let Some(wwid) = &chain.wwid {
        tree.push(Tree::labelled("WWID", wwid.as_str()));
    }
    let iqns: BTreeSet<&Iqn> = chain.paths.iter().map(|path| &path.target.iqn).collect();
    for iqn in iqns {
        let paths = chain.paths.iter().filter(|path| &path.target.iqn == iqn);
        // Behind a label Cinder's names would not fit a line.
        tree.push(Tree::new(format!("target {iqn}")).with(paths.map(path_tree)));
    }
    if let Some(map) = &chain.map {
        tree.push(map_tree(map));
    }
    for mount in &chain.mounts {
        tree.push(mount_tree(mount));
    }
    push_users(&mut tree, chain.users.as_ref());
    let of_paths: BTreeSet<&String> =
        chain.paths.iter().flat_map(|path| &path.disagreements).collect();
    for what in chain.disagreements.iter().filter(|what| !of_paths.contains(what)) {
        tree.push(Tree::mark(what));
    }
    tree.push(Tree::new(match chain.disagreements.len() {
        0 => "all fits together".to_owned(),
        1 => "something disagrees (1)".to_owned(),
        many => format!("something disagrees ({many})"),
    }));
    tree
}

fn path_tree(path: &PathChain) -> Tree {
    let session = match &path.session {
        None => "no session".to_owned(),
        Some(session) => {
            let others = if path.own_session { "" } else { ", not made by attachd" };
            format!("{}{others}", session_words(session))
        }
    };
    let disk = path.disk.as_ref().map_or("no disk".to_owned(), disk_words);
    let text = format!("{} LUN {}: {session}; {disk}", path.target.portal, path.lun);
    // Where it stands says which target is meant.
    let (target, portal) = (path.target.to_string(), path.target.portal.to_string());
    let marks = path.disagreements.iter().map(|what| what.replace(&target, &portal));
    Tree::new(text).with(marks.map(|what| Tree::mark(&what)))
}

fn map_tree(map: &MultipathMap) -> Tree {
    let size = output::size(map.size_bytes);
    let members = map.members.iter().map(|member| match &member.path_state {
        Some(state) => format!("{} {state}", member.device),
        None => member.device.to_string(),
    });
    let members: Vec<String> = members.collect();
    let members = if members.is_empty() { "no disk".to_owned() } else { members.join(", ") };
    let mut tree =
        Tree::labelled("map", &format!("{} ({}) {size}: {members}", map.name, map.device));
    for holder in &map.holders {
        tree.push(Tree::new(format!("{holder} sits on it")));
    }
    tree
}

fn mount_tree(mount: &MountEntry) -> Tree {
    let how = if mount.read_only { "ro" } else { "rw" };
    Tree::labelled("mount", &format!("{} {} {how}", mount.target.display(), mount.fs_type))
}

fn push_users(tree: &mut Tree, users: Option<&Users>) {
    let Some(users) = users else {
        return tree.push(Tree::labelled("held open by", "not known"));
    };
    let processes = users.processes.iter().map(ToString::to_string);
    let all: Vec<String> = processes.chain(users.containers.iter().cloned()).collect();
    let all = if all.is_empty() { "nobody else".to_owned() } else { all.join(", ") };
    tree.push(Tree::labelled("held open by", &all));
}

fn session_words(session: &Session) -> String {
    let state = match session.state {
        SessionState::LoggedIn => "logged in",
        SessionState::Failed => "failed",
        SessionState::Free => "not logged in",
    };
    format!("session {} {state}", session.sid)
}

fn disk_words(disk: &ScsiDevice) -> String {
    let state = match disk.state {
        DeviceState::Running => "running",
        DeviceState::Blocked => "blocked",
        DeviceState::Offline => "offline",
    };
    let size = output::size(disk.size_bytes);
    let how = if disk.read_only { " read-only" } else { "" };
    format!("{} ({}) {size} {state}{how}", disk.name, disk.hctl)
}

fn session_tree(session: &Session) -> Tree {
    Tree::new(format!("{}: {}", session.portal, session_words(session)))
}

fn other_tree(other: &OtherSession) -> Tree {
    let disks = other.disks.iter().map(|disk| Tree::new(disk_words(disk)));
    Tree::new(format!("target {}", other.session.iqn)).with([
        session_tree(&other.session).with(disks),
        Tree::new("no attachment of attachd's uses it"),
    ])
}

fn foreign_tree(foreign: &Foreign) -> Tree {
    let mut tree = Tree::new(foreign.what.as_str());
    let iqns: BTreeSet<&Iqn> = foreign.sessions.iter().map(|session| &session.iqn).collect();
    for iqn in iqns {
        let sessions = foreign.sessions.iter().filter(|session| &session.iqn == iqn);
        tree.push(Tree::new(format!("target {iqn}")).with(sessions.map(session_tree)));
    }
    for disk in &foreign.disks {
        tree.push(Tree::labelled("disk", &disk_words(disk)));
        if let Some(wwid) = &disk.wwid {
            tree.push(Tree::labelled("WWID", wwid.as_str()));
        }
    }
    if let Some(map) = &foreign.map {
        tree.push(map_tree(map));
    }
    for mount in &foreign.mounts {
        tree.push(mount_tree(mount));
    }
    if !foreign.disks.is_empty() || foreign.map.is_some() {
        push_users(&mut tree, foreign.users.as_ref());
    }
    tree.push(Tree::new("attachd holds no attachment of it: no ledger entry leads to it"));
    tree
}
