//! A state in, a plan out, as an operator would read both. `ATTACHD_BLESS=1` rewrites the files.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, sync::Arc};

use attachd::{
    attach::{
        AttachmentView, Attempt, Desired, FormatProgress, Observed, Origin, Overdue, Ownership,
        Record, Reservation, plan,
    },
    cinder::{AttachmentStatus, AttachmentSummary, Volume},
    host::MountTarget,
    model::{
        AccessMode, AttachSpec, AttachmentId, ConnectionInfo, Contents, DeviceId, DeviceName,
        DeviceNumber, DeviceState, Filesystem, FormatPolicy, Hctl, HostState, MapMember,
        MountEntry, MultipathMap, MultipathPolicy, ScsiDevice, Session, SessionState, Target,
        TargetPath, Usage, VolumeId, Wwid,
    },
    testing::node_facts,
};

const VOLUME: &str = "7a29c609-53cc-4134-830f-6d08a0b9da91";
const OTHER: &str = "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10";
const ATTACHMENT: &str = "a77a0000-0000-4000-8000-000000000001";
const OWN: &str = "36e07a29c609053cc041340830f06d08a";
const STRANGE: &str = "36e0ff1b7fa0030b80049ac085cb020d1";
const GIB: u64 = 1 << 30;

fn volume() -> VolumeId {
    VOLUME.parse().unwrap()
}

fn attachment() -> AttachmentId {
    ATTACHMENT.parse().unwrap()
}

fn path(number: u8) -> TargetPath {
    let portal = format!("10.0.{}.1:3260", number - 1).parse().unwrap();
    let iqn = format!("iqn.2010-10.org.openstack:volume-{VOLUME}").parse().unwrap();
    TargetPath { target: Target { portal, iqn }, lun: attachd::model::Lun(1) }
}

/// A state that is made step by step, from nothing to attached.
struct Given {
    desired: Desired,
    record: Option<Record>,
    /// What the kernel shows.
    host: HostState,
    /// All else; its own `host` isn't looked at.
    observed: Observed,
}

fn spec() -> AttachSpec {
    AttachSpec {
        volume: volume(),
        mode: AccessMode::Rw,
        usage: Usage::Filesystem {
            filesystem: Filesystem::Ext4,
            format: FormatPolicy::IfBlank,
            mount_path: "/var/lib/attachd/volumes/db".into(),
            options: vec!["noatime".to_owned()],
        },
        multipath: MultipathPolicy::Auto,
        instance: None,
    }
}

/// Nothing anywhere, and the volume is available.
fn fresh() -> Given {
    Given {
        desired: Desired::Attached(spec()),
        record: None,
        host: HostState::default(),
        observed: Observed {
            facts: Some(node_facts()),
            host: Arc::default(),
            volume: Some(Volume {
                id: volume(),
                name: "db".to_owned(),
                status: "available".to_owned(),
                size_gib: 1,
                multiattach: false,
                attachments: Vec::new(),
            }),
            attachment: AttachmentView::Unknown,
            attachments: Vec::new(),
            mount_target: Some(MountTarget::Absent),
            owned_targets: BTreeMap::new(),
            others: Arc::default(),
            attempt: Attempt::default(),
        },
    }
}

fn reserved() -> Given {
    fresh().with(|given| {
        let mut record = Record::new(spec(), Origin::CommandLine, true);
        record.reservation = Reservation::Held(attachment());
        given.record = Some(record);
        given.observed.attachment =
            AttachmentView::Known { status: AttachmentStatus::Reserved, info: None };
    })
}

fn updated() -> Given {
    reserved().with(|given| {
        given.observed.attachment = AttachmentView::Known {
            status: AttachmentStatus::Attaching,
            info: Some(ConnectionInfo {
                paths: vec![path(1), path(2)],
                complete: true,
                chap: None,
                discovery_chap: None,
                access_mode: AccessMode::Rw,
                discard: false,
            }),
        };
    })
}

fn recorded() -> Given {
    updated().with(|given| given.record().paths = vec![path(1), path(2)])
}

