use super::{
    Check, Finding,
    node::{Asked, Node, installed, stopped},
};
use crate::{
    attach::Ledger,
    host::{Host as _, blacklisting_rule, rule_against_disk},
    model::ScsiDevice,
};

pub(super) const RUNNING: Check = Check {
    id: "multipathd-running",
    looks_at: "multipathd's socket, and whether it answers",
    why: "Without multipathd a volume has one path: when that fails, the volume stands still.",
};
pub(super) const BLACKLIST: Check = Check {
    id: "multipath-blacklist",
    looks_at: "blacklists that keep multipathd off every iSCSI disk, or off one of an attached volume",
    why: "Cinder is then asked for one path only, and requests with multipath: required are refused.",
};
pub(super) const QUEUEING: Check = Check {
    id: "multipath-queueing",
    looks_at: "no_path_retry and queue_if_no_path, in every section that is in force, and flush_on_last_del",
    why: "A map that queues for ever without a path makes every process that touches it hang, until somebody forces it.",
};
pub(super) const CONFIGURATION: Check = Check {
    id: "multipath-config",
    looks_at: "find_multipaths, user_friendly_names, uid_attribute, reassign_maps and failover times",
    why: "They decide which disks become maps, under which names, and how soon a dead path is left.",
};

pub(super) const CHECKS: [&Check; 4] = [&RUNNING, &BLACKLIST, &QUEUEING, &CONFIGURATION];

pub(super) async fn look(node: &Node) -> Vec<(&'static Check, Finding)> {
    // One question after another: that is how it answers.
    let blacklist = match node.multipathd("show blacklist").await {
        Asked::Answered(report) => report,
        Asked::Refused(why) => return away(&Finding::unknown(why)),
        Asked::Silent => return away(&silent(node).await),
        Asked::Nobody => {
            let start = node.start("multipathd", "multipathd");
            let finding = Finding::warning("nobody listens on multipathd's socket");
            return away(&if installed(&node.config.root, "multipathd") {
                finding.mend(start)
            } else {
                finding.advise("install multipath-tools (Debian, Ubuntu) or device-mapper-multipath (Red Hat), and start multipathd")
            });
        }
    };
    let running = (&RUNNING, Finding::ok("it answers on its socket"));
    let disks = of_maps(node).await;
    let blacklisted = (&BLACKLIST, judge_blacklist(&blacklist, &disks));
    let of_config = match node.multipathd("show config local").await {
        Asked::Answered(text) => {
            let config = Config::parse(&text);
            [(&QUEUEING, judge_queueing(&config)), (&CONFIGURATION, judge_configuration(&config))]
        }
        Asked::Refused(_) | Asked::Nobody | Asked::Silent => {
            let unknown = Finding::unknown("multipathd doesn't tell its configuration");
            [(&QUEUEING, unknown.clone()), (&CONFIGURATION, unknown)]
        }
    };
    [running, blacklisted].into_iter().chain(of_config).collect()
}

/// What is known where multipathd doesn't answer.
fn away(running: &Finding) -> Vec<(&'static Check, Finding)> {
    let others = Finding::left_out("multipathd doesn't answer; see multipathd-running");
    let answer = |check: &'static Check| {
        (check, if check == &RUNNING { running.clone() } else { others.clone() })
    };
    CHECKS.into_iter().map(answer).collect()
}

async fn silent(node: &Node) -> Finding {
    let proc = node.host("proc");
    let finding = Finding::failed("multipathd listens, and doesn't answer");
    match node.read("/proc", move || stopped(&proc, &["multipathd"])).await {
        Ok(Some(pids)) => finding.run(format!("kill -CONT {pids}")),
        Ok(None) | Err(_) => finding
            .advise("it may wait for a disk that doesn't answer: see stuck-processes, and attachd paths")
            .mend(node.restart("multipathd", "multipathd")),
    }
}

/// The disks of volumes that are to have a map.
async fn of_maps(node: &Node) -> Vec<ScsiDevice> {
    let Some(ledger) = Ledger::look(node.state_dir()) else { return Vec::new() };
    let (Ok(records), Ok(host)) = (ledger.records().await, node.linux().observe().await) else {
        return Vec::new();
    };
    let mapped = records.into_iter().flatten().filter(|record| record.multipath);
    let paths: Vec<_> = mapped.flat_map(|record| record.paths.clone()).collect();
    paths.iter().filter_map(|path| host.disk_at(path)).cloned().collect()
}

