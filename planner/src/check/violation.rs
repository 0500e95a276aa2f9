//! What the checker finds.

/// Something in a plan that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A format version that is not known.
    #[error("format version {found} is not known")]
    Version {
        /// The version.
        found: u32,
    },
    /// A list is empty or longer than indexes reach.
    #[error("`{list}` has {count} entries; 1 to 65,535 can be")]
    Count {
        /// The list.
        list: &'static str,
        /// Its entries.
        count: usize,
    },
    /// A name that cannot be a file name.
    #[error("{kind} name `{name}` cannot be a file name")]
    Name {
        /// `host` or `VM`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name twice.
    #[error("{kind} `{name}` is there twice")]
    Duplicate {
        /// `host`, `VM` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A VM, group or segment without hosts.
    #[error("{thing} has no hosts")]
    NoHosts {
        /// The thing.
        thing: String,
    },
    /// A VM, group or segment names a host that the plan lacks.
    #[error("{thing} names host `{host}`, which the plan lacks")]
    UnknownHost {
        /// The thing.
        thing: String,
        /// The host.
        host: String,
    },
    /// A VM, group or segment names a host twice.
    #[error("{thing} names a host twice")]
    HostTwice {
        /// The thing.
        thing: String,
    },
    /// An address that is none, or two hosts have.
    #[error("host `{host}`: address `{address}` {why}")]
    HostAddress {
        /// The host.
        host: String,
        /// The address.
        address: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A figure is 0.
    #[error("{thing}: `{field}` is 0")]
    Zero {
        /// The thing.
        thing: String,
        /// The field.
        field: &'static str,
    },
    /// The VMs of a host need more than it has.
    #[error("the VMs on host `{host}` need {need} {what}; it has {has}")]
    Overload {
        /// The host.
        host: String,
        /// `MiB of memory` or `vCPUs`.
        what: &'static str,
        /// What they need.
        need: u128,
        /// What it has.
        has: u128,
    },
    /// A VM's `instances` do not go with its hosts.
    #[error("VM `{vm}`: `instances` {why}")]
    Instances {
        /// The VM.
        vm: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A host, the source or a rack is in a rack that the plan lacks, or a rack is within itself.
    #[error("{thing}: rack `{rack}` {why}")]
    Rack {
        /// The thing.
        thing: String,
        /// The rack.
        rack: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The range of group addresses cannot be used.
    #[error("multicast pool `{pool}` cannot be used: {why}")]
    Pool {
        /// The range.
        pool: String,
        /// Why.
        why: String,
    },
    /// A group's address is no multicast address of the pool.
    #[error("group {group}: address `{address}` is not of the pool {pool}")]
    GroupAddress {
        /// The group's id.
        group: u32,
        /// Its address.
        address: String,
        /// The pool.
        pool: String,
    },
    /// Two groups use one address at the same time.
    #[error(
        "groups {first} and {second} share address {address}, and their segments are not one after the other"
    )]
    AddressShared {
        /// One group's id.
        first: u32,
        /// The other's.
        second: u32,
        /// The address.
        address: String,
    },
    /// More group addresses than allowed.
    #[error("{count} group addresses are used; `max_groups` is {max}")]
    TooManyGroups {
        /// Addresses.
        count: usize,
        /// The limit.
        max: u32,
    },
    /// A host would be in too many groups at once.
    #[error(
        "host `{host}` needs {count} group addresses at once at segment {segment}; `memberships_max` is {max}"
    )]
    TooManyMemberships {
        /// The host.
        host: String,
        /// Position in `schedule`, from 0.
        segment: usize,
        /// Addresses it needs.
        count: usize,
        /// The limit.
        max: u32,
    },
    /// A segment names a group that the plan lacks.
    #[error("segment {segment} names group {group}, which the plan lacks")]
    UnknownGroup {
        /// Position in `schedule`, from 0.
        segment: usize,
        /// The id.
        group: u32,
    },
    /// A segment has a host that its group lacks.
    #[error("segment {segment}: host `{host}` needs it and is not in group {group}")]
    NotInGroup {
        /// Position in `schedule`, from 0.
        segment: usize,
        /// The group's id.
        group: u32,
        /// The host.
        host: String,
    },
    /// Under strict isolation a group has a host that does not need its segment.
    #[error("segment {segment}: group {group} has hosts that do not need it, which strict isolation forbids")]
    NotExact {
        /// Position in `schedule`, from 0.
        segment: usize,
        /// The group's id.
        group: u32,
    },
    /// A host gets too much that it does not need.
    #[error(
        "host `{host}` gets {bytes} bytes that it does not need, more than {permille} thousandths of the {need} that it does"
    )]
    Waste {
        /// The host.
        host: String,
        /// Bytes not needed.
        bytes: u128,
        /// Bytes needed.
        need: u128,
        /// What may be, in thousandths of the need.
        permille: u32,
    },
    /// Two segments have the same hosts.
    #[error("segments {first} and {second} have the same hosts")]
    SegmentTwice {
        /// Position in `schedule`, from 0.
        first: usize,
        /// The other's.
        second: usize,
    },
    /// No VMs are on exactly the hosts of a segment.
    #[error("segment {segment}: its hosts are not those of any VMs together")]
    NoSuchVms {
        /// Position in `schedule`, from 0.
        segment: usize,
    },
    /// A segment names contents to hosts that cannot hold them, or more than it has.
    #[error(
        "segment {segment}: {bytes} bytes of names are no part of it that goes to one host of `resident` with a VM"
    )]
    Named {
        /// Position in `schedule`, from 0.
        segment: usize,
        /// Its `named_bytes`.
        bytes: u64,
    },
    /// A predicted total does not follow from the schedule.
    #[error("predicted `{field}` is {found}; the schedule gives {right}")]
    Prediction {
        /// The field.
        field: &'static str,
        /// What the plan says.
        found: String,
        /// What follows from the schedule.
        right: String,
    },
    /// The plan is not one of this inventory, or of these images, as they are now.
    #[error("the plan is stale: {thing} {why}")]
    Stale {
        /// The thing.
        thing: String,
        /// What differs.
        why: String,
    },
    /// A VM's copies are not where the inventory wants them.
    #[error("VM `{vm}` {why}")]
    Placement {
        /// The VM.
        vm: String,
        /// What is wrong.
        why: String,
    },
}
