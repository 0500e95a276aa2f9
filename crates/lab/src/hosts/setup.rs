//! The commands that make a lab.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::faults::TABLES;
use super::namespace::{Namespace, command, output};
use super::relay::{Disturbance, Relay};
use super::{Host, LabError, LabOptions};

/// Most hosts of a lab.
pub(super) const HOSTS_MAX: u16 = 250;

/// The interface of each host.
pub(super) const INTERFACE: &str = "e0";

/// How long the switch, once it is a querier, floods before it goes by reports: its query response interval, which
/// [`BRIDGE`] sets to 0.1 s (br_multicast_querier_exists in the kernel), and a little.
const QUERIER_DELAY: Duration = Duration::from_millis(115);

/// Last-member queries are answered within 0.1 s; with fast-leave on each port they are not even needed.
const BRIDGE: &str = "type bridge forward_delay 0 mcast_snooping 1 mcast_igmp_version 3 mcast_mld_version 2 \
    mcast_query_response_interval 10 mcast_last_member_count 1 mcast_last_member_interval 10";

pub(super) fn address(host: u16) -> Ipv4Addr {
    let [high, low] = [host / 250, host % 250 + 1].map(|part| u8::try_from(part).expect("at most 250"));
    Ipv4Addr::new(10, 77, high, low)
}

pub(super) fn address6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host + 1)
}

pub(super) fn check(options: &LabOptions) -> Result<(), LabError> {
    let reason = match options {
        LabOptions { hosts: 0, .. } => "it has no hosts".to_owned(),
        LabOptions { hosts, .. } if *hosts > HOSTS_MAX => format!("{hosts} hosts are more than {HOSTS_MAX}"),
        LabOptions { mtu, .. } if !(1_280..=9_000).contains(mtu) => {
            format!("an MTU of {mtu} is not in 1280..=9000")
        }
        _ => return Ok(()),
    };
    Err(LabError::Options { reason })
}

/// Makes the namespaces `PREFIX-sw` and `PREFIX-h0` … and all that is in them.
pub(super) fn build(prefix: &str, options: &LabOptions) -> Result<(Namespace, Vec<Host>), LabError> {
    let switch_name = format!("{prefix}-sw");
    let host_name = |index: u16| format!("{prefix}-h{index}");
    let names = (0..options.hosts).map(host_name).chain([switch_name.clone()]);
    let batch: String = names.map(|name| format!("netns add {name}\n")).collect();
    ip(None, &batch)?;
    let switch = Namespace::open(&switch_name)?;
    set_sysctls(&switch, options)?;
    let hosts = (0..options.hosts).map(|index| {
        let namespace = Namespace::open(&host_name(index))?;
        set_sysctls(&namespace, options)?;
        let address6 = options.ipv6.then(|| address6(index));
        Ok(Host { index, namespace, address: address(index), address6 })
    });
    let hosts = hosts.collect::<Result<Vec<Host>, LabError>>()?;

    build_switch(&switch, &hosts, options.mtu)?;
    for host in &hosts {
        build_host(&switch, host, options)?;
    }
    // Last, in a command of its own, after the response interval is set: the other way round the switch floods
    // everything for 10 s.
    ip(Some(&switch), "link set br0 type bridge mcast_querier 1\n")?;
    nft(&switch, TABLES)?;
    std::thread::sleep(QUERIER_DELAY);
    Ok((switch, hosts))
}

fn build_switch(switch: &Namespace, hosts: &[Host], mtu: u32) -> Result<(), LabError> {
    let mut batch = format!("link set lo up\nlink add br0 {BRIDGE}\nlink set br0 mtu {mtu} up\n");
    for Host { index, namespace, .. } in hosts {
        let peer = namespace.name();
        let [high, low] = index.to_be_bytes();
        // Addresses that are the same in each run, so that captures can be compared.
        let mac = format!("02:77:00:00:{high:02x}:{low:02x}");
        batch += &format!(
            "link add p{index} mtu {mtu} type veth peer name {INTERFACE} mtu {mtu} address {mac} netns {peer}\n"
        );
        batch += &port_lines(&format!("p{index}"));
    }
    ip(Some(switch), &batch)
}

/// Makes a device the bridge's port.
fn port_lines(port: &str) -> String {
    format!("link set {port} master br0 up\nlink set {port} type bridge_slave fastleave on\n")
}

