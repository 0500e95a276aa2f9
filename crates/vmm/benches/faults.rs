//! How many faults a page server's thread answers, and how fast, beside a bare loop of read, copy on the same descriptor
//! kind. `cargo bench -p vmm --bench faults`. Prints; compare the two, not the machine.

mod handlers;

use handlers::{Run, bare, served};
use std::sync::Arc;
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::uffd::Backing;

/// 256 MiB.
const PAGES: u32 = 65_536;
const RUNS: usize = 5;

fn filled() -> Arc<LazyImage> {
    let image = Arc::new(LazyImage::memfd("bench", PAGES).expect("a memfd"));
    for pfn in 0..PAGES {
        image.place_word(pfn, 1, u64::from(pfn) + 1, Origin::Block).expect("placed");
    }
    image
}

fn main() -> anyhow::Result<()> {
    let image = filled();
    println!("faults on {PAGES} pages, medians of {RUNS} runs");
    for clients in [1, 2, 4] {
        type Way<'a> = (&'a str, Box<dyn Fn() -> anyhow::Result<Run> + 'a>);
        let image = &image;
        let from_memory = move || {
            bare(PAGES, clients, |uffd, address, page| {
                uffd.copy(address, image.page(page).expect("here"));
            })
        };
        let ways: [Way<'_>; 4] = [
            ("bare handler", Box::new(from_memory)),
            ("page server, copy", Box::new(move || served(image, Backing::Anonymous, clients, 1))),
            // A fault brings the 16 pages of its window: what a guest is served with.
            ("page server, 16 around", Box::new(move || served(image, Backing::Anonymous, clients, 16))),
            // No userfault happens here: the pages are in the page cache, and the kernel maps them itself.
            ("private view, complete", Box::new(move || served(image, Backing::PrivateView, clients, 1))),
        ];
        for (name, way) in &ways {
            let mut runs = (0..RUNS).map(|_| way()).collect::<anyhow::Result<Vec<_>>>()?;
            runs.sort_by_key(|run| run.elapsed);
            let Run { elapsed, latencies, handler_cpu } = &runs[RUNS / 2];
            let rate = f64::from(PAGES) / elapsed.as_secs_f64();
            let per_cpu = f64::from(PAGES) / handler_cpu.as_secs_f64().max(1e-9);
            let per_cpu = if handler_cpu.is_zero() { "-".into() } else { format!("{per_cpu:.0}") };
            let [p50, p99] = [0.5, 0.99].map(|share| latencies.quantile(share).unwrap_or_default());
            println!(
                "{clients} clients  {name:24} {rate:9.0} pages/s  {per_cpu:>9} a CPU second of the handler  p50 {p50:?}  p99 {p99:?}"
            );
        }
    }
    Ok(())
}
