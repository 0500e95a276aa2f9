//! What if something were otherwise: the plan is made again, and compared.

use std::fmt::Write;

use super::{difference, listed, size, time};
use crate::inventory::{Inventory, Target};
use crate::signatures::Signatures;
use crate::{Plan, PlanError, make_plan};

/// A question about a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Question {
    /// What if this host takes no VM: it is full, or gone?
    Without(String),
    /// What if these two VMs are never on one host?
    Apart(String, String),
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionError {
    /// The inventory has no such host.
    #[error("the inventory has no host `{0}`")]
    UnknownHost(String),
    /// The inventory has no such VM.
    #[error("the inventory has no VM `{0}`")]
    UnknownVm(String),
    /// A VM is pinned to the host.
    #[error("VM `{vm}` is pinned to host `{host}` (`to.hosts`): pin it to another, or to none")]
    Pinned {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
    },
    /// There is only this host.
    #[error("`{0}` is the only host")]
    OnlyHost(String),
    /// One VM, twice.
    #[error("`{0}` cannot be apart from itself")]
    Itself(String),
    /// There is no such plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Answers a question about the plan of an inventory, in words.
///
/// ```
/// use planner::answers::{Question, what_if};
/// use planner::{Inventory, make_plan};
///
/// let inventory = Inventory::from_json(include_str!("../../../examples/inventory.json"))?;
/// let plan = make_plan(&inventory, None, 0)?;
/// let answer = what_if(&inventory, None, &plan, 0, &Question::Without("h4".to_owned()))?;
/// assert!(answer.contains("so it costs"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`QuestionError`]. That there is no plan then is an answer, too: [`QuestionError::Plan`] says what it lacks.
pub fn what_if(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    plan: &Plan,
    seed: u64,
    question: &Question,
) -> Result<String, QuestionError> {
    let mut changed = inventory.clone();
    let mut known = signatures.cloned();
    let asked = match question {
        Question::Without(host) => {
            without(&mut changed, known.as_mut(), host)?;
            format!("without {host}")
        }
        Question::Apart(a, b) => {
            for name in [a, b] {
                if !inventory.vms.iter().any(|vm| vm.name == *name) {
                    return Err(QuestionError::UnknownVm(name.clone()));
                }
            }
            if a == b {
                return Err(QuestionError::Itself(a.clone()));
            }
            let vm = changed.vms.iter_mut().find(|vm| vm.name == *a);
            if let Some(vm) = vm.filter(|vm| !vm.anti_affinity.contains(b)) {
                vm.anti_affinity.push(b.clone());
            }
            format!("with {a} and {b} apart")
        }
    };
    let other = make_plan(&changed, known.as_ref(), seed)?;
    Ok(compared(plan, &other, &asked))
}

fn without(
    inventory: &mut Inventory,
    signatures: Option<&mut Signatures>,
    host: &str,
) -> Result<(), QuestionError> {
    let Some(at) = inventory.hosts.iter().position(|other| other.name == host) else {
        return Err(QuestionError::UnknownHost(host.to_owned()));
    };
    let pinned = inventory.vms.iter().find(|vm| match &vm.to {
        Target::Hosts(hosts) => hosts.iter().any(|other| other == host),
        Target::Clones(_) => false,
    });
    if let Some(vm) = pinned {
        return Err(QuestionError::Pinned { vm: vm.name.clone(), host: host.to_owned() });
    }
    if inventory.hosts.len() == 1 {
        return Err(QuestionError::OnlyHost(host.to_owned()));
    }
    inventory.hosts.remove(at);
    for weight in signatures.into_iter().flat_map(|signatures| &mut signatures.weights) {
        weight.resident.retain(|other| other != host);
    }
    Ok(())
}

fn compared(plan: &Plan, other: &Plan, asked: &str) -> String {
    let mut text = format!("{asked}:\n");
    if let (Some(now), Some(then)) = (&plan.predicted, &other.predicted) {
        let mut line = |what: &str, now: u64, then: u64, show: &dyn Fn(u64) -> String| {
            let change = i128::from(then) - i128::from(now);
            let change = match (now, change) {
                (_, 0) => "the same".to_owned(),
                (0, _) => String::new(),
                (now, change) if change.unsigned_abs() * 2000 < u128::from(now) => {
                    "about the same".to_owned()
                }
                (now, change) => format!("{:+.1} %", change as f64 * 100.0 / now as f64),
            };
            writeln!(text, "  {what:<28} {:>11}  instead of {:>11}  {change}", show(then), show(now))
                .expect("strings take everything");
        };
        line("sent by the source", now.source_bytes, then.source_bytes, &size);
        line("needed by hosts, in sum", now.placement_bytes, then.placement_bytes, &size);
        if (now.placement_bytes, then.placement_bytes) != (now.placement_cost, then.placement_cost) {
            line("on links, times their costs", now.placement_cost, then.placement_cost, &size);
        }
        line("joins", now.joins, then.joins, &|count| count.to_string());
        line("time", now.duration_ms, then.duration_ms, &time);
        let change = i128::from(then.placement_cost) - i128::from(now.placement_cost);
        // Either question only forbids: what is found then could have been found before.
        let found = if change < 0 { "; the plan could do so, too: another --seed may find it" } else { "" };
        writeln!(text, "  so it costs {} on the links to hosts and racks{found}", difference(change))
            .expect("strings take everything");
    }
    let moved: Vec<String> = plan
        .vms
        .iter()
        .zip(&other.vms)
        .filter(|(now, then)| now.hosts != then.hosts)
        .map(|(now, then)| {
            format!("{} ({} → {})", now.name, listed(strs(&now.hosts)), listed(strs(&then.hosts)))
        })
        .collect();
    if moved.is_empty() {
        text += "  every VM goes where it goes now\n";
    } else {
        writeln!(text, "  {} of {} VMs go elsewhere: {}", moved.len(), plan.vms.len(), listed(strs(&moved)))
            .expect("strings take everything");
    }
    text
}

fn strs(names: &[String]) -> impl ExactSizeIterator<Item = &str> {
    names.iter().map(String::as_str)
}
