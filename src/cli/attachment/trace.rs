use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::super::{
    output::{say, table},
    progress::seconds,
};
use crate::cinder::{Asked, Heard, Watch};

/// Says what goes out, and remembers how long it took.
#[derive(Debug)]
pub(super) struct Trace {
    debug: bool,
    calls: Mutex<Vec<(String, Duration)>>,
}

impl Trace {
    pub(super) const fn new(debug: bool) -> Self {
        Self { debug, calls: Mutex::new(Vec::new()) }
    }

    pub(super) fn say_timing(&self) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = calls.iter().map(|(_, took)| *took).sum();
        let all = calls.iter().cloned().chain([("all requests".to_owned(), sum)]);
        say(&table(["REQUEST", "TOOK"], all.map(|(call, took)| [call, seconds(took)])));
    }
}

impl Watch for Trace {
    fn asked(&self, asked: &Asked) {
        if self.debug {
            say(&curl(asked));
        }
    }

    fn heard(&self, heard: &Heard<'_>) {
        if self.debug {
            let what = match heard.outcome {
                Ok(status) => format!("HTTP {status}"),
                Err(reason) => format!("no answer: {reason}"),
            };
            let request = heard.request_id.unwrap_or("no request id");
            say(&format!("# {what}, {request}, {}", seconds(heard.took)));
        }
        let call = format!("{} {}", heard.method, heard.path);
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push((call, heard.took));
    }
}

/// As it could be typed again, once `$OS_TOKEN` is set.
fn curl(asked: &Asked) -> String {
    let mut line = format!("curl -sS -X {} {}", asked.method, quoted(&asked.url));
    for (name, value) in &asked.headers {
        line.push_str(" -H ");
        line.push_str(&match (name.as_str(), value) {
            (_, Some(value)) => quoted(&format!("{name}: {value}")),
            ("x-auth-token", None) => "\"x-auth-token: $OS_TOKEN\"".to_owned(),
            (_, None) => quoted(&format!("{name}: <redacted>")),
        });
    }
    if let Some(body) = &asked.body {
        line.push_str(" --data ");
        line.push_str(&quoted(body));
    }
    line
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_command_for_the_shell_that_has_no_token() {
        let asked = Asked {
            method: "PUT".to_owned(),
            url: "http://c/v3/p/attachments/1".to_owned(),
            headers: vec![
                ("x-auth-token".to_owned(), None),
                ("accept".to_owned(), Some("application/json".to_owned())),
                ("authorization".to_owned(), None),
            ],
            body: Some(r#"{"host":"it's"}"#.to_owned()),
        };
        assert_eq!(
            curl(&asked),
            r#"curl -sS -X PUT 'http://c/v3/p/attachments/1' -H "x-auth-token: $OS_TOKEN" -H 'accept: application/json' -H 'authorization: <redacted>' --data '{"host":"it'\''s"}'"#
        );
    }
}
