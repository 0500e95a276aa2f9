//! Builds the micro-VM's guest (`guest/`) for x86-64: one call of the compiler that builds this crate, and nothing
//! else. On other machines there is no micro-VM, and nothing is built.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    if var("CARGO_CFG_TARGET_ARCH") != "x86_64" || var("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    let output = PathBuf::from(var("OUT_DIR")).join("guest.elf");
    let guest = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("guest");
    let status = Command::new(var("RUSTC"))
        .arg(guest.join("main.rs"))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=guest", "--target"])
        .arg(var("TARGET"))
        // No unwinding, no relocations, no libc: the image runs where its script says, on nothing.
        .args(["-Copt-level=3", "-Cpanic=abort", "-Crelocation-model=static", "-Cstrip=debuginfo"])
        .args(["-Ctarget-feature=+crt-static", "-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles"])
        .args(["-Clink-arg=-static", "-Clink-arg=-no-pie", "-Clink-arg=-Wl,--build-id=none"])
        .args(["-Clink-arg=-Wl,-z,max-page-size=4096", "-Clink-arg=-Wl,-z,norelro"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", guest.join("link.ld").display()))
        .arg("-o")
        .arg(&output)
        .status()
        .expect("the compiler that builds this crate starts");
    assert!(status.success(), "the micro-VM's guest could not be built");
}
