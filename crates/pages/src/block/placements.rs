//! The placement section: runs as columns of varints. Columns, because what stands in one (the same VM, the
//! count 1, small differences) compresses well.

use super::decode::{BlockError, BlockLimits};
use super::varint::{LEN_MAX, Reader, put, unzigzag, zigzag};
use super::{ContentRun, UniformPlacement};
use crate::page::{Pfn, UniformRun, VmId};

const VM_LEN_MAX: usize = 3;
const WORD_LEN_MAX: usize = 1 + size_of::<u64>();
/// Bytes that a content run takes at least and at most.
pub(super) const RUN_LEN: (usize, usize) = (4, VM_LEN_MAX + 3 * LEN_MAX);
/// Bytes that a uniform run takes at least and at most.
pub(super) const UNIFORM_LEN: (usize, usize) = (4, VM_LEN_MAX + 2 * LEN_MAX + WORD_LEN_MAX);

/// How a uniform run's word is written.
const WORD_ZERO: u8 = 0;
const WORD_AS_BEFORE: u8 = 1;
const WORD_GIVEN: u8 = 2;

/// Where the last run of each VM ended; runs are written as differences from there.
#[derive(Default)]
pub(super) struct Ends {
    of_vm: Vec<u32>,
    touched: Vec<u16>,
}

