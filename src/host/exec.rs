//! The only place where a process is born.
//!
//! A [`Command`] is data: one of the known programs, plain arguments, a time limit. There is no way
//! to hand one a secret ([`Secret`](crate::model::Secret) does not turn into text) or an environment.
//! [`RealExecutor`] starts it with a cleared environment, no standard input and a process group of
//! its own, which is killed as a whole when the time is up or the caller goes away.

use std::{
    ffi::OsString,
    fmt,
    future::Future,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{HostError, namespaces::HostNamespaces};

/// Enters namespaces, then becomes the program: the process keeps its id.
pub(crate) const NSENTER: &str = "nsenter";

/// Where programs are looked for, on every node alike.
pub const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Most that is kept of each output stream: half of it from the start, half from the end.
const KEPT: usize = 64 * 1024;

const REDACTED: &str = "<redacted>";

/// How long a stream may stay open after its program has ended (a daemon that the program started
/// may have inherited it).
const STRAGGLERS: Duration = Duration::from_millis(300);

/// Every program that attachd may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// open-iscsi's administration tool.
    Iscsiadm,
    /// multipath-tools' command line, for what multipathd's socket doesn't offer.
    Multipath,
    /// libblkid's prober.
    Blkid,
    /// Sets a block device read-only.
    Blockdev,
    /// Makes ext4.
    MkfsExt4,
    /// Makes XFS.
    MkfsXfs,
    /// Checks ext4.
    E2fsck,
    /// Grows ext4.
    Resize2fs,
    /// Grows XFS, and tells its size.
    XfsGrowfs,
    /// open-iscsi's daemon: asked for its version.
    Iscsid,
    /// Loads kernel modules.
    Modprobe,
    /// Starts services.
    Systemctl,
    /// Shows the services' log.
    Journalctl,
    /// Shows what device-mapper has.
    Dmsetup,
    /// Shows the block devices.
    Lsblk,
    /// Shows addresses and routes.
    Ip,
}

impl Program {
    /// The name that is looked for in [`SEARCH_PATH`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iscsiadm => "iscsiadm",
            Self::Multipath => "multipath",
            Self::Blkid => "blkid",
            Self::Blockdev => "blockdev",
            Self::MkfsExt4 => "mkfs.ext4",
            Self::MkfsXfs => "mkfs.xfs",
            Self::E2fsck => "e2fsck",
            Self::Resize2fs => "resize2fs",
            Self::XfsGrowfs => "xfs_growfs",
            Self::Iscsid => "iscsid",
            Self::Modprobe => "modprobe",
            Self::Systemctl => "systemctl",
            Self::Journalctl => "journalctl",
            Self::Dmsetup => "dmsetup",
            Self::Lsblk => "lsblk",
            Self::Ip => "ip",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A process to be: a program, its arguments and the time that it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Which program.
    pub program: Program,
    /// Its arguments.
    pub args: Vec<String>,
    /// When it is killed.
    pub limit: Duration,
}

impl Command {
    /// A command.
    pub fn new<A: Into<String>>(
        program: Program,
        limit: Duration,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self { program, args: args.into_iter().map(Into::into).collect(), limit }
    }
}

impl fmt::Display for Command {
    /// The argv, separated by spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program.name())?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(status.into_raw()),
        }
    }
}

/// What a process left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it printed, bounded.
    pub stdout: String,
    /// What it complained about, bounded.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with exit code 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// The output as an error: what it was for, how it ended, the end of what it said.
    pub fn into_error(self, program: Program, doing: impl Into<String>) -> HostError {
        HostError::Command { program, doing: doing.into(), exit: self.exit, stderr: self.said() }
    }

    /// What it complained about, or else printed, in one line.
    fn said(&self) -> String {
        gist(if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr })
    }
}

