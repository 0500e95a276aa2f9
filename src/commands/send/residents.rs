//! What hosts hold already, where the plan counts on it.

use super::display::Display;
use crate::cli::exit::{Coded, Exit, Outcome};
use net::pki::Identity;
use planner::{Isolation, Plan};
use sender::driver::HostTarget;
use sender::prepare::Prepared;
use sender::residents::{self, Residents, ResidentsConfig};
use std::net::SocketAddr;

/// Asks hosts what they hold, if the plan counts on it, and leaves it out.
pub(super) fn leave_out(
    plan: &Plan,
    prepared: &mut Prepared,
    addresses: &[SocketAddr],
    identity: &Identity,
    threads: usize,
    display: &Display,
) -> Outcome<()> {
    if let Some(residents) = ask(plan, prepared, addresses, identity, threads)? {
        display.residents(&residents);
        prepared.leave_out(residents);
    }
    Ok(())
}

/// Asks the hosts that the plan says to have contents of their VMs; nothing if there are none.
fn ask(
    plan: &Plan,
    prepared: &Prepared,
    addresses: &[SocketAddr],
    identity: &Identity,
    threads: usize,
) -> Outcome<Option<Residents>> {
    let listed =
        (0..).zip(&plan.hosts).zip(addresses).filter(|((_, host), _)| plan.resident.contains(&host.name));
    let hosts: Vec<(u16, HostTarget)> = listed
        .map(|((index, host), address)| (index, HostTarget { name: host.name.clone(), address: *address }))
        .collect();
    if hosts.is_empty() {
        return Ok(None);
    }
    let strict = plan.isolation == Isolation::Strict;
    let images = prepared.vms.iter().map(|vm| (vm.name.clone(), vm.domain));
    let config = ResidentsConfig {
        transfer: plan.name.clone(),
        key: sender::measure::fresh_key().or_exit(Exit::System)?,
        // Whose an image is shows by its name alone: with tenants apart only those of VMs of this plan are used.
        images: if strict { images.collect() } else { Vec::new() },
        threads,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::System)?;
    let asked = residents::ask(&prepared.vms, &prepared.index, &hosts, identity, &config);
    Ok(Some(runtime.block_on(asked)))
}
