//! The one way to Cinder: every request is made, limited, repeated and logged here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Method,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use tracing::{debug, info};
use uuid::Uuid;

use super::{
    Auth, CinderError, ClientConfig, Microversion, Operation,
    answer::{Answer, REQUEST_ID_HEADER, VERSION_HEADER},
    auth::below,
    backoff::{LONGEST_PAUSE, pause},
    microversion::{InUse, NoCommonVersion},
    watch::{Asked, Heard, Watch},
    wire::{Body, VersionsAnswer},
};

/// Longest body that is read. A page of a thousand attachments with two portals each takes 1 MB.
const MAX_BODY: usize = 4 << 20;

/// Shorter than the time after which servers close an idle connection (Apache: 5 s), so that no
/// reservation is sent into a closing one.
const IDLE: Duration = Duration::from_secs(4);

/// One operation, before it has a version.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) method: Method,
    /// Below the project.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Body<'a>,
}

impl Call<'_> {
    fn needs(&self) -> Microversion {
        self.operation.needs().max(self.body.needs())
    }
}

impl Operation {
    /// The lowest version that has it.
    fn needs(self) -> Microversion {
        match self {
            Self::Complete(_) => Microversion::COMPLETE,
            Self::Discover
            | Self::ShowVolume(_)
            | Self::Reserve(_)
            | Self::Create(_)
            | Self::Update(_)
            | Self::Show(_)
            | Self::List
            | Self::Delete(_) => Microversion::ATTACHMENTS,
        }
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    http: reqwest::Client,
    auth: Auth,
    config: ClientConfig,
    version: InUse,
    watch: Option<Arc<dyn Watch>>,
}

impl Transport {
    pub(super) fn new(auth: Auth, config: ClientConfig) -> Result<Self, CinderError> {
        // reqwest finds its TLS in the process-wide default. Another part of the program may have
        // set it already: to the same, since only ring is compiled in.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("attachd/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(IDLE);
        if auth.is_loopback() {
            builder = builder.no_proxy();
        }
        if auth.is_plain_http() {
            // Where nothing is encrypted nothing is verified: a node without CA certificates will do.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| CinderError::NoHttpClient(error.into()))?;
        let version = InUse::new(config.highest_version);
        Ok(Self { http, auth, config, version, watch: None })
    }

    pub(super) fn up_to(&mut self, version: Microversion) {
        self.config.highest_version = version;
        self.version = InUse::new(version);
    }

    pub(super) fn watch(&mut self, watch: Arc<dyn Watch>) {
        self.watch = Some(watch);
    }

    /// The version that the next request is sent in.
    pub(super) fn version(&self) -> Microversion {
        self.version.get()
    }

    /// Sends a call and gives the answer of a success. Asks for the wanted version at once; only
    /// where the cloud does not understand it, looks up what it has, and asks once more.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Answer, CinderError> {
        let mut version = self.version.get();
        if version < call.needs() {
            // Lowered before; the cloud may have been upgraded since.
            version = self.negotiate(&call).await?;
        }
        let answer = self.send_repeatedly(&call, Some(version)).await?;
        if !answer.is_version_trouble() {
            return answer.success();
        }
        match self.negotiate(&call).await {
            Ok(agreed) if agreed != version => {
                self.send_repeatedly(&call, Some(agreed)).await?.success()
            }
            Err(error @ CinderError::TooOld { .. }) => Err(error),
            // It was not about the version.
            Ok(_) | Err(_) => answer.success(),
        }
    }

    async fn negotiate(&self, call: &Call<'_>) -> Result<Microversion, CinderError> {
        let operation = call.operation;
        let discover = Call {
            operation: Operation::Discover,
            method: Method::GET,
            path: String::new(),
            query: Vec::new(),
            body: Body::None,
        };
        let answer = self.send_repeatedly(&discover, None).await?.success()?;
        let offer = answer
            .json::<VersionsAnswer>()?
            .offer()
            .ok_or_else(|| answer.nonsense("it names no v3 API"))?;
        let too_old = |needs, offered| CinderError::TooOld { operation, needs, offered };
        match self.version.agree(offer) {
            Ok(version) if version < call.needs() => Err(too_old(call.needs(), version)),
            Ok(version) => {
                info!(%version, lowest = %offer.lowest, highest = %offer.highest, "agreed on a version with Cinder");
                Ok(version)
            }
            Err(NoCommonVersion::TooOld) => {
                Err(too_old(call.needs(), self.config.highest_version.min(offer.highest)))
            }
            Err(NoCommonVersion::TooNew) => Err(answer.nonsense(format!(
                "it speaks API {} and later, attachd up to {}",
                offer.lowest, self.config.highest_version
            ))),
        }
    }

