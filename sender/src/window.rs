//! The blocks in the window and the keys of the channels: from a [`Transmit`] to a batch of sealed datagrams.

use crate::session::{ChannelSpec, Symbols, Transmit};
use fec::{BlockShape, Encoder, FecError};
use std::collections::HashMap;
use wire::datagram::{Header, OVERHEAD_BYTES};
use wire::seal::Sealer;
use wire::{BlockId, ChannelId};

/// A batch of datagrams of one size, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The datagrams.
    pub bytes: &'a [u8],
    /// Bytes of each.
    pub datagram: usize,
}

/// Blocks that may still be asked for, and a sealer a channel.
pub struct Window {
    channels: Vec<(ChannelId, Sealer)>,
    /// Each computes nothing before its first repair symbol.
    resident: HashMap<u64, Encoder>,
    buffer: Vec<u8>,
    repair: Vec<u8>,
}

impl Window {
    /// An empty window; `channels` as in the session.
    #[must_use]
    pub fn new(channels: &[ChannelSpec]) -> Self {
        let channels = channels.iter().map(|spec| (spec.id, Sealer::new(&spec.secret))).collect();
        Self { channels, resident: HashMap::new(), buffer: Vec::new(), repair: Vec::new() }
    }

    /// Keeps a block until it is released.
    ///
    /// # Errors
    /// [`FecError`] if the block has not the shape's length.
    pub fn keep(&mut self, id: BlockId, bytes: Vec<u8>, shape: BlockShape) -> Result<(), FecError> {
        self.resident.insert(id.0, Encoder::from_vec(shape, bytes)?);
        Ok(())
    }

    /// Forgets a block.
    pub fn release(&mut self, id: BlockId) {
        self.resident.remove(&id.0);
    }

    /// A resident block's bytes.
    #[must_use]
    pub fn block(&self, id: BlockId) -> Option<&[u8]> {
        self.resident.get(&id.0).map(Encoder::block)
    }

    /// Seals the symbols; nothing if the block is not resident any more.
    ///
    /// # Errors
    /// [`FecError`] if the scheme has no such symbols.
    ///
    /// # Panics
    /// If the channel is not one of the session's.
    pub fn seal(&mut self, transmit: &Transmit) -> Result<Option<Batch<'_>>, FecError> {
        let Some(encoder) = self.resident.get_mut(&transmit.block.0) else { return Ok(None) };
        let shape = encoder.shape();
        let size = shape.symbol_len();
        let datagram = size + OVERHEAD_BYTES;
        let bytes = transmit.symbols.count() as usize * datagram;
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
        let (channel, sealer) = &mut self.channels[transmit.channel];
        let header = Header {
            scheme: 0,
            channel: *channel,
            block: transmit.block,
            esi: 0,
            block_len: shape.len,
            counter: 0,
        };
        let mut slots = self.buffer[..bytes].chunks_exact_mut(datagram);
        let mut seal = |scheme: u8, esi: u32, symbol: &[u8]| {
            let slot = slots.next().expect("one slot a symbol");
            sealer.seal(Header { scheme, esi, ..header }, symbol, slot);
        };
        match &transmit.symbols {
            Symbols::Source(range) => {
                for esi in range.clone() {
                    seal(0, esi, encoder.source(esi)?);
                }
            }
            Symbols::SourceAgain(list) => {
                for esi in list {
                    seal(0, *esi, encoder.source(*esi)?);
                }
            }
            Symbols::Repair(scheme, range) => {
                encoder.repair_range(*scheme, range.clone(), &mut self.repair)?;
                for (esi, symbol) in range.clone().zip(self.repair.chunks_exact(size)) {
                    seal(scheme.code(), esi, symbol);
                }
            }
        }
        Ok(Some(Batch { bytes: &self.buffer[..bytes], datagram }))
    }
}
