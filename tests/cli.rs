//! The command line as far as it goes without a node and a Cinder: usage, exit codes, generated texts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use assert_cmd::{Command, assert::Assert};

const VOLUME: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";

fn attachd(state: &tempfile::TempDir, arguments: &[&str]) -> Assert {
    attachd_with(state, &[], arguments)
}

fn attachd_with(state: &tempfile::TempDir, env: &[(&str, &str)], arguments: &[&str]) -> Assert {
    let mut command = Command::cargo_bin("attachd").unwrap();
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("ATTACHD_") || name.starts_with("OS_"))
    {
        command.env_remove(name);
    }
    // No clouds.yaml of this machine.
    command.current_dir(state.path()).env("HOME", state.path());
    command.envs(env.iter().copied());
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
        [&["attach"][..], &["detach"], &["resize"], &["plan", "attach"], &["plan", "detach"]]
    {
        fails(&[command, &["nope"]].concat(), 2, &["\"nope\" is not a volume id", "5c2f7a1e-"]);
    }
}

#[test]
fn a_trace_of_what_nobody_knows_says_what_is_known_and_is_refused() {
    fails(&["trace", "nope"], 3, &["\"nope\"", "nothing in", "journal", "state directory"]);
    let state = tempfile::tempdir().unwrap();
    let journal = state.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let line = r#"{"at":"2026-11-22T18:00:00Z","run":"a","kind":"began","doing":"attach","origin":"the request","request":"db","pid":7,"version":"0"}"#;
    std::fs::write(journal.join(format!("{VOLUME}.jsonl")), format!("{line}\n")).unwrap();
    let failed = attachd(&state, &["trace", "nope"]).code(3);
    let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(said.contains("it knows db, ") && said.contains(VOLUME), "{said}");
    for which in ["db", VOLUME] {
        let shown = attachd(&state, &["trace", which]).success();
        let text = String::from_utf8_lossy(&shown.get_output().stdout).into_owned();
        assert!(text.contains(&format!("attach of volume {VOLUME}: no end")), "{text}");
    }
    attachd(&state, &["trace", "db", "--last", "0"]).code(2);
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
fn without_a_cloud_the_ways_to_name_one_are_told() {
    for command in ["attach", "detach", "resize"] {
        let words = ["--os-cloud", "OS_CLOUD", "--os-auth-url", "--os-endpoint", "[CloudUnknown]"];
        fails(&[command, VOLUME], 2, &words);
    }
    fails(
        &["--os-auth-type", "none", "--os-endpoint", "http://127.0.0.1:9", "detach", VOLUME],
        2,
        &["--os-project-id", "OS_PROJECT_ID"],
    );
}

#[test]
fn a_slip_in_clouds_yaml_is_told_with_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clouds.yaml");
    let text =
        "clouds:\n  a:\n    auth:\n      auth_url: http://127.0.0.1:9\n      passwrod: hunter2\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    fails(
        &["--os-client-config-file", file, "attach", VOLUME],
        2,
        &[&format!("{file}, line 5: auth.passwrod"), "\"password\"", "[CloudMisconfigured]"],
    );
}

/// Every `OS_*` that the help names.
fn variables() -> Vec<String> {
    let help = prints(&["--help"]);
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
    names.filter(|name| name.starts_with("OS_")).map(str::to_owned).collect()
}

#[test]
fn an_empty_variable_is_none() {
    let names = variables();
    assert!(names.len() > 25, "{names:?}");
    let env: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let state = tempfile::tempdir().unwrap();
    let failed = attachd_with(&state, &env, &["detach", VOLUME]).code(2);
    let stderr = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(stderr.contains("[CloudUnknown]"), "{stderr}");
}

#[test]
fn an_option_wins_over_its_variable() {
    let env = [("OS_AUTH_TYPE", "none"), ("OS_PROJECT_ID", "c0ffee"), ("OS_ENDPOINT", "nowhere")];
    let state = tempfile::tempdir().unwrap();
    let failed = attachd_with(&state, &env, &["detach", VOLUME]).code(2);
    let stderr = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(stderr.contains("--os-endpoint (OS_ENDPOINT): this is not a URL"), "{stderr}");
    attachd_with(&state, &env, &["--os-endpoint", "http://127.0.0.1:9", "detach", VOLUME])
        .success();
}

#[test]
fn that_no_certificate_is_verified_is_said_in_the_log() {
    let state = tempfile::tempdir().unwrap();
    let arguments = ["--os-auth-type", "none", "--os-endpoint", "https://127.0.0.1:9"];
    let rest = ["--os-project-id", "c0ffee", "--insecure", "detach", VOLUME];
    let done = attachd(&state, &[&arguments[..], &rest].concat()).success();
    let stderr = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(stderr.contains("Cinder's certificate is not verified"), "{stderr}");
}

