//! The hand-over of one VM, explored: every order of deliveries, crashes, cuts, full disks and cancels that a small model
//! allows. In every state at most one of the two VMs runs; from every state, once faults stop, exactly one comes to run.

mod world;

use receiver::handover as host;
use sender::handover as source;
use std::collections::{HashSet, VecDeque};
use world::{EVENTS, Event, FAULTS_MAX, Vm, World};

#[test]
fn never_two_and_never_none_whatever_fails() {
    let mut known = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    let mut ends: HashSet<(source::State, host::State)> = HashSet::new();
    while let Some(world) = queue.pop_front() {
        world.check();
        let settled = world.clone().settled();
        assert!(settled.running() == 1 || settled.killed, "none runs, after {world:#?}: {settled:#?}");
        if let (Some(source), Some(host)) = (settled.source, settled.host) {
            ends.insert((source, host));
        }
        for next in EVENTS.iter().filter_map(|event| world.after(*event)) {
            if known.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    println!("{} states, with up to {FAULTS_MAX} faults each; they end as {ends:?}", known.len());
    assert!(known.len() > 1000, "the model has become too small to tell anything");
    assert!(ends.contains(&(source::State::Released, host::State::Complete)));
    assert!(ends.iter().any(|(source, _)| *source == source::State::Running));
}

#[test]
fn a_hand_over_in_another_order_is_found_out() {
    // The same exploration finds what it is to find: a source that resumes although it has decided.
    let world = World {
        source: None,
        source_disk: true,
        source_vm: Vm::Stands,
        host: Some(host::State::Running),
        host_disk: true,
        host_vm: Vm::Runs,
        ..World::new()
    };
    let mut wrong = world.clone();
    wrong.source_disk = false;
    wrong.start_source();
    assert_eq!(wrong.running(), 2);
    let right = world.after(Event::StartSource).expect("it can start");
    assert_eq!(right.running(), 1);
    assert_eq!(right.source, Some(source::State::HandedOver));
    let refused = source::step(source::State::HandedOver, source::Input::Abandon);
    assert_eq!(refused, Err(source::TooLate(source::State::HandedOver)));
}
