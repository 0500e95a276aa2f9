//! The one pass over all pages: uniform runs and hash entries.

use super::entry::{Entry, entry};
use super::layout::Layout;
use super::{Hashes, Peak, heap_bytes};
use crate::page::{Pfn, UniformRun, VmId};
use crate::uniform::uniform_word;
use rayon::prelude::*;

/// Pages that a thread takes at once: 4 MiB, long enough to hide the hand-out, short enough to balance.
const TASK_PAGES: usize = 1024;

/// The uniform runs of all VMs, VM after VM.
pub(crate) struct Runs {
    runs: Vec<UniformRun>,
    /// Where each VM's runs begin, and at the end their number.
    starts: Vec<u32>,
}

impl Runs {
    pub(crate) fn of(&self, vm: VmId) -> &[UniformRun] {
        let at = usize::from(vm.0);
        &self.runs[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    pub(crate) fn all(&self) -> &[UniformRun] {
        &self.runs
    }

    pub(crate) fn bytes(&self) -> usize {
        heap_bytes(&self.runs) + heap_bytes(&self.starts)
    }
}

pub(crate) struct Scanned {
    /// An entry for each page that is not uniform, in the row's order.
    pub(crate) entries: Vec<Entry>,
    pub(crate) runs: Runs,
}

/// A stretch of one VM's pages, with room for an entry for each.
struct Task<'e> {
    vm: VmId,
    first: Pfn,
    out: &'e mut [Entry],
}

struct Done {
    vm: VmId,
    room: usize,
    used: usize,
    runs: Vec<UniformRun>,
}

pub(crate) fn scan(layout: &Layout<'_>, hashes: &Hashes, peak: &mut Peak) -> Scanned {
    let mut entries: Vec<Entry> = vec![[0; 5]; layout.starts.total() as usize];
    let mut tasks = tasks(layout, &mut entries);
    let done: Vec<Done> = tasks.par_iter_mut().map(|task| run(layout, hashes, task)).collect();
    let scratch = heap_bytes(&tasks) + heap_bytes(&done);
    drop(tasks);
    let run_bytes: usize = done.iter().map(|d| heap_bytes(&d.runs)).sum();
    peak.note(layout.starts.bytes() + heap_bytes(&entries) + scratch + run_bytes);

    // The room that uniform pages left is closed; then the room is given back before the runs are copied.
    let (mut from, mut to) = (0, 0);
    for d in &done {
        entries.copy_within(from..from + d.used, to);
        from += d.room;
        to += d.used;
    }
    entries.truncate(to);
    entries.shrink_to_fit();
    let runs = concat(layout, done);
    peak.note(layout.starts.bytes() + heap_bytes(&entries) + scratch + run_bytes + runs.bytes());
    Scanned { entries, runs }
}

fn tasks<'e>(layout: &Layout<'_>, mut room: &'e mut [Entry]) -> Vec<Task<'e>> {
    let vms = || (0..=u16::MAX).take(layout.starts.vms()).map(VmId);
    let pages = |vm| layout.starts.page_count(vm) as usize;
    let mut tasks = Vec::with_capacity(vms().map(|vm| pages(vm).div_ceil(TASK_PAGES)).sum());
    for vm in vms() {
        for first in (0..layout.starts.page_count(vm)).step_by(TASK_PAGES) {
            let len = TASK_PAGES.min(pages(vm) - first as usize);
            let out = room.split_off_mut(..len).expect("room for an entry for each page");
            tasks.push(Task { vm, first: Pfn(first), out });
        }
    }
    tasks
}

fn run(layout: &Layout<'_>, hashes: &Hashes, task: &mut Task<'_>) -> Done {
    let source = layout.sources[usize::from(task.vm.0)];
    let spread = (hashes.spread)(layout.domains[usize::from(task.vm.0)]);
    let row = layout.starts.join(task.vm, task.first);
    let mut runs: Vec<UniformRun> = Vec::new();
    let mut used = 0;
    for at in (0..).take(task.out.len()) {
        let pfn = Pfn(task.first.0 + at);
        let page = source.page(pfn);
        if let Some(word) = uniform_word(page) {
            append(&mut runs, 0, UniformRun { first: pfn, count: 1, word });
        } else {
            task.out[used] = entry((hashes.candidate)(page) ^ spread, row + at);
            used += 1;
        }
    }
    runs.shrink_to_fit();
    Done { vm: task.vm, room: task.out.len(), used, runs }
}

/// Appends a run, or lengthens the last one by it; the runs from `base` on are of the same VM.
fn append(runs: &mut Vec<UniformRun>, base: usize, run: UniformRun) {
    match runs[base..].last_mut() {
        Some(last) if last.word == run.word && last.first.0 + last.count == run.first.0 => {
            last.count += run.count;
        }
        _ => runs.push(run),
    }
}

/// The tasks' runs in one list; what the cut into tasks split is joined again.
fn concat(layout: &Layout<'_>, done: Vec<Done>) -> Runs {
    let mut runs: Vec<UniformRun> = Vec::with_capacity(done.iter().map(|d| d.runs.len()).sum());
    let mut starts = Vec::with_capacity(layout.starts.vms() + 1);
    let count = |runs: &Vec<UniformRun>| u32::try_from(runs.len()).expect("no more runs than pages");
    for d in done {
        // VMs without pages have no task.
        while starts.len() <= usize::from(d.vm.0) {
            starts.push(count(&runs));
        }
        let base = starts[usize::from(d.vm.0)] as usize;
        for run in d.runs {
            append(&mut runs, base, run);
        }
    }
    starts.resize(layout.starts.vms() + 1, count(&runs));
    Runs { runs, starts }
}
