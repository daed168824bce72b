//! The end of a membership, as the node that leaves sees it.
//!
//! That it is to leave it reads in the log, while raft still feeds it; that it has left, the others tell it in answer to its
//! beats, since by then it is fed no more.

use pgherd_common::{NodeId, WallTime};

use super::Node;
use crate::beat::BeatAnswer;
use crate::observation::PostgresState;

/// What another agent's log says of this node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    /// How far that agent is.
    revision: u64,
    /// When this node was removed, if it was.
    removed: Option<WallTime>,
}

impl Node {
    /// Whether a node takes part, as far as is known here.
    pub(super) fn takes_part(&self, node: NodeId) -> bool {
        self.state.identity.is_none() || self.state.belongs(node)
    }

    /// The answer to a beat that renews nothing.
    pub(super) fn answer(&self, to: NodeId) -> BeatAnswer {
        BeatAnswer {
            lease: None,
            readmitted: self.state.readmitted.get(&to).copied(),
            revision: self.state.revision,
            removed: self.state.removal(to).map(|removed| removed.at),
        }
    }

    /// Another agent has said what it knows of this node. Who is further in the log is right.
    pub(super) fn told(&mut self, answer: &BeatAnswer) {
        if self.word.is_none_or(|word| word.revision <= answer.revision) {
            self.word = Some(Word { revision: answer.revision, removed: answer.removed });
        }
    }

    /// Another agent has let this node introduce itself, in a state of this revision.
    pub fn welcomed(&mut self, revision: u64) {
        if revision > 0 && self.word.is_none_or(|word| word.revision < revision) {
            self.word = Some(Word { revision, removed: None });
        }
    }

    /// When this node was removed, if it was.
    fn removed(&self) -> Option<WallTime> {
        let word = self.word.filter(|word| word.revision > self.state.revision || !self.is_in_log())?;
        word.removed
    }

    fn is_in_log(&self) -> bool {
        self.state.belongs(self.id())
    }

    /// Why this node is not to run PostgreSQL any more. For as long as acknowledged commits may rest on it, it goes on: a
    /// failover would need it.
    pub(super) fn farewell(&self) -> Option<&'static str> {
        let cover = &self.state.cover;
        let rested_on = cover.wanted.of.contains(&self.id()) || cover.promised.of.contains(&self.id());
        let goes_on = rested_on || self.state.change.is_some();
        let leaves = (self.state.is_leaving(self.id()) && !goes_on) || self.removed().is_some();
        (leaves && !self.is_primary()).then_some("this node is removed from the cluster (remove-node)")
    }

    /// When this node was removed, once nothing is left for its agent to do.
    pub fn has_left(&self) -> Option<WallTime> {
        let at = self.removed()?;
        let over = match self.own.as_ref().map(|own| &own.state) {
            // There may be one that nobody has looked at yet.
            None => self.setup.descriptor.postgres.is_none(),
            Some(PostgresState::Down(_) | PostgresState::Unusable(_)) => true,
            Some(
                PostgresState::Running(_)
                | PostgresState::Starting { .. }
                | PostgresState::Unresponsive { .. },
            ) => false,
        };
        (over && self.acting.is_none()).then_some(at)
    }
}
