//! A block of bytes to and from source and repair symbols.
//!
//! A block of at most [`SYMBOLS_MAX`] source symbols goes out as it is; what got lost is repaired with
//! symbols of one of two schemes. [`Scheme::Cauchy`] is a Cauchy Reed–Solomon code of our own: any K of its
//! symbols decode, and few missing symbols cost little, but there are only [`CAUCHY_REPAIR_SYMBOLS`] repair
//! symbols. [`Scheme::RaptorQ`] (RFC 6330) has 2^24 symbols, and a cost that hardly depends on how many are
//! missing. Both are linear over the same GF(2^8), so symbols of both together decode a block too.
//!
//! The sender's entry type is [`Encoder`], the receiver's [`Collector`]; [`CostModel`] chooses how a
//! group of hosts is repaired.
//!
//! Non-goals: no authentication (a block's digest says whether it is right; a wrong symbol decodes to wrong
//! bytes), no I/O, no clock, no choice of the symbol size.
//!
//! ```
//! use fec::{BlockShape, Collector, Decode, Encoder, Scheme};
//! let block = [7; 1000];
//! let shape = BlockShape::for_len(1000, 64)?;
//! let mut encoder = Encoder::new(shape, &block)?;
//! let mut collector = Collector::new(shape);
//! for esi in 1..shape.symbols() {
//!     collector.slot(esi).expect("not marked yet").copy_from_slice(encoder.source(esi)?);
//!     collector.mark(esi);
//! }
//! assert_eq!(collector.try_decode(), Decode::NeedMore { symbols: 1 });
//! let mut repair = vec![0; shape.symbol_len()];
//! encoder.repair(Scheme::Cauchy, shape.symbols(), &mut repair)?;
//! collector.add_repair(Scheme::Cauchy, shape.symbols(), &repair)?;
//! assert_eq!(collector.try_decode(), Decode::Ready);
//! assert_eq!(collector.block(), block);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test data are small and known")
)]

mod collector;
mod combine;
mod cost;
mod encoder;
mod gf256;
mod lane;
mod measure;
mod raptor;
mod rows;
mod shape;
mod solve;

pub use collector::{Collector, Decode};
pub use cost::{CostModel, HostDeficit, RepairPlan};
pub use encoder::Encoder;
pub use shape::{
    BlockShape, CAUCHY_REPAIR_SYMBOLS, FecError, RAPTORQ_ESI_MAX, SYMBOLS_MAX, Scheme, ShapeError,
};
