//! The checker: whether a plan holds, found out without any of the code that makes plans.
//!
//! It reads the plan by its names, the way an operator would, and derives everything anew.

mod fits;
mod links;
mod sending;
mod violation;

use std::collections::BTreeMap;

use crate::FORMAT_VERSION;
use crate::inventory::Inventory;
use crate::plan::{ImageStamp, Plan, PlannedVm};

pub use violation::Violation;

/// Checks a plan, and with an inventory whether it is a plan of that inventory as it is now.
///
/// Every plan is checked before use. O(size of the plan · log) time.
///
/// ```
/// use planner::{Inventory, check, make_plan};
///
/// let inventory = Inventory::from_json(include_str!("../../examples/inventory.json"))?;
/// let mut plan = make_plan(&inventory, None, 0)?;
/// assert_eq!(check(&plan, Some(&inventory)), Ok(()));
/// // Damaged: `build` has a clone less than the inventory wants.
/// plan.vms[4].hosts.pop();
/// assert!(check(&plan, Some(&inventory)).is_err_and(|found| found[0].to_string().contains("build")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Everything that does not hold, in the plan's order.
pub fn check(plan: &Plan, inventory: Option<&Inventory>) -> Result<(), Vec<Violation>> {
    let mut found = Vec::new();
    if plan.version != FORMAT_VERSION {
        found.push(Violation::Version { found: plan.version });
    }
    let names = Names::of(plan, &mut found);
    fits::check_hosts(plan, &names, &mut found);
    sending::check_sending(plan, &names, &mut found);
    links::check_links(plan, &names, &mut found);
    if let Some(inventory) = inventory {
        fits::check_inventory(plan, inventory, &mut found);
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Whether the images are those that the plan was made of: a stamp for each VM that was looked at, in the plan's order.
///
/// # Errors
/// [`Violation::Stale`] for each VM whose image differs from the plan's stamp. Where either has none, nothing is known.
pub fn check_images(plan: &Plan, now: &[Option<ImageStamp>]) -> Result<(), Vec<Violation>> {
    let stale = |(vm, now): (&PlannedVm, &Option<ImageStamp>)| {
        let (then, now) = (vm.stamp?, (*now)?);
        let why = if then.bytes != now.bytes {
            format!("had {} bytes when the plan was made, and has {}", then.bytes, now.bytes)
        } else if then.modified_ns != now.modified_ns {
            "was written since the plan was made".to_owned()
        } else {
            return None;
        };
        Some(Violation::Stale { thing: format!("VM `{}`: image {}", vm.name, vm.image), why })
    };
    let found: Vec<Violation> = plan.vms.iter().zip(now).filter_map(stale).collect();
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Position of each name.
struct Names<'a> {
    hosts: BTreeMap<&'a str, usize>,
    /// For each VM the positions of its hosts, unknown ones left out.
    vm_hosts: Vec<Vec<usize>>,
    /// For each host the positions of its VMs.
    vms_on: Vec<Vec<usize>>,
}

impl<'a> Names<'a> {
    fn of(plan: &'a Plan, found: &mut Vec<Violation>) -> Self {
        if plan.hosts.is_empty() || plan.hosts.len() > usize::from(u16::MAX) {
            found.push(Violation::Count { list: "hosts", count: plan.hosts.len() });
        }
        if plan.vms.is_empty() || plan.vms.len() > usize::from(u16::MAX) {
            found.push(Violation::Count { list: "vms", count: plan.vms.len() });
        }
        let mut hosts = BTreeMap::new();
        for (index, host) in plan.hosts.iter().enumerate() {
            check_name("host", &host.name, found);
            if hosts.insert(host.name.as_str(), index).is_some() {
                found.push(Violation::Duplicate { kind: "host", name: host.name.clone() });
            }
        }
        let mut vms = BTreeMap::new();
        for vm in &plan.vms {
            check_name("VM", &vm.name, found);
            if vms.insert(vm.name.as_str(), ()).is_some() {
                found.push(Violation::Duplicate { kind: "VM", name: vm.name.clone() });
            }
        }
        let mut names = Self { hosts, vm_hosts: Vec::new(), vms_on: vec![Vec::new(); plan.hosts.len()] };
        names.vm_hosts = plan
            .vms
            .iter()
            .map(|vm| names.positions(&format!("VM `{}`", vm.name), &vm.hosts, found))
            .collect();
        for (vm, hosts) in names.vm_hosts.iter().enumerate() {
            hosts.iter().for_each(|&host| names.vms_on[host].push(vm));
        }
        names
    }

    /// Positions of a list of hosts, ascending; notes what is wrong with the list.
    fn positions(&self, thing: &str, hosts: &[String], found: &mut Vec<Violation>) -> Vec<usize> {
        if hosts.is_empty() {
            found.push(Violation::NoHosts { thing: thing.to_owned() });
        }
        let mut positions = Vec::with_capacity(hosts.len());
        for host in hosts {
            match self.hosts.get(host.as_str()) {
                Some(&position) => positions.push(position),
                None => found.push(Violation::UnknownHost { thing: thing.to_owned(), host: host.clone() }),
            }
        }
        positions.sort_unstable();
        if positions.windows(2).any(|pair| pair[0] == pair[1]) {
            found.push(Violation::HostTwice { thing: thing.to_owned() });
            positions.dedup();
        }
        positions
    }
}

/// Names become file names at the receivers, so none may lead out of a directory.
fn check_name(kind: &'static str, name: &str, found: &mut Vec<Violation>) {
    let is_file_name = !name.is_empty() && name.len() <= 253 && !name.starts_with('.');
    if !is_file_name || name.contains(|c: char| c == '/' || c == '\\' || c.is_control()) {
        found.push(Violation::Name { kind, name: name.to_owned() });
    }
}
