//! Time, memory and distance from the bound of whole plans, from a dozen VMs to ten thousand.
//!
//! `cargo bench -p planner --bench scale -- VMSxHOSTS... [--out FOLDER]` plans a seeded fleet of each size on one thread,
//! prints a table, and with `--out` writes `scale.csv` and `scale.svg` there. `--gap` tells where the distance from the
//! bound comes from.
#![forbid(unsafe_code)]

mod fleet;
mod gap;
mod picture;

use std::path::PathBuf;
use std::time::Instant;

use planner::{Method, make_plan, place, place_by};

/// One size, planned.
struct Row {
    vms: usize,
    hosts: usize,
    signatures: usize,
    place_s: f64,
    plan_s: f64,
    /// Most memory of the process so far, in MiB: sizes ascend.
    peak_mib: u64,
    method: String,
    cost: u64,
    bound: u64,
    greedy: Option<u64>,
    balanced: Option<u64>,
    random: Option<u64>,
    segments: usize,
    groups: usize,
    joins: u64,
    mode: String,
}

const SIZES: [(usize, usize); 6] = [(12, 4), (50, 10), (100, 20), (300, 40), (1_000, 100), (3_000, 300)];
const SEED: u64 = 1;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--gap") {
        return gap::run();
    }
    let named: Vec<(usize, usize)> = args
        .iter()
        .filter_map(|arg| {
            let (vms, hosts) = arg.split_once('x')?;
            Some((vms.parse().ok()?, hosts.parse().ok()?))
        })
        .collect();
    let sizes = if named.is_empty() { SIZES.to_vec() } else { named };
    println!("vms x hosts: place s, plan s, peak MiB, cost / bound; over it: greedy, balanced, random (%)");
    let rows: Vec<Row> = sizes.into_iter().map(|(vms, hosts)| measure(vms, hosts)).collect();
    let out = args.iter().position(|arg| arg == "--out").and_then(|at| args.get(at + 1)).map(PathBuf::from);
    if let Some(folder) = out {
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        std::fs::write(folder.join("scale.csv"), csv(&rows)).expect("the folder can be written");
        std::fs::write(folder.join("scale.svg"), picture::svg(&rows)).expect("the folder can be written");
    }
}

fn measure(vms: usize, hosts: usize) -> Row {
    let (inventory, signatures) = fleet::fleet(vms, hosts, SEED);
    let start = Instant::now();
    let placement = place(&inventory, Some(&signatures), SEED).expect("there is room");
    let place_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let plan = make_plan(&inventory, Some(&signatures), SEED).expect("there is room");
    let plan_s = start.elapsed().as_secs_f64();
    let peak_mib = peak_mib();
    let cost = |method| {
        place_by(method, &inventory, Some(&signatures), SEED).ok().flatten().map(|placement| placement.cost)
    };
    let predicted = plan.predicted.as_ref().expect("made plans predict");
    let row = Row {
        vms,
        hosts,
        signatures: signatures.weights.len(),
        place_s,
        plan_s,
        peak_mib,
        method: placement.method.to_string(),
        cost: placement.cost,
        bound: placement.cost_min,
        greedy: cost(Method::Greedy),
        balanced: cost(Method::Balanced),
        random: cost(Method::Random),
        segments: plan.schedule.len(),
        groups: plan.groups.len(),
        joins: predicted.joins,
        mode: predicted.mode.to_string(),
    };
    let over = |cost: Option<u64>| {
        cost.map_or("none found".to_owned(), |cost| format!("{:.1}", percent_over(cost, row.cost)))
    };
    println!(
        "{vms} x {hosts}: {place_s:.2} {plan_s:.2} {peak_mib} {:.1} % over the bound by {}; {} {} {}; {} segments, {} groups, {} joins, {}",
        percent_over(row.cost, row.bound),
        row.method,
        over(row.greedy),
        over(row.balanced),
        over(row.random),
        row.segments,
        row.groups,
        row.joins,
        row.mode
    );
    row
}

fn percent_over(cost: u64, least: u64) -> f64 {
    (cost as f64 / least as f64 - 1.0) * 100.0
}

/// From Linux's account of the process; 0 where there is none.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn csv(rows: &[Row]) -> String {
    let mut text = "vms,hosts,signatures,place_s,plan_s,peak_mib,method,cost_bytes,bound_bytes,greedy_bytes,balanced_bytes,random_bytes,segments,groups,joins,mode\n".to_owned();
    let cost = |cost: Option<u64>| cost.map_or(String::new(), |cost| cost.to_string());
    for row in rows {
        text += &format!(
            "{},{},{},{:.3},{:.3},{},{},{},{},{},{},{},{},{},{},{}\n",
            row.vms,
            row.hosts,
            row.signatures,
            row.place_s,
            row.plan_s,
            row.peak_mib,
            row.method,
            row.cost,
            row.bound,
            cost(row.greedy),
            cost(row.balanced),
            cost(row.random),
            row.segments,
            row.groups,
            row.joins,
            row.mode
        );
    }
    text
}
