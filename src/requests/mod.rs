//! Requests, wherever they come from: one worker for each brings it about, and its source is told
//! what became of it.
//!
//! ```text
//!   requests directory ─┐                                       ┌─► status file
//!                       ├─► one worker a request ─► engine ─► Subject
//!   API server ─────────┘          ▲                            └─► status, events, finalizer
//!                                  │ what is attached is looked after (care)
//!   kernel and udev events ─► lookout: one look for all
//! ```

mod care;
mod gone;
mod lookout;
mod worker;

use std::{collections::BTreeMap, fmt::Debug, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    attach::{Engine, Origin, Record},
    cinder::BlockStorage,
    health::Heartbeat,
    host::Host,
    metrics::Metrics,
    model::{AttachSpec, Retry},
    projection::Standing,
};
pub use lookout::Lookout;
use worker::{Wish, Worker};

/// How often a source's loop tells that it goes on, at least.
pub const BEAT: Duration = Duration::from_mins(1);

/// Who asks, and is told. Equal ones need not be served again.
pub trait Subject: Debug + Clone + PartialEq + Send + Sync + 'static {
    /// Under which the ledger keeps what the request attaches.
    fn origin(&self) -> Origin;

    /// Asked before anything is done for the request; `record` is what was done for it already.
    ///
    /// # Errors
    /// It must not be served now.
    fn admit(&self, record: Option<&Record>) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Says where the request stands.
    ///
    /// # Errors
    /// The source can't be reached: the same is to be said again later.
    fn report(&self, standing: Standing<'_>) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Whether a request that is gone is to be detached: `false` leaves everything as it is.
    ///
    /// # Errors
    /// The source can't be reached.
    fn wants_detach(&self) -> impl Future<Output = Result<bool, Refused>> + Send;

    /// The request is gone, and nothing is left to do for it.
    ///
    /// # Errors
    /// The source can't be reached: it must be said again later.
    fn release(&self, end: &End) -> impl Future<Output = Result<(), Refused>> + Send;
}

/// What a source of requests objects to, or can't do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The `CamelCase` word that conditions, events and metrics use.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// When to try again.
    pub retry: Retry,
}

/// What became of the volume of a request that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It stays attached.
    Kept,
    /// It is detached, and everything was written.
    Detached,
    /// It is detached, and what was not written is given up.
    GivenUp {
        /// Why.
        why: String,
    },
}

/// What is to be brought about.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted<S> {
    /// The volume is attached.
    Attached {
        /// How.
        spec: Box<AttachSpec>,
        /// The size that it is grown to, once Cinder and all paths state it.
        size_gib: Option<u64>,
        /// Who is told.
        subject: S,
    },
    /// What the request attached is detached.
    Detached {
        /// Where that can't be done otherwise, what can't be written is given up.
        force: bool,
        /// Who is told.
        subject: S,
    },
    /// The request can't be served as it is; what it attached before is kept.
    Told {
        /// Why.
        refused: Refused,
        /// Who is told.
        subject: S,
    },
    /// The request is no more. What Cinder has its attachment no more for leaves the node; else all stays
    /// as it is. A new request of the name is served after that.
    Gone {
        /// Under which the ledger has what it attached.
        origin: Origin,
    },
    /// Everything stays as it is, and the worker ends.
    Kept,
}

/// The workers of one source of requests, one for each request's name.
pub struct Workers<H, C, S> {
    engine: Arc<Engine<H, C>>,
    permits: Arc<Semaphore>,
    metrics: Metrics,
    longest_pause: Duration,
    lookout: Lookout,
    heal: bool,
    handles: BTreeMap<String, Handle<S>>,
    tasks: JoinSet<(String, watch::Receiver<Wish<S>>)>,
}

struct Handle<S> {
    wish: watch::Sender<Wish<S>>,
    /// Ends the wish.
    over: watch::Sender<bool>,
    /// What the worker said last may have been written over.
    stale: bool,
    /// What is wanted once the worker has seen to what an earlier request of the name left.
    next: Option<Wanted<S>>,
}

impl<H: Host + 'static, C: BlockStorage + 'static, S: Subject> Workers<H, C, S> {
    /// No workers yet. `permits` are shared by all sources; `longest_pause` lies between two tries of
    /// one request at most. What the `lookout` sees is told; where `heal` is set, what is missing of an
    /// attached volume is brought back.
    pub fn new(
        engine: Arc<Engine<H, C>>,
        permits: Arc<Semaphore>,
        metrics: Metrics,
        longest_pause: Duration,
        lookout: Lookout,
        heal: bool,
    ) -> Self {
        let (handles, tasks) = (BTreeMap::new(), JoinSet::new());
        Self { engine, permits, metrics, longest_pause, lookout, heal, handles, tasks }
    }

