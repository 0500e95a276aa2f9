//! Pages that are one 64-bit word repeated: zero pages above all, and fill patterns.

use crate::page::{PAGE_SIZE, Page};

const WORD: usize = 8;

/// `Some(word)` if the page is `word` repeated; the word is read as little-endian on every machine.
///
/// Most pages are told apart by their first bytes, so the check costs nothing where it fails.
#[must_use]
pub fn uniform_word(page: &Page) -> Option<u64> {
    // A page is one word repeated exactly if each byte equals the byte eight further on. Said this way it
    // is one comparison of two (overlapping) slices, for which the C library picks the widest vectors that
    // the processor has at run time.
    if page[..PAGE_SIZE - WORD] != page[WORD..] {
        return None;
    }
    page.first_chunk().map(|word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(word: u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        for chunk in page.chunks_exact_mut(WORD) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    #[test]
    fn zero_and_pattern_pages_are_uniform() {
        assert_eq!(uniform_word(&[0; PAGE_SIZE]), Some(0));
        assert_eq!(uniform_word(&[0xff; PAGE_SIZE]), Some(u64::MAX));
        let mut page = filled(0x0102_0304_0506_0708);
        assert_eq!(page[0], 8);
        assert_eq!(uniform_word(&page), Some(0x0102_0304_0506_0708));
        page[PAGE_SIZE - 1] ^= 1;
        assert_eq!(uniform_word(&page), None);
    }

    #[test]
    fn a_single_changed_byte_anywhere_is_noticed() {
        let mut page = filled(0xdead_beef_0000_0001);
        for at in 0..PAGE_SIZE {
            page[at] ^= 0x80;
            assert_eq!(uniform_word(&page), None, "byte {at}");
            page[at] ^= 0x80;
        }
    }

    #[test]
    fn a_period_longer_than_a_word_is_not_uniform() {
        let mut page = filled(7);
        for pair in page.chunks_exact_mut(2 * WORD) {
            pair[WORD] = 8;
        }
        assert_eq!(uniform_word(&page), None);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(word: u64, at in 0..PAGE_SIZE, flip: u8) {
            let mut page = filled(word);
            page[at] ^= flip;
            let words: Vec<u64> = page
                .chunks_exact(WORD)
                .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
                .collect();
            let expected = words.iter().all(|w| *w == words[0]).then_some(words[0]);
            prop_assert_eq!(uniform_word(&page), expected);
        }
    }
}
