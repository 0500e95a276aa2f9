//! From settled entries to numbered contents with their placements.

use super::entry::{Entry, lowest, page};
use super::layout::{Layout, NONE};
use super::{ContentId, Peak, heap_bytes};

/// Contents both ways: from a page of the row to its content, and from a content to its pages.
pub(crate) struct Contents {
    /// For each page of the row its content, or [`NONE`] if it is uniform.
    of_page: Vec<u32>,
    /// The pages of content 0, ascending, then those of content 1, ….
    placements: Vec<u32>,
    /// Where each content's pages begin, and at the end their number.
    starts: Vec<u32>,
}

impl Contents {
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.starts.len() - 1).expect("no more contents than pages")
    }

    pub(crate) fn placements(&self, id: ContentId) -> &[u32] {
        let at = id.0 as usize;
        &self.placements[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    pub(crate) fn placement_count(&self, id: ContentId) -> u32 {
        let at = id.0 as usize;
        self.starts[at + 1] - self.starts[at]
    }

    pub(crate) fn of_page(&self, g: u32) -> Option<ContentId> {
        let id = self.of_page[g as usize];
        (id != NONE).then_some(ContentId(id))
    }

    pub(crate) fn bytes(&self) -> usize {
        heap_bytes(&self.of_page) + heap_bytes(&self.placements) + heap_bytes(&self.starts)
    }
}

/// `held` bytes are in use beside what is seen here.
pub(crate) fn assemble(layout: &Layout<'_>, entries: Vec<Entry>, held: usize, peak: &mut Peak) -> Contents {
    let held = held + layout.starts.bytes();
    let mut of_page = vec![NONE; layout.starts.total() as usize];
    let mut content_count = 0;
    let placement_count = entries.len();
    for e in &entries {
        of_page[page(e) as usize] = lowest(e);
        content_count += usize::from(page(e) == lowest(e));
    }
    peak.note(held + heap_bytes(&entries) + heap_bytes(&of_page));
    drop(entries);

    // A content's lowest page comes before its others, so one ascending pass numbers the contents and
    // replaces each lowest page by its content's number. Counts stand two places further on, so that they
    // turn first into starts and then, filled, into the starts of the next.
    let mut starts = vec![0u32; content_count + 2];
    let mut next = 0;
    for g in 0..layout.starts.total() {
        let first = of_page[g as usize];
        if first == NONE {
            continue;
        }
        let id = if first == g { next } else { of_page[first as usize] };
        next += u32::from(first == g);
        of_page[g as usize] = id;
        starts[id as usize + 2] += 1;
    }
    for at in 2..starts.len() {
        starts[at] += starts[at - 1];
    }
    let mut placements = vec![0; placement_count];
    for (g, id) in (0u32..).zip(&of_page) {
        if *id != NONE {
            let slot = &mut starts[*id as usize + 1];
            placements[*slot as usize] = g;
            *slot += 1;
        }
    }
    starts.pop();
    let contents = Contents { of_page, placements, starts };
    peak.note(held + contents.bytes());
    contents
}
