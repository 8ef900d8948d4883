use std::{fmt, time::Duration};

use reqwest::Request;

/// Who looks on at requests and answers: `--debug`, `--timing`. Gets no secret to see.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A request is about to be sent.
    fn asked(&self, asked: &Asked);

    /// Its answer is here, or will never be.
    fn heard(&self, heard: &Heard<'_>);
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST`, …
    pub method: String,
    /// The whole of it, with its query.
    pub url: String,
    /// Names and values; `None` for a value that is nobody's business.
    pub headers: Vec<(String, Option<String>)>,
    /// The body as JSON, without what may be secret.
    pub body: Option<String>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// The path that was asked.
    pub path: &'a str,
    /// The HTTP status, or the reason why there is none.
    pub outcome: Result<u16, &'static str>,
    /// The server's request id, or ours where none came back.
    pub request_id: Option<&'a str>,
    /// The server's clock, as its header `Date` has it.
    pub date: Option<&'a str>,
    /// How long it took.
    pub took: Duration,
}

/// Headers that carry no secret.
const HARMLESS: [&str; 4] =
    ["accept", "content-type", "openstack-api-version", "x-openstack-request-id"];

impl Asked {
    /// A request; `body` is what may be shown of its body.
    pub(crate) fn of(request: &Request, body: Option<String>) -> Self {
        let headers = request.headers().iter().map(|(name, value)| {
            let harmless = HARMLESS.contains(&name.as_str()) && !value.is_sensitive();
            let value = value.to_str().ok().filter(|_| harmless);
            (name.as_str().to_owned(), value.map(ToOwned::to_owned))
        });
        Self {
            method: request.method().to_string(),
            url: request.url().to_string(),
            headers: headers.collect(),
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::{Method, header::HeaderValue};

    use super::*;

    #[test]
    fn a_request_is_shown_without_its_token() {
        let mut token = HeaderValue::from_static("SECRET-1");
        token.set_sensitive(true);
        let mut request =
            Request::new(Method::POST, "http://c/v3/p/attachments?x=1".parse().unwrap());
        request.headers_mut().insert("x-auth-token", token);
        request.headers_mut().insert("authorization", HeaderValue::from_static("Basic SECRET-2"));
        request.headers_mut().insert("accept", HeaderValue::from_static("application/json"));
        let asked = Asked::of(&request, None);
        assert!(!format!("{asked:?}").contains("SECRET"), "{asked:?}");
        assert!(asked.headers.contains(&("x-auth-token".to_owned(), None)));
        assert!(
            asked.headers.contains(&("accept".to_owned(), Some("application/json".to_owned())))
        );
    }
}
