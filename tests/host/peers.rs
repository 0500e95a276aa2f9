//! Clones whose sender is killed after they run: what another host of the transfer has, they get from it; the others are named.

use crate::clone::Clones;
use crate::fleet::{PATIENCE, name};
use crate::images::Image;
use crate::sending::Sending;
use lab::hosts::{Loss, Scope};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;

#[test]
fn clones_of_a_killed_sender_complete_from_another_host_and_the_others_are_named() {
    complete_without(
        "clones_of_a_killed_sender_complete_from_another_host_and_the_others_are_named",
        &mut |sending| sending.running.kill(),
    );
}

/// Its hosts that are complete are not released: others may need what they have.
#[test]
fn clones_of_an_interrupted_sender_complete_from_another_host_and_the_others_are_named() {
    complete_without(
        "clones_of_an_interrupted_sender_complete_from_another_host_and_the_others_are_named",
        &mut |sending| {
            sending.running.signal(Signal::SIGINT);
            sending.running.wait(PATIENCE);
        },
    );
}

/// Two clones of a VM on each of two hosts, two of another on a third; one host of three is complete, and nothing reaches the others.
pub(crate) struct Half {
    pub(crate) clones: Clones,
    pub(crate) plan: PathBuf,
    pub(crate) sending: Sending,
    golden: Image,
}

impl Half {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let mut clones = Clones::new(test, 3, 2, 32)?;
        // `lone` goes to h3 alone: nobody else ever has its memory.
        clones.fleet.scatter(&["microvm", "lone", "--size", "32", "--seed", "7", "--step", "16"]);
        let image = |vm: &str| Image { name: vm.into(), path: clones.fleet.dir().join(vm).join("memory") };
        let (golden, lone) = (image("golden"), image("lone"));
        let to = [(&golden, json!({"hosts": ["h1", "h2"]})), (&lone, json!({"hosts": ["h3"]}))];
        let plan = clones.fleet.plan(to.to_vec(), clones.fleet.numbers(), 1 << 20);
        let mut value: Value =
            serde_json::from_str(&std::fs::read_to_string(&plan).expect("a plan")).expect("JSON");
        for (vm, (name, hosts)) in [("golden", 2), ("lone", 1)].into_iter().enumerate() {
            value["vms"][vm]["instances"] = json!(vec![2; hosts]);
            value["vms"][vm]["launch"] =
                json!({"kind": "microvm", "attachments": {"state": format!("{name}/state")}});
        }
        std::fs::write(&plan, value.to_string()).expect("written");
        clones.start_receivers();
        // Slow on the wire and quick to encode: all blocks are announced long before they are sent.
        let mut sending =
            clones.fleet.transfer("clone", &plan, &["--rate", "10M", "--encoding", "lz4", "--timeout", "60"]);
        for clone in ["golden-h2-1", "golden-h2-2", "lone-h3-1", "lone-h3-2"] {
            let host = &clone[clone.len() - 4..clone.len() - 2];
            sending.running.await_words(&format!("{clone} on {host}: running"), PATIENCE);
        }
        sending.await_sent(2 << 20);
        // From here on nothing reaches h2 and h3 any more.
        let all = |permille| Loss::random(permille).of(Scope::DatagramsAndStreams);
        for host in [2, 3] {
            clones.fleet.lab.loss(host, all(1_000)).expect("loss");
        }
        // Pages that were answered make clones independent; what others can have of h1 is blocks.
        sending.running.await_words("h1: complete", PATIENCE);
        Some(Self { clones, plan, sending, golden })
    }

    /// Everything reaches all hosts again.
    pub(crate) fn heal(&self) {
        for host in [2, 3] {
            let none = Loss::random(0).of(Scope::DatagramsAndStreams);
            self.clones.fleet.lab.loss(host, none).expect("no loss");
        }
    }
}

/// The sender is ended when one host of three is complete, and nothing more reaches the others.
fn complete_without(test: &str, end: &mut dyn FnMut(&mut Sending)) {
    let Some(mut half) = Half::new(test) else { return };
    end(&mut half.sending);
    half.heal();
    let Half { mut clones, plan, golden, sending } = half;
    drop(sending);
    clones.fleet.receiver(2).await_words("complete without its sender: h1 brought the rest", PATIENCE);
    let hopeless = "no other host has what these clones lack: lone-h3-1, lone-h3-2";
    clones.fleet.receiver(3).await_words(hopeless, PATIENCE);
    let status = clones.status(&plan);
    println!("{status}");
    assert_eq!(status.matches("needs nobody: h1 brought what the sender did not").count(), 1, "{status}");
    assert_eq!(status.matches("NOBODY brings what is missing").count(), 1, "{status}");
    assert_eq!(status.matches(": independent; tick").count(), 4, "{status}");
    let memory = std::fs::read(&golden.path).expect("the snapshot");
    for host in [1, 2] {
        let image = clones.fleet.store(host).join("golden.ram");
        assert!(std::fs::read(&image).is_ok_and(|image| image == memory), "{}", name(host));
    }
    // The same command finds those that wait, and the others done.
    let sent = clones.fleet.transfer("clone", &plan, &[]).finish().ok();
    assert_eq!(sent.report["clones"]["running"], 6, "{}", sent.said);
}
