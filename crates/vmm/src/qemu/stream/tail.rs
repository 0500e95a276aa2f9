//! What follows RAM: device sections without lengths, the end mark, a description.

use super::command::Command;
use super::error::StreamError;
use super::writer::write_command;
use super::{SECTION_DESCRIPTION, SECTION_EOF};

/// The parts of a tail, as they stand in it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Tail<'a> {
    /// Device sections, whole: what post-copy packs.
    pub devices: &'a [u8],
    /// The description, JSON; empty if the machine type writes none.
    pub description: &'a [u8],
}

/// The device sections of a post-copy package: what stands between LISTEN and RUN. `None` if it is no such package.
#[must_use]
pub fn package_devices(package: &[u8]) -> Option<&[u8]> {
    let command = |command: &Command| {
        let mut bytes = Vec::new();
        write_command(&mut bytes, command);
        bytes
    };
    let rest = package.strip_prefix(command(&Command::PostcopyListen).as_slice())?;
    let rest = rest.strip_suffix(command(&Command::PostcopyRun).as_slice())?;
    // QEMU asks for an answer before RUN. Device state does not end like this: it ends with a footer.
    let ping = command(&Command::Ping(0));
    match rest.split_last_chunk::<9>() {
        Some((devices, last)) if last[..5] == ping[..5] => Some(devices),
        _ => Some(rest),
    }
}

/// Splits what follows the end of RAM in a pre-copy stream.
///
/// The description is JSON without NUL bytes, so the *last* place where its head fits and its length reaches the
/// stream's end exactly is where it begins.
///
/// # Errors
///
/// [`StreamError::CutOff`] if neither a description nor a bare end mark ends the tail.
pub fn split_tail(tail: &[u8]) -> Result<Tail<'_>, StreamError> {
    let fits = |at: usize| {
        let (head, json) = tail[at..].split_first_chunk::<6>()?;
        let [SECTION_EOF, SECTION_DESCRIPTION, len @ ..] = *head else { return None };
        let whole = usize::try_from(u32::from_be_bytes(len)) == Ok(json.len());
        (whole && json.starts_with(b"{")).then_some(Tail { devices: &tail[..at], description: json })
    };
    // Backwards over JSON: it has no NUL, so the first NUL but those of the length's own bytes decides.
    let heads = (0..tail.len().saturating_sub(5)).rev().filter(|&at| tail[at] == SECTION_EOF);
    if let Some(found) = heads.take(8).find_map(fits) {
        return Ok(found);
    }
    match tail.split_last() {
        Some((&SECTION_EOF, devices)) => Ok(Tail { devices, description: &[] }),
        _ => Err(StreamError::CutOff { at: tail.len() as u64, within: "device state" }),
    }
}
