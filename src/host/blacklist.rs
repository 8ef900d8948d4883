//! Whether multipathd's configuration lets it have iSCSI disks at all.
//!
//! ```text
//! # multipathd show blacklist
//! device node rules:
//! - blacklist:
//!         (default rule)     !^(sd[a-z]|dasd[a-z]|nvme[0-9])
//!         (config file rule) ^sd
//! - exceptions:
//!         <empty>
//! udev property rules:
//! …
//! protocol rules:
//! wwid rules:
//! device rules:
//! - blacklist:
//!         (config file rule) .*:.*
//! ```
//!
//! A rule is a POSIX extended regular expression that matches anywhere; a leading `!` turns it round;
//! an exception beats the blacklist of its own section (`blacklist.c`).

use regex::Regex;

use crate::model::{ScsiDevice, Wwid};

/// One section: the rules that keep off, and those that let in again.
#[derive(Debug, Default)]
struct Section {
    blacklist: Vec<String>,
    exceptions: Vec<String>,
}

/// What rules are held against.
struct Names<'a> {
    nodes: &'a [&'a str],
    wwids: &'a [&'a str],
    /// Vendor and product, as the report joins them.
    devices: &'a [(&'a str, &'a str)],
}

/// They stand for any iSCSI disk: a rule that hits all of one line hits every disk.
const ANY: Names<'_> = Names {
    nodes: &["sda", "sdq", "sdaa", "sdzzz"],
    wwids: &[
        "360000000000000000e00000000010001",
        "36001405c01de400000000000000000a1",
        "1IET_00010001",
    ],
    devices: &[("IET", "VIRTUAL-DISK"), ("LIO-ORG", "d0"), ("Pure", "FlashArray")],
};
const PROTOCOLS: [&str; 1] = ["scsi:iscsi"];

/// The rule that keeps multipathd off every iSCSI disk, if there is one. Rules by udev property are
/// not judged: they depend on what udev says of the one disk.
pub(crate) fn blacklisting_rule(report: &str) -> Option<String> {
    rule_against(report, &ANY)
}

/// The rule that keeps multipathd off this disk, if there is one.
pub(crate) fn rule_against_disk(report: &str, disk: &ScsiDevice) -> Option<String> {
    let wwid = disk.wwid.as_ref().map(Wwid::as_str);
    let names = Names {
        nodes: &[disk.name.as_str()],
        wwids: wwid.as_slice(),
        devices: &[(&disk.vendor, &disk.model)],
    };
    rule_against(report, &names)
}

/// A rule that hits all of the names of its kind, and that no exception takes back.
fn rule_against(report: &str, names: &Names<'_>) -> Option<String> {
    let section = |title| sections(report, title);
    let plain = |title, names: &[&str]| {
        let section = section(title);
        let all = names.iter().all(|name| !section.exceptions.iter().any(|rule| hits(rule, name)));
        let hits_all = |rule: &&String| names.iter().all(|name| hits(rule, name));
        let rule = section.blacklist.iter().find(hits_all);
        rule.filter(|_| all && !names.is_empty()).cloned()
    };
    plain("device node rules:", names.nodes)
        .or_else(|| plain("protocol rules:", &PROTOCOLS))
        .or_else(|| plain("wwid rules:", names.wwids))
        .or_else(|| {
            let section = section("device rules:");
            let devices = names.devices;
            let hits_all = |rule: &&String| devices.iter().all(|device| hits_device(rule, *device));
            let excepted = |rule: &String| devices.iter().any(|device| hits_device(rule, *device));
            let rule = section.blacklist.iter().find(hits_all);
            rule.filter(|_| !section.exceptions.iter().any(excepted)).cloned()
        })
}

fn sections(report: &str, title: &str) -> Section {
    let mut section = Section::default();
    let (mut inside, mut exceptions) = (false, false);
    for line in report.lines() {
        match line.trim_end() {
            heading if !heading.starts_with([' ', '\t', '-']) => inside = heading == title,
            "- blacklist:" => exceptions = false,
            "- exceptions:" => exceptions = true,
            rule if inside => {
                let rule = rule.trim_start();
                // `(default rule)     <regex>` or `(config file rule) <regex>`; else `<empty>`.
                if let Some((_, rule)) =
                    rule.strip_prefix('(').and_then(|rest| rest.split_once(')'))
                {
                    let list =
                        if exceptions { &mut section.exceptions } else { &mut section.blacklist };
                    list.push(rule.trim().to_owned());
                }
            }
            _ => {}
        }
    }
    section
}

