//! Attaches and detaches that are cut short, at each of their operations, by each kind of fault.
#![allow(clippy::unwrap_used)]

mod simulation;

use attachd::testing::{Fault, Style, When};
use simulation::{End, Node, STYLES};

/// How many operations an attach takes where nothing goes wrong.
async fn operations_of_an_attach(style: Style) -> usize {
    let mut node = Node::new(style);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    node.world.operations()
}

/// The same of the detach after it.
async fn operations_of_a_detach(style: Style) -> usize {
    let mut node = Node::new(style);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    let before = node.world.operations();
    node.detach(spec.volume).await.unwrap();
    node.world.operations() - before
}

fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::Partial, Fault::Busy, Fault::Crash(When::During)];
    for when in [When::Before, When::After] {
        faults.extend([
            Fault::Error(when),
            Fault::Crash(when),
            Fault::Reboot(when),
            Fault::Hang(when),
        ]);
    }
    faults
}

/// Frees what nobody can account for, as an administrator would after reading the refusal.
fn free_lost_reservation(node: &Node, index: usize) {
    node.world.state().free_reservations(node.volumes[index]);
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_is_cut_short_anywhere_goes_on_from_there() {
    for style in STYLES {
        let total = operations_of_an_attach(style).await;
        for index in 0..total {
            for fault in faults() {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.world.plan_fault(index, fault);
                let what = format!("{style:?}, operation {index}, {fault:?}");
                let first = node.attach(&spec).await;
                node.world.assert_sound();
                let mut last = first.map(drop);
                for _ in 0..3 {
                    if last.is_ok() {
                        break;
                    }
                    if last.as_ref().is_err_and(|end| end.reason() == "LostReservation") {
                        free_lost_reservation(&node, 0);
                    }
                    last = node.attach(&spec).await.map(drop);
                }
                assert!(last.is_ok(), "{what}: {last:?}\n{}", node.journal());
                // A login that failed is tried again by the next request.
                node.attach(&spec).await.unwrap();
                node.assert_usable(&spec, 7).await;
                node.detach(spec.volume).await.unwrap();
                node.assert_sound();
                node.assert_nothing_left();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_that_is_cut_short_anywhere_goes_on_from_there() {
    for style in STYLES {
        for index in 0..operations_of_a_detach(style).await {
            for fault in faults() {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.attach(&spec).await.unwrap();
                node.world.plan_fault(index, fault);
                let what = format!("{style:?}, operation {index}, {fault:?}");
                let first = node.detach(spec.volume).await;
                node.world.assert_sound();
                if first.is_err() {
                    let second = node.detach(spec.volume).await;
                    assert!(second.is_ok(), "{what}: {second:?}\n{}", node.journal());
                }
                node.assert_sound();
                node.assert_nothing_left();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_gets_there_wherever_the_detach_before_it_was_cut_short() {
    for style in STYLES {
        for index in 0..operations_of_a_detach(style).await {
            for when in [When::Before, When::During, When::After] {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.attach(&spec).await.unwrap();
                node.world.plan_fault(index, Fault::Crash(when));
                assert!(matches!(node.detach(spec.volume).await, Err(End::Killed)));
                let again = node.attach(&spec).await;
                let what = format!("{style:?}, operation {index}, {when:?}");
                assert!(again.is_ok(), "{what}: {again:?}\n{}", node.journal());
                node.assert_usable(&spec, 7).await;
                node.detach(spec.volume).await.unwrap();
                node.assert_sound();
                node.assert_nothing_left();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_of_an_attach_that_was_cut_short_anywhere_leaves_nothing() {
    for style in STYLES {
        let total = operations_of_an_attach(style).await;
        for index in 0..total {
            for fault in faults() {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.world.plan_fault(index, fault);
                let what = format!("{style:?}, operation {index}, {fault:?}");
                drop(node.attach(&spec).await);
                node.world.assert_sound();
                let mut detached = node.detach(spec.volume).await;
                if detached.as_ref().is_err_and(|end| end.reason() == "LostReservation") {
                    free_lost_reservation(&node, 0);
                    detached = node.detach(spec.volume).await;
                }
                assert!(detached.is_ok(), "{what}: {detached:?}\n{}", node.journal());
                node.assert_sound();
                node.assert_nothing_left();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_fails_anywhere_is_taken_back() {
    for style in STYLES {
        let total = operations_of_an_attach(style).await;
        for index in 0..total {
            for fault in [Fault::Error(When::Before), Fault::Error(When::After), Fault::Partial] {
                let mut node = Node::new(style);
                let spec = node.spec(0);
                node.world.plan_fault(index, fault);
                match node.attach_or_roll_back(&spec).await {
                    Ok(_) => {
                        node.detach(spec.volume).await.unwrap();
                    }
                    Err(End::Error(error)) if error.reason() == "NotRolledBack" => {
                        // Only the reservation whose answer was lost, and which looks like anybody's.
                        let chain = error.chain();
                        assert!(chain.contains("is reserved"), "{chain}\n{}", node.journal());
                        free_lost_reservation(&node, 0);
                        node.detach(spec.volume).await.unwrap();
                    }
                    Err(_) => {}
                }
                node.assert_sound();
                node.assert_nothing_left();
            }
        }
    }
}
