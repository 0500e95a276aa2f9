//! What can be wrong with a mapped-ram file.

/// Why a file is no mapped-ram image that can be carried. Offsets and lengths in bytes.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MappedRamError {
    /// The magic is missing.
    #[error("not a QEMU migration stream")]
    NotAStream,
    /// The file ends within a field.
    #[error("the file ends within the {what} at offset {at}")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// Another version of the stream than 3.
    #[error("version {found} of QEMU's stream is not known")]
    StreamVersion {
        /// As found.
        found: u32,
    },
    /// The stream does not begin with the configuration section; machines without one are not supported.
    #[error("section {found:#04x} stands where the configuration is expected")]
    NoConfiguration {
        /// The section's type.
        found: u8,
    },
    /// The machine type is empty, too long or no text.
    #[error("the machine type's name is damaged")]
    MachineName,
    /// A subsection of the configuration whose length is not known.
    #[error("configuration subsection \"{name}\" is not known")]
    UnknownConfiguration {
        /// As found.
        name: String,
    },
    /// Guests with other pages than 4 KiB.
    #[error("the guest's pages are 2^{found} bytes; only 2^12 is supported")]
    TargetPageBits {
        /// As found.
        found: u32,
    },
    /// More capabilities than QEMU has.
    #[error("{found} capabilities are too many")]
    TooManyCapabilities {
        /// As found.
        found: u32,
    },
    /// A capability that may change the layout.
    #[error("the stream needs capability \"{name}\", which is not supported")]
    UnknownCapability {
        /// As found.
        name: String,
    },
    /// A stream of the ordinary kind, whose pages are not aligned.
    #[error("a QEMU stream without capability mapped-ram (format raw carries it as mere bytes)")]
    NotMappedRam,
    /// Something else than RAM comes first: another device that migrates while the VM runs.
    #[error("section {kind:#04x} \"{name}\" stands where the start of RAM is expected")]
    NotRamFirst {
        /// The section's type.
        kind: u8,
        /// Its name, empty for a section that has none.
        name: String,
    },
    /// Another version of section `ram` than 4.
    #[error("version {found} of section ram is not known")]
    RamVersion {
        /// As found.
        found: u32,
    },
    /// The RAM section does not begin with the list of blocks.
    #[error("record {record:#x} stands where the list of RAM blocks is expected")]
    NoBlockList {
        /// As found.
        record: u64,
    },
    /// More than 1024 blocks.
    #[error("too many RAM blocks")]
    TooManyBlocks,
    /// A name that is empty, no UTF-8, or has control characters.
    #[error("the RAM block's name at offset {at} is damaged")]
    BlockName {
        /// Where it stands.
        at: u64,
    },
    /// Two blocks of one name.
    #[error("RAM block {id} is there twice")]
    DuplicateBlock {
        /// The block.
        id: String,
    },
    /// The blocks are longer than the list says.
    #[error("RAM block {id} is longer than the {left} bytes that the list has left")]
    BlockSum {
        /// The block.
        id: String,
        /// What the list's total leaves for it.
        left: u64,
    },
    /// A length that is no multiple of 4096.
    #[error("RAM block {id}: {len} bytes are no whole number of pages")]
    BlockLength {
        /// The block.
        id: String,
        /// As found.
        len: u64,
    },
    /// Another version of the mapped-ram header than 1.
    #[error("RAM block {id}: version {found} of the mapped-ram header is not known")]
    HeaderVersion {
        /// The block.
        id: String,
        /// As found.
        found: u32,
    },
    /// Pages of another size than 4096.
    #[error("RAM block {id}: pages of {found} bytes are not supported")]
    PageSize {
        /// The block.
        id: String,
        /// As found.
        found: u64,
    },
    /// Pages at no multiple of 4096.
    #[error("RAM block {id}: its pages at offset {offset} are not aligned")]
    Misaligned {
        /// The block.
        id: String,
        /// As found.
        offset: u64,
    },
    /// The memory was left where it is (`x-ignore-shared`), so the file alone is no image.
    #[error("RAM block {id} is not in the file: it was saved with x-ignore-shared")]
    BlockElsewhere {
        /// The block.
        id: String,
    },
    /// A bitmap or pages that reach beyond the end of the file.
    #[error(
        "RAM block {id}: its {what} at {offset} + {len} bytes are outside of the file of {file_len} bytes"
    )]
    OutsideFile {
        /// The block.
        id: String,
        /// "bitmap" or "pages".
        what: &'static str,
        /// As found.
        offset: u64,
        /// As found or computed.
        len: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// A bitmap or pages that begin before what stands in front of them ends.
    #[error("RAM block {id}: its {what} at offset {offset} overlap what ends at {earliest}")]
    Overlap {
        /// The block.
        id: String,
        /// "bitmap" or "pages".
        what: &'static str,
        /// As found.
        offset: u64,
        /// The first offset that would be free.
        earliest: u64,
    },
    /// A bitmap has bits for pages beyond the end of its block.
    #[error("RAM block {id}: its bitmap has more pages than the block")]
    BitmapBits {
        /// The block.
        id: String,
    },
    /// The list of blocks is not followed by the end of its section.
    #[error("the RAM section does not end after its blocks, at offset {at}")]
    EndOfList {
        /// Where its end is expected.
        at: u64,
    },
    /// No bitmap has a page.
    #[error(
        "no page is marked as present: the migration did not complete, or was made with background-snapshot, \
         which QEMU cannot restore from mapped-ram"
    )]
    NoPages,
    /// The end of the stream is missing.
    #[error("the device state is cut off")]
    CutOff,
}
