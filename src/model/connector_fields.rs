use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{AccessMode, Iqn};

/// What a known field of a connector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Truth,
    Address,
    InitiatorName,
    Mode,
    Names,
}

/// What os-brick gives, and drivers read.
const KNOWN: [(&str, Kind); 17] = [
    ("initiator", Kind::InitiatorName),
    ("ip", Kind::Address),
    ("host", Kind::Text),
    ("platform", Kind::Text),
    ("os_type", Kind::Text),
    ("multipath", Kind::Truth),
    ("enforce_multipath", Kind::Truth),
    ("mountpoint", Kind::Text),
    ("mode", Kind::Mode),
    ("do_local_attach", Kind::Truth),
    ("nqn", Kind::Text),
    ("nvme_hostid", Kind::Text),
    ("nvme_native_multipath", Kind::Truth),
    ("wwpns", Kind::Names),
    ("wwnns", Kind::Names),
    ("uuid", Kind::Text),
    ("system uuid", Kind::Text),
];

/// Any connector, also another node's or one for another transport: what [`Connector`](super::Connector)
/// is for this node. Known fields have their type; there is no `null` in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ConnectorFields(Map<String, Value>);

/// What can't be a field of a connector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectorFieldError {
    /// No driver is known to read it.
    #[error(
        "a connector has no field {key:?}; it has {}. For a driver that reads another one, give the connector as a file: @FILE",
        known()
    )]
    Unknown {
        /// The name.
        key: String,
    },
    /// A value of another type.
    #[error("the connector's {key} must be {expected}, not {value}")]
    Wrong {
        /// The field.
        key: String,
        /// What it takes.
        expected: &'static str,
        /// What was given.
        value: String,
    },
    /// Not an object.
    #[error("a connector is an object of fields, such as {{\"host\": \"node-1\", …}}")]
    NotAnObject,
}

fn known() -> String {
    KNOWN.map(|(key, _)| key).join(", ")
}

impl Kind {
    const fn expected(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Truth => "true or false",
            Self::Address => "an IP address",
            Self::InitiatorName => {
                "an initiator's name, such as iqn.1993-08.org.debian:01:cad181614cec"
            }
            Self::Mode => "rw or ro",
            Self::Names => "a list of names, such as 10000000c9abcdef,10000000c9abcdf0",
        }
    }

    /// From a command line: plain, or as JSON where another client's users have the habit.
    fn read(self, text: &str) -> Option<Value> {
        let json = text.starts_with(['"', '[']).then(|| serde_json::from_str(text).ok()).flatten();
        let value = match (self, json) {
            (_, Some(value)) => value,
            (Self::Truth, None) => Value::Bool(text.parse().ok()?),
            (Self::Names, None) => text.split(',').map(str::trim).collect(),
            (_, None) => Value::String(text.to_owned()),
        };
        self.admits(&value).then_some(value)
    }

    fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Truth, Value::Bool(_)) => true,
            (Self::Names, Value::Array(names)) => {
                !names.is_empty()
                    && names.iter().all(|name| name.as_str().is_some_and(|name| !name.is_empty()))
            }
            (Self::Text, Value::String(text)) => !text.is_empty(),
            (Self::Address, Value::String(text)) => text.parse::<IpAddr>().is_ok(),
            (Self::InitiatorName, Value::String(text)) => text.parse::<Iqn>().is_ok(),
            (Self::Mode, Value::String(text)) => text.parse::<AccessMode>().is_ok(),
            _ => false,
        }
    }
}

impl ConnectorFields {
    /// A field as it stands on a command line, typed by its name: `multipath` is true or false.
    ///
    /// # Errors
    /// An unknown field, or a value of another type.
    pub fn parse_field(key: &str, text: &str) -> Result<Value, ConnectorFieldError> {
        let (_, kind) = KNOWN
            .into_iter()
            .find(|(known, _)| *known == key)
            .ok_or_else(|| ConnectorFieldError::Unknown { key: key.chars().take(80).collect() })?;
        kind.read(text).ok_or_else(|| wrong(key, kind.expected(), &Value::String(text.to_owned())))
    }

    /// A whole connector, as in the body of a request. It may have fields that aren't known.
    ///
    /// # Errors
    /// It is no object, a known field has another type, or something is `null`.
    pub fn from_json(value: Value) -> Result<Self, ConnectorFieldError> {
        let Value::Object(fields) = value else { return Err(ConnectorFieldError::NotAnObject) };
        for (key, value) in &fields {
            match KNOWN.into_iter().find(|(known, _)| known == key) {
                Some((_, kind)) if !kind.admits(value) => {
                    return Err(wrong(key, kind.expected(), value));
                }
                None if value.is_null() => {
                    return Err(wrong(key, "something; leave it out otherwise", value));
                }
                Some(_) | None => {}
            }
        }
        Ok(Self(fields))
    }

    /// Puts a field, in place of the one that is there.
    pub fn put(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }

    /// A field.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Whether there is no field at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The access mode in it.
    pub fn mode(&self) -> Option<AccessMode> {
        self.get("mode")?.as_str()?.parse().ok()
    }
}

fn wrong(key: &str, expected: &'static str, value: &Value) -> ConnectorFieldError {
    let value = value.to_string().chars().take(80).collect();
    ConnectorFieldError::Wrong { key: key.to_owned(), expected, value }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_gets_the_type_of_its_name_with_or_without_the_quotes_of_json() {
        for (key, text, value) in [
            ("multipath", "true", json!(true)),
            ("host", "n1", json!("n1")),
            ("host", "\"n1\"", json!("n1")),
            ("host", "true", json!("true")),
            ("ip", "fd00:2::2", json!("fd00:2::2")),
            ("mode", "ro", json!("ro")),
            ("wwpns", "10a, 10b", json!(["10a", "10b"])),
            ("wwpns", "[\"10a\"]", json!(["10a"])),
            ("system uuid", "4c4c", json!("4c4c")),
        ] {
            assert_eq!(ConnectorFields::parse_field(key, text), Ok(value), "{key}={text}");
        }
    }

    #[test]
    fn what_has_another_type_is_named_with_what_is_expected() {
        for (key, text, expected) in [
            ("multipath", "1", "true or false"),
            ("multipath", "\"true\"", "true or false"),
            ("ip", "node-1", "an IP address"),
            ("initiator", "node-1", "an initiator's name"),
            ("mode", "wo", "rw or ro"),
            ("host", "", "text"),
            ("wwpns", "10a,,10b", "a list of names"),
        ] {
            let error = ConnectorFields::parse_field(key, text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(expected), "{key}={text}: {error}");
        }
        let error = ConnectorFields::parse_field("hostname", "n1").unwrap_err().to_string();
        assert!(error.contains("\"hostname\"") && error.contains("system uuid"), "{error}");
    }

    #[test]
    fn a_whole_connector_may_have_unknown_fields_but_no_null_and_no_wrong_type() {
        let whole = json!({"host": "n1", "san_zone": [1, {"a": "b"}]});
        assert_eq!(
            serde_json::to_value(ConnectorFields::from_json(whole.clone()).unwrap()).unwrap(),
            whole
        );
        for bad in [
            json!([]),
            json!("host"),
            json!({"mode": null}),
            json!({"x": null}),
            json!({"multipath": "true"}),
        ] {
            assert!(ConnectorFields::from_json(bad.clone()).is_err(), "{bad}");
        }
    }
}
