use uuid::Uuid;

use super::*;
use crate::{
    attach::Reservation,
    model::{
        AttachSpec, DeviceName, Filesystem, FormatPolicy, MapMember, MultipathPolicy, TargetPath,
        Usage,
    },
};

const WWID: &str = "36e0a1cc2bac035ba048ac0a202003863";

fn target(portal: u8, which: char) -> Target {
    Target {
        portal: format!("10.0.{portal}.2:3260").parse().unwrap(),
        iqn: format!("iqn.2010-10.org.openstack:volume-{which}").parse().unwrap(),
    }
}

fn session(sid: u32, target: Target) -> Session {
    let Target { iqn, portal } = target;
    Session { sid, host: sid, iqn, portal, tpgt: 1, state: SessionState::LoggedIn }
}

fn disk(host: u32, name: &str, wwid: &str) -> ScsiDevice {
    ScsiDevice {
        hctl: format!("{host}:0:0:1").parse().unwrap(),
        name: DeviceName::new(name).unwrap(),
        number: DeviceNumber { major: 8, minor: host * 16 },
        diskseq: None,
        size_bytes: 1 << 30,
        wwid: wwid.parse().ok(),
        vendor: "IET".to_owned(),
        model: "VIRTUAL-DISK".to_owned(),
        state: DeviceState::Running,
        read_only: false,
        holders: Vec::new(),
    }
}

fn mount(minor: u32, target: &str) -> MountEntry {
    MountEntry {
        number: DeviceNumber { major: 253, minor },
        source: "/dev/mapper/x".to_owned(),
        target: target.into(),
        fs_type: "ext4".to_owned(),
        read_only: false,
        errors: false,
    }
}

/// A volume over a map of two paths, asked for by a request, with LVM on it; and an administrator's disk.
fn node() -> (Vec<Record>, HostState) {
    let member = |name| MapMember { device: DeviceName::new(name).unwrap(), path_state: None };
    let host = HostState {
        sessions: [
            session(1, target(1, 'a')),
            session(2, target(2, 'a')),
            session(3, target(1, 'z')),
        ]
        .into(),
        devices: [disk(1, "sdb", WWID), disk(2, "sdc", WWID), disk(3, "sdd", "36f00")].into(),
        maps: [MultipathMap {
            name: "mpatha".to_owned(),
            wwid: WWID.parse().unwrap(),
            node: None,
            device: DeviceName::new("dm-0").unwrap(),
            number: DeviceNumber { major: 253, minor: 0 },
            diskseq: None,
            size_bytes: 1 << 30,
            read_only: false,
            members: vec![member("sdb"), member("sdc")],
            holders: vec![DeviceName::new("dm-7").unwrap()],
        }]
        .into(),
        mounts: vec![mount(0, "/mnt/db")],
        ..HostState::default()
    };
    let spec = AttachSpec {
        volume: Uuid::from_u128(1).into(),
        mode: AccessMode::Rw,
        usage: Usage::Block,
        multipath: MultipathPolicy::Auto,
        instance: None,
    };
    let mut record = Record::new(spec, Origin::Cluster("db".to_owned()), true);
    record.reservation = Reservation::Held(Uuid::from_u128(2).into());
    record.paths = [1, 2].map(|n| TargetPath { target: target(n, 'a'), lun: Lun(1) }).to_vec();
    record.wwid = WWID.parse().ok();
    let mut other = record.clone();
    other.spec.volume = Uuid::from_u128(5).into();
    other.reservation = Reservation::Held(Uuid::from_u128(6).into());
    other.origin = Origin::CommandLine;
    other.paths.clear();
    other.wwid = None;
    (vec![record, other], host)
}

fn narrowed(text: &str, resolved: &Resolved) -> Inventory {
    let (records, host) = node();
    let records = records.into_iter().map(|record| Ok(record.into())).collect();
    let mut inventory = Inventory::join(records, &OwnedTargets::default(), &host);
    let Ok(handle) = text.parse::<Handle>();
    inventory.narrow(&handle, resolved, &host);
    inventory
}

fn at(major: u32, minor: u32, name: &str) -> Resolved {
    let number = Some(DeviceNumber { major, minor });
    Resolved { number, name: DeviceName::new(name), mount: None }
}

#[test]
fn every_handle_leads_to_its_volume_and_to_no_other() {
    let mounted = Resolved { mount: Some(mount(0, "/mnt/db")), ..at(253, 0, "dm-0") };
    let cases = [
        ("00000000-0000-0000-0000-000000000001", Resolved::default()),
        ("00000000-0000-0000-0000-000000000002", Resolved::default()),
        ("db", Resolved::default()),
        ("storage/db", Resolved::default()),
        ("sdb", Resolved::default()),
        ("dm-0", Resolved::default()),
        ("mpatha", Resolved::default()),
        (WWID, Resolved::default()),
        ("iqn.2010-10.org.openstack:volume-a", Resolved::default()),
        ("/dev/sdc", at(8, 32, "sdc")),
        ("/dev/mapper/mpatha", at(253, 0, "dm-0")),
        ("/dev/mapper/mpatha", Resolved::default()),
        ("/dev/mapper/vg-lv", at(253, 7, "dm-7")),
        ("/mnt/db", mounted.clone()),
        ("/mnt/db/base/1", mounted),
    ];
    for (text, resolved) in cases {
        let found = narrowed(text, &resolved);
        let volumes: Vec<_> = found.attachments.iter().map(|chain| chain.volume.uuid()).collect();
        assert_eq!(volumes, [Uuid::from_u128(1)], "{text}");
        assert_eq!(found.foreign, None, "{text}");
    }
}

