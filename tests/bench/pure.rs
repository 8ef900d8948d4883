//! The parts without I/O, beside as many other volumes as a node may have: `cargo bench`
//! (`docs/performance.md`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, sync::Arc};

use attachd::{
    attach::{
        AttachmentView, Attempt, Desired, Inventory, Next, Observed, Origin, Others, OwnedTargets,
        Ownership, Record, Reservation, plan,
    },
    cinder::AttachmentStatus,
    model::{
        AccessMode, AttachSpec, AttachmentId, ConnectionInfo, DeviceName, DeviceNumber,
        DeviceState, Hctl, HostState, Lun, MapMember, MultipathMap, MultipathPolicy, ScsiDevice,
        Session, SessionState, Target, TargetPath, Usage, VolumeId, Wwid,
    },
    testing::node_facts,
};
use divan::{Bencher, black_box};
use uuid::Uuid;

const VOLUMES: [u32; 3] = [1, 32, 200];
const PATHS: u32 = 2;

fn main() {
    divan::main();
}

/// A node with so many volumes, each over two paths.
struct Node {
    host: Arc<HostState>,
    owned: OwnedTargets,
    records: Vec<Record>,
}

impl Node {
    fn with(volumes: u32) -> Self {
        let (host, owned) = (Arc::default(), OwnedTargets::new());
        let mut node = Self { host, owned, records: Vec::new() };
        for index in 0..volumes {
            node.attach(index);
        }
        node
    }

    fn attach(&mut self, index: u32) {
        let volume = Uuid::from_u128(u128::from(index) << 64 | 1);
        let wwid: Wwid = format!("3{:032x}", u128::from(index) + 1).parse().unwrap();
        let device = DeviceName::new(&format!("dm-{index}")).unwrap();
        let mut paths = Vec::new();
        for path in 0..PATHS {
            let number = index * PATHS + path;
            let target = Target {
                portal: format!("10.0.{path}.1:3260").parse().unwrap(),
                iqn: format!("iqn.2010-10.org.openstack:volume-{volume}").parse().unwrap(),
            };
            Arc::make_mut(&mut self.host).sessions.push(Session {
                sid: number,
                host: number,
                iqn: target.iqn.clone(),
                portal: target.portal,
                tpgt: 1,
                state: SessionState::LoggedIn,
            });
            self.owned.insert(target.clone(), Ownership::Session(number));
            Arc::make_mut(&mut self.host).devices.push(ScsiDevice {
                hctl: Hctl { host: number, channel: 0, target: 0, lun: 1 },
                name: disk(number),
                number: DeviceNumber { major: 8, minor: number * 16 },
                diskseq: Some(u64::from(number)),
                size_bytes: 1 << 30,
                wwid: Some(wwid.clone()),
                vendor: "IET".to_owned(),
                model: "VIRTUAL-DISK".to_owned(),
                state: DeviceState::Running,
                read_only: false,
                holders: vec![device.clone()],
            });
            paths.push(TargetPath { target, lun: Lun(1) });
        }
        let member = |path| MapMember { device: disk(index * PATHS + path), path_state: None };
        Arc::make_mut(&mut self.host).maps.push(MultipathMap {
            name: wwid.to_string(),
            node: Some(format!("/dev/mapper/{wwid}").into()),
            wwid: wwid.clone(),
            device,
            number: DeviceNumber { major: 253, minor: index },
            diskseq: Some(u64::from(index)),
            size_bytes: 1 << 30,
            read_only: false,
            members: (0..PATHS).map(member).collect(),
            holders: Vec::new(),
        });
        let spec = AttachSpec {
            volume: volume.to_string().parse().unwrap(),
            mode: AccessMode::Rw,
            usage: Usage::Block,
            multipath: MultipathPolicy::Required,
            instance: None,
        };
        let mut record = Record::new(spec, Origin::CommandLine, true);
        record.reservation = Reservation::Held(attachment(&record));
        (record.paths, record.wwid) = (paths, Some(wwid));
        record.completed = true;
        self.records.push(record);
    }

