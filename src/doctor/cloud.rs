use std::sync::{Arc, Mutex, PoisonError};

use jiff::{Timestamp, fmt::rfc2822};

use super::{Check, Finding};
use crate::{
    attach::chain,
    cinder::{CinderError, Client, ListQuery},
    cloud::CloudError,
    http::{Asked, Heard, Watch},
};

pub(super) const SETTINGS: Check = Check {
    id: "cloud-settings",
    looks_at: "clouds.yaml, OS_* and the options that name the cloud",
    why: "They say which Cinder holds the volumes, and as whom attachd asks it.",
};
pub(super) const REACHABLE: Check = Check {
    id: "cinder-reachable",
    looks_at: "a request to Cinder, and how long it takes",
    why: "Nothing is attached or detached to its end without Cinder. What is attached goes on working.",
};
pub(super) const CREDENTIALS: Check = Check {
    id: "credentials",
    looks_at: "whether Keystone and Cinder accept attachd's user",
    why: "Credentials that ran out are noticed at the next attach or detach, often days later.",
};
pub(super) const VERSION: Check = Check {
    id: "cinder-version",
    looks_at: "the API version that this Cinder and attachd have in common",
    why: "Attachments take 3.27, and to complete them 3.44.",
};
pub(super) const RIGHTS: Check = Check {
    id: "cinder-rights",
    looks_at: "whether attachments may be listed",
    why: "A user without a role in the volumes' project is refused at every step.",
};
pub(super) const CLOCK: Check = Check {
    id: "clock",
    looks_at: "this node's clock against Cinder's answers",
    why: "Tokens and certificates are valid for a time; logs of node and cloud can't be laid side by side.",
};

pub(super) const CHECKS: [&Check; 6] =
    [&SETTINGS, &REACHABLE, &CREDENTIALS, &VERSION, &RIGHTS, &CLOCK];

/// Cinder, as far as the settings lead to one.
#[derive(Debug)]
pub enum CloudLook {
    /// It can be asked.
    Ask(Box<Asking>),
    /// No cloud was named.
    Unsaid(String),
    /// What was named can't be used.
    Unusable(String),
}

/// A client, and what is seen of its questions beside their answers.
#[derive(Debug)]
pub struct Asking {
    pub(super) client: Client,
    seen: Arc<Seen>,
}

impl CloudLook {
    /// By a client that gives up in time.
    pub fn by(client: Client) -> Self {
        let seen = Arc::new(Seen::default());
        let watch: Arc<dyn Watch> = seen.clone();
        Self::Ask(Box::new(Asking { client: client.watched_by(&watch), seen }))
    }

    pub(super) fn client(&self) -> Option<&Client> {
        match self {
            Self::Ask(asking) => Some(&asking.client),
            Self::Unsaid(_) | Self::Unusable(_) => None,
        }
    }

    /// From what became of the settings.
    pub fn of_settings(error: &CloudError) -> Self {
        match error {
            CloudError::Unsaid { .. } => Self::Unsaid(error.to_string()),
            error => Self::Unusable(error.to_string()),
        }
    }
}

/// What the answers showed beside what they said.
#[derive(Debug, Default)]
struct Seen {
    /// The last answer that Cinder gave: its date, ours when it came, and how long it took.
    last: Mutex<Option<(Option<Timestamp>, Timestamp, std::time::Duration)>>,
}

impl Watch for Seen {
    fn asked(&self, _: &Asked) {}

    fn heard(&self, heard: &Heard<'_>) {
        if heard.outcome.is_ok() {
            let date =
                heard.date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp());
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((date, Timestamp::now(), heard.took));
        }
    }
}

