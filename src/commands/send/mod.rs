//! `scatter send`: a plan, checked, becomes a transfer.

mod clones;
mod display;
pub(crate) mod leave;
mod outcome;
mod reach;
mod rehearsal;
mod residents;
mod schedule;
mod sources;
mod standing;
pub(crate) mod under_way;

use crate::cli::args::Send;
use crate::cli::clones::{Clone, SharedFaults};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::cli::parse::EncodingChoice;
use crate::commands::{read_plan, threads};
use crate::images::Sample;
use crate::report::{RehearsalReport, Settings, TransferReport};
use crate::{images, interrupt, units};
use display::Display;
use leave::Leave;
use net::udp::SenderOptions;
use outcome::Sent;
use pages::{IdSet, PageSource, VmId};
use planner::{Isolation, Plan, SegmentWeight};
use reach::Reach;
use rehearsal::Stage;
use sender::driver::{HostTarget, Progress, Schedule, Transfer, TransferConfig, Vouch};
use sender::encode::EncodePlan;
use sender::guests::GuestInput;
use sender::prepare::{Prepared, VmInput};
use sender::rate::RateConfig;
use sender::session::SessionConfig;
use sources::Sources;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use under_way::UnderWay;
use vmm::image::MappedImage;

/// Added to the plan's join latency: a host's word that it joined may be ahead of the switch.
const JOIN_MARGIN: Duration = Duration::from_millis(5);
/// How often images are looked at while they are sent.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Memory files.
pub(crate) fn run(args: &Send) -> Outcome {
    send(args, None)
}

/// `scatter clone`: VMs that are started while their memory arrives.
pub(crate) fn clone(args: &Clone) -> Outcome {
    send(&args.send, Some(args))
}

/// `launch`: VMs are to be started, and some captured before.
fn send(args: &Send, launch: Option<&Clone>) -> Outcome {
    let start = Instant::now();
    let mut plan = read_plan(&args.group)?;
    let stage = launch.map_or(Ok(None), Stage::prepare)?;
    if let Some(launch) = launch {
        super::capture::refresh(&mut plan, &args.group, &launch.from, &launch.capture)?;
    }
    super::stale::refuse(&plan, &args.group)?;
    let under_way = launch.map(|_| UnderWay::begin(&args.group)).transpose()?;
    let reach = Reach::of(args, &plan)?;
    let interrupt = interrupt::install().or_exit(Exit::System)?;
    let mut display = Display::new(&plan, args.json);
    let mut leave = match launch {
        Some(_) => None,
        None => leave::begin(args, &plan, &interrupt)?,
    };
    let mut sources = match &leave {
        Some(leave) => Sources::leaving(leave.images.clone()),
        None => sources::open(&plan, &args.group, launch)?,
    };
    sources.stage = stage;
    let mut guests = match &leave {
        Some(leave) => leave.guests.clone(),
        None => launch.map_or(Ok(Vec::new()), |args| clones::guests(&plan, args, &sources))?,
    };
    let threads = threads(args.threads);
    let Load { prepared, schedule, encode, rehearsals } =
        load(args, &plan, &reach, &mut sources, &mut guests, threads, &display)?;
    let settings = settings(args, &reach, &encode, threads);
    let prepare = start.elapsed();
    display.prepared(&prepared, &settings, prepare);
    if under_way.as_ref().is_some_and(UnderWay::look) {
        return Err(Failure::new(Exit::Interrupted, "cancelled before anything was sent"));
    }
    if interrupt.load(Ordering::Relaxed) {
        return Err(Failure::new(Exit::Interrupted, "interrupted before anything was sent"));
    }
    let working_sets = guests.iter().map(|guest| (guest.vm, guest.working_set.clone())).collect();
    let config = TransferConfig {
        name: plan.name.clone(),
        hosts: targets(&plan, &reach.addresses),
        identity: reach.identity,
        interface: reach.interface,
        options: SenderOptions { ttl: plan.multicast.ttl, ..SenderOptions::default() },
        multicast_port: plan.multicast.port,
        ipv6: reach.ipv6,
        session: session_config(args, &plan, reach.symbol),
        encode,
        threads,
        shared_faults: launch.is_some_and(|args| args.shared_faults == SharedFaults::Multicast),
        guests,
    };
    let mut sent = Sent::new(&plan, &prepared, &schedule, settings, prepare);
    sent.captures.clone_from(&sources.captures);
    (sent.rehearsals, sent.working_sets) = (rehearsals, working_sets);
    // What running VMs change goes elsewhere, and their images with the last of them.
    let watched = if leave.is_some() { &[][..] } else { &sources.images[..] };
    let others = Others { watched, leave: leave.take(), under_way, vouch: sources.standing.vouch() };
    let cancelled = transfer(&prepared, &schedule, config, others, &interrupt, &mut display, &mut sent)?;
    let changed = images::check_unchanged(watched).map_err(said_of_changes);
    let ended = std::mem::take(&mut sources.standing).end(&mut sent.captures);
    if let Some(args) = launch {
        clones::record(args, &plan, &sent)?;
    }
    let interrupted = interrupt.load(Ordering::Relaxed);
    let exit = finish(args, sent, changed.and(ended), interrupted, &mut display)?;
    Ok(if cancelled && exit != Exit::Done { Exit::Interrupted } else { exit })
}

