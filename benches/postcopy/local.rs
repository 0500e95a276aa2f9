//! Faults on pages that are here: a page server's thread beside a bare handler that reads a local file.

use crate::handlers::{Run, bare, served};
use crate::trace::PAGES;
use anyhow::Context;
use pages::PAGE_SIZE;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::uffd::Backing;

/// One run of one handler.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Local {
    pub(crate) handler: &'static str,
    /// Threads that fault.
    pub(crate) clients: usize,
    pub(crate) repetition: u32,
    pub(crate) faults_per_s: f64,
    /// For each second of CPU time of the handler's thread.
    pub(crate) faults_per_cpu_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

pub(crate) fn measure(repetition: u32) -> anyhow::Result<Vec<Local>> {
    let image = Arc::new(LazyImage::memfd("bench", PAGES)?);
    let mut file = tempfile::tempfile().context("no temporary file")?;
    for page in 0..PAGES {
        let bytes = crate::player::page_of(page);
        image.place(page, &bytes, Origin::Block)?;
        file.write_all(&bytes)?;
    }
    let mut samples = Vec::new();
    for clients in [1, 2] {
        for (handler, run) in [
            ("bare, reads a file", from_file(&file, clients)?),
            ("page server", served(&image, Backing::Anonymous, clients, 1)?),
        ] {
            let Run { elapsed, latencies, handler_cpu } = run;
            let us = |share| latencies.quantile(share).unwrap_or_default().as_secs_f64() * 1e6;
            let faults_per_s = f64::from(PAGES) / elapsed.as_secs_f64();
            samples.push(Local {
                handler,
                clients,
                repetition,
                faults_per_s,
                faults_per_cpu_s: f64::from(PAGES) / handler_cpu.as_secs_f64().max(1e-9),
                p50_us: us(0.5),
                p99_us: us(0.99),
            });
        }
    }
    Ok(samples)
}

/// A bare handler that reads each page from a local file.
fn from_file(file: &File, clients: usize) -> anyhow::Result<Run> {
    let mut bytes = [0; PAGE_SIZE];
    bare(PAGES, clients, |uffd, address, page| {
        file.read_exact_at(&mut bytes, u64::from(page) * PAGE_SIZE as u64).expect("within the file");
        uffd.copy(address, &bytes);
    })
}
