//! The house's arrows: which module may import which. See the table in `src/lib.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Who may use whom. A module that is missing here fails the test, so that nobody builds a room
/// without saying where it is.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let rooms: [(&str, &[&str]); 20] = [
        ("main", &["cli"]),
        ("lib", &[]),
        (
            "cli",
            &[
                "attach",
                "cinder",
                "cloud",
                "config",
                "controller",
                "crd",
                "doctor",
                "health",
                "host",
                "journal",
                "keystone",
                "metrics",
                "model",
                "projection",
                "requests",
                "requests_dir",
            ],
        ),
        (
            "controller",
            &["attach", "cinder", "crd", "health", "host", "model", "projection", "requests"],
        ),
        ("doctor", &["attach", "cinder", "cloud", "crd", "host", "http", "model"]),
        (
            "requests_dir",
            &["attach", "cinder", "crd", "health", "host", "model", "projection", "requests"],
        ),
        ("requests", &["attach", "cinder", "health", "host", "metrics", "model", "projection"]),
        ("health", &["metrics"]),
        ("metrics", &["attach", "cinder", "host", "model"]),
        ("projection", &["attach", "crd", "model"]),
        ("attach", &["cinder", "host", "model"]),
        ("host", &["model"]),
        ("cinder", &["http", "keystone", "model"]),
        ("cloud", &["cinder", "http", "keystone", "model"]),
        ("keystone", &["http", "model"]),
        ("http", &[]),
        ("journal", &["model"]),
        ("crd", &["model"]),
        ("config", &["cloud"]),
        ("model", &[]),
    ];
    let mut table: BTreeMap<_, BTreeSet<_>> =
        rooms.iter().map(|(room, may)| (*room, may.iter().copied().collect())).collect();
    table.insert(
        "testing",
        ["attach", "cinder", "cloud", "host", "journal", "keystone", "model", "requests_dir"]
            .into(),
    );
    table
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn room(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names: `crate::x`, `use crate::{a::.., b}` and, in main, `attachd::x`.
fn named(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    for prefix in ["crate::", "attachd::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                names.extend(heads(group));
            } else {
                names.insert(head(rest));
            }
        }
    }
    names.remove("");
    names
}

fn head(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first word of each item of a braced group, at its own depth.
fn heads(group: &str) -> BTreeSet<String> {
    let (mut depth, mut item, mut found) = (0_u32, String::new(), BTreeSet::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.insert(head(item.trim()));
                item.clear();
                continue;
            }
            _ => {}
        }
        item.push(c);
    }
    found.insert(head(item.trim()));
    found
}

#[test]
fn imports_go_only_where_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = allowed();
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let mut wrong = Vec::new();
    for path in files {
        let from = room(&path, &src);
        let Some(may) = table.get(from.as_str()) else {
            wrong.push(format!("{}: the room {from:?} is not in the table", path.display()));
            continue;
        };
        for to in named(&fs::read_to_string(&path).unwrap()) {
            if table.contains_key(to.as_str()) && to != from && !may.contains(to.as_str()) {
                wrong.push(format!("{}: {from} uses {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not in the table:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_through_groups_and_comments() {
    let text = "use crate::{\n attach::{Engine, x::{y, z}},\n host,\n};\n// crate::cli\nlet a = crate::model::A;";
    let seen: Vec<String> = named(text).into_iter().collect();
    assert_eq!(seen, ["attach", "host", "model"]);
}

#[test]
fn processes_are_born_in_one_place_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let births: Vec<String> = files
        .iter()
        .filter(|path| !path.ends_with("host/exec.rs"))
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            text.contains("process::Command") || text.contains("Command::new(\"")
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(births.is_empty(), "{births:?}");
}
