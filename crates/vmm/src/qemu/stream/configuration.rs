//! The head of a stream: magic, machine type, what changes its layout.

use super::cursor::{Cursor, lossy, name};
use super::error::StreamError;
use super::{MAGIC, SECTION_CONFIGURATION, SECTION_SUBSECTION};

/// Most capabilities that a stream lists; QEMU 10.0 lists at most two.
const CAPABILITIES_MAX: u32 = 64;

/// What a stream says about its source at its very beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// The machine type, as `pc-q35-10.0`.
    pub machine: String,
    /// Capabilities that change the stream's layout.
    pub capabilities: Vec<String>,
}

/// The head at `cursor`; `None` if it has not come whole, with the byte that follows it.
pub(super) fn configuration(cursor: &mut Cursor<'_>) -> Result<Option<Configuration>, StreamError> {
    let Some(magic) = cursor.array::<8>() else {
        let fits = MAGIC.starts_with(cursor.rest());
        return if fits { Ok(None) } else { Err(StreamError::NotAStream) };
    };
    if *magic != MAGIC {
        return Err(StreamError::NotAStream);
    }
    let Some(kind) = cursor.u8() else { return Ok(None) };
    if kind != SECTION_CONFIGURATION {
        return Err(StreamError::NoConfiguration);
    }
    let damaged = |what, at: usize| StreamError::Damaged { what, at: at as u64 };
    let at = cursor.at();
    let Some(len) = cursor.u32() else { return Ok(None) };
    if len == 0 || len > 255 {
        return Err(damaged("machine type", at));
    }
    let Some(machine) = cursor.take(len as usize) else { return Ok(None) };
    let machine = name(machine).ok_or_else(|| damaged("machine type", at))?.to_owned();
    let mut capabilities = Vec::new();
    loop {
        // What follows the configuration is no subsection; its first byte must be seen.
        match cursor.rest().first() {
            None => return Ok(None),
            Some(&SECTION_SUBSECTION) => {}
            Some(_) => return Ok(Some(Configuration { machine, capabilities })),
        }
        if subsection(cursor, &mut capabilities)?.is_none() {
            return Ok(None);
        }
    }
}

fn subsection(cursor: &mut Cursor<'_>, capabilities: &mut Vec<String>) -> Result<Option<()>, StreamError> {
    let (Some(_), Some(id)) = (cursor.u8(), cursor.counted()) else { return Ok(None) };
    let Some(_version) = cursor.u32() else { return Ok(None) };
    match id {
        b"configuration/target-page-bits" => match cursor.u32() {
            None => return Ok(None),
            Some(12) => {}
            Some(bits) => return Err(StreamError::TargetPageBits { bits }),
        },
        b"configuration/uuid" => {
            if cursor.take(16).is_none() {
                return Ok(None);
            }
        }
        b"configuration/capabilities" => {
            let Some(count) = cursor.u32() else { return Ok(None) };
            if count > CAPABILITIES_MAX {
                return Err(StreamError::TooLarge { what: "capabilities", max: CAPABILITIES_MAX.into() });
            }
            for _ in 0..count {
                let Some(capability) = cursor.counted() else { return Ok(None) };
                // QEMU lists those that change what a destination must expect. mapped-ram is a layout for files.
                if capability != b"x-ignore-shared" {
                    return Err(StreamError::Capability { name: lossy(capability) });
                }
                capabilities.push(lossy(capability));
            }
        }
        _ => return Err(StreamError::Configuration { name: lossy(id) }),
    }
    Ok(Some(()))
}
