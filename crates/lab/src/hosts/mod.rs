//! Hosts made of network namespaces on a bridge that snoops multicast.
//!
//! ```text
//!  h0 (sender)      h1            h2            …      namespaces PREFIX-h0 …, interface e0, 10.77.0.1/16 …
//!    e0             e0            e0
//!    │              │             │                    veth pairs
//!    p0             p1            p2
//!  ┌─┴──────────────┴─────────────┴──────────────┐
//!  │ br0: IGMP/MLD snooping, querier, fast-leave │     namespace PREFIX-sw
//!  └─────────────────────────────────────────────┘
//!     loss, duplication and rate: on the way out of a port
//!     delay and reordering: by a relay between port and host
//! ```
//!
//! A [`Lab`] needs root, or a user namespace as [`reexec_in_user_namespace_if_needed`] makes one. It is gone when it is
//! dropped; what a killed process left is removed by the next lab on the machine, or by [`sweep`].

mod claim;
mod counters;
mod error;
mod faults;
mod namespace;
mod relay;
mod rights;
mod setup;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use claim::Claim;
pub use claim::sweep;
pub use counters::{HostCounters, LinkCounters, Tally};
pub use error::LabError;
pub use faults::{Loss, Pattern, Scope};
use namespace::{Namespace, output};
use relay::Relay;
pub use relay::{Disturbance, RelayCounters};
pub use rights::{exec_in_user_namespace, reexec_in_user_namespace_if_needed};
use setup::INTERFACE;

/// What a lab is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabOptions {
    /// Number of hosts, the sender counted: 1 to 250.
    pub hosts: u16,
    /// MTU of all links in bytes: 1,280 to 9,000.
    pub mtu: u32,
    /// One packet for each frame, as on a wire, in place of the kernel's super-packets of up to 64 KiB, which make
    /// virtual links unbelievably fast and lose some 46 datagrams at a time.
    pub wire_like: bool,
    /// Gives each host an IPv6 address too; without it IPv6 is off, and with it the noise of neighbour discovery.
    pub ipv6: bool,
    /// Start of the namespaces' names, 1 to 16 of a-z and 0-9; `None`: one that no other lab has.
    pub prefix: Option<String>,
}

impl Default for LabOptions {
    /// A sender and two receivers, wire-like, MTU 1,500, IPv4.
    fn default() -> Self {
        Self { hosts: 3, mtu: 1_500, wire_like: true, ipv6: false, prefix: None }
    }
}

/// Hosts on a switch; see the module's page. Dropped, also in a panic, it kills what still runs in its namespaces
/// and removes them.
///
/// Methods that take a host's number panic if there is no such host.
pub struct Lab {
    // The claim comes last: its drop kills what runs in the namespaces and removes their names.
    switch: Namespace,
    hosts: Vec<Host>,
    options: LabOptions,
    /// Of each host; their threads end before the namespaces go.
    relays: Mutex<Vec<Option<Relay>>>,
    claim: Claim,
}

impl Lab {
    /// Finds out whether this process can make labs, without making one.
    ///
    /// # Errors
    /// [`LabError::MissingProgram`] names the package that is missing, [`LabError::MissingRight`] what to do.
    pub fn available() -> Result<(), LabError> {
        rights::available()
    }

    /// Makes a lab, after removing those whose process is dead. Eight hosts take about half a second.
    ///
    /// # Errors
    /// As [`Self::available`]; [`LabError::Options`] for options that make no lab; [`LabError::PrefixTaken`];
    /// [`LabError::Command`], [`LabError::System`] or [`LabError::File`] for what the system refuses. Nothing is left then.
    pub fn new(options: LabOptions) -> Result<Self, LabError> {
        setup::check(&options)?;
        Self::available()?;
        sweep()?;
        let claim = Claim::new(options.prefix.as_deref())?;
        let (switch, hosts) = setup::build(claim.prefix(), &options)?;
        let relays = Mutex::new(hosts.iter().map(|_| None).collect());
        Ok(Self { switch, hosts, options, relays, claim })
    }

    /// The options that it was made with.
    #[must_use]
    pub const fn options(&self) -> &LabOptions {
        &self.options
    }

