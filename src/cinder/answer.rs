//! An HTTP answer, and what it means: Cinder's three shapes of error bodies, and everything that
//! stands between us and Cinder and answers in its place.

use std::time::Duration;

use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER},
};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::{Answered, CinderError, Microversion, Operation};
use crate::http::{Received, one_line};

pub(super) const VERSION_HEADER: HeaderName = HeaderName::from_static("openstack-api-version");
pub(super) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-openstack-request-id");
const COMPUTE_REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-compute-request-id");

/// What came back, whole and bounded.
pub(super) struct Answer {
    pub(super) operation: Operation,
    /// The version that was asked for; none for discovery.
    pub(super) asked: Option<Microversion>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `None` where it was longer than the limit.
    pub(super) body: Option<Vec<u8>>,
}

/// One of Cinder's error bodies.
struct Fault {
    /// `badRequest`, `itemNotFound`, …; `error` comes from Keystone's middleware, none from the router.
    name: Option<String>,
    message: String,
}

impl Answer {
    pub(super) fn new(
        operation: Operation,
        asked: Option<Microversion>,
        Received { status, headers, body }: Received,
    ) -> Self {
        Self { operation, asked, status, headers, body }
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().filter(|text| text.len() <= 200)
    }

    pub(super) fn request_id(&self) -> Option<&str> {
        self.header(&REQUEST_ID_HEADER).or_else(|| self.header(&COMPUTE_REQUEST_ID_HEADER))
    }

    /// Cinder's clock, or its proxy's.
    pub(super) fn date(&self) -> Option<&str> {
        self.header(&DATE)
    }

