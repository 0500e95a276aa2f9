//! What the types of an inventory cannot say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Host, Inventory, Multicast, Target, Vm};
use crate::pool::{Pool, PoolError};

/// Most hosts, and most VMs, of an inventory: their indexes are 16 bits on the network.
const COUNT_MAX: usize = 65_535;
/// Longest name of a host (RFC 1035, 2.3.4) and of a VM (leaves room for suffixes in 255 bytes of file name).
const HOST_NAME_MAX: usize = 253;
const VM_NAME_MAX: usize = 200;

/// Everything found wrong, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// One thing wrong with an inventory, with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A list without entries.
    #[error("`{list}` is empty; name at least one")]
    Empty {
        /// `hosts` or `vms`.
        list: &'static str,
    },
    /// A list with more entries than indexes.
    #[error("`{list}` has {count} entries; the most is {COUNT_MAX}: split the transfer")]
    TooMany {
        /// `hosts` or `vms`.
        list: &'static str,
        /// Its entries.
        count: usize,
    },
    /// A name that cannot be a host's, file's or rack's.
    #[error("{kind} name `{name}` {why}; {way_out}")]
    Name {
        /// `host`, `VM`, `rack`, `source` or `transfer`.
        kind: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// Two things of one kind with one name.
    #[error("two {kind}s are called `{name}`; rename one")]
    Duplicate {
        /// `host`, `VM` or `rack`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// An address that is none, or that no host can have.
    #[error(
        "host `{host}`: address `{address}` {why}; write ip:port of its `scatter receive`, such as 10.0.0.7:47077 or [fd00::7]:47077"
    )]
    Address {
        /// The host.
        host: String,
        /// The address.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two hosts with one address.
    #[error("hosts `{first}` and `{second}` both have address {address}; give each its own")]
    SameAddress {
        /// The host listed first.
        first: String,
        /// The other.
        second: String,
        /// Their address.
        address: String,
    },
    /// The source's address is no IP address.
    #[error(
        "source `{source_name}`: address `{address}` is no IP address of a host; write it without a port, or leave it out"
    )]
    SourceAddress {
        /// The source's name.
        source_name: String,
        /// The address.
        address: String,
    },
    /// A figure that must not be 0 is.
    #[error("{thing}: `{field}` is 0; it must be at least 1")]
    Zero {
        /// The thing, with its name.
        thing: String,
        /// The field.
        field: &'static str,
    },
    /// A VM without an image.
    #[error("VM `{vm}`: `image` {why}; give the path of its memory image on the source host")]
    Image {
        /// The VM.
        vm: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The range of multicast addresses is none, or cannot work.
    #[error("multicast pool: {0}")]
    Pool(PoolError),
    /// A VM is pinned to a host that is not in the inventory.
    #[error("VM `{vm}` is to go to host `{host}`, which is not in `hosts`{}", hint(.near))]
    UnknownHost {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
        /// A host with a similar name.
        near: Option<String>,
    },
    /// A VM's constraint names a VM that is not in the inventory.
    #[error("VM `{vm}`: `{field}` names VM `{other}`, which is not in `vms`{}", hint(.near))]
    UnknownVm {
        /// The VM.
        vm: String,
        /// `affinity` or `anti_affinity`.
        field: &'static str,
        /// The name.
        other: String,
        /// A VM with a similar name.
        near: Option<String>,
    },
    /// A host is in a rack that is not in the topology.
    #[error("host `{host}` is in rack `{rack}`, which is not in `topology.racks`{}", hint(.near))]
    UnknownRack {
        /// The host.
        host: String,
        /// The rack.
        rack: String,
        /// A rack with a similar name.
        near: Option<String>,
    },
    /// A list of a VM names something twice, or the VM itself.
    #[error("VM `{vm}`: `{field}` names `{name}` {why}; take it out")]
    Repeated {
        /// The VM.
        vm: String,
        /// The list.
        field: &'static str,
        /// The name.
        name: String,
        /// `twice` or `, the VM itself`.
        why: &'static str,
    },
    /// One VM is to be with and apart from another.
    #[error("VM `{vm}` is to be with and apart from `{other}`; drop one of `affinity` and `anti_affinity`")]
    Contradiction {
        /// The VM with the affinity.
        vm: String,
        /// The other.
        other: String,
    },
}

fn hint(near: &Option<String>) -> String {
    near.as_ref()
        .map_or_else(|| "; add it or correct the name".to_owned(), |name| format!("; did you mean `{name}`?"))
}

