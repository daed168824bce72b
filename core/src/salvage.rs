//! What a primary that died has left on its disk, and no standby has received.
//!
//! A failover of an asynchronous cluster loses what had been committed and not yet sent. Where only PostgreSQL died, its
//! agent still has those WAL files: recruited standbys fetch what they lack from there, and one of them is chosen then.

use pgherd_common::{HostPort, Lsn, NodeName, Timeline};
use serde::{Deserialize, Serialize};

use crate::cluster::{ChangePhase, ClusterState};
use crate::observation::{NodeObservation, Running};

/// How far the WAL goes that a stopped server has in `pg_wal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftWal {
    /// What it was writing.
    pub timeline: Timeline,
    /// Behind the last whole record.
    pub end: Lsn,
}

impl LeftWal {
    /// How many bytes of it a standby lacks; 0 on another timeline, whose WAL it could not replay.
    pub fn lacking(self, standby: &Running) -> u64 {
        if standby.in_recovery && standby.timeline == self.timeline {
            self.end.bytes_since(standby.received)
        } else {
            0
        }
    }
}

/// Where there is something to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The old primary.
    pub node: NodeName,
    /// Where its agent listens.
    pub agent: HostPort,
    /// What it has.
    pub wal: LeftWal,
}

/// What the primary that is being replaced offers: nothing before its agent has applied that it is to be replaced, and has
/// seen the last process of the instance end.
pub fn offer(state: &ClusterState, said: &NodeObservation) -> Option<Offer> {
    let change = state.change.as_ref().filter(|change| change.phase == ChangePhase::Recruiting)?;
    let postgres = said.postgres.as_ref()?;
    let given_up = said.descriptor.id == change.from
        && said.intent == Some(change.generation)
        && postgres.released == Some(state.generation);
    let wal = postgres.stopped().filter(|_| given_up)?.left?;
    Some(Offer { node: said.descriptor.name.clone(), agent: said.descriptor.agent.clone(), wal })
}
