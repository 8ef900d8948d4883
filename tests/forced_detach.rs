//! What a detach may give up, and what it must not touch, on a simulated node.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::sync::Mutex;

use attachd::{
    attach::{Origin, Progress},
    model::{AttachSpec, MultipathPolicy, Usage},
    testing::{Content, Fault, Style, When},
};
use simulation::{End, Node, STYLES, guarded, mount_path};
use tokio::sync::watch;

const TAKEN: u64 = 77;

fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::Partial, Fault::Busy];
    for when in [When::Before, When::After] {
        faults.extend([Fault::Error(when), Fault::Crash(when), Fault::Reboot(when)]);
    }
    faults
}

fn specs(node: &Node) -> [AttachSpec; 2] {
    let single = AttachSpec { multipath: MultipathPolicy::Disabled, ..node.spec(0) };
    [node.spec(0), single]
}

/// Attached, with something that is not written yet.
async fn attached(style: Style, single: bool) -> (Node, AttachSpec) {
    let mut node = Node::new(style);
    let spec = specs(&node)[usize::from(single)].clone();
    node.attach(&spec).await.unwrap();
    node.assert_usable(&spec, 5).await;
    node.world.state().application_writes_without_sync(&mount_path(0), 6);
    (node, spec)
}

fn set_portals(node: &Node, work: bool) {
    let mut state = node.world.state();
    for portal in state.storage.portals.clone() {
        state.set_portal(portal, work);
    }
}

/// Another node has the volume by now, and wrote to it.
fn taken_away(node: &Node, spec: &AttachSpec) {
    let mut state = node.world.state();
    state.take_by_force(spec.volume);
    assert!(state.other_node_attaches(spec.volume));
    let content = Content::Filesystem { name: "ext4".to_owned(), marker: TAKEN };
    assert!(state.other_node_writes(spec.volume, content));
}

async fn given_up(node: &Node, spec: &AttachSpec, force: bool) -> (Result<bool, End>, Vec<String>) {
    let (_keep, stop) = watch::channel(false);
    let said = Mutex::new(Vec::new());
    let progress = |progress| {
        if let Progress::GivenUp { why } = progress {
            said.lock().unwrap().push(why);
        }
    };
    let (engine, origin) = (node.engine(spec.volume), Origin::CommandLine);
    let result = if force {
        let run = engine.detach_by_force(spec.volume, &origin, &progress, &stop);
        guarded(&node.world, run).await
    } else {
        guarded(&node.world, engine.detach(spec.volume, &origin, &progress, &stop)).await
    };
    (result, said.into_inner().unwrap())
}