#[test]
fn what_is_not_attachds_is_said_to_be_what_it_is() {
    let root = MountEntry { source: "/dev/vda1".to_owned(), ..mount(0, "/") };
    let on_root = Resolved {
        number: Some(DeviceNumber { major: 254, minor: 1 }),
        mount: Some(root),
        name: DeviceName::new("vda1"),
    };
    let cases = [
        ("/dev/sdd", at(8, 48, "sdd"), "sdd is a disk of an iSCSI session"),
        ("sdd", Resolved::default(), "sdd is a disk of an iSCSI session"),
        ("36f00", Resolved::default(), "sdd is a disk of an iSCSI session"),
        (
            "/dev/vda",
            at(254, 0, "vda"),
            "vda (254:0) is no disk of an iSCSI session and no multipath map",
        ),
        ("/home/x", on_root, "it lies on /dev/vda1 (ext4), which is no disk of an iSCSI session"),
        (
            "iqn.2010-10.org.openstack:volume-z",
            Resolved::default(),
            "it is a target that this node has a session to",
        ),
    ];
    for (text, resolved, expected) in cases {
        let found = narrowed(text, &resolved);
        assert!(found.attachments.is_empty(), "{text}");
        assert_eq!(found.foreign.unwrap().what, expected, "{text}");
    }
    for text in ["00000000-0000-0000-0000-000000000009", "nothing", "/dev/sdx", "36e1"] {
        let found = narrowed(text, &Resolved::default());
        assert!(found.attachments.is_empty() && found.foreign.is_none(), "{text}");
    }
}

/// The first volume of the node, complete and mounted.
fn sound() -> (Record, HostState) {
    let (mut records, mut host) = node();
    let mut record = records.remove(0);
    record.spec.usage = Usage::Filesystem {
        filesystem: Filesystem::Ext4,
        format: FormatPolicy::IfBlank,
        mount_path: "/mnt/db".into(),
        options: Vec::new(),
    };
    (record.completed, record.mounted) = (true, true);
    for member in &mut host.maps[0].members {
        member.path_state = Some("active".to_owned());
    }
    (record, host)
}

fn disagreements(change: impl FnOnce(&mut Record, &mut HostState)) -> (Vec<String>, usize) {
    let (mut record, mut host) = sound();
    change(&mut record, &mut host);
    let inventory = Inventory::join(vec![Ok(record.into())], &OwnedTargets::default(), &host);
    let chain = inventory.attachments.into_iter().next().unwrap();
    let of_paths = chain.paths.iter().map(|path| path.disagreements.len()).sum();
    (chain.disagreements, of_paths)
}

#[test]
fn what_disagrees_is_marked_once_where_it_is() {
    type Change = fn(&mut Record, &mut HostState);
    let cases: [(Change, &[&str], usize); 14] = [
        (|_, _| (), &[], 0),
        (|_, h| h.devices[1].state = DeviceState::Offline, &["sdc fails its I/O"], 1),
        (|_, h| h.devices[1].state = DeviceState::Blocked, &["sdc keeps its I/O waiting"], 1),
        (
            |_, h| h.maps[0].members[1].path_state = Some("failed".to_owned()),
            &["sdc is failed in the map, says multipathd"],
            1,
        ),
        (|_, h| h.maps[0].members[1].path_state = None, &[], 0),
        (|_, h| drop(h.maps[0].members.pop()), &["sdc is not in the map"], 1),
        (
            |_, h| {
                h.maps[0]
                    .members
                    .push(MapMember { device: DeviceName::new("sdd").unwrap(), path_state: None });
            },
            &["sdd is in the map, and is no path of this volume"],
            0,
        ),
        (
            |_, h| h.maps[0].wwid = "36f0".parse().unwrap(),
            &["the map mpatha is of another WWID, 36f0"],
            0,
        ),
        (
            |_, h| h.maps[0].size_bytes = 5,
            &[
                "the map has another size than its disks: attachd resize 00000000-0000-0000-0000-000000000001",
            ],
            0,
        ),
        (|_, h| h.mounts[0].read_only = true, &["the file system on /mnt/db refuses writes"], 0),
        (
            |r, h| {
                r.spec.mode = AccessMode::Ro;
                h.mounts[0].read_only = true;
            },
            &[],
            0,
        ),
        (
            |_, h| h.mounts[0].errors = true,
            &["the kernel met errors in the file system on /mnt/db"],
            0,
        ),
        (
            |_, h| h.mounts[0].target = "/mnt/x".into(),
            &["it is not mounted on /mnt/db", "it is also mounted on /mnt/x"],
            0,
        ),
        (|r, _| r.cut = true, &["a detach was begun and not finished"], 0),
    ];
    for (change, expected, of_paths) in cases {
        assert_eq!(
            disagreements(change),
            (expected.iter().map(|s| (*s).to_owned()).collect(), of_paths)
        );
    }
}

#[test]
fn without_a_map_only_the_path_in_use_is_judged() {
    let (found, _) = disagreements(|record, host| {
        record.multipath = false;
        host.maps.clear();
        host.sessions.remove(1);
        host.mounts[0].number = host.devices[0].number;
    });
    assert_eq!(found, Vec::<String>::new());
}