/// Whether a rule matches a name. A rule that can't be understood matches nothing.
fn hits(rule: &str, name: &str) -> bool {
    let (pattern, wanted) = rule.strip_prefix('!').map_or((rule, true), |rest| (rest, false));
    Regex::new(pattern).is_ok_and(|regex| regex.is_match(name) == wanted)
}

/// A device rule is `vendor:product`; an empty side matches anything.
fn hits_device(rule: &str, (vendor, product): (&str, &str)) -> bool {
    let (vendors, products) = rule.split_once(':').unwrap_or((rule, ""));
    let fits = |pattern: &str, name| matches!(pattern, "" | "(null)") || hits(pattern, name);
    fits(vendors, vendor) && fits(products, product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceName, DeviceNumber, DeviceState};

    fn report(nodes: &str, protocols: &str, wwids: &str, devices: &str) -> String {
        let section = |title: &str, rules: &str| {
            let (blacklist, exceptions) = rules.split_once('|').unwrap_or((rules, ""));
            let lines = |rules: &str| match rules {
                "" => "        <empty>\n".to_owned(),
                rule => format!("        (config file rule) {rule}\n"),
            };
            format!(
                "{title} rules:\n- blacklist:\n{}- exceptions:\n{}",
                lines(blacklist),
                lines(exceptions)
            )
        };
        [
            section("device node", nodes),
            section("udev property", "|(SCSI_IDENT_.ID_WWN)"),
            section("protocol", protocols),
            section("wwid", wwids),
            section("device", devices),
        ]
        .concat()
    }

    #[test]
    fn the_default_configuration_lets_multipathd_have_iscsi_disks() {
        let default = report("", "", "", "").replace(
            "device node rules:\n- blacklist:\n        <empty>",
            "device node rules:\n- blacklist:\n        (default rule)     !^(sd[a-z]|dasd[a-z]|nvme[0-9])",
        );
        assert_eq!(blacklisting_rule(&default), None);
        let captured = crate::host::fixtures::text("multipathd/show-blacklist.txt");
        assert_eq!(blacklisting_rule(&captured), None);
        let config = "(config file rule) ^sd[a-z]\n        (default rule)     !^(sd";
        let with_config = captured.replacen("(default rule)     !^(sd", config, 1);
        assert_eq!(blacklisting_rule(&with_config).as_deref(), Some("^sd[a-z]"));
        assert_eq!(blacklisting_rule(""), None);
    }

    #[test]
    fn a_rule_that_hits_every_iscsi_disk_is_named() {
        for (report, rule) in [
            (report("^sd", "", "", ""), "^sd"),
            (report(".*", "", "", ""), ".*"),
            (report("^sd[a-z]", "", "", ""), "^sd[a-z]"),
            (report("", "scsi:.*", "", ""), "scsi:.*"),
            (report("", "", ".*", ""), ".*"),
            (report("", "", "", ".*:.*"), ".*:.*"),
        ] {
            assert_eq!(blacklisting_rule(&report).as_deref(), Some(rule), "{report}");
        }
    }

    #[test]
    fn a_rule_that_hits_one_disk_is_named_for_that_disk_alone() {
        let disk = ScsiDevice {
            hctl: "2:0:0:1".parse().unwrap(),
            name: DeviceName::new("sdb").unwrap(),
            number: DeviceNumber { major: 8, minor: 16 },
            diskseq: Some(7),
            size_bytes: 1 << 30,
            wwid: Some("36001405c01de400000000000000000a1".parse().unwrap()),
            vendor: "LIO-ORG".to_owned(),
            model: "volume-1".to_owned(),
            state: DeviceState::Running,
            read_only: false,
            holders: Vec::new(),
        };
        for (report, rule) in [
            (report("^sdb$", "", "", ""), Some("^sdb$")),
            (report("^sda$", "", "", ""), None),
            (report("", "", "^36001405", ""), Some("^36001405")),
            (report("", "", "^3600000", ""), None),
            (report("", "", "", "LIO-ORG:.*"), Some("LIO-ORG:.*")),
            (report("", "", "", "LIO-ORG:.*|LIO-ORG:volume"), None),
            (report("", "", "", "IET:.*"), None),
        ] {
            assert_eq!(rule_against_disk(&report, &disk).as_deref(), rule, "{report}");
        }
    }

    #[test]
    fn rules_for_some_disks_and_excepted_ones_do_not_count() {
        for report in [
            report("^sda$", "", "", ""),
            report("^sd|^sd", "", "", ""),
            report("", "scsi:fcp", "", ""),
            report("", "", ".*|^36001405", ""),
            report("", "", "", "IBM:.*"),
            report("", "", "", ".*:.*|LIO-ORG:"),
            report("([unclosed", "", "", ""),
        ] {
            assert_eq!(blacklisting_rule(&report), None, "{report}");
        }
    }
}
