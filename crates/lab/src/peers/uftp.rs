//! UFTP 4: announce and register, data, then NAKs until all have all.

use std::time::{Duration, Instant};

use super::{Outcome, PeerError, Run, Running, find, same_bytes};

/// Where its receivers listen by default.
const PORT: u16 = 1_044;

/// Bytes of socket buffers at both ends, 100 MiB as its manual suggests for fast networks; Linux gives what it allows.
const SOCKET_BUFFER: &str = "104857600";

/// Bytes that a receiver collects before it writes; the most that it takes.
const CACHE: &str = "20971520";

/// Estimates of the group's round trip at first, at least and at most, in seconds. By default it starts at half a
/// second, of which several pass before the first byte is sent: far too much for these links.
const ROUND_TRIP: &str = "0.02:0.01:1";

/// How many round trips without an answer make a host lost; the most that it takes, for links with loss.
const PATIENCE: &str = "50";

/// Bytes of IPv4, UDP and its own headers that its block size leaves room for.
const HEADERS: u32 = 100;

/// Largest block that it takes.
const BLOCK_MAX: u32 = 8_800;

pub(super) fn run(run: &Run<'_>) -> Result<Outcome, PeerError> {
    let (sender, receiver) = (find("uftp")?, find("uftpd")?);
    run.add_group_routes()?;
    let interface = run.lab.host(0).interface();
    let directory = |host: u16| run.directory.join(host.to_string());
    let id = |host: u16| format!("0x{host:08X}");
    let mut receivers = Vec::new();
    for host in run.receivers() {
        let place = directory(host);
        std::fs::create_dir_all(&place).map_err(|source| PeerError::io("make", &place, source))?;
        let mut command = run.lab.host(host).command(&receiver.to_string_lossy());
        command.args(["-d", "-I", interface, "-B", SOCKET_BUFFER, "-c", CACHE]);
        command.args(["-U", &id(host), "-D"]).arg(&place);
        receivers.push(Running::start(command)?);
    }
    run.await_port(PORT)?;
    // Their memberships have reached the switch.
    std::thread::sleep(Duration::from_millis(50));

    let block = (run.lab.options().mtu - HEADERS).min(BLOCK_MAX);
    let mut command = run.lab.host(0).command(&sender.to_string_lossy());
    command.args(["-I", interface, "-B", SOCKET_BUFFER, "-R", "-1", "-b", &block.to_string()]);
    command.args(if run.options.lossy { ["-s", PATIENCE] } else { ["-r", ROUND_TRIP] });
    // Named hosts: it begins as soon as the last has registered.
    let hosts: Vec<String> = run.receivers().map(id).collect();
    command.args(["-H", &hosts.join(",")]).arg(run.file);
    let start = Instant::now();
    let status = Running::start(command)?.wait_until(start + run.options.timeout);
    let wall = start.elapsed();
    drop(receivers);
    let name = run.file.file_name().unwrap_or_default();
    let per_host_ok = run.receivers().map(|host| same_bytes(run.file, &directory(host).join(name))).collect();
    Ok(Outcome { start, wall, per_host_ok, completed: status.is_some_and(|status| status.success()) })
}
