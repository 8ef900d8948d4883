//! What happened to the paths between two looks. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    host::IoCounters,
    model::{DeviceName, DeviceState, Lun, SessionState, Target, VolumeId},
};

/// One way to a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Way {
    pub(super) volume: VolumeId,
    #[serde(flatten)]
    pub(super) target: Target,
    pub(super) lun: Lun,
}

/// A path's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionView {
    pub(super) sid: u32,
    pub(super) state: SessionState,
    /// Since attachd logged in; `None` where it did not.
    pub(super) age_seconds: Option<u64>,
}

/// How a path stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PathView {
    pub(super) session: Option<SessionView>,
    pub(super) disk: Option<DeviceName>,
    /// The kernel's word for the disk.
    pub(super) kernel: Option<DeviceState>,
    /// multipathd's, where there is a map and it was asked.
    pub(super) multipathd: Option<String>,
    pub(super) counters: Option<IoCounters>,
}

impl PathView {
    fn works(&self) -> bool {
        let session = self.session.as_ref().map(|session| session.state);
        session == Some(SessionState::LoggedIn)
            && self.kernel == Some(DeviceState::Running)
            && self.multipathd.as_deref().is_none_or(|state| state == "active")
    }

    /// All but what grows by itself.
    fn stands(&self) -> (Option<(u32, SessionState)>, &Option<DeviceName>, String) {
        let session = self.session.as_ref().map(|session| (session.sid, session.state));
        (session, &self.disk, self.path_words())
    }

    pub(super) fn path_words(&self) -> String {
        let kernel = match self.kernel {
            None => return "no disk".to_owned(),
            Some(DeviceState::Running) => "running",
            Some(DeviceState::Blocked) => "blocked",
            Some(DeviceState::Offline) => "offline",
        };
        match &self.multipathd {
            Some(state) => format!("{kernel}/{state}"),
            None => kernel.to_owned(),
        }
    }

    pub(super) fn session_words(&self) -> String {
        let Some(session) = &self.session else { return "none".to_owned() };
        let state = match session.state {
            SessionState::LoggedIn => "logged in",
            SessionState::Failed => "failed",
            SessionState::Free => "not logged in",
        };
        format!("{} {state}", session.sid)
    }

    fn words(&self) -> String {
        format!("{}; session {}", self.path_words(), self.session_words())
    }
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change<'a> {
    pub(super) way: &'a Way,
    what: What<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What<'a> {
    /// It was not there before.
    New(&'a PathView),
    /// Its attachment is not there any more.
    Gone(&'a PathView),
    /// It worked, and does not.
    Cut(&'a PathView, &'a PathView),
    /// It works again.
    Returned(&'a PathView, &'a PathView),
    /// It stands otherwise, and works as little as before, or as well.
    Changed(&'a PathView, &'a PathView),
    /// It works, and some I/O failed.
    Errors(u64, &'a PathView),
}

impl<'a> Change<'a> {
    pub(super) fn word(&self) -> &'static str {
        match self.what {
            What::New(_) => "new",
            What::Gone(_) => "gone",
            What::Cut(..) => "cut",
            What::Returned(..) => "returned",
            What::Changed(..) => "changed",
            What::Errors(..) => "errors",
        }
    }

    /// How it stands now, or stood last.
    pub(super) fn view(&self) -> &'a PathView {
        match self.what {
            What::New(view) | What::Gone(view) | What::Errors(_, view) => view,
            What::Cut(_, now) | What::Returned(_, now) | What::Changed(_, now) => now,
        }
    }

    /// Which path, and what happened to it.
    pub(super) fn words(&self) -> (String, String) {
        let disk = self.view().disk.as_ref().map(|disk| format!("{disk} ")).unwrap_or_default();
        let Way { volume, target, .. } = self.way;
        let what = match self.what {
            What::New(view) => view.words(),
            What::Gone(_) => "attachd holds it no more".to_owned(),
            What::Cut(before, now) | What::Returned(before, now) | What::Changed(before, now) => {
                let path = became(&before.path_words(), &now.path_words());
                let session = became(&before.session_words(), &now.session_words());
                format!("{path}; session {session}")
            }
            What::Errors(more, _) => format!("{more} more commands failed"),
        };
        (format!("{disk}{} {volume}", target.portal), what)
    }
}

fn became(before: &str, now: &str) -> String {
    if before == now {
        return now.to_owned();
    }
    // A session's number is said once, unless another session came.
    match (before.split_once(' '), now.split_once(' ')) {
        (Some((number, before)), Some((same, now))) if number == same => {
            format!("{number} {before} -> {now}")
        }
        _ => format!("{before} -> {now}"),
    }
}

/// What happened, path by path.
pub(super) fn changes<'a>(
    before: &'a BTreeMap<Way, PathView>,
    now: &'a BTreeMap<Way, PathView>,
) -> Vec<Change<'a>> {
    let gone = before.iter().filter(|(way, _)| !now.contains_key(way));
    let mut found: Vec<Change<'_>> =
        gone.map(|(way, view)| Change { way, what: What::Gone(view) }).collect();
    for (way, view) in now {
        let what = match before.get(way) {
            None => Some(What::New(view)),
            Some(before) => what(before, view),
        };
        found.extend(what.map(|what| Change { way, what }));
    }
    found
}