/// What is sent, merged, and in which order and how.
struct Load {
    prepared: Arc<Prepared>,
    schedule: Schedule,
    encode: EncodePlan,
    rehearsals: Vec<RehearsalReport>,
}

/// Reads and merges all memory, and leaves out what hosts have already; VMs are rehearsed beside it, if they are to be.
fn load(
    args: &Send,
    plan: &Plan,
    reach: &Reach,
    sources: &mut Sources,
    guests: &mut [GuestInput],
    threads: usize,
    display: &Display,
) -> Outcome<Load> {
    let rehearsal = sources.stage.take().map(|stage| stage.begin(plan, guests, sources)).transpose()?;
    display.reading(&sources.images);
    let mut prepared = merge(vm_inputs(plan, &sources.images), threads, rehearsal.is_some());
    residents::leave_out(plan, &mut prepared, &reach.addresses, &reach.identity, threads, display)?;
    images::check_unchanged(&sources.images)?;
    sources.standing.check()?;
    let pages: Vec<&Arc<dyn PageSource>> = prepared.vms.iter().map(|vm| &vm.source).collect();
    let costs = images::encoding_costs(&prepared.index, &pages, Sample::Quick);
    let forced = if let EncodingChoice::Fixed(encoding) = args.encoding { Some(encoding) } else { None };
    let rate_bps = expected_rate(&args.rate.0, plan);
    let (encoding, ratio) = images::encoding_for(&costs, forced, rate_bps, threads);
    let mut schedule = schedule::schedule(plan, &reach.pool, &weights(&prepared, ratio), rate_bps);
    let rehearsals = rehearsal.map_or(Ok(Vec::new()), |rehearsal| rehearsal.end(guests))?;
    let working_sets: Vec<(VmId, &[u32])> =
        guests.iter().map(|guest| (VmId(guest.vm), guest.working_set.as_slice())).collect();
    schedule.put_first(&prepared.put_first(&working_sets));
    let encode = EncodePlan::new(encoding, ratio, reach.symbol);
    Ok(Load { prepared: Arc::new(prepared), schedule, encode, rehearsals })
}