    /// Start of its namespaces' names.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.claim.prefix()
    }

    /// A host by number; 0 is the sender by custom.
    #[must_use]
    pub fn host(&self, index: u16) -> &Host {
        &self.hosts[usize::from(index)]
    }

    /// All hosts, in order.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All hosts but the first.
    #[must_use]
    pub fn receivers(&self) -> &[Host] {
        &self.hosts[1..]
    }

    /// A command that runs its program in the switch's namespace, where the ports are `p0`, `p1`, …
    #[must_use]
    pub fn switch_command(&self, program: &str) -> Command {
        self.switch.command(program)
    }

    /// Lets frames get lost on their way to a host, in place of its loss so far.
    ///
    /// # Errors
    /// [`LabError::Options`] for an impossible loss; else as [`Self::new`].
    pub fn loss(&self, host: u16, loss: Loss) -> Result<(), LabError> {
        setup::nft(&self.switch, &faults::loss_rules(self.host(host).index, Some(loss))?)
    }

    /// Lets `permille` thousandths of the datagrams to a host arrive twice, in place of its duplication so far.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn duplicate(&self, host: u16, permille: u16) -> Result<(), LabError> {
        setup::nft(&self.switch, &faults::duplication_rules(self.host(host).index, permille)?)
    }

    /// Delays, reorders and doubles frames on their way to a host, in place of its disturbance so far. The first time
    /// this puts a relay between the switch and the host (its groups are known again after 0.1 s), which costs speed:
    /// it is for trying things out, not for measuring. [`Self::clear`] takes it away.
    ///
    /// # Errors
    /// [`LabError::Options`] for thousandths above 1,000; [`LabError::System`] if raw packet sockets are not allowed;
    /// else as [`Self::new`].
    pub fn disturb(&self, host: u16, disturbance: Disturbance) -> Result<(), LabError> {
        let index = self.host(host).index;
        if disturbance.late_permille > 1_000 || disturbance.duplicate_permille > 1_000 {
            return Err(LabError::Options {
                reason: "more than 1,000 thousandths cannot be disturbed".to_owned(),
            });
        }
        let mut relays = self.relays();
        let relay = &mut relays[usize::from(index)];
        match relay {
            Some(relay) => relay.set(disturbance),
            None => *relay = Some(setup::add_relay(&self.switch, index, &self.options, disturbance)?),
        }
        Ok(())
    }

    /// What a host's relay did; `None` if it has none.
    #[must_use]
    pub fn relay_counters(&self, host: u16) -> Option<RelayCounters> {
        self.relays()[usize::from(host)].as_ref().map(Relay::counters)
    }

    fn relays(&self) -> MutexGuard<'_, Vec<Option<Relay>>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of a host's ports on the switch, of which the relay's is one.
    fn ports(&self, host: u16) -> Vec<String> {
        let port = self.host(host).port();
        let relayed = self.relays()[usize::from(host)].is_some();
        if relayed { vec![port, setup::relay_port(host)] } else { vec![port] }
    }

    /// Limits a host's downlink: what the switch sends to it, in bits a second of frames as [`LinkCounters`] count
    /// them. What the queue (10 ms) does not hold is dropped.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn shape(&self, host: u16, rate_bps: u64) -> Result<(), LabError> {
        let port = self.host(host).port();
        setup::tc(&self.switch, &faults::rate_line(&port, rate_bps)?)
    }

    /// Limits a host's uplink as [`Self::shape`] does its downlink. Here a full queue holds the sending socket back,
    /// as a network card's does.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn shape_egress(&self, host: u16, rate_bps: u64) -> Result<(), LabError> {
        setup::tc(&self.host(host).namespace, &faults::rate_line(INTERFACE, rate_bps)?)
    }

    /// Pulls a host's cable: its interface loses the carrier, the switch forgets its memberships.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn cut(&self, host: u16) -> Result<(), LabError> {
        let lines: String = self.ports(host).iter().map(|port| format!("link set {port} down\n")).collect();
        setup::ip(Some(&self.switch), &lines)
    }

    /// Plugs it in again. The switch asks for memberships at once; hosts answer within 0.1 s.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn restore(&self, host: u16) -> Result<(), LabError> {
        let lines: String = self.ports(host).iter().map(|port| format!("link set {port} up\n")).collect();
        setup::ip(Some(&self.switch), &lines)
    }

    /// Ends a host's loss, duplication, disturbance and rates, and plugs it in. Its counters go on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn clear(&self, host: u16) -> Result<(), LabError> {
        let index = self.host(host).index;
        if let Some(relay) = self.relays()[usize::from(host)].take() {
            drop(relay);
            setup::remove_relay(&self.switch, index)?;
        }
        let rules = faults::loss_rules(index, None)? + &faults::duplication_rules(index, 0)?;
        setup::nft(&self.switch, &rules)?;
        // `replace` first, as there may be nothing to delete. The default is no queue at all.
        for (namespace, device) in
            [(&self.switch, self.host(host).port().as_str()), (&self.host(host).namespace, INTERFACE)]
        {
            let replace = faults::rate_line(device, 1_000_000_000)?;
            setup::tc(namespace, &format!("{replace}qdisc del dev {device} root\n"))?;
        }
        self.restore(host)
    }

    /// Reads a host's counters.
    ///
    /// # Errors
    /// [`LabError::Format`] if they cannot be understood; else as [`Self::new`].
    pub fn counters(&self, host: u16) -> Result<HostCounters, LabError> {
        let host = self.host(host);
        let table = |namespace: &Namespace| {
            let read = || std::fs::read_to_string(counters::TABLE);
            let table = namespace.run(read).and_then(|table| table);
            table.map_err(|source| LabError::system(format!("read {}", counters::TABLE), source))
        };
        let mut nft = self.switch.command("nft");
        nft.args(["-j", "list", "counters"]);
        let tallies = output(nft, "")?;
        let counters = HostCounters {
            host: counters::parse_table(&table(&host.namespace)?, INTERFACE)?,
            port: counters::parse_table(&table(&self.switch)?, &host.port())?,
            lost: counters::parse_tally(&tallies, &format!("lost{}", host.index))?,
            duplicated: counters::parse_tally(&tallies, &format!("duplicated{}", host.index))?,
        };
        Ok(if self.options.wire_like { counters.add_ethernet_headers() } else { counters })
    }
}