/// The bridge's port of a host that has a relay; frames then go b ⇄ r, relay, p ⇄ e0.
pub(super) fn relay_port(index: u16) -> String {
    format!("b{index}")
}

/// Takes a host's port off the bridge and puts another with a relay in its place.
pub(super) fn add_relay(
    switch: &Namespace,
    index: u16,
    options: &LabOptions,
    disturbance: Disturbance,
) -> Result<Relay, LabError> {
    let (port, inner, mtu) = (relay_port(index), format!("r{index}"), options.mtu);
    let add =
        format!("link add {port} mtu {mtu} type veth peer name {inner} mtu {mtu}\nlink set {inner} up\n");
    ip(Some(switch), &format!("link set p{index} nomaster\n{add}"))?;
    if options.wire_like {
        ethtool(switch, &port, &["tx-udp-segmentation", "off", "tso", "off"])?;
    }
    let relay = Relay::start(switch, &inner, &format!("p{index}"), disturbance)?;
    // The switch asks a new port for memberships at once, and then not for long: the relay has to be there.
    ip(Some(switch), &port_lines(&port))?;
    Ok(relay)
}

/// Undoes [`add_relay`], the relay's thread having ended.
pub(super) fn remove_relay(switch: &Namespace, index: u16) -> Result<(), LabError> {
    ip(Some(switch), &format!("link del {}\n{}", relay_port(index), port_lines(&format!("p{index}"))))
}

fn build_host(switch: &Namespace, host: &Host, options: &LabOptions) -> Result<(), LabError> {
    let mut batch = format!("link set lo up\naddr add {}/16 brd + dev {INTERFACE}\n", host.address);
    if let Some(address) = host.address6 {
        batch += &format!("addr add {address}/64 dev {INTERFACE} nodad\n");
    }
    batch += &format!("link set {INTERFACE} up\n");
    ip(Some(&host.namespace), &batch)?;
    if options.wire_like {
        // The host hands single frames to the wire, and joins received ones to larger buffers (GRO), as with a
        // network card. The port must not announce TSO: the kernel then takes GRO in the host for needless.
        ethtool(&host.namespace, INTERFACE, &["tx-udp-segmentation", "off", "tso", "off", "gro", "on"])?;
        ethtool(switch, &format!("p{}", host.index), &["tso", "off"])?;
    }
    Ok(())
}

fn set_sysctls(namespace: &Namespace, options: &LabOptions) -> Result<(), LabError> {
    // No router will come and nobody else has the addresses: waiting for either would cost a second.
    let settings: &[(&str, &str)] = if options.ipv6 {
        &[("default/accept_dad", "0"), ("all/accept_dad", "0"), ("default/router_solicitations", "0")]
    } else {
        &[("all/disable_ipv6", "1"), ("default/disable_ipv6", "1")]
    };
    let write = || {
        settings
            .iter()
            .try_for_each(|(name, value)| std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), value))
    };
    match namespace.run(write).and_then(|written| written) {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !options.ipv6 => Ok(()),
        result => result.map_err(|source| LabError::system("set the IPv6 sysctls of a namespace", source)),
    }
}

/// Runs lines of `ip -batch`, in a namespace or in this process's own.
pub(super) fn ip(namespace: Option<&Namespace>, batch: &str) -> Result<(), LabError> {
    let mut ip = command("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace.name()]);
    }
    ip.args(["-batch", "-"]);
    output(ip, batch).map(drop)
}

/// Runs lines of `tc -batch` in a namespace.
pub(super) fn tc(namespace: &Namespace, batch: &str) -> Result<(), LabError> {
    let mut tc = command("tc");
    tc.args(["-n", namespace.name(), "-batch", "-"]);
    output(tc, batch).map(drop)
}

/// Runs a transaction of nftables in a namespace.
pub(super) fn nft(namespace: &Namespace, rules: &str) -> Result<(), LabError> {
    let mut nft = namespace.command("nft");
    nft.args(["-f", "-"]);
    output(nft, rules).map(drop)
}

/// Changes features of an interface.
pub(super) fn ethtool(namespace: &Namespace, interface: &str, features: &[&str]) -> Result<(), LabError> {
    let mut ethtool = namespace.command("ethtool");
    ethtool.args(["-K", interface]).args(features);
    output(ethtool, "").map(drop)
}