/// Reads and merges. `yields`: a VM runs meanwhile for whose end hosts wait, so that it goes first.
fn merge(vms: Vec<VmInput>, threads: usize, yields: bool) -> Prepared {
    if !yields {
        return Prepared::new(vms, threads);
    }
    // On a thread of its own, as it is less urgent until it ends.
    let merged = std::thread::scope(|scope| {
        let merge = scope.spawn(|| {
            usage::priority::yield_to_guests();
            Prepared::new(vms, threads)
        });
        merge.join()
    });
    merged.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What is looked at while a transfer runs.
struct Others<'a> {
    /// Images that must not change.
    watched: &'a [Arc<MappedImage>],
    leave: Option<Leave>,
    under_way: Option<UnderWay>,
    /// Asked whether what is read in place is right.
    vouch: Option<Vouch>,
}

/// Runs the transfer; an image that changes meanwhile ends it. Whether it was cancelled.
fn transfer(
    prepared: &Arc<Prepared>,
    schedule: &Schedule,
    config: TransferConfig,
    others: Others<'_>,
    interrupt: &interrupt::Flag,
    display: &mut Display,
    sent: &mut Sent,
) -> Outcome<bool> {
    let mut transfer = Transfer::start(prepared, schedule, config).or_exit(Exit::System)?;
    let mut watch = None;
    if let Some(under_way) = &others.under_way {
        transfer.cancel_when(under_way.flag());
    }
    if let Some(vouch) = others.vouch {
        transfer.vouched_by(vouch);
    }
    if let Some(mut leave) = others.leave {
        watch = Some(leave.watch()?);
        transfer.depart(leave.departures, leave.journal, leave.pace, leave.cancel).or_exit(Exit::System)?;
    }
    sent.started_at = SystemTime::now();
    let mut watched = Duration::ZERO;
    let mut observe = |progress: &Progress| {
        display.progress(progress);
        if let Some(watch) = &watch {
            watch.look(&progress.departures);
        }
        if let Some(under_way) = &others.under_way {
            under_way.look();
        }
        if progress.elapsed >= watched + WATCH_EVERY {
            watched = progress.elapsed;
            sent.look_at_memory();
            if images::check_unchanged(others.watched).is_err() {
                interrupt.store(true, Ordering::Relaxed);
            }
        }
    };
    let outcome = transfer.run(interrupt, &mut observe).or_exit(Exit::System)?;
    sent.outcome = Some(outcome);
    Ok(others.under_way.is_some_and(|under_way| under_way.look()))
}

fn said_of_changes(failure: Failure) -> Failure {
    let error = failure.error.context(
        "a source changed while it was read, so what hosts have of it may be a mixture: discard it and send again",
    );
    Failure { exit: Exit::Input, error }
}

/// Reports, and says how it went by the exit code. `vouched`: whether what was read is right.
fn finish(
    args: &Send,
    sent: Sent,
    vouched: Outcome<()>,
    interrupted: bool,
    display: &mut Display,
) -> Outcome {
    let departures = sent.outcome.as_ref().map(|outcome| outcome.departures.clone()).unwrap_or_default();
    let report = sent.report(interrupted && vouched.is_ok());
    display.finish(&report);
    for path in &args.report {
        crate::report::write(&report, path)?;
    }
    if !departures.is_empty() {
        vouched?;
        return Ok(leave::verdict(&departures, interrupted));
    }
    report.clones.iter().for_each(clones::say_cancelled);
    vouched?;
    let hosts = verdict(&report, interrupted);
    Ok(report.clones.as_ref().map_or(hosts, |of| clones::verdict(of, hosts)))
}

fn verdict(report: &TransferReport, interrupted: bool) -> Exit {
    let complete = report.hosts.iter().filter(|host| host.is_complete()).count();
    match complete {
        count if count == report.hosts.len() => Exit::Done,
        _ if interrupted => Exit::Interrupted,
        0 => Exit::AllFailed,
        _ => Exit::SomeFailed,
    }
}

/// A number for each tenant if tenants are kept apart, else 0.
pub(crate) fn domains(strict: bool, tenants: &[Option<&str>]) -> Vec<u32> {
    let mut numbers: BTreeMap<Option<&str>, u32> = BTreeMap::new();
    let mut domains = Vec::with_capacity(tenants.len());
    for tenant in tenants {
        let next = u32::try_from(numbers.len()).expect("at most 65,535 VMs");
        domains.push(if strict { *numbers.entry(*tenant).or_insert(next) } else { 0 });
    }
    domains
}

