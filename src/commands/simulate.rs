//! `scatter simulate`: a plan on a modelled network.

use crate::cli::args::Simulate as Args;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::read_plan;
use crate::units;
use planner::Plan;
use planner::simulate::{Model, Simulation, simulate};
use std::time::{Duration, Instant};

/// Links in the table; of more, those that are busiest.
const LINKS_SHOWN: usize = 24;

pub(crate) fn run(args: &Args) -> Outcome {
    let plan = read_plan(&args.plan)?;
    let model = model(args, &plan)?;
    let start = Instant::now();
    let simulation = simulate(&plan, &model).or_exit(Exit::Plan)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&simulation).or_exit(Exit::Internal)?);
    } else {
        print!("{}", text(&plan, &simulation, start.elapsed()));
    }
    Ok(Exit::Done)
}

fn model(args: &Args, plan: &Plan) -> Outcome<Model> {
    let mut model =
        Model { seed: args.seed, link_latency: Duration::from_micros(args.latency_us), ..Model::of(plan) };
    let index = |name: &str| {
        let at = (0u16..).zip(&plan.hosts).find(|(_, host)| host.name == name).map(|(at, _)| at);
        at.ok_or_else(|| Failure::new(Exit::Usage, format!("the plan has no host `{name}`")))
    };
    model.rate_bps = args.rate.unwrap_or(0);
    model.loss_ppm = args.loss.map_or(model.loss_ppm, |permille| permille * 1000);
    if let Some(ms) = args.join_latency_ms {
        model.join_latency = Duration::from_millis(ms);
        model.prejoin = model.join_latency * 2 + Duration::from_millis(10);
    }
    model.leave_tail = args.leave_tail_ms.map_or(model.leave_tail, Duration::from_millis);
    for (host, permille) in &args.host_loss {
        let ppm = u32::try_from(permille.saturating_mul(1000)).unwrap_or(u32::MAX);
        model.host_loss_ppm.insert(index(host)?, ppm);
    }
    for (host, rate) in &args.slow {
        model.slow_hosts.insert(index(host)?, *rate);
    }
    Ok(model)
}

fn text(plan: &Plan, simulation: &Simulation, took: Duration) -> String {
    let mut text = format!(
        "simulated {}: {} VMs to {} hosts, {} segments, seed {}; took {}\n\n",
        plan.name,
        plan.vms.len(),
        plan.hosts.len(),
        plan.schedule.len(),
        simulation.seed,
        units::time(took.as_secs_f64())
    );
    text += &links(simulation);
    text += &times(plan, simulation);
    text
}

fn links(simulation: &Simulation) -> String {
    let mut shown: Vec<usize> = (0..simulation.links.len()).collect();
    let busy = |at: usize| simulation.links[at].busy_us;
    shown.sort_by_key(|at| std::cmp::Reverse(busy(*at)));
    shown.truncate(LINKS_SHOWN);
    shown.sort_unstable();
    let wide = simulation.links.iter().map(|link| link.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:<12} {:<wide$} {:>12} {:>11} {:>11} {:>9} {:>8}\n",
        "link", "name", "rate", "carried", "foreseen", "by", "busy"
    );
    for at in &shown {
        let link = &simulation.links[*at];
        let off = match link.predicted_bytes {
            0 => "–".to_owned(),
            foreseen => {
                format!("{:+.1} %", (units::float(link.bytes) / units::float(foreseen) - 1.0) * 100.0)
            }
        };
        text += &format!(
            "{:<12} {:<wide$} {:>12} {:>11} {:>11} {:>9} {:>8}\n",
            link.kind.to_string(),
            link.name,
            units::bit_rate(units::float(link.rate_mbps) * 1e6),
            units::bytes(link.bytes),
            units::bytes(link.predicted_bytes),
            off,
            units::time(seconds(link.busy_us)),
        );
    }
    match simulation.links.len() - shown.len() {
        0 => text + "\n",
        more => text + &format!("and {more} links less busy\n\n"),
    }
}

fn times(plan: &Plan, simulation: &Simulation) -> String {
    let foreseen = |get: &dyn Fn(&planner::plan::Predicted) -> String| {
        plan.predicted.as_ref().map_or_else(|| "–".to_owned(), get)
    };
    let ms = |ms: u64| units::time(units::float(ms) / 1e3);
    let us = |us: u64| units::time(seconds(us));
    let mut text = format!("{:<34} {:>12} {:>12}\n", "", "simulated", "foreseen");
    let mut line = |what: &str, simulated: String, foreseen: String| {
        text += &format!("{what:<34} {simulated:>12} {foreseen:>12}\n");
    };
    let none = String::new;
    line("joins", simulation.joins.to_string(), foreseen(&|p| p.joins.to_string()));
    line("leaves", simulation.leaves.to_string(), foreseen(&|p| p.joins.to_string()));
    line("memberships of a host at once, most", simulation.memberships_peak.to_string(), none());
    line("waiting for joins", us(simulation.stall_us), foreseen(&|p| ms(p.stall_ms)));
    line("waiting for slower links or hosts", us(simulation.throttled_us), none());
    line("repair", units::bytes(simulation.repair_bytes), none());
    line("whole blocks by unicast", units::bytes(simulation.catch_up_bytes), none());
    line("unwanted bytes at hosts", units::bytes(simulation.unwanted_bytes), none());
    line("hosts done: half of them", us(simulation.done_p50_us), none());
    line("hosts done: 99 %", us(simulation.done_p99_us), none());
    line("hosts done: all", us(simulation.done_max_us), foreseen(&|p| ms(p.duration_ms)));
    line("  no schedule can do better than", none(), foreseen(&|p| ms(p.duration_ms_min)));
    line("source evicted", us(simulation.eviction_us), none());
    text
}

fn seconds(us: u64) -> f64 {
    units::float(us) / 1e6
}
