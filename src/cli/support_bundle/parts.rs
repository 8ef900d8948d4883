use std::{
    fmt::{Display, Write as _},
    future::ready,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{FutureExt as _, future::LocalBoxFuture};
use serde::Serialize;

use super::super::{doctor, exit::Failure, inspect, orphans, paths, trace};
use crate::{
    config::Options,
    doctor::{Node, files_below, kernel_log, tail},
    host::exec::Program,
};

/// Files of the archive that come of one look.
pub(super) struct Part<'a> {
    pub(super) names: Vec<String>,
    pub(super) texts: LocalBoxFuture<'a, Vec<String>>,
}

fn part<'a>(name: impl Into<String>, text: impl Future<Output = String> + 'a) -> Part<'a> {
    Part { names: vec![name.into()], texts: text.map(|text| vec![text]).boxed_local() }
}

/// The same for a person and for a program.
fn both<'a>(name: &str, texts: impl Future<Output = [String; 2]> + 'a) -> Part<'a> {
    let names = ["txt", "json"].map(|ending| format!("{name}.{ending}"));
    Part { names: names.to_vec(), texts: texts.map(Vec::from).boxed_local() }
}

/// What a tool of the host says. None changes anything, or shows a secret by itself.
const TOOLS: [(&str, Program, &[&str]); 12] = [
    ("tools/iscsiadm-session.txt", Program::Iscsiadm, &["-m", "session", "-P", "3"]),
    ("tools/iscsiadm-node.txt", Program::Iscsiadm, &["-m", "node"]),
    ("tools/iscsiadm-version.txt", Program::Iscsiadm, &["--version"]),
    ("tools/multipath.txt", Program::Multipath, &["-ll"]),
    ("tools/dmsetup-table.txt", Program::Dmsetup, &["table"]),
    ("tools/dmsetup-info.txt", Program::Dmsetup, &["info", "-c"]),
    ("tools/lsblk.txt", Program::Lsblk, &["--output-all", "--pairs"]),
    ("tools/ip-address.txt", Program::Ip, &["address"]),
    ("tools/ip-route.txt", Program::Ip, &["route", "show", "table", "all"]),
    ("tools/ip-link.txt", Program::Ip, &["-statistics", "link"]),
    (
        "logs/journal.txt",
        Program::Journalctl,
        &[
            "--no-pager",
            "--since=-6h",
            "--unit=iscsid",
            "--unit=open-iscsi",
            "--unit=multipathd",
            "--unit=systemd-udevd",
            "--identifier=attachd",
            "--identifier=kernel",
        ],
    ),
    ("logs/journal-boots.txt", Program::Journalctl, &["--no-pager", "--list-boots"]),
];

const QUESTIONS: [(&str, &str); 4] = [
    ("multipathd/config.txt", "show config local"),
    ("multipathd/paths.txt", "show paths"),
    ("multipathd/maps.txt", "show maps status"),
    ("multipathd/blacklist.txt", "show blacklist"),
];

/// Files of the host, and whole directories of small ones.
const FILES: [&str; 20] = [
    "etc/iscsi/iscsid.conf",
    "etc/iscsi/initiatorname.iscsi",
    "etc/iscsi/nodes",
    "etc/iscsi/attachd-kept",
    "var/lib/iscsi/nodes",
    "var/lib/iscsi/attachd-kept",
    "etc/multipath.conf",
    "etc/multipath/conf.d",
    "etc/multipath/wwids",
    "etc/multipath/bindings",
    "etc/os-release",
    "etc/modprobe.d",
    "proc/version",
    "proc/cmdline",
    "proc/modules",
    "proc/meminfo",
    "proc/loadavg",
    "proc/uptime",
    "proc/1/mountinfo",
    "proc/net/dev",
];

/// Those below the state directory: no secrets are in them.
const OF_STATE: [&str; 2] = ["volumes", "targets"];

/// Everything that is gathered, side by side.
pub(super) fn parts<'a>(options: &'a Options, node: &'a Result<Node, Failure>) -> Vec<Part<'a>> {
    let journal = options.clone();
    let mut parts = vec![
        part("attachd.txt", ready(own(options))),
        both("doctor", async move {
            let report = doctor::examine(options, node).await;
            [doctor::table(&report), json(&report)]
        }),
        both("inspect", async move {
            match inspect::inventory(options, None).await {
                Ok(all) => [inspect::told(&all), json(&all)],
                Err(failure) => [not_gathered(&failure), not_gathered(&failure)],
            }
        }),
        part("orphans.txt", async move { gathered(orphans::told(options).await) }),
        part("paths.txt", async move { gathered(paths::told(options).await) }),
        part("trace.txt", blocking(move || gathered(trace::told(&journal)))),
    ];
    for (name, program, args) in TOOLS {
        parts.push(part(name, async move {
            match node {
                Ok(node) => said(node, program, args).await,
                Err(failure) => not_gathered(failure),
            }
        }));
    }
    for (name, question) in QUESTIONS {
        parts.push(part(name, async move {
            match node {
                Ok(node) => node.multipathd_says(question).await,
                Err(failure) => not_gathered(failure),
            }
        }));
    }
    let root = options.host_root.clone();
    for file in FILES {
        parts.push(read(format!("files/{file}.txt"), root.join(file)));
    }
    for directory in OF_STATE {
        parts.push(read(format!("state/{directory}.txt"), options.state_dir.join(directory)));
    }
    parts.push(part(
        "logs/kernel.txt",
        blocking(|| {
            let lines = kernel_log(Path::new("/dev/kmsg"), Duration::ZERO);
            lines.iter().fold(String::new(), |text, (at, line)| {
                format!("{text}[{:12.6}] {line}\n", at.as_secs_f64())
            })
        }),
    ));
    parts
}

fn gathered<E: Display>(text: Result<String, E>) -> String {
    text.unwrap_or_else(|error| not_gathered(&error))
}

fn not_gathered(why: &dyn Display) -> String {
    format!("not gathered: {why}\n")
}

fn json(value: &impl Serialize) -> String {
    gathered(serde_json::to_string_pretty(value))
}

async fn blocking(work: impl FnOnce() -> String + Send + 'static) -> String {
    gathered(tokio::task::spawn_blocking(work).await)
}

/// Versions, and how this process was told to work. Secrets don't show themselves.
fn own(options: &Options) -> String {
    let mut text = format!("attachd {}\n\n{options:#?}\n\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in std::env::vars() {
        if name.starts_with("ATTACHD_") || name.starts_with("OS_") || name.starts_with("KUBE") {
            let _ = writeln!(text, "{name}={value}");
        }
    }
    text
}

async fn said(node: &Node, program: Program, args: &[&str]) -> String {
    match node.tool(program, args).await {
        Ok(output) => {
            let mut text = format!("# {program} {}: {}\n", args.join(" "), output.exit);
            text.push_str(&output.stdout);
            if !output.stderr.trim().is_empty() {
                let _ = write!(text, "\n# stderr:\n{}", output.stderr);
            }
            text
        }
        Err(error) => not_gathered(&error),
    }
}

fn read<'a>(name: String, path: PathBuf) -> Part<'a> {
    part(
        name,
        blocking(move || {
            let files = if path.is_dir() { files_below(&path, 5) } else { vec![path] };
            files.iter().fold(String::new(), |text, file| {
                let content = gathered(tail(file));
                let end = if content.ends_with('\n') { "" } else { "\n" };
                format!("{text}# {}\n{content}{end}", file.display())
            })
        }),
    )
}
