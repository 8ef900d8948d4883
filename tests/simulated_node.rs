//! The engine on a simulated node: what must hold whatever goes wrong.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::sync::atomic::{AtomicUsize, Ordering};

use attachd::{
    attach::{Attached, Origin, Progress},
    model::{
        AccessMode, AttachSpec, DeviceNumber, Lun, MultipathPolicy, Target, TargetPath, Usage,
        VolumeId,
    },
    testing::{Content, Fault, Maker, SimMap, SimMount, Style, When, World},
};
use simulation::{End, Node, STYLES, guarded, mount_path};
use tokio::sync::watch;

async fn run_attach(node: &Node, spec: &AttachSpec) -> Result<Attached, End> {
    let (_keep, stop) = watch::channel(false);
    let engine = node.engine(spec.volume);
    guarded(&node.world, engine.attach(spec, &Origin::CommandLine, &|_| {}, &stop)).await
}

async fn run_roll_back(node: &Node, spec: &AttachSpec) -> Result<Attached, End> {
    let (_keep, stop) = watch::channel(false);
    let engine = node.engine(spec.volume);
    let run = engine.attach_or_roll_back(spec, &Origin::CommandLine, &|_| {}, &stop);
    guarded(&node.world, run).await
}

async fn run_detach(node: &Node, index: usize) -> Result<bool, End> {
    let (_keep, stop) = watch::channel(false);
    let volume = node.volumes[index];
    let engine = node.engine(volume);
    guarded(&node.world, engine.detach(volume, &Origin::CommandLine, &|_| {}, &stop)).await
}

/// The ways to a volume that somebody has exported.
fn targets_of(world: &World, volume: VolumeId) -> Vec<TargetPath> {
    let (iqn, lun) = world.storage.address_of(volume).unwrap();
    let portals = world.storage.portals.iter();
    portals
        .map(|portal| TargetPath {
            target: Target { portal: *portal, iqn: iqn.clone() },
            lun: Lun(lun),
        })
        .collect()
}

/// How many orders of events are tried where two runs go side by side.
fn seeds() -> u64 {
    simulation::cases(256) / 8
}

/// Which operation of a fresh attach, and of the detach after it, has this in its name.
async fn index_of(style: Style, name: &str) -> usize {
    let mut node = Node::new(style);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    node.detach(spec.volume).await.unwrap();
    let state = node.world.state();
    state.journal.iter().position(|line| line.contains(name)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_attach_and_a_detach_leave_nothing() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let attached = node.attach(&spec).await.unwrap();
        assert!(attached.changed && attached.warnings.is_empty(), "{attached:?}");
        assert_eq!(attached.paths.len(), 2);
        node.assert_usable(&spec, 7).await;
        assert!(node.detach(spec.volume).await.unwrap());
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_attach_costs_four_calls_of_cinder_and_a_detach_two() {
    let mut node = Node::new(STYLES[0]);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    assert_eq!(node.world.state().cinder.calls, 4);
    node.detach(spec.volume).await.unwrap();
    assert_eq!(node.world.state().cinder.calls, 6);
}

#[tokio::test(start_paused = true)]
async fn a_second_attach_and_a_second_detach_change_nothing() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let calls = node.world.state().cinder.calls;
        assert!(!node.attach(&spec).await.unwrap().changed);
        assert_eq!(node.world.state().cinder.calls, calls + 1);
        node.detach(spec.volume).await.unwrap();
        let calls = node.world.state().cinder.calls;
        assert!(!node.detach(spec.volume).await.unwrap());
        assert_eq!(node.world.state().cinder.calls, calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_that_outlives_its_attachd_leaves_no_session() {
    for style in STYLES {
        for goes_on in [true, false] {
            let mut node = Node::new(style);
            let spec = node.spec(0);
            let login = index_of(style, "Login").await;
            node.world.plan_fault(login, Fault::Crash(When::During));
            assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "Killed");
            if goes_on {
                node.attach(&spec).await.unwrap();
                node.assert_usable(&spec, 7).await;
            }
            node.detach(spec.volume).await.unwrap();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_a_format_of_a_killed_attachd_still_holds_is_waited_for() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.world.plan_fault(index_of(style, "Format").await, Fault::Busy);
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 7).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_read_for_a_moment_is_read_again() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let read = index_of(style, "contents of").await;
        node.world.plan_fault(read, Fault::Error(When::Before));
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 7).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

/// A look costs the more, the more is attached: they are counted, not timed.
#[tokio::test(start_paused = true)]
async fn the_looks_at_the_node_that_an_attach_and_a_detach_take_are_few() {
    let looks = |node: &Node| {
        let state = node.world.state();
        state.journal.iter().filter(|line| line.contains("observe")).count()
    };
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let attach = looks(&node);
        node.detach(spec.volume).await.unwrap();
        let detach = looks(&node) - attach;
        assert!(attach <= 8 && detach <= 7, "{attach} {detach}\n{}", node.journal());
    }
}

/// What this project's Cinder does not show may still be there.
#[tokio::test(start_paused = true)]
async fn a_record_is_not_forgotten_by_an_attach_where_cinder_shows_no_volume() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let delete = index_of(style, "Cinder: delete attachment").await;
        node.world.plan_fault(delete, Fault::Crash(When::After));
        node.attach(&spec).await.unwrap();
        assert!(matches!(node.detach(spec.volume).await, Err(End::Killed)));
        node.world.state().cinder.volumes.clear();
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "AttachmentGone");
    }
}

