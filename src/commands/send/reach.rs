//! How the hosts of a plan are reached from here.

use crate::cli::args::Send;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::cli::parse::SymbolSize;
use crate::commands::{host_addresses, load_keys, sender_keys, sending_interface};
use net::Interface;
use net::interface::{HEADERS_V4_BYTES, HEADERS_V6_BYTES, path_mtu};
use net::pki::{Identity, Role};
use planner::{Plan, Pool};
use sender::encode::SYMBOL_BYTES_MIN;
use std::net::SocketAddr;
use std::sync::Arc;
use wire::datagram::OVERHEAD_BYTES;
use wire::limits::SYMBOL_BYTES_MAX;

/// Ways to the hosts, and who says that he takes them.
pub(super) struct Reach {
    pub(super) interface: Interface,
    /// In the plan's order.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) identity: Arc<Identity>,
    /// Addresses of groups.
    pub(super) pool: Pool,
    pub(super) ipv6: bool,
    /// Bytes of a symbol, one of which goes into each datagram.
    pub(super) symbol: u16,
}

impl Reach {
    /// Fails if keys, addresses or this host do not allow it; nobody is asked.
    pub(super) fn of(args: &Send, plan: &Plan) -> Outcome<Self> {
        let interface = sending_interface(args.interface.as_deref(), plan)?;
        let addresses = host_addresses(plan)?;
        let identity = Arc::new(load_keys(&sender_keys(args.keys.as_ref(), plan))?);
        identity.require_role(Role::Sender).or_exit(Exit::Input)?;
        let pool = plan.pool().or_exit(Exit::Plan)?;
        let ipv6 = pool.nth(0).is_some_and(|group| group.is_ipv6());
        let symbol = symbol_size(args.symbol_size, &interface, &addresses, ipv6)?;
        Ok(Self { interface, addresses, identity, pool, ipv6, symbol })
    }
}

/// What fits a datagram on the way to every host; refuses what this host could not even send.
fn symbol_size(choice: SymbolSize, interface: &Interface, hosts: &[SocketAddr], ipv6: bool) -> Outcome<u16> {
    let headers = if ipv6 { HEADERS_V6_BYTES } else { HEADERS_V4_BYTES };
    let overhead = headers + u32::try_from(OVERHEAD_BYTES).expect("some tens of bytes");
    let room = |mtu: u32| {
        let bytes = mtu.saturating_sub(overhead) / 8 * 8;
        u16::try_from(bytes).unwrap_or(u16::MAX).min(SYMBOL_BYTES_MAX)
    };
    // A path that cannot be asked does not narrow anything.
    let paths = hosts.iter().filter_map(|host| path_mtu(host.ip()).ok());
    let narrowest = paths.fold(interface.mtu, u32::min);
    let too_small = |size: u16, mtu: u32| {
        let message = format!(
            "symbols of {size} bytes do not fit the MTU of {mtu} of interface {}; the largest is {}",
            interface.name,
            room(mtu)
        );
        Err(Failure::new(Exit::System, message))
    };
    match choice {
        SymbolSize::Fixed(size) if size > room(interface.mtu) => too_small(size, interface.mtu),
        SymbolSize::Fixed(size) => Ok(size),
        SymbolSize::Auto if room(narrowest) < SYMBOL_BYTES_MIN => too_small(SYMBOL_BYTES_MIN, narrowest),
        SymbolSize::Auto => Ok(room(narrowest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_fit_the_mtu() {
        let lo = Interface::by_name("lo").expect("every host has lo");
        let ethernet = Interface { mtu: 1500, ..lo.clone() };
        assert_eq!(symbol_size(SymbolSize::Auto, &ethernet, &[], false).expect("fits"), 1424);
        let jumbo = Interface { mtu: 9000, ..lo };
        assert_eq!(symbol_size(SymbolSize::Auto, &jumbo, &[], false).expect("fits"), SYMBOL_BYTES_MAX);
        assert!(symbol_size(SymbolSize::Fixed(8920), &ethernet, &[], false).is_err());
        let tiny = Interface { mtu: 100, ..ethernet };
        assert!(symbol_size(SymbolSize::Auto, &tiny, &[], false).is_err());
    }
}