fn vm_inputs(plan: &Plan, images: &[Arc<MappedImage>]) -> Vec<VmInput> {
    let tenants: Vec<Option<&str>> = plan.vms.iter().map(|vm| vm.tenant.as_deref()).collect();
    let domains = domains(plan.isolation == Isolation::Strict, &tenants);
    let hosts = plan.hosts_of_vms();
    let vms = plan.vms.iter().zip(images).zip(domains).zip(hosts);
    let input = |(((vm, image), domain), hosts): (
        ((&planner::plan::PlannedVm, &Arc<MappedImage>), u32),
        planner::HostSet,
    )| VmInput {
        name: vm.name.clone(),
        source: Arc::clone(image) as Arc<dyn PageSource>,
        file_len: image.info().file_len,
        hosts: hosts.iter().collect::<IdSet>(),
        domain,
    };
    vms.map(input).collect()
}

/// Encoded bytes to expect of each segment.
fn weights(prepared: &Prepared, ratio: f64) -> Vec<SegmentWeight> {
    let weight = |(index, segment): (usize, &sender::prepare::Segment)| SegmentWeight {
        hosts: schedule::host_set(&segment.hosts),
        bytes: prepared.expected_bytes(index, ratio),
    };
    prepared.segments.iter().enumerate().map(weight).collect()
}

fn targets(plan: &Plan, addresses: &[SocketAddr]) -> Vec<HostTarget> {
    let target = |(host, address): (&planner::inventory::Host, &SocketAddr)| HostTarget {
        name: host.name.clone(),
        address: *address,
    };
    plan.hosts.iter().zip(addresses).map(target).collect()
}

fn settings(args: &Send, reach: &Reach, encode: &EncodePlan, threads: usize) -> Settings {
    Settings {
        interface: reach.interface.name.clone(),
        mtu: reach.interface.mtu,
        symbol_bytes: reach.symbol,
        rate: rate_words(&args.rate.0),
        encoding: encode.encoding.to_string(),
        threads,
    }
}

fn session_config(args: &Send, plan: &Plan, symbol: u16) -> SessionConfig {
    let join_latency = Duration::from_millis(plan.multicast.join_latency_ms.into()) + JOIN_MARGIN;
    SessionConfig {
        window_bytes: args.window << 20,
        host_timeout: args.timeout,
        start_grace: args.grace,
        join_latency,
        prejoin: join_latency * 2 + JOIN_MARGIN * 2,
        memberships_max: usize::try_from(plan.multicast.memberships_max).unwrap_or(usize::MAX),
        ..SessionConfig::new(symbol, args.rate.0.clone())
    }
}

/// The rate to plan with, in bit/s: the one given, but no more than the source's link as the plan has it.
fn expected_rate(rate: &RateConfig, plan: &Plan) -> u64 {
    let link = u64::from(plan.source.rate_mbps) * 1_000_000;
    match rate {
        RateConfig::Fixed(bytes) => link.min(bytes * 8),
        RateConfig::Auto { min, max, .. } => link.clamp(min * 8, max.saturating_mul(8)),
    }
}

fn rate_words(rate: &RateConfig) -> String {
    let words = |bytes: u64| units::bit_rate(units::float(bytes) * 8.0);
    match rate {
        RateConfig::Fixed(bytes) => words(*bytes),
        RateConfig::Auto { min, init, max } => {
            format!("auto from {} ({} to {})", words(*init), words(*min), words(*max))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_merged_apart_only_under_strict_isolation() {
        let tenants = [Some("a"), None, Some("a"), Some("b")];
        assert_eq!(domains(true, &tenants), [0, 1, 0, 2]);
        assert_eq!(domains(false, &tenants), [0, 0, 0, 0]);
    }
}
