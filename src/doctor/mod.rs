//! Is this node fit to attach volumes, and if not, what mends it?
//!
//! A [`Check`] is one question: it looks, side by side with the others and within a time limit, and gives a
//! [`Finding`]: what it saw, how bad that is, and what mends it. Looking changes nothing.
//!
//! ```text
//! node.rs       where this node's things are, and how they are read
//! kernel.rs     modules, device-mapper, sysfs, processes that hang, denials
//! iscsi.rs      the initiator's name, iscsid, node records, their lock
//! multipath.rs  multipathd, and what its configuration does to volumes
//! udev.rs       udev and its database
//! container.rs  namespaces, /dev, mounts that reach the host, programs
//! portals.rs    the way to the storage    icmp.rs  packets of full size on it
//! state.rs      the ledger, its disk, and what it names
//! cloud.rs      Cinder, Keystone, the clock
//! cluster.rs    the API server
//! repair.rs     what `--fix` does
//! ```

mod cloud;
mod cluster;
mod container;
mod icmp;
mod iscsi;
mod kernel;
mod multipath;
mod node;
mod portals;
mod repair;
mod state;
mod udev;

use std::{collections::BTreeSet, future::ready, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use serde::Serialize;

pub use cloud::CloudLook;
pub(crate) use kernel::kernel_log;
pub use node::Node;
pub(crate) use node::{files_below, tail};
pub use repair::Repair;

/// A check that has no result by then is not waited for.
const LIMIT: Duration = Duration::from_millis(4500);

/// One question about the node.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Its name, which scripts and the documentation go by.
    pub id: &'static str,
    /// What it looks at.
    pub looks_at: &'static str,
    /// Why the answer matters.
    pub why: &'static str,
}

/// Every check, in the order of a report.
pub const CHECKS: [&Check; 37] = [
    &container::HOST_NAMESPACES,
    &container::DEV,
    &container::MOUNT_PROPAGATION,
    &container::PROGRAMS,
    &kernel::MODULES,
    &kernel::DEVICE_MAPPER,
    &kernel::SYSFS,
    &kernel::STUCK,
    &kernel::DENIALS,
    &iscsi::INITIATOR_NAME,
    &cluster::INITIATOR_UNIQUE,
    &iscsi::RUNNING,
    &iscsi::VERSIONS,
    &iscsi::CONFIGURATION,
    &iscsi::RECORDS,
    &iscsi::LOCK,
    &multipath::RUNNING,
    &multipath::BLACKLIST,
    &multipath::QUEUEING,
    &multipath::CONFIGURATION,
    &udev::RUNNING,
    &udev::DATABASE,
    &portals::PORTALS,
    &portals::MTU,
    &state::DIRECTORY,
    &state::SPACE,
    &state::LEDGER,
    &state::VOLUMES,
    &state::ORPHANS,
    &cloud::SETTINGS,
    &cloud::REACHABLE,
    &cloud::CREDENTIALS,
    &cloud::VERSION,
    &cloud::RIGHTS,
    &cloud::CLOCK,
    &cluster::API_SERVER,
    &cluster::DEFINITIONS,
];

/// How bad it is; the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// There is nothing to look at on this node.
    LeftOut,
    /// As it should be.
    Ok,
    /// Volumes are served, but something will go wrong, or is worse than it need be.
    Warning,
    /// It could not be seen.
    Unknown,
    /// Volumes can't be served, or are in danger.
    Failed,
}

impl Verdict {
    /// Its word in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftOut => "left out",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

/// What mends something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "text")]
pub enum Mend {
    /// What `--fix` does: harmless, whatever else is wrong.
    Repair(Repair),
    /// A command for the host's shell.
    Command(String),
    /// What takes a person.
    Advice(String),
}

/// The answer to a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was seen.
    pub saw: Vec<String>,
    /// What mends it, in this order.
    pub mends: Vec<Mend>,
}

impl Finding {
    fn new(verdict: Verdict, saw: impl Into<String>) -> Self {
        Self { verdict, saw: vec![saw.into()], mends: Vec::new() }
    }

    fn left_out(why: impl Into<String>) -> Self {
        Self::new(Verdict::LeftOut, why)
    }

    fn ok(saw: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, saw)
    }

    fn warning(saw: impl Into<String>) -> Self {
        Self::new(Verdict::Warning, saw)
    }

    fn unknown(saw: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, saw)
    }

    fn failed(saw: impl Into<String>) -> Self {
        Self::new(Verdict::Failed, saw)
    }

    fn mend(mut self, mend: Mend) -> Self {
        self.mends.push(mend);
        self
    }

    fn run(self, command: impl Into<String>) -> Self {
        self.mend(Mend::Command(command.into()))
    }

    fn advise(self, what: impl Into<String>) -> Self {
        self.mend(Mend::Advice(what.into()))
    }

    /// Several answers to one question: what is well is only said where all of it is.
    fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let parts: Vec<Self> = parts.into_iter().collect();
        let worst = parts.iter().map(|part| part.verdict).max().unwrap_or(Verdict::LeftOut);
        let told =
            parts.into_iter().filter(|part| worst <= Verdict::Ok || part.verdict > Verdict::Ok);
        let mut all = Self { verdict: worst, saw: Vec::new(), mends: Vec::new() };
        for part in told {
            all.saw.extend(part.saw);
            all.mends.extend(
                part.mends.into_iter().filter(|mend| !all.mends.contains(mend)).collect::<Vec<_>>(),
            );
        }
        all
    }
}

