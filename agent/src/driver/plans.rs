//! What would be proposed for an operator's wish, or why it is refused.

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime, NodeName};

use super::Driver;
use crate::api::types::PromoteRequest;
use crate::cluster::Command;
use crate::coordinator::{RemoveRefused, SwitchoverRefused};

impl Driver {
    pub(super) fn plan_change(
        &self,
        request: &PromoteRequest,
        now: MonoTime,
    ) -> Result<Command, SwitchoverRefused> {
        let (to, wall) = (request.to.as_ref(), RealClock.wall());
        match (request.switchover, request.at) {
            (true, Some(at)) => self.node.plan_schedule(at, to, request.end_transactions, now, wall),
            (true, None) => self.node.plan_switchover(to, request.end_transactions, now, wall),
            (false, _) => self.node.plan_forced(to, request.allow_data_loss, now, wall),
        }
    }

    /// Of a node, by force or not; else of whoever is silent.
    pub(super) fn plan_removal(
        &self,
        wanted: Option<&(NodeName, bool)>,
        now: MonoTime,
    ) -> Result<Vec<Command>, RemoveRefused> {
        let wall = RealClock.wall();
        match wanted {
            Some((node, force)) => {
                self.node.plan_remove(node, *force, now, wall).map(|command| vec![command])
            }
            None => self.node.plan_reset(now, wall),
        }
    }
}