fn logged_in() -> Given {
    recorded().with(|given| {
        for number in [1, 2] {
            given.session(number);
        }
    })
}

fn scanned() -> Given {
    logged_in().with(|given| {
        given.observed.attempt.scanned = [(1, 1), (2, 1)].into();
        given.disk(1, OWN);
        given.disk(2, OWN);
    })
}

fn verified() -> Given {
    scanned().with(|given| given.record().wwid = Some(OWN.parse().unwrap()))
}

fn mapped() -> Given {
    verified().with(|given| given.map(OWN, &["sda", "sdb"]))
}

fn mounted() -> Given {
    mapped().with(|given| {
        given.observed.mount_target = None;
        given.mount("/var/lib/attachd/volumes/db", 253);
        let record = given.record();
        record.format = FormatProgress::Done;
        (record.mounted, record.made_directory) = (true, true);
        record.mount_device = Some(DeviceNumber { major: 253, minor: 0 });
    })
}

fn attached() -> Given {
    mounted().with(|given| {
        given.record().completed = true;
        given.observed.volume = None;
        given.observed.attempt = Attempt::default();
        if let AttachmentView::Known { status, .. } = &mut given.observed.attachment {
            *status = AttachmentStatus::Attached;
        }
    })
}

fn to_detach() -> Given {
    attached().with(|given| {
        given.desired = Desired::Detached { force: false };
        given.observed.facts = None;
        given.observed.attachment = AttachmentView::Unknown;
        for number in [1, 2] {
            let target = path(number).target;
            given.observed.owned_targets.insert(target, Ownership::Session(u32::from(number)));
        }
    })
}

/// Attached, mounted, extended to 2 GiB in Cinder, and the disks were read anew.
fn reread() -> Given {
    attached().with(|given| {
        given.desired = Desired::Resized { volume: volume(), at_least_gib: None };
        given.observed.facts = None;
        given.observed.volume = fresh().observed.volume;
        let volume = given.observed.volume.as_mut().unwrap();
        (volume.size_gib, volume.status) = (2, "in-use".to_owned());
        given.observed.attempt.reread = given.host.devices.iter().map(|disk| disk.hctl).collect();
    })
}

fn forced() -> Given {
    to_detach().with(|given| given.desired = Desired::Detached { force: true })
}

fn cut() -> Given {
    to_detach().with(|given| given.record().cut = true)
}

/// Processes hold the map; nothing else is left.
fn held() -> Given {
    cut().with(|given| {
        given.unqueued();
        given.host.mounts.clear();
        given.record().made_directory = false;
        given.observed.attempt.held_maps =
            [("mpatha".to_owned(), "map mpatha is in use by process 7 (db)".to_owned())].into();
    })
}

fn unmounted() -> Given {
    to_detach().with(|given| {
        given.host.mounts.clear();
        given.record().made_directory = false;
    })
}

fn without_map() -> Given {
    unmounted().with(|given| {
        given.host.maps.clear();
        for disk in &mut given.host.devices {
            disk.holders.clear();
        }
    })
}

fn without_disks() -> Given {
    without_map().with(|given| given.host.devices.clear())
}

impl Given {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn record(&mut self) -> &mut Record {
        self.record.as_mut().unwrap()
    }

    fn session(&mut self, number: u8) {
        let target = path(number).target;
        self.host.sessions.push(Session {
            sid: u32::from(number),
            host: u32::from(number),
            iqn: target.iqn,
            portal: target.portal,
            tpgt: 1,
            state: SessionState::LoggedIn,
        });
    }

    fn disk(&mut self, number: u8, wwid: &str) {
        self.disk_at(u32::from(number), 1, wwid);
    }

    fn disk_at(&mut self, host: u32, lun: u64, wwid: &str) {
        let index = u8::try_from(self.host.devices.len()).unwrap();
        self.host.devices.push(ScsiDevice {
            hctl: Hctl { host, channel: 0, target: 0, lun },
            name: DeviceName::new(&format!("sd{}", char::from(b'a' + index))).unwrap(),
            number: DeviceNumber { major: 8, minor: u32::from(index) * 16 },
            diskseq: Some(u64::from(index) + 1),
            size_bytes: GIB,
            wwid: Some(wwid.parse().unwrap()),
            vendor: "IET".to_owned(),
            model: "VIRTUAL-DISK".to_owned(),
            state: DeviceState::Running,
            read_only: false,
            holders: Vec::new(),
        });
    }