fn judge_blacklist(report: &str, disks: &[ScsiDevice]) -> Finding {
    let mend = |finding: Finding| {
        finding
            .advise("take the rule out of the blacklist section of /etc/multipath.conf (or a file of /etc/multipath/conf.d), or add a blacklist_exceptions section for the storage")
            .run("multipathd reconfigure")
    };
    if let Some(rule) = blacklisting_rule(report) {
        let what = format!("the rule {rule:?} keeps multipathd off every iSCSI disk");
        return mend(Finding::failed(what));
    }
    let against = |disk: &ScsiDevice| {
        let rule = rule_against_disk(report, disk)?;
        let (name, vendor, model) = (&disk.name, &disk.vendor, &disk.model);
        let what = format!(
            "the rule {rule:?} keeps multipathd off {name} ({vendor} {model}), a path of an attached volume"
        );
        Some(mend(Finding::failed(what)))
    };
    let parts: Vec<Finding> = disks.iter().filter_map(against).collect();
    if parts.is_empty() {
        Finding::ok("none that hits this node's iSCSI disks")
    } else {
        Finding::all(parts)
    }
}

/// What `show config local` prints: sections of `name value` lines, of the devices that are here.
#[derive(Debug, Default)]
struct Config {
    defaults: Vec<(String, String)>,
    /// Those of `overrides`, which beat all others.
    overrides: Vec<(String, String)>,
    /// Vendor and product, and the settings that such devices have of their own.
    devices: Vec<(String, Vec<(String, String)>)>,
}

impl Config {
    fn parse(text: &str) -> Self {
        let mut config = Self::default();
        let mut sections: Vec<String> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(section) = line.strip_suffix('{') {
                sections.push(section.trim().to_owned());
                if sections == ["devices", "device"] {
                    config.devices.push((String::new(), Vec::new()));
                }
                continue;
            }
            if line == "}" {
                sections.pop();
                continue;
            }
            let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
            let (name, value) = (name.to_owned(), value.trim().trim_matches('"').to_owned());
            match sections.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["defaults"] => config.defaults.push((name, value)),
                ["overrides"] => config.overrides.push((name, value)),
                ["devices", "device"] => {
                    if let Some((device, settings)) = config.devices.last_mut() {
                        if matches!(name.as_str(), "vendor" | "product") {
                            device.push_str(&value);
                            device.push(' ');
                        } else {
                            settings.push((name, value));
                        }
                    }
                }
                _ => {}
            }
        }
        config
    }

    fn default_of(&self, name: &str) -> Option<&str> {
        let last =
            |settings: &[(String, String)]| settings.iter().rposition(|(key, _)| key == name);
        if let Some(at) = last(&self.overrides) {
            return Some(&self.overrides[at].1);
        }
        last(&self.defaults).map(|at| self.defaults[at].1.as_str())
    }
}

fn judge_queueing(config: &Config) -> Finding {
    let forever = |value: &str| {
        value == "queue" || value.split_whitespace().any(|word| word == "queue_if_no_path")
    };
    let hangs = |name: &str, value: &str, whose: &str| {
        Finding::warning(format!("{name} \"{value}\" for {whose}: a map without a path keeps its I/O for ever"))
            .advise("in /etc/multipath.conf set no_path_retry to a number of checks (12 with polling_interval 5 is a minute), leave queue_if_no_path out of features, then run: multipathd reconfigure")
    };
    let mut parts = Vec::new();
    for name in ["no_path_retry", "features"] {
        if let Some(value) = config.default_of(name).filter(|value| forever(value)) {
            parts.push(hangs(name, value, "all devices"));
        }
    }
    // What stands in `overrides` beats them.
    if config.overrides.iter().all(|(name, _)| name != "no_path_retry") {
        for (device, settings) in &config.devices {
            for (name, value) in
                settings.iter().filter(|(name, value)| name == "no_path_retry" && forever(value))
            {
                parts.push(hangs(name, value, device.trim()));
            }
        }
    }
    if parts.is_empty() {
        let value = config.default_of("no_path_retry").unwrap_or("fail (the default)");
        return Finding::ok(format!("no_path_retry {value}"));
    }
    Finding::all(parts)
}

