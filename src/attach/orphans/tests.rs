use uuid::Uuid;

use super::*;
use crate::{
    attach::{Ownership, Reservation},
    model::{
        AccessMode, AttachSpec, DeviceName, DeviceNumber, Filesystem, FormatPolicy, Lun, MapMember,
        MultipathPolicy, SessionState, Usage,
    },
};

const IQN: &str = "iqn.2010-10.org.openstack:volume-a";
const WWID: &str = "36e0a1cc2bac035ba048ac0a202003863";

fn target(number: u8) -> Target {
    let portal = format!("10.0.{number}.2:3260").parse().unwrap();
    Target { portal, iqn: IQN.parse().unwrap() }
}

fn path(number: u8) -> TargetPath {
    TargetPath { target: target(number), lun: Lun(1) }
}

fn session(number: u8) -> Session {
    let Target { iqn, portal } = target(number);
    let (sid, host) = (number.into(), number.into());
    Session { sid, host, iqn, portal, tpgt: 1, state: SessionState::LoggedIn }
}

fn disk(number: u8) -> ScsiDevice {
    ScsiDevice {
        hctl: format!("{number}:0:0:1").parse().unwrap(),
        name: DeviceName::new(&format!("sd{}", char::from(b'a' + number))).unwrap(),
        number: DeviceNumber { major: 8, minor: u32::from(number) * 16 },
        diskseq: None,
        size_bytes: 1 << 30,
        wwid: WWID.parse().ok(),
        vendor: "IET".to_owned(),
        model: "VIRTUAL-DISK".to_owned(),
        state: DeviceState::Running,
        read_only: false,
        holders: Vec::new(),
    }
}

fn map(members: &[&str]) -> MultipathMap {
    let member =
        |name: &&str| MapMember { device: DeviceName::new(name).unwrap(), path_state: None };
    MultipathMap {
        name: WWID.to_owned(),
        wwid: WWID.parse().unwrap(),
        node: None,
        device: DeviceName::new("dm-0").unwrap(),
        number: DeviceNumber { major: 253, minor: 0 },
        diskseq: None,
        size_bytes: 1 << 30,
        read_only: false,
        members: members.iter().map(member).collect(),
        holders: Vec::new(),
    }
}

fn mount() -> MountEntry {
    MountEntry {
        number: DeviceNumber { major: 253, minor: 0 },
        source: "/dev/mapper/x".to_owned(),
        target: "/mnt/db".into(),
        fs_type: "ext4".to_owned(),
        read_only: false,
        errors: false,
    }
}

/// Attached and complete, by the command line.
fn record() -> Record {
    let spec = AttachSpec {
        volume: Uuid::from_u128(1).into(),
        mode: AccessMode::Rw,
        usage: Usage::Filesystem {
            filesystem: Filesystem::Ext4,
            format: FormatPolicy::IfBlank,
            mount_path: "/mnt/db".into(),
            options: Vec::new(),
        },
        multipath: MultipathPolicy::Auto,
        instance: None,
    };
    let mut record = Record::new(spec, Origin::CommandLine, true);
    record.reservation = Reservation::Held(Uuid::from_u128(2).into());
    record.paths = vec![path(1), path(2)];
    record.wwid = WWID.parse().ok();
    (record.mounted, record.completed) = (true, true);
    record
}

/// A node with one volume attached, where all is well.
fn sound() -> Scene {
    let marks = [1, 2].map(|number| (target(number), Ownership::Session(number.into())));
    let kept = [1, 2].map(|number| KeptRecords { target: target(number), holds_others: false });
    Scene {
        records: vec![Standing { record: record(), cinder: InCinder::There, at_work: false }],
        owned: marks.into(),
        kept: kept.into(),
        host: HostState {
            sessions: [session(1), session(2)].into(),
            devices: [disk(1), disk(2)].into(),
            maps: [map(&["sdb", "sdc"])].into(),
            mounts: vec![mount()],
            ..HostState::default()
        },
        ..Scene::default()
    }
}

fn empty_node(scene: &mut Scene) {
    scene.host = HostState::default();
    scene.kept.clear();
    scene.owned.clear();
}

fn words(kind: OrphanKind) -> &'static str {
    match kind {
        OrphanKind::Attachment => "attachment",
        OrphanKind::LedgerEntry => "ledger entry",
        OrphanKind::Session => "session",
        OrphanKind::Disk => "disk",
        OrphanKind::Map => "map",
        OrphanKind::NodeRecord => "node record",
        OrphanKind::SetAsideRecord => "set-aside record",
    }
}

fn said(scene: &Scene) -> Vec<(&'static str, bool)> {
    let found = Orphans::among(scene).orphans.into_iter();
    found.map(|orphan| (words(orphan.kind), matches!(orphan.freed, Freed::ByCleaning(_)))).collect()
}

#[test]
fn where_all_is_in_use_nothing_is_an_orphan() {
    assert_eq!(said(&sound()), []);
    assert_eq!(said(&Scene::default()), []);
    // A path that fails, or a whole outage, makes no orphan.
    let mut outage = sound();
    for disk in &mut outage.host.devices {
        disk.state = DeviceState::Offline;
    }
    assert_eq!(said(&outage), []);
}