    fn map(&mut self, wwid: &str, members: &[&str]) {
        let device = DeviceName::new("dm-0").unwrap();
        for disk in &mut self.host.devices {
            if members.contains(&disk.name.as_str()) {
                disk.holders.push(device.clone());
            }
        }
        let member =
            |name: &&str| MapMember { device: DeviceName::new(name).unwrap(), path_state: None };
        self.host.maps.push(MultipathMap {
            name: "mpatha".to_owned(),
            wwid: wwid.parse().unwrap(),
            node: Some("/dev/mapper/mpatha".into()),
            device,
            number: DeviceNumber { major: 253, minor: 0 },
            diskseq: Some(9),
            size_bytes: GIB,
            read_only: false,
            members: members.iter().map(member).collect(),
            holders: Vec::new(),
        });
    }

    fn mount(&mut self, target: &str, major: u32) {
        self.host.mounts.push(MountEntry {
            number: DeviceNumber { major, minor: 0 },
            source: if major == 253 { "/dev/dm-0" } else { "/dev/sda" }.to_owned(),
            target: target.into(),
            fs_type: "ext4".to_owned(),
            read_only: false,
            errors: false,
        });
    }

    fn no_disks(&mut self) {
        self.host.devices.clear();
        for map in &mut self.host.maps {
            map.members.clear();
        }
    }

    fn unqueued(&mut self) {
        self.no_disks();
        let maps = self.host.maps.iter().map(|map| map.device.clone());
        self.observed.attempt.unqueued = maps.collect();
    }

    fn holds(&mut self, contents: Contents) {
        let device = DeviceId {
            name: DeviceName::new("dm-0").unwrap(),
            number: DeviceNumber { major: 253, minor: 0 },
            diskseq: Some(9),
        };
        self.observed.attempt.contents = Some((device, contents));
    }

    fn single(&mut self) {
        self.record().multipath = false;
        self.record().spec.multipath = MultipathPolicy::Disabled;
        if let Desired::Attached(spec) = &mut self.desired {
            spec.multipath = MultipathPolicy::Disabled;
        }
    }

    /// The size of each disk and map, in GiB.
    fn sizes(&self) -> String {
        let host = &self.host;
        let disks = host.devices.iter().map(|disk| (disk.name.as_str(), disk.size_bytes));
        let maps = host.maps.iter().map(|map| (map.name.as_str(), map.size_bytes));
        let mut text = String::new();
        for (name, bytes) in disks.chain(maps) {
            write!(text, ", {} GiB {name}", bytes / GIB).unwrap();
        }
        text
    }

    fn extended(&mut self, disks: &[u64], map: u64) {
        for (disk, size) in self.host.devices.iter_mut().zip(disks) {
            disk.size_bytes = size * GIB;
        }
        for found in &mut self.host.maps {
            found.size_bytes = map * GIB;
        }
    }

    fn other_record(&self) -> Record {
        let mut other = self.record.clone().unwrap();
        other.spec.volume = OTHER.parse().unwrap();
        if let Usage::Filesystem { mount_path, .. } = &mut other.spec.usage {
            *mount_path = "/var/lib/attachd/volumes/other".into();
        }
        other
    }

