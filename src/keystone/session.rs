use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{
    RequestBuilder, StatusCode,
    header::{ACCEPT, HeaderMap, LOCATION},
};
use serde_json::Value;
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking, time::timeout};
use tracing::{debug, info};

use super::{Credentials, KeystoneError, Token};
use crate::http::{
    Asked, Cause, Heard, Http, HttpError, Received, Tls, Watch, backoff::pause, one_line, receive,
};

/// Files are read in this time, or the credentials stay what they are.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// Limits of a [`Session`].
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// For a connection to be there.
    pub connect_timeout: Duration,
    /// For one request, until its answer is read. A token is there, or isn't, within twice that.
    pub request_timeout: Duration,
    /// Certificates.
    pub tls: Tls,
    /// How often Keystone is asked where it is away or too busy.
    pub tries: u32,
    /// The pause after the first try; it doubles from there.
    pub first_pause: Duration,
    /// How long before its end a token is renewed (or in the last quarter of a shorter life).
    pub margin: Duration,
    /// How long a failure answers for Keystone; it doubles with each one that follows.
    pub first_rest: Duration,
    /// The longest of these.
    pub longest_rest: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            tls: Tls::default(),
            tries: 3,
            first_pause: Duration::from_millis(250),
            margin: Duration::from_mins(5),
            first_rest: Duration::from_secs(1),
            longest_rest: Duration::from_mins(1),
        }
    }
}

/// Reads the credentials anew; `None` where they can't be read. May block.
pub type Reload = Arc<dyn Fn() -> Option<Credentials> + Send + Sync>;

/// One token for all callers.
pub struct Session {
    http: Http,
    config: SessionConfig,
    reload: Option<Reload>,
    current: Mutex<Option<Arc<Token>>>,
    /// Held while a token is asked for, so that it is asked for once.
    renewal: AsyncMutex<Renewal>,
}

struct Renewal {
    credentials: Credentials,
    failure: Option<Failure>,
}

/// What went wrong last, and for how long nobody asks again.
struct Failure {
    error: Arc<KeystoneError>,
    until: Instant,
    rest: Duration,
}

impl Session {
    /// A session; nothing is sent yet. Where there is a way to read the credentials anew, that is
    /// done when Keystone does not take them.
    ///
    /// # Errors
    /// [`HttpError`]: certificates can't be read.
    pub fn new(
        credentials: Credentials,
        reload: Option<Reload>,
        config: SessionConfig,
    ) -> Result<Self, HttpError> {
        let http = Http::new(&config.tls, config.connect_timeout, "Keystone")?;
        http.client(&credentials.auth_url)?;
        let renewal = AsyncMutex::new(Renewal { credentials, failure: None });
        Ok(Self { http, config, reload, current: Mutex::new(None), renewal })
    }

    /// A token that is still good; another one than that which was refused.
    ///
    /// # Errors
    /// [`KeystoneError`], shared by all who waited for the same answer.
    pub async fn token(
        &self,
        refused: Option<&Arc<Token>>,
    ) -> Result<Arc<Token>, Arc<KeystoneError>> {
        let usable = self.usable(refused);
        let mut renewal = match &usable {
            Some(token) if !token.ends_within(self.config.margin) => return Ok(Arc::clone(token)),
            // Somebody renews it already; it is good until then.
            Some(token) => match self.renewal.try_lock() {
                Ok(renewal) => renewal,
                Err(_) => return Ok(Arc::clone(token)),
            },
            None => self.renewal.lock().await,
        };
        // Whoever was before us may have got it.
        if let Some(token) = self.usable(refused)
            && !token.ends_within(self.config.margin)
        {
            return Ok(token);
        }
        let got = match renewal.failure.as_ref().filter(|last| Instant::now() < last.until) {
            Some(last) => Err(Arc::clone(&last.error)),
            None => self.renew(&mut renewal).await,
        };
        match (got, usable) {
            // Too early a renewal that failed: there is time to try again.
            (Err(_), Some(token)) if !token.has_ended() => Ok(token),
            (got, _) => got,
        }
    }

    /// Lets somebody look on at the requests.
    pub fn watched_by(&self, watch: &Arc<dyn Watch>) {
        self.http.watched_by(watch);
    }

    /// The token of the last answer, if there was one.
    pub fn last_token(&self) -> Option<Arc<Token>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn usable(&self, refused: Option<&Arc<Token>>) -> Option<Arc<Token>> {
        self.last_token().filter(|token| {
            !token.has_ended() && !refused.is_some_and(|refused| Arc::ptr_eq(refused, token))
        })
    }

    async fn renew(&self, renewal: &mut Renewal) -> Result<Arc<Token>, Arc<KeystoneError>> {
        let mut got = self.authenticate(&renewal.credentials).await;
        if got.is_err()
            && let Some(credentials) = self.reloaded(&renewal.credentials).await
        {
            info!(who = %credentials, "the credentials were changed: trying the new ones");
            renewal.credentials = credentials;
            got = self.authenticate(&renewal.credentials).await;
        }
        match got {
            Ok(token) => {
                let token = Arc::new(token);
                renewal.failure = None;
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                *current = Some(Arc::clone(&token));
                Ok(token)
            }
            Err(error) => {
                let error = Arc::new(error);
                let rest = match &renewal.failure {
                    Some(last) => (last.rest * 2).min(self.config.longest_rest),
                    None => self.config.first_rest,
                };
                info!(reason = error.reason(), ?rest, "no token: {error}");
                let until = Instant::now() + rest;
                renewal.failure = Some(Failure { error: Arc::clone(&error), until, rest });
                Err(error)
            }
        }
    }