#[test]
fn a_record_is_judged_by_cinder_by_the_node_and_by_how_far_it_got() {
    type Case = (&'static str, fn(&mut Scene), &'static [(&'static str, bool)]);
    let cases: [Case; 11] = [
        (
            "gone, nothing here",
            |s| {
                empty_node(s);
                s.records[0].cinder = InCinder::Gone;
            },
            &[("ledger entry", true)],
        ),
        ("gone, still mounted", |s| s.records[0].cinder = InCinder::Gone, &[("disk", false)]),
        (
            "gone, a held map",
            |s| {
                s.records[0].cinder = InCinder::Gone;
                s.host.devices.clear();
                s.host.maps = [map(&[])].into();
            },
            &[("map", false)],
        ),
        (
            "gone, a request's",
            |s| {
                empty_node(s);
                s.records[0].cinder = InCinder::Gone;
                s.records[0].record.origin = Origin::Cluster("db".to_owned());
            },
            &[("ledger entry", false)],
        ),
        ("after a reboot", |s| empty_node(s), &[("attachment", false)]),
        (
            "after a reboot, a request's",
            |s| {
                empty_node(s);
                s.records[0].record.origin = Origin::RequestsDir("db".to_owned());
            },
            &[],
        ),
        (
            "an attach that was never ended",
            |s| {
                s.records[0].record.completed = false;
                s.host.mounts.clear();
            },
            &[("ledger entry", true)],
        ),
        (
            "the same, mounted",
            |s| s.records[0].record.completed = false,
            &[("ledger entry", false)],
        ),
        (
            "the same, at work",
            |s| {
                s.records[0].record.completed = false;
                s.records[0].at_work = true;
            },
            &[],
        ),
        (
            "a detach that was never ended",
            |s| {
                empty_node(s);
                s.records[0].record.released = true;
            },
            &[("ledger entry", true)],
        ),
        (
            "Cinder away",
            |s| {
                empty_node(s);
                s.records[0].cinder = InCinder::Unknown;
                s.records[0].record.completed = false;
            },
            &[],
        ),
    ];
    for (name, change, expected) in cases {
        let mut scene = sound();
        change(&mut scene);
        assert_eq!(said(&scene), expected, "{name}");
    }
}

#[test]
fn a_session_is_logged_out_of_only_where_attachd_made_it_and_it_is_empty_and_nobody_names_it() {
    let without_record = |scene: &mut Scene| {
        scene.records.clear();
        scene.host.maps.clear();
        scene.host.mounts.clear();
    };
    let mut scene = sound();
    without_record(&mut scene);
    let found = said(&scene);
    assert_eq!(found.iter().filter(|(kind, clean)| *kind == "session" && !clean).count(), 2);
    assert_eq!(found.iter().filter(|(kind, clean)| *kind == "disk" && !clean).count(), 2);

    scene.host.devices.clear();
    assert_eq!(said(&scene), [("session", true), ("session", true)]);

    let mut coming = scene.clone();
    coming.host.nascent = vec!["1:0:0:9".parse().unwrap()];
    assert_eq!(said(&coming), [("session", false), ("session", true)]);

    let mut before = scene.clone();
    before.before = vec![record()];
    assert_eq!(said(&before), [], "a detach that ended during the look");

    let mut unreadable = scene.clone();
    unreadable.unreadable = vec!["volumes/x.json".to_owned()];
    assert_eq!(said(&unreadable), [("session", false), ("session", false)]);

    let mut foreign = scene.clone();
    foreign.host.sessions[0].sid = 77;
    assert_eq!(said(&foreign), [("node record", false), ("session", true)]);

    let mut rebooted = scene.clone();
    rebooted.host.sessions.clear();
    rebooted.kept[1].holds_others = true;
    assert_eq!(said(&rebooted), [("node record", true), ("set-aside record", true)]);

    let mut no_marks = scene;
    no_marks.owned.clear();
    no_marks.kept.clear();
    assert_eq!(said(&no_marks), [], "sessions of others are nobody's orphans");
}

#[test]
fn a_map_is_a_ghost_only_without_a_usable_disk_and_without_a_record() {
    let ghost = |members: &[&str]| Scene {
        host: HostState {
            maps: [map(members)].into(),
            devices: [ScsiDevice { state: DeviceState::Offline, ..disk(1) }, disk(2)].into(),
            sessions: [session(1), session(2)].into(),
            ..HostState::default()
        },
        ..Scene::default()
    };
    assert_eq!(said(&ghost(&[])), [("map", false)]);
    assert_eq!(said(&ghost(&["sdb"])), [("map", false)]);
    assert_eq!(said(&ghost(&["sdb", "sdc"])), [], "one disk works");
    assert_eq!(said(&ghost(&["sdx"])), [], "a disk of another kind of storage");
    let mut recorded = ghost(&[]);
    recorded.records = sound().records;
    recorded.records[0].cinder = InCinder::Unknown;
    assert_eq!(said(&recorded), []);
}

#[test]
fn an_attachment_that_the_ledger_does_not_know_is_left_and_one_with_a_disk_is_in_use() {
    let stranger = Stranger {
        attachment: Uuid::from_u128(9).into(),
        volume: Uuid::from_u128(8).into(),
        paths: vec![path(1)],
    };
    let mut scene = sound();
    scene.strangers = vec![stranger];
    assert_eq!(said(&scene), []);
    scene.strangers[0].paths = vec![path(3)];
    assert_eq!(said(&scene), [("attachment", false)]);
    scene.strangers[0].attachment = Uuid::from_u128(2).into();
    assert_eq!(said(&scene), [], "the ledger's own");
}

#[test]
fn what_can_not_be_told_is_said_and_is_no_orphan() {
    let mut scene = sound();
    scene.unknown = vec!["Cinder was not asked".to_owned()];
    scene.unreadable = vec!["volumes/x.json".to_owned()];
    let found = Orphans::among(&scene);
    assert!(found.orphans.is_empty());
    assert_eq!(found.unknown, ["Cinder was not asked", "volumes/x.json"]);
}
