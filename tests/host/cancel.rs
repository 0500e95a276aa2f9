//! Clones whose transfer is cancelled while some have all of their memory and others do not.

use crate::clone::Clones;
use crate::fleet::PATIENCE;
use crate::peers::Half;
use std::path::Path;
use std::process::Output;

/// `scatter cancel`, and what it says.
fn cancel(clones: &Clones, plan: &Path) -> (Output, String) {
    let mut command = clones.fleet.lab.host(0).command(env!("CARGO_BIN_EXE_scatter"));
    command.current_dir(clones.fleet.dir()).args(["cancel", "--keys", "keys/src", "--group"]).arg(plan);
    let output = command.output().expect("scatter runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    (output, said)
}

/// Nothing of a VM is left at a host.
fn assert_freed(clones: &Clones, host: u16, vm: &str) {
    for entry in walk(&clones.fleet.store(host)) {
        assert!(!entry.contains(vm) && !entry.ends_with(".journal"), "{entry} is left");
    }
}

fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a store") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn cancelling_a_sender_at_work_ends_its_clones_by_name() {
    const TEST: &str = "cancelling_a_sender_at_work_ends_its_clones_by_name";
    let Some(mut clones) = Clones::new(TEST, 2, 2, 64) else { return };
    let plan = clones.plan();
    clones.start_receivers();
    // Their memory takes half a minute.
    let mut sending = clones.fleet.transfer("clone", &plan, &["--rate", "10M"]);
    let names = ["golden-h1-1", "golden-h1-2", "golden-h2-1", "golden-h2-2"];
    for clone in names {
        sending.running.await_words(&format!("{clone} on h"), PATIENCE);
    }
    let (output, said) = cancel(&clones, &plan);
    assert!(output.status.success(), "{said}");
    assert_eq!(sending.running.wait(PATIENCE).code(), Some(7), "{}", sending.running.said());
    let told = sending.running.said();
    let words = format!("lacked pages and are ended: {}", names.join(", "));
    assert!(told.contains(&words), "{told}");
    let status = clones.status(&plan);
    println!("{status}");
    for clone in names {
        assert!(said.contains(&format!(": {clone}: over: ")), "{said}");
        assert!(status.contains(&format!("{clone}: over; ")), "{status}");
    }
    for output in [said, status] {
        assert_eq!(output.matches("cancelled by `scatter cancel`\n").count(), 4, "{output}");
    }
    for host in [1, 2] {
        assert_freed(&clones, host, "golden");
        clones.fleet.receiver(host).await_words("these clones are ended", PATIENCE);
    }
}

#[test]
fn cancelling_without_a_sender_asks_the_hosts() {
    const TEST: &str = "cancelling_without_a_sender_asks_the_hosts";
    let Some(mut half) = Half::new(TEST) else { return };
    half.sending.running.kill();
    half.heal();
    half.clones.fleet.receiver(2).await_words("complete without its sender: h1 brought the rest", PATIENCE);
    half.clones.fleet.receiver(3).await_words("no other host has what these clones lack", PATIENCE);
    let (output, said) = cancel(&half.clones, &half.plan);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("its hosts are asked"), "{said}");
    for clone in ["h3: lone-h3-1", "h3: lone-h3-2"] {
        assert!(said.contains(&format!("{clone}: over: VM ")), "{said}");
    }
    assert_eq!(
        said.matches("which will not come: cancelled by `scatter cancel` at src\n").count(),
        2,
        "{said}"
    );
    assert_eq!(said.matches("has all of its memory and runs on; tick").count(), 4, "{said}");
    assert_freed(&half.clones, 3, "lone");
    half.clones.fleet.receiver(3).await_words("these clones are ended: lone-h3-1, lone-h3-2", PATIENCE);
    // A host that cannot be asked is named.
    half.clones.fleet.receiver(1).kill();
    let (output, said) = cancel(&half.clones, &half.plan);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("h1: cannot be asked"), "{said}");
}