#[tokio::test(start_paused = true)]
async fn force_gives_up_nothing_where_all_can_be_written() {
    for style in STYLES {
        for single in [false, true] {
            let (node, spec) = attached(style, single).await;
            let (result, said) = given_up(&node, &spec, true).await;
            result.unwrap();
            assert_eq!(said, Vec::<String>::new());
            assert_eq!(node.world.state().expected[&spec.volume], 6, "it was written");
            node.assert_sound();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn force_ends_a_detach_without_a_path_and_says_what_it_gave_up() {
    for style in STYLES {
        let (mut node, spec) = attached(style, false).await;
        set_portals(&node, false);
        let (result, said) = given_up(&node, &spec, true).await;
        result.unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("force was asked for"), "{said:?}");
        assert_eq!(node.world.state().expected[&spec.volume], 5, "what was not written is lost");
        node.assert_sound();
        node.assert_nothing_left();
        set_portals(&node, true);
        node.attach(&spec).await.unwrap();
        node.assert_usable(&spec, 8).await;
        node.detach(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_mount_is_refused_without_force_and_with_it_its_map_is_left_on_record_until_it_is_free()
 {
    for style in STYLES {
        let (mut node, spec) = attached(style, false).await;
        node.world.state().set_busy(spec.volume, true);
        assert_eq!(node.detach(spec.volume).await.unwrap_err().reason(), "Busy");
        assert_eq!(node.world.state().cinder.attachments.len(), 1);
        let (result, said) = given_up(&node, &spec, true).await;
        assert_eq!(result.unwrap_err().reason(), "StillHeld");
        assert_eq!(said.len(), 1, "{said:?}");
        {
            let state = node.world.state();
            assert!(state.cinder.attachments.is_empty(), "Cinder has it back");
            assert!(state.kernel.disks.is_empty() && state.kernel.sessions.is_empty());
            assert_eq!(state.expected[&spec.volume], 6, "what could be written was");
        }
        // Another node may have it at once; nothing of this one is in its way, nor is attached here
        // again by mistake.
        assert!(node.world.state().other_node_attaches(spec.volume));
        assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "AttachmentGone");
        assert_eq!(node.detach(spec.volume).await.unwrap_err().reason(), "StillHeld");
        node.world.state().set_busy(spec.volume, false);
        assert!(node.detach(spec.volume).await.unwrap());
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_map_is_held_the_next_volume_at_its_place_waits() {
    for style in [Style::LunPool, Style::UniqueWwids] {
        let (mut node, spec) = attached(style, false).await;
        node.world.state().set_busy(spec.volume, true);
        assert_eq!(node.detach_by_force(spec.volume).await.unwrap_err().reason(), "StillHeld");
        let mut next = node.spec(1);
        next.usage = Usage::Block;
        assert_eq!(node.attach(&next).await.unwrap_err().reason(), "AddressTaken");
        node.world.state().set_busy(spec.volume, false);
        node.detach(spec.volume).await.unwrap();
        node.attach(&next).await.unwrap();
        node.assert_usable(&next, 4).await;
        node.detach(next.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_writes_nothing_to_a_volume_that_was_taken_away() {
    for style in STYLES {
        for (single, force, busy) in [
            (false, false, false),
            (false, true, false),
            (false, false, true),
            (true, false, false),
            (true, false, true),
        ] {
            let (mut node, spec) = attached(style, single).await;
            taken_away(&node, &spec);
            node.world.state().set_busy(spec.volume, busy);
            let (result, said) = given_up(&node, &spec, force).await;
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains("another node's by now"), "{said:?}");
            if busy && !single {
                assert_eq!(result.unwrap_err().reason(), "StillHeld");
                node.world.state().set_busy(spec.volume, false);
                node.detach(spec.volume).await.unwrap();
            } else {
                result.unwrap_or_else(|end| panic!("{end:?}\n{}", node.journal()));
            }
            let content = node.world.state().storage.contents[&spec.volume].clone();
            assert_eq!(content, Content::Filesystem { name: "ext4".to_owned(), marker: TAKEN });
            node.assert_sound();
            node.assert_nothing_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_cinder_shows_neither_attachment_nor_volume_only_force_detaches() {
    for style in STYLES {
        let (mut node, spec) = attached(style, false).await;
        {
            let mut state = node.world.state();
            state.cinder.attachments.clear();
            state.cinder.volumes.clear();
        }
        let changes = node.journal().matches("] ").count();
        assert_eq!(node.detach(spec.volume).await.unwrap_err().reason(), "NothingVisible");
        assert_eq!(node.journal().matches("] ").count(), changes, "{}", node.journal());
        assert_eq!(node.world.state().kernel.mounts.len(), 1);
        node.detach_by_force(spec.volume).await.unwrap();
        assert!(node.world.state().kernel.mounts.is_empty());
        assert!(node.ledger.load(spec.volume).await.unwrap().is_none());
    }
}

/// What is cut short goes on from there, by an ordinary detach too; and never, at no point, does
/// anything reach the volume that is another's by now.
#[tokio::test(start_paused = true)]
async fn a_cut_that_is_cut_short_anywhere_goes_on_from_there() {
    for style in STYLES {
        for taken in [true, false] {
            let total = {
                let (mut node, spec) = trouble(style, taken).await;
                let before = node.world.operations();
                drop(node.detach_by_force(spec.volume).await);
                node.world.operations() - before
            };
            assert!(total > 10, "{total}");
            for index in 0..total {
                for fault in faults() {
                    let (mut node, spec) = trouble(style, taken).await;
                    // Where the first question is left without an answer, nobody can know.
                    if taken && index == 0 {
                        continue;
                    }
                    node.world.plan_fault(index, fault);
                    drop(node.detach_by_force(spec.volume).await);
                    node.world.assert_sound();
                    node.world.clear_faults();
                    node.world.state().set_busy(spec.volume, false);
                    let mut last = node.detach(spec.volume).await;
                    if last.is_err() {
                        last = node.detach_by_force(spec.volume).await;
                    }
                    assert!(
                        last.is_ok(),
                        "{style:?} {index} {fault:?}: {last:?}\n{}",
                        node.journal()
                    );
                    node.assert_sound();
                    node.assert_nothing_left();
                }
            }
        }
    }
}

/// A busy mount with something that is not written: without a path, or of a volume that is another's.
async fn trouble(style: Style, taken: bool) -> (Node, AttachSpec) {
    let (node, spec) = attached(style, false).await;
    if taken {
        taken_away(&node, &spec);
    } else {
        set_portals(&node, false);
    }
    node.world.state().set_busy(spec.volume, true);
    (node, spec)
}

#[tokio::test(start_paused = true)]
async fn force_touches_nothing_where_somebody_else_uses_the_volume() {
    for taken in [true, false] {
        let (mut node, spec) = attached(Style::TargetPerVolume, false).await;
        let map = node.world.state().kernel.maps[0].device.clone();
        assert!(node.world.state().somebody_mounts(&map, std::path::Path::new("/srv/backup")));
        if taken {
            node.world.state().take_by_force(spec.volume);
        } else {
            set_portals(&node, false);
        }
        assert_eq!(node.detach_by_force(spec.volume).await.unwrap_err().reason(), "InUse");
        {
            let state = node.world.state();
            assert_eq!((state.kernel.disks.len(), state.kernel.mounts.len()), (2, 2));
            assert!(state.kernel.maps[0].queues);
        }
        node.world.state().everybody_else_leaves();
        node.detach_by_force(spec.volume).await.unwrap();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_does_not_depend_on_what_cinder_says_first() {
    for fault in [Fault::Error(When::Before), Fault::Busy, Fault::Hang(When::Before)] {
        let (mut node, spec) = attached(Style::TargetPerVolume, false).await;
        node.world.plan_fault(0, fault);
        node.detach(spec.volume).await.unwrap();
        assert_eq!(node.world.state().expected[&spec.volume], 6, "it was written");
        node.assert_sound();
        node.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_cut_off_is_not_attached_before_its_detach_is_finished() {
    let (mut node, spec) = attached(Style::TargetPerVolume, false).await;
    set_portals(&node, false);
    let total = {
        let (mut twin, spec) = attached(Style::TargetPerVolume, false).await;
        set_portals(&twin, false);
        let before = twin.world.operations();
        twin.detach_by_force(spec.volume).await.unwrap();
        twin.world.operations() - before
    };
    // The deletion of the attachment; after it the node is looked at twice.
    node.world.plan_fault(total - 3, Fault::Crash(When::Before));
    assert!(matches!(node.detach_by_force(spec.volume).await, Err(End::Killed)));
    set_portals(&node, true);
    assert_eq!(node.attach(&spec).await.unwrap_err().reason(), "CutOff");
    node.detach(spec.volume).await.unwrap();
    node.attach(&spec).await.unwrap();
    node.assert_usable(&spec, 9).await;
    node.detach(spec.volume).await.unwrap();
    node.assert_nothing_left();
}