/// One host of a [`Lab`].
#[derive(Debug)]
pub struct Host {
    index: u16,
    namespace: Namespace,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
}

impl Host {
    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Its namespace's name, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// Its IPv4 address, in 10.77.0.0/16.
    #[must_use]
    pub const fn addr(&self) -> Ipv4Addr {
        self.address
    }

    /// Its IPv6 address, in fd77::/64, if the lab has IPv6.
    #[must_use]
    pub const fn addr6(&self) -> Option<Ipv6Addr> {
        self.address6
    }

    /// Its interface's name. It has no route but to the lab's own network: who sends to a group names the interface.
    #[must_use]
    pub const fn interface(&self) -> &'static str {
        INTERFACE
    }

    /// A command that runs its program on this host: in its network namespace, and with a `/sys` that shows it where
    /// that is allowed. The program is looked for in PATH and in `/usr/sbin`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Runs `action` on this host, on a thread of its own, and returns its result. Sockets that it makes stay on the
    /// host; threads that it starts begin there. A panic is passed on. `/sys` and `/proc/net` show the process's own network.
    ///
    /// # Errors
    /// What setns(2) reports.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.namespace.run(action)
    }

    /// As [`Self::run`], without waiting. The thread does not end with the lab.
    pub fn spawn<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        self.namespace.spawn(action)
    }

    fn port(&self) -> String {
        format!("p{}", self.index)
    }
}

/// Whether a test that needs a lab can run here. If not, it prints why, and the test returns at once.
///
/// # Panics
/// If there can be no lab and `SCATTER_REQUIRE_LAB=1` is set: a lane of CI that must run these tests fails then,
/// in place of skipping them.
#[must_use]
pub fn lab_for_test(test: &str) -> bool {
    let Err(error) = Lab::available() else { return true };
    let required = std::env::var("SCATTER_REQUIRE_LAB").is_ok_and(|value| value == "1");
    assert!(!required, "{test} must run (SCATTER_REQUIRE_LAB=1): {error}");
    eprintln!("skipped {test}: {error}");
    false
}
