//! QEMUs come and go, and leave nothing behind.

use crate::support::{dir, identity, machine};
use vmm::qemu::launch::{end_listening, make_overlay};
use vmm::qemu::{Identity, QemuError};

#[test]
fn each_clone_has_an_identity_and_a_disk_of_its_own() {
    let dir = dir();
    let base = dir.path().join("base.img");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let Some(machine) = machine(
        128,
        &[
            "-S",
            "-device",
            "vmgenid,guid={vmgenid}",
            "-drive",
            "if=virtio,file={disk},format=qcow2",
            "-device",
            "virtio-net-pci,mac={mac}",
        ],
    ) else {
        return;
    };
    let mut seen = Vec::new();
    for name in ["a", "b"] {
        let disk = dir.path().join(format!("{name}.qcow2"));
        make_overlay(&base, "raw", &disk).unwrap();
        let identity = Identity { disk: Some(disk), ..identity(name) };
        let mut vm = machine.boot(identity.clone(), &dir.path().join(name)).unwrap();
        let told = vm.qmp.execute("query-vm-generation-id", serde_json::Value::Null).unwrap();
        assert_eq!(told["guid"], identity.vmgenid);
        let told = vm.qmp.execute("query-name", serde_json::Value::Null).unwrap();
        assert_eq!(told["name"], name);
        let pid = vm.pid();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        drop(vm);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "dropped, it is gone");
        seen.push((identity.vmgenid, identity.mac));
    }
    assert_ne!(seen[0], seen[1]);
    assert_eq!(std::fs::read(&base).unwrap(), vec![7; 1 << 20], "the base stays as it is");
}

#[test]
fn what_a_qemu_says_when_it_does_not_start_is_told() {
    let dir = dir();
    let Some(mut machine) = machine(128, &["-machine", "no-such-machine"]) else { return };
    let error = machine.boot(identity("x"), &dir.path().join("x")).unwrap_err();
    assert!(
        matches!(&error, QemuError::Ended { output, .. } if output.contains("no-such-machine")),
        "{error}"
    );
    machine.args = vec!["{nonsense}".into()];
    let error = machine.boot(identity("x"), &dir.path().join("x")).unwrap_err();
    assert!(error.to_string().contains("{nonsense} in argument"), "{error}");
    machine.args = vec!["{disk}".into()];
    assert!(machine.boot(identity("x"), &dir.path().join("x")).is_err());
    machine.program = "/no/such/qemu".into();
    machine.args.clear();
    let error = machine.boot(identity("x"), &dir.path().join("x")).unwrap_err();
    assert!(error.to_string().contains("/no/such/qemu"), "{error}");
}

#[test]
fn one_that_another_process_left_is_ended_by_its_monitor() {
    let dir = dir();
    let Some(machine) = machine(128, &["-S"]) else { return };
    let mut vm = machine.boot(identity("left"), &dir.path().join("left")).unwrap();
    let monitor = vm.qmp.path().to_owned();
    end_listening(&monitor).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while vm.exit_status().is_none() {
        assert!(std::time::Instant::now() < deadline, "it is still there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Its socket is still there, and nobody behind it.
    assert!(monitor.exists());
    end_listening(&monitor).unwrap();
    end_listening(&dir.path().join("no-such-socket")).unwrap();
}
