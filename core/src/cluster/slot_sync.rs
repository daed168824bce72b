//! Logical slots that survive a failover: standbys keep copies of them, and what they send has to be on standbys first.

use std::collections::BTreeSet;

use pgherd_common::NodeId;
use serde::{Deserialize, Serialize};

use super::command::Rejected;
use super::state::ClusterState;

/// PostgreSQL copies slots from this major version on.
pub const SLOT_SYNC_SINCE: u32 = 17;

/// In force while the primary has logical slots that are to outlive it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotSync {
    /// A subscriber is sent nothing that these do not have: `synchronized_standby_slots`.
    pub standbys: BTreeSet<NodeId>,
}

pub(super) fn sync_slots(state: &mut ClusterState, sync: Option<&SlotSync>) -> Result<bool, Rejected> {
    let mut standbys = sync.iter().flat_map(|sync| &sync.standbys);
    if let Some(unknown) = standbys.find(|node| !state.members.contains_key(node)) {
        return Err(Rejected::UnknownMember(*unknown));
    }
    if state.slot_sync.as_ref() == sync {
        return Ok(false);
    }
    state.slot_sync = sync.cloned();
    Ok(true)
}

/// Behind a change of primary nobody streams from the new one yet.
pub(super) fn changed_primary(state: &mut ClusterState) {
    if let Some(sync) = &mut state.slot_sync {
        sync.standbys.clear();
    }
}
