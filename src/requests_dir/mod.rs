//! Requests from a directory of YAML files, as kubelet reads static pods: `NAME.yaml` holds a
//! `VolumeAttachRequest`, attachd writes `NAME.status.yaml` beside it, and removing the file detaches.
//!
//! ```text
//!   inotify ─► scan (whole directory) ─► workers (crate::requests) ─► status files
//! ```

mod files;

#[cfg(any(test, feature = "testing"))]
pub(crate) use files::request;

use std::{
    collections::BTreeSet, fs, io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use crate::{
    attach::{Engine, LedgerError, Origin},
    cinder::BlockStorage,
    health::Vitals,
    host::Host,
    requests::{Lookout, Wanted, Workers},
    requests_dir::files::{Found, Scan, StatusFile},
};

/// Events may be lost (the queue is bounded), so the directory is looked at now and then anyway.
const FALLBACK_SCAN: Duration = Duration::from_mins(1);

/// The name of the readiness check: the directory and the ledger can be read.
pub const CHECK: &str = "requests-dir";

/// Editors and `cp` make several events of one change.
const SETTLE: Duration = Duration::from_millis(20);

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct RequestsDirConfig {
    /// The directory.
    pub directory: PathBuf,
    /// This node's name: requests for other nodes are not served.
    pub node_name: String,
    /// Where requests without a mount path are mounted, each under its name.
    pub mounts_dir: PathBuf,
    /// The longest pause between two tries of one request.
    pub longest_pause: Duration,
    /// Who looks at the node, for all sources of requests.
    pub lookout: Lookout,
    /// What is missing of attached volumes is brought back.
    pub heal: bool,
}

/// The directory can't be served.
#[derive(Debug, thiserror::Error)]
pub enum RequestsDirError {
    /// An operation of the file system failed.
    #[error("{doing} {path} failed; nothing is detached because of it")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Anybody could ask for anything.
    #[error(
        "every user of this node may write to {path}, and so have any volume mounted or detached; nothing is served. Run: chmod o-w {path}", path = path.display()
    )]
    OpenToAll {
        /// The directory.
        path: PathBuf,
    },
    /// The ledger.
    #[error("could not read the ledger")]
    Ledger(#[from] LedgerError),
}

/// Serves a directory of requests.
pub struct RequestsDir<H, C> {
    engine: Arc<Engine<H, C>>,
    config: RequestsDirConfig,
    vitals: Vitals,
    workers: Workers<H, C, StatusFile>,
    /// Requests whose file asked for `forceDetach` when it was seen last.
    forced: BTreeSet<String>,
}

impl<H: Host + 'static, C: BlockStorage + 'static> RequestsDir<H, C> {
    /// A server; nothing happens yet. As many requests are worked on at once as there are permits.
    pub fn new(
        engine: Arc<Engine<H, C>>,
        permits: Arc<Semaphore>,
        config: RequestsDirConfig,
        vitals: Vitals,
    ) -> Self {
        let metrics = vitals.metrics.clone();
        let (pause, lookout) = (config.longest_pause, config.lookout.clone());
        let workers =
            Workers::new(Arc::clone(&engine), permits, metrics, pause, lookout, config.heal);
        Self { engine, config, vitals, workers, forced: BTreeSet::new() }
    }

    /// Serves until asked to stop; then waits for the steps under way. What is attached stays so.
    ///
    /// # Errors
    /// The directory or the ledger can't be read at the start. Later troubles are logged and waited out.
    pub async fn serve(mut self, mut stop: watch::Receiver<bool>) -> Result<(), RequestsDirError> {
        let directory = self.config.directory.clone();
        let io = |doing| {
            let path = directory.clone();
            move |source| RequestsDirError::Io { doing, path, source }
        };
        let path = directory.clone();
        let seen = blocking(move || fs::metadata(&path)).await.map_err(io("looking at"))?;
        if seen.permissions().mode() & 0o002 != 0 {
            return Err(RequestsDirError::OpenToAll { path: directory });
        }
        let inotify = Inotify::init().map_err(io("watching"))?;
        // Subscribed before the first scan, so that no change falls between the two.
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
        inotify.watches().add(&directory, mask | WatchMask::ONLYDIR).map_err(io("watching"))?;
        let mut events = inotify.into_event_stream([0; 4096]).map_err(io("watching"))?;
        self.scan().await?;
        self.vitals.readiness.set(CHECK, Ok(()));
        tracing::info!(directory = %directory.display(), requests = self.workers.names().len(), "serving requests");
        loop {
            self.vitals.heartbeat.beat();
            tokio::select! {
                Ok(_) = stop.wait_for(|stop| *stop) => break,
                // Its request may have come back while it ended.
                () = self.workers.ended() => {}
                _ = timeout(FALLBACK_SCAN, events.next()) => {
                    while timeout(SETTLE, events.next()).await.is_ok() {}
                }
            }
            let scanned = self.scan().await.map_err(|error| format!("{error}: {}", source(&error)));
            if let Err(error) = &scanned {
                tracing::error!("{error}");
            }
            self.vitals.readiness.set(CHECK, scanned);
        }
        self.workers.shut_down(&self.vitals.heartbeat).await;
        Ok(())
    }