/// All problems of an inventory, in its order.
pub(super) fn problems(inventory: &Inventory) -> Vec<Problem> {
    let mut found = Vec::new();
    check_name("transfer", &inventory.name, HOST_NAME_MAX, &mut found);
    check_source(inventory, &mut found);
    for (list, count) in [("hosts", inventory.hosts.len()), ("vms", inventory.vms.len())] {
        match count {
            0 => found.push(Problem::Empty { list }),
            1..=COUNT_MAX => {}
            _ => found.push(Problem::TooMany { list, count }),
        }
    }
    let racks: BTreeSet<&str> =
        inventory.topology.iter().flat_map(|t| &t.racks).map(|rack| rack.name.as_str()).collect();
    check_unique(
        "rack",
        inventory.topology.iter().flat_map(|t| &t.racks).map(|r| r.name.as_str()),
        &mut found,
    );
    for rack in inventory.topology.iter().flat_map(|t| &t.racks) {
        check_name("rack", &rack.name, HOST_NAME_MAX, &mut found);
        check_zero(|| format!("rack `{}`", rack.name), "uplink_mbps", rack.uplink_mbps.into(), &mut found);
    }
    check_unique("host", inventory.hosts.iter().map(|h| h.name.as_str()), &mut found);
    let mut addresses = BTreeMap::new();
    for host in &inventory.hosts {
        check_host(host, &racks, &mut addresses, &mut found);
    }
    check_unique("VM", inventory.vms.iter().map(|v| v.name.as_str()), &mut found);
    let hosts: BTreeSet<&str> = inventory.hosts.iter().map(|h| h.name.as_str()).collect();
    let vms: BTreeMap<&str, &Vm> = inventory.vms.iter().map(|v| (v.name.as_str(), v)).collect();
    for vm in &inventory.vms {
        check_vm(vm, &hosts, &vms, &mut found);
    }
    check_multicast(&inventory.multicast, &mut found);
    found
}

fn check_source(inventory: &Inventory, found: &mut Vec<Problem>) {
    let source = &inventory.source;
    check_name("source", &source.name, HOST_NAME_MAX, found);
    check_zero(|| format!("source `{}`", source.name), "rate_mbps", source.rate_mbps.into(), found);
    if let Some(address) = &source.address
        && !address.parse::<IpAddr>().is_ok_and(|ip| !ip.is_multicast() && !ip.is_unspecified())
    {
        found.push(Problem::SourceAddress { source_name: source.name.clone(), address: address.clone() });
    }
}

fn check_host<'a>(
    host: &'a Host,
    racks: &BTreeSet<&str>,
    addresses: &mut BTreeMap<SocketAddr, &'a str>,
    found: &mut Vec<Problem>,
) {
    check_name("host", &host.name, HOST_NAME_MAX, found);
    let address = |why| Problem::Address { host: host.name.clone(), address: host.address.clone(), why };
    match host.address.parse::<SocketAddr>() {
        Err(_) => found.push(address("is no ip:port")),
        Ok(a) if a.port() == 0 => found.push(address("has port 0")),
        Ok(a) if a.ip().is_multicast() => found.push(address("is a multicast address")),
        Ok(a) if a.ip().is_unspecified() => found.push(address("names every host and none")),
        Ok(a) => {
            if let Some(first) = addresses.insert(a, &host.name) {
                found.push(Problem::SameAddress {
                    first: first.to_owned(),
                    second: host.name.clone(),
                    address: host.address.clone(),
                });
            }
        }
    }
    let thing = || format!("host `{}`", host.name);
    check_zero(thing, "memory_mib", host.memory_mib, found);
    check_zero(thing, "vcpus", host.vcpus.into(), found);
    check_zero(thing, "rate_mbps", host.rate_mbps.into(), found);
    if let Some(rack) = &host.rack
        && !racks.contains(rack.as_str())
    {
        let near = nearest(rack, racks.iter().copied());
        found.push(Problem::UnknownRack { host: host.name.clone(), rack: rack.clone(), near });
    }
}

