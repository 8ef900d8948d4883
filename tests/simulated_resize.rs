//! A volume that is extended while it is used, on a simulated node: whatever goes wrong.
#![allow(clippy::unwrap_used)]

mod simulation;

use attachd::{
    attach::{Origin, Resized},
    model::{AccessMode, MultipathPolicy, Usage, VolumeId},
    testing::{Fault, Style, When},
};
use proptest::prelude::*;
use simulation::{End, Node, STYLES, cases, guarded, mount_path};
use tokio::sync::watch;

const GIB: u64 = 1 << 30;

async fn resize_to(
    node: &mut Node,
    volume: VolumeId,
    at_least: Option<u64>,
) -> Result<Resized, End> {
    let (_keep, stop) = watch::channel(false);
    let engine = node.engine(volume);
    let result = guarded(&node.world, engine.resize(volume, at_least, &|_| {}, &stop)).await;
    node.restart_if_killed(&result);
    result
}

async fn resize(node: &mut Node, volume: VolumeId) -> Result<Resized, End> {
    resize_to(node, volume, None).await
}

/// Sizes in GiB: of each disk, of each map, of the file system on the volume.
fn sizes(node: &Node, volume: VolumeId) -> (Vec<u64>, Vec<u64>, Option<u64>) {
    let world = node.world.state();
    let disks = world.kernel.disks.iter().map(|disk| disk.size_bytes / GIB).collect();
    let maps = world.kernel.maps.iter().map(|map| map.size_bytes / GIB).collect();
    let filesystem = world.storage.filesystem_sizes.get(&volume).map(|bytes| bytes / GIB);
    (disks, maps, filesystem)
}

fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::Partial, Fault::Busy];
    for when in [When::Before, When::During, When::After] {
        faults.extend([Fault::Error(when), Fault::Crash(when), Fault::Hang(when)]);
    }
    faults.extend([Fault::Reboot(When::Before), Fault::Reboot(When::After)]);
    faults
}

