//! What can be wrong with a stream, or with the VM that sends it.

/// Why a migration stream cannot be taken. Offsets in bytes from its start.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StreamError {
    /// The magic or version is missing.
    #[error("not a QEMU migration stream of version 3")]
    NotAStream,
    /// It ended before its end.
    #[error("the stream ends at offset {at}, within its {within}: the migration was cancelled or failed")]
    CutOff {
        /// Bytes that came.
        at: u64,
        /// The part that is incomplete.
        within: &'static str,
    },
    /// A field that no stream has.
    #[error("the stream's {what} at offset {at} is damaged")]
    Damaged {
        /// The field.
        what: &'static str,
        /// Where it stands.
        at: u64,
    },
    /// No configuration section.
    #[error("the stream has no configuration section (migration.send-configuration is off on the source)")]
    NoConfiguration,
    /// Guests with other pages than 4 KiB.
    #[error("the guest's pages are 2^{bits} bytes; only 2^12 is supported")]
    TargetPageBits {
        /// As found.
        bits: u32,
    },
    /// A capability that changes the stream's layout in a way that is not known.
    #[error("migration capability \"{name}\" is on and not supported: turn it off on the source")]
    Capability {
        /// QEMU's name for it.
        name: String,
    },
    /// A part of the configuration that is not known.
    #[error("configuration subsection \"{name}\" is not supported")]
    Configuration {
        /// As found.
        name: String,
    },
    /// A device other than RAM migrates while the VM runs, in a form only its own code knows.
    #[error(
        "device \"{name}\" sends its state while the VM runs, so this VM cannot be carried{}",
        hint(name)
    )]
    Iterable {
        /// The section's name.
        name: String,
    },
    /// Another version of section `ram` than 4.
    #[error("version {found} of section ram is not known")]
    RamVersion {
        /// As found.
        found: u32,
    },
    /// RAM records of a kind that is not known.
    #[error("RAM records with flags {flags:#x} at offset {at}{}", flag_hint(*flags))]
    Flags {
        /// As found.
        flags: u64,
        /// Where.
        at: u64,
    },
    /// A list of blocks that is damaged.
    #[error("RAM block \"{id}\" {what}")]
    Block {
        /// The block, as found.
        id: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A command that is not known.
    #[error("command {command} of {len} bytes at offset {at} is not known")]
    Command {
        /// As found.
        command: u16,
        /// Length of its data in bytes.
        len: usize,
        /// Where.
        at: u64,
    },
    /// More than a named limit allows.
    #[error("the stream's {what} are more than {max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit, in bytes or pieces.
        max: u64,
    },
}

fn hint(name: &str) -> &'static str {
    if name.contains("vfio") {
        ": detach the passed-through device"
    } else if name == "dirty-bitmap" {
        ": turn capability dirty-bitmaps off"
    } else {
        ""
    }
}

fn flag_hint(flags: u64) -> &'static str {
    match flags {
        f if f & 0x40 != 0 => ": turn capability xbzrle off",
        f if f & 0x80 != 0 => ": RDMA is not supported",
        f if f & 0x200 != 0 => ": turn capability multifd off",
        f if f & 0x100 != 0 => ": compressed pages are not supported",
        _ => " are not known",
    }
}
