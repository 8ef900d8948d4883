//! The command line as far as it goes without a node and a Cinder: usage, exit codes, generated texts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use assert_cmd::{Command, assert::Assert};

const VOLUME: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";

fn attachd(state: &tempfile::TempDir, arguments: &[&str]) -> Assert {
    let mut command = Command::cargo_bin("attachd").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ATTACHD_")) {
        command.env_remove(name);
    }
    command.arg("--state-dir").arg(state.path()).args(arguments).assert()
}

fn fails(arguments: &[&str], code: i32, words: &[&str]) {
    let state = tempfile::tempdir().unwrap();
    let failed = attachd(&state, arguments).code(code);
    let stderr = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: {word:?} is not in: {stderr}");
    }
}

fn prints(arguments: &[&str]) -> String {
    let state = tempfile::tempdir().unwrap();
    let printed = attachd(&state, arguments).success();
    String::from_utf8(printed.get_output().stdout.clone()).unwrap()
}

#[test]
fn a_volume_that_is_no_uuid_is_a_wrong_command_line() {
    for command in
        [&["attach"][..], &["detach"], &["plan", "attach"], &["plan", "detach"], &["inspect"]]
    {
        fails(&[command, &["nope"]].concat(), 2, &["\"nope\" is not a volume id", "5c2f7a1e-"]);
    }
}

#[test]
fn an_unknown_file_system_mode_or_policy_is_a_wrong_command_line() {
    fails(
        &["attach", VOLUME, "--fs", "btrfs"],
        2,
        &["unknown file system \"btrfs\"", "ext4 and xfs"],
    );
    fails(&["attach", VOLUME, "--mode", "wo"], 2, &["rw or ro"]);
    fails(&["attach", VOLUME, "--format", "always"], 2, &["if-blank or never"]);
    fails(&["attach", VOLUME, "--multipath", "maybe"], 2, &["auto or required or disabled"]);
}

#[test]
fn options_that_exclude_each_other_are_a_wrong_command_line() {
    fails(&["attach", VOLUME, "--block", "--mount", "/mnt/a"], 2, &["--block", "--mount"]);
    fails(&["attach", VOLUME, "--block", "--fs", "xfs"], 2, &["--block", "--fs"]);
    fails(&["attach", VOLUME, "--mount", "relative"], 2, &["absolute path"]);
    fails(&["attach", VOLUME, "--mount", "/mnt/../etc"], 2, &["absolute path"]);
}

#[test]
fn without_an_endpoint_the_flag_and_the_variable_are_named() {
    fails(&["attach", VOLUME], 2, &["--cinder-endpoint"]);
    fails(&["detach", VOLUME], 2, &["--cinder-endpoint"]);
    fails(
        &["--cinder-endpoint", "http://127.0.0.1:9", "detach", VOLUME],
        2,
        &["--cinder-project", "ATTACHD_CINDER_PROJECT"],
    );
}

#[test]
fn an_address_to_listen_on_that_is_none_is_a_wrong_command_line() {
    fails(&["run", "--requests-dir", "/tmp", "--listen", "9808"], 2, &["--listen", "IP:PORT"]);
}

#[test]
fn a_log_filter_that_is_none_is_a_wrong_command_line() {
    fails(&["--log", "a=b=c", "crd"], 2, &["--log"]);
}

#[test]
fn the_help_tells_every_exit_code() {
    let help = prints(&["--help"]);
    for code in ["0", "1", "2", "3", "4", "5", "6", "7", "130"] {
        assert!(help.contains(&format!("  {code}  ")), "{code} is missing in {help}");
    }
}

#[test]
fn a_completion_script_is_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = prints(&["completions", shell]);
        assert!(
            script.contains("ATTACHD_COMPLETE") && script.contains("attachd"),
            "{shell}: {script}"
        );
    }
}

#[test]
fn bash_completes_commands_and_options_by_the_script() {
    let binary = assert_cmd::cargo::cargo_bin("attachd");
    let path = format!("{}:/usr/bin:/bin", binary.parent().unwrap().display());
    for (words, expected) in
        [("attachd attach --mul", "--multipath"), ("attachd attachm", "attachment")]
    {
        let script = format!(
            "source <(attachd completions bash); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); \
             COMP_TYPE=9; _clap_complete_attachd attachd \"${{COMP_WORDS[-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        let done = bash.env_clear().env("PATH", &path).args(["-c", &script]).output().unwrap();
        let (seen, said) =
            (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr));
        assert_eq!(seen.trim(), expected, "{words}: {said:?}");
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    assert!(prints(&["man"]).contains(".TH attachd 1"));
    let directory = tempfile::tempdir().unwrap();
    prints(&["man", "--dir", directory.path().to_str().unwrap()]);
    for page in
        ["attachd.1", "attachd-attach.1", "attachd-detach.1", "attachd-run.1", "attachd-inspect.1"]
    {
        assert!(directory.path().join(page).is_file(), "{page}");
    }
}

#[test]
fn a_node_without_attachments_says_so_and_gives_json() {
    let text = prints(&["inspect"]);
    assert!(text.contains("no attachment") || text.contains("other session"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&prints(&["inspect", "-o", "json"])).unwrap();
    assert_eq!(json["attachments"], serde_json::json!([]));
}
