//! A stand-in for Firecracker in tests: the micro-VM behind Firecracker's interface, as far as snapshots need it.
//!
//! **It is not Firecracker**: states are the micro-VM's; network, vsock and metadata are names without a device behind them. What it does on the interface is what
//! Firecracker's source does (`src/vmm/src/persist.rs`, `vmm_config/snapshot.rs`, `examples/uffd`): the API over HTTP on a unix
//! socket with unknown fields refused, full and diff snapshots, a load with a page-fault handler: anonymous memory registered for
//! missing pages on a non-blocking userfaultfd with events of removed ranges, one message with the regions as JSON and the
//! descriptor, on a socket that it then leaves open; faults while the state is loaded; a balloon that gives back ranges.

#[cfg(target_arch = "x86_64")]
mod api;
#[cfg(target_arch = "x86_64")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod devices;
#[cfg(target_arch = "x86_64")]
mod machine;

#[cfg(target_arch = "x86_64")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let version = std::env::var("STANDIN_VERSION").unwrap_or_else(|_| "1.16.1".to_owned());
    if arguments.iter().any(|argument| argument == "--version") {
        println!("Firecracker v{version}");
        return;
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let socket = value("--api-sock").expect("--api-sock PATH");
    assert!(value("--id").is_some(), "--id ID");
    api::serve(std::path::Path::new(&socket), &version);
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("the stand-in needs the micro-VM, which is there on x86-64 only");
    std::process::exit(1);
}
