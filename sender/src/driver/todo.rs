//! Stripes that are still to be encoded, and which of them is next: guests that run decide, as what they touch next stands near to what they
//! touched last.

use super::encoders::scaled;
use super::{Schedule, Transfer, TransferConfig};
use crate::prepare::{Prepared, STRIPE_CONTENTS, STRIPE_CONTENTS_WITH_GUESTS, Stripe};
use pages::merge::PageIdentity;
use pages::{Pfn, VmId};
use std::collections::BTreeSet;
use std::ops::Range;
use wire::control::Want;

/// The stripes of a schedule's segments, which are named by their places there.
pub(super) struct Stripes {
    /// By stripe.
    segments: Vec<usize>,
    /// By segment.
    pub(super) todo: Vec<Todo>,
    /// Contents in each.
    contents: usize,
    /// Encoded bytes of each, about.
    pub(super) bytes: u64,
}

impl Stripes {
    /// The stripes, and what is kept of them.
    pub(super) fn cut(
        prepared: &Prepared,
        schedule: &Schedule,
        config: &TransferConfig,
    ) -> (Vec<Stripe>, Self) {
        let contents = if config.guests.is_empty() { STRIPE_CONTENTS } else { STRIPE_CONTENTS_WITH_GUESTS };
        let (mut all, mut segments, mut todo) = (Vec::new(), Vec::new(), Vec::new());
        for (position, scheduled) in schedule.segments.iter().enumerate() {
            let more = prepared.stripes_of(scheduled.segment, contents);
            todo.push(Todo::new(all.len()..all.len() + more.len()));
            segments.extend(std::iter::repeat_n(position, more.len()));
            all.extend(more);
        }
        let bytes = scaled((contents * pages::PAGE_SIZE) as u64, config.encode.ratio);
        (all, Self { segments, todo, contents, bytes })
    }

    /// The segment that a stripe is part of.
    pub(super) fn segment_of(&self, stripe: usize) -> usize {
        self.segments[stripe]
    }
}

/// Those of one segment.
pub(super) struct Todo {
    /// Its first stripe.
    first: usize,
    /// Not begun.
    rest: BTreeSet<usize>,
    /// Next is this one, or the first behind it that is not begun.
    focus: usize,
    /// Begun, and their blocks not handed in.
    under_way: usize,
}

impl Todo {
    fn new(stripes: Range<usize>) -> Self {
        Self { first: stripes.start, focus: stripes.start, rest: stripes.collect(), under_way: 0 }
    }

    /// Whether all are begun.
    pub(super) fn is_begun(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether the blocks of all were handed in.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty() && self.under_way == 0
    }

    /// From now on it goes on with this stripe of the segment and those behind it; then with those before.
    fn go_on_at(&mut self, place: usize) {
        self.focus = self.first + place;
    }

    /// Begins the next one.
    pub(super) fn begin(&mut self) -> Option<usize> {
        let next = self.rest.range(self.focus..).next().or_else(|| self.rest.first()).copied()?;
        self.rest.remove(&next);
        self.focus = next + 1;
        self.under_way += 1;
        Some(next)
    }

    /// The blocks of one that was begun are handed in.
    pub(super) fn end(&mut self) {
        self.under_way -= 1;
    }
}

impl Transfer {
    /// Guests wait for pages: bulk data go on there.
    pub(super) fn follow(&mut self, want: &Want) {
        let Some(page) = want.pages.last() else { return };
        let Some(PageIdentity::Content(id)) = self.prepared.index.identity(VmId(want.vm), Pfn(*page)) else {
            return;
        };
        let scheduled = self.schedule.segments.iter().zip(&mut self.stripes.todo);
        // Working sets stand in an order of their own.
        for (scheduled, todo) in scheduled.skip(self.schedule.first).filter(|(_, todo)| !todo.is_begun()) {
            if let Ok(at) = self.prepared.segments[scheduled.segment].contents.binary_search(&id) {
                todo.go_on_at(at / self.stripes.contents);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_go_in_their_order_or_from_where_guests_wait_and_each_once() {
        let mut todo = Todo::new(10..16);
        assert_eq!(todo.begin(), Some(10));
        todo.go_on_at(3);
        assert_eq!((todo.begin(), todo.begin()), (Some(13), Some(14)));
        // Begun already: what stands behind it.
        todo.go_on_at(3);
        assert_eq!(
            (todo.begin(), todo.begin(), todo.begin(), todo.begin()),
            (Some(15), Some(11), Some(12), None)
        );
        assert!(todo.is_begun() && !todo.is_done());
        (0..6).for_each(|_| todo.end());
        assert!(todo.is_done());
    }
}
