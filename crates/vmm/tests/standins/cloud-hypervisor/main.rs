//! A stand-in for Cloud Hypervisor in tests: the micro-VM behind Cloud Hypervisor's interface for migrations with an external
//! process.
//!
//! **It is not Cloud Hypervisor**: the state is the micro-VM's, there are no devices. On the interface it does what the
//! source of version 54 does (`vmm/src/lib.rs`, `vmm/src/uffd.rs`, `vm-migration/src/protocol.rs`): as source, Start, MemoryFd, Config,
//! a pause, State, Complete, and its end if that is answered by ok, else it runs on; as destination, the same order is demanded,
//! memory is the file that came, registered for missing and minor faults, each fault and then each page of a walk through memory is
//! asked for over the second connection and mapped by `UFFDIO_CONTINUE`.

#[cfg(target_arch = "x86_64")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod machine;

#[cfg(target_arch = "x86_64")]
fn main() {
    use serde_json::{Value, json};
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let version = std::env::var("STANDIN_VERSION").unwrap_or_else(|_| "54.0.0".to_owned());
    if arguments.iter().any(|argument| argument == "--version") {
        println!("cloud-hypervisor v{version}");
        return;
    }
    let at =
        arguments.iter().position(|argument| argument == "--api-socket").expect("--api-socket path=PATH");
    let socket = arguments[at + 1].strip_prefix("path=").expect("path=PATH");
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("the API socket can be made");
    let mut machine = machine::Machine::default();
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let Some((method, path, body)) = common::read_request(&mut stream) else { continue };
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let name = path.strip_prefix("/api/v1/").unwrap_or_default();
        let result = match (method.as_str(), name) {
            ("GET", "vmm.ping") => {
                let ping = json!({ "build_version": version, "version": version, "pid": std::process::id() });
                common::answer(&mut stream, "200 OK", &ping.to_string());
                continue;
            }
            ("PUT", "vm.create") => machine.create(&body),
            ("PUT", "vm.boot") => machine.boot(),
            ("PUT", "vm.pause") => machine.pause(),
            ("PUT", "vm.resume") => machine.resume(),
            ("PUT", "vm.send-migration") => machine.send_migration(&body),
            ("PUT", "vm.receive-migration") => machine.receive_migration(&body),
            _ => Err(format!("no such endpoint: {method} {path}")),
        };
        let moved = machine.moved;
        match result {
            Ok(()) => common::answer(&mut stream, "204 No Content", ""),
            Err(words) => {
                common::answer(&mut stream, "500 Internal Server Error", &json!([words]).to_string())
            }
        }
        if moved {
            return;
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("the stand-in needs the micro-VM, which is there on x86-64 only");
    std::process::exit(1);
}
