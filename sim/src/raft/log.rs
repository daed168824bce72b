//! What is on disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgherd_core::cluster::Command;
use pgherd_core::defect::{Defect, planted};
use pgherd_core::quorum::Admission;

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Of the leader that wrote it.
    pub term: u64,
    /// What it says.
    pub payload: Payload,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first word.
    Blank,
    /// A command to the cluster's state.
    Command(Arc<Command>),
    /// Who votes: one group, or two while the members change.
    Members(Vec<BTreeSet<usize>>),
}

/// All that outlives a crash.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The newest term seen.
    pub term: u64,
    /// Who got the vote in it.
    pub voted: Option<usize>,
    /// The log; its first entry has index 1.
    pub log: Vec<Arc<Entry>>,
    /// What its word is worth, should its disk have been lost.
    pub admission: Admission,
}

impl Stored {
    /// Whether an entry of this term is here.
    pub fn has(&self, index: usize, term: u64) -> bool {
        index.checked_sub(1).and_then(|at| self.log.get(at)).is_some_and(|entry| entry.term == term)
    }

    /// Of a member that has lost its disk, with the number of its new store.
    pub fn lost(token: u64) -> Self {
        let forgets = planted(Defect::AmnesiaVotes);
        let admission = if forgets { Admission::Full } else { Admission::Probation(token) };
        Self { admission, ..Self::default() }
    }

    /// Of a member of a group that has just been formed.
    pub fn formed(voters: BTreeSet<usize>) -> Self {
        let first = Entry { term: 0, payload: Payload::Members(vec![voters]) };
        Self { term: 0, voted: None, log: vec![Arc::new(first)], admission: Admission::Full }
    }
}
