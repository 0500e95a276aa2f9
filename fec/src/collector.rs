//! The receiver's side of a block.

use crate::combine::combine;
use crate::cost;
use crate::raptor;
use crate::rows::{Row, row};
use crate::shape::{BlockShape, FecError, Scheme};
use crate::solve::{Solution, solve};

/// Repair symbols kept beyond the number missing, for the case that some are linearly dependent.
const SURPLUS: usize = 2;

/// What [`Collector::try_decode`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decode {
    /// At least this many more symbols are needed: source symbols that are missing, or repair symbols not
    /// seen before, of any scheme.
    NeedMore {
        /// Number of symbols, at least 1.
        symbols: u32,
    },
    /// The block is there; its digest says whether it is right.
    Ready,
}

/// Collects a block's symbols and decodes it.
///
/// Source symbols are written in place: [`Collector::slot`], then [`Collector::mark`]. Repair symbols are
/// copied ([`Collector::add_repair`]), at most as many as source symbols are missing and two more, so memory
/// is bounded by (2 K + 2) × T. Reusable: [`Collector::reset`] keeps the allocations.
///
/// A symbol with wrong bytes makes a wrong block. After a digest mismatch, [`Collector::discard_repair`]
/// keeps the source symbols received; where it says that this cannot help, [`Collector::reset`] starts anew.
#[derive(Debug)]
pub struct Collector {
    shape: BlockShape,
    /// K × T bytes. Slots of symbols that are not there hold anything.
    block: Vec<u8>,
    /// Source symbols received: bit i for symbol i.
    received: u128,
    /// Source symbols computed from repair symbols; disjoint from `received`.
    decoded: u128,
    /// T bytes for each of `repair_ids`.
    repairs: Vec<u8>,
    repair_ids: Vec<(Scheme, u32)>,
    /// The block came out wrong once.
    doubted: bool,
}

impl Collector {
    /// An empty collector for a block of this shape.
    #[must_use]
    pub fn new(shape: BlockShape) -> Self {
        Self {
            shape,
            block: vec![0; shape.padded_len()],
            received: 0,
            decoded: 0,
            repairs: Vec::new(),
            repair_ids: Vec::new(),
            doubted: false,
        }
    }

    /// Forgets everything and starts with another block, in the same memory.
    pub fn reset(&mut self, shape: BlockShape) {
        self.shape = shape;
        self.block.resize(shape.padded_len(), 0);
        self.received = 0;
        self.decoded = 0;
        self.doubted = false;
        self.clear_repairs();
    }

    /// The block's shape.
    #[must_use]
    pub fn shape(&self) -> BlockShape {
        self.shape
    }

    /// Where source symbol `esi` is to be written: T bytes. `None` if there is no such symbol, or it is
    /// already there.
    pub fn slot(&mut self, esi: u32) -> Option<&mut [u8]> {
        if esi >= self.shape.symbols() || self.missing_bitmap() >> esi & 1 == 0 {
            return None;
        }
        self.block.chunks_exact_mut(self.shape.symbol_len()).nth(esi as usize)
    }

    /// Takes what was written to the slot of `esi` as the source symbol. Whether it is new; nothing happens
    /// if [`Collector::slot`] would give `None`.
    pub fn mark(&mut self, esi: u32) -> bool {
        if self.slot(esi).is_none() {
            return false;
        }
        self.received |= 1 << esi;
        if esi == self.shape.symbols() - 1 {
            // Repair symbols are computed with zeros here, whatever came.
            self.block[self.shape.len as usize..].fill(0);
        }
        if self.missing_bitmap() == 0 {
            self.clear_repairs();
        }
        true
    }

    /// Keeps a repair symbol. `Ok(false)` if it is held already or not needed.
    ///
    /// # Errors
    /// [`FecError::Length`] if it has not T bytes, [`FecError::Esi`] if the scheme has no such symbol.
    pub fn add_repair(&mut self, scheme: Scheme, esi: u32, symbol: &[u8]) -> Result<bool, FecError> {
        self.shape.check_symbol_len(symbol.len())?;
        self.shape.check_repair_esi(scheme, esi)?;
        let missing = self.missing_bitmap().count_ones() as usize;
        if missing == 0
            || self.repair_ids.len() >= missing + SURPLUS
            || self.repair_ids.contains(&(scheme, esi))
        {
            return Ok(false);
        }
        self.repair_ids.push((scheme, esi));
        self.repairs.extend_from_slice(symbol);
        Ok(true)
    }

    /// Bit i is set if source symbol i is missing; 0 once the block is ready.
    #[must_use]
    pub fn missing_bitmap(&self) -> u128 {
        self.shape.all_symbols() & !self.received & !self.decoded
    }

