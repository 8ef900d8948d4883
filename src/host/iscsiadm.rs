//! Node records, logins, logouts and discovery: open-iscsi's `iscsiadm`.
//!
//! A run for each new portal (`-o new`), one for all portals of a target (`--login`), one for each portal
//! that goes (`--logout`); what can be read or done elsewhere is (sessions in sysfs, credentials in the
//! record's file). A login reads every node record and every session of the node.
//!
//! ```text
//! # iscsiadm -m discovery -t sendtargets -p 10.0.2.2:3260 -o nonpersistent
//! 10.0.2.2:3260,1 iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91
//! [fd00:2::2]:3260,1 iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::{BoxFuture, join_all};
use tokio::time::{Instant, timeout};

use crate::model::{Chap, Iqn, Portal, Session, SharedVec, Target};

use super::{
    Applied, HostError,
    exec::{Command, Executor, Exit, Output, Program},
    node_records::{self, Database},
    scsi::gather,
    silent_portals::SilentPortals,
};

/// A run that only touches the database; iscsiadm itself waits up to 30 s for its lock.
const DATABASE_LIMIT: Duration = Duration::from_secs(40);
/// What a run takes beside its own work where many run at once: each waits for the database's lock for as many
/// times as there are node records, up to 30 s a time.
const BUSY: Duration = DATABASE_LIMIT;
/// How long a run that is given up may go on until the database is free.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// A logout: `node.conn[0].timeo.logout_timeout` is 15 s, and the disks behind it go first.
const LOGOUT_LIMIT: Duration = Duration::from_mins(1);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(3);
/// How long a logout is tried again that fails for a moment only.
const PASSING_LIMIT: Duration = Duration::from_secs(2);
/// How long a new iscsid is given to take a session over whose portal answers.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_secs(1);
/// What iscsid needs beside the login itself.
const SLACK: Duration = Duration::from_secs(5);

/// iscsiadm looks through all node records without its lock, and fails where one goes meanwhile that
/// another run deletes (`idbm_for_each_iface()`).
const RECORD_VANISHED: &str = "iface iter could not stat";
/// How often it is run where records vanish under it.
const TRIES: u32 = 10;

/// Longest line of an answer that is logged.
const MAX_QUOTED: usize = 300;

/// How long a login may take. open-iscsi's own default is 8 times 15 s.
///
/// iscsid uses up the time of an attempt even where the connection is refused (it tries on within it),
/// so one attempt is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginLimits {
    /// One attempt (`node.conn[0].timeo.login_timeout`), in whole seconds.
    pub each: Duration,
    /// Attempts (`node.session.initial_login_retry_max`).
    pub tries: u32,
}

impl Default for LoginLimits {
    fn default() -> Self {
        Self { each: Duration::from_secs(10), tries: 1 }
    }
}

impl LoginLimits {
    /// After which iscsid has given up what it was asked for.
    pub fn overall(self) -> Duration {
        (self.each + PAUSE) * self.tries.max(1) + SLACK
    }
}

/// iscsiadm's exit codes (`iscsi_err.h`), as far as they differ in what they mean here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// 0 `ISCSI_SUCCESS`
    Success,
    /// 2 `ISCSI_ERR_SESS_NOT_FOUND`, 21 `ISCSI_ERR_NO_OBJS_FOUND`: there is no such thing.
    NothingFound,
    /// 4 `ISCSI_ERR_TRANS`: refused, unreachable, or dropped.
    Unreachable,
    /// 6 `ISCSI_ERR_IDBM`: the record is there already, or the database is broken.
    Database,
    /// 8 `ISCSI_ERR_TRANS_TIMEOUT` (also where the connection is refused), 11 `ISCSI_ERR_PDU_TIMEOUT`
    TimedOut,
    /// 12 `ISCSI_ERR_TRANS_NOT_FOUND`: the kernel module isn't loaded.
    NoTransport,
    /// 15 `ISCSI_ERR_SESS_EXISTS`: logged in already.
    SessionExists,
    /// 18 `ISCSI_ERR_ISCSID_COMM_ERR`, 20 `ISCSI_ERR_ISCSID_NOTCONN`
    NoIscsid,
    /// 19 `ISCSI_ERR_FATAL_LOGIN`: there is no such target, or not for this initiator.
    Refused,
    /// 24 `ISCSI_ERR_LOGIN_AUTH_FAILED`
    AuthRejected,
    /// 29 `ISCSI_ERR_BUSY`, 30 `ISCSI_ERR_AGAIN`: the next try may do.
    Passing,
    /// 32, "target likely not connected": iscsid was started and is about to take the session over.
    TakingOver,
    /// Anything else, and signals.
    Other,
}

