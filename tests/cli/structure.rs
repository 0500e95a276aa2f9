//! The house (DESIGN.md §2): arrows point down only.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Direct dependencies of our crates by name: those that the built thing has, without tests' and benches'.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let direct = |package: &Value| {
        list(&package["dependencies"])
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(name)
            .collect()
    };
    list(&metadata["packages"]).iter().map(|package| (name(package), direct(package))).collect()
}

/// Floors of the house, from the top.
fn floor(name: &str) -> usize {
    match name {
        "vmscatter" => 0,
        "sender" | "receiver" | "planner" => 1,
        "fec" => 2,
        _ => 3,
    }
}

#[test]
fn arrows_point_down_only() {
    let all = dependencies();
    for expected in
        ["vmscatter", "sender", "receiver", "planner", "fec", "wire", "pages", "net", "vmm", "lab"]
    {
        assert!(all.contains_key(expected), "{expected} is not in the workspace");
    }
    for (name, direct) in &all {
        for other in direct.iter().filter(|other| all.contains_key(*other)) {
            let allowed = floor(other) > floor(name) || (floor(name) == 3 && floor(other) == 3);
            assert!(allowed, "{name} must not depend on {other}");
        }
    }
}

#[test]
fn pure_crates_have_no_input_or_output() {
    const IO: [&str; 13] = [
        "nix",
        "libc",
        "socket2",
        "tokio",
        "tokio-rustls",
        "rustls",
        "pnet",
        "memmap2",
        "tempfile",
        "net",
        "vmm",
        "lab",
        "usage",
    ];
    let all = dependencies();
    for pure in ["pages", "fec", "planner"] {
        for other in &all[pure] {
            assert!(!IO.contains(&other.as_str()), "{pure} must not depend on {other}");
        }
    }
    assert!(!all["wire"].contains("tokio") && !all["wire"].contains("net"), "wire is codecs only");
}

#[test]
fn only_fec_sees_raptorq_and_only_the_binary_anyhow() {
    for (name, direct) in dependencies() {
        assert!(name == "fec" || !direct.contains("raptorq"), "{name} must not depend on raptorq");
        assert!(name == "vmscatter" || !direct.contains("anyhow"), "{name} must not depend on anyhow");
    }
}
