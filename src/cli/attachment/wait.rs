use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::super::exit::Failure;
use crate::{
    cinder::{Attachment, AttachmentStatus, CinderError, Client},
    model::{AttachmentId, Retry},
};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(next_help_heading = "Waiting")]
pub(super) struct Wait {
    /// Wait until it is so: a reservation reserved, an attachment with a connector attaching, a
    /// completed one attached, a deleted one gone
    #[arg(long)]
    wait: bool,

    /// How long to wait, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..=86400),
        requires = "wait"
    )]
    wait_timeout: u64,
}

/// What one look at an attachment says about a wait for it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    NotYet,
    Never,
}

/// Whether what is waited for is here. What lies beyond it will do: another may have gone on meanwhile.
fn verdict(wanted: &AttachmentStatus, seen: &AttachmentStatus) -> Verdict {
    use AttachmentStatus::{
        Attached, Attaching, Detached, ErrorAttaching, ErrorDetaching, Reserved,
    };
    match (wanted, seen) {
        (Reserved, Reserved | Attaching | Attached)
        | (Attaching, Attaching | Attached)
        | (Attached, Attached) => Verdict::Reached,
        (_, ErrorAttaching | ErrorDetaching | Detached) => Verdict::Never,
        _ => Verdict::NotYet,
    }
}

impl Wait {
    /// Waits for a status where that is wanted, and gives the attachment as Cinder then shows it.
    pub(super) async fn for_status(
        &self,
        client: &Client,
        id: AttachmentId,
        wanted: AttachmentStatus,
    ) -> Result<Option<Attachment>, Failure> {
        if !self.wait {
            return Ok(None);
        }
        let mut last = None;
        self.poll(async |deadline| {
            let seen = match timeout_at(deadline, client.show(id)).await {
                Err(_) => return Ok(None),
                Ok(Err(error @ CinderError::NotFound(_))) => {
                    return Err(Failure::Unsettled(format!(
                        "attachment {id} went away while attachd waited for it to be {wanted}: {error}"
                    )));
                }
                Ok(Err(error)) => return passing(error).map(|()| None),
                Ok(Ok(seen)) => seen,
            };
            let status = seen.summary.status.clone();
            match verdict(&wanted, &status) {
                Verdict::Reached => Ok(Some(seen)),
                Verdict::NotYet => {
                    last = Some(status);
                    Ok(None)
                }
                Verdict::Never => Err(Failure::Unsettled(format!(
                    "attachment {id} is {status} and will not be {wanted}; see the log of the volume's back end, and delete the attachment"
                ))),
            }
        })
        .await?
        .map(Some)
        .ok_or_else(|| {
            let last = last.map_or_else(|| "not to be seen".to_owned(), |status| status.to_string());
            Failure::Unsettled(format!(
                "attachment {id} is {last} after {} s, not {wanted}; it stays as it is: look again with attachd attachment show {id}",
                self.wait_timeout
            ))
        })
    }

    /// Waits until Cinder has no such attachment, where that is wanted.
    pub(super) async fn for_end(&self, client: &Client, id: AttachmentId) -> Result<(), Failure> {
        if !self.wait {
            return Ok(());
        }
        self.poll(async |deadline| match timeout_at(deadline, client.show(id)).await {
            Ok(Err(CinderError::NotFound(_))) => Ok(Some(())),
            Ok(Err(error)) => passing(error).map(|()| None),
            Ok(Ok(_)) | Err(_) => Ok(None),
        })
        .await?
        .ok_or_else(|| {
            Failure::Unsettled(format!(
                "attachment {id} is still there {} s after Cinder deleted it; see Cinder's log",
                self.wait_timeout
            ))
        })
    }

    /// Looks until a look gives something; `None` where the time is over.
    async fn poll<T>(
        &self,
        mut look: impl AsyncFnMut(Instant) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let deadline = Instant::now() + Duration::from_secs(self.wait_timeout);
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(found) = look(deadline).await? {
                return Ok(Some(found));
            }
            if Instant::now() + pause >= deadline {
                return Ok(None);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What time may mend is no end of a wait.
fn passing(error: CinderError) -> Result<(), Failure> {
    if error.retry() == Retry::Backoff {
        debug!("{error}");
        Ok(())
    } else {
        Err(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_what_can_come_and_with_what_can_only_be_an_error() {
        use AttachmentStatus as S;
        for (wanted, seen, expected) in [
            (S::Attaching, S::Reserved, Verdict::NotYet),
            (S::Attaching, S::Attaching, Verdict::Reached),
            (S::Attaching, S::Attached, Verdict::Reached),
            (S::Attached, S::Attaching, Verdict::NotYet),
            (S::Attached, S::ErrorAttaching, Verdict::Never),
            (S::Reserved, S::Reserved, Verdict::Reached),
            (S::Attached, S::Other("levitating".to_owned()), Verdict::NotYet),
            (S::Attached, S::Detached, Verdict::Never),
        ] {
            assert_eq!(verdict(&wanted, &seen), expected, "{wanted} {seen}");
        }
    }
}