    fn shown(&self) -> String {
        let mut text = String::new();
        match &self.desired {
            Desired::Attached(_) => text.push_str("asked:      attached\n"),
            Desired::Detached { force: false } => text.push_str("asked:      detached\n"),
            Desired::Detached { force: true } => text.push_str("asked:      detached by force\n"),
            Desired::Resized { at_least_gib, .. } => {
                let size = at_least_gib
                    .map_or("the size in Cinder".to_owned(), |gib| format!("{gib} GiB"));
                writeln!(text, "asked:      grown to {size}").unwrap();
                if let Some(volume) = &self.observed.volume {
                    writeln!(text, "sizes:      {} GiB in Cinder{}", volume.size_gib, self.sizes())
                        .unwrap();
                }
            }
        }
        match &self.record {
            None => text.push_str("record:     none\n"),
            Some(record) => text.push_str(&shown_record("record:    ", record)),
        }
        for other in &self.observed.others.records {
            text.push_str(&shown_record("other:     ", other));
        }
        let attachment = match &self.observed.attachment {
            AttachmentView::Unknown => "not asked".to_owned(),
            AttachmentView::Gone => "gone".to_owned(),
            AttachmentView::Known { status, .. } => status.name().to_owned(),
        };
        let status = self.observed.volume.as_ref().map(|volume| volume.status.as_str());
        writeln!(
            text,
            "cinder:     volume {}, attachment {attachment}",
            status.unwrap_or("not asked")
        )
        .unwrap();
        let host = &self.host;
        for session in &host.sessions {
            let (sid, scsi, state) = (session.sid, session.host, session.state);
            writeln!(text, "session:    {sid} to {} (host{scsi}, {state:?})", session.portal)
                .unwrap();
        }
        for disk in &host.devices {
            let wwid = disk.wwid.as_ref().map_or("-", Wwid::as_str);
            writeln!(text, "disk:       {} at {}, {wwid}", disk.name, disk.hctl).unwrap();
        }
        for map in &host.maps {
            let members: Vec<_> = map.members.iter().map(|m| m.device.as_str()).collect();
            writeln!(text, "map:        {} over [{}], {}", map.name, members.join(" "), map.wwid)
                .unwrap();
        }
        for mount in &host.mounts {
            writeln!(text, "mount:      {} on {}", mount.source, mount.target.display()).unwrap();
        }
        if let Some((device, contents)) = &self.observed.attempt.contents {
            writeln!(text, "contents:   {device} {contents:?}").unwrap();
        }
        text
    }
}

fn shown_record(label: &str, record: &Record) -> String {
    let mut facts = vec![match record.reservation {
        Reservation::Asked => "asked for".to_owned(),
        Reservation::Held(_) => "held".to_owned(),
    }];
    facts.push(format!("{} paths", record.paths.len()));
    facts.extend(record.wwid.as_ref().map(|wwid| format!("identity {wwid}")));
    if record.format != FormatProgress::NotStarted {
        facts.push(format!("format {:?}", record.format));
    }
    for (is, word) in [
        (record.multipath, "multipath"),
        (record.mounted, "mounted"),
        (record.completed, "completed"),
        (record.released, "released"),
        (record.cut, "cut"),
    ] {
        facts.extend(is.then(|| word.to_owned()));
    }
    format!("{label} {}: {}\n", &record.spec.volume.to_string()[..8], facts.join(", "))
}

#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
fn bless() -> bool {
    std::env::var("ATTACHD_BLESS").is_ok()
}

fn check(name: &str, given: &Given) {
    let observed = Observed { host: Arc::new(given.host.clone()), ..given.observed.clone() };
    let plan = plan(&given.desired, given.record.as_ref(), &observed);
    let text = format!("{}\n{plan}", given.shown());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if bless() {
        fs::write(&file, &text).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, known, "{} differs; ATTACHD_BLESS=1 rewrites it", file.display());
}

macro_rules! golden {
    ($($name:ident: $given:expr;)+) => {
        $(#[test] fn $name() { check(concat!(stringify!($name), ".txt"), &$given); })+

        #[test]
        fn every_golden_file_has_its_test() {
            let known = [$(concat!(stringify!($name), ".txt")),+];
            for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(known.contains(&name.as_str()), "{name} has no test");
            }
        }
    };
}

