//! A disk's identity by VPD page 0x83 (SPC-6 7.7.6), as multipath-tools and sg3-utils' udev rules read it.
//!
//! udev's own `scsi_id` differs in one case: it prefers a locally assigned NAA designator to a T10 vendor
//! or EUI-64 one. multipathd takes udev's word, so [`multipath`](super::multipath) asks it for its own.

use crate::model::Wwid;

/// Bytes before the first designator.
const HEADER: usize = 4;

/// One designator of the page.
struct Designator<'a> {
    /// SPC-6 table 591: 1 T10 vendor, 2 EUI-64, 3 NAA, 8 SCSI name string, …
    kind: u8,
    value: &'a [u8],
}

impl Designator<'_> {
    /// The order of preference of `parse_vpd_pg83()` in multipath-tools' `discovery.c`, which is also
    /// that of sg3-utils' `55-scsi-sg3_id.rules`. `None`: not used, or not well-formed.
    fn preference(&self) -> Option<u8> {
        let starts_with_any =
            |prefixes: [&[u8]; 3]| prefixes.iter().any(|p| self.value.starts_with(p));
        match self.kind {
            3 => match (self.value.first().map(|byte| byte >> 4), self.value.len()) {
                (Some(6), 16) => Some(8),
                (Some(5), 8) => Some(7),
                (Some(2), 8) => Some(6),
                (Some(3), 8) => Some(1),
                _ => None,
            },
            2 => matches!(self.value.len(), 8 | 12 | 16).then_some(4),
            8 => starts_with_any([b"eui.", b"naa.", b"iqn."]).then_some(3),
            1 => (self.value.len() >= 8).then_some(2),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self.kind {
            8 => {
                let name = self.value.split(|b| *b == 0).next().unwrap_or_default();
                let rest = String::from_utf8_lossy(name.get(4..).unwrap_or_default()).into_owned();
                match name.get(..4) {
                    Some(b"eui.") => format!("2{}", rest.to_ascii_lowercase()),
                    Some(b"naa.") => format!("3{}", rest.to_ascii_lowercase()),
                    _ => format!("8{rest}"),
                }
            }
            // Runs of blanks become one underscore; those at the end vanish.
            1 => {
                let text = String::from_utf8_lossy(self.value);
                let text = text.split('\0').next().unwrap_or_default();
                let lead = if text.starts_with(' ') { "_" } else { "" };
                let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
                format!("1{lead}{}", words.join("_"))
            }
            kind => {
                let hex = self.value.iter().map(|byte| format!("{byte:02x}"));
                std::iter::once(kind.to_string()).chain(hex).collect()
            }
        }
    }
}

