//! What placing by pages is worth: an inventory's VMs placed in every way, in one table.
//!
//! ```sh
//! scatter plan inventory.json -o plan.json --save-signatures signatures.json
//! cargo run --release -p planner --example placements -- inventory.json signatures.json [OUT.csv]
//! ```
#![forbid(unsafe_code)]

use std::error::Error;

use planner::inventory::Inventory;
use planner::{Method, Signatures, place, place_by};

/// Random placements that the mean is of.
const RANDOM: u64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [inventory, signatures, rest @ ..] = &args[..] else {
        return Err("usage: placements INVENTORY SIGNATURES [OUT.csv]".into());
    };
    let inventory = Inventory::from_json(&std::fs::read_to_string(inventory)?)?;
    let signatures = Signatures::from_json(&std::fs::read_to_string(signatures)?)?;
    let ours = place(&inventory, Some(&signatures), 0)?;
    let cost = |method, seed| -> Result<Option<u64>, Box<dyn Error>> {
        Ok(place_by(method, &inventory, Some(&signatures), seed)?.map(|placement| placement.cost))
    };
    let mut random = Vec::new();
    for seed in 0..RANDOM {
        random.extend(cost(Method::Random, seed)?);
    }
    let mean = random.iter().sum::<u64>().checked_div(random.len() as u64);
    let rows = [
        ("lower bound".to_owned(), Some(ours.cost_min)),
        (format!("ours ({})", ours.method), Some(ours.cost)),
        ("local search alone".to_owned(), cost(Method::LocalSearch, 0)?),
        ("VMScatter's greedy".to_owned(), cost(Method::Greedy, 0)?),
        ("load balancing".to_owned(), cost(Method::Balanced, 0)?),
        (format!("random, mean of {}", random.len()), mean),
    ];
    let mut csv = "placement,bytes,over_ours_percent\n".to_owned();
    println!("{:<28} {:>16} {:>10}", "placement", "bytes on links", "over ours");
    for (name, bytes) in rows {
        let Some(bytes) = bytes else {
            println!("{name:<28} {:>16}", "none found");
            continue;
        };
        let over = (bytes as f64 / ours.cost as f64 - 1.0) * 100.0;
        println!("{name:<28} {bytes:>16} {over:>8.2} %");
        csv += &format!("{name},{bytes},{over:.2}\n");
    }
    if let [out, ..] = rest {
        std::fs::write(out, csv)?;
    }
    Ok(())
}
