//! Time, memory and distance from the bound of whole plans, from a dozen VMs to ten thousand.
#![forbid(unsafe_code)]

mod fleet;

use std::time::Instant;

use planner::{Method, make_plan, place, place_by};

fn main() {
    let sizes: Vec<(usize, usize)> = std::env::args()
        .filter_map(|arg| {
            let (vms, hosts) = arg.split_once('x')?;
            Some((vms.parse().ok()?, hosts.parse().ok()?))
        })
        .collect();
    for (vms, hosts) in sizes {
        let (inventory, signatures) = fleet::fleet(vms, hosts, 1);
        println!("{vms}x{hosts}: {} signatures", signatures.weights.len());
        let start = Instant::now();
        let placement = place(&inventory, Some(&signatures), 1);
        let placement = match placement {
            Ok(placement) => placement,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        println!(
            "  place {:.2} s: {} cost {} bound {} gap {:.2} % alternatives {:?}",
            start.elapsed().as_secs_f64(),
            placement.method,
            placement.cost,
            placement.cost_min,
            (placement.cost as f64 / placement.cost_min as f64 - 1.0) * 100.0,
            placement.alternatives,
        );
        let _ = (Method::Greedy, place_by as fn(_, _, _, _) -> _);
        let start = Instant::now();
        let plan = make_plan(&inventory, Some(&signatures), 1);
        println!("  plan {:.2} s", start.elapsed().as_secs_f64());
        match plan {
            Ok(plan) => println!(
                "  segments {} groups {} joins {} {} kB",
                plan.schedule.len(),
                plan.groups.len(),
                plan.predicted.as_ref().map_or(0, |p| p.joins),
                plan.to_json().len() / 1000
            ),
            Err(error) => println!("{}", error.to_string().lines().take(5).collect::<Vec<_>>().join("\n")),
        }
    }
}
