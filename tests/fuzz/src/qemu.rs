//! QEMU's stream, its return path, and the device state that travels beside pages.

use vmm::qemu::DeviceState;
use vmm::qemu::stream::{
    Block, BlockPlan, Event, INPUT_BYTES_MIN, Parser, ReturnMessage, StreamError, received_bitmap, split_tail,
};

/// What a stream gives does not depend on how it is cut, and lies within its blocks.
pub fn qemu_stream(bytes: &[u8]) {
    let Some((&size, stream)) = bytes.split_first() else { return };
    let whole = events(stream, usize::MAX);
    assert_eq!(whole, events(stream, usize::from(size) + 1));
}

/// Counts of events, and why it ended.
fn events(stream: &[u8], piece: usize) -> (u64, u64, usize, Option<StreamError>) {
    let (mut pages, mut sum, mut tail, mut end) = (0, 0u64, Vec::new(), 0);
    let mut parser = Parser::new(BlockPlan { huge: vec![("huge".into(), 2 << 20)], postcopy: false });
    let (mut buffer, mut error) = (Vec::new(), None);
    for chunk in stream.chunks(piece.min(stream.len()).max(1)) {
        buffer.extend_from_slice(chunk);
        let fed = parser.feed(&buffer, |event| {
            match event {
                Event::Blocks { blocks, .. } => {
                    assert!(blocks.iter().all(|block| block.len > 0 && block.len % 4096 == 0));
                    end = blocks.last().map_or(0, |block: &Block| block.page_range().end);
                }
                Event::Page(page, _) | Event::Zero(page) => {
                    assert!(page < end);
                    pages += 1;
                    sum = sum.wrapping_mul(31).wrapping_add(page.into());
                }
                Event::Tail(bytes) => tail.extend_from_slice(bytes),
                _ => {}
            }
            Ok::<_, StreamError>(())
        });
        match fed {
            Ok(used) => drop(buffer.drain(..used)),
            Err(failed) => {
                error = Some(failed);
                break;
            }
        }
        assert!(buffer.len() < INPUT_BYTES_MIN, "an item is never longer");
    }
    if let Ok(split) = split_tail(&tail) {
        assert!(split.devices.len() + split.description.len() < tail.len());
    }
    // Where an item is damaged, what came before it in the same piece counts in one case and not in the other.
    if error.is_some() { (0, 0, 0, None) } else { (pages, sum, tail.len(), error) }
}

/// A message of the return path that is taken is the same after another trip.
pub fn qemu_answer(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((message, len))) = ReturnMessage::decode(rest) {
        assert_eq!(message.encode(), rest[..len]);
        rest = &rest[len..];
    }
    if let Ok(Some((words, len))) = received_bitmap(rest, 200) {
        assert!(words.len() == 4 && len == 8 + 32 + 8);
    }
}

/// A state that is taken is the same after another trip, and its blocks do not overlap.
pub fn qemu_state(bytes: &[u8]) {
    let Ok(state) = DeviceState::decode(bytes) else { return };
    assert_eq!(DeviceState::decode(&state.encode()).as_ref(), Ok(&state));
    let mut end = 0;
    for block in &state.blocks {
        assert!(block.first_page >= end && block.pages() > 0);
        end = block.page_range().end;
    }
    assert_eq!(state.page_count(), end);
}