/// A check and its answer.
#[derive(Debug, Clone, Serialize)]
pub struct Examined {
    /// The check.
    #[serde(flatten)]
    pub check: &'static Check,
    /// The answer.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The answers to all checks.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of [`CHECKS`].
    pub checks: Vec<Examined>,
}

impl Report {
    /// The worst of all verdicts.
    pub fn worst(&self) -> Verdict {
        self.checks.iter().map(|examined| examined.finding.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// How many there are of a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|examined| examined.finding.verdict == verdict).count()
    }

    /// What `--fix` would do, each once.
    pub fn repairs(&self) -> BTreeSet<Repair> {
        let mends = self.checks.iter().flat_map(|examined| &examined.finding.mends);
        let repairs = mends.filter_map(|mend| match mend {
            Mend::Repair(repair) => Some(repair.clone()),
            Mend::Command(_) | Mend::Advice(_) => None,
        });
        repairs.collect()
    }
}

/// What one look answers: mostly one check, sometimes several.
type Answers = Vec<(&'static Check, Finding)>;
type Look<'a> = (Vec<&'static Check>, BoxFuture<'a, Answers>);

fn one<'a>(check: &'static Check, look: impl Future<Output = Finding> + Send + 'a) -> Look<'a> {
    (vec![check], look.map(move |finding| vec![(check, finding)]).boxed())
}

/// Looks at everything, side by side. `node` is the reason where the node can't be looked at from here,
/// `cloud` what Cinder is asked by, `cluster` the client of the API server where there is one.
pub async fn examine(
    node: Result<&Node, &str>,
    cloud: CloudLook,
    cluster: Result<kube::Client, String>,
) -> Report {
    let mut looks: Vec<Look<'_>> = Vec::new();
    match node {
        Ok(node) => looks.extend(looks_at_the_node(node)),
        Err(why) => {
            looks.push(one(&container::HOST_NAMESPACES, ready(Finding::failed(why))));
        }
    }
    let name = node.ok().and_then(Node::initiator_name);
    let of_cloud = cloud::CHECKS.to_vec();
    let host = node.ok().map(Node::name);
    looks.push((of_cloud, cloud::look(&cloud).boxed()));
    if let Ok(node) = node {
        looks.push(one(&state::ORPHANS, state::orphans(node, cloud.client())));
    }
    looks.push((cluster::CHECKS.to_vec(), cluster::look(cluster, name, host).boxed()));
    let limited = looks.into_iter().map(|(checks, look)| async move {
        tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| {
            let late = Finding::unknown(format!("no result in {LIMIT:.1?}"));
            checks.into_iter().map(|check| (check, late.clone())).collect()
        })
    });
    let answers: Answers = join_all(limited).await.into_iter().flatten().collect();
    let hidden = Finding::unknown("the host can't be seen from here; see host-namespaces");
    let answer = |check: &'static Check| {
        let given = answers.iter().find(|(answered, _)| *answered == check);
        let finding = given.map_or_else(|| hidden.clone(), |(_, finding)| finding.clone());
        Examined { check, finding }
    };
    Report { checks: CHECKS.into_iter().map(answer).collect() }
}

fn looks_at_the_node(node: &Node) -> Vec<Look<'_>> {
    vec![
        one(&container::HOST_NAMESPACES, ready(container::namespaces(node))),
        one(&container::DEV, container::dev(node)),
        one(&container::MOUNT_PROPAGATION, container::mount_propagation(node)),
        one(&container::PROGRAMS, container::programs(node)),
        one(&kernel::MODULES, kernel::modules(node)),
        one(&kernel::DEVICE_MAPPER, kernel::device_mapper(node)),
        one(&kernel::SYSFS, kernel::sysfs(node)),
        one(&kernel::STUCK, kernel::stuck(node)),
        one(&kernel::DENIALS, kernel::denials(node)),
        one(&iscsi::INITIATOR_NAME, iscsi::name(node)),
        one(&iscsi::RUNNING, iscsi::running(node)),
        one(&iscsi::VERSIONS, iscsi::versions(node)),
        one(&iscsi::CONFIGURATION, iscsi::configuration(node)),
        one(&iscsi::RECORDS, iscsi::records(node)),
        one(&iscsi::LOCK, iscsi::lock(node)),
        (multipath::CHECKS.to_vec(), multipath::look(node).boxed()),
        one(&udev::RUNNING, udev::running(node)),
        one(&udev::DATABASE, udev::database(node)),
        (portals::CHECKS.to_vec(), portals::look(node).boxed()),
        one(&state::DIRECTORY, state::directory(node)),
        one(&state::SPACE, state::space(node)),
        one(&state::LEDGER, state::ledger(node)),
        one(&state::VOLUMES, state::volumes(node)),
    ]
}
