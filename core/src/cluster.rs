//! The replicated truth: what the raft log means. Pure; a command is applied the same way on every
//! node, or rejected the same way.

mod apply;
mod command;
mod membership;
mod parameters;
mod pause;
mod relay;
mod roster;
mod schedule;
mod slot_sync;
mod state;
mod tags;
#[cfg(test)]
mod tests;
mod voters;

pub use apply::apply;
pub use command::{Applied, Command, Rejected};
pub use membership::{Invited, Leaving, Removed};
pub use parameters::{Parameter, Parameters};
pub use pause::{Pause, Pauses};
pub use roster::{Contact, Contacts, contact, roster};
pub use schedule::Scheduled;
pub use slot_sync::{SLOT_SYNC_SINCE, SlotSync};
pub use state::{
    Change, ChangePhase, ClusterState, Descriptor, HistoryEntry, Identity, Member, NodeKind, OldEnd, Outcome,
    Primary, PrimaryPhase, Service,
};
pub use tags::Tags;
pub use voters::{LeaseVoters, VoterPlan, majority};