impl From<Exit> for Code {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(0) => Self::Success,
            Exit::Code(2 | 21) => Self::NothingFound,
            Exit::Code(4) => Self::Unreachable,
            Exit::Code(6) => Self::Database,
            Exit::Code(8 | 11) => Self::TimedOut,
            Exit::Code(12) => Self::NoTransport,
            Exit::Code(15) => Self::SessionExists,
            Exit::Code(18 | 20) => Self::NoIscsid,
            Exit::Code(19) => Self::Refused,
            Exit::Code(24) => Self::AuthRejected,
            Exit::Code(29 | 30) => Self::Passing,
            Exit::Code(32) => Self::TakingOver,
            Exit::Code(_) | Exit::Signal(_) => Self::Other,
        }
    }
}

/// Ends a session without iscsid.
pub(crate) type End<'a> =
    &'a (dyn Fn(&Session) -> BoxFuture<'static, Result<(), HostError>> + Sync);

/// open-iscsi on this node.
#[derive(Debug)]
pub(crate) struct OpenIscsi<'a, E> {
    pub(crate) exec: &'a E,
    pub(crate) database: &'a Database,
    pub(crate) silent: &'a SilentPortals,
    pub(crate) limits: LoginLimits,
}

impl<E: Executor> OpenIscsi<'_, E> {
    /// Makes sure that each target has a node record with attachd's settings.
    pub(crate) async fn write_records(&self, targets: &[Target], chap: Option<&Chap>) -> Applied {
        let writes = targets.iter().map(|target| async move {
            (target.to_string(), self.write_record(target, chap).await)
        });
        gather(join_all(writes).await)
    }

    async fn write_record(&self, target: &Target, chap: Option<&Chap>) -> Result<bool, HostError> {
        let settings = node_records::settings(target, chap, &self.limits)?;
        self.database.set_aside(target).await?;
        let mut records = self.database.records(target)?;
        let made = records.is_empty();
        if made {
            let output = self.run(DATABASE_LIMIT, &node(target, &["-o", "new"])).await?;
            records = self.database.records(target)?;
            // Code 6 may say that another one made it meanwhile.
            if records.is_empty() {
                return Err(match Code::from(output.exit) {
                    Code::Success => HostError::RecordNotFound {
                        target: target.clone(),
                        searched: self.database.searched(),
                    },
                    _ => error(output, target, "making a node record for"),
                });
            }
        }
        Ok(self.database.write(records, settings).await? || made)
    }

    /// Logs in to all targets at once.
    pub(crate) async fn login(&self, targets: &[Target]) -> Applied {
        let silent = join_all(targets.iter().map(|target| self.silent.has(target.portal))).await;
        let (mut results, mut names) = (Vec::new(), BTreeMap::<&Iqn, Vec<&Target>>::new());
        for (target, silent) in targets.iter().zip(silent) {
            if silent {
                let error = HostError::PortalUnreachable { portal: target.portal };
                results.push((target.to_string(), Err(error)));
            } else {
                names.entry(&target.iqn).or_default().push(target);
            }
        }
        let logins = names.into_iter().map(|(name, targets)| self.login_to(name, targets));
        results.extend(join_all(logins).await.into_iter().flatten());
        gather(results)
    }

    /// Logs in to portals of one target, by one run where there are records for these alone.
    async fn login_to(
        &self,
        name: &Iqn,
        targets: Vec<&Target>,
    ) -> Vec<(String, Result<bool, HostError>)> {
        let together = if targets.len() > 1 && self.database.has_only(name, &targets) {
            let args = ["-m", "node", "-T", name.as_str(), "--login"].map(str::to_owned);
            Some(self.run(self.login_limit(), &args).await)
        } else {
            None
        };
        let logins = targets.into_iter().map(async |target| {
            let result = match &together {
                Some(Ok(output)) => match of_portal(output, target.portal) {
                    Some(output) => self.logged_in(output, target),
                    None => self.login_one(target).await,
                },
                // Once more for each would take as long again.
                Some(Err(HostError::TimedOut { doing, seconds })) => {
                    Err(HostError::TimedOut { doing: doing.clone(), seconds: *seconds })
                }
                Some(Err(_)) | None => self.login_one(target).await,
            };
            (target.to_string(), result)
        });
        join_all(logins).await
    }

    async fn login_one(&self, target: &Target) -> Result<bool, HostError> {
        let output = self.run(self.login_limit(), &node(target, &["--login"])).await?;
        self.logged_in(output, target)
    }

    fn login_limit(&self) -> Duration {
        self.limits.overall() + BUSY
    }

    fn logged_in(&self, output: Output, target: &Target) -> Result<bool, HostError> {
        let code = Code::from(output.exit);
        self.silent.learn(target.portal, matches!(code, Code::TimedOut | Code::Unreachable));
        match code {
            Code::Success => Ok(true),
            Code::SessionExists => Ok(false),
            _ => Err(error(output, target, "logging in to")),
        }
    }

    /// Logs out of all targets at once, removes attachd's node records, and gives back those of others.
    ///
    /// `sessions` are those that the kernel has. Those that no iscsid knows are ended by `end`.
    pub(crate) async fn logout(
        &self,
        targets: &[Target],
        sessions: &SharedVec<Session>,
        iscsid: bool,
        end: End<'_>,
    ) -> Applied {
        let logouts = targets.iter().map(|target| async move {
            let session = sessions.iter().find(|session| session.is_to(target));
            (target.to_string(), self.logout_one(target, session, iscsid, end).await)
        });
        gather(join_all(logouts).await)
    }

    async fn logout_one(
        &self,
        target: &Target,
        session: Option<&Session>,
        iscsid: bool,
        end: End<'_>,
    ) -> Result<bool, HostError> {
        let logged_out = match session {
            // iscsiadm would say that it has logged out.
            Some(_) if !iscsid => false,
            _ => self.logout_by_iscsid(target, session.is_some()).await?,
        };
        if let (Some(session), false) = (session, logged_out) {
            tracing::warn!(%target, "no iscsid knows the session: the kernel ends it");
            end(session).await?;
        }
        self.database.give_back(target).await?;
        Ok(session.is_some() || logged_out)
    }

    /// Whether iscsid knew the session.
    async fn logout_by_iscsid(&self, target: &Target, stands: bool) -> Result<bool, HostError> {
        if stands && self.database.records(target)?.is_empty() {
            // iscsiadm finds a session by its record, and somebody deleted that.
            tracing::warn!(%target, "the node record of a session is gone: it is made again to log out");
            self.database.set_aside(target).await?;
            self.run(DATABASE_LIMIT, &node(target, &["-o", "new"])).await?;
        }
        let begin = Instant::now();
        loop {
            let output = self.run(LOGOUT_LIMIT, &node(target, &["--logout"])).await?;
            let passes_within = match Code::from(output.exit) {
                Code::Success => return Ok(true),
                Code::NothingFound if !stands => return Ok(false),
                Code::Passing => PASSING_LIMIT,
                // iscsid may take it over in a moment.
                Code::NothingFound | Code::TakingOver => TAKEOVER_LIMIT,
                _ => Duration::ZERO,
            };
            if begin.elapsed() < passes_within {
                tokio::time::sleep(MOMENT).await;
                continue;
            }
            return match Code::from(output.exit) {
                Code::NothingFound => Ok(false),
                Code::TakingOver => Err(HostError::SessionNotTakenOver { target: target.clone() }),
                _ => Err(error(output, target, "logging out of")),
            };
        }
    }

    /// `SendTargets` discovery without a trace in the database.
    pub(crate) async fn discover(
        &self,
        portal: Portal,
        chap: Option<&Chap>,
    ) -> Result<Vec<Target>, HostError> {
        let address = portal.to_string();
        let _records = match chap {
            None => Vec::new(),
            Some(chap) => self.database.discovery_record(portal, chap, &self.limits).await?,
        };
        let common = ["-t", "sendtargets", "-p", &address, "-o", "nonpersistent"];
        let args: Vec<&str> = match chap {
            None => ["-m", "discovery"].iter().chain(&common).copied().collect(),
            // Only this mode takes the credentials from the record.
            Some(_) => ["-m", "discoverydb"]
                .iter()
                .chain(&common)
                .chain(&["--discover"])
                .copied()
                .collect(),
        };
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let output = self.run(self.limits.overall() + BUSY, &args).await?;
        match Code::from(output.exit) {
            Code::Success => Ok(targets(&output.stdout)),
            Code::NothingFound => Ok(Vec::new()),
            Code::Unreachable | Code::TimedOut => Err(HostError::PortalUnreachable { portal }),
            Code::NoIscsid => Err(HostError::IscsidNotRunning),
            Code::NoTransport => Err(HostError::NoTransport),
            Code::AuthRejected => {
                Err(HostError::AuthRejected { what: format!("the discovery at {portal}") })
            }
            Code::Database
            | Code::SessionExists
            | Code::Refused
            | Code::Passing
            | Code::TakingOver
            | Code::Other => Err(output
                .into_error(Program::Iscsiadm, format!("discovering the targets of {portal}"))),
        }
    }

    async fn run(&self, limit: Duration, args: &[String]) -> Result<Output, HostError> {
        let mut tries = 0;
        loop {
            // Else it would wait for it for 30 s, and fail.
            self.database.remove_stale_lock();
            let output = self.run_once(limit, args).await?;
            tries += 1;
            let vanished = Code::from(output.exit) == Code::Database
                && output.stderr.contains(RECORD_VANISHED);
            if !vanished || tries == TRIES {
                return Ok(output);
            }
        }
    }

    /// One that were killed while it has the database's lock would leave it behind, and let all others wait
    /// in vain: it is killed while attachd has the lock.
    async fn run_once(&self, limit: Duration, args: &[String]) -> Result<Output, HostError> {
        let command = Command::new(Program::Iscsiadm, limit + LOCK_LIMIT, args.iter().cloned());
        let words = command.to_string();
        let mut running = Box::pin(self.exec.run(command));
        if let Ok(ended) = timeout(limit, &mut running).await {
            return ended;
        }
        let lock = timeout(LOCK_LIMIT / 2, self.database.lock()).await;
        drop(running);
        drop(lock);
        let error = HostError::TimedOut { doing: words.clone(), seconds: limit.as_secs() };
        tracing::debug!(command = words, %error, ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), "did not run to its end");
        Err(error)
    }
}