    /// Repair symbols held: RaptorQ, Cauchy.
    #[must_use]
    pub fn repair_counts(&self) -> (u32, u32) {
        self.repair_ids.iter().fold((0, 0), |(raptorq, cauchy), (scheme, _)| match scheme {
            Scheme::RaptorQ => (raptorq + 1, cauchy),
            Scheme::Cauchy => (raptorq, cauchy + 1),
        })
    }

    /// Whether every source symbol was received, so that nothing had to be computed.
    #[must_use]
    pub fn is_complete_sources(&self) -> bool {
        self.received == self.shape.all_symbols()
    }

    /// Whether the block is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.missing_bitmap() == 0
    }

    /// Computes what is missing, if what is held suffices. Costs next to nothing if it cannot suffice.
    pub fn try_decode(&mut self) -> Decode {
        let missing = self.missing_bitmap();
        let needed = missing.count_ones() as usize;
        if needed == 0 {
            return Decode::Ready;
        }
        if self.repair_ids.len() < needed {
            return need_more(needed - self.repair_ids.len());
        }
        let rows: Vec<Row> =
            self.repair_ids.iter().map(|&(scheme, esi)| row(&self.shape, scheme, esi)).collect();
        match solve(self.shape.count(), missing, &rows) {
            Ok(solution) => self.compute_missing(missing, &solution),
            Err(independent) => {
                self.keep_repairs(&independent);
                return need_more(needed - independent.len());
            }
        }
        self.decoded = missing;
        self.clear_repairs();
        Decode::Ready
    }

    /// The block: its `len` bytes once it is ready, empty before.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        if self.is_ready() { &self.block[..self.shape.len as usize] } else { &[] }
    }

    /// The block as [`Collector::block`] gives it.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        let len = self.block().len();
        self.block.truncate(len);
        self.block
    }

    /// Forgets repair symbols and what was computed from them, for the block came out wrong; source symbols
    /// received stay.
    ///
    /// `false` if that cannot help and only [`Collector::reset`] does: nothing was computed, or this is not the
    /// first time, so that a source symbol must be wrong or wrong ones keep coming.
    pub fn discard_repair(&mut self) -> bool {
        let may_help = self.decoded != 0 && !self.doubted;
        self.doubted = true;
        self.decoded = 0;
        self.clear_repairs();
        may_help
    }

    fn clear_repairs(&mut self) {
        self.repairs.clear();
        self.repair_ids.clear();
    }

    /// Keeps the repair symbols at these positions, which ascend.
    fn keep_repairs(&mut self, positions: &[usize]) {
        let size = self.shape.symbol_len();
        for (to, &from) in positions.iter().enumerate() {
            self.repair_ids.swap(to, from);
            self.repairs.copy_within(from * size..(from + 1) * size, to * size);
        }
        self.repair_ids.truncate(positions.len());
        self.repairs.truncate(positions.len() * size);
    }

    fn compute_missing(&mut self, missing: u128, solution: &Solution) {
        if self.compute_by_solver(missing, solution).is_some() {
            return;
        }
        let size = self.shape.symbol_len();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for (esi, symbol) in self.block.chunks_exact_mut(size).enumerate() {
            if missing >> esi & 1 == 1 {
                outputs.push(symbol);
            } else {
                inputs.push(&*symbol);
            }
        }
        inputs.extend(solution.used.iter().map(|at| &self.repairs[at * size..(at + 1) * size]));
        let rows: Vec<&[u8]> = solution.coefficients.iter().map(Vec::as_slice).collect();
        combine(&inputs, &rows, &mut outputs);
    }

    /// With RaptorQ's solver, where it is applicable and faster: many missing symbols and repair symbols of
    /// RaptorQ alone.
    fn compute_by_solver(&mut self, missing: u128, solution: &Solution) -> Option<()> {
        let raptorq = |&at: &usize| self.repair_ids[at].0 == Scheme::RaptorQ;
        if !cost::solver_decodes_faster(&self.shape, solution.used.len())
            || !solution.used.iter().all(raptorq)
        {
            return None;
        }
        let size = self.shape.symbol_len();
        let sources = (0..).zip(self.block.chunks_exact(size)).filter(|(esi, _)| missing >> esi & 1 == 0);
        let repairs = solution
            .used
            .iter()
            .map(|&at| (self.repair_ids[at].1, &self.repairs[at * size..(at + 1) * size]));
        let block = raptor::decode(&self.shape, sources.chain(repairs))?;
        for (esi, (to, from)) in self.block.chunks_exact_mut(size).zip(block.chunks_exact(size)).enumerate() {
            if missing >> esi & 1 == 1 {
                to.copy_from_slice(from);
            }
        }
        Some(())
    }
}

fn need_more(symbols: usize) -> Decode {
    Decode::NeedMore { symbols: u32::try_from(symbols).expect("at most 128 symbols are missing") }
}