/// What a program said, on one line, short enough for an error message: its first words (a usage text
/// follows what is wrong) and its last.
pub(crate) fn gist(text: &str) -> String {
    const FIRST: usize = 200;
    const LAST: usize = 400;
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let joined = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let joined = without_secrets(&joined);
    let letters: Vec<char> = joined.chars().collect();
    match letters.len() {
        0 => "it said nothing".to_owned(),
        length if length <= FIRST + LAST => joined,
        length => {
            let part = |range: std::ops::Range<usize>| letters[range].iter().collect::<String>();
            format!("{} … {}", part(0..FIRST), part(length - LAST..length))
        }
    }
}

/// A program that shows its settings (a node record, say) must not show a password by way of attachd.
fn without_secrets(text: &str) -> String {
    const NAMES: [&str; 4] = ["password", "passwd", "secret", "token"];
    /// What comes next may be the sign or the value of what was named.
    #[derive(PartialEq)]
    enum Next {
        Anything,
        Sign,
        Value,
    }
    let mut next = Next::Anything;
    let words = text.split(' ').map(|word| {
        let lower = word.to_ascii_lowercase();
        let named = NAMES.iter().filter_map(|name| Some(lower.find(name)? + name.len())).min();
        let value = named.and_then(|end| Some(end + word[end..].find(['=', ':'])? + 1));
        let (shown, then) = match (&next, named, value) {
            (Next::Value, ..) => (REDACTED.to_owned(), Next::Anything),
            (Next::Sign, ..) if ["=", ":"].contains(&word) => (word.to_owned(), Next::Value),
            (_, _, Some(at)) if at == word.len() => (word.to_owned(), Next::Value),
            (_, _, Some(at)) => (format!("{}{REDACTED}", &word[..at]), Next::Anything),
            (_, Some(_), None) => (word.to_owned(), Next::Sign),
            (_, None, None) => (word.to_owned(), Next::Anything),
        };
        next = then;
        shown
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Runs commands.
pub trait Executor: Send + Sync {
    /// Runs one to its end; any exit code is an [`Output`].
    ///
    /// # Errors
    /// The program isn't there, can't be started, or took too long.
    fn run(&self, command: Command) -> impl Future<Output = Result<Output, HostError>> + Send;
}

/// Runs commands on this machine.
#[derive(Debug, Clone, Default)]
pub struct RealExecutor {
    prefix: Vec<OsString>,
}

impl RealExecutor {
    /// Runs the programs that this process sees.
    pub const fn here() -> Self {
        Self { prefix: Vec::new() }
    }

    /// Runs the host's own programs from within a container: iscsiadm must be of iscsid's version, and
    /// both must see one database; multipath waits for the host's udev by a System V semaphore. The
    /// other namespaces are the host's already ([`HostNamespaces::of`]).
    pub fn on_host(namespaces: &HostNamespaces) -> Self {
        let enter = |option: &str, namespace: &str| {
            let mut argument = OsString::from(option);
            argument.push(namespaces.path(namespace));
            argument
        };
        let prefix =
            vec![NSENTER.into(), enter("--mount=", "mnt"), enter("--ipc=", "ipc"), "--".into()];
        Self { prefix }
    }

    fn process(&self, command: &Command) -> tokio::process::Command {
        let name = OsString::from(command.program.name());
        let mut argv = self.prefix.iter().cloned().chain([name]);
        let first = argv.next().unwrap_or_default();
        // By its path: then the standard library has no need to fork all of this process.
        let mut paths = SEARCH_PATH.split(':').map(|directory| Path::new(directory).join(&first));
        let program = paths.find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(&first));
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let mut process = tokio::process::Command::new(program);
        process
            .arg0(first)
            .args(argv)
            .args(&command.args)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        process
    }
}

impl Executor for RealExecutor {
    async fn run(&self, command: Command) -> Result<Output, HostError> {
        let began = Instant::now();
        let result = match tokio::time::timeout(command.limit, self.to_the_end(&command)).await {
            Ok(result) => result,
            Err(_) => Err(HostError::TimedOut {
                doing: command.to_string(),
                seconds: command.limit.as_secs(),
            }),
        };
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(output) => {
                let said = (!output.success()).then(|| output.said());
                tracing::debug!(%command, exit = %output.exit, said, ms, "ran");
            }
            Err(error) => tracing::debug!(%command, %error, ms, "did not run to its end"),
        }
        result
    }
}

impl RealExecutor {
    async fn to_the_end(&self, command: &Command) -> Result<Output, HostError> {
        let program = command.program;
        let failed = |source| HostError::Exec { program, source };
        let missing = |program| HostError::ProgramMissing { program, searched: SEARCH_PATH };
        let first = if self.prefix.is_empty() { program.name() } else { NSENTER };
        let mut child = self.process(command).spawn().map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                missing(first)
            } else {
                failed(error)
            }
        })?;
        let mut group = Group::of(&child);
        let (mut out, mut err) = (Bounded::default(), Bounded::default());
        let status = {
            let reading =
                futures::future::join(out.fill(child.stdout.take()), err.fill(child.stderr.take()));
            tokio::pin!(reading);
            tokio::select! {
                status = child.wait() => {
                    let _ = tokio::time::timeout(STRAGGLERS, reading).await;
                    status
                }
                _ = &mut reading => child.wait().await,
            }
        }
        .map_err(failed)?;
        group.leave();
        let output =
            Output { exit: status.into(), stdout: out.into_text(), stderr: err.into_text() };
        // nsenter's own exit codes could be the program's: 1 of e2fsck says that all is well now.
        if !self.prefix.is_empty() && output.stderr.starts_with("nsenter: ") {
            return Err(match output.exit {
                Exit::Code(127) => missing(program.name()),
                _ => failed(std::io::Error::other(gist(&output.stderr))),
            });
        }
        Ok(output)
    }
}

