use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use serde_json::Value;

use super::super::{context, exit::Failure};
use crate::{
    config::Options,
    host::Host as _,
    model::{AccessMode, Connector, ConnectorFields},
};

const LONGEST_FILE: u64 = 64 << 10;

/// What describes a connector; `create` and `set` take the same.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connector")]
pub(super) struct ConnectorArgs {
    /// A field of the connector, without quotes: host=node-1, multipath=true; or this-node for the facts
    /// that attachd connector shows, or @FILE for a connector in JSON or YAML. Fields stand in place of
    /// the facts' and the file's
    #[arg(long, value_name = "KEY=VALUE|@FILE|this-node")]
    connector: Vec<Part>,

    /// The connector's initiator: its iSCSI name
    #[arg(long, value_name = "NAME")]
    initiator: Option<String>,

    /// The connector's address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,

    /// The connector's host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,

    /// The connector's machine, such as x86_64
    #[arg(long, value_name = "NAME")]
    platform: Option<String>,

    /// The connector's operating system, such as linux
    #[arg(long, value_name = "NAME")]
    os_type: Option<String>,

    /// The connector wants all portals
    #[arg(long, conflicts_with = "no_multipath")]
    multipath: bool,

    /// The connector wants one portal
    #[arg(long)]
    no_multipath: bool,

    /// Where the volume is to be used
    #[arg(long, value_name = "PATH")]
    mountpoint: Option<String>,
}

/// One `--connector`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    ThisNode,
    File(PathBuf),
    Field(String, Value),
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "this-node" {
            return Ok(Self::ThisNode);
        }
        if let Some(path) = text.strip_prefix('@') {
            return Ok(Self::File(path.into()));
        }
        let (key, value) = text
            .split_once('=')
            .ok_or("expected KEY=VALUE such as host=node-1, @FILE or this-node")?;
        let value = ConnectorFields::parse_field(key, value).map_err(|error| error.to_string())?;
        Ok(Self::Field(key.to_owned(), value))
    }
}

/// `--mode` beside a connector that has one.
pub(super) fn agree_on_mode(
    mode: Option<AccessMode>,
    connector: &ConnectorFields,
) -> Result<(), Failure> {
    if mode.is_some() && connector.mode().is_some_and(|other| Some(other) != mode) {
        let what = "--mode and the connector's mode contradict each other: leave one out";
        return Err(Failure::Usage(what.to_owned()));
    }
    Ok(())
}

impl ConnectorArgs {
    /// The connector that was asked for; `None` where nothing of one was given.
    pub(super) async fn resolve(
        &self,
        options: &Options,
    ) -> Result<Option<ConnectorFields>, Failure> {
        let given = self.given()?;
        let base = self.base()?;
        let mut fields = match base {
            None if given.is_empty() => return Ok(None),
            None => ConnectorFields::default(),
            Some(Part::File(path)) => read(path)?,
            Some(_) => facts(&context::host(options)?.facts().await?.connector)?,
        };
        for (_, key, value) in given {
            fields.put(&key, value);
        }
        let lacks = |what: &str| {
            Failure::Usage(format!(
                "the connector lacks {what}, without which Cinder fails: give it with --connector KEY=VALUE, or --connector this-node for this node's facts"
            ))
        };
        if fields.get("host").is_none() {
            return Err(lacks("host"));
        }
        // A file may be for a driver that wants nothing of the kind.
        let is_from_file = matches!(base, Some(Part::File(_)));
        if !is_from_file
            && ["initiator", "wwpns", "nqn"].iter().all(|key| fields.get(key).is_none())
        {
            return Err(lacks("initiator (for Fibre Channel wwpns, for NVMe nqn)"));
        }
        Ok(Some(fields))
    }

    fn base(&self) -> Result<Option<&Part>, Failure> {
        let mut whole = self.connector.iter().filter(|part| !matches!(part, Part::Field(..)));
        let first = whole.next();
        if whole.next().is_some() {
            let what = "--connector this-node and --connector @FILE each give a whole connector: give one of them, once";
            return Err(Failure::Usage(what.to_owned()));
        }
        Ok(first)
    }

    /// Every single field, with the flag that gave it; each one once.
    fn given(&self) -> Result<Vec<(String, String, Value)>, Failure> {
        let texts = [
            ("--initiator", "initiator", &self.initiator),
            ("--ip", "ip", &self.ip),
            ("--host", "host", &self.host),
            ("--platform", "platform", &self.platform),
            ("--os-type", "os_type", &self.os_type),
            ("--mountpoint", "mountpoint", &self.mountpoint),
        ];
        let truths =
            [("--multipath", self.multipath, true), ("--no-multipath", self.no_multipath, false)];
        let mut all = Vec::new();
        for (flag, key, text) in texts {
            if let Some(text) = text {
                let value = ConnectorFields::parse_field(key, text)
                    .map_err(|error| Failure::Usage(format!("{flag} {text:?}: {error}")))?;
                all.push((flag.to_owned(), key.to_owned(), value));
            }
        }
        for (flag, set, value) in truths {
            if set {
                all.push((flag.to_owned(), "multipath".to_owned(), Value::Bool(value)));
            }
        }
        for part in &self.connector {
            if let Part::Field(key, value) = part {
                all.push((format!("--connector {key}="), key.clone(), value.clone()));
            }
        }
        for (at, (flag, key, _)) in all.iter().enumerate() {
            if let Some((other, _, _)) = all[..at].iter().find(|(_, earlier, _)| earlier == key) {
                return Err(Failure::Usage(format!(
                    "the connector's {key} is given twice, by {other} and by {flag}: give it once"
                )));
            }
        }
        Ok(all)
    }
}

fn facts(connector: &Connector) -> Result<ConnectorFields, Failure> {
    let value = serde_json::to_value(connector).map_err(io::Error::other)?;
    ConnectorFields::from_json(value).map_err(|error| Failure::Other(error.to_string()))
}

/// A connector, or the body that has one: `{"connector": {…}}`.
fn read(path: &Path) -> Result<ConnectorFields, Failure> {
    let wrong = |what: String| Failure::Usage(format!("--connector @{}: {what}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(LONGEST_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(wrong(format!("it is longer than {LONGEST_FILE} bytes, so no connector")));
    }
    let value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|error| wrong(format!("it is not JSON: {error}")))?
    } else {
        serde_saphyr::from_str(&text)
            .map_err(|error| wrong(format!("it is neither JSON nor YAML: {error}")))?
    };
    let value = match value {
        Value::Object(mut body) if body.len() == 1 && body.contains_key("connector") => {
            body.remove("connector").unwrap_or_default()
        }
        other => other,
    };
    ConnectorFields::from_json(value).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_json_or_yaml_bare_or_as_in_a_request() {
        for text in [
            r#"{"host": "n1", "multipath": true}"#,
            r#"{"connector": {"host": "n1", "multipath": true}}"#,
            "host: n1\nmultipath: true\n",
            "connector:\n  host: n1\n  multipath: true\n",
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let fields = serde_json::to_value(read(file.path()).unwrap()).unwrap();
            assert_eq!(fields, json!({"host": "n1", "multipath": true}), "{text}");
        }
    }
}
