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
        "src/attach/verdict.rs",
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
        let bodies: Vec<&str> = text
            .split("fn reason(")
            .skip(1)
            .filter_map(|rest| rest.split("\n    }").next())
            .collect();
        assert!(!bodies.is_empty(), "{source} has no reasons");
        for word in bodies.iter().flat_map(|body| body.split('"').skip(1).step_by(2)) {
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

/// What a section has an entry for: the names in the first column of its tables.
fn entries(manual: &str, section: &str) -> BTreeSet<String> {
    let text = manual.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let text = text.split("\n## ").next().unwrap();
    let first = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(ToOwned::to_owned).collect()
}

#[test]
fn every_check_of_doctor_has_its_entry_in_the_operations_manual_and_no_other_has() {
    let checks: BTreeSet<String> =
        attachd::doctor::CHECKS.iter().map(|check| check.id.to_owned()).collect();
    assert_eq!(checks.len(), attachd::doctor::CHECKS.len(), "an id stands for two checks");
    assert_eq!(entries(&read("docs/operations.md"), "Doctor"), checks);
}

#[test]
fn every_metric_has_its_entry_in_the_operations_manual_and_no_other_has() {
    let measured = entries(&read("docs/metrics.md"), "What is measured");
    let metrics = measured.into_iter().filter(|name| name.contains('_') && !name.contains(' '));
    let told = entries(&read("docs/operations.md"), "Metrics, when they are not as usual");
    assert_eq!(told, metrics.collect());
}

#[test]
fn every_event_has_its_entry_in_the_operations_manual() {
    let told = entries(&read("docs/operations.md"), "Events");
    let mut events = BTreeSet::from(["Attached".to_owned(), "NodeOutOfService".to_owned()]);
    let is_word =
        |text: &str| text.starts_with(char::is_uppercase) && text.chars().all(char::is_alphabetic);
    for source in ["src/controller/subject.rs", "src/controller/evacuation.rs"] {
        for rest in read(source).split("EventType::").skip(1) {
            let call = rest.split(';').next().unwrap();
            let words = call.split('"').skip(1).step_by(2).filter(|word| is_word(word));
            // The action stands before the reason where both are literal.
            events.extend(
                words.filter(|word| !matches!(*word, "Evacuate" | "Detach")).map(ToOwned::to_owned),
            );
        }
    }
    assert!(events.len() > 5, "the events were not found: {events:?}");
    assert_eq!(events.difference(&told).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn every_command_is_in_the_readme() {
    let readme = read("README.md");
    for command in [
        "attach",
        "attachment",
        "detach",
        "doctor",
        "resize",
        "evacuate",
        "plan",
        "inspect",
        "orphans",
        "paths",
        "trace",
        "support-bundle",
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
        "docs/doctor.md",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/security.md",
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

/// All Rust sources of the program and of its tests, and the tests in Python.
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
            } else if entry
                .path()
                .extension()
                .is_some_and(|ending| ending == "rs" || ending == "py")
            {
                text.push_str(&read(&path));
            }
        }
    }
    text
}

#[test]
fn each_check_that_the_page_on_security_names_is_a_test() {
    let (document, sources) = (read("docs/security.md"), sources());
    let quoted = document.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = quoted.filter(|word| word.matches('_').count() >= 5).collect();
    assert!(named.len() > 20, "only {} tests are named", named.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = |name: &str| root.join(format!("tests/golden/{name}.txt")).exists();
    let is_test = |name: &str| {
        sources.contains(&format!("{name}()")) || sources.contains(&format!("def {name}("))
    };
    let missing: Vec<_> = named.iter().filter(|name| !is_test(name) && !golden(name)).collect();
    assert!(missing.is_empty(), "no tests: {missing:?}");
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

#[test]
fn each_of_the_twenty_failures_has_its_tests() {
    let document = read("docs/safety.md");
    let (_, tables) = document.split_once("## Twenty failures").unwrap();
    let (tables, _) = tables.split_once("## What it can't see").unwrap();
    let sources = sources();
    let rows: Vec<&str> = tables.lines().filter(|line| line.starts_with("| ")).collect();
    for number in 1..=20 {
        assert!(
            rows.iter().any(|row| row.starts_with(&format!("| {number} |"))),
            "no row {number}"
        );
    }
    for row in rows.iter().filter(|row| !row.contains("| test |")) {
        let tests = row.rsplit('|').nth(1).unwrap();
        assert!(tests.contains('`'), "no test: {row}");
        for test in tests.split('`').skip(1).step_by(2) {
            let known = sources.contains(&format!("fn {test}()"))
                || sources.contains(&format!("def test_{test}("))
                || sources.contains(&format!("    {test}:"));
            assert!(known, "no test {test}: {row}");
        }
    }
}