impl Ends {
    /// Forgets all, in time proportional to what was remembered.
    fn clear(&mut self) {
        for vm in self.touched.drain(..) {
            self.of_vm[usize::from(vm)] = 0;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.of_vm.capacity() * size_of::<u32>() + self.touched.capacity() * size_of::<u16>()
    }

    /// The end that is remembered for a VM, 0 at first, to be replaced by a later one.
    fn slot(&mut self, vm: VmId) -> &mut u32 {
        let at = usize::from(vm.0);
        if self.of_vm.len() <= at {
            self.of_vm.resize(at + 1, 0);
        }
        if self.of_vm[at] == 0 {
            // A VM may be noted more than once while its end is 0; that is harmless.
            self.touched.push(vm.0);
        }
        &mut self.of_vm[at]
    }

    /// The difference to be written for a run, whose end is then remembered.
    fn difference(&mut self, vm: VmId, first: Pfn, count: u32) -> u64 {
        let slot = self.slot(vm);
        let difference = i64::from(first.0) - i64::from(*slot);
        *slot = first.0 + count;
        zigzag(difference)
    }

    /// The inverse of [`difference`](Self::difference); `None` if the run would leave the range of pages.
    fn first(&mut self, vm: VmId, difference: u64, count: u32) -> Option<Pfn> {
        let slot = self.slot(vm);
        let first = u32::try_from(i64::from(*slot) + unzigzag(difference)).ok()?;
        *slot = first.checked_add(count)?;
        Some(Pfn(first))
    }
}

/// Writes the section.
///
/// # Panics
///
/// If a run is empty, leaves the contents or leaves the range of pages.
pub(super) fn write(
    runs: &[ContentRun],
    uniform: &[UniformPlacement],
    contents: usize,
    ends: &mut Ends,
    out: &mut Vec<u8>,
) {
    for run in runs {
        let end = u64::from(run.content) + u64::from(run.count);
        assert!(run.count > 0 && end <= contents as u64, "{run:?} is outside the contents");
        assert!(run.pfn.0.checked_add(run.count).is_some(), "{run:?} is outside the pages");
        put(out, u64::from(run.vm.0));
    }
    runs.iter().for_each(|run| put(out, u64::from(run.count)));
    let mut before = 0;
    for run in runs {
        put(out, zigzag(i64::from(run.content) - before));
        before = i64::from(run.content);
    }
    ends.clear();
    runs.iter().for_each(|run| put(out, ends.difference(run.vm, run.pfn, run.count)));

    for UniformPlacement { vm, run } in uniform {
        let inside = run.count > 0 && run.first.0.checked_add(run.count).is_some();
        assert!(inside, "{run:?} is outside the pages");
        put(out, u64::from(vm.0));
    }
    uniform.iter().for_each(|placement| put(out, u64::from(placement.run.count)));
    let mut before = 0;
    for UniformPlacement { run, .. } in uniform {
        match run.word {
            0 => out.push(WORD_ZERO),
            word if word == before => out.push(WORD_AS_BEFORE),
            word => {
                out.push(WORD_GIVEN);
                out.extend_from_slice(&word.to_le_bytes());
                before = word;
            }
        }
    }
    ends.clear();
    for UniformPlacement { vm, run } in uniform {
        put(out, ends.difference(*vm, run.first, run.count));
    }
}

/// What a section is expected to hold; the counts were checked against the limits.
pub(super) struct Expected {
    pub(super) runs: u32,
    pub(super) uniform: u32,
    pub(super) contents: u32,
}

type Sections = (Vec<ContentRun>, Vec<UniformPlacement>);

/// Reads the section and checks each run.
pub(super) fn read(
    bytes: &[u8],
    expected: &Expected,
    limits: &BlockLimits,
    ends: &mut Ends,
) -> Result<Sections, BlockError> {
    let mut reader = Reader::new(bytes);
    let runs = read_runs(&mut reader, expected, limits, ends)?;
    let uniform = read_uniform(&mut reader, expected.uniform, ends)?;
    if !reader.is_at_end() {
        return Err(BlockError::PlacementSyntax);
    }
    Ok((runs, uniform))
}

fn read_runs(
    reader: &mut Reader<'_>,
    expected: &Expected,
    limits: &BlockLimits,
    ends: &mut Ends,
) -> Result<Vec<ContentRun>, BlockError> {
    let mut runs = Vec::with_capacity(expected.runs as usize);
    for _ in 0..expected.runs {
        runs.push(ContentRun { vm: vm(reader)?, pfn: Pfn(0), content: 0, count: 0 });
    }
    let mut placements = 0u64;
    for run in &mut runs {
        run.count = count(reader)?;
        placements += u64::from(run.count);
    }
    if placements > limits.placements_max {
        return Err(BlockError::TooManyPlacements { found: placements, max: limits.placements_max });
    }
    let mut before = 0;
    for (index, run) in runs.iter_mut().enumerate() {
        let outside = || BlockError::RunOutsideContents { run: index, contents: expected.contents };
        before += unzigzag(number(reader)?);
        run.content = u32::try_from(before).map_err(|_| outside())?;
        if u64::from(run.content) + u64::from(run.count) > u64::from(expected.contents) {
            return Err(outside());
        }
    }
    ends.clear();
    for (index, run) in runs.iter_mut().enumerate() {
        run.pfn = ends
            .first(run.vm, number(reader)?, run.count)
            .ok_or(BlockError::RunOutsidePages { run: index, vm: run.vm })?;
    }
    Ok(runs)
}

fn read_uniform(
    reader: &mut Reader<'_>,
    expected: u32,
    ends: &mut Ends,
) -> Result<Vec<UniformPlacement>, BlockError> {
    let mut uniform = Vec::with_capacity(expected as usize);
    for _ in 0..expected {
        uniform.push(UniformPlacement { vm: vm(reader)?, run: UniformRun::default() });
    }
    for placement in &mut uniform {
        placement.run.count = count(reader)?;
    }
    let mut before = 0;
    for placement in &mut uniform {
        placement.run.word = match reader.byte() {
            Some(WORD_ZERO) => 0,
            // Neither says a second time what could be said shorter.
            Some(WORD_AS_BEFORE) if before != 0 => before,
            Some(WORD_GIVEN) => {
                let word = reader.chunk().map(u64::from_le_bytes).ok_or(BlockError::PlacementSyntax)?;
                if word == 0 || word == before {
                    return Err(BlockError::PlacementSyntax);
                }
                before = word;
                word
            }
            _ => return Err(BlockError::PlacementSyntax),
        };
    }
    ends.clear();
    for (index, UniformPlacement { vm, run }) in uniform.iter_mut().enumerate() {
        run.first = ends
            .first(*vm, number(reader)?, run.count)
            .ok_or(BlockError::UniformOutsidePages { run: index, vm: *vm })?;
    }
    Ok(uniform)
}

fn number(reader: &mut Reader<'_>) -> Result<u64, BlockError> {
    reader.number().ok_or(BlockError::PlacementSyntax)
}

fn vm(reader: &mut Reader<'_>) -> Result<VmId, BlockError> {
    u16::try_from(number(reader)?).map(VmId).map_err(|_| BlockError::PlacementSyntax)
}

fn count(reader: &mut Reader<'_>) -> Result<u32, BlockError> {
    match u32::try_from(number(reader)?) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(BlockError::PlacementSyntax),
    }
}
