//! What is asked of a plan's hosts: are they there, who are they, what time is it, and does multicast reach them?

use crate::cli::exit::{Coded, Exit, Outcome};
use crate::commands::host_addresses;
use net::Interface;
use net::control::{FrameReader, connect, with_causes};
use net::doctor::{Finding, Severity, send_probes};
use net::pki::Identity;
use net::udp::{Family, SenderOptions, UdpSender};
use planner::Plan;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::control::{Message, Probe, ProbeResult, ToHost, ToSender};

/// Bytes of the datagram that passes everywhere.
const SMALL_BYTES: usize = 64;
/// Added to the plan's join latency before probes go out.
const JOIN_MARGIN: Duration = Duration::from_millis(50);
/// How long a host listens.
const LISTEN: Duration = Duration::from_millis(1500);
/// A host that says nothing for so long has a problem.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Certificates are valid from five minutes before they were issued: clocks further apart than this refuse new ones.
const SKEW_PROBLEM: Duration = Duration::from_secs(300);
const SKEW_WARNING: Duration = Duration::from_secs(30);

/// A kind of probe.
struct Kind {
    check: &'static str,
    /// What is sent, in words.
    what: &'static str,
    count: u32,
    bytes: usize,
    gso: bool,
    /// What to do if nothing comes, though the kinds before came.
    remedy: &'static str,
}

/// What the hosts' tasks share.
struct Common {
    interface: Interface,
    family: Family,
    port: u16,
    ttl: u8,
    join: Duration,
    kinds: [Kind; 3],
}

/// Asks every host of the plan, all at the same time.
pub(super) fn hosts(plan: &Plan, interface: &Interface, identity: &Identity) -> Outcome<Vec<Finding>> {
    let pool = plan.pool().or_exit(Exit::Plan)?;
    let family = pool.nth(0).map_or(Family::V4, Family::of);
    let full = usize::try_from(interface.datagram_bytes_max(family)).unwrap_or(usize::MAX).min(8972);
    let common = Arc::new(Common {
        interface: interface.clone(),
        family,
        port: plan.multicast.port,
        ttl: plan.multicast.ttl,
        join: Duration::from_millis(plan.multicast.join_latency_ms.into()) + JOIN_MARGIN,
        kinds: kinds(full),
    });
    let addresses = host_addresses(plan)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.or_exit(Exit::System)?;
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for ((index, host), address) in (0u32..).zip(&plan.hosts).zip(addresses) {
            // A group of its own, from the end of the pool: hosts on one machine do not hear each other's.
            let group = pool.nth(pool.size() - 1 - index % pool.size()).expect("within the pool");
            let (name, identity, common) = (host.name.clone(), identity.clone(), Arc::clone(&common));
            tasks.push(tokio::spawn(async move {
                host_findings(&name, address, group, &identity, &common).await
            }));
        }
        let mut findings = Vec::new();
        for task in tasks {
            findings.extend(task.await.or_exit(Exit::Internal)?);
        }
        Ok(findings)
    })
}

fn kinds(full: usize) -> [Kind; 3] {
    [
        Kind {
            check: "multicast",
            what: "small datagrams",
            count: 8,
            bytes: SMALL_BYTES,
            gso: false,
            remedy: "check that the switches between pass multicast (IGMP snooping needs a querier), firewalls on both \
                     hosts (`nft list ruleset`), the receiver's --interface, and the plan's ttl if routers are between",
        },
        Kind {
            check: "multicast-mtu",
            what: "datagrams as long as the interface's MTU",
            count: 8,
            bytes: full,
            gso: false,
            remedy: "some link on the way has a smaller MTU: raise it, or send shorter datagrams (--symbol-size 1424 fits an MTU \
                     of 1500, 1200 one of 1280)",
        },
        Kind {
            check: "multicast-gso",
            what: "datagrams batched by GSO",
            count: 32,
            bytes: full,
            gso: true,
            remedy: "the device or its driver corrupts or drops GSO: `ethtool -K INTERFACE tx-udp-segmentation off`",
        },
    ]
}

async fn host_findings(
    name: &str,
    address: SocketAddr,
    group: IpAddr,
    identity: &Identity,
    common: &Common,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, kind) in common.kinds.iter().enumerate() {
        let asked = SystemTime::now();
        let probed = probe(name, address, group, identity, common, kind).await;
        let result = match probed {
            Ok(result) => result,
            Err(reason) => {
                let remedy = "mend this first; nothing else of the host could be checked".to_owned();
                findings.push(Finding { check: "host", severity: Severity::Problem, what: reason, remedy });
                return findings;
            }
        };
        if index == 0 {
            findings.push(Finding {
                check: "host",
                severity: Severity::Ok,
                what: format!("{name} at {address}: reached, certificates good at both ends"),
                remedy: String::new(),
            });
            findings.push(clock(name, asked, result.clock_s));
        }
        let finding = verdict(name, group, kind, &result, &common.interface);
        let failed = finding.severity == Severity::Problem;
        findings.push(finding);
        if failed {
            // What is longer or comes in batches will not come either.
            return findings;
        }
    }
    findings
}

