//! `scatter doctor`: what would make a transfer fail in silence, here and on the way to a plan's hosts.

mod probe;

use crate::cli::args::Doctor;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{read_plan, sender_keys, sending_interface};
use net::Interface;
use net::doctor::{self, Finding, PROBE_BYTES, Severity};
use net::udp::{Family, SenderOptions};
use planner::Plan;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Socket buffer that a receiver asks for.
const RCVBUF_BYTES: usize = 32 << 20;
/// How long an IGMP query is waited for, after one was provoked.
const QUERIER_WAIT: Duration = Duration::from_secs(3);
const GSO_WAIT: Duration = Duration::from_secs(1);
/// Groups of a host, where no plan says.
const GROUPS: usize = 20;
const COLUMN: usize = 18;

pub(crate) fn run(args: &Doctor) -> Outcome {
    let plan = args.plan.as_deref().map(read_plan).transpose()?;
    let mut findings = Vec::new();
    let interface = interface(args, plan.as_ref(), &mut findings)?;
    here(args, plan.as_ref(), interface.as_ref(), &mut findings);
    if let (Some(plan), Some(interface)) = (&plan, &interface) {
        let keys = sender_keys(args.keys.as_ref(), plan);
        match net::pki::Identity::load(&keys) {
            Ok(identity) => findings.extend(probe::hosts(plan, interface, &identity)?),
            // What is wrong with the keys is among the findings already.
            Err(_) => findings.push(Finding {
                check: "hosts",
                severity: Severity::Problem,
                what: format!("no host was asked: there are no usable keys in {}", keys.display()),
                remedy: "give a sender's keys by --keys".to_owned(),
            }),
        }
    }
    if args.json {
        print_json(&findings)?
    } else {
        print(&findings)
    }
    let worst = findings.iter().map(|finding| finding.severity).max();
    Ok(if worst == Some(Severity::Problem) { Exit::Problem } else { Exit::Done })
}

/// The interface that a transfer would use; that there is none is a finding, a wrong name of the user's an error.
fn interface(args: &Doctor, plan: Option<&Plan>, findings: &mut Vec<Finding>) -> Outcome<Option<Interface>> {
    let found = match (args.interface.as_deref(), plan) {
        (Some(named), _) => return Interface::find(named).or_exit(Exit::Usage).map(Some),
        (None, Some(plan)) => sending_interface(None, plan),
        (None, None) => Interface::default_multicast().or_exit(Exit::System),
    };
    match found {
        Ok(interface) => {
            let addresses = interface.v4.iter().map(ToString::to_string);
            let addresses: Vec<String> =
                addresses.chain(interface.v6.iter().map(ToString::to_string)).collect();
            let (severity, remedy) = match (interface.up, interface.multicast || interface.loopback) {
                (true, true) => (Severity::Ok, ""),
                (false, _) => (Severity::Problem, "bring it up: ip link set dev INTERFACE up"),
                (_, false) => {
                    (Severity::Problem, "switch multicast on: ip link set dev INTERFACE multicast on")
                }
            };
            findings.push(Finding {
                check: "interface",
                severity,
                what: format!("{} ({}), MTU {}", interface.name, addresses.join(", "), interface.mtu),
                remedy: remedy.replace("INTERFACE", &interface.name),
            });
            Ok(Some(interface))
        }
        Err(Failure { error, .. }) => {
            findings.push(Finding {
                check: "interface",
                severity: Severity::Problem,
                what: format!("{error:#}"),
                remedy: "name the interface by --interface".to_owned(),
            });
            Ok(None)
        }
    }
}

/// This host's own checks.
fn here(args: &Doctor, plan: Option<&Plan>, interface: Option<&Interface>, findings: &mut Vec<Finding>) {
    let keys: Option<PathBuf> = match plan {
        Some(plan) => Some(sender_keys(args.keys.as_ref(), plan)),
        None => args.keys.clone(),
    };
    if let Some(keys) = keys {
        findings.extend(doctor::identity(&keys));
    }
    findings.extend(doctor::rights());
    let groups = plan.map_or(GROUPS, |plan| plan.groups.len());
    findings.push(doctor::memberships(groups));
    if let Some(interface) = interface {
        let family = family(plan);
        // Less would work, but for a network that carries less there is no excuse.
        let datagram = u32::try_from(PROBE_BYTES).expect("below 2^32");
        findings.push(doctor::mtu(interface, family, datagram));
        findings.extend(doctor::buffers(interface, RCVBUF_BYTES, SenderOptions::default().sndbuf_bytes));
        findings.push(doctor::gso_local(interface, family, GSO_WAIT));
        // Loopback has no switch, and so no querier.
        if family == Family::V4 && !interface.loopback {
            findings.push(doctor::querier(interface, QUERIER_WAIT));
        }
    }
    findings.extend(doctor::bridges());
}

/// The family of the plan's groups.
fn family(plan: Option<&Plan>) -> Family {
    let group = plan.and_then(|plan| plan.pool().ok()).and_then(|pool| pool.nth(0));
    group.map_or(Family::V4, Family::of)
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warning => "warning",
        Severity::Problem => "PROBLEM",
    }
}

fn print(findings: &[Finding]) {
    for finding in findings {
        println!("{:<8} {:<COLUMN$} {}", word(finding.severity), finding.check, finding.what);
        if !finding.remedy.is_empty() {
            println!("{:<8} {:<COLUMN$} → {}", "", "", finding.remedy);
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    println!("\n{} problems, {} warnings", count(Severity::Problem), count(Severity::Warning));
}

fn print_json(findings: &[Finding]) -> Outcome<()> {
    let finding = |finding: &Finding| {
        json!({"check": finding.check, "severity": word(finding.severity).to_lowercase(),
            "what": finding.what, "remedy": finding.remedy})
    };
    let list: Vec<serde_json::Value> = findings.iter().map(finding).collect();
    println!("{}", serde_json::to_string_pretty(&list).or_exit(Exit::Internal)?);
    Ok(())
}