    /// Sends until there is an answer that isn't a passing failure, at most `tries` times, and never
    /// longer than twice the time limit of one request.
    async fn send_repeatedly(
        &self,
        call: &Call<'_>,
        version: Option<Microversion>,
    ) -> Result<Answer, CinderError> {
        let limit = self.config.limit(call.operation);
        let deadline = Instant::now() + limit * 2;
        let repeats =
            if call.operation.is_repeatable() { self.config.tries.saturating_sub(1) } else { 0 };
        let request_id = format!("req-{}", Uuid::new_v4());
        let mut done = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = self.send_once(call, version, &request_id, limit.min(left)).await;
            let Some(wish) = wish_to_repeat(&outcome) else { return outcome };
            let pause = wish.max(pause(self.config.first_pause, done));
            let left = deadline.saturating_duration_since(Instant::now());
            // Too short a last try would only hide what happened behind its own time-out.
            if done == repeats || pause > LONGEST_PAUSE || pause + limit / 4 > left {
                return outcome;
            }
            done += 1;
            debug!(operation = %call.operation, repeat = done, ?pause, "asking Cinder again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        version: Option<Microversion>,
        request_id: &str,
        limit: Duration,
    ) -> Result<Answer, CinderError> {
        let operation = call.operation;
        let access = self.auth.access().await?;
        let mut url = match version {
            Some(_) => below(&access.project, &call.path),
            None => access.versions,
        };
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let unusable = |what: &str| CinderError::Configuration { what: what.to_owned() };
        let mut token = HeaderValue::from_str(access.token.expose())
            .map_err(|_| unusable("the token can't be an HTTP header"))?;
        token.set_sensitive(true);
        let mut request = self
            .http
            .request(call.method.clone(), url.clone())
            .timeout(limit)
            .header(ACCEPT, "application/json")
            .header(REQUEST_ID_HEADER, request_id)
            .header("x-auth-token", token);
        if let Some(version) = version {
            request = request.header(VERSION_HEADER, format!("volume {version}"));
            let body = call.body.render(version);
            let body = body.map_err(|_| unusable("the connector can't be written as JSON"))?;
            if let Some(body) = body {
                request = request.header(CONTENT_TYPE, "application/json").body(body);
            }
        }
        let request = request.build().map_err(|_| unusable("the request can't be made"))?;
        if let Some(watch) = &self.watch {
            watch.asked(&Asked::of(&request));
        }
        let started = Instant::now();
        let received = receive(&self.http, request).await;
        let took = started.elapsed();
        let ms = took.as_millis();
        let (method, path) = (&call.method, url.path().to_owned());
        let outcome = match received {
            Ok((status, headers, body)) => {
                let answer = Answer { operation, asked: version, status, headers, body };
                debug!(%method, path, status = status.as_u16(), request_id = answer.request_id(), ms, "Cinder answered");
                Ok(answer)
            }
            Err(source) => {
                url.set_query(None);
                let (unsent, late) = (source.is_connect(), source.is_timeout());
                let (url, source) = (url.to_string(), source.without_url().into());
                let request_id = request_id.to_owned();
                let error = if unsent {
                    CinderError::Unreachable { operation, url, source }
                } else if late {
                    CinderError::TimedOut { operation, url, request_id, limit, source }
                } else {
                    CinderError::Disconnected { operation, url, request_id, source }
                };
                debug!(%method, path, request_id = error.request_id(), ms, reason = error.reason(), "no answer of Cinder");
                Err(error)
            }
        };
        if let Some(watch) = &self.watch {
            watch.heard(&Heard::of(method, &path, &outcome, took));
        }
        outcome
    }
}

type Received = (reqwest::StatusCode, reqwest::header::HeaderMap, Option<Vec<u8>>);

/// Reads the answer; a body that is too long is left unread.
async fn receive(
    http: &reqwest::Client,
    request: reqwest::Request,
) -> Result<Received, reqwest::Error> {
    let mut response = http.execute(request).await?;
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BODY {
            return Ok((status, headers, None));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, headers, Some(body)))
}

/// Whether to try again, and how long Cinder wants us to wait at least.
fn wish_to_repeat(outcome: &Result<Answer, CinderError>) -> Option<Duration> {
    match outcome {
        Ok(answer) if answer.is_passing() => Some(answer.retry_after().unwrap_or_default()),
        Err(
            CinderError::Unreachable { .. }
            | CinderError::Disconnected { .. }
            | CinderError::TimedOut { .. },
        ) => Some(Duration::ZERO),
        Ok(_) | Err(_) => None,
    }
}
