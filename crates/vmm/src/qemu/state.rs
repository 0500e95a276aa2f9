//! What a VM is beside its memory: [`DeviceState`], carried beside the pages, and [`Fingerprint`].

mod fingerprint;

pub use fingerprint::{Fingerprint, Mismatch, RamBlockRow};

use super::stream::{BLOCKS_MAX, Block, DEVICE_BYTES_MAX, EARLY_BYTES_MAX, PAGE_BYTES};
use serde::{Deserialize, Serialize};

/// Begins an encoded state; the last character is the version.
const MAGIC: &[u8; 8] = b"VMSQEMU1";
/// Most bytes of the JSON head.
const HEAD_BYTES_MAX: usize = 1 << 20;
const PREFIX_BYTES_MAX: usize = 64 << 10;

/// Why bytes are no device state.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StateError {
    /// Neither this version's nor another one's.
    #[error("this is no QEMU device state of version 1")]
    NotState,
    /// Lengths that do not fit.
    #[error("the device state's {0} is damaged or cut off")]
    Damaged(&'static str),
    /// What was offered is no fingerprint of a QEMU.
    #[error("the offer's fingerprint is none of a QEMU's VM")]
    Offer,
    /// The list of blocks contradicts itself.
    #[error("the device state's RAM block {0} is damaged")]
    Block(String),
}

/// All of a VM but its pages: opaque pieces of QEMU's stream, and what is needed to put them into another one.
///
/// Encoded as: 8 bytes `VMSQEMU1`, u32 big-endian length of a JSON head (section id, blocks, fingerprint, lengths of the
/// pieces), the head, then prefix, early, devices, description.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct DeviceState {
    /// Magic and configuration of the stream, without capabilities that its layout would depend on.
    pub prefix: Vec<u8>,
    /// The section id of RAM.
    pub section: u32,
    /// Device sections that come before the pages; mostly empty.
    pub early: Vec<u8>,
    /// The source's machine type announces the switch-over.
    pub switchover_start: bool,
    /// Device sections, whole.
    pub devices: Vec<u8>,
    /// QEMU's JSON description of the device sections; may be empty.
    pub description: Vec<u8>,
    /// RAM blocks in the image's order.
    pub blocks: Vec<Block>,
    /// The hypervisor that can run it.
    pub fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
struct Head {
    section: u32,
    switchover_start: bool,
    blocks: Vec<Block>,
    fingerprint: Fingerprint,
    /// Of prefix, early, devices, description, in bytes.
    lengths: [usize; 4],
}

impl DeviceState {
    /// Pages of the image, the gaps between blocks included.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.blocks.iter().map(|block| block.page_range().end).max().unwrap_or(0)
    }

    /// What hosts are told of this VM before anything is sent, for [`Fingerprint::of_offer`]: the fingerprint with the RAM
    /// blocks that travel, as JSON of some KiB.
    ///
    /// # Panics
    ///
    /// Never: names and numbers are JSON.
    #[must_use]
    pub fn offer(&self) -> String {
        let row = |block: &Block| RamBlockRow {
            id: block.id.clone(),
            page_size: block.page_size,
            used: block.len,
            max: block.len,
        };
        // What the source's QEMU could do beside is of no use elsewhere.
        let offer = Fingerprint {
            blocks: self.blocks.iter().map(row).collect(),
            capabilities: Vec::new(),
            ..self.fingerprint.clone()
        };
        serde_json::to_string(&offer).expect("names and numbers are JSON")
    }

    /// The state as bytes; see the type's text.
    ///
    /// # Panics
    ///
    /// Never: names and numbers are JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pieces = [&self.prefix, &self.early, &self.devices, &self.description];
        let head = serde_json::to_vec(&Head {
            section: self.section,
            switchover_start: self.switchover_start,
            blocks: self.blocks.clone(),
            fingerprint: self.fingerprint.clone(),
            lengths: pieces.map(Vec::len),
        })
        .expect("names and numbers are JSON");
        let len = u32::try_from(head.len()).expect("at most 1024 blocks");
        let mut out = [&MAGIC[..], &len.to_be_bytes(), &head].concat();
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// [`StateError`] for anything else; no allocation is longer than the bytes given.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(StateError::NotState)?;
        let (len, rest) = rest.split_first_chunk().ok_or(StateError::Damaged("head"))?;
        let len = u32::from_be_bytes(*len) as usize;
        if len > HEAD_BYTES_MAX || len > rest.len() {
            return Err(StateError::Damaged("head"));
        }
        let (head, mut rest) = rest.split_at(len);
        let head: Head = serde_json::from_slice(head).map_err(|_| StateError::Damaged("head"))?;
        let limits = [PREFIX_BYTES_MAX, EARLY_BYTES_MAX, DEVICE_BYTES_MAX, DEVICE_BYTES_MAX];
        let names = ["prefix", "early device state", "device state", "description"];
        let mut pieces = [const { Vec::new() }; 4];
        for (index, piece) in pieces.iter_mut().enumerate() {
            let len = head.lengths[index];
            if len > limits[index] || len > rest.len() {
                return Err(StateError::Damaged(names[index]));
            }
            let (bytes, after) = rest.split_at(len);
            *piece = bytes.to_vec();
            rest = after;
        }
        if !rest.is_empty() {
            return Err(StateError::Damaged("end"));
        }
        check_blocks(&head.blocks)?;
        let [prefix, early, devices, description] = pieces;
        Ok(Self {
            prefix,
            section: head.section,
            early,
            switchover_start: head.switchover_start,
            devices,
            description,
            blocks: head.blocks,
            fingerprint: head.fingerprint,
        })
    }
}

/// Names that a stream can carry, once each; pages that do not overlap, in ascending order.
fn check_blocks(blocks: &[Block]) -> Result<(), StateError> {
    let mut free = 0;
    if blocks.is_empty() || blocks.len() > BLOCKS_MAX {
        return Err(StateError::Damaged("list of RAM blocks"));
    }
    for (index, block) in blocks.iter().enumerate() {
        let named = !block.id.is_empty() && block.id.len() <= 255;
        let unique = blocks[..index].iter().all(|other| other.id != block.id);
        let pages = block.len.is_multiple_of(PAGE_BYTES).then(|| u32::try_from(block.len / PAGE_BYTES).ok());
        let end = pages.flatten().and_then(|pages| block.first_page.checked_add(pages));
        let sized = block.page_size.is_power_of_two() && block.page_size >= PAGE_BYTES;
        match end {
            Some(end) if named && unique && sized && block.len > 0 && block.first_page >= free => free = end,
            _ => return Err(StateError::Block(block.id.escape_debug().to_string())),
        }
    }
    Ok(())
}
