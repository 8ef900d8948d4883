//! The one way to Cinder: every request is made, limited, repeated and logged here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Method, RequestBuilder, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use tracing::{debug, info};
use uuid::Uuid;

use super::{
    Auth, CinderError, ClientConfig, Microversion, Operation,
    answer::{Answer, REQUEST_ID_HEADER, VERSION_HEADER},
    auth::{Access, below},
    microversion::{InUse, NoCommonVersion},
    redact,
    wire::{Body, VersionsAnswer},
};
use crate::http::{
    Asked, Heard, Http, Watch,
    backoff::{LONGEST_PAUSE, pause},
    receive,
};

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
    http: Http,
    auth: Auth,
    config: ClientConfig,
    version: InUse,
}

impl Transport {
    pub(super) fn new(auth: Auth, config: ClientConfig) -> Result<Self, CinderError> {
        let http = Http::new(&config.tls, config.connect_timeout, "Cinder")?;
        if let Some(endpoint) = auth.endpoint() {
            http.client(endpoint)?;
        }
        let version = InUse::new(config.highest_version);
        Ok(Self { http, auth, config, version })
    }

    pub(super) fn up_to(&mut self, version: Microversion) {
        self.config.highest_version = version;
        self.version = InUse::new(version);
    }

    pub(super) fn watch(&self, watch: &Arc<dyn Watch>) {
        self.http.watched_by(watch);
        self.auth.watch(watch);
    }

    /// The version that the next request is sent in.
    pub(super) fn version(&self) -> Microversion {
        self.version.get()
    }

    /// Whether our token goes along as a service's.
    pub(super) async fn is_service(&self) -> Result<bool, CinderError> {
        self.auth.is_service().await
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
            let outcome = self.send_as_us(call, version, &request_id, limit.min(left)).await;
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

    /// Sends with a token, and where that is refused once more with another one: also a
    /// reservation, since a 401 means that nothing was done.
    async fn send_as_us(
        &self,
        call: &Call<'_>,
        version: Option<Microversion>,
        request_id: &str,
        limit: Duration,
    ) -> Result<Answer, CinderError> {
        let access = self.auth.access(None).await?;
        let token = access.token.clone();
        let started = Instant::now();
        let answer = self.send_once(call, version, request_id, limit, access).await?;
        if answer.status != StatusCode::UNAUTHORIZED || token.is_none() {
            return Ok(answer);
        }
        let left = limit.saturating_sub(started.elapsed());
        debug!(operation = %call.operation, "Cinder refused the token: asking for another one");
        let access = self.auth.access(token.as_ref()).await?;
        self.send_once(call, version, request_id, left, access).await
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        version: Option<Microversion>,
        request_id: &str,
        limit: Duration,
        access: Access,
    ) -> Result<Answer, CinderError> {
        let operation = call.operation;
        let mut url = match version {
            Some(_) => below(&access.project, &call.path),
            None => access.versions,
        };
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let unusable = |what: &str| CinderError::Configuration { what: what.to_owned() };
        let http = self.http.client(&url)?;
        let mut request = http
            .request(call.method.clone(), url.clone())
            .timeout(limit)
            .header(ACCEPT, "application/json")
            .header(REQUEST_ID_HEADER, request_id)
            .headers(access.headers);
        if let Some((user, password)) = access.basic {
            request = request.basic_auth(user, Some(password.expose()));
        }
        if let Some(version) = version {
            request = request.header(VERSION_HEADER, format!("volume {version}"));
            let body = call.body.render(version);
            let body = body.map_err(|_| unusable("the connector can't be written as JSON"))?;
            if let Some(body) = body {
                request = request.header(CONTENT_TYPE, "application/json").body(body);
            }
        }
        let request = request.build().map_err(|_| unusable("the request can't be made"))?;
        self.http.asked(&Asked::of(&request, request.body().map(redact::shown_of)));
        let started = Instant::now();
        let received = receive(RequestBuilder::from_parts(http.clone(), request)).await;
        let took = started.elapsed();
        let ms = took.as_millis();
        let (method, path) = (&call.method, url.path().to_owned());
        let outcome = match received {
            Ok(received) => {
                let answer = Answer::new(operation, version, received);
                debug!(%method, path, status = answer.status.as_u16(), request_id = answer.request_id(), ms, "Cinder answered");
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
        let (answered, request_id, date) = match &outcome {
            Ok(answer) => (Ok(answer.status.as_u16()), answer.request_id(), answer.date()),
            Err(error) => (Err(error.reason()), error.request_id(), None),
        };
        let (method, path) = (method.as_str(), path.as_str());
        self.http.heard(&Heard { method, path, outcome: answered, request_id, date, took });
        outcome
    }
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
