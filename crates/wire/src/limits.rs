//! The named maxima of everything that a peer can make us hold.

/// A block's bytes (DESIGN.md §3).
pub const BLOCK_BYTES_MAX: u32 = 1 << 20;
/// A control frame's bytes: a whole block in a catch-up message, and room for its header.
pub const FRAME_BYTES_MAX: u32 = BLOCK_BYTES_MAX + 4096;
/// A symbol's bytes: a jumbo datagram's payload, rounded to the 8 bytes that FEC aligns to.
pub const SYMBOL_BYTES_MAX: u16 = 8920;
/// Virtual machines in one offer.
pub const VMS_MAX: usize = 4096;
/// Bytes of a VM's, host's or transfer's name: as long as a host's name can be (RFC 1035 §2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a reason in words.
pub const REASON_BYTES_MAX: usize = 1024;
/// Blocks announced in one message.
pub const ANNOUNCED_MAX: usize = 1024;
/// Digests of held blocks in one message.
pub const DIGESTS_MAX: usize = 16 * 1024;
/// Deficits in one report.
pub const DEFICITS_MAX: usize = 4096;
/// Ranges of blocks in one message.
pub const RANGES_MAX: usize = 4096;
/// Blocks that all ranges of one message name together: what a peer can make us go through.
pub const RANGED_BLOCKS_MAX: usize = 1 << 22;
/// Blocks of a session, terabytes of memory: ids are below it, which bounds a set of them to 2 MiB.
pub const BLOCKS_MAX: u64 = 1 << 24;
/// Bytes of a guest's fingerprint: what its hypervisor is, CPU features and RAM blocks included.
pub const FINGERPRINT_BYTES_MAX: usize = 16 << 10;
/// Bytes of what a hypervisor tells of a leaving VM while that still runs.
pub const OUTLINE_BYTES_MAX: usize = 64 << 10;
/// Ranges of stale pages in a message.
pub const STALE_RANGES_MAX: usize = 16_384;
/// Attachments of a VM.
pub const ATTACHMENTS_MAX: usize = 8;
/// Bytes of an attachment, decompressed.
pub const ATTACHMENT_BYTES_MAX: usize = 16 << 20;
/// Bytes of an attachment in one message, compressed.
pub const ATTACHMENT_PART_BYTES_MAX: usize = 512 << 10;
/// Clones of one VM on one host.
pub const CLONES_MAX: usize = 1024;
/// Pages wanted in one message, and as many ahead of them.
pub const WANTED_MAX: usize = 1024;
/// Pages of a recorded working set: 4 GiB of memory.
pub const WORKING_SET_MAX: usize = 1 << 20;
/// Pages of a recorded working set in one message.
pub const FIRST_TOUCHED_MAX: usize = 1 << 16;
/// Other hosts of a transfer that a host is told of.
pub const PEERS_MAX: usize = 1024;
/// Sets of hosts that need the same blocks, as far as a host is told of them.
pub const CIRCLES_MAX: usize = 4096;
/// Blocks asked of a peer in one message.
pub const FETCHED_MAX: usize = 64;