    /// The credentials as they are now, if they are others.
    async fn reloaded(&self, known: &Credentials) -> Option<Credentials> {
        let reload = Arc::clone(self.reload.as_ref()?);
        let read = timeout(RELOAD_LIMIT, spawn_blocking(move || reload())).await.ok()?.ok()?;
        read.filter(|credentials| credentials != known)
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Token, KeystoneError> {
        let limit = self.config.request_timeout;
        let deadline = Instant::now() + limit * 2;
        let mut done = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let got = self.ask(credentials, limit.min(left)).await;
            let pause = pause(self.config.first_pause, done - 1);
            let left = deadline.saturating_duration_since(Instant::now());
            match got {
                // Too short a last try would only hide what happened behind its own time-out.
                Err(error)
                    if error.is_passing()
                        && done < self.config.tries
                        && pause + limit / 4 <= left =>
                {
                    debug!(reason = error.reason(), repeat = done, ?pause, "asking Keystone again");
                }
                got => return got,
            }
            done += 1;
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(
        &self,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<Token, KeystoneError> {
        let url = credentials.tokens_url();
        let http = self.http.client(&url)?;
        let body = credentials.body();
        let request = http
            .post(url.clone())
            .timeout(limit)
            .header(ACCEPT, "application/json")
            .json(body.expose())
            .build();
        let request = request.map_err(|source| KeystoneError::NoAnswer {
            url: url.to_string(),
            limit,
            source: source.without_url().into(),
        })?;
        self.http.asked(&Asked::of(&request, Some(body.to_string())));
        let asked = Instant::now();
        let received = receive(RequestBuilder::from_parts(http.clone(), request)).await;
        let took = asked.elapsed();
        self.http.heard(&Heard {
            method: "POST",
            path: url.path(),
            outcome: match &received {
                Ok(received) => Ok(received.status.as_u16()),
                Err(_) => Err("KeystoneUnreachable"),
            },
            request_id: received.as_ref().ok().and_then(|received| request_id(&received.headers)),
            // Cinder's is of interest.
            date: None,
            took,
        });
        let (url, ms) = (url.to_string(), took.as_millis());
        let received = received.map_err(|source| {
            debug!(url, ms, "no answer of Keystone");
            let unsent = source.is_connect();
            let source: Cause = source.without_url().into();
            if unsent {
                KeystoneError::Unreachable { url: url.clone(), source }
            } else {
                KeystoneError::NoAnswer { url: url.clone(), limit, source }
            }
        })?;
        let request_id = request_id(&received.headers).unwrap_or_default();
        debug!(url, status = received.status.as_u16(), request_id, ms, who = %credentials, "Keystone answered");
        if received.status.is_success() {
            let body = received.body.as_deref();
            let body = body.ok_or("it is longer than attachd reads");
            return body
                .and_then(|body| Token::read(&received.headers, body, asked))
                .map_err(|what| KeystoneError::Nonsense { url, what: what.to_owned() });
        }
        Err(refusal(&received, credentials, url))
    }
}

fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-openstack-request-id")?.to_str().ok().filter(|text| text.len() <= 200)
}

fn refusal(received: &Received, credentials: &Credentials, url: String) -> KeystoneError {
    let who = credentials.to_string();
    let status = received.status.as_u16();
    let said: Option<Value> = received.body.as_deref().and_then(|b| serde_json::from_slice(b).ok());
    let message = said.as_ref().and_then(|said| said["error"]["message"].as_str());
    let mut answer = match message {
        // What it complains of may be the secret.
        Some(message) if credentials.secret().is_empty() => one_line(message),
        Some(message) => one_line(&message.replace(credentials.secret(), "<redacted>")),
        None => String::new(),
    };
    if answer.is_empty() {
        "no reason given".clone_into(&mut answer);
    }
    let request_id = request_id(&received.headers).map(|id| format!(", {id}")).unwrap_or_default();
    let answer = format!("{} (HTTP {status}{request_id})", answer.trim_end_matches('.'));
    let nonsense = |what: String| KeystoneError::Nonsense { url: url.clone(), what };
    match received.status {
        StatusCode::UNAUTHORIZED => KeystoneError::Unauthorized { url, who, answer },
        // Of a token to get tokens with that has ended, or was revoked.
        StatusCode::NOT_FOUND if message.is_some() => {
            KeystoneError::Unauthorized { url, who, answer }
        }
        StatusCode::TOO_MANY_REQUESTS => KeystoneError::Failed { url, status, answer },
        _ if received.status.is_server_error() => KeystoneError::Failed { url, status, answer },
        _ if received.status.is_redirection() => {
            let target = received.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let target = one_line(target.unwrap_or_default());
            nonsense(format!("it redirects to {target:?}, which attachd does not follow"))
        }
        StatusCode::NOT_FOUND => nonsense(format!("there is no such address: {answer}")),
        _ if message.is_none() => nonsense(format!("its answer is not Keystone's: {answer}")),
        _ => KeystoneError::Refused { url, who, answer },
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("token", &self.last_token()).finish_non_exhaustive()
    }
}