fn check_vm(vm: &Vm, hosts: &BTreeSet<&str>, vms: &BTreeMap<&str, &Vm>, found: &mut Vec<Problem>) {
    check_name("VM", &vm.name, VM_NAME_MAX, found);
    let thing = || format!("VM `{}`", vm.name);
    check_zero(thing, "memory_mib", vm.memory_mib, found);
    check_zero(thing, "vcpus", vm.vcpus.into(), found);
    if vm.image.is_empty() {
        found.push(Problem::Image { vm: vm.name.clone(), why: "is empty" });
    } else if vm.image.contains('\0') {
        found.push(Problem::Image { vm: vm.name.clone(), why: "holds a NUL byte" });
    }
    match &vm.to {
        Target::Clones(copies) => check_zero(thing, "to.clones", (*copies).into(), found),
        Target::Hosts(names) => {
            check_zero(
                || format!("VM `{}`: number of hosts", vm.name),
                "to.hosts",
                names.len() as u64,
                found,
            );
            for name in names.iter().filter(|name| !hosts.contains(name.as_str())) {
                let near = nearest(name, hosts.iter().copied());
                found.push(Problem::UnknownHost { vm: vm.name.clone(), host: name.clone(), near });
            }
            check_repeated(vm, "to.hosts", names, found);
        }
    }
    for (field, names) in [("affinity", &vm.affinity), ("anti_affinity", &vm.anti_affinity)] {
        for name in names.iter().filter(|name| !vms.contains_key(name.as_str())) {
            let near = nearest(name, vms.keys().copied());
            found.push(Problem::UnknownVm { vm: vm.name.clone(), field, other: name.clone(), near });
        }
        check_repeated(vm, field, names, found);
        if names.contains(&vm.name) {
            let why = ", the VM itself";
            found.push(Problem::Repeated { vm: vm.name.clone(), field, name: vm.name.clone(), why });
        }
    }
    for other in &vm.affinity {
        let apart = vm.anti_affinity.contains(other)
            || vms.get(other.as_str()).is_some_and(|o| o.anti_affinity.contains(&vm.name));
        if apart && *other != vm.name {
            found.push(Problem::Contradiction { vm: vm.name.clone(), other: other.clone() });
        }
    }
}

fn check_multicast(multicast: &Multicast, found: &mut Vec<Problem>) {
    if let Err(error) = multicast.pool.parse::<Pool>() {
        found.push(Problem::Pool(error));
    }
    let thing = || "multicast".to_owned();
    check_zero(thing, "port", multicast.port.into(), found);
    check_zero(thing, "ttl", multicast.ttl.into(), found);
}

fn check_repeated(vm: &Vm, field: &'static str, names: &[String], found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for name in names.iter().filter(|name| !seen.insert(name.as_str())) {
        found.push(Problem::Repeated { vm: vm.name.clone(), field, name: name.clone(), why: "twice" });
    }
}

fn check_unique<'a>(kind: &'static str, names: impl Iterator<Item = &'a str>, found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&str> = names.filter(|name| !seen.insert(*name)).collect();
    found.extend(repeated.into_iter().map(|name| Problem::Duplicate { kind, name: name.to_owned() }));
}

fn check_zero(thing: impl Fn() -> String, field: &'static str, figure: u64, found: &mut Vec<Problem>) {
    if figure == 0 {
        found.push(Problem::Zero { thing: thing(), field });
    }
}

/// Names end up in certificates, file names and terminals.
fn check_name(kind: &'static str, name: &str, length_max: usize, found: &mut Vec<Problem>) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let (why, way_out) = if name.is_empty() {
        ("is empty", "give it one")
    } else if name.contains(['/', '\\']) {
        ("holds a path separator", "files are named after it: use letters, digits, `-`, `.` and `_`")
    } else if name.len() > length_max {
        ("is too long", "use at most 200 characters")
    } else if kind == "transfer" {
        // Shown only, so spaces and other scripts are welcome.
        if name.chars().any(char::is_control) {
            ("holds control characters", "take them out")
        } else {
            return;
        }
    } else if !name.chars().all(is_plain) {
        ("holds other characters than letters, digits, `-`, `.` and `_`", "use these only")
    } else if name.starts_with(['.', '-']) {
        ("begins with a dot or a dash", "begin it with a letter or a digit")
    } else {
        return;
    };
    found.push(Problem::Name { kind, name: name.to_owned(), why, way_out });
}

/// The name that differs least, if it differs by at most a third.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, near) = names.map(|other| (edit_distance(name, other), other)).min()?;
    (distance * 3 <= name.chars().count().max(3)).then(|| near.to_owned())
}

/// Levenshtein's distance, in O(length^2).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
