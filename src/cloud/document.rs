//! A YAML file as a tree that knows its lines. Numbers and words such as `yes` stay as they are
//! written: a password of digits is no number, and a project's id may look like one (`12e3`).

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::{Location, Spanned, options::NonFiniteFloatPolicy};

use super::{CloudError, Origin};

/// A file.
pub(super) struct Document {
    pub(super) path: Arc<PathBuf>,
    pub(super) root: Node,
}

/// A value, and where it stands.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// `null`, `~` or nothing.
    Nothing,
    /// May be a secret.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, u64, Node)>),
}

/// What the parser gives: of plain text that looks like something else, only where it stands.
enum Raw {
    Plain,
    Nothing,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl Document {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, CloudError> {
        let options = serde_saphyr::options! {
            non_finite_float_policy: NonFiniteFloatPolicy::PassThrough
        };
        let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| not_yaml(path, &error))?;
        Ok(Self { path: Arc::new(path.to_owned()), root: node(text, raw) })
    }

    pub(super) fn at(&self, line: u64) -> Origin {
        Origin::Line { path: Arc::clone(&self.path), line }
    }
}

/// The parser's own words, without the lines that it would quote: those may hold secrets.
fn not_yaml(path: &Path, error: &serde_saphyr::Error) -> CloudError {
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    let what = what.split(", set DuplicateKeyPolicy").next().unwrap_or_default().to_owned();
    CloudError::NotYaml { path: path.to_owned(), line, column, what }
}

fn node(text: &str, raw: Spanned<Raw>) -> Node {
    let kind = match raw.value {
        Raw::Nothing => Kind::Nothing,
        Raw::Text(text) => Kind::Text(text),
        Raw::Plain => Kind::Text(
            written(raw.defined).and_then(|at| text.get(at)).unwrap_or_default().to_owned(),
        ),
        Raw::List(items) => Kind::List(items.into_iter().map(|item| node(text, item)).collect()),
        Raw::Map(entries) => Kind::Map(
            entries
                .into_iter()
                .map(|(key, value)| (key.value, key.defined.line(), node(text, value)))
                .collect(),
        ),
    };
    Node { line: raw.defined.line(), kind }
}

fn written(at: Location) -> Option<Range<usize>> {
    let start = usize::try_from(at.span().byte_offset()?).ok()?;
    Some(start..start + usize::try_from(at.span().byte_len()?).ok()?)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> de::Visitor<'de> for Anything {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a list or a mapping")
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document, CloudError> {
        Document::parse(Path::new("clouds.yaml"), text)
    }

    fn texts(text: &str) -> Vec<(String, String, u64)> {
        let Kind::Map(entries) = parse(text).unwrap().root.kind else { panic!("{text}") };
        entries
            .into_iter()
            .map(|(key, line, node)| match node.kind {
                Kind::Text(text) => (key, text, line),
                Kind::Nothing => (key, "NOTHING".to_owned(), line),
                Kind::List(_) | Kind::Map(_) => panic!("{key}"),
            })
            .collect()
    }

    #[test]
    fn every_scalar_stays_as_it_is_written() {
        for (written, expected) in [
            ("yes", "yes"),
            ("0123", "0123"),
            ("12e3", "12e3"),
            ("1_000", "1_000"),
            ("0x1F", "0x1F"),
            ("true", "true"),
            (".nan", ".nan"),
            ("9e999", "9e999"),
            (
                "123456789012345678901234567890123456789012345678901234567890",
                "123456789012345678901234567890123456789012345678901234567890",
            ),
            ("2026-01-01", "2026-01-01"),
            ("'quoted # text'", "quoted # text"),
            ("\"tab\\tbed\"", "tab\tbed"),
            ("'007'", "007"),
            ("!!str 12", "12"),
            ("~", "NOTHING"),
            ("", "NOTHING"),
            ("''", ""),
        ] {
            let seen = texts(&format!("# ümlaut\nkey: {written}\n"));
            assert_eq!(seen, [("key".to_owned(), expected.to_owned(), 2)], "{written}");
        }
    }

    #[test]
    fn anchors_and_merges_keep_the_text_and_the_line_where_it_is_written() {
        let text = "a: &a {p: 0123}\nb:\n  <<: *a\n  q: 1\nc: &c 007\nd: *c\n";
        let Kind::Map(entries) = parse(text).unwrap().root.kind else { panic!() };
        let Kind::Map(merged) = &entries[1].2.kind else { panic!() };
        let p = merged.iter().find(|(key, ..)| key == "p").unwrap();
        assert!(matches!(&p.2.kind, Kind::Text(text) if text == "0123"));
        assert_eq!(p.1, 1);
        assert!(matches!(&entries[3].2.kind, Kind::Text(text) if text == "007"));
    }

    #[test]
    fn what_is_no_yaml_is_told_with_line_and_column_and_never_quoted() {
        for (text, line, what) in [
            ("clouds:\n  a:\n    password: *hunter2\n", 3, "anchor"),
            ("clouds:\n  a:\n    password: @hunter2\n", 3, "character"),
            ("clouds:\n  password: a: hunter2\n", 2, "mapping values"),
            ("clouds:\n  a: {password: hunter2\n", 2, "bracket"),
            ("password: hunter2\npassword: hunter2\n", 2, "duplicate mapping key: password"),
            ("a: \"hunter2\nb: hunter2\n", 2, ""),
            ("a: hunter2\n---\nb: hunter2\n", 3, "multiple"),
            ("a: !!int hunter2\n", 1, ""),
            ("a: !!binary hunter2!\n", 1, ""),
            ("a: &x [*x, hunter2]\n", 1, ""),
            ("\thunter2: hunter2\n b", 2, ""),
        ] {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text:?} was accepted"));
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains(what), "{what:?} is not in {shown}");
            let CloudError::NotYaml { line: seen, .. } = error else { panic!("{shown}") };
            assert_eq!(seen, line, "{shown}");
        }
    }
}