#[tokio::test(start_paused = true)]
async fn two_detaches_at_once_leave_no_session_of_their_shared_target() {
    for seed in 1..=seeds() {
        let mut node = Node::new(Style::UniqueWwids);
        let (a, b) = (node.spec(0), node.spec(1));
        node.attach(&a).await.unwrap();
        node.attach(&b).await.unwrap();
        node.world.jitter(50, seed);
        let (first, second) = tokio::join!(run_detach(&node, 0), run_detach(&node, 1));
        first.unwrap();
        second.unwrap();
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_and_a_detach_at_once_on_a_shared_target_do_not_disturb_each_other() {
    for seed in 1..=4 * seeds() {
        for style in [Style::LunPool, Style::UniqueWwids] {
            let mut node = Node::new(style);
            let (a, b) = (node.spec(0), node.spec(1));
            node.attach(&a).await.unwrap();
            node.world.state().application_writes(&mount_path(0), 5);
            node.world.jitter(50, seed);
            let (detached, attached) = tokio::join!(run_detach(&node, 0), run_attach(&node, &b));
            detached.unwrap();
            attached.unwrap_or_else(|end| panic!("{end:?}\n{}", node.journal()));
            node.assert_usable(&b, 9).await;
            node.detach(b.volume).await.unwrap();
            node.assert_sound();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_attaches_at_once_share_a_target_without_a_second_session() {
    for seed in 1..=seeds() {
        for style in STYLES {
            let mut node = Node::new(style);
            let (a, b) = (node.spec(0), node.spec(1));
            node.world.jitter(50, seed);
            let (first, second) = tokio::join!(run_attach(&node, &a), run_attach(&node, &b));
            first.unwrap();
            second.unwrap();
            node.assert_usable(&a, 1).await;
            node.assert_usable(&b, 2).await;
            node.detach(a.volume).await.unwrap();
            node.assert_usable(&b, 3).await;
            node.detach(b.volume).await.unwrap();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_requests_for_one_mount_path_never_both_mount() {
    for seed in 1..=seeds() {
        let mut node = Node::new(Style::UniqueWwids);
        let (a, mut b) = (node.spec(0), node.spec(1));
        b.usage = a.usage.clone();
        node.world.jitter(50, seed);
        let (first, second) = tokio::join!(run_attach(&node, &a), run_attach(&node, &b));
        assert!(first.is_err() || second.is_err());
        assert!(node.world.state().kernel.mounts.len() <= 1);
        // The one that has to give way does so before it touches its volume.
        let blank = |content: &&Content| **content == Content::Blank;
        assert!(node.world.state().storage.contents.values().filter(blank).count() >= 2);
        node.detach(a.volume).await.unwrap();
        node.detach(b.volume).await.unwrap();
        node.assert_sound();
        node.assert_nothing_left();
    }
}

/// A LUN's next volume must not be taken for the one whose disks are still there.
#[tokio::test(start_paused = true)]
async fn a_lun_that_is_used_again_does_not_give_the_old_volume() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let (a, b) = (node.spec(0), node.spec(1));
        // Another tool's sessions to the shared target, with disks of a LUN that was somebody's.
        node.world.state().other_node_attaches(a.volume);
        {
            let mut state = node.world.state();
            state.storage.granted.insert(a.volume);
            for path in targets_of(&state, a.volume) {
                state.somebody_logs_in(&path.target);
                state.somebody_scans(&path.target, path.lun.0);
            }
            state.other_nodes_detach(a.volume);
        }
        node.attach(&b).await.unwrap();
        node.assert_usable(&b, 4).await;
        node.detach(b.volume).await.unwrap();
        node.assert_sound();
        assert_eq!(node.world.state().kernel.sessions.len(), 2, "foreign sessions stay");
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_waits_for_the_one_whose_place_on_the_storage_it_was_given() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let (mut a, mut b) = (node.spec(0), node.spec(1));
        a.usage = Usage::Block;
        b.usage = Usage::Block;
        node.attach(&a).await.unwrap();
        node.world.state().take_by_force(a.volume);
        let refused = node.attach(&b).await.unwrap_err();
        assert_eq!(refused.reason(), "AddressTaken");
        assert_eq!(node.attach(&a).await.unwrap_err().reason(), "AttachmentGone");
        node.detach(a.volume).await.unwrap();
        node.attach(&b).await.unwrap();
        node.assert_usable(&b, 4).await;
        node.detach(b.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

/// The attachment was deleted, attachd was killed before it forgot it, and another volume of this
/// node has the LUN by now.
#[tokio::test(start_paused = true)]
async fn forgetting_an_attachment_late_does_not_touch_its_successor() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let (mut a, mut b) = (node.spec(0), node.spec(1));
        a.usage = Usage::Block;
        b.usage = Usage::Block;
        node.attach(&a).await.unwrap();
        let before = node.world.operations();
        let total = {
            let mut twin = Node::new(style);
            twin.attach(&a).await.unwrap();
            let before = twin.world.operations();
            twin.detach(a.volume).await.unwrap();
            twin.world.operations() - before
        };
        // The last operation but one is the deletion; after it the node is looked at once more.
        node.world.plan_fault(total - 2, Fault::Crash(When::After));
        assert!(matches!(node.detach(a.volume).await, Err(End::Killed)), "{before}");
        node.attach(&b).await.unwrap();
        node.detach(a.volume).await.unwrap();
        node.assert_usable(&b, 4).await;
        node.detach(b.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_portal_costs_a_path_and_heals() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let portal = node.world.state().storage.portals[0];
        node.world.state().set_portal(portal, false);
        let attached = node.attach(&spec).await.unwrap();
        assert_eq!(attached.warnings.len(), 1, "{:?}", attached.warnings);
        node.world.state().set_portal(portal, true);
        // The kernel answers the scan before it has made the disk.
        node.world.state().kernel.late.insert(portal, 3);
        let attached = node.attach(&spec).await.unwrap();
        assert!(attached.warnings.is_empty(), "{:?}", attached.warnings);
        node.assert_usable(&spec, 4).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn without_multipath_the_second_portal_is_tried() {
    for style in STYLES {
        let mut node = Node::new(style);
        let mut spec = node.spec(0);
        spec.multipath = MultipathPolicy::Disabled;
        let portal = node.world.state().storage.portals[0];
        node.world.state().set_portal(portal, false);
        node.attach(&spec).await.unwrap();
        node.world.state().set_portal(portal, true);
        node.assert_usable(&spec, 4).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

/// A session of another volume stands on the first portal and has failed.
#[tokio::test(start_paused = true)]
async fn without_multipath_a_session_that_does_not_recover_is_given_up_for_the_next_portal() {
    let mut node = Node::new(Style::UniqueWwids);
    let (mut a, mut b) = (node.spec(0), node.spec(1));
    a.multipath = MultipathPolicy::Disabled;
    b.multipath = MultipathPolicy::Disabled;
    node.attach(&a).await.unwrap();
    let portal = node.world.state().storage.portals[0];
    node.world.state().set_portal(portal, false);
    node.attach(&b).await.unwrap();
    node.assert_usable(&b, 4).await;
    node.detach(b.volume).await.unwrap();
    node.detach(a.volume).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn no_portal_is_a_refusal_that_is_taken_back() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let portals = node.world.state().storage.portals.clone();
        for portal in portals {
            node.world.state().set_portal(portal, false);
        }
        let error = node.attach_or_roll_back(&spec).await.unwrap_err();
        assert_eq!(error.reason(), "NoPath");
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_comes_late_is_waited_for() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let portals = node.world.state().storage.portals.clone();
        node.world.state().kernel.late.insert(portals[1], 6);
        let attached = node.attach(&spec).await.unwrap();
        assert!(attached.warnings.is_empty(), "{:?}", attached.warnings);
        // After a restart all disks may be late, and the volume is completed already.
        node.world.state().kernel.late.insert(portals[0], 6);
        node.reboot();
        node.attach(&spec).await.unwrap();
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 4).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_mount_at_the_mount_path_is_refused_before_the_reservation() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    let foreign = SimMount {
        busy: false,
        unwritten: None,
        number: DeviceNumber { major: 254, minor: 16 },
        source: "/dev/vdb".to_owned(),
        target: spec.mount_path().unwrap().to_owned(),
        fs_type: "ext4".to_owned(),
        read_only: false,
        errors: false,
        volume: None,
        maker: Maker::Other,
    };
    node.world.state().kernel.mounts.push(foreign);
    let end = node.attach(&spec).await.unwrap_err();
    assert_eq!(end.reason(), "MountPathUnusable");
    assert!(node.world.state().cinder.attachments.is_empty(), "{}", node.journal());
    node.world.state().kernel.mounts.clear();
    node.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_detach_waits_for_disks_that_the_kernel_is_still_making() {
    for style in STYLES {
        let mut node = Node::new(style);
        let (spec, neighbour) = (node.spec(0), node.spec(1));
        node.attach(&neighbour).await.unwrap();
        let portals = node.world.state().storage.portals.clone();
        for portal in &portals {
            node.world.state().kernel.late.insert(*portal, 9);
        }
        let scan = {
            let mut twin = Node::new(style);
            twin.attach(&neighbour).await.unwrap();
            let begin = twin.world.operations();
            twin.attach(&spec).await.unwrap();
            let state = twin.world.state();
            let scan = state.journal.iter().rposition(|line| line.contains("ScanLuns"));
            scan.unwrap() - begin
        };
        node.world.plan_fault(scan, Fault::Crash(When::After));
        assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
        assert!(node.world.state().kernel.disks.iter().any(|disk| disk.appears_in > 0));
        node.detach(spec.volume).await.unwrap();
        node.detach(neighbour.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn udev_may_be_late_with_the_disks() {
    for lag in 1..5 {
        let mut node = Node::new(Style::TargetPerVolume);
        node.world.state().kernel.udev_lag = lag;
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 4).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_never_comes_ends_the_attach() {
    for lag in [0, u32::MAX] {
        let mut node = Node::new(Style::TargetPerVolume);
        node.world.state().kernel.no_maps = lag == 0;
        node.world.state().kernel.udev_lag = lag;
        let spec = node.spec(0);
        let end = node.attach_or_roll_back(&spec).await.unwrap_err();
        assert_eq!(end.reason(), "NoMap");
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_somebody_made_after_a_restart_is_not_logged_out() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let paths = node.paths(0);
        node.reboot();
        node.world.state().somebody_logs_in(&paths[0].target);
        node.attach(&spec).await.unwrap();
        node.detach(spec.volume).await.unwrap();
        node.assert_sound();
        assert_eq!(node.world.state().kernel.sessions.len(), 1);
        // Its node record serves that session by now.
        let left = node.left();
        assert!(left.iter().all(|what| what.starts_with("node record")), "{left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_lost_after_a_restart_but_not_with_one_of_its_paths() {
    for style in STYLES {
        let mut node = Node::new(style);
        let (file_system, block) =
            (node.spec(0), AttachSpec { usage: Usage::Block, ..node.spec(1) });
        for spec in [&file_system, &block] {
            node.attach(spec).await.unwrap();
        }
        let losses = AtomicUsize::new(0);
        let progress = |progress: Progress| {
            if matches!(progress, Progress::Lost) {
                losses.fetch_add(1, Ordering::SeqCst);
            }
        };
        let (_keep, never) = watch::channel(false);
        let origin = Origin::CommandLine;
        for (what, lost) in [("nothing", 0), ("a path", 0), ("the node", 1)] {
            match what {
                "a path" => {
                    let target = node.paths(0)[0].target.clone();
                    node.world.state().somebody_logs_out(&target);
                }
                "the node" => node.reboot(),
                _ => {}
            }
            for spec in [&file_system, &block] {
                losses.store(0, Ordering::SeqCst);
                let engine = node.engine(spec.volume);
                engine.attach(spec, &origin, &progress, &never).await.unwrap();
                assert_eq!(losses.load(Ordering::SeqCst), lost, "{what} went");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_after_a_restart_removes_the_node_records() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.reboot();
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_record_that_somebody_left_is_there_again_after_the_detach() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let iqn = node.world.state().storage.target_of(spec.volume);
        let portals = node.world.state().storage.portals.clone();
        let targets: Vec<Target> =
            portals.iter().map(|portal| Target { portal: *portal, iqn: iqn.clone() }).collect();
        for target in &targets {
            node.world.state().somebody_discovers(target);
        }
        let theirs = node.world.state().kernel.node_records.clone();
        for reboot in [false, true] {
            node.attach(&spec).await.unwrap();
            if reboot {
                node.reboot();
            }
            node.detach(spec.volume).await.unwrap();
            assert_eq!(node.world.state().kernel.node_records, theirs);
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_node_record_somebody_deleted_is_logged_out() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let target = node.paths(0)[0].target.clone();
        node.world.state().somebody_deletes_the_record(&target);
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_sessions_disks_and_mounts_stay() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let mut node = Node::new(style);
        let (a, b) = (node.spec(0), node.spec(1));
        {
            let mut state = node.world.state();
            state.other_node_attaches(b.volume);
            state.storage.granted.insert(b.volume);
            for path in targets_of(&state, b.volume) {
                state.somebody_logs_in(&path.target);
                state.somebody_scans(&path.target, path.lun.0);
            }
            let disk = state.kernel.disks[0].name.clone();
            state.somebody_mounts(&disk, std::path::Path::new("/srv/other"));
        }
        node.attach(&a).await.unwrap();
        node.assert_usable(&a, 4).await;
        node.detach(a.volume).await.unwrap();
        node.assert_nothing_left();
        let state = node.world.state();
        let kernel = &state.kernel;
        assert_eq!((kernel.sessions.len(), kernel.disks.len(), kernel.mounts.len()), (2, 2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_taken_away_by_force_can_be_detached_and_attached_again() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.world.state().application_writes(&mount_path(0), 5);
        node.world.state().take_by_force(spec.volume);
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "AttachmentGone");
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_format_is_not_resumed_on_what_another_node_wrote_meanwhile() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        let format = index_of(style, "Format").await;
        node.world.plan_fault(format, Fault::Crash(When::During));
        assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
        {
            let mut state = node.world.state();
            state.take_by_force(spec.volume);
            assert!(state.other_node_attaches(spec.volume));
            state.other_node_writes(spec.volume, Content::Raw { marker: 77 });
            state.other_nodes_detach(spec.volume);
        }
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "AttachmentGone");
        node.detach(spec.volume).await.unwrap();
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "NotBlank");
        node.detach(spec.volume).await.unwrap();
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_format_is_not_resumed_on_a_volume_of_many_nodes() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    node.world.state().cinder.volumes.get_mut(&spec.volume).unwrap().multiattach = true;
    let format = index_of(Style::TargetPerVolume, "Format").await;
    node.world.plan_fault(format, Fault::Crash(When::During));
    assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
    node.world.state().reset_status(spec.volume, "in-use");
    {
        let mut state = node.world.state();
        assert!(state.other_node_attaches(spec.volume));
        state.other_node_writes(spec.volume, Content::Raw { marker: 77 });
    }
    assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "NotBlank");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_formatted_once_is_not_formatted_again_when_it_reads_as_blank() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.reboot();
        node.world.state().storage.contents.insert(spec.volume, Content::Blank);
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "Blank");
        node.world.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reservation_is_found_again_by_its_instance_and_else_named() {
    let mut node = Node::new(Style::TargetPerVolume);
    let mut spec = node.spec(0);
    let reserve = index_of(Style::TargetPerVolume, "reserve").await;
    node.world.plan_fault(reserve, Fault::Crash(When::After));
    assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
    assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "LostReservation");
    assert_eq!(node.detach(spec.volume).await.unwrap_err().reason(), "LostReservation");
    node.world.state().free_reservations(node.volumes[0]);
    node.detach(spec.volume).await.unwrap();
    node.assert_nothing_left();

    spec.instance = Some(uuid::Uuid::from_u128(77));
    node.world.plan_fault(reserve, Fault::Crash(When::After));
    assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
    node.attach(&spec).await.unwrap();
    node.assert_usable(&spec, 4).await;
    node.detach(spec.volume).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_service_finds_every_reservation_again_whose_answer_was_lost() {
    let reserve = index_of(Style::TargetPerVolume, "reserve").await;
    for fault in [Fault::Crash(When::After), Fault::Error(When::After), Fault::Reboot(When::After)]
    {
        for attaches in [true, false] {
            let mut node = Node::new(Style::TargetPerVolume);
            node.world.state().cinder.is_service = true;
            let spec = node.spec(0);
            node.world.plan_fault(reserve, fault);
            node.attach(&spec).await.unwrap_err();
            if attaches {
                node.attach(&spec).await.unwrap();
                node.assert_usable(&spec, 4).await;
            }
            node.detach(spec.volume).await.unwrap();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_somebody_else_made_is_never_taken_for_a_services_own() {
    let mut node = Node::new(Style::TargetPerVolume);
    node.world.state().cinder.is_service = true;
    let spec = node.spec(0);
    let reserve = index_of(Style::TargetPerVolume, "reserve").await;
    node.world.plan_fault(reserve, Fault::Crash(When::Before));
    assert!(matches!(node.attach(&spec).await, Err(End::Killed)));
    assert!(node.world.state().other_node_reserves(spec.volume));
    assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "LostReservation");
    assert_eq!(node.detach(spec.volume).await.unwrap_err().reason(), "LostReservation");
    assert_eq!(node.world.state().cinder.attachments.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_can_not_be_recorded_is_given_back() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    // The record of the intent is written before Cinder's answer; the one after it meets a directory
    // in the place of its temporary file.
    let temporary = node.directory.path().join(format!("volumes/{}.tmp", spec.volume));
    let reserve = index_of(Style::TargetPerVolume, "reserve").await;
    node.world.call_at(reserve, move |_| std::fs::create_dir(&temporary).unwrap());
    let error = node.attach(&spec).await.unwrap_err();
    assert_eq!(error.reason(), "LedgerUnavailable");
    assert!(node.world.state().cinder.attachments.is_empty(), "{}", node.journal());
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_volume_that_can_not_be_read_keeps_the_sessions_and_nothing_else() {
    let mut node = Node::new(Style::UniqueWwids);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    let other = node.directory.path().join(format!("volumes/{}.json", node.volumes[1]));
    std::fs::write(&other, "{").unwrap();
    node.detach(spec.volume).await.unwrap();
    node.assert_sound();
    let state = node.world.state();
    assert_eq!((state.kernel.sessions.len(), state.kernel.disks.len()), (2, 0));
    assert!(state.cinder.attachments.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_detach_with_failed_sessions_ends() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let portals = node.world.state().storage.portals.clone();
        for portal in portals {
            node.world.state().set_portal(portal, false);
        }
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn an_extended_volume_stays_attached() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.world.state().extend(spec.volume, 2);
        node.attach(&spec).await.unwrap();
        // Somebody has the kernel look at one path alone.
        node.world.state().kernel.disks[0].size_bytes = 2 << 30;
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 4).await;
        node.reboot();
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 5).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_attach_does_not_take_back_what_another_attached_meanwhile() {
    for seed in 1..=seeds() {
        let mut node = Node::new(Style::TargetPerVolume);
        let good = node.spec(0);
        let mut bad = node.spec(0);
        bad.mode = AccessMode::Ro;
        node.world.jitter(50, seed);
        let (first, second) = tokio::join!(run_attach(&node, &good), run_roll_back(&node, &bad));
        // Read-only on a blank volume fails, and so does another request for what is attached.
        assert!(second.is_err());
        if first.is_ok() {
            node.assert_usable(&good, 4).await;
        }
        node.detach(good.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_whose_device_is_lost_is_unmounted_before_the_attachment_is_deleted() {
    for style in STYLES {
        let mut node = Node::new(style);
        let mut spec = node.spec(0);
        spec.multipath = MultipathPolicy::Disabled;
        node.attach(&spec).await.unwrap();
        // An administrator logs out by hand: the disk is gone, its mount is not.
        let target = node.paths(0)[0].target.clone();
        node.world.state().somebody_logs_out(&target);
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "MountPathUnusable");
        node.detach(spec.volume).await.unwrap();
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_ghost_map_with_the_same_identity_is_removed_before_the_volume_is_used() {
    let mut node = Node::new(Style::LunPool);
    let (a, b) = (node.spec(0), node.spec(1));
    node.attach(&a).await.unwrap();
    let map = node.world.state().kernel.maps[0].clone();
    node.detach(a.volume).await.unwrap();
    // It came back without disks, as a map does that was held open while its disks went.
    node.world.state().kernel.maps.push(SimMap { members: Vec::new(), ..map });
    node.world.state().kernel.no_auto_join = true;
    node.attach(&b).await.unwrap();
    assert_eq!(node.world.state().kernel.maps[0].volume, b.volume);
    node.assert_usable(&b, 4).await;
    node.detach(b.volume).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_stop_request_leaves_what_the_next_run_goes_on_from() {
    for style in STYLES {
        for step in 0..12 {
            let mut node = Node::new(style);
            let spec = node.spec(0);
            let (sender, stop) = watch::channel(false);
            let seen = AtomicUsize::new(0);
            let progress = |progress: Progress| {
                if matches!(progress, Progress::Started { .. })
                    && seen.fetch_add(1, Ordering::SeqCst) == step
                {
                    sender.send_replace(true);
                }
            };
            let engine = node.engine(spec.volume);
            let origin = Origin::CommandLine;
            let end = engine.attach_or_roll_back(&spec, &origin, &progress, &stop).await;
            match end {
                Ok(_) => assert!(step >= 11 || node.world.state().left().len() > 1),
                Err(error) => {
                    assert_eq!(error.reason(), "Stopped");
                    node.assert_nothing_left();
                    continue;
                }
            }
            node.detach(spec.volume).await.unwrap();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_disk_does_not_hold_up_other_volumes_of_the_target() {
    let mut node = Node::new(Style::UniqueWwids);
    let (a, b) = (node.spec(0), node.spec(1));
    node.attach(&a).await.unwrap();
    let portals = node.world.state().storage.portals.clone();
    for portal in &portals {
        // It comes when nobody looks any more.
        node.world.state().kernel.late.insert(*portal, u32::MAX);
    }
    let begin = tokio::time::Instant::now();
    let detach = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        run_detach(&node, 0).await.unwrap();
        begin.elapsed()
    };
    let (attached, took) = tokio::join!(run_attach(&node, &b), detach);
    assert_eq!(attached.unwrap_err().reason(), "LunMissing");
    assert!(took.as_secs() < 5, "the detach took {took:?}");
}

/// A detach that stood still after it released its target, and that ends as the last one after all.
#[tokio::test(start_paused = true)]
async fn the_last_one_on_a_target_forgets_it_even_if_it_had_released_it_before() {
    let mut node = Node::new(Style::LunPool);
    let (a, b) = (node.spec(0), node.spec(1));
    node.attach(&a).await.unwrap();
    node.attach(&b).await.unwrap();
    let path = node.paths(0)[0].clone();
    let begin = node.world.operations();
    let release = {
        let mut twin = Node::new(Style::LunPool);
        twin.attach(&a).await.unwrap();
        twin.attach(&b).await.unwrap();
        twin.detach(a.volume).await.unwrap();
        let state = twin.world.state();
        let lines = state.journal.iter().position(|line| line.contains("delete attachment"));
        lines.unwrap() - begin
    };
    node.world.plan_fault(release, Fault::Error(When::Before));
    assert!(node.detach(a.volume).await.is_err());
    // Somebody looks at the LUN through attachd's session, which is kept for it.
    node.world.state().somebody_scans(&path.target, path.lun.0);
    node.detach(b.volume).await.unwrap();
    node.world.state().everybody_else_leaves();
    node.detach(a.volume).await.unwrap();
    node.assert_nothing_left();
}
