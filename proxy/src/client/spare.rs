//! Memory for the messages of the next statement. Those that a thread serves share it: a client that says nothing
//! has none to itself, and who comes next finds it in the processor's cache.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use crate::session::Segment;

/// So much is kept, for clients with something under way at the same time.
const KEPT: usize = 32;

thread_local! {
    #[expect(clippy::vec_box, reason = "they go from hand to hand")]
    static SPARE: RefCell<Vec<Box<Segment>>> = const { RefCell::new(Vec::new()) };
}

/// It is used no more.
pub(super) fn give(mut segment: Box<Segment>) {
    segment.clear();
    keep(segment);
}

fn keep(empty: Box<Segment>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(empty);
        }
    });
}

/// Messages gathered so far. Has memory from the first on.
#[derive(Default)]
pub(super) struct Gathering(Option<Box<Segment>>);

impl Gathering {
    /// What was gathered; the next comes into an empty one.
    pub(super) fn take(&mut self) -> Box<Segment> {
        self.0.take().unwrap_or_default()
    }

    /// Nothing comes for a while.
    pub(super) fn rest(&mut self) {
        if let Some(segment) = self.0.take_if(|segment| segment.is_empty()) {
            keep(segment);
        }
    }
}

impl Deref for Gathering {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        static NOTHING: LazyLock<Segment> = LazyLock::new(Segment::default);
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Gathering {
    fn deref_mut(&mut self) -> &mut Segment {
        self.0.get_or_insert_with(|| SPARE.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}
