//! What a turn asks for, and how what it asked for ended.

use pgherd_common::{Generation, HostPort, MonoTime, NodeId};

use super::{AddressOrder, Before, Node};
use crate::beat::Beat;
use crate::coordinator::Action;
use crate::events::{Call, Event};
use crate::reconcile::LocalAction;

/// What the guardian has to know of this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// PostgreSQL must be killed then, unless a later word moves the time.
    Until {
        /// Of the lease.
        generation: Generation,
        /// On the clock of this machine.
        fence_at: MonoTime,
    },
    /// Nothing here could write: PostgreSQL is down or a standby, and is not being promoted.
    Off,
}

/// What is to be done after a turn, in this order.
#[derive(Debug, Default)]
#[must_use]
pub struct Turn {
    /// To be on disk before anything below is done.
    pub remember: Option<Generation>,
    /// The log lets this node in again with its new raft store of this number: raft may feed it.
    pub rejoin: Option<u64>,
    /// For the guardian; `None`: what it knows stands.
    pub guard: Option<Guard>,
    /// What is to be done about the virtual IP; `None`: what was ordered last stands.
    pub address: Option<AddressOrder>,
    /// To be begun on the local PostgreSQL.
    pub act: Option<Begun>,
    /// To be proposed to the log, or asked of raft.
    pub lead: Option<Action>,
    /// Where to knock.
    pub knock: Option<(NodeId, HostPort)>,
    /// To be sent to every other agent.
    pub beat: Option<Beat>,
    /// Turn again at this time even if nothing happens.
    pub wake_at: Option<MonoTime>,
    /// What a decision of the coordinator wants to be known in the log.
    pub doing: Vec<String>,
    /// For people.
    pub events: Vec<Event>,
    /// Scripts of theirs to be run, if there are any.
    pub calls: Vec<Call>,
}

/// How a proposal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    /// It was applied, rejected or refused.
    Settled,
    /// Nobody knows: there was no answer in time.
    TimedOut,
}

/// An action to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Which.
    pub action: LocalAction,
    /// To be handed back with its [`Done`](super::Done).
    pub before: Before,
    /// The action in progress must be dropped first: fencing waits for nothing.
    pub abort: bool,
}

impl Node {
    /// Whether the action in progress is given up for this one; `None`: this one waits for its end.
    pub(super) fn gives_way(&self, to: &LocalAction, before: &mut Before) -> Option<bool> {
        match self.acting.as_ref() {
            None => Some(false),
            Some((LocalAction::Fence { .. }, _)) => None,
            Some((interrupted, begun)) if matches!(to, LocalAction::Fence { .. }) => {
                // The look that finds PostgreSQL gone may come before the word that it was stopped.
                before.ran |= begun.ran && interrupted.stops();
                Some(true)
            }
            // The checkpoint goes on in the server.
            Some((LocalAction::Checkpoint, _)) => {
                matches!(to, LocalAction::Cover(_) | LocalAction::LetIn).then_some(true)
            }
            // Whoever is chosen now has what it has; whoever is not, follows.
            Some((LocalAction::Salvage { .. }, _)) => {
                (!matches!(to, LocalAction::Salvage { .. })).then_some(true)
            }
            Some((LocalAction::FenceScript { generation, .. }, _)) => {
                (*generation != self.state.generation).then_some(true)
            }
            Some(_) => None,
        }
    }
}
