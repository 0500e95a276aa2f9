//! How many faults a page server's thread answers, and how fast, beside a bare loop of read, copy on the same descriptor
//! kind. `cargo bench -p vmm --bench faults`. Prints; compare the two, not the machine.

mod handlers;

use handlers::{bare, served};
use std::sync::Arc;
use std::time::Duration;
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::uffd::{Backing, Histogram};

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
        type Way<'a> = (&'a str, Box<dyn Fn() -> anyhow::Result<(Duration, Histogram)> + 'a>);
        let image = &image;
        let from_memory = move || {
            bare(PAGES, clients, |uffd, address, page| {
                uffd.copy(address, image.page(page).expect("here"));
            })
        };
        let ways: [Way<'_>; 3] = [
            ("bare handler", Box::new(from_memory)),
            ("page server, copy", Box::new(move || served(image, Backing::Anonymous, clients))),
            // No userfault happens here: the pages are in the page cache, and the kernel maps them itself.
            ("private view, complete", Box::new(move || served(image, Backing::PrivateView, clients))),
        ];
        for (name, way) in &ways {
            let mut runs = (0..RUNS).map(|_| way()).collect::<anyhow::Result<Vec<_>>>()?;
            runs.sort_by_key(|(elapsed, _)| *elapsed);
            let (elapsed, latencies) = &runs[RUNS / 2];
            let rate = f64::from(PAGES) / elapsed.as_secs_f64();
            let [p50, p99] = [0.5, 0.99].map(|share| latencies.quantile(share).unwrap_or_default());
            println!("{clients} clients  {name:24} {rate:9.0} faults/s  p50 {p50:?}  p99 {p99:?}");
        }
    }
    Ok(())
}
