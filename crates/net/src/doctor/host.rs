//! Checks of this host's settings.

use super::{Finding, Severity};
use crate::interface::Interface;
use crate::pki::Identity;
use crate::time::utc;
use crate::udp::{Family, SenderOptions, UdpReceiver, UdpSender};
use nix::net::if_::if_nametoindex;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A certificate that ends within this time is worth a warning.
const EXPIRY_NEAR: Duration = Duration::from_secs(14 * 24 * 3600);
/// Bit numbers in `CapEff` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Whether datagrams of `datagram_bytes` (UDP payload) leave the interface unfragmented.
#[must_use]
pub fn mtu(interface: &Interface, family: Family, datagram_bytes: u32) -> Finding {
    let (name, most) = (&interface.name, interface.datagram_bytes_max(family));
    let what = format!("{name} has an MTU of {}: datagrams of up to {most} bytes", interface.mtu);
    if datagram_bytes <= most {
        return Finding::ok("mtu", what);
    }
    let need = datagram_bytes + interface.mtu - most;
    Finding::problem(
        "mtu",
        format!("{what}, but {datagram_bytes} are wanted"),
        format!(
            "use smaller datagrams, or `ip link set {name} mtu {need}` on every host and switch of the path"
        ),
    )
}

/// Whether sockets get the buffers wanted, in bytes, by trying.
#[must_use]
pub fn buffers(interface: &Interface, rcvbuf_bytes: usize, sndbuf_bytes: usize) -> Vec<Finding> {
    let judge = |check, sysctl: &str, wanted: usize, got: Result<usize, crate::udp::UdpError>| match got {
        Ok(got) if got >= wanted => Finding::ok(check, format!("sockets get the {wanted} bytes wanted")),
        Ok(got) => Finding::warning(
            check,
            format!("sockets get {got} bytes, not the {wanted} wanted: bursts are lost"),
            format!("`sysctl -w {sysctl}={wanted}`, or run with CAP_NET_ADMIN"),
        ),
        Err(error) => Finding::problem(check, error.to_string(), "see the message"),
    };
    let received =
        UdpReceiver::bind(0, Family::V4, interface, rcvbuf_bytes).map(|receiver| receiver.rcvbuf_bytes());
    let options = SenderOptions { sndbuf_bytes, gso: false, ..SenderOptions::default() };
    let sent = UdpSender::bind(interface, Family::V4, options).map(|sender| sender.sndbuf_bytes());
    vec![
        judge("rcvbuf", "net.core.rmem_max", rcvbuf_bytes, received),
        judge("sndbuf", "net.core.wmem_max", sndbuf_bytes, sent),
    ]
}

/// Whether this host can be a member of `groups` groups at once. Receivers open a further socket each time that
/// `igmp_max_memberships` is reached, so only a limit of 0 stops them.
#[must_use]
pub fn memberships(groups: usize) -> Finding {
    const CHECK: &str = "memberships";
    const SYSCTL: &str = "/proc/sys/net/ipv4/igmp_max_memberships";
    let Some(limit) = read_number(Path::new(SYSCTL)) else {
        return Finding::warning(CHECK, format!("cannot read {SYSCTL}"), "is /proc mounted?");
    };
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 => {
            let sockets = groups.div_ceil(limit).max(1);
            let what = format!(
                "{limit} groups a socket (igmp_max_memberships): {sockets} sockets for {groups} groups"
            );
            Finding::ok(CHECK, what)
        }
        _ => Finding::problem(
            CHECK,
            "igmp_max_memberships is 0: no group can be joined",
            "`sysctl -w net.ipv4.igmp_max_memberships=20`",
        ),
    }
}

/// Whether this process may capture packets (for the querier check) and force socket buffers.
#[must_use]
pub fn rights() -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status);
    let judge = |check, bit: u32, name: &str, purpose: &str| {
        if effective >> bit & 1 == 1 {
            Finding::ok(check, format!("{name} is held"))
        } else {
            let remedy = format!("run as root, or `setcap {}+ep` on the program", name.to_lowercase());
            Finding::warning(check, format!("{name} is not held: {purpose}"), remedy)
        }
    };
    vec![
        judge("right-net-raw", CAP_NET_RAW, "CAP_NET_RAW", "IGMP queriers cannot be listened for"),
        judge(
            "right-net-admin",
            CAP_NET_ADMIN,
            "CAP_NET_ADMIN",
            "socket buffers stop at rmem_max and wmem_max",
        ),
    ]
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the files of a host (see [`Identity::load`]) are usable now, and for how long. Compares with this
/// host's clock only; a wrong clock shows as a certificate out of its time.
#[must_use]
pub fn identity(dir: &Path) -> Vec<Finding> {
    const CHECK: &str = "certificate";
    let identity = match Identity::load(dir) {
        Ok(identity) => identity,
        Err(error) => return vec![Finding::problem(CHECK, error.to_string(), "see the message")],
    };
    let info = identity.info();
    let roles: Vec<String> = info.roles.iter().map(ToString::to_string).collect();
    let what = format!(
        "{} is {}'s ({}), valid from {} to {}",
        identity.certificate_path().display(),
        info.name(),
        roles.join(", "),
        utc(info.not_before),
        utc(info.not_after)
    );
    let left = info.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let mut findings = vec![if info.roles.is_empty() {
        Finding::problem(CHECK, format!("{what}; it has no role"), "issue one with the roles needed")
    } else if left < EXPIRY_NEAR {
        Finding::warning(CHECK, format!("{what}; it ends soon"), "issue a new one in time")
    } else {
        Finding::ok(CHECK, what)
    }];
    findings.extend(
        identity.warnings().iter().map(|text| Finding::warning("key-file", text.clone(), "see the message")),
    );
    findings
}