    /// What the plan of the first volume sees.
    fn observed(&self) -> Observed {
        Observed {
            facts: Some(node_facts()),
            host: Arc::clone(&self.host),
            volume: None,
            attachment: AttachmentView::Known {
                status: AttachmentStatus::Attached,
                info: Some(ConnectionInfo {
                    paths: self.records[0].paths.clone(),
                    complete: true,
                    chap: None,
                    discovery_chap: None,
                    access_mode: AccessMode::Rw,
                    discard: false,
                }),
            },
            attachments: Vec::new(),
            mount_target: None,
            owned_targets: self.owned.clone(),
            others: Arc::new(Others {
                records: self.records[1..].iter().cloned().collect(),
                unreadable: false,
            }),
            attempt: Attempt::default(),
        }
    }
}

fn disk(number: u32) -> DeviceName {
    let mut name = String::new();
    let mut left = number + 1;
    while left > 0 {
        let letter = u8::try_from((left - 1) % 26).unwrap();
        name.insert(0, char::from(b'a' + letter));
        left = (left - 1) / 26;
    }
    DeviceName::new(&format!("sd{name}")).unwrap()
}

fn attachment(record: &Record) -> AttachmentId {
    let volume: VolumeId = record.spec.volume;
    volume.to_string().parse().unwrap()
}

#[divan::bench(args = VOLUMES)]
fn a_request_that_is_as_asked(bencher: Bencher<'_, '_>, volumes: u32) {
    let node = Node::with(volumes);
    let (observed, record) = (node.observed(), &node.records[0]);
    let desired = Desired::Attached(record.spec.clone());
    let decided = plan(&desired, Some(record), &observed);
    assert!(matches!(decided.next, Next::Done), "{decided:?}");
    bencher.bench_local(|| plan(black_box(&desired), Some(record), black_box(&observed)));
}

#[divan::bench(args = VOLUMES)]
fn the_next_step_of_a_detach(bencher: Bencher<'_, '_>, volumes: u32) {
    let node = Node::with(volumes);
    let (observed, record) = (node.observed(), &node.records[0]);
    let desired = Desired::Detached { force: false };
    assert!(matches!(plan(&desired, Some(record), &observed).next, Next::Do(_)));
    bencher.bench_local(|| plan(black_box(&desired), Some(record), black_box(&observed)));
}

/// A node of 32 volumes, of which each is asked for over and over.
#[divan::bench(sample_count = 5)]
fn ten_thousand_reconciliations(bencher: Bencher<'_, '_>) {
    let node = Node::with(32);
    let (observed, record) = (node.observed(), &node.records[0]);
    let desired = Desired::Attached(record.spec.clone());
    bencher.bench_local(|| {
        for _ in 0..10_000 {
            black_box(plan(black_box(&desired), Some(record), black_box(&observed)));
        }
    });
}

#[divan::bench(args = VOLUMES)]
fn the_inventory_of_a_node(bencher: Bencher<'_, '_>, volumes: u32) {
    let node = Node::with(volumes);
    let records = || node.records.iter().map(|record| Ok(Arc::new(record.clone()))).collect();
    bencher
        .with_inputs(records)
        .bench_local_values(|records| Inventory::join(records, &node.owned, black_box(&node.host)));
}

#[divan::bench]
fn the_connection_info_of_an_attachment(bencher: Bencher<'_, '_>) {
    let info: BTreeMap<&str, serde_json::Value> = [
        ("driver_volume_type", "iscsi".into()),
        ("target_discovered", false.into()),
        ("target_portals", vec!["10.0.2.2:3260", "10.0.3.2:3260"].into()),
        ("target_iqns", vec!["iqn.2010-10.org.openstack:volume-1"; 2].into()),
        ("target_luns", vec![1, 1].into()),
        ("target_portal", "10.0.2.2:3260".into()),
        ("target_iqn", "iqn.2010-10.org.openstack:volume-1".into()),
        ("target_lun", 1.into()),
        ("auth_method", "CHAP".into()),
        ("auth_username", "user".into()),
        ("auth_password", "password".into()),
        ("access_mode", "rw".into()),
    ]
    .into();
    let info = serde_json::to_value(info).unwrap();
    ConnectionInfo::parse(&info).unwrap();
    bencher.bench_local(|| ConnectionInfo::parse(black_box(&info)));
}