fn what<'a>(before: &'a PathView, now: &'a PathView) -> Option<What<'a>> {
    match (before.works(), now.works()) {
        (true, false) => return Some(What::Cut(before, now)),
        (false, true) => return Some(What::Returned(before, now)),
        _ if before.stands() != now.stands() => return Some(What::Changed(before, now)),
        (false, false) => return None,
        (true, true) => {}
    }
    let (Some(earlier), Some(later)) = (before.counters, now.counters) else { return None };
    let more = later.failed.saturating_sub(earlier.failed);
    (more > 0).then_some(What::Errors(more, now))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn way(number: u8) -> Way {
        let portal = format!("10.0.{number}.2:3260").parse().unwrap();
        let iqn = "iqn.2010-10.org.openstack:volume-a".parse().unwrap();
        Way { volume: Uuid::from_u128(1).into(), target: Target { portal, iqn }, lun: Lun(1) }
    }

    fn view(failed: u64) -> PathView {
        PathView {
            session: Some(SessionView {
                sid: 3,
                state: SessionState::LoggedIn,
                age_seconds: Some(9),
            }),
            disk: DeviceName::new("sdb"),
            kernel: Some(DeviceState::Running),
            multipathd: Some("active".to_owned()),
            counters: Some(IoCounters { requested: 9, done: 9, failed }),
        }
    }

    fn session_failed() -> PathView {
        let mut view = view(0);
        view.session.as_mut().unwrap().state = SessionState::Failed;
        view
    }

    fn offline() -> PathView {
        PathView {
            kernel: Some(DeviceState::Offline),
            multipathd: Some("failed".to_owned()),
            ..session_failed()
        }
    }

    fn told(before: Option<PathView>, now: Option<PathView>) -> Vec<&'static str> {
        let views = |view: Option<PathView>| view.map(|view| (way(1), view)).into_iter().collect();
        let (before, now) = (views(before), views(now));
        changes(&before, &now).iter().map(Change::word).collect()
    }

    #[test]
    fn a_cut_and_a_return_are_told_once_and_counters_and_age_alone_are_nothing() {
        let mut later = view(0);
        later.counters = Some(IoCounters { requested: 99, done: 98, failed: 0 });
        later.session.as_mut().unwrap().age_seconds = Some(14);
        let cases = [
            (Some(view(0)), Some(later), &[][..]),
            (Some(view(0)), Some(session_failed()), &["cut"]),
            (Some(session_failed()), Some(offline()), &["changed"]),
            (Some(offline()), Some(PathView { counters: None, ..offline() }), &[]),
            (Some(offline()), Some(view(7)), &["returned"]),
            (Some(view(0)), Some(view(2)), &["errors"]),
            (Some(view(2)), Some(view(0)), &[]),
            (None, Some(view(0)), &["new"]),
            (Some(view(0)), None, &["gone"]),
            (Some(view(0)), Some(PathView { disk: None, kernel: None, ..view(0) }), &["cut"]),
        ];
        for (before, now, expected) in cases {
            assert_eq!(told(before.clone(), now.clone()), expected, "{before:?} -> {now:?}");
        }
    }

    #[test]
    fn a_change_says_what_was_and_what_is() {
        let (before, now) = ([(way(1), view(0))].into(), [(way(1), offline())].into());
        let all = changes(&before, &now);
        assert_eq!(
            all[0].words(),
            (
                "sdb 10.0.1.2:3260 00000000-0000-0000-0000-000000000001".to_owned(),
                "running/active -> offline/failed; session 3 logged in -> failed".to_owned()
            )
        );
    }
}
