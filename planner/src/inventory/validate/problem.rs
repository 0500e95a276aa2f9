//! What can be wrong with an inventory.

use std::fmt;

use super::COUNT_MAX;
use crate::pool::PoolError;

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
    /// A host, the source, or a rack is in a rack that is not in the topology.
    #[error("{thing} is in rack `{rack}`, which is not in `topology.racks`{}", hint(.near))]
    UnknownRack {
        /// The host, source or rack.
        thing: String,
        /// The rack.
        rack: String,
        /// A rack with a similar name.
        near: Option<String>,
    },
    /// A rack is within itself, through others or not.
    #[error("rack `{rack}` is within itself; the outermost of them must leave `within` out")]
    RackCycle {
        /// The rack.
        rack: String,
    },
    /// A figure is too small or too large.
    #[error("{thing}: `{field}` is {found}; it must be {min} to {max}")]
    Range {
        /// The thing, with its name.
        thing: String,
        /// The field.
        field: &'static str,
        /// What it is.
        found: u64,
        /// The least that it may be.
        min: u64,
        /// The most.
        max: u64,
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