pub(super) async fn look(cloud: &CloudLook) -> Vec<(&'static Check, Finding)> {
    let answers = |settings: Finding, others: &Finding| {
        let answer = |check: &'static Check| {
            (check, if check == &SETTINGS { settings.clone() } else { others.clone() })
        };
        CHECKS.into_iter().map(answer).collect()
    };
    let Asking { client, seen } = match cloud {
        CloudLook::Ask(asking) => &**asking,
        CloudLook::Unsaid(why) => {
            let finding = Finding::unknown(why).advise("give this command what the agent has: OS_CLOUD, or OS_* variables; in the agent's Pod they are set");
            return answers(finding, &Finding::left_out("no cloud is named; see cloud-settings"));
        }
        CloudLook::Unusable(why) => {
            let finding = Finding::failed(why)
                .advise("mend the option, the variable or the line of the file that is named");
            return answers(finding, &Finding::left_out("see cloud-settings"));
        }
    };
    let query = ListQuery { page_size: Some(1), limit: Some(1), ..ListQuery::default() };
    let result = client.list(&query).await;
    let service = client.is_service().await.unwrap_or(false);
    let last = *seen.last.lock().unwrap_or_else(PoisonError::into_inner);
    let clock = last.map_or_else(
        || Finding::left_out("Cinder gave no answer"),
        |(date, now, _)| judge_clock(date, now),
    );
    let took = last.map_or(0.0, |(_, _, took)| took.as_secs_f64() * 1000.0);
    let [reachable, credentials, version, rights] = match &result {
        Ok(_) => [
            Finding::ok(format!("it answered in {took:.0} ms")),
            Finding::ok("accepted"),
            Finding::ok(format!("API {}", client.version())),
            Finding::ok(if service {
                "attachments may be listed; the user has the role service"
            } else {
                "attachments may be listed"
            }),
        ],
        Err(error) => judge(error),
    };
    vec![
        (&SETTINGS, Finding::ok("they name a cloud")),
        (&REACHABLE, reachable),
        (&CREDENTIALS, credentials),
        (&VERSION, version),
        (&RIGHTS, rights),
        (&CLOCK, clock),
    ]
}

/// Reachable, credentials, version, rights. What comes after the first that failed wasn't seen.
fn judge(error: &CinderError) -> [Finding; 4] {
    let ok = || Finding::ok("it answers");
    let not = || Finding::left_out("Cinder didn't come that far");
    let failed = |mend: &str| Finding::failed(chain(error)).advise(mend);
    let reach = || {
        failed(
            "ask by hand from this node: curl -sv ENDPOINT; then see Cinder's API and the proxies before it",
        )
    };
    let user = "try the same user by hand: openstack token issue; openstack volume list";
    match error {
        CinderError::Unreachable { .. }
        | CinderError::Disconnected { .. }
        | CinderError::TimedOut { .. }
        | CinderError::Configuration { .. }
        | CinderError::Http(_)
        | CinderError::Nonsense { .. }
        | CinderError::ServerFault(_)
        | CinderError::Overloaded { .. } => [reach(), not(), not(), not()],
        CinderError::Keystone(_) => [not(), failed(user), not(), not()],
        CinderError::Unauthorized(_) => [ok(), failed(user), not(), not()],
        CinderError::TooOld { .. } => [
            ok(),
            Finding::ok("accepted"),
            failed("upgrade Cinder to Queens (3.44) or later"),
            not(),
        ],
        CinderError::Forbidden(_)
        | CinderError::NotFound(_)
        | CinderError::Refused(_)
        | CinderError::Conflict(_)
        | CinderError::HeldByNova { .. } => {
            let role = "give the user the role member in the volumes' project: openstack role add";
            [ok(), Finding::ok("accepted"), not(), failed(role)]
        }
    }
}

/// Keystone's tokens and TLS forgive a little.
const SKEW: i64 = 30;
const FAR: i64 = 300;

fn judge_clock(theirs: Option<Timestamp>, ours: Timestamp) -> Finding {
    let Some(theirs) = theirs else {
        return Finding::left_out("Cinder's answer has no date");
    };
    let skew = ours.as_second() - theirs.as_second();
    let side = if skew > 0 { "ahead of" } else { "behind" };
    let told = format!("this node's clock is {} s {side} Cinder's", skew.abs());
    let mend =
        "see which is wrong: timedatectl, chronyc tracking; then let it follow a time server";
    match skew.abs() {
        0..=SKEW => Finding::ok(format!("{} s apart", skew.abs())),
        seconds if seconds <= FAR => Finding::warning(told).advise(mend),
        _ => Finding::failed(told).advise(mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_side() {
        let ours: Timestamp = "2026-11-22T18:00:00Z".parse().unwrap();
        let against = |text: &str| judge_clock(Some(text.parse().unwrap()), ours);
        assert_eq!(against("2026-11-22T17:59:50Z").verdict, Verdict::Ok);
        let behind = against("2026-11-22T18:02:00Z");
        assert_eq!(behind.verdict, Verdict::Warning);
        assert_eq!(behind.saw, ["this node's clock is 120 s behind Cinder's"]);
        assert_eq!(against("2026-11-22T12:00:00Z").verdict, Verdict::Failed);
        assert_eq!(judge_clock(None, ours).verdict, Verdict::LeftOut);
    }
}
