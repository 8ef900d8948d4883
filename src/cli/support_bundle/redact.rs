//! Takes secrets out of text that somebody else will read.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regex::Regex;

use crate::doctor::files_below;

const REDACTED: &str = "<redacted>";

/// Shorter values are no secrets of anybody's, and would take ordinary words along.
const SHORTEST: usize = 6;

/// What a value is given for, in settings, YAML, JSON, command lines and logs.
const NAMED: &str = r#"(?i)([\w.\[\]-]*(?:password|passwd|passphrase|secret|token|private_key|auth_key|credential_id)[\w.\[\]-]*["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}&]+)"#;
/// `https://user:password@host`
const IN_A_URL: &str = r"(://[^/\s:@]+:)([^/\s@]+)@";
const HEADER: &str = r"(?i)((?:authorization|x-auth-token|x-service-token|x-subject-token)\W+(?:bearer |basic )?)([^\s,;\x22']+)";

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    // They are constants, and a test compiles them.
    [NAMED, HEADER, IN_A_URL].iter().filter_map(|pattern| Regex::new(pattern).ok()).collect()
});

/// Knows secrets by their names, and those of this node by their values too.
#[derive(Debug, Clone, Default)]
pub(super) struct Redactor {
    /// The longest first: one may be a part of another.
    values: Vec<String>,
}

impl Redactor {
    /// Knows what this node keeps in open-iscsi's records and what this process was given.
    pub(super) fn of_this_node(host_root: &Path) -> Self {
        let mut values = BTreeSet::new();
        let roots = ["etc/iscsi", "var/lib/iscsi"];
        let mut files: Vec<PathBuf> = vec![host_root.join("etc/iscsi/iscsid.conf")];
        for root in roots {
            for kind in ["nodes", "attachd-kept", "send_targets"] {
                files.extend(files_below(&host_root.join(root).join(kind), 5));
            }
        }
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            values.extend(text.lines().filter_map(secret_of_line));
        }
        let is_secret = |name: &str| {
            ["PASSWORD", "SECRET", "TOKEN"].iter().any(|word| name.to_uppercase().contains(word))
        };
        values.extend(std::env::vars().filter(|(name, _)| is_secret(name)).map(|(_, value)| value));
        Self::of_values(values)
    }

    fn of_values(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<String> =
            values.into_iter().filter(|value| value.len() >= SHORTEST).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values }
    }

    /// Adds values that the cloud's settings hold.
    pub(super) fn and(self, more: impl IntoIterator<Item = String>) -> Self {
        Self::of_values(self.values.into_iter().chain(more))
    }

    /// The text without its secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            if text.contains(value) {
                text = text.replace(value, REDACTED);
            }
        }
        for pattern in PATTERNS.iter() {
            let replaced = pattern.replace_all(&text, |found: &regex::Captures<'_>| {
                let end = if found[0].ends_with('@') { "@" } else { "" };
                format!("{}{REDACTED}{end}", &found[1])
            });
            text = replaced.into_owned();
        }
        text
    }
}

/// `node.session.auth.password = …`, commented out or not.
fn secret_of_line(line: &str) -> Option<String> {
    let (name, value) = line.split_once('=')?;
    name.contains("password").then(|| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patterns_are_patterns() {
        assert_eq!(PATTERNS.len(), 3);
    }

    #[test]
    fn secrets_go_by_their_names_in_every_form_and_by_their_values_anywhere() {
        let redactor = Redactor::of_values(["planted-value-7".to_owned(), "short".to_owned()]);
        for text in [
            "node.session.auth.password = PLANTED1",
            "discovery.sendtargets.auth.password_in = PLANTED1",
            "\"auth_password\": \"PLANTED1\", \"x\": 1",
            "\"password\":\"PLAN\\\"TED1\"",
            "OS_PASSWORD=PLANTED1",
            "os_application_credential_secret: PLANTED1",
            "  secret: 'PLANTED1 with blanks'",
            "--os-token=PLANTED1 --debug",
            "https://admin:PLANTED1@keystone:5000/v3",
            "X-Auth-Token: PLANTED1",
            "Authorization: Basic PLANTED1",
            "authorization: \"Bearer PLANTED1\"",
            "CHAP said planted-value-7, twice: planted-value-7",
        ] {
            let clean = redactor.clean(text);
            assert!(!clean.contains("PLANTED1") && !clean.contains("TED1"), "{text}: {clean}");
            assert!(!clean.contains("planted-value-7"), "{clean}");
            assert!(clean.contains(REDACTED), "{text}: {clean}");
        }
        let ordinary = "a short tokenless line: volume 6a1c attached to /dev/sda in 3.4 s";
        assert_eq!(redactor.clean(ordinary), ordinary);
    }

    #[test]
    fn what_this_node_keeps_is_known_by_its_value() {
        let root = tempfile::tempdir().unwrap();
        let record = root.path().join("etc/iscsi/nodes/iqn.x/10.0.2.2,3260,1/default");
        std::fs::create_dir_all(record.parent().unwrap()).unwrap();
        std::fs::write(&record, "node.name = iqn.x\nnode.session.auth.password = chap-of-x-1\n")
            .unwrap();
        let redactor = Redactor::of_this_node(root.path());
        assert_eq!(redactor.clean("the target said chap-of-x-1!"), "the target said <redacted>!");
    }
}
