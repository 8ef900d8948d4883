//! Cleaning on the simulated node: it takes what nobody needs, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;

use attachd::{
    attach::{
        AttachError, Origin, Ownership,
        orphans::{Cleaned, Remedy},
    },
    testing::{Fault, When},
};
use simulation::{End, Node, STYLES, mount_path};
use tokio::sync::watch;

async fn clean(node: &Node, index: usize, remedy: &Remedy) -> Result<Cleaned, AttachError> {
    let (_keep, stop) = watch::channel(false);
    node.engine(node.volumes[index]).clean(remedy, &|_| {}, &stop).await
}

fn detach(node: &Node) -> Remedy {
    Remedy::Detach(node.volumes[0])
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_was_killed_anywhere_is_cleaned_unless_it_is_mounted() {
    for style in STYLES {
        for kill_at in 0.. {
            let mut node = Node::new(style);
            let spec = node.spec(0);
            node.world.plan_fault(kill_at, Fault::Crash(When::After));
            if node.attach(&spec).await.is_ok() {
                assert!(kill_at > 5, "it was never killed");
                break;
            }
            node.world.clear_faults();
            let mounted = !node.world.state().kernel.mounts.is_empty();
            let completed =
                node.ledger.load(spec.volume).await.unwrap().is_some_and(|r| r.completed);
            match clean(&node, 0, &detach(&node)).await {
                Ok(Cleaned::Gone) => {
                    assert!(!mounted, "a mounted volume was cleaned away");
                    node.assert_nothing_left();
                }
                Ok(Cleaned::Left { because }) => {
                    let nothing = node.ledger.load(spec.volume).await.unwrap().is_none();
                    assert!(mounted || completed || nothing, "left though free: {because}");
                }
                // Somebody else's or ours can't be told: the engine's own refusal.
                Err(error) => assert_eq!(error.reason(), "LostReservation", "{}", error.chain()),
            }
            node.assert_sound();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_attached_and_whole_is_left_whatever_was_seen_before() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let left = clean(&node, 0, &detach(&node)).await.unwrap();
        assert!(matches!(left, Cleaned::Left { .. }), "{left:?}");
        for path in node.paths(0) {
            let left = clean(&node, 0, &Remedy::LogOut(path.target)).await.unwrap();
            assert!(matches!(left, Cleaned::Left { .. }), "{left:?}");
        }
        node.assert_usable(&spec, 7).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attachment_that_is_gone_in_cinder_is_left_while_anything_of_it_is_here() {
    let mut node = Node::new(STYLES[0]);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    node.world.state().take_by_force(spec.volume);
    let left = clean(&node, 0, &detach(&node)).await.unwrap();
    assert!(matches!(left, Cleaned::Left { .. }), "{left:?}");
    assert!(node.world.state().kernel.mounts.iter().any(|mount| mount.target == mount_path(0)));
    node.reboot();
    assert_eq!(clean(&node, 0, &detach(&node)).await.unwrap(), Cleaned::Gone);
    assert!(node.ledger.load(spec.volume).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_record_goes_and_somebody_elses_stays() {
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let remedies: Vec<_> =
            node.paths(0).into_iter().map(|path| Remedy::LogOut(path.target)).collect();
        // The ledger entry is lost, and an administrator takes the devices away.
        node.ledger.forget(spec.volume).await.unwrap();
        let left = clean(&node, 0, &remedies[0]).await.unwrap();
        assert!(
            matches!(&left, Cleaned::Left { because } if because.contains("carries")),
            "{left:?}"
        );
        {
            let mut state = node.world.state();
            state.kernel.mounts.clear();
            state.kernel.maps.clear();
            let disks: Vec<_> = state.kernel.disks.iter().map(|disk| disk.name.clone()).collect();
            assert!(disks.iter().all(|disk| state.somebody_deletes(disk)));
        }
        assert_eq!(clean(&node, 0, &remedies[0]).await.unwrap(), Cleaned::Gone);
        assert_eq!(node.world.state().kernel.sessions.len(), 1);
        // The same session, but not of attachd's making.
        let Remedy::LogOut(target) = &remedies[1] else { unreachable!() };
        node.ledger.own_target(target, Ownership::Record).await.unwrap();
        let theirs = clean(&node, 0, &remedies[1]).await.unwrap();
        assert!(matches!(theirs, Cleaned::Left { .. }), "{theirs:?}");
        assert_eq!(node.world.state().kernel.sessions.len(), 1);
        node.world.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_request_asked_for_is_left_to_its_daemon() {
    let mut node = Node::new(STYLES[0]);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    node.reboot();
    let mut record = node.ledger.load(spec.volume).await.unwrap().unwrap();
    record.origin = Origin::RequestsDir("db".to_owned());
    node.ledger.store(&record).await.unwrap();
    node.world.state().take_by_force(spec.volume);
    let left = clean(&node, 0, &detach(&node)).await.unwrap();
    assert!(matches!(left, Cleaned::Left { .. }), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_iscsid_waits_for_keeps_the_attachment_unless_forced_and_is_an_orphan_then()
{
    for style in STYLES {
        let mut node = Node::new(style);
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        let waits = node.paths(0)[0].target.clone();
        node.world.state().kernel.waits_in_iscsid.insert(waits.clone());
        let End::Error(error) = node.detach(spec.volume).await.unwrap_err() else { panic!() };
        assert_eq!(error.reason(), "SessionNotTakenOver");
        assert_eq!(node.world.state().cinder.attachments.len(), 1);

        node.detach_by_force(spec.volume).await.unwrap();
        node.assert_sound();
        {
            let state = node.world.state();
            let left: Vec<_> = state.kernel.sessions.iter().map(|it| &it.target).collect();
            assert_eq!(left, [&waits]);
            assert!(state.kernel.disks.is_empty() && state.cinder.attachments.is_empty());
            assert!(state.kernel.node_records.contains_key(&waits), "iscsid needs it");
        }
        let log_out = Remedy::LogOut(waits);
        assert_eq!(clean(&node, 0, &log_out).await.unwrap_err().reason(), "SessionNotTakenOver");
        node.world.state().kernel.waits_in_iscsid.clear();
        assert_eq!(clean(&node, 0, &log_out).await.unwrap(), Cleaned::Gone);
        node.assert_nothing_left();
    }
}
