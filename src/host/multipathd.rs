//! multipathd's socket: one command, one answer.
//!
//! The daemon listens on `@/org/kernel/linux/storage/multipathd` in the abstract namespace of its
//! network namespace, newer ones (0.10) also on `/run/multipathd.socket`. A message is its length (a
//! native `size_t`, the NUL included) and the text with a NUL (`mpath_cmd.c`). What only changes
//! something answers `ok`, `fail`, `timeout` or `permission deny: …` (`uxlsnr.c`).

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::HostError;

const ABSTRACT: &str = "\0/org/kernel/linux/storage/multipathd";
const PATHNAME: &str = "run/multipathd.socket";

/// multipathd works on one command at a time, and gives up on its own lock after 10 s at most
/// (`uxsock_timeout` is 4 s by default).
const LIMIT: Duration = Duration::from_secs(12);
/// Longest answer that is read (`MAX_REPLY_LEN` is 32 MiB).
const LONGEST: usize = 8 * 1024 * 1024;

/// The way to multipathd.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    sockets: Vec<PathBuf>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `ok`, or data.
    Done(String),
    /// The path or the map may not be multipathed, by configuration.
    Blacklisted,
    /// `fail`, or a time-out within multipathd.
    Failed(String),
}

impl Client {
    /// To the host's daemon; `host_root` is the host's root directory.
    pub(crate) fn new(host_root: &std::path::Path) -> Self {
        Self { sockets: vec![PathBuf::from(ABSTRACT), host_root.join(PATHNAME)] }
    }

    #[cfg(test)]
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { sockets: vec![socket] }
    }

    /// Asks one thing.
    ///
    /// # Errors
    /// The daemon doesn't answer, or not in time. That it refuses is an [`Answer`].
    pub(crate) async fn ask(&self, command: &str) -> Result<Answer, HostError> {
        let began = Instant::now();
        let answer = match timeout(LIMIT, self.exchange(command)).await {
            Ok(Ok(reply)) => Ok(judge(reply)),
            Ok(Err(source)) => Err(HostError::MultipathdUnreachable { source }),
            Err(_) => Err(HostError::TimedOut {
                doing: format!("multipathd's answer to {command:?}"),
                seconds: LIMIT.as_secs(),
            }),
        };
        let refusal = match &answer {
            Ok(Answer::Done(_)) => None,
            Ok(Answer::Blacklisted) => Some("blacklisted".to_owned()),
            Ok(Answer::Failed(reply)) => Some(reply.clone()),
            Err(error) => Some(error.to_string()),
        };
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(command, refusal, ms, "asked multipathd");
        answer
    }

    /// Asks for data; a refusal is an error here.
    pub(crate) async fn show(&self, command: &str) -> Result<String, HostError> {
        match self.ask(command).await? {
            Answer::Done(text) => Ok(text),
            Answer::Failed(reply) => {
                Err(HostError::MultipathdRefused { command: command.to_owned(), reply })
            }
            Answer::Blacklisted => Ok(String::new()),
        }
    }

    async fn exchange(&self, command: &str) -> io::Result<String> {
        let mut stream = self.connect().await?;
        let mut message = (command.len() + 1).to_ne_bytes().to_vec();
        message.extend_from_slice(command.as_bytes());
        message.push(0);
        stream.write_all(&message).await?;
        let mut length = [0; size_of::<usize>()];
        stream.read_exact(&mut length).await?;
        let length = usize::from_ne_bytes(length);
        if length == 0 || length > LONGEST {
            let what = format!("an answer of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut reply = vec![0; length];
        stream.read_exact(&mut reply).await?;
        let text = reply.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for socket in &self.sockets {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

pub(crate) fn judge(reply: String) -> Answer {
    let word = reply.trim_end();
    if word == "blacklisted" || word.starts_with("blacklisted\n") {
        Answer::Blacklisted
    } else if word == "timeout"
        || word.ends_with("fail")
        || word.starts_with("permission deny")
        || word.starts_with("missing")
    {
        Answer::Failed(word.to_owned())
    } else {
        Answer::Done(reply)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon that answers from a transcript, strictly in order, and with each answer does something.
    /// It hangs up at a command that isn't the next one.
    pub(crate) fn scripted(
        lines: &'static [(&'static str, &'static str)],
        effect: impl Fn(&str) + Send + 'static,
    ) -> (tempfile::TempDir, Client) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("multipathd.socket");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            for (command, reply) in lines {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut length = [0; size_of::<usize>()];
                stream.read_exact(&mut length).await.unwrap();
                let mut asked = vec![0; usize::from_ne_bytes(length)];
                stream.read_exact(&mut asked).await.unwrap();
                assert_eq!(String::from_utf8(asked).unwrap(), format!("{command}\0"));
                effect(command);
                stream.write_all(&(reply.len() + 1).to_ne_bytes()).await.unwrap();
                stream.write_all(format!("{reply}\0").as_bytes()).await.unwrap();
            }
        });
        (directory, Client::at(socket))
    }

    #[tokio::test]
    async fn a_command_and_its_answer_are_framed_as_multipathd_frames_them() {
        let (_directory, client) =
            scripted(&[("add path sda", "ok\n"), ("show daemon", "pid 217 idle\n")], |_| ());
        assert_eq!(client.ask("add path sda").await.unwrap(), Answer::Done("ok\n".to_owned()));
        assert_eq!(client.show("show daemon").await.unwrap(), "pid 217 idle\n");
    }

    #[tokio::test]
    async fn a_refusal_is_told_from_an_answer() {
        assert_eq!(judge("fail\n".to_owned()), Answer::Failed("fail".to_owned()));
        assert_eq!(judge("timeout\n".to_owned()), Answer::Failed("timeout".to_owned()));
        assert_eq!(judge("blacklisted\n".to_owned()), Answer::Blacklisted);
        assert_eq!(judge("sda active\n".to_owned()), Answer::Done("sda active\n".to_owned()));
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_unreachable() {
        let client = Client::at(PathBuf::from("/nonexistent/multipathd.socket"));
        let error = client.ask("show daemon").await.unwrap_err();
        assert_eq!(error.reason(), "MultipathdUnreachable");
    }
}