golden! {
    a_portal_that_a_discovery_names_is_as_little_trusted_as_one_of_cinder: updated().with(|given| {
        if let AttachmentView::Known { info: Some(info), .. } = &mut given.observed.attachment {
            info.paths.truncate(1);
            info.complete = false;
        }
        let target = |portal: &str, iqn: &str| Target {
            portal: portal.parse().unwrap(),
            iqn: iqn.parse().unwrap(),
        };
        let (own, other) = (path(1).target.iqn, "iqn.2010-10.org.openstack:volume-other");
        given.observed.attempt.discovered = Some(vec![
            path(2).target,
            target("[fd00:ec2::254]:80", own.as_str()),
            target("169.254.169.254:80", own.as_str()),
            target("10.0.9.1:3260", other),
        ]);
    });
    an_available_volume_is_reserved: fresh();
    a_volume_that_another_has_is_refused: fresh().with(|g| {
        g.observed.volume.as_mut().unwrap().status = "in-use".to_owned();
    });
    a_reserved_attachment_gets_the_connector: reserved();
    an_updated_attachment_has_its_paths_recorded_first: updated();
    recorded_paths_are_logged_in_to: recorded();
    one_missing_session_is_logged_in_to: logged_in().with(|g| { g.host.sessions.pop(); });
    sessions_that_recover_are_waited_for: logged_in().with(|g| {
        for session in &mut g.host.sessions { session.state = SessionState::Failed; }
    });
    a_session_that_does_not_recover_is_given_up: logged_in().with(|g| {
        for session in &mut g.host.sessions { session.state = SessionState::Failed; }
        g.observed.attempt.overdue.sessions = true;
    });
    sessions_without_disks_are_scanned: logged_in();
    a_disk_that_was_scanned_for_is_waited_for: scanned().with(|g| { g.host.devices.pop(); });
    a_disk_that_never_came_is_done_without: scanned().with(|g| {
        g.host.devices.pop();
        g.observed.attempt.overdue = Overdue { disks: true, ..Overdue::default() };
    });
    a_disk_that_was_there_before_is_stale: logged_in().with(|g| g.disk(1, STRANGE));
    a_map_over_stale_disks_goes_first: logged_in().with(|g| { g.disk(1, STRANGE); g.map(STRANGE, &["sda"]); });
    a_stale_disk_that_is_mounted_is_refused: logged_in().with(|g| {
        g.disk(1, STRANGE);
        g.mount("/srv/old", 8);
    });
    disks_that_agree_are_recorded: scanned();
    disks_that_disagree_are_refused: scanned().with(|g| {
        g.host.devices[1].wwid = Some(STRANGE.parse().unwrap());
    });
    another_volumes_uuid_is_refused: scanned().with(|g| {
        for disk in &mut g.host.devices { disk.wwid = Some(STRANGE.parse().unwrap()); }
    });
    a_size_that_cinder_does_not_state_is_refused: scanned().with(|g| {
        g.observed.volume.as_mut().unwrap().size_gib = 2;
    });
    a_disk_elsewhere_with_the_same_identity_is_refused: scanned().with(|g| g.disk_at(7, 4, OWN));
    verified_disks_get_a_map: verified();
    a_ghost_map_goes_before_the_map: verified().with(|g| g.map(OWN, &[]));
    a_map_with_a_foreign_disk_is_refused: verified().with(|g| {
        g.disk_at(7, 4, STRANGE);
        g.map(OWN, &["sda", "sdb", "sdc"]);
    });
    a_map_that_lacks_a_disk_gets_it: verified().with(|g| g.map(OWN, &["sda"]));
    a_map_that_was_asked_for_is_waited_for: verified().with(|g| g.observed.attempt.map_asked = true);
    a_map_that_never_comes_is_refused: verified().with(|g| g.observed.attempt.overdue.map = true);
    a_map_without_its_node_is_waited_for: mapped().with(|g| {
        g.holds(Contents::Filesystem { name: "ext4".to_owned() });
        g.observed.attempt.checked = true;
        g.host.maps[0].node = None;
    });
    a_map_is_probed: mapped();
    a_blank_device_is_formatted: mapped().with(|g| g.holds(Contents::Blank));
    a_blank_device_is_not_formatted_where_that_is_forbidden: mapped().with(|g| {
        for spec in [&mut g.record.as_mut().unwrap().spec, match &mut g.desired {
            Desired::Attached(spec) => spec,
            _ => unreachable!(),
        }] {
            if let Usage::Filesystem { format, .. } = &mut spec.usage { *format = FormatPolicy::Never; }
        }
        g.holds(Contents::Blank);
    });
    a_device_that_was_formatted_once_and_reads_as_blank_is_refused: mapped().with(|g| {
        g.record().format = FormatProgress::Done;
        g.holds(Contents::Blank);
    });
    a_device_with_data_is_not_formatted: mapped().with(|g| g.holds(Contents::Data { offset: 512 }));
    a_format_that_was_cut_short_is_done_again: mapped().with(|g| {
        g.record().format = FormatProgress::Started;
        g.holds(Contents::Data { offset: 512 });
    });
    a_format_that_was_cut_short_is_not_done_over_another_signature: mapped().with(|g| {
        g.record().format = FormatProgress::Started;
        g.holds(Contents::Signature { name: "LVM2_member".to_owned() });
    });
    a_format_that_was_cut_short_is_not_done_again_where_other_nodes_write: mapped().with(|g| {
        g.record().format = FormatProgress::Started;
        g.observed.volume.as_mut().unwrap().multiattach = true;
        g.holds(Contents::Data { offset: 512 });
    });
    another_file_system_is_refused: mapped().with(|g| g.holds(Contents::Filesystem { name: "xfs".to_owned() }));
    the_file_system_is_checked: mapped().with(|g| g.holds(Contents::Filesystem { name: "ext4".to_owned() }));
    a_checked_file_system_is_mounted: mapped().with(|g| {
        g.holds(Contents::Filesystem { name: "ext4".to_owned() });
        g.observed.attempt.checked = true;
    });
    a_read_only_volume_gets_read_only_devices: mapped().with(|g| {
        g.record().spec.mode = AccessMode::Ro;
        if let Desired::Attached(spec) = &mut g.desired { spec.mode = AccessMode::Ro; }
    });
    a_single_path_is_used_without_a_map: verified().with(|g| { g.single(); g.host.devices.pop(); });
    a_single_path_in_a_map_is_refused: mapped().with(Given::single);
    a_mounted_volume_is_completed: mounted();
    an_attached_volume_is_done: attached();
    an_attached_volume_that_was_updated_again_is_completed_again: attached().with(|g| {
        if let AttachmentView::Known { status, .. } = &mut g.observed.attachment {
            *status = AttachmentStatus::Attaching;
        }
    });
    an_extended_volume_has_its_sizes_read_anew: attached().with(|g| g.host.devices[1].size_bytes = 2 * GIB);
    of_a_detach_that_was_killed_before_it_forgot_only_the_record_goes: attached().with(|g| {
        g.observed.attachment = AttachmentView::Gone;
        g.observed.volume = fresh().observed.volume;
        g.host = HostState::default();
        g.record.as_mut().unwrap().released = true;
    });
    a_record_that_was_released_is_not_forgotten_while_disks_are_there: attached().with(|g| {
        g.observed.attachment = AttachmentView::Gone;
        g.observed.volume = fresh().observed.volume;
        g.record.as_mut().unwrap().released = true;
    });
    an_attachment_that_was_deleted_by_somebody_is_refused: attached().with(|g| g.observed.attachment = AttachmentView::Gone);
    a_lost_reservation_is_refused: reserved().with(|g| {
        g.record().reservation = Reservation::Asked;
        g.observed.attachments = vec![AttachmentSummary {
            id: attachment(),
            volume_id: volume(),
            status: AttachmentStatus::Reserved,
            instance: None,
        }];
    });
    a_place_that_another_volume_had_is_refused: recorded().with(|g| {
        Arc::make_mut(&mut g.observed.others).records = [g.other_record()].into();
    });
    a_mounted_volume_is_unmounted_first: to_detach();
    a_detach_with_a_foreign_mount_is_refused: to_detach().with(|g| g.mount("/srv/backup", 253));
    a_mount_whose_device_is_lost_is_unmounted: to_detach().with(|g| {
        g.host.maps.clear();
        g.host.devices.clear();
    });
    the_directory_of_the_mount_is_removed: to_detach().with(|g| g.host.mounts.clear());
    an_unmounted_map_is_removed: unmounted();
    a_detach_with_a_foreign_disk_in_the_map_is_refused: unmounted().with(|g| {
        g.disk_at(7, 4, STRANGE);
        g.host.maps.clear();
        g.map(OWN, &["sda", "sdb", "sdc"]);
    });
    disks_without_a_map_are_deleted: without_map();
    idle_sessions_are_logged_out: without_disks();
    a_shared_target_is_not_logged_out: without_disks().with(|g| {
        let mut other = g.other_record();
        for path in &mut other.paths { path.lun = attachd::model::Lun(2); }
        Arc::make_mut(&mut g.observed.others).records = [other].into();
    });
    a_target_that_another_detach_released_is_logged_out: without_disks().with(|g| {
        let mut other = g.other_record();
        other.released = true;
        Arc::make_mut(&mut g.observed.others).records = [other].into();
    });
    an_unreadable_record_keeps_the_sessions: without_disks().with(|g| Arc::make_mut(&mut g.observed.others).unreadable = true);
    a_session_that_somebody_else_made_is_not_logged_out: without_disks().with(|g| {
        for ownership in g.observed.owned_targets.values_mut() { *ownership = Ownership::Record; }
    });
    a_session_with_somebody_elses_disk_is_not_logged_out: without_disks().with(|g| g.disk_at(1, 9, STRANGE));
    without_sessions_the_attachment_is_deleted: without_disks().with(|g| {
        g.host.sessions.clear();
        g.observed.owned_targets.clear();
        g.record().released = true;
    });
    a_deleted_attachment_is_forgotten: without_disks().with(|g| {
        g.host.sessions.clear();
        g.observed.owned_targets.clear();
        g.record().released = true;
        g.observed.attachment = AttachmentView::Gone;
    });
    an_empty_map_of_an_extended_volume_is_made_anew: attached().with(|g| {
        g.extended(&[2, 2], 1);
        g.host.maps[0].members.clear();
        g.host.mounts.clear();
    });
    an_empty_map_of_an_extended_volume_that_is_in_use_is_refused: attached().with(|g| {
        g.extended(&[2, 2], 1);
        g.host.maps[0].members.clear();
    });
    an_extended_volume_has_its_disks_read_anew: reread().with(|g| g.observed.attempt.reread.clear());
    a_map_smaller_than_its_disks_is_resized: reread().with(|g| g.extended(&[2, 2], 1));
    a_file_system_is_grown_after_its_map: reread().with(|g| g.extended(&[2, 2], 2));
    a_grown_file_system_is_done: reread().with(|g| {
        g.extended(&[2, 2], 2);
        g.observed.attempt.grown = Some(true);
    });
    a_read_only_volume_keeps_its_file_system: reread().with(|g| {
        g.extended(&[2, 2], 2);
        g.record().spec.mode = AccessMode::Ro;
    });
    a_map_over_disks_of_two_sizes_is_not_resized: reread().with(|g| g.extended(&[2, 1], 1));
    a_target_that_shows_the_old_size_is_told: reread();
    a_map_is_not_resized_with_a_path_without_a_session: reread().with(|g| {
        g.extended(&[2, 1], 1);
        g.host.sessions.pop();
        g.host.devices.pop();
    });
    a_map_is_not_resized_with_a_path_whose_disk_does_not_answer: reread().with(|g| {
        g.extended(&[2, 1], 1);
        g.host.devices[1].state = DeviceState::Offline;
    });
    a_map_is_never_shrunk: reread().with(|g| g.extended(&[2, 2], 3));
    a_disk_that_is_another_volumes_by_now_is_not_grown_into: reread().with(|g| {
        g.extended(&[2, 2], 1);
        g.host.devices[1].wwid = Some(STRANGE.parse().unwrap());
    });
    a_map_with_a_foreign_disk_is_not_resized: reread().with(|g| {
        g.extended(&[2, 2], 1);
        g.disk_at(7, 4, STRANGE);
        g.host.maps[0].members.push(MapMember { device: DeviceName::new("sdc").unwrap(), path_state: None });
    });
    a_size_that_cinder_does_not_have_is_not_resized_to: reread().with(|g| {
        g.desired = Desired::Resized { volume: volume(), at_least_gib: Some(3) };
    });
    a_volume_that_is_still_being_extended_is_left_alone: reread().with(|g| {
        g.observed.volume.as_mut().unwrap().status = "extending".to_owned();
    });
    a_volume_that_cinder_took_away_is_not_resized: reread().with(|g| g.observed.attachment = AttachmentView::Gone);
    what_is_not_attached_is_not_resized: reread().with(|g| g.record = None);
    what_is_not_mounted_is_not_resized: reread().with(|g| {
        g.extended(&[2, 2], 2);
        g.host.mounts.clear();
    });
    a_file_system_that_became_read_only_is_not_grown: reread().with(|g| {
        g.extended(&[2, 2], 2);
        g.host.mounts[0].read_only = true;
    });
    a_busy_mount_is_given_up_where_force_was_asked_for: forced().with(|g| {
        g.observed.attempt.blocked = Some("the mount is in use by process 7 (db)".to_owned());
    });
    without_force_a_busy_mount_is_not_given_up: to_detach().with(|g| {
        g.observed.attempt.blocked = Some("the mount is in use by process 7 (db)".to_owned());
    });
    force_unmounts_first_where_that_can_work: forced();
    force_gives_up_what_no_path_is_left_for: forced().with(|g| {
        for disk in &mut g.host.devices { disk.state = DeviceState::Offline; }
    });
    a_detach_of_an_attachment_that_was_taken_away_gives_up_first: to_detach().with(|g| {
        g.observed.attachment = AttachmentView::Gone;
    });
    a_volume_that_is_given_up_is_cut_off_before_it_is_unmounted: cut();
    a_map_that_keeps_io_is_told_before_the_unmount: cut().with(Given::no_disks);
    a_volume_that_is_cut_off_is_unmounted: cut().with(Given::unqueued);
    a_busy_mount_of_a_volume_that_is_cut_off_goes_out_of_sight: cut().with(|g| {
        g.unqueued();
        g.observed.attempt.mount_busy = true;
    });
    a_map_of_a_volume_that_is_cut_off_is_removed: cut().with(|g| {
        g.unqueued();
        g.host.mounts.clear();
        g.record().made_directory = false;
    });
    a_map_that_is_held_does_not_keep_the_sessions: held();
    a_map_that_is_held_does_not_keep_the_attachment: held().with(|g| g.host.sessions.clear()).with(|g| {
        g.observed.owned_targets.clear();
    });
    a_map_that_is_held_keeps_the_record: held().with(|g| {
        g.host.sessions.clear();
        g.observed.owned_targets.clear();
        g.observed.attachment = AttachmentView::Gone;
    });
    force_refuses_a_foreign_mount: forced().with(|g| {
        g.mount("/srv/backup", 253);
        g.observed.attempt.blocked = Some("the mount is in use".to_owned());
    });
    force_refuses_a_foreign_holder: forced().with(|g| {
        g.host.maps[0].holders = vec![DeviceName::new("dm-7").unwrap()];
        g.observed.attempt.blocked = Some("the map is in use".to_owned());
    });
    force_refuses_a_foreign_disk_in_the_map: cut().with(|g| {
        g.disk_at(7, 4, STRANGE);
        g.host.maps.clear();
        g.map(OWN, &["sda", "sdb", "sdc"]);
    });
    force_refuses_disks_at_another_volumes_address: cut().with(|g| Arc::make_mut(&mut g.observed.others).records = [g.other_record()].into());
    a_volume_that_was_cut_off_is_not_attached_before_its_detach_is_finished: attached().with(|g| g.record().cut = true);
    nothing_recorded_is_nothing_to_detach: to_detach().with(|g| g.record = None);
}
