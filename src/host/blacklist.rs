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

/// One section: the rules that keep off, and those that let in again.
#[derive(Debug, Default)]
struct Section {
    blacklist: Vec<String>,
    exceptions: Vec<String>,
}

/// Names that stand for any iSCSI disk. A rule that hits all of one line hits every disk.
const DEVICE_NODES: [&str; 4] = ["sda", "sdq", "sdaa", "sdzzz"];
const PROTOCOLS: [&str; 1] = ["scsi:iscsi"];
const WWIDS: [&str; 3] =
    ["360000000000000000e00000000010001", "36001405c01de400000000000000000a1", "1IET_00010001"];
/// Vendor and product, as the report joins them.
const DEVICES: [(&str, &str); 3] =
    [("IET", "VIRTUAL-DISK"), ("LIO-ORG", "d0"), ("Pure", "FlashArray")];

/// The rule that keeps multipathd off every iSCSI disk, if there is one. Rules by udev property are
/// not judged: they depend on what udev says of the one disk.
pub(crate) fn blacklisting_rule(report: &str) -> Option<String> {
    let section = |title| sections(report, title);
    let plain = |title, names: &[&str]| {
        let section = section(title);
        let all = names.iter().all(|name| !section.exceptions.iter().any(|rule| hits(rule, name)));
        let rule = section.blacklist.iter().find(|rule| names.iter().all(|name| hits(rule, name)));
        rule.filter(|_| all).cloned()
    };
    plain("device node rules:", &DEVICE_NODES)
        .or_else(|| plain("protocol rules:", &PROTOCOLS))
        .or_else(|| plain("wwid rules:", &WWIDS))
        .or_else(|| {
            let section = section("device rules:");
            let hits_all = |rule: &&String| DEVICES.iter().all(|device| hits_device(rule, *device));
            let excepted = |rule: &String| DEVICES.iter().any(|device| hits_device(rule, *device));
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