    /// The names of all requests with a worker.
    pub fn names(&self) -> Vec<String> {
        self.handles.keys().cloned().collect()
    }

    /// Whether a request has a worker.
    pub fn has(&self, name: &str) -> bool {
        self.handles.contains_key(name)
    }

    /// Who is told of a request.
    pub fn subject(&self, name: &str) -> Option<S> {
        self.handles.get(name)?.subject()
    }

    /// All of [`Self::subject`].
    pub fn subjects(&self) -> Vec<S> {
        self.handles.values().filter_map(Handle::subject).collect()
    }

    /// Tells a request's worker what is wanted; one that is busy with something else stops at the next
    /// safe point.
    pub fn want(&mut self, name: &str, wanted: Wanted<S>) {
        match self.handles.get_mut(name) {
            Some(handle) => handle.send(wanted),
            None if matches!(wanted, Wanted::Kept) => {}
            None => self.spawn(name.to_owned(), wanted),
        }
    }

    /// Another status was written over the worker's: it is to say its own again when it is asked again.
    pub fn written_over(&mut self, name: &str) {
        if let Some(handle) = self.handles.get_mut(name) {
            handle.stale = true;
        }
    }

    /// Whether there is no worker.
    pub fn is_idle(&self) -> bool {
        self.handles.is_empty()
    }

    /// Waits for a worker to end; for ever, where there is none.
    pub async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok((name, wish))) => {
                let Some(handle) = self.handles.remove(&name) else { return };
                // What was wished while it ended, it has not seen.
                let unseen = wish.has_changed().unwrap_or(false);
                let unseen = unseen.then(|| handle.wish.borrow().wanted.clone());
                for wanted in unseen.into_iter().chain(handle.next) {
                    self.want(&name, wanted);
                }
            }
            Some(Err(error)) => {
                tracing::error!("a request's worker ended: {error}");
                // Its handle can't be told by the error; all dead ones are taken away.
                self.handles.retain(|_, handle| !handle.wish.is_closed());
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until what is under way has reached a safe point. What is attached stays so.
    pub async fn shut_down(mut self, heartbeat: &Heartbeat) {
        for handle in self.handles.values_mut() {
            handle.send(Wanted::Kept);
        }
        // Steps under way may take minutes.
        while !matches!(timeout(BEAT, self.tasks.join_next()).await, Ok(None)) {
            heartbeat.beat();
        }
    }

    fn spawn(&mut self, name: String, wanted: Wanted<S>) {
        let (over, is_over) = watch::channel(false);
        let (wish, receiver) = watch::channel(Wish { wanted, over: is_over });
        let worker = Worker {
            engine: Arc::clone(&self.engine),
            name: name.clone(),
            wish: receiver,
            permits: Arc::clone(&self.permits),
            metrics: self.metrics.clone(),
            longest_pause: self.longest_pause,
            lookout: self.lookout.clone(),
            heal: self.heal,
        };
        self.handles.insert(name, Handle { wish, over, stale: false, next: None });
        self.tasks.spawn(worker.run());
    }
}

impl<S: Subject> Handle<S> {
    fn subject(&self) -> Option<S> {
        match self.next.as_ref().unwrap_or(&self.wish.borrow().wanted) {
            Wanted::Attached { subject, .. }
            | Wanted::Detached { subject, .. }
            | Wanted::Told { subject, .. } => Some(subject.clone()),
            Wanted::Gone { .. } | Wanted::Kept => None,
        }
    }

    fn send(&mut self, wanted: Wanted<S>) {
        let again = std::mem::take(&mut self.stale);
        self.next = None;
        let is_clearing = matches!(self.wish.borrow().wanted, Wanted::Gone { .. });
        if is_clearing && !matches!(wanted, Wanted::Gone { .. } | Wanted::Kept) {
            self.next = Some(wanted);
            return;
        }
        if !again && self.wish.borrow().wanted == wanted {
            return;
        }
        let (over, is_over) = watch::channel(false);
        self.wish.send_replace(Wish { wanted, over: is_over });
        std::mem::replace(&mut self.over, over).send_replace(true);
    }
}