/// `-m node` for one target. The portal without its group: it is known only after a login.
fn node(target: &Target, rest: &[&str]) -> Vec<String> {
    let portal = target.portal.to_string();
    let args = ["-m", "node", "-T", target.iqn.as_str(), "-p", &portal];
    args.iter().chain(rest).map(|arg| (*arg).to_owned()).collect()
}

/// What a login to all portals of a target came to at one of them; none where it doesn't say. With one error
/// among them, only the text tells of which portal it is.
fn of_portal(output: &Output, portal: Portal) -> Option<Output> {
    if output.success() {
        return Some(output.clone());
    }
    let here = format!(" portal: {},{}]", portal.address(), portal.port());
    let about = |line: &str, words: &str| line.contains(words) && line.contains(&here);
    if output.stdout.lines().any(|line| about(line, "Login to [") && line.ends_with("successful."))
    {
        return Some(Output { exit: Exit::Code(0), ..output.clone() });
    }
    let mut lines = output.stderr.lines().skip_while(|line| !about(line, "Could not login to ["));
    let (what, why) = (lines.next()?, lines.next()?);
    let code = why.split_once("initiator reported error (")?.1.split_once(" - ")?.0.parse().ok()?;
    let stderr = format!("{what}\n{why}");
    Some(Output { exit: Exit::Code(code), stdout: String::new(), stderr })
}

