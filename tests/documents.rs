//! The documents say what the code says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every word that a `reason()` can give.
fn reasons() -> BTreeSet<String> {
    let sources = [
        "src/attach/error.rs",
        "src/attach/ledger.rs",
        "src/attach/refusal.rs",
        "src/cinder/error.rs",
        "src/cloud/error.rs",
        "src/crd/validate.rs",
        "src/host/error.rs",
        "src/http/error.rs",
        "src/keystone/error.rs",
    ];
    let mut found = BTreeSet::new();
    for source in sources {
        let text = read(source);
        let (_, body) = text.split_once("fn reason(").unwrap();
        let body = body.split("\n    }").next().unwrap();
        for word in body.split('"').skip(1).step_by(2) {
            assert!(
                word.chars().all(char::is_alphanumeric),
                "{source}: {word:?} is no CamelCase word"
            );
            found.insert(word.to_owned());
        }
    }
    // Those of the controller stand where they are made.
    for source in [
        "src/controller/api.rs",
        "src/controller/mod.rs",
        "src/controller/node_connector.rs",
        "src/controller/subject.rs",
    ] {
        let text = read(source);
        for (_, rest) in text.match_indices("reason: \"").map(|(at, _)| text.split_at(at)) {
            found.insert(rest.split('"').nth(1).unwrap().to_owned());
        }
    }
    assert!(found.len() > 50, "the reasons were not found: {found:?}");
    found
}

#[test]
fn every_reason_has_its_entry_in_the_operations_manual() {
    let manual = read("docs/operations.md");
    let missing: Vec<String> =
        reasons().into_iter().filter(|reason| !manual.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}

#[test]
fn every_command_is_in_the_readme() {
    let readme = read("README.md");
    for command in [
        "attach",
        "attachment",
        "detach",
        "plan",
        "inspect",
        "connector",
        "run",
        "crd",
        "completions",
        "man",
    ] {
        assert!(
            readme.contains(&format!("attachd {command}")),
            "README.md lacks attachd {command}"
        );
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/commands.md",
        "docs/design.md",
        "docs/metrics.md",
        "docs/operations.md",
    ] {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
        for target in read(document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.starts_with("http") && !target.starts_with('#') {
                let file = target.split('#').next().unwrap();
                assert!(base.parent().unwrap().join(file).exists(), "{document}: {target}");
            }
        }
    }
}

/// All Rust sources of the program and of its tests.
fn sources() -> String {
    let mut text = String::new();
    let mut left = vec!["src".to_owned(), "tests".to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
            // Links are not followed: a recorded sysfs goes in circles.
            if entry.file_type().unwrap().is_dir() {
                left.push(path);
            } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&read(&path));
            }
        }
    }
    text
}

#[test]
fn each_of_cinders_traps_has_its_test() {
    let document = read("docs/conformance.md");
    let (_, traps) = document.split_once("## Cinder's traps").unwrap();
    let sources = sources();
    let mut found = 0;
    for row in traps.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests = row.rsplit('|').nth(1).unwrap();
        for test in tests.split('`').skip(1).step_by(2) {
            assert!(sources.contains(&format!("fn {test}()")), "no test {test}: {row}");
            found += 1;
        }
        assert!(tests.contains('`'), "no test: {row}");
    }
    assert!(found > 15, "the table was not found");
}
