//! The sender's side of a block.

use crate::combine::combine;
use crate::cost;
use crate::raptor::Intermediate;
use crate::rows::row;
use crate::shape::{BlockShape, FecError, Scheme};
use std::ops::Range;

/// A block's source symbols, and its repair symbols on demand.
///
/// Lazy: nothing is computed before the first repair symbol. Few RaptorQ symbols are computed as Cauchy
/// symbols are, from the source symbols; beyond the number at which it pays, from intermediate symbols, which
/// are then kept (about twice the block).
#[derive(Debug)]
pub struct Encoder {
    shape: BlockShape,
    /// K × T bytes.
    block: Vec<u8>,
    intermediate: Option<Intermediate>,
    /// RaptorQ symbols computed without intermediate symbols.
    raptorq_rows: usize,
}

impl Encoder {
    /// An encoder for a copy of `block`.
    ///
    /// # Errors
    /// [`FecError::Length`] if the block has not the shape's length.
    pub fn new(shape: BlockShape, block: &[u8]) -> Result<Self, FecError> {
        let mut padded = Vec::with_capacity(shape.padded_len());
        padded.extend_from_slice(block);
        Self::from_vec(shape, padded)
    }

    /// An encoder for `block`, which is not copied if it has room for the padding.
    ///
    /// # Errors
    /// [`FecError::Length`] if the block has not the shape's length.
    pub fn from_vec(shape: BlockShape, mut block: Vec<u8>) -> Result<Self, FecError> {
        let expected = shape.len as usize;
        if block.len() != expected {
            return Err(FecError::Length { got: block.len(), expected });
        }
        block.resize(shape.padded_len(), 0);
        Ok(Self { shape, block, intermediate: None, raptorq_rows: 0 })
    }

    /// The block's shape.
    #[must_use]
    pub fn shape(&self) -> BlockShape {
        self.shape
    }

    /// The block's bytes, without padding.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        &self.block[..self.shape.len as usize]
    }

    /// Source symbol `esi`: T bytes, the last one's padding included.
    ///
    /// # Errors
    /// [`FecError::Esi`] if `esi` is not below K.
    pub fn source(&self, esi: u32) -> Result<&[u8], FecError> {
        let symbols = self.shape.symbols();
        if esi >= symbols {
            return Err(FecError::Esi { esi, first: 0, last: symbols - 1 });
        }
        let start = esi as usize * self.shape.symbol_len();
        Ok(&self.block[start..start + self.shape.symbol_len()])
    }

    /// Writes one repair symbol to the T bytes of `out`. Several at once cost less:
    /// [`Encoder::repair_range`].
    ///
    /// # Errors
    /// [`FecError::Esi`] if the scheme has no such repair symbol, [`FecError::Length`] if `out` has not T
    /// bytes.
    pub fn repair(&mut self, scheme: Scheme, esi: u32, out: &mut [u8]) -> Result<(), FecError> {
        self.shape.check_symbol_len(out.len())?;
        self.shape.check_repair_esi(scheme, esi)?;
        self.write(scheme, esi..esi + 1, out);
        Ok(())
    }

    /// Replaces `out` by the repair symbols `esis` in order, T bytes each.
    ///
    /// # Errors
    /// [`FecError::Esi`] if the scheme has not all of these repair symbols; `out` is empty then.
    pub fn repair_range(
        &mut self,
        scheme: Scheme,
        esis: Range<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), FecError> {
        out.clear();
        if esis.is_empty() {
            return Ok(());
        }
        self.shape.check_repair_esi(scheme, esis.start)?;
        self.shape.check_repair_esi(scheme, esis.end - 1)?;
        out.resize(esis.len() * self.shape.symbol_len(), 0);
        self.write(scheme, esis, out);
        Ok(())
    }

    /// `esis` are checked, `out` has room for exactly these symbols.
    fn write(&mut self, scheme: Scheme, esis: Range<u32>, out: &mut [u8]) {
        let shape = self.shape;
        let size = shape.symbol_len();
        if scheme == Scheme::RaptorQ
            && let Some(intermediate) = self.intermediate(esis.len())
        {
            for (esi, symbol) in esis.zip(out.chunks_exact_mut(size)) {
                intermediate.repair(&shape, esi, symbol);
            }
            return;
        }
        let symbols = shape.count();
        let inputs: Vec<&[u8]> = self.block.chunks_exact(size).collect();
        // A bounded number of rows at a time, whatever range is asked for.
        for (esis, out) in chunks(esis).zip(out.chunks_mut(ROWS_AT_ONCE as usize * size)) {
            let rows: Vec<_> = esis.map(|esi| row(&shape, scheme, esi)).collect();
            let rows: Vec<&[u8]> = rows.iter().map(|row| &row[..symbols]).collect();
            let mut outputs: Vec<&mut [u8]> = out.chunks_exact_mut(size).collect();
            combine(&inputs, &rows, &mut outputs);
        }
    }

    /// The intermediate symbols, if they are there or pay with `count` more symbols.
    fn intermediate(&mut self, count: usize) -> Option<&Intermediate> {
        if self.intermediate.is_none() {
            let rows = self.raptorq_rows.saturating_add(count);
            if !cost::solver_encodes_faster(&self.shape, rows) {
                self.raptorq_rows = rows;
                return None;
            }
            self.intermediate = Some(Intermediate::new(&self.shape, &self.block));
        }
        self.intermediate.as_ref()
    }
}

/// Repair symbols computed in one pass over the source symbols.
const ROWS_AT_ONCE: u32 = 128;

fn chunks(esis: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = esis.end;
    esis.step_by(ROWS_AT_ONCE as usize).map(move |start| start..end.min(start.saturating_add(ROWS_AT_ONCE)))
}