#[test]
fn keystone_is_asked_through_the_environments_proxy_and_this_machine_is_not() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let (sender, asked) = mpsc::channel();
    thread::spawn(move || {
        for stream in proxy.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), [0; 4096]);
            let length = stream.read(&mut head).unwrap();
            let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap().to_owned();
            let _ = stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
            sender.send(line).unwrap();
        }
    });
    let state = tempfile::tempdir().unwrap();
    let ask = |url: &str| {
        let env = [
            ("http_proxy", address.as_str()),
            ("no_proxy", ""),
            ("OS_AUTH_URL", url),
            ("OS_USERNAME", "u"),
            ("OS_PASSWORD", "hunter2"),
        ];
        attachd_with(&state, &env, &["attach", VOLUME]).code(4);
    };
    ask("http://127.0.0.1:9");
    assert!(asked.try_recv().is_err(), "a proxy was asked for this machine");
    ask("http://keystone.invalid:5000");
    assert_eq!(asked.recv().unwrap(), "POST http://keystone.invalid:5000/v3/auth/tokens HTTP/1.1");
}

#[test]
fn a_password_in_the_environment_is_in_no_help() {
    let help =
        Command::cargo_bin("attachd").unwrap().env("OS_PASSWORD", "hunter2").arg("--help").assert();
    let text = String::from_utf8_lossy(&help.success().get_output().stdout).into_owned();
    assert!(text.contains("OS_PASSWORD") && !text.contains("hunter2"), "{text}");
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

fn stdout_of(arguments: &[&str], code: i32) -> String {
    let state = tempfile::tempdir().unwrap();
    let printed = attachd(&state, arguments).code(code);
    String::from_utf8(printed.get_output().stdout.clone()).unwrap()
}

#[test]
fn a_handle_that_nothing_goes_by_is_told_by_the_exit_code_and_what_is_not_attachds_is_described() {
    for handle in ["no-such-request", VOLUME, "/dev/no-such-disk", "36e0a1cc2bac035ba048"] {
        assert!(stdout_of(&["inspect", handle], 8).contains("holds no attachment"), "{handle}");
    }
    let root = stdout_of(&["inspect", "/"], 0);
    assert!(root.contains("no disk of an iSCSI session"), "{root}");
}

#[test]
fn orphans_without_a_cloud_are_not_known_and_that_is_not_all_well() {
    assert!(stdout_of(&["orphans"], 8).contains("! not known: Cinder was not asked"));
    let json = stdout_of(&["orphans", "-o", "json"], 8);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["unknown"], serde_json::json!(["Cinder was not asked"]));
    fails(&["orphans", "--clean"], 2, &["OS_"]);
}

#[test]
fn paths_of_a_node_without_attachments_are_none_and_a_watch_prints_lines_only() {
    assert!(prints(&["paths"]).contains("holds no attachment"));
    assert_eq!(prints(&["paths", "-o", "json"]).replace([' ', '\n'], ""), "{\"paths\":[]}");
    fails(&["paths", "--watch", "-o", "yaml"], 2, &["-o table or -o json"]);
}

#[test]
fn doctor_looks_at_any_machine_in_time_and_leaves_no_trace() {
    let state = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let cloud = [
        ("OS_AUTH_TYPE", "none"),
        ("OS_ENDPOINT", "http://127.0.0.1:1/v3"),
        ("OS_PROJECT_ID", "a77ac4d0a77ac4d0a77ac4d0a77ac4d0"),
    ];
    let began = std::time::Instant::now();
    let failed = attachd_with(&state, &cloud, &["doctor", "-o", "json"]).code(12);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    let report: serde_json::Value = serde_json::from_slice(&failed.get_output().stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), attachd::doctor::CHECKS.len());
    let verdict = |id: &str| {
        let check = checks.iter().find(|check| check["id"] == id).unwrap();
        check["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(verdict("cinder-reachable"), "failed");
    assert_eq!(verdict("ledger"), "ok");
    for check in checks.iter().filter(|check| check["verdict"] != "ok") {
        assert!(!check["saw"].as_array().unwrap().is_empty(), "{check}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "looking made something");
}

#[test]
fn a_check_that_is_none_is_a_wrong_command_line_and_names_those_that_are() {
    fails(&["doctor", "--explain", "nope"], 2, &["there is no such check", "iscsid-running"]);
}

#[test]
fn a_support_bundle_is_an_archive_for_its_reader_alone_and_never_writes_over_a_file() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("bundle.tar.gz");
    let name = file.to_str().unwrap();
    let secret = [("OS_PASSWORD", "planted-secret-7"), ("OS_CLOUD", "none")];
    attachd_with(&state, &secret, &["support-bundle", "--file", name]).success();
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap())
        .read_to_end(&mut text)
        .unwrap();
    let text = String::from_utf8_lossy(&text);
    for part in
        ["attachd.txt", "doctor.json", "trace.txt", "logs/kernel.txt", "OS_PASSWORD=<redacted>"]
    {
        assert!(text.contains(part), "there is no {part}");
    }
    assert!(!text.contains("planted-secret-7") && !text.contains('\u{1b}'));
    attachd_with(&state, &secret, &["support-bundle", "--file", name]).code(1);
}
