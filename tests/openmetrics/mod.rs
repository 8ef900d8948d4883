//! A strict reader of the `OpenMetrics` text format, as far as attachd uses it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub unit: Option<String>,
    pub help: String,
    /// Sample name, labels, value.
    pub samples: Vec<(String, Labels, f64)>,
}

impl Family {
    /// The names of the labels that attachd gives.
    pub fn label_names(&self) -> BTreeSet<String> {
        let names = self.samples.iter().flat_map(|(_, labels, _)| labels.keys());
        names.filter(|name| *name != "le").cloned().collect()
    }
}

/// What was scraped.
#[derive(Debug)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Exposition {
    /// The value of one sample; `None` where it isn't there.
    pub fn value(&self, sample: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Labels =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let all = self.0.values().flat_map(|family| &family.samples);
        all.filter(|(name, labels, _)| name == sample && *labels == wanted)
            .map(|(_, _, value)| *value)
            .next()
    }

    /// All values of a label, in all families.
    pub fn values_of(&self, label: &str) -> BTreeSet<String> {
        let all = self.0.values().flat_map(|family| &family.samples);
        all.filter_map(|(_, labels, _)| labels.get(label).cloned()).collect()
    }

    /// Reads a text, or panics with the line that is wrong.
    pub fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the text does not end with # EOF");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        for line in body.lines() {
            assert!(!line.is_empty() && line.trim() == line, "blanks: {line:?}");
            if let Some(metadata) = line.strip_prefix("# ") {
                let mut words = metadata.splitn(3, ' ');
                let (what, name) = (words.next().unwrap(), words.next().unwrap());
                let rest = words.next().unwrap_or_else(|| panic!("nothing is said: {line}"));
                assert!(is_name(name), "no name: {line}");
                if name != current {
                    assert!(!families.contains_key(name), "{name} comes in two places");
                    name.clone_into(&mut current);
                }
                let family = families.entry(name.to_owned()).or_default();
                assert!(family.samples.is_empty(), "it comes after the samples: {line}");
                match what {
                    "HELP" => set(&mut family.help, rest, line),
                    "TYPE" => set(&mut family.kind, rest, line),
                    "UNIT" => {
                        assert!(
                            name.ends_with(&format!("_{rest}")),
                            "the unit is no suffix: {line}"
                        );
                        assert!(family.unit.replace(rest.to_owned()).is_none(), "twice: {line}");
                    }
                    _ => panic!("unknown: {line}"),
                }
                continue;
            }
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).unwrap_or_else(|| panic!("no TYPE: {line}"));
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("astray: {line}"));
            let suffixes: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                other => panic!("unknown type {other:?} before: {line}"),
            };
            assert!(suffixes.contains(&suffix), "no suffix of its type: {line}");
            assert_eq!(suffix == "_bucket", labels.contains_key("le"), "le: {line}");
            let same = |(n, l, _): &(String, Labels, f64)| *n == name && *l == labels;
            assert!(!family.samples.iter().any(same), "twice: {line}");
            assert!(family.kind == "gauge" || value >= 0.0, "negative: {line}");
            family.samples.push((name, labels, value));
        }
        for (name, family) in &families {
            assert!(!family.help.is_empty(), "{name} has no HELP");
            assert!(!family.samples.is_empty(), "{name} has no sample");
            if family.kind == "histogram" {
                check_histogram(name, family);
            }
        }
        Self(families)
    }
}

fn set(field: &mut String, value: &str, line: &str) {
    assert!(field.is_empty() && !value.is_empty(), "twice, or empty: {line}");
    value.clone_into(field);
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "no name: {line}");
    let mut labels = Labels::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inner.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label), "no label: {line}");
            let (value, after) = quoted(after, line);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice: {line}");
            if let Some(after) = after.strip_prefix(',') {
                inner = after;
            } else {
                rest = after.strip_prefix('}').unwrap_or_else(|| panic!("not closed: {line}"));
                break;
            }
        }
    }
    let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no blank: {line}"));
    let value = number.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    (name.to_owned(), labels, value)
}

fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                Some((_, 'n')) => value.push('\n'),
                _ => panic!("unknown escape: {line}"),
            },
            c => value.push(c),
        }
    }
    panic!("the quotes stay open: {line}");
}

/// Buckets that rise, and end at the count.
fn check_histogram(name: &str, family: &Family) {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (_, labels, value) in family.samples.iter().filter(|(n, _, _)| n.ends_with("_bucket")) {
        let mut labels = labels.clone();
        let edge = labels.remove("le").unwrap();
        let edge = if edge == "+Inf" { f64::INFINITY } else { edge.parse().unwrap() };
        series.entry(labels).or_default().push((edge, *value));
    }
    for (labels, buckets) in series {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}");
        let of = |suffix: &str| {
            let wanted = format!("{name}_{suffix}");
            let mut found = family.samples.iter().filter(|(n, l, _)| *n == wanted && *l == labels);
            found.next().unwrap_or_else(|| panic!("{wanted} {labels:?} is missing")).2
        };
        let (edge, last) = *buckets.last().unwrap();
        assert!(edge.is_infinite() && (last - of("count")).abs() < 0.5, "{name} {labels:?}");
        assert!(of("sum") >= 0.0);
    }
}