fn judge_configuration(config: &Config) -> Finding {
    let value = |name: &str| config.default_of(name);
    let mut parts = Vec::new();
    if let Some(attribute) =
        value("uid_attribute").filter(|it| !matches!(*it, "ID_SERIAL" | "ID_UID" | "ID_WWN"))
    {
        parts.push(
            Finding::warning(format!("uid_attribute {attribute:?}: disks get no or other WWIDs by it"))
                .advise("set uid_attribute \"ID_SERIAL\" in /etc/multipath.conf, then run: multipathd reconfigure"),
        );
    }
    if value("reassign_maps") == Some("yes") {
        parts.push(
            Finding::warning(
                "reassign_maps yes: multipathd puts its maps below other maps while they are used",
            )
            .advise(
                "set reassign_maps \"no\" in /etc/multipath.conf, then run: multipathd reconfigure",
            ),
        );
    }
    if value("fast_io_fail_tmo") == Some("off") {
        parts.push(
            Finding::warning("fast_io_fail_tmo off: a dead path is left only after open-iscsi's replacement_timeout")
                .advise("set fast_io_fail_tmo 5 in /etc/multipath.conf, then run: multipathd reconfigure"),
        );
    }
    if value("polling_interval")
        .and_then(|it| it.parse::<u32>().ok())
        .is_some_and(|seconds| seconds > 60)
    {
        parts.push(
            Finding::warning(format!(
                "polling_interval {}: a path that is back is found late",
                value("polling_interval").unwrap_or_default()
            ))
            .advise(
                "set polling_interval 5 in /etc/multipath.conf, then run: multipathd reconfigure",
            ),
        );
    }
    if parts.is_empty() {
        let said = |name: &str| format!("{name} {}", value(name).unwrap_or("by default"));
        return Finding::ok(
            ["find_multipaths", "user_friendly_names", "fast_io_fail_tmo"].map(said).join(", "),
        );
    }
    Finding::all(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const CONFIG: &str = "defaults {\n\tpolling_interval 5\n\tuid_attribute \"ID_SERIAL\"\n\tfeatures \"0\"\n\treassign_maps \"no\"\n\
        \tfast_io_fail_tmo 5\n\tfind_multipaths \"strict\"\n\tuser_friendly_names \"no\"\n}\nblacklist {\n\tdevice {\n\t\tvendor \"SGI\"\n\t}\n}\n\
        devices {\n\tdevice {\n\t\tvendor \"IET\"\n\t\tproduct \"VIRTUAL-DISK\"\n\t\tno_path_retry 12\n\t}\n}\noverrides {\n\tprotocol {\n\t}\n}\n";

    fn judged(text: &str) -> (Finding, Finding) {
        let config = Config::parse(text);
        (judge_queueing(&config), judge_configuration(&config))
    }

    #[test]
    fn a_usual_configuration_is_well() {
        let (queueing, configuration) = judged(CONFIG);
        assert_eq!((queueing.verdict, configuration.verdict), (Verdict::Ok, Verdict::Ok));
        assert_eq!(
            configuration.saw,
            ["find_multipaths strict, user_friendly_names no, fast_io_fail_tmo 5"]
        );
    }

    #[test]
    fn queueing_for_ever_is_found_in_defaults_overrides_features_and_the_storages_device() {
        for changed in [
            CONFIG.replace("polling_interval 5", "no_path_retry queue"),
            CONFIG.replace("overrides {", "overrides {\n\tno_path_retry \"queue\""),
            CONFIG.replace("features \"0\"", "features \"1 queue_if_no_path\""),
            CONFIG.replace("no_path_retry 12", "no_path_retry \"queue\""),
        ] {
            assert_eq!(judged(&changed).0.verdict, Verdict::Warning, "{changed}");
        }
        let beaten = CONFIG
            .replace("vendor \"NETAPP\"", "vendor \"IET\"")
            .replace("overrides {", "overrides {\n\tno_path_retry 12");
        assert_eq!(judged(&beaten).0.verdict, Verdict::Ok);
    }

    #[test]
    fn settings_that_hurt_are_named() {
        for (from, to) in [
            ("\"ID_SERIAL\"", "\"ID_PATH\""),
            ("reassign_maps \"no\"", "reassign_maps \"yes\""),
            ("fast_io_fail_tmo 5", "fast_io_fail_tmo \"off\""),
            ("polling_interval 5", "polling_interval 300"),
        ] {
            assert_eq!(judged(&CONFIG.replace(from, to)).1.verdict, Verdict::Warning, "{to}");
        }
    }
}
