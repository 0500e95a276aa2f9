//! Where device sections that go ahead of the pages end: they have no lengths.

use super::command::Command;
use super::cursor::{Cursor, name};
use super::{
    FLAG_CONTINUE, FLAG_EOS, FLAG_PAGE, FLAG_ZERO, FLAGS, SECTION_COMMAND, SECTION_END, SECTION_FOOTER,
    SECTION_FULL, SECTION_PART,
};

/// Where the device sections at `input`'s start end: at the first footer of the section that is followed by a section
/// of RAM or a command. `None`: not to be seen yet.
pub(super) fn early_end(input: &[u8], ram: u32) -> Option<usize> {
    let mut cursor = Cursor::new(input);
    let (_kind, section) = (cursor.u8()?, cursor.u32()?);
    let footer: [u8; 5] = concat(SECTION_FOOTER, section);
    let body = cursor.at();
    let ends = input[body..].windows(5).enumerate().filter(|(_, bytes)| **bytes == footer);
    ends.map(|(at, _)| body + at + 5).find(|&end| follows(&input[end..], ram))
}

fn concat(kind: u8, section: u32) -> [u8; 5] {
    let [a, b, c, d] = section.to_be_bytes();
    [kind, a, b, c, d]
}

/// Whether what stands here can follow early device sections. False too while too little of it has come.
fn follows(bytes: &[u8], ram: u32) -> bool {
    let mut cursor = Cursor::new(bytes);
    match cursor.u8() {
        Some(SECTION_PART | SECTION_END) => {
            let section = cursor.u32();
            let record = cursor.u64().map(|head| head & FLAGS & !FLAG_CONTINUE);
            section == Some(ram) && matches!(record, Some(FLAG_ZERO | FLAG_PAGE | FLAG_EOS))
        }
        Some(SECTION_COMMAND) => {
            let (Some(number), Some(len)) = (cursor.u16(), cursor.u16()) else { return false };
            cursor.take(len.into()).is_some_and(|data| Command::decode(number, data).is_some())
        }
        Some(SECTION_FULL) => {
            let id = cursor.u32().and_then(|_| cursor.counted());
            id.is_some_and(|id| name(id).is_some() && id.is_ascii()) && cursor.array::<8>().is_some()
        }
        _ => false,
    }
}