    /// Only as seconds; Cinder sends no dates.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.header(&RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
    }

    /// Whether trying again may help, by the status alone.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.status.as_u16(), 429 | 502 | 503 | 504)
    }

    fn bytes(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    fn fault(&self) -> Option<Fault> {
        let value: Value = serde_json::from_slice(self.bytes()).ok()?;
        let top = value.as_object()?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(one_line);
        if let Some(message) = text(top.get("message")) {
            return Some(Fault { name: None, message });
        }
        let (name, inner) = top.iter().next().filter(|_| top.len() == 1)?;
        let message = text(inner.get("message"))?;
        Some(Fault { name: Some(name.clone()), message })
    }

    /// What an error may show of this answer.
    fn answered(&self) -> Answered {
        Answered {
            operation: self.operation,
            status: self.status.as_u16(),
            message: self.fault().map(|fault| fault.message).unwrap_or_default(),
            request_id: self.request_id().map(str::to_owned),
        }
    }

    pub(super) fn nonsense(&self, what: impl Into<String>) -> CinderError {
        CinderError::Nonsense { what: what.into(), answered: Box::new(self.answered()) }
    }

    /// Whether a 404 is Cinder's own about the object, and not the router's, a proxy's or a web
    /// server's: only then "gone" is true. Cinder names the id, or at least speaks our version.
    pub(super) fn is_genuine_not_found(&self) -> bool {
        let Some(fault) = self.fault().filter(|f| f.name.as_deref() == Some("itemNotFound")) else {
            return false;
        };
        self.operation.object().is_some_and(|id| fault.message.contains(&id))
            || (self.asked.is_some() && self.spoken() == self.asked)
    }

    /// The version that the answer says it is written in.
    fn spoken(&self) -> Option<Microversion> {
        self.header(&VERSION_HEADER)?.strip_prefix("volume ")?.trim().parse().ok()
    }

    /// Whether it may come from a Cinder that did not understand the version we asked for.
    pub(super) fn is_version_trouble(&self) -> bool {
        match self.status {
            StatusCode::NOT_ACCEPTABLE => true,
            StatusCode::NOT_FOUND => !self.is_genuine_not_found(),
            _ => false,
        }
    }

    /// Passes a success on, and makes an error of everything else.
    pub(super) fn success(self) -> Result<Self, CinderError> {
        if self.body.is_none() {
            return Err(self.nonsense("it is longer than attachd reads"));
        }
        if self.status.is_success() { Ok(self) } else { Err(self.refusal()) }
    }

    /// Before release 22 (seen with 21) Cinder says 500 where it refuses an update.
    fn wraps_a_refusal(&self) -> bool {
        const WRAPPED: &str = "Unable to update attachment.(Invalid ";
        matches!(self.operation, Operation::Update(_))
            && self.fault().is_some_and(|fault| fault.message.starts_with(WRAPPED))
    }

    fn refusal(&self) -> CinderError {
        let answered = Box::new(self.answered());
        // A status means what Cinder means by it only where Cinder gave it.
        let foreign = self.fault().is_none();
        match self.status.as_u16() {
            401 => CinderError::Unauthorized(answered),
            403 => CinderError::Forbidden(answered),
            404 if self.is_genuine_not_found() => CinderError::NotFound(answered),
            413 | 429 | 503 => {
                CinderError::Overloaded { retry_after: self.retry_after(), answered }
            }
            500 if self.wraps_a_refusal() => CinderError::Conflict(answered),
            500.. => CinderError::ServerFault(answered),
            300..400 => {
                let target = self.header(&LOCATION).map(one_line).unwrap_or_default();
                self.nonsense(format!("it redirects to {target:?}, which attachd does not follow"))
            }
            _ if foreign => self.nonsense(self.look()),
            409 => CinderError::Conflict(answered),
            404 => match (self.spoken(), self.asked) {
                (Some(spoken), Some(asked)) if spoken != asked => self.nonsense(format!(
                    "it speaks API {spoken} where {asked} was asked for; something on the way drops the header OpenStack-API-Version"
                )),
                _ => self.nonsense("it knows no such address"),
            },
            400..500 => CinderError::Refused(answered),
            _ => self.nonsense("its status has no meaning here"),
        }
    }

    /// Reads the body of a success.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, CinderError> {
        serde_json::from_slice(self.bytes()).map_err(|error| {
            if serde_json::from_slice::<IgnoredAny>(self.bytes()).is_err() {
                return self.nonsense(self.look());
            }
            // Other errors of serde_json quote values, and those may be secrets.
            let text = error.to_string();
            let known = text.starts_with("missing field");
            let detail = if known { text.as_str() } else { "a value has another type" };
            self.nonsense(format!("the JSON has another shape: {detail}"))
        })
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().iter().all(u8::is_ascii_whitespace)
    }

    /// What the body looks like, without quoting it.
    fn look(&self) -> &'static str {
        let start = self.bytes().trim_ascii_start();
        match start.first() {
            None => "it has no body",
            Some(b'<') => "it is an HTML page",
            Some(b'{' | b'[') => match serde_json::from_slice::<Value>(start) {
                Ok(_) => "it is JSON of another shape",
                Err(error) if error.is_eof() => "its JSON is cut off",
                Err(_) => "its JSON is broken",
            },
            Some(_) => "it is not JSON",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";

    fn answer(
        operation: Operation,
        status: u16,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Answer {
            operation,
            asked: Some(Microversion::v3(54)),
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: Some(body.as_bytes().to_vec()),
        }
    }

    fn delete(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        answer(Operation::Delete(ID.parse().unwrap()), status, headers, body)
    }

    #[test]
    fn the_three_shapes_of_error_bodies_are_read() {
        for (status, body, message, reason) in [
            (
                400,
                r#"{"badRequest": {"code": 400, "message": "Malformed request url"}}"#,
                "Malformed request url",
                "CinderRefused",
            ),
            (
                401,
                r#"{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}"#,
                "The request you have made requires authentication.",
                "CinderUnauthorized",
            ),
            (
                404,
                r#"{"message": "The resource could not be found.<br /><br />\n\n\n", "code": "404 Not Found", "title": "Not Found"}"#,
                "The resource could not be found.",
                "CinderNonsense",
            ),
        ] {
            let error = delete(status, &[], body).success().err().unwrap();
            assert_eq!(error.reason(), reason);
            assert_eq!(error.answered().unwrap().message, message);
        }
    }

    #[test]
    fn only_a_404_of_cinder_about_the_object_means_that_it_is_gone() {
        let named =
            format!(r#"{{"itemNotFound": {{"code": 404, "message": "attachment_id = {ID}."}}}}"#);
        let bare =
            r#"{"itemNotFound": {"code": 404, "message": "The resource could not be found."}}"#;
        let ours = [("openstack-api-version", "volume 3.54")];
        let other = [("openstack-api-version", "volume 3.0")];
        assert!(delete(404, &[], &named).is_genuine_not_found());
        assert!(delete(404, &ours, bare).is_genuine_not_found());
        for (headers, body) in [
            (&other[..], bare),
            (&[][..], bare),
            (&[][..], "<html>404 Not Found</html>"),
            (&[][..], ""),
            (&ours[..], r#"{"message": "The resource could not be found."}"#),
            (&[][..], "default backend - 404"),
        ] {
            let answer = delete(404, headers, body);
            assert!(!answer.is_genuine_not_found(), "{body}");
            assert!(answer.is_version_trouble());
            assert_eq!(answer.success().err().unwrap().reason(), "CinderNonsense");
        }
    }

    #[test]
    fn statuses_become_errors_by_what_a_caller_can_do() {
        let fault = r#"{"computeFault": {"code": 0, "message": "m"}}"#;
        for (status, body, reason) in [
            (400, fault, "CinderRefused"),
            (400, "<html>", "CinderNonsense"),
            (403, fault, "CinderForbidden"),
            (409, fault, "CinderConflict"),
            (413, fault, "CinderOverloaded"),
            (422, fault, "CinderRefused"),
            (429, "", "CinderOverloaded"),
            (500, fault, "CinderFault"),
            (502, "<html>", "CinderFault"),
            (503, "<html>", "CinderOverloaded"),
            (302, "", "CinderNonsense"),
            (101, "", "CinderNonsense"),
        ] {
            assert_eq!(
                delete(status, &[], body).success().err().unwrap().reason(),
                reason,
                "{status}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_described_and_never_quoted() {
        for (body, what) in [
            ("", "no body"),
            ("<html>U9NXSokWDwu4nkjk", "an HTML page"),
            (r#"{"attachment": {"auth_password": "U9NXSokWDwu4nkjk"#, "cut off"),
            (r#"{"attachment": U9NXSokWDwu4nkjk}"#, "broken"),
            ("U9NXSokWDwu4nkjk", "not JSON"),
            (r#""U9NXSokWDwu4nkjk""#, "another type"),
        ] {
            #[derive(Debug, serde::Deserialize)]
            struct Body {
                #[expect(dead_code)]
                attachment: u8,
            }
            let error = delete(200, &[], body).json::<Body>().unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(what), "{shown}");
            assert!(!shown.contains("U9NX"), "{shown}");
        }
        let error = delete(200, &[], r#"{"attachment": "U9NXSokWDwu4nkjk"}"#);
        let shown = error.json::<std::collections::BTreeMap<String, u8>>().unwrap_err().to_string();
        assert!(shown.contains("another type") && !shown.contains("U9NX"), "{shown}");
    }

    #[test]
    fn the_request_id_is_kept_and_shown() {
        let body = r#"{"badRequest": {"message": "no."}}"#;
        let error =
            delete(400, &[("x-openstack-request-id", "req-1")], body).success().err().unwrap();
        assert_eq!(error.request_id(), Some("req-1"));
        assert_eq!(
            error.to_string(),
            format!(
                "Cinder refused to delete attachment {ID}: no (HTTP 400, req-1); see the volume's status and its other attachments"
            )
        );
    }
}
