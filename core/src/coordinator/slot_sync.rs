//! Logical slots that are to survive a failover.
//!
//! Standbys copy them from the primary as long as it has any. A subscriber is sent nothing that one of them lacks, so each
//! that goes out of service has to leave the list before logical replication goes on.

use std::collections::BTreeSet;

use pgherd_common::NodeId;

use super::report::Report;
use super::view::View;
use crate::cluster::{Command, Member, SLOT_SYNC_SINCE, Service, SlotSync};

impl View<'_> {
    /// Has the log say what the primary's logical slots call for.
    pub(super) fn tend_slot_sync(&self, report: &mut Report) -> Option<Command> {
        let primary = self.state.serving().filter(|_| self.state.change.is_none())?;
        let major = self.state.identity.as_ref().map_or(0, |identity| identity.major);
        let running = self.running(primary).filter(|running| !running.in_recovery)?;
        let copied = !running.logical.slots.is_empty() && major >= SLOT_SYNC_SINCE;
        let sync = copied.then(|| SlotSync { standbys: self.held_back_for(primary) });
        if sync == self.state.slot_sync {
            return None;
        }
        report.doing.push(match &sync {
            None => "standbys need not copy logical slots any more".to_owned(),
            Some(sync) => {
                let names: Vec<String> = sync.standbys.iter().map(|id| self.name(*id).to_string()).collect();
                let whom = if names.is_empty() { "no standby".to_owned() } else { names.join(", ") };
                format!("standbys copy logical slots, whose subscribers wait for {whom}")
            }
        });
        Some(Command::SyncSlots { generation: self.state.generation, sync })
    }

    /// Standbys in service that may take over and stream from the primary itself: PostgreSQL knows of no others.
    fn held_back_for(&self, primary: NodeId) -> BTreeSet<NodeId> {
        let waited = self.state.slot_sync.as_ref().map(|sync| &sync.standbys);
        let direct = |id: NodeId| {
            let running = self.running(id);
            running.is_some_and(|up| self.state.is_fed(id, up) && up.logical.copies)
        };
        let fit = |member: &&Member| {
            let id = member.descriptor.id;
            let up =
                id != primary && member.allowed && member.priority() > 0 && member.service == Service::Up;
            let paused = self.state.pauses.nodes.contains_key(&id);
            // Who streams for a moment from nobody is told by its service soon enough.
            let known = waited.is_some_and(|waited| waited.contains(&id));
            up && !paused && self.state.is_direct(member, primary) && (known || direct(id))
        };
        self.state.databases().filter(fit).map(|member| member.descriptor.id).collect()
    }
}