/// One probe, on a connection of its own.
async fn probe(
    name: &str,
    address: SocketAddr,
    group: IpAddr,
    identity: &Identity,
    common: &Common,
    kind: &Kind,
) -> Result<ProbeResult, String> {
    let control = connect(address, identity, name).await.map_err(|error| with_causes(&error))?;
    let (mut reader, mut writer) = control.split();
    let listen_ms = u32::try_from((LISTEN + common.join).as_millis()).unwrap_or(10_000).min(10_000);
    let request = ToHost::Probe(Probe { group, port: common.port, count: kind.count, listen_ms });
    writer.write_frame(&request.encode()).await.map_err(|error| with_causes(&error))?;
    match answer(name, &mut reader).await? {
        ToSender::ProbeReady => {}
        ToSender::ProbeResult(result) => return Ok(result),
        _ => return Err(format!("{name}: answers something else than was asked; is it of this version?")),
    }
    tokio::time::sleep(common.join).await;
    let options = SenderOptions { ttl: common.ttl, gso: kind.gso, ..SenderOptions::default() };
    let mut sender =
        UdpSender::bind(&common.interface, common.family, options).map_err(|error| with_causes(&error))?;
    let dest = SocketAddr::new(group, common.port);
    send_probes(&mut sender, dest, kind.count, kind.bytes)
        .map_err(|error| format!("cannot send {} to {dest}: {error}", kind.what))?;
    match answer(name, &mut reader).await? {
        ToSender::ProbeResult(result) => Ok(result),
        _ => Err(format!("{name}: answers something else than was asked; is it of this version?")),
    }
}

async fn answer(name: &str, reader: &mut FrameReader) -> Result<ToSender, String> {
    match tokio::time::timeout(ANSWER_MAX, reader.read_frame()).await {
        Ok(Ok(Some(frame))) => ToSender::decode(&frame).map_err(|error| format!("{name}: {error}")),
        Ok(Ok(None)) => {
            Err(format!("{name}: closed the connection without an answer; is a transfer under way there?"))
        }
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err(format!("{name}: did not answer within {} s", ANSWER_MAX.as_secs())),
    }
}

fn clock(name: &str, asked: SystemTime, theirs_s: u64) -> Finding {
    let ours = asked.duration_since(UNIX_EPOCH).unwrap_or_default();
    let skew = ours.abs_diff(Duration::from_secs(theirs_s)).saturating_sub(Duration::from_secs(2));
    let severity = match skew {
        skew if skew >= SKEW_PROBLEM => Severity::Problem,
        skew if skew >= SKEW_WARNING => Severity::Warning,
        _ => Severity::Ok,
    };
    let (what, remedy) = match severity {
        Severity::Ok => (format!("{name}: clock agrees"), ""),
        _ => (
            format!("{name}: clocks are {} s apart", skew.as_secs()),
            "set both clocks (chrony, systemd-timesyncd): certificates are judged by them",
        ),
    };
    Finding { check: "clock", severity, what, remedy: remedy.to_owned() }
}

fn verdict(name: &str, group: IpAddr, kind: &Kind, result: &ProbeResult, interface: &Interface) -> Finding {
    let path = format!("{} → {name} ({}), group {group}", interface.name, result.interface);
    let remedy = kind.remedy.replace("INTERFACE", &interface.name);
    let (severity, what, remedy) = match result {
        ProbeResult { error: Some(error), .. } => (
            Severity::Problem,
            format!("{path}: {error}"),
            "give the receiver another --interface".to_owned(),
        ),
        ProbeResult { corrupt, .. } if *corrupt > 0 => (
            Severity::Problem,
            format!("{path}: {corrupt} of {} {} came altered", kind.count, kind.what),
            remedy,
        ),
        ProbeResult { intact: 0, .. } => {
            (Severity::Problem, format!("{path}: none of {} {} arrived", kind.count, kind.what), remedy)
        }
        ProbeResult { intact, .. } if *intact < kind.count => (
            Severity::Warning,
            format!("{path}: {intact} of {} {} arrived", kind.count, kind.what),
            "loss is repaired, but costs time: look for overload or errors on the way".to_owned(),
        ),
        _ => (Severity::Ok, format!("{path}: {} arrive", kind.what), String::new()),
    };
    Finding { check: kind.check, severity, what, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let interface = Interface::by_name("lo").expect("every host has lo");
        let kinds = kinds(1472);
        let group = IpAddr::from([239, 77, 0, 1]);
        let judge = |intact, corrupt, error: Option<&str>| {
            let result =
                ProbeResult { intact, corrupt, error: error.map(str::to_owned), ..ProbeResult::default() };
            verdict("h1", group, &kinds[0], &result, &interface).severity
        };
        assert_eq!(judge(8, 0, None), Severity::Ok);
        assert_eq!(judge(7, 0, None), Severity::Warning);
        assert_eq!(judge(0, 0, None), Severity::Problem);
        assert_eq!(judge(7, 1, None), Severity::Problem);
        assert_eq!(judge(0, 0, Some("no such interface")), Severity::Problem);
    }

    #[test]
    fn clocks_apart() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(clock("h1", now, 1_000_001).severity, Severity::Ok);
        assert_eq!(clock("h1", now, 999_900).severity, Severity::Warning);
        assert_eq!(clock("h1", now, 1_001_000).severity, Severity::Problem);
    }
}
