//! Checks of single fields against [`limits`].

use super::{BlockRange, ControlError};
use crate::limits;

pub(super) fn at_most(field: &'static str, value: usize, limit: usize) -> Result<(), ControlError> {
    if value <= limit {
        return Ok(());
    }
    Err(ControlError::Limit { field, value: value as u64, limit: limit as u64 })
}

pub(super) fn check_ranges(ranges: &[BlockRange]) -> Result<(), ControlError> {
    at_most("block ranges", ranges.len(), limits::RANGES_MAX)?;
    // Ranges may overlap, so their sum is bounded too.
    let blocks: usize = ranges.iter().map(|range| range.count as usize).sum();
    at_most("blocks in ranges", blocks, limits::RANGED_BLOCKS_MAX)?;
    ranges.iter().try_for_each(|range| check_ids(range.first, range.count as usize))
}

pub(super) fn check_ids(first: u64, count: usize) -> Result<(), ControlError> {
    let end = first.saturating_add(count as u64);
    if end <= limits::BLOCKS_MAX {
        return Ok(());
    }
    Err(ControlError::Limit { field: "block id", value: end, limit: limits::BLOCKS_MAX })
}

pub(super) fn check_block_len(len: u32) -> Result<(), ControlError> {
    at_most("block length", len as usize, limits::BLOCK_BYTES_MAX as usize)
}