#[tokio::test(start_paused = true)]
async fn an_extended_volume_is_grown_while_it_is_mounted() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        assert!(node.world.state().application_writes(&mount_path(0), 3));
        node.world.state().extend(spec.volume, 3);
        let resized = resize(&mut node, spec.volume).await.unwrap();
        assert!(resized.attached.changed && resized.filesystem_grown);
        assert_eq!((resized.before_bytes, resized.attached.size_bytes), (GIB, 3 * GIB));
        assert_eq!(sizes(&node, spec.volume), (vec![3, 3], vec![3], Some(3)));
        let again = resize(&mut node, spec.volume).await.unwrap();
        assert!(!again.attached.changed && !again.filesystem_grown);
        node.assert_usable(&spec, 4).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_is_cut_short_anywhere_goes_on_from_there() {
    for style in STYLES {
        let total = {
            let mut node = Node::new(style);
            let spec = node.spec(0);
            node.attach(&spec).await.unwrap();
            let before = node.world.operations();
            node.world.state().extend(spec.volume, 2);
            resize(&mut node, spec.volume).await.unwrap();
            node.world.operations() - before
        };
        assert!(total > 8, "{total} operations are no resize");
        for index in 0..total {
            for fault in faults() {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.attach(&spec).await.unwrap();
                assert!(node.world.state().application_writes(&mount_path(0), 9));
                node.world.state().extend(spec.volume, 2);
                node.world.plan_fault(index, fault);
                let what = format!("{style:?}, operation {index}, {fault:?}");
                let _cut_short = resize(&mut node, spec.volume).await;
                node.assert_sound();
                node.world.clear_faults();
                // What a worker does, and what an operator would after a restart of the node.
                node.attach(&spec).await.unwrap_or_else(|end| panic!("{what}: {end:?}"));
                let done = resize(&mut node, spec.volume).await;
                done.unwrap_or_else(|end| panic!("{what}: {end:?}\n{}", node.journal()));
                assert_eq!(sizes(&node, spec.volume), (vec![2, 2], vec![2], Some(2)), "{what}");
                node.assert_usable(&spec, 10).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_path_is_named_and_keeps_the_map_as_it_is() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let path = node.paths(0)[1].clone();
        node.world.state().set_portal(path.target.portal, false);
        node.world.state().extend(spec.volume, 2);
        let End::Error(error) = resize(&mut node, spec.volume).await.unwrap_err() else {
            unreachable!()
        };
        assert_eq!(error.reason(), "SizeDiffers");
        assert!(error.to_string().contains(&path.target.to_string()), "{error}");
        assert_eq!(sizes(&node, spec.volume), (vec![1, 1], vec![1], Some(1)));
        node.world.state().set_portal(path.target.portal, true);
        resize(&mut node, spec.volume).await.unwrap();
        assert_eq!(sizes(&node, spec.volume), (vec![2, 2], vec![2], Some(2)));
        node.assert_usable(&spec, 4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_that_comes_back_with_the_new_size_joins_the_map_after_it_has_grown() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let target = node.paths(0)[1].target.clone();
        node.world.state().somebody_logs_out(&target);
        node.world.state().extend(spec.volume, 2);
        assert!(resize(&mut node, spec.volume).await.is_err());
        // It logs in again, and the kernel makes a disk of the new size.
        node.attach(&spec).await.unwrap();
        let (mut disks, maps, _) = sizes(&node, spec.volume);
        disks.sort_unstable();
        assert_eq!((disks, maps), (vec![2, 2], vec![1]));
        assert_eq!(node.world.state().kernel.maps[0].members.len(), 1);
        resize(&mut node, spec.volume).await.unwrap();
        assert_eq!(sizes(&node, spec.volume), (vec![2, 2], vec![2], Some(2)));
        assert_eq!(node.world.state().kernel.maps[0].members.len(), 2);
        node.assert_usable(&spec, 4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_goes_on_showing_the_old_size_is_named() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.world.state().extend_unseen(spec.volume, 2);
        let End::Error(error) = resize(&mut node, spec.volume).await.unwrap_err() else {
            unreachable!()
        };
        assert_eq!(error.reason(), "SizeDiffers");
        for words in ["Cinder states 2 GiB", "sda", "sdb", "1073741824 bytes", "tgt"] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(sizes(&node, spec.volume), (vec![1, 1], vec![1], Some(1)));
        node.world.state().show_sizes();
        resize(&mut node, spec.volume).await.unwrap();
        assert_eq!(sizes(&node, spec.volume), (vec![2, 2], vec![2], Some(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_size_that_cinder_does_not_state_yet_is_waited_for_by_whoever_asked_for_it() {
    let mut node = Node::new(STYLES[0]);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    let end = resize_to(&mut node, spec.volume, Some(2)).await.unwrap_err();
    assert_eq!(end.reason(), "SizeDiffers");
    node.world.state().extend(spec.volume, 2);
    node.world.state().reset_status(spec.volume, "extending");
    assert_eq!(resize(&mut node, spec.volume).await.unwrap_err().reason(), "SizeDiffers");
    node.world.state().reset_status(spec.volume, "in-use");
    resize_to(&mut node, spec.volume, Some(2)).await.unwrap();
    assert_eq!(sizes(&node, spec.volume), (vec![2, 2], vec![2], Some(2)));
}

#[tokio::test(start_paused = true)]
async fn raw_block_grows_without_a_file_system_and_read_only_leaves_it_alone() {
    for style in STYLES {
        for multipath in [MultipathPolicy::Auto, MultipathPolicy::Disabled] {
            let mut node = Node::new(style);
            let mut block = node.spec(0);
            (block.usage, block.multipath) = (Usage::Block, multipath);
            node.attach(&block).await.unwrap();
            node.world.state().extend(block.volume, 2);
            let resized = resize(&mut node, block.volume).await.unwrap();
            assert_eq!((resized.attached.size_bytes, resized.filesystem_grown), (2 * GIB, false));
            node.detach(block.volume).await.unwrap();

            let mut spec = node.spec(1);
            spec.multipath = multipath;
            node.attach(&spec).await.unwrap();
            node.detach(spec.volume).await.unwrap();
            spec.mode = AccessMode::Ro;
            node.attach(&spec).await.unwrap();
            node.world.state().extend(spec.volume, 2);
            let resized = resize(&mut node, spec.volume).await.unwrap();
            assert_eq!((resized.attached.size_bytes, resized.filesystem_grown), (2 * GIB, false));
            assert_eq!(sizes(&node, spec.volume).2, Some(1));
            node.detach(spec.volume).await.unwrap();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_does_not_matter_who_attached_the_volume() {
    let mut node = Node::new(STYLES[0]);
    let spec = node.spec(0);
    let (_keep, stop) = watch::channel(false);
    let origin = Origin::Cluster("db".to_owned());
    node.engine(spec.volume).attach(&spec, &origin, &|_| {}, &stop).await.unwrap();
    node.world.state().extend(spec.volume, 2);
    resize(&mut node, spec.volume).await.unwrap();
    assert_eq!(node.ledger.load(spec.volume).await.unwrap().unwrap().origin, origin);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_attached_or_was_taken_away_is_not_touched() {
    for style in STYLES {
        let mut node = Node::new(style);
        let (spec, other) = (node.spec(0), node.spec(1));
        let end = resize(&mut node, spec.volume).await.unwrap_err();
        assert_eq!(end.reason(), "NotResizable");
        node.attach(&spec).await.unwrap();
        node.world.state().take_by_force(spec.volume);
        // The storage gives its place to another volume, where it has places.
        let _refused_or_not = node.attach(&other).await;
        node.world.state().extend(spec.volume, 2);
        let end = resize(&mut node, spec.volume).await.unwrap_err();
        assert_eq!(end.reason(), "AttachmentGone");
        node.world.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn another_volume_behind_the_same_address_is_never_grown_into() {
    let mut node = Node::new(Style::UniqueWwids);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    let (volume, stranger) = (spec.volume, node.volumes[1]);
    {
        let mut world = node.world.state();
        let address = world.storage.address_of(volume).unwrap();
        world.extend(volume, 2);
        world.extend(stranger, 2);
        world.storage.granted.insert(stranger);
        world.storage.exports.insert(address, stranger);
    }
    let end = resize(&mut node, volume).await.unwrap_err();
    assert_eq!(end.reason(), "IdentityMismatch");
    let world = node.world.state();
    assert_eq!(world.kernel.maps[0].size_bytes, GIB);
    assert!(world.violations.is_empty(), "{:?}", world.violations);
}

#[derive(Debug, Clone)]
enum Act {
    Extend { unseen: bool },
    Show,
    Resize,
    Attach,
    Detach,
    Portal { index: usize, works: bool },
    LogOutByHand,
    Reboot,
    Fault { ahead: usize, fault: Fault },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => any::<bool>().prop_map(|unseen| Act::Extend { unseen }),
        1 => Just(Act::Show),
        5 => Just(Act::Resize),
        2 => Just(Act::Attach),
        1 => Just(Act::Detach),
        2 => (0..2_usize, any::<bool>()).prop_map(|(index, works)| Act::Portal { index, works }),
        1 => Just(Act::LogOutByHand),
        1 => Just(Act::Reboot),
        3 => (0..20_usize, prop::sample::select(faults()))
            .prop_map(|(ahead, fault)| Act::Fault { ahead, fault }),
    ]
}

async fn live(style: Style, block: bool, acts: &[Act]) {
    let mut node = Node::new(style);
    let mut spec = node.spec(0);
    if block {
        spec.usage = Usage::Block;
    }
    let mut size = 1;
    for act in acts {
        match act {
            Act::Extend { unseen } => {
                size += 1;
                let mut world = node.world.state();
                if *unseen {
                    world.extend_unseen(spec.volume, size);
                } else {
                    world.extend(spec.volume, size);
                }
            }
            Act::Show => node.world.state().show_sizes(),
            Act::Resize => drop(resize(&mut node, spec.volume).await),
            Act::Attach => drop(node.attach(&spec).await),
            Act::Detach => drop(node.detach(spec.volume).await),
            Act::Portal { index, works } => {
                let mut world = node.world.state();
                let portal = world.storage.portals[*index];
                world.set_portal(portal, *works);
            }
            Act::LogOutByHand => {
                let target = node.world.state().kernel.sessions.first().map(|s| s.target.clone());
                // In use, the kernel keeps the disk of a raw device that is open; nobody has it open here.
                if let Some(target) = target.filter(|_| block) {
                    node.world.state().somebody_logs_out(&target);
                }
            }
            Act::Reboot => node.reboot(),
            Act::Fault { ahead, fault } => node.world.plan_fault(*ahead, *fault),
        }
        node.assert_sound();
    }
    node.world.clear_faults();
    {
        let mut world = node.world.state();
        world.show_sizes();
        for portal in world.storage.portals.clone() {
            world.set_portal(portal, true);
        }
        world.free_reservations(spec.volume);
    }
    let mut attached = node.attach(&spec).await;
    for _ in 0..3 {
        if attached.is_ok() {
            break;
        }
        drop(node.detach(spec.volume).await);
        node.world.state().free_reservations(spec.volume);
        attached = node.attach(&spec).await;
    }
    attached.unwrap_or_else(|end| panic!("{end:?}\n{}", node.journal()));
    let resized = resize(&mut node, spec.volume).await;
    let resized = resized.unwrap_or_else(|end| panic!("{end:?}\n{}", node.journal()));
    assert_eq!(resized.attached.size_bytes, size * GIB, "{}", node.journal());
    let (disks, maps, filesystem) = sizes(&node, spec.volume);
    assert_eq!((disks, maps), (vec![size; 2], vec![size]), "{}", node.journal());
    assert_eq!(filesystem.filter(|_| !block), (!block).then_some(size), "{}", node.journal());
    node.assert_sound();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: u32::try_from(cases(256)).unwrap(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_nothing_outgrows_the_volume_and_in_the_end_all_sizes_agree(
        style in prop::sample::select(STYLES.to_vec()),
        block in any::<bool>(),
        acts in prop::collection::vec(act(), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(live(style, block, &acts));
    }
}
