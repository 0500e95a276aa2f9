//! A recorded working set: pages in the order in which a guest first touched them, and its small file beside a snapshot.
//!
//! ```text
//! magic   8  "VSWORKS\0"
//! version 4  1                    all numbers little-endian
//! pages   4  of the image it belongs to
//! count   4  of pages that follow
//! page    4  each, no two the same
//! digest 32  BLAKE3 of everything before
//! ```

const MAGIC: [u8; 8] = *b"VSWORKS\0";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 20;
const DIGEST_BYTES: usize = 32;

/// Why a working set's file is not taken. It is only advice: go on without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetError {
    /// Another kind of file, another version, cut, or changed.
    #[error("this is no working set of this version, or it is damaged")]
    Damaged,
    /// It was recorded on an image of another length.
    #[error("the working set belongs to an image of {found} pages, not of {image}")]
    Image {
        /// Pages of the image it was recorded on.
        found: u32,
        /// Pages of the image it is asked for.
        image: u32,
    },
    /// A page twice, or beyond the image.
    #[error("the working set names page {page} twice, or the image has no such page")]
    Page {
        /// It.
        page: u32,
    },
}

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkingSet {
    image_pages: u32,
    pages: Vec<u32>,
}

impl WorkingSet {
    /// The first touches among faults in their order, as [`ServedVm::touched`](super::ServedVm::touched) tells them. Pages beyond the image are left out.
    #[must_use]
    pub fn of(image_pages: u32, touched: &[u32]) -> Self {
        let mut seen = pages::Bitmap::new(image_pages);
        let pages = touched.iter().copied().filter(|&page| page < image_pages && seen.set(page)).collect();
        Self { image_pages, pages }
    }

    /// The pages in first-touch order, for [`Attachment::first`](super::Attachment::first).
    #[must_use]
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * self.pages.len() + DIGEST_BYTES);
        bytes.extend_from_slice(&MAGIC);
        // No two pages are the same, so there are fewer than 2^32.
        let count = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        for number in [VERSION, self.image_pages, count].iter().chain(&self.pages) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads a file's bytes, for an image of so many pages.
    ///
    /// # Errors
    ///
    /// [`WorkingSetError`].
    pub fn from_bytes(bytes: &[u8], image_pages: u32) -> Result<Self, WorkingSetError> {
        let damaged = WorkingSetError::Damaged;
        let body_len = bytes.len().checked_sub(DIGEST_BYTES).ok_or(damaged)?;
        let (body, digest) = bytes.split_at(body_len);
        if !body.starts_with(&MAGIC) || blake3::hash(body).as_bytes().as_slice() != digest {
            return Err(damaged);
        }
        let (words, rest) = body[MAGIC.len()..].as_chunks::<4>();
        let mut numbers = words.iter().map(|word| u32::from_le_bytes(*word));
        let (Some(VERSION), Some(found), Some(count), true) =
            (numbers.next(), numbers.next(), numbers.next(), rest.is_empty())
        else {
            return Err(damaged);
        };
        let pages: Vec<u32> = numbers.collect();
        if pages.len() != count as usize {
            return Err(damaged);
        }
        if found != image_pages {
            return Err(WorkingSetError::Image { found, image: image_pages });
        }
        let mut seen = pages::Bitmap::new(image_pages);
        match pages.iter().find(|page| **page >= image_pages || !seen.set(**page)) {
            Some(&page) => Err(WorkingSetError::Page { page }),
            None => Ok(Self { image_pages, pages }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_touches_come_back_in_their_order() {
        let set = WorkingSet::of(100, &[7, 3, 7, 200, 99, 3, 0]);
        assert_eq!(set.pages(), [7, 3, 99, 0]);
        let bytes = set.to_bytes();
        assert_eq!(WorkingSet::from_bytes(&bytes, 100), Ok(set));
        let other = WorkingSet::from_bytes(&bytes, 101);
        assert_eq!(other, Err(WorkingSetError::Image { found: 100, image: 101 }));
        let none = WorkingSet::of(5, &[]);
        assert_eq!(WorkingSet::from_bytes(&none.to_bytes(), 5), Ok(none));
    }

    #[test]
    fn damage_is_refused() {
        let bytes = WorkingSet::of(100, &[7, 3]).to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(WorkingSet::from_bytes(&damaged, 100).is_err(), "byte {at}");
            assert!(WorkingSet::from_bytes(&bytes[..at], 100).is_err(), "{at} bytes");
        }
        // Well sealed, and wrong all the same.
        let sealed = |pages: Vec<u32>| WorkingSet { image_pages: 100, pages }.to_bytes();
        let twice = WorkingSet::from_bytes(&sealed(vec![7, 7]), 100);
        assert_eq!(twice, Err(WorkingSetError::Page { page: 7 }));
        let beyond = WorkingSet::from_bytes(&sealed(vec![100]), 100);
        assert_eq!(beyond, Err(WorkingSetError::Page { page: 100 }));
    }
}
