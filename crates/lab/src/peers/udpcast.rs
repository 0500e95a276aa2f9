//! udpcast: slices, each acknowledged by every receiver.

use std::time::{Duration, Instant};

use super::{Outcome, PeerError, Run, Running, find, same_bytes};

/// Where its receivers listen: its default base port.
const PORT: u16 = 9_000;

/// Bytes of IPv4, UDP and its own headers that its block size leaves room for.
const HEADERS: u32 = 44;

/// How long receivers may take to end after the sender has.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(run: &Run<'_>) -> Result<Outcome, PeerError> {
    let (sender, receiver) = (find("udp-sender")?, find("udp-receiver")?);
    run.add_group_routes()?;
    let interface = run.lab.host(0).interface();
    let output = |host: u16| run.directory.join(host.to_string());
    let mut receivers = Vec::new();
    for host in run.receivers() {
        let mut command = run.lab.host(host).command(&receiver.to_string_lossy());
        command.args(["--interface", interface, "--nokbd", "--no-progress", "--file"]).arg(output(host));
        receivers.push(Running::start(command)?);
    }
    run.await_port(PORT)?;
    std::thread::sleep(Duration::from_millis(50));

    let mut command = run.lab.host(0).command(&sender.to_string_lossy());
    let block = run.lab.options().mtu - HEADERS;
    command.args(["--interface", interface, "--nokbd", "--no-progress", "--full-duplex"]);
    command
        .args(["--blocksize", &block.to_string(), "--min-receivers", &run.hosts.to_string(), "--file"])
        .arg(run.file);
    let start = Instant::now();
    let deadline = start + run.options.timeout;
    let status = Running::start(command)?.wait_until(deadline);
    let mut completed = status.is_some_and(|status| status.success());
    let mut wall = start.elapsed();
    let deadline = deadline.min(Instant::now() + GRACE);
    for receiver in &mut receivers {
        completed &= receiver.wait_until(deadline).is_some_and(|status| status.success());
        wall = start.elapsed();
    }
    drop(receivers);
    let per_host_ok = run.receivers().map(|host| same_bytes(run.file, &output(host))).collect();
    Ok(Outcome { start, wall, per_host_ok, completed })
}