fn error(output: Output, target: &Target, doing: &str) -> HostError {
    match Code::from(output.exit) {
        Code::AuthRejected => HostError::AuthRejected { what: target.to_string() },
        Code::TimedOut => HostError::LoginTimedOut { target: target.clone() },
        Code::Unreachable => HostError::PortalUnreachable { portal: target.portal },
        Code::NoIscsid => HostError::IscsidNotRunning,
        Code::NoTransport => HostError::NoTransport,
        Code::Refused => HostError::LoginRefused { target: target.clone() },
        Code::Success
        | Code::NothingFound
        | Code::Database
        | Code::SessionExists
        | Code::Passing
        | Code::TakingOver
        | Code::Other => output.into_error(Program::Iscsiadm, format!("{doing} {target}")),
    }
}

/// Discovery's answer; lines that are no target are left out.
pub(crate) fn targets(stdout: &str) -> Vec<Target> {
    let parsed = stdout.lines().filter_map(|line| {
        let (portal, iqn) = line.trim().split_once(' ')?;
        let target = portal.parse().ok().zip(iqn.trim().parse().ok());
        if target.is_none() {
            let line: String = line.chars().take(MAX_QUOTED).collect();
            tracing::warn!(line, "discovery named a target that can't be one");
        }
        target.map(|(portal, iqn)| Target { portal, iqn })
    });
    let mut found = BTreeSet::new();
    let mut ordered = Vec::new();
    for target in parsed {
        if found.insert(target.clone()) {
            ordered.push(target);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
    };

    use futures::{FutureExt as _, future::ready};

    use super::*;
    use crate::{
        host::{fixtures, scripted::ScriptedExecutor},
        model::Secret,
    };

    const IQN: &str = "iqn.2010-10.org.openstack:volume-afa839db-b260-447d-9eda-f9451ad99398";

    fn target(portal: &str) -> Target {
        Target { portal: portal.parse().unwrap(), iqn: IQN.parse().unwrap() }
    }

    fn session(portal: &str) -> Session {
        Session {
            sid: 1,
            host: 2,
            iqn: IQN.parse().unwrap(),
            portal: portal.parse().unwrap(),
            tpgt: 1,
            state: crate::model::SessionState::LoggedIn,
        }
    }

    fn never(session: &Session) -> BoxFuture<'static, Result<(), HostError>> {
        panic!("session {} is ended by the kernel", session.sid)
    }

    fn node() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc/iscsi", "run/lock", "proc"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        root
    }

    fn write_record(root: &tempfile::TempDir, name: &str) {
        let directory = root.path().join("etc/iscsi/nodes").join(IQN);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), fixtures::text("open-iscsi/node-record-2.1.8")).unwrap();
    }

    /// `$` in a line stands for `-m node -T <the target>`.
    async fn run<T>(
        root: &tempfile::TempDir,
        lines: &[(&str, i32, &str)],
        work: impl AsyncFnOnce(OpenIscsi<'_, ScriptedExecutor>) -> T,
    ) -> T {
        let node = format!("iscsiadm -m node -T {IQN} -p");
        let lines: Vec<_> = lines
            .iter()
            .map(|(argv, code, text)| (argv.replace('$', &node), *code, *text))
            .collect();
        let lines: Vec<_> =
            lines.iter().map(|(argv, code, text)| (argv.as_str(), *code, *text)).collect();
        let exec = ScriptedExecutor::new(&lines);
        let database = Database::new(root.path());
        work(OpenIscsi {
            exec: &exec,
            database: &database,
            silent: &SilentPortals::default(),
            limits: LoginLimits::default(),
        })
        .await
    }

    async fn login(
        root: &tempfile::TempDir,
        lines: &[(&str, i32, &str)],
        targets: &[Target],
    ) -> Applied {
        run(root, lines, async |iscsi| iscsi.login(targets).await).await
    }

    fn reasons(applied: &Applied) -> Vec<&'static str> {
        applied.failures.iter().map(|(_, error)| error.reason()).collect()
    }

    /// Runs what never ends, and notes where it is given up whether attachd has the database's lock.
    struct Hanging {
        link: std::path::PathBuf,
        locked: std::sync::atomic::AtomicBool,
    }

    impl Executor for Hanging {
        async fn run(&self, _: Command) -> Result<Output, HostError> {
            struct Killed<'a>(&'a Hanging);
            impl Drop for Killed<'_> {
                fn drop(&mut self) {
                    self.0.locked.store(self.0.link.exists(), std::sync::atomic::Ordering::Relaxed);
                }
            }
            let _killed = Killed(self);
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_iscsiadm_that_hangs_is_killed_while_attachd_has_the_databases_lock() {
        let root = node();
        let link = root.path().join("run/lock/iscsi/lock.write");
        let exec = Hanging { link: link.clone(), locked: false.into() };
        let (database, limits) = (Database::new(root.path()), LoginLimits::default());
        let iscsi = OpenIscsi {
            exec: &exec,
            database: &database,
            silent: &SilentPortals::default(),
            limits,
        };
        let began = Instant::now();
        let applied = iscsi.login(&[target("10.0.2.2:3260")]).await;
        assert_eq!(reasons(&applied), ["TimedOut"]);
        assert_eq!(began.elapsed(), limits.overall() + BUSY);
        assert!(exec.locked.into_inner() && !link.exists());
    }

    #[tokio::test]
    async fn a_new_portal_costs_two_runs_and_its_secret_stands_on_no_command_line() {
        let root = node();
        let portals = [target("10.0.2.2:3260"), target("[fd00:2::2]:3260")];
        let chap = Chap { username: "user".to_owned(), password: Secret::new("s3cret".to_owned()) };
        let nodes = root.path().join("etc/iscsi/nodes").join(IQN);
        let made = nodes.clone();
        let argv = |portal: &str| format!("iscsiadm -m node -T {IQN} -p {portal} -o new");
        let (v4, v6) = (argv("10.0.2.2:3260"), argv("[fd00:2::2]:3260"));
        let exec = ScriptedExecutor::new(&[(&v4, 0, "New iSCSI node [tcp:[hw=,…"), (&v6, 0, "")])
            .with_effect(move |argv| {
                let name = if argv.contains("fd00") { "fd00:2::2,3260" } else { "10.0.2.2,3260" };
                fs::create_dir_all(&made).unwrap();
                fs::write(made.join(name), fixtures::text("open-iscsi/node-record-2.1.8")).unwrap();
            });
        let database = Database::new(root.path());
        let iscsi = OpenIscsi {
            exec: &exec,
            database: &database,
            silent: &SilentPortals::default(),
            limits: LoginLimits::default(),
        };
        let applied = iscsi.write_records(&portals, Some(&chap)).await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
        assert!(
            fs::read_to_string(nodes.join("fd00:2::2,3260"))
                .unwrap()
                .contains("auth.password = s3cret\n")
        );
        let again =
            run(&root, &[], async |iscsi| iscsi.write_records(&portals, Some(&chap)).await).await;
        assert!(!again.changed);
    }

    #[tokio::test]
    async fn a_record_that_is_nowhere_is_told_with_the_places_that_were_searched() {
        let root = node();
        let portals = [target("10.0.2.2:3260")];
        let script = [("$ 10.0.2.2:3260 -o new", 0, "")];
        let applied =
            run(&root, &script, async |iscsi| iscsi.write_records(&portals, None).await).await;
        let error = applied.failures[0].1.to_string();
        assert!(
            error.contains("etc/iscsi/nodes and ") && error.contains("var/lib/iscsi"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn logins_run_side_by_side_and_each_exit_code_has_its_meaning() {
        let root = node();
        let targets: Vec<Target> = (1..=9).map(|n| target(&format!("10.0.2.{n}:3260"))).collect();
        let codes = [0, 15, 8, 24, 4, 19, 20, 12, 5];
        let lines: Vec<(String, i32, &str)> = codes
            .iter()
            .zip(&targets)
            .map(|(code, target)| (format!("$ {} --login", target.portal), *code, "iscsiadm: said"))
            .collect();
        let lines: Vec<_> =
            lines.iter().map(|(argv, code, text)| (argv.as_str(), *code, *text)).collect();
        let applied = login(&root, &lines, &targets).await;
        assert!(applied.changed);
        assert_eq!(
            reasons(&applied),
            [
                "LoginTimedOut",
                "AuthRejected",
                "PortalUnreachable",
                "LoginRefused",
                "IscsidNotRunning",
                "NoIscsiTransport",
                "CommandFailed",
            ]
        );
        assert!(applied.failures[0].0.ends_with("at 10.0.2.3:3260"));
        let last = applied.failures[6].1.to_string();
        assert!(last.ends_with("iscsiadm ended with exit code 5: iscsiadm: said"), "{last}");
    }

    /// The argv of a login to all portals of the target.
    fn login_to_all() -> String {
        format!("iscsiadm -m node -T {IQN} --login")
    }

    #[tokio::test]
    async fn portals_of_one_target_are_logged_in_to_by_one_run() {
        let root = node();
        write_record(&root, "10.0.2.2,3260");
        write_record(&root, "fd00:2::2,3260");
        let targets = [target("10.0.2.2:3260"), target("[fd00:2::2]:3260")];
        for (code, said, expected) in [
            (0, "", &[][..]),
            // As captured from 2.1.8, but for the addresses.
            (
                24,
                "iscsiadm: Could not login to [iface: default, target: x, portal: 10.0.2.2,3260].\n\
                 iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)\n\
                 iscsiadm: Could not login to [iface: default, target: x, portal: fd00:2::2,3260].\n\
                 iscsiadm: initiator reported error (8 - connection timed out)\n\
                 iscsiadm: Could not log into all portals\n",
                &["AuthRejected", "LoginTimedOut"][..],
            ),
        ] {
            let all = login_to_all();
            let script = [(all.as_str(), code, said)];
            let applied = login(&root, &script, &targets).await;
            assert_eq!((reasons(&applied).as_slice(), applied.changed), (expected, code == 0));
        }
    }

    #[test]
    fn a_login_to_all_portals_tells_which_failed_and_why() {
        let said = |stream: &str| {
            fixtures::text(&format!("open-iscsi/login-one-portal-dead-2.1.8.{stream}"))
        };
        let output = Output { exit: Exit::Code(8), stdout: said("stdout"), stderr: said("stderr") };
        let at = |portal: &str| of_portal(&output, portal.parse().unwrap());
        assert_eq!(at("10.0.2.2:30673").unwrap().exit, Exit::Code(0));
        let dead = at("10.0.3.2:30673").unwrap();
        assert_eq!(dead.exit, Exit::Code(8));
        assert!(dead.stderr.ends_with("(8 - connection timed out)"), "{}", dead.stderr);
        assert_eq!(at("10.0.3.2:3067"), None);
    }

    #[tokio::test]
    async fn a_portal_of_which_a_login_to_all_tells_nothing_is_logged_in_to_alone() {
        let root = node();
        write_record(&root, "10.0.2.2,3260");
        write_record(&root, "10.0.3.2,3260");
        let targets = [target("10.0.2.2:3260"), target("10.0.3.2:3260")];
        let all = login_to_all();
        let script = [
            (all.as_str(), 15, "iscsiadm: default: 1 session requested, but 1 already present."),
            ("$ 10.0.2.2:3260 --login", 15, ""),
            ("$ 10.0.3.2:3260 --login", 0, ""),
        ];
        let applied = login(&root, &script, &targets).await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
    }

    #[tokio::test]
    async fn where_another_has_a_record_of_the_target_only_what_is_asked_for_is_logged_in_to() {
        let root = node();
        for name in ["10.0.2.2,3260", "10.0.3.2,3260", "10.0.4.2,3260"] {
            write_record(&root, name);
        }
        let targets = [target("10.0.2.2:3260"), target("10.0.3.2:3260")];
        let script = [("$ 10.0.2.2:3260 --login", 0, ""), ("$ 10.0.3.2:3260 --login", 0, "")];
        let applied = login(&root, &script, &targets).await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
    }

    #[tokio::test]
    async fn a_portal_that_takes_no_connection_after_a_login_came_to_nothing_is_not_logged_in_to() {
        let root = node();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = target(&listener.local_addr().unwrap().to_string());
        drop(listener);
        let script = [(format!("$ {} --login", target.portal), 8, "")];
        let script = script.each_ref().map(|(argv, code, text)| (argv.as_str(), *code, *text));
        run(&root, &script, async |iscsi| {
            for reason in ["LoginTimedOut", "PortalUnreachable", "PortalUnreachable"] {
                let applied = iscsi.login(std::slice::from_ref(&target)).await;
                assert_eq!(reasons(&applied), [reason]);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_record_of_another_that_vanishes_under_a_login_lets_it_be_run_again_but_not_for_ever()
    {
        // As captured from 2.1.8.
        let said = "iscsiadm: iface iter could not stat /etc/iscsi/nodes/iqn.2010-10.org.openstack:volume-1/10.0.2.2,3260.\niscsiadm: Could not execute operation on all records: encountered iSCSI database failure";
        let ended = |code, text| ("$ 10.0.2.2:3260 --login", code, text);
        let targets = [target("10.0.2.2:3260")];
        for (script, reasons) in [
            (&[ended(6, said), ended(6, said), ended(0, "")][..], &[][..]),
            (&[ended(6, said); 10][..], &["CommandFailed"][..]),
            (&[ended(6, "iscsiadm: Could not lock discovery DB")][..], &["CommandFailed"][..]),
        ] {
            let root = node();
            let applied = login(&root, script, &targets).await;
            assert_eq!(self::reasons(&applied), reasons);
        }
    }

    #[tokio::test]
    async fn a_logout_is_one_run_where_the_record_is_attachds_own() {
        let root = node();
        let targets = [target("10.0.2.2:3260")];
        Database::new(root.path()).set_aside(&targets[0]).await.unwrap();
        write_record(&root, "10.0.2.2,3260");
        let script = [("$ 10.0.2.2:3260 --logout", 0, "")];
        let applied = run(&root, &script, async |iscsi| {
            iscsi.logout(&targets, &[].into(), true, &never).await
        })
        .await;
        assert!(applied.changed && applied.failures.is_empty());
        assert!(!root.path().join("etc/iscsi/nodes").join(IQN).exists());
        let script = [("$ 10.0.2.2:3260 --logout", 21, "iscsiadm: No matching sessions found")];
        let applied = run(&root, &script, async |iscsi| {
            iscsi.logout(&targets, &[].into(), true, &never).await
        })
        .await;
        assert!(!applied.changed && applied.failures.is_empty());
    }

    #[tokio::test]
    async fn a_session_whose_record_somebody_deleted_is_logged_out_by_a_new_one() {
        let root = node();
        let targets = [target("10.0.2.2:3260")];
        let script = [("$ 10.0.2.2:3260 -o new", 0, ""), ("$ 10.0.2.2:3260 --logout", 0, "")];
        let stands = [session("10.0.2.2:3260")].into();
        let applied =
            run(&root, &script, async |iscsi| iscsi.logout(&targets, &stands, true, &never).await)
                .await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
    }

    #[tokio::test(start_paused = true)]
    async fn a_logout_that_fails_for_a_moment_is_tried_again_but_not_for_ever() {
        let root = node();
        let targets = [target("10.0.2.2:3260")];
        let ended = |code| ("$ 10.0.2.2:3260 --logout", code, "");
        for (script, reasons) in [
            (&[ended(29), ended(0)][..], &[][..]),
            (&[ended(29); 3][..], &["CommandFailed"][..]),
            (&[ended(32), ended(0)][..], &[][..]),
            (&[ended(32); 6][..], &["SessionNotTakenOver"][..]),
        ] {
            let applied = run(&root, script, async |iscsi| {
                iscsi.logout(&targets, &[].into(), true, &never).await
            })
            .await;
            assert_eq!(self::reasons(&applied), reasons);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_no_iscsid_knows_is_ended_by_the_kernel() {
        let unknown = [("$ 10.0.2.2:3260 --logout", 2, "iscsiadm: … (2 - session not found)"); 6];
        for (script, iscsid) in [(&unknown[..], true), (&[][..], false)] {
            let root = node();
            let targets = [target("10.0.2.2:3260")];
            Database::new(root.path()).set_aside(&targets[0]).await.unwrap();
            write_record(&root, "10.0.2.2,3260");
            let stands = [session("10.0.2.2:3260")].into();
            let record = root.path().join("etc/iscsi/nodes").join(IQN).join("10.0.2.2,3260");
            let ended = AtomicU32::new(0);
            let end = |session: &Session| {
                assert!(record.exists(), "an iscsid that is about to take it over reads it");
                ended.store(session.sid, Relaxed);
                ready(Ok(())).boxed()
            };
            let applied = run(&root, script, async |iscsi| {
                iscsi.logout(&targets, &stands, iscsid, &end).await
            });
            let applied = applied.await;
            assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
            assert_eq!(ended.load(Relaxed), 1);
            assert!(!record.exists());
        }
    }

    #[tokio::test]
    async fn a_record_that_discovery_made_is_left_to_whoever_made_it() {
        let root = node();
        write_record(&root, "x");
        let directory = root.path().join("etc/iscsi/nodes").join(IQN);
        fs::create_dir(directory.join("10.0.2.2,3260,1")).unwrap();
        fs::rename(directory.join("x"), directory.join("10.0.2.2,3260,1/default")).unwrap();
        let script = [("$ 10.0.2.2:3260 --logout", 21, "")];
        let applied = run(&root, &script, async |iscsi| {
            iscsi.logout(&[target("10.0.2.2:3260")], &[].into(), true, &never).await
        })
        .await;
        assert!(applied.failures.is_empty());
    }

    #[tokio::test]
    async fn discovery_lists_targets_of_both_families_without_repeats() {
        let root = node();
        let answer = format!(
            "10.0.2.2:3260,1 {IQN}\n[fd00:2::2]:3260,1 {IQN}\n10.0.2.2:3260,1 {IQN}\nnonsense\n"
        );
        let plain = "iscsiadm -m discovery -t sendtargets -p 10.0.2.2:3260 -o nonpersistent";
        let portal = "10.0.2.2:3260".parse().unwrap();
        let found =
            run(&root, &[(plain, 0, &answer)], async |iscsi| iscsi.discover(portal, None).await)
                .await;
        assert_eq!(found.unwrap(), [target("10.0.2.2:3260"), target("[fd00:2::2]:3260")]);
        let none =
            run(&root, &[(plain, 21, "")], async |iscsi| iscsi.discover(portal, None).await).await;
        assert!(none.unwrap().is_empty());
    }

    #[tokio::test]
    async fn authenticated_discovery_uses_a_record_that_is_gone_afterwards() {
        let root = node();
        let chap = Chap { username: "user".to_owned(), password: Secret::new("s3cret".to_owned()) };
        let line =
            "iscsiadm -m discoverydb -t sendtargets -p 10.0.2.2:3260 -o nonpersistent --discover";
        let portal = "10.0.2.2:3260".parse().unwrap();
        let refused =
            run(&root, &[(line, 24, "")], async |iscsi| iscsi.discover(portal, Some(&chap)).await)
                .await;
        let error = refused.unwrap_err();
        assert!(error.to_string().starts_with("the discovery at 10.0.2.2:3260 refused"), "{error}");
        assert!(!root.path().join("etc/iscsi/send_targets").exists());
    }
}