/// How the bridges of this host (in this network namespace) treat multicast; none without bridges.
#[must_use]
pub fn bridges() -> Vec<Finding> {
    // sysfs shows the namespace that it was mounted in: compare the index by which this namespace knows the name.
    bridges_in(Path::new("/sys/class/net"), |name, index| if_nametoindex(name) == Ok(index))
}

fn bridges_in(root: &Path, is_here: impl Fn(&str, u32) -> bool) -> Vec<Finding> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let index =
        |name: &String| read_number(&root.join(name).join("ifindex")).and_then(|n| u32::try_from(n).ok());
    names
        .iter()
        .filter(|name| root.join(name).join("bridge").is_dir())
        .filter(|name| index(name).is_some_and(|index| is_here(name, index)))
        .map(|name| bridge(name, &root.join(name).join("bridge")))
        .collect()
}

fn bridge(name: &str, dir: &Path) -> Finding {
    const CHECK: &str = "bridge";
    let setting = |file: &str| read_number(&dir.join(file));
    let (severity, what, remedy) = match (setting("multicast_snooping"), setting("multicast_querier")) {
        (Some(0), _) => (
            Severity::Warning,
            "does not snoop: every port gets every group",
            format!("`ip link set {name} type bridge mcast_snooping 1`, then `… mcast_querier 1`"),
        ),
        (Some(_), Some(0)) => (
            Severity::Warning,
            "snoops, but asks nobody: unless another querier is on its network, multicast floods or stops",
            format!("`ip link set {name} type bridge mcast_querier 1`"),
        ),
        (Some(_), Some(_)) => (Severity::Ok, "snoops and is a querier", String::new()),
        _ => (
            Severity::Warning,
            "tells nothing about multicast: its kernel may lack snooping, and floods",
            "use a kernel with CONFIG_BRIDGE_IGMP_SNOOPING".to_owned(),
        ),
    };
    Finding { check: CHECK, severity, what: format!("bridge {name} {what}"), remedy }
}

fn read_number(path: &Path) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn bridges_by_their_settings() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, index, settings) in [
            ("br-good", 3, Some(("1", "1"))),
            ("br-mute", 4, Some(("1", "0"))),
            ("br-open", 5, Some(("0", "1"))),
            ("br-elsewhere", 6, Some(("0", "0"))),
            ("eth0", 7, None),
        ] {
            let place = dir.path().join(name);
            fs::create_dir(&place).expect("directory");
            fs::write(place.join("ifindex"), format!("{index}\n")).expect("write");
            if let Some((snooping, querier)) = settings {
                fs::create_dir(place.join("bridge")).expect("directory");
                fs::write(place.join("bridge/multicast_snooping"), snooping).expect("write");
                fs::write(place.join("bridge/multicast_querier"), querier).expect("write");
            }
        }
        let found = bridges_in(dir.path(), |_, index| index != 6);
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Ok, Severity::Warning, Severity::Warning], "{found:?}");
        assert!(found[1].what.contains("br-mute") && found[1].remedy.contains("mcast_querier 1"));
    }

    #[test]
    fn mtu_and_memberships() {
        let lo = Interface { mtu: 1500, ..Interface::by_name("lo").expect("lo") };
        assert_eq!(mtu(&lo, Family::V4, 1472).severity, Severity::Ok);
        let finding = mtu(&lo, Family::V6, 1453);
        assert_eq!(finding.severity, Severity::Problem);
        assert!(finding.remedy.contains("mtu 1501"), "{}", finding.remedy);
        assert_eq!(memberships(50).severity, Severity::Ok);
    }

    #[test]
    fn capabilities_are_read() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000003000\n") >> CAP_NET_ADMIN, 3);
        assert_eq!(effective_capabilities(""), 0);
    }
}