/// The process group of a child, killed when this goes away before the child has ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn leave(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // ESRCH: it has ended meanwhile.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// The start and the end of a stream.
#[derive(Default)]
struct Bounded {
    head: Vec<u8>,
    tail: Vec<u8>,
    dropped: usize,
}

impl Bounded {
    async fn fill(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 8192];
        while let Ok(read) = stream.read(&mut buffer).await {
            if read == 0 {
                break;
            }
            self.push(&buffer[..read]);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = (KEPT / 2).saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        let over = self.tail.len().saturating_sub(KEPT / 2);
        self.tail.drain(..over);
        self.dropped += over;
    }

    fn into_text(self) -> String {
        let gap = match self.dropped {
            0 => String::new(),
            bytes => format!("\n[{bytes} bytes left out]\n"),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        [text(&self.head), gap, text(&self.tail)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `blkid` and `blockdev` are on every machine that builds this; they stand for any program.
    fn blkid(args: &[&str]) -> Command {
        Command::new(Program::Blkid, Duration::from_secs(10), args.iter().copied())
    }

    #[tokio::test]
    async fn a_program_is_run_with_its_exit_code_and_both_streams() {
        let output = RealExecutor::here().run(blkid(&["-V"])).await.unwrap();
        assert!(output.success());
        assert!(output.stdout.contains("blkid") || output.stderr.contains("blkid"), "{output:?}");
        let refused = RealExecutor::here().run(blkid(&["--no-such"])).await.unwrap();
        assert!(!refused.success());
        let error = refused.into_error(Program::Blkid, "probing sda");
        assert!(
            error.to_string().starts_with("probing sda: blkid ended with exit code"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_when_its_time_is_up() {
        let fifo = tempfile::tempdir().unwrap();
        let path = fifo.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // e2fsck and blkid open what they are given; a FIFO without a writer blocks them.
        let mut command = blkid(&["-p", "-o", "export"]);
        command.args.push(path.display().to_string());
        command.limit = Duration::from_millis(300);
        match RealExecutor::here().run(command).await {
            Err(HostError::TimedOut { doing, .. }) => assert!(doing.starts_with("blkid -p")),
            // A newer blkid opens without blocking and refuses what isn't a block device.
            Ok(output) => assert!(!output.success()),
            Err(error) => panic!("{error}"),
        }
    }

    fn by_way_of(prefix: &[&str]) -> RealExecutor {
        RealExecutor { prefix: prefix.iter().map(OsString::from).collect() }
    }

    #[test]
    fn in_a_container_a_program_is_run_in_the_hosts_namespaces_and_shown_without_them() {
        let command = blkid(&["-p", "/dev/sda"]);
        let executor = RealExecutor::on_host(&HostNamespaces::of_process("/proc/1"));
        let process = executor.process(&command);
        let program = Path::new(process.as_std().get_program()).file_name();
        let argv: Vec<_> = program
            .into_iter()
            .chain(process.as_std().get_args())
            .map(|part| part.to_str().unwrap())
            .collect();
        let expected = "nsenter --mount=/proc/1/ns/mnt --ipc=/proc/1/ns/ipc -- blkid -p /dev/sda";
        assert_eq!(argv.join(" "), expected);
        assert_eq!(command.to_string(), "blkid -p /dev/sda");
    }

    #[tokio::test]
    async fn a_program_behind_a_prefix_keeps_its_exit_code_and_its_cleared_environment() {
        // Like nsenter, env becomes the program.
        let output = by_way_of(&["env", "--"]).run(blkid(&["--no-such"])).await.unwrap();
        assert!(!output.success() && output.stderr.contains("no-such"), "{output:?}");
        let shown = by_way_of(&["sh", "-c", "env; exit 3"]).run(blkid(&[])).await.unwrap();
        assert_eq!(shown.exit, Exit::Code(3));
        let mut names: Vec<_> =
            shown.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn what_keeps_nsenter_from_the_host_is_not_taken_for_the_programs_answer() {
        // As nsenter says it, with exit codes that e2fsck and mkfs could have, too.
        for (script, reason) in [
            (
                "echo 'nsenter: reassociate to namespaces failed: Operation not permitted' >&2; exit 1",
                "ProgramFailedToStart",
            ),
            (
                "echo 'nsenter: failed to execute blkid: No such file or directory' >&2; exit 127",
                "ProgramMissing",
            ),
        ] {
            let error = by_way_of(&["sh", "-c", script]).run(blkid(&[])).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
        }
        let own = by_way_of(&["sh", "-c", "exit 127"]).run(blkid(&[])).await.unwrap();
        assert_eq!(own.exit, Exit::Code(127));
    }

    #[test]
    fn of_a_long_output_the_start_and_the_end_are_kept() {
        let mut bounded = Bounded::default();
        bounded.push(b"start ");
        for _ in 0..100 {
            bounded.push(&[b'x'; 4096]);
        }
        bounded.push(b" end");
        let text = bounded.into_text();
        assert!(text.starts_with("start ") && text.ends_with(" end"));
        assert!(text.contains("bytes left out") && text.len() < KEPT + 100);
    }

    #[test]
    fn a_password_that_a_program_shows_is_left_out_of_what_it_said() {
        for (said, shown) in [
            ("node.session.auth.password = PLANTED", "node.session.auth.password = <redacted>"),
            ("node.session.auth.Password_in=PLANTED;x", "node.session.auth.Password_in=<redacted>"),
            ("X-Auth-Token: PLANTED was refused", "X-Auth-Token: <redacted> was refused"),
            ("url=http://t/?secret=PLANTED", "url=http://t/?secret=<redacted>"),
            ("wrong password for PLAIN = 1", "wrong password for PLAIN = 1"),
            ("ü password", "ü password"),
        ] {
            assert_eq!(gist(said), shown);
        }
    }

    #[test]
    fn what_a_program_said_fits_an_error_with_its_first_and_last_words() {
        assert_eq!(gist("a\n\n  b\t\tc \n"), "a; b c");
        assert_eq!(gist(" \n"), "it said nothing");
        let long = gist(&format!("must be larger\n{}the end", "usage\n".repeat(500)));
        assert!(long.starts_with("must be larger; usage") && long.ends_with("the end"), "{long}");
        assert!(long.chars().count() <= 603);
    }
}