/// The WWID that multipath would give the disk, from the page as sysfs has it
/// (`device/vpd_pg83`). `None` where the page names no logical unit, or is cut short before one.
pub(crate) fn wwid_of_page83(page: &[u8]) -> Option<Wwid> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let mut rest = page.get(HEADER..page.len().min(HEADER + length))?;
    let mut best: Option<(u8, Designator)> = None;
    while let [_, flags, _, size, after @ ..] = rest {
        let Some(value) = after.get(..usize::from(*size)) else { break };
        let designator = Designator { kind: flags & 0x0f, value };
        let of_the_logical_unit = flags & 0x30 == 0;
        if let Some(preference) = designator.preference().filter(|_| of_the_logical_unit)
            && best.as_ref().is_none_or(|(known, _)| preference > *known)
        {
            best = Some((preference, designator));
        }
        rest = &after[value.len()..];
    }
    best?.1.text().trim_end_matches(' ').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixtures;

    fn page(designators: &[(u8, &[u8])]) -> Vec<u8> {
        let body: Vec<u8> = designators
            .iter()
            .flat_map(|(flags, value)| {
                [2, *flags, 0, u8::try_from(value.len()).unwrap()]
                    .into_iter()
                    .chain(value.iter().copied())
            })
            .collect();
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [0, 0x83, length[0], length[1]].into_iter().chain(body).collect()
    }

    fn wwid(designators: &[(u8, &[u8])]) -> Option<String> {
        wwid_of_page83(&page(designators)).map(|wwid| wwid.to_string())
    }

    const REGISTERED_EXTENDED: [u8; 16] =
        [0x60, 1, 0x40, 0x5c, 1, 0xde, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0xa1];
    const REGISTERED: [u8; 8] = [0x50, 0, 0, 0, 0, 0, 0, 1];
    const LOCAL: [u8; 8] = [0x30, 0, 0, 0, 0, 0, 0, 2];
    const T10: &[u8] = b"LIO-ORG d0:4ff3a0c1";

    #[test]
    fn of_several_designators_the_one_that_multipath_prefers_is_taken() {
        let all: [(u8, &[u8]); 5] = [
            (1, T10),
            (3, &LOCAL),
            (2, &[1, 2, 3, 4, 5, 6, 7, 8]),
            (3, &REGISTERED),
            (3, &REGISTERED_EXTENDED),
        ];
        assert_eq!(wwid(&all).unwrap(), "36001405c01de400000000000000000a1");
        assert_eq!(wwid(&all[..4]).unwrap(), "35000000000000001");
        assert_eq!(wwid(&all[..3]).unwrap(), "20102030405060708");
        assert_eq!(wwid(&all[..2]).unwrap(), "1LIO-ORG_d0:4ff3a0c1");
        assert_eq!(wwid(&all[1..2]).unwrap(), "33000000000000002");
    }

    #[test]
    fn designators_of_the_port_or_the_target_are_no_identity_of_the_disk() {
        assert_eq!(wwid(&[(0x13, &REGISTERED), (0x23, &REGISTERED)]), None);
        assert_eq!(wwid(&[(0x13, &REGISTERED), (1, T10)]).unwrap(), "1LIO-ORG_d0:4ff3a0c1");
    }

    #[test]
    fn names_and_vendor_ids_are_written_as_multipath_writes_them() {
        assert_eq!(wwid(&[(8, b"naa.600140ABCD\0\0")]).unwrap(), "3600140abcd");
        assert_eq!(wwid(&[(8, b"eui.0123456789ABCDEF")]).unwrap(), "20123456789abcdef");
        assert_eq!(wwid(&[(8, b"iqn.2010-10.org.x:A\0")]).unwrap(), "82010-10.org.x:A");
        assert_eq!(wwid(&[(1, b"IET     00010001    ")]).unwrap(), "1IET_00010001");
    }

    #[test]
    fn captured_pages_give_the_wwid_that_multipathd_gave() {
        let wwid_of = |paths: &str| {
            let text = fixtures::text(paths);
            text.split_whitespace().nth(1).unwrap().to_owned()
        };
        for (page, wwid) in [
            ("vpd/lio", "360014056001405c1de40000000000000"),
            ("vpd/scsi_debug", "1Linux_scsi_debug_4000"),
            ("lio/vpd_pg83", &wwid_of("lio/paths-wwid.txt")),
            ("tgt/vpd_pg83", &wwid_of("tgt/paths-wwid.txt")),
        ] {
            let page = std::fs::read(fixtures::path(page)).unwrap();
            assert_eq!(wwid_of_page83(&page).unwrap().as_str(), wwid);
        }
    }

    #[test]
    fn a_page_that_is_cut_short_or_malformed_gives_no_wwid_and_no_panic() {
        let whole = page(&[(3, &REGISTERED_EXTENDED)]);
        for end in 0..whole.len() {
            assert_eq!(wwid_of_page83(&whole[..end]), None, "{end}");
        }
        assert_eq!(wwid(&[(3, &[0x60, 1, 2])]), None);
        assert_eq!(wwid(&[(3, &[])]), None);
        assert_eq!(wwid(&[(1, b"short")]), None);
    }
}
