//! Node records, logins, logouts and discovery: open-iscsi's `iscsiadm`.
//!
//! Two runs for each new portal (`-o new`, `--login`), one for each that goes (`--logout`); what can be
//! read or done elsewhere is (sessions in sysfs, credentials in the record's file).
//!
//! ```text
//! # iscsiadm -m discovery -t sendtargets -p 10.0.2.2:3260 -o nonpersistent
//! 10.0.2.2:3260,1 iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91
//! [fd00:2::2]:3260,1 iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91
//! ```

use std::time::Duration;

use futures::future::join_all;

use crate::model::{Chap, Portal, Target};

use super::{
    Applied, HostError,
    exec::{Command, Executor, Exit, Output, Program},
    node_records::{self, Database},
    scsi::gather,
};

/// A run that only touches the database; iscsiadm itself waits up to 30 s for its lock.
const DATABASE_LIMIT: Duration = Duration::from_secs(40);
/// A logout: `node.conn[0].timeo.logout_timeout` is 15 s, and the disks behind it go first.
const LOGOUT_LIMIT: Duration = Duration::from_mins(1);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(3);
/// What iscsid needs beside the login itself.
const SLACK: Duration = Duration::from_secs(5);

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
    /// After which iscsiadm is given up; iscsid has given up before.
    fn overall(self) -> Duration {
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
    /// 8 `ISCSI_ERR_TRANS_TIMEOUT`, 11 `ISCSI_ERR_PDU_TIMEOUT`
    TimedOut,
    /// 12 `ISCSI_ERR_TRANS_NOT_FOUND`: the kernel module isn't loaded.
    NoTransport,
    /// 15 `ISCSI_ERR_SESS_EXISTS`: logged in already.
    SessionExists,
    /// 18 `ISCSI_ERR_ISCSID_COMM_ERR`, 20 `ISCSI_ERR_ISCSID_NOTCONN`
    NoIscsid,
    /// 24 `ISCSI_ERR_LOGIN_AUTH_FAILED`
    AuthRejected,
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
            Exit::Code(24) => Self::AuthRejected,
            Exit::Code(_) | Exit::Signal(_) => Self::Other,
        }
    }
}

/// open-iscsi on this node.
#[derive(Debug)]
pub(crate) struct OpenIscsi<'a, E> {
    pub(crate) exec: &'a E,
    pub(crate) database: &'a Database,
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
        let logins = targets
            .iter()
            .map(|target| async move { (target.to_string(), self.login_one(target).await) });
        gather(join_all(logins).await)
    }

    async fn login_one(&self, target: &Target) -> Result<bool, HostError> {
        let output = self.run(self.limits.overall(), &node(target, &["--login"])).await?;
        match Code::from(output.exit) {
            Code::Success => Ok(true),
            Code::SessionExists => Ok(false),
            _ => Err(error(output, target, "logging in to")),
        }
    }

    /// Logs out of all targets at once, and removes their node records.
    pub(crate) async fn logout(&self, targets: &[Target]) -> Applied {
        let logouts = targets
            .iter()
            .map(|target| async move { (target.to_string(), self.logout_one(target).await) });
        gather(join_all(logouts).await)
    }

    async fn logout_one(&self, target: &Target) -> Result<bool, HostError> {
        let output = self.run(LOGOUT_LIMIT, &node(target, &["--logout"])).await?;
        let was_there = match Code::from(output.exit) {
            Code::Success => true,
            Code::NothingFound => false,
            _ => return Err(error(output, target, "logging out of")),
        };
        if self.database.remove_plain(target).await? {
            let output = self.run(DATABASE_LIMIT, &node(target, &["-o", "delete"])).await?;
            match Code::from(output.exit) {
                Code::Success | Code::NothingFound => {}
                _ => return Err(error(output, target, "removing the node record of")),
            }
        }
        Ok(was_there)
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
        let output = self.run(self.limits.overall() + SLACK, &args).await?;
        match Code::from(output.exit) {
            Code::Success => Ok(targets(&output.stdout)),
            Code::NothingFound => Ok(Vec::new()),
            Code::Unreachable | Code::TimedOut => Err(HostError::PortalUnreachable { portal }),
            Code::NoIscsid => Err(HostError::IscsidNotRunning),
            Code::NoTransport => Err(HostError::NoTransport),
            Code::AuthRejected | Code::Database | Code::SessionExists | Code::Other => Err(output
                .into_error(Program::Iscsiadm, format!("discovering the targets of {portal}"))),
        }
    }

    async fn run(&self, limit: Duration, args: &[String]) -> Result<Output, HostError> {
        self.exec.run(Command::new(Program::Iscsiadm, limit, args.iter().cloned())).await
    }
}

/// `-m node` for one target. The portal without its group: it is known only after a login.
fn node(target: &Target, rest: &[&str]) -> Vec<String> {
    let portal = target.portal.to_string();
    let args = ["-m", "node", "-T", target.iqn.as_str(), "-p", &portal];
    args.iter().chain(rest).map(|arg| (*arg).to_owned()).collect()
}

fn error(output: Output, target: &Target, doing: &str) -> HostError {
    match Code::from(output.exit) {
        Code::AuthRejected => HostError::AuthRejected { target: target.clone() },
        Code::TimedOut => HostError::LoginTimedOut { target: target.clone() },
        Code::Unreachable => HostError::PortalUnreachable { portal: target.portal },
        Code::NoIscsid => HostError::IscsidNotRunning,
        Code::NoTransport => HostError::NoTransport,
        Code::Success | Code::NothingFound | Code::Database | Code::SessionExists | Code::Other => {
            output.into_error(Program::Iscsiadm, format!("{doing} {target}"))
        }
    }
}

/// Discovery's answer; lines that are no target are left out.
fn targets(stdout: &str) -> Vec<Target> {
    let parsed = stdout.lines().filter_map(|line| {
        let (portal, iqn) = line.trim().split_once(' ')?;
        let target = portal.parse().ok().zip(iqn.trim().parse().ok());
        if target.is_none() {
            tracing::warn!(line, "discovery named a target that can't be one");
        }
        target.map(|(portal, iqn)| Target { portal, iqn })
    });
    let mut found = Vec::new();
    for target in parsed {
        if !found.contains(&target) {
            found.push(target);
        }
    }
    found
}
