//! The custom resource definition: committed, and what the Rust types say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use serde_json::Value;

fn committed(plural: &str) -> String {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("crds/attachd.dev_{plural}.yaml"));
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_committed_crds_are_what_the_types_generate() {
    let generated = attachd::crd::manifests().unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let mut files: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names: Vec<String> = generated.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    assert_eq!(files, names);
    for (name, text) in generated {
        let committed = fs::read_to_string(directory.join(&name)).unwrap();
        assert_eq!(committed, text, "{name}: run attachd crd --dir crds");
    }
}

fn schema() -> Value {
    let crd: Value = serde_saphyr::from_str(&committed("volumeattachrequests")).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

#[test]
fn every_field_of_the_spec_is_described_and_immutable_but_for_the_size_that_only_grows_and_force() {
    let schema = schema();
    let properties = schema["properties"].as_object().unwrap();
    assert_eq!(properties.len(), 10);
    for (name, field) in properties {
        assert!(field["description"].is_string(), "{name} has no description");
        if name == "forceDetach" {
            assert!(field["x-kubernetes-validations"].is_null());
            continue;
        }
        let rules = field["x-kubernetes-validations"].to_string();
        let rule = if name == "sizeGiB" { "self >= oldSelf" } else { "self == oldSelf" };
        assert!(rules.contains(rule), "{name} can be changed: {rules}");
    }
}

#[test]
fn a_node_finds_its_own_requests_by_a_selectable_field() {
    let crd: Value = serde_saphyr::from_str(&committed("volumeattachrequests")).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["selectableFields"][0]["jsonPath"], ".spec.nodeName");
    assert_eq!(crd["spec"]["scope"], "Cluster");
    assert!(version["subresources"]["status"].is_object());
}