    /// Brings the workers to what the directory holds.
    async fn scan(&mut self) -> Result<(), RequestsDirError> {
        let directory = self.config.directory.clone();
        let scan = blocking(move || Scan::read(&directory)).await.map_err(|source| {
            RequestsDirError::Io { doing: "reading", path: self.config.directory.clone(), source }
        })?;
        let mut present = BTreeSet::new();
        for found in scan.found {
            match found {
                Found::Request { name, spec, status } if present.insert(name.clone()) => {
                    self.serve_one(name, &spec, status).await;
                }
                Found::Request { name, status, .. } => {
                    let message = format!(
                        "another file of this directory holds a request named {name:?} too"
                    );
                    status.refuse("DuplicateName", &message).await;
                }
                Found::Malformed { status, error } => {
                    // What it held before is kept: a slip of the pen must not detach a volume.
                    present.insert(status.name().to_owned());
                    self.refuse(&status, "InvalidRequest", &error).await;
                }
            }
        }
        self.orphans(&present, &scan.left).await?;
        for name in self.workers.names() {
            if !present.contains(&name)
                && let Some(subject) = self.workers.subject(&name)
            {
                let force = self.forced.contains(&name);
                self.workers.want(&name, Wanted::Detached { subject, force });
            }
        }
        let served = self.workers.subjects();
        for status in scan.left {
            // A worker takes its own away, when it has detached.
            if !served.contains(&status) {
                status.remove().await;
            }
        }
        Ok(())
    }

    /// Says why a file can't be served. What it asked for before goes on.
    async fn refuse(&mut self, status: &StatusFile, reason: &str, message: &str) {
        self.workers.written_over(status.name());
        status.refuse(reason, message).await;
    }

    async fn serve_one(
        &mut self,
        name: String,
        spec: &crate::crd::VolumeAttachRequestSpec,
        status: StatusFile,
    ) {
        if spec.node_name != self.config.node_name {
            let message = format!(
                "spec.nodeName is {:?}, and this node is {:?}",
                spec.node_name, self.config.node_name
            );
            self.refuse(&status, "OtherNode", &message).await;
            return;
        }
        if spec.force_detach {
            self.forced.insert(name.clone());
        } else {
            self.forced.remove(&name);
        }
        match spec.to_attach_spec(&self.config.mounts_dir.join(&name)) {
            Ok(attach) => {
                let (size_gib, subject) = (spec.size_gib.map(u64::from), status);
                let wanted = Wanted::Attached { spec: Box::new(attach), size_gib, subject };
                self.workers.want(&name, wanted);
            }
            Err(error) => {
                let message = match std::error::Error::source(&error) {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
                self.refuse(&status, error.reason(), &message).await;
            }
        }
    }

    /// Volumes that this directory asked for once and whose file went while attachd was away.
    async fn orphans(
        &mut self,
        present: &BTreeSet<String>,
        left: &[StatusFile],
    ) -> Result<(), RequestsDirError> {
        for record in self.engine.ledger().records().await? {
            match record {
                Ok(record) => {
                    if let Origin::RequestsDir(name) = &record.origin
                        && !present.contains(name)
                        && !self.workers.has(name)
                    {
                        let status = left.iter().find(|status| status.name() == name).cloned();
                        let status = status
                            .unwrap_or_else(|| StatusFile::new(&self.config.directory, name, name));
                        // What its file said last was not kept.
                        let wanted = Wanted::Detached { subject: status, force: false };
                        self.workers.want(name, wanted);
                    }
                }
                Err(error) => tracing::error!("{error}: {}", source(&error)),
            }
        }
        Ok(())
    }
}

fn source(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
