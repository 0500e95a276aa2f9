//! How labs come and go.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::hosts::{Lab, LabError, LabOptions, lab_for_test, sweep};

const PROGRAM: &str = env!("CARGO_BIN_EXE_scatter-lab");

fn namespaces_of(prefix: &str) -> usize {
    let names = std::fs::read_dir("/run/netns").expect("namespaces");
    let start = format!("{prefix}-");
    names.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&start)).count()
}

#[test]
fn labs_stand_side_by_side_and_leave_nothing() {
    if !lab_for_test("labs_stand_side_by_side_and_leave_nothing") {
        return;
    }
    let labs: Vec<Lab> = (0..2).map(|_| Lab::new(LabOptions::default()).expect("a lab")).collect();
    let prefixes: Vec<String> = labs.iter().map(|lab| lab.prefix().to_owned()).collect();
    assert_ne!(prefixes[0], prefixes[1]);
    assert_eq!(namespaces_of(&prefixes[0]), 4);
    let mut left = labs[0].host(1).command("sleep").arg("60").spawn().expect("started");
    drop(labs);
    assert_eq!(left.wait().expect("ours").code(), None, "what ran on a host was killed");
    assert!(prefixes.iter().all(|prefix| namespaces_of(prefix) == 0));
}

#[test]
fn a_panic_removes_the_lab() {
    if !lab_for_test("a_panic_removes_the_lab") {
        return;
    }
    let prefix = "vspanic";
    let options = LabOptions { hosts: 1, prefix: Some(prefix.to_owned()), ..LabOptions::default() };
    let result = std::thread::spawn(move || {
        let _lab = Lab::new(options).expect("a lab");
        assert_eq!(namespaces_of(prefix), 2);
        panic!("as a failing test does");
    });
    assert!(result.join().is_err());
    assert_eq!(namespaces_of(prefix), 0);
}

#[test]
fn a_prefix_is_taken_once_and_checked() {
    if !lab_for_test("a_prefix_is_taken_once_and_checked") {
        return;
    }
    let options =
        |prefix: &str| LabOptions { hosts: 1, prefix: Some(prefix.to_owned()), ..LabOptions::default() };
    let _first = Lab::new(options("vsonce")).expect("a lab");
    assert!(matches!(Lab::new(options("vsonce")), Err(LabError::PrefixTaken { .. })));
    assert!(matches!(Lab::new(options("../etc")), Err(LabError::Options { .. })));
    for bad in
        [LabOptions { hosts: 0, ..LabOptions::default() }, LabOptions { mtu: 99, ..LabOptions::default() }]
    {
        assert!(matches!(Lab::new(bad), Err(LabError::Options { .. })));
    }
}

#[test]
fn what_a_killed_owner_leaves_is_swept() {
    if !lab_for_test("what_a_killed_owner_leaves_is_swept") {
        return;
    }
    let mut owner = Command::new(PROGRAM);
    owner.args(["run", "--hosts", "1", "--", "sh", "-c", "echo $SCATTER_LAB; exec cat"]);
    let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    let mut output = std::io::BufReader::new(owner.stdout.take().expect("piped"));
    let mut prefix = String::new();
    std::io::BufRead::read_line(&mut output, &mut prefix).expect("its prefix");
    let prefix = prefix.trim().to_owned();
    assert_eq!(namespaces_of(&prefix), 2);
    sweep().expect("swept");
    assert_eq!(namespaces_of(&prefix), 2, "the living are left alone");
    owner.kill().expect("ours");
    owner.wait().expect("ours");
    // Another test's new lab may sweep it first.
    sweep().expect("swept");
    assert_eq!(namespaces_of(&prefix), 0);
    assert!(!Path::new("/run/vmscatter-lab").join(&prefix).exists());
}

/// Any user: the program makes itself root of a user namespace, and a lab in it.
#[test]
fn a_lab_needs_no_root() {
    if !lab_for_test("a_lab_needs_no_root") {
        return;
    }
    let users = std::fs::read_to_string("/proc/self/uid_map").expect("this process's users");
    if users.split_whitespace().nth(2) == Some("1") {
        eprintln!("skipped a_lab_needs_no_root: this is a user namespace of one user, as it would make one");
        return;
    }
    let mut nobody = Command::new(PROGRAM);
    let script =
        "ip -n $SCATTER_LAB-h1 -br addr; ip netns exec $SCATTER_LAB-sw nft list counters && echo rules";
    nobody.args(["run", "--hosts", "2", "--", "sh", "-c", script]).uid(65_534).gid(65_534).current_dir("/");
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let result = nobody.env("PATH", path).output().expect("started");
    let (out, error) = (String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    if error.contains("forbids user namespaces") {
        eprintln!("skipped a_lab_needs_no_root: {error}");
        return;
    }
    assert!(result.status.success(), "{out}{error}");
    assert!(out.contains("10.77.0.2/16") && out.contains("rules"), "{out}{error}");
}

/// For the record, not a limit: how long a lab takes.
#[test]
fn eight_hosts_are_made_soon() {
    if !lab_for_test("eight_hosts_are_made_soon") {
        return;
    }
    let start = std::time::Instant::now();
    let lab = Lab::new(LabOptions { hosts: 9, ..LabOptions::default() }).expect("a lab");
    let made = start.elapsed();
    drop(lab);
    eprintln!("a lab of 9 hosts: made in {made:?}, removed in {:?}", start.elapsed() - made);
    assert!(made < Duration::from_secs(20), "{made:?}");
}
