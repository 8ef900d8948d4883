//! Requests from a directory of YAML files, as kubelet reads static pods: `NAME.yaml` holds a
//! `VolumeAttachRequest`, attachd writes `NAME.status.yaml` beside it, and removing the file detaches.
//!
//! ```text
//!   inotify ─► scan (whole directory) ─► one worker a request ─► engine ─► status file
//! ```

mod files;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    attach::{Engine, LedgerError, Origin},
    cinder::BlockStorage,
    health::Vitals,
    host::Host,
    requests_dir::{
        files::{Found, Scan, StatusFile},
        worker::{Wanted, Wish, Worker},
    },
};

/// Events may be lost (the queue is bounded), so the directory is looked at now and then anyway.
const FALLBACK_SCAN: Duration = Duration::from_mins(1);

/// Editors and `cp` make several events of one change.
const SETTLE: Duration = Duration::from_millis(20);

/// The name of the directory's readiness check.
pub const CHECK: &str = "requests-dir";

/// How often the serving loop's heart beats at least, as long as a scan takes no time.
pub const BEAT: Duration = FALLBACK_SCAN;

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct RequestsDirConfig {
    /// The directory.
    pub directory: PathBuf,
    /// This node's name: requests for other nodes are not served.
    pub node_name: String,
    /// Where requests without a mount path are mounted, each under its name.
    pub mounts_dir: PathBuf,
    /// How many requests are worked on at once.
    pub concurrency: usize,
    /// The longest pause between two tries of one request.
    pub longest_pause: Duration,
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
    /// The ledger.
    #[error("could not read the ledger")]
    Ledger(#[from] LedgerError),
}

struct Handle {
    wish: watch::Sender<Wish>,
    /// Ends the wish.
    over: watch::Sender<bool>,
    /// The status that the worker writes.
    status: StatusFile,
    /// The status was written over since, because the file could not be served.
    refused: bool,
}

/// Serves a directory of requests.
pub struct RequestsDir<H, C> {
    engine: Arc<Engine<H, C>>,
    config: RequestsDirConfig,
    vitals: Vitals,
    permits: Arc<Semaphore>,
    handles: BTreeMap<String, Handle>,
    workers: JoinSet<String>,
}

impl<H: Host + 'static, C: BlockStorage + 'static> RequestsDir<H, C> {
    /// A server; nothing happens yet.
    pub fn new(engine: Arc<Engine<H, C>>, config: RequestsDirConfig, vitals: Vitals) -> Self {
        let permits = Arc::new(Semaphore::new(config.concurrency));
        Self { engine, config, vitals, permits, handles: BTreeMap::new(), workers: JoinSet::new() }
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
        let inotify = Inotify::init().map_err(io("watching"))?;
        // Subscribed before the first scan, so that no change falls between the two.
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
        inotify.watches().add(&directory, mask | WatchMask::ONLYDIR).map_err(io("watching"))?;
        let mut events = inotify.into_event_stream([0; 4096]).map_err(io("watching"))?;
        self.scan().await?;
        self.vitals.readiness.set(CHECK, Ok(()));
        tracing::info!(directory = %directory.display(), requests = self.handles.len(), "serving requests");
        loop {
            self.vitals.heartbeat.beat();
            tokio::select! {
                Ok(_) = stop.wait_for(|stop| *stop) => break,
                // Its request may have come back while it ended.
                Some(ended) = self.workers.join_next() => self.worker_ended(ended),
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
        for handle in self.handles.values_mut() {
            handle.send(Wanted::Shutdown);
        }
        // Steps under way may take minutes.
        while !matches!(timeout(BEAT, self.workers.join_next()).await, Ok(None)) {
            self.vitals.heartbeat.beat();
        }
        Ok(())
    }

    fn worker_ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(name) => {
                self.handles.remove(&name);
            }
            Err(error) => {
                tracing::error!("a request's worker ended: {error}");
                // Its handle can't be told by the error; all dead ones are taken away.
                self.handles.retain(|_, handle| !handle.wish.is_closed());
            }
        }
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
        for (name, handle) in &mut self.handles {
            if !present.contains(name) {
                handle.send(Wanted::Detached);
            }
        }
        for status in scan.left {
            // A worker takes its own away, when it has detached.
            if self.handles.values().all(|handle| handle.status != status) {
                status.remove().await;
            }
        }
        Ok(())
    }

    /// Says why a file can't be served. What it asked for before goes on.
    async fn refuse(&mut self, status: &StatusFile, reason: &str, message: &str) {
        if let Some(handle) = self.handles.get_mut(status.name()) {
            handle.refused = true;
        }
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
        match spec.to_attach_spec(&self.config.mounts_dir.join(&name)) {
            Ok(spec) => {
                let wanted = Wanted::Attached { spec: Box::new(spec), status: status.clone() };
                match self.handles.get_mut(&name) {
                    Some(handle) => {
                        handle.status = status;
                        handle.send(wanted);
                    }
                    None => self.spawn(name, wanted, status),
                }
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
                    if let Origin::RequestsDir(name) = record.origin
                        && !present.contains(&name)
                        && !self.handles.contains_key(&name)
                    {
                        let status = left.iter().find(|status| status.name() == name).cloned();
                        let status = status.unwrap_or_else(|| {
                            StatusFile::new(&self.config.directory, &name, &name)
                        });
                        self.spawn(name, Wanted::Detached, status);
                    }
                }
                Err(error) => tracing::error!("{error}: {}", source(&error)),
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, wanted: Wanted, status: StatusFile) {
        let (over, is_over) = watch::channel(false);
        let (wish, receiver) = watch::channel(Wish { wanted, over: is_over });
        let worker = Worker {
            engine: Arc::clone(&self.engine),
            name: name.clone(),
            wish: receiver,
            permits: Arc::clone(&self.permits),
            longest_pause: self.config.longest_pause,
            status: status.clone(),
            metrics: self.vitals.metrics.clone(),
        };
        self.handles.insert(name, Handle { wish, over, status, refused: false });
        self.workers.spawn(worker.run());
    }
}

impl Handle {
    /// Tells the worker; one that is busy with something else stops at the next safe point.
    fn send(&mut self, wanted: Wanted) {
        let again = std::mem::take(&mut self.refused);
        if !again && self.wish.borrow().wanted == wanted {
            return;
        }
        let (over, is_over) = watch::channel(false);
        self.wish.send_replace(Wish { wanted, over: is_over });
        std::mem::replace(&mut self.over, over).send_replace(true);
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
