//! What operators ask of the agent that leads: what would be proposed for it, or why it is refused. Nothing changes here.

use pgherd_common::{MonoTime, NodeId, NodeName, WallTime};

use super::Node;
use crate::cluster::Command;
use crate::coordinator::{RemoveRefused, SwitchoverRefused};

impl Node {
    /// An operator wants a switchover: what would be proposed for it.
    pub fn plan_switchover(
        &self,
        to: Option<&NodeName>,
        end_transactions: bool,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Command, SwitchoverRefused> {
        self.coordinator.view(now, wall).plan_switchover(to, end_transactions)
    }

    /// An operator wants this node restarted, which is the primary: what would be proposed for it.
    pub fn plan_restart(
        &self,
        node: NodeId,
        end_transactions: bool,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Command, SwitchoverRefused> {
        self.coordinator.view(now, wall).plan_restart(node, end_transactions)
    }

    /// An operator wants a switchover at a set time: what would be proposed for it.
    pub fn plan_schedule(
        &self,
        due: WallTime,
        to: Option<&NodeName>,
        end_transactions: bool,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Command, SwitchoverRefused> {
        self.coordinator.view(now, wall).plan_schedule(due, to, end_transactions)
    }

    /// Who would take over, were the scheduled switchover to begin now.
    pub fn foresee_scheduled(
        &self,
        now: MonoTime,
        wall: WallTime,
    ) -> Option<Result<NodeId, SwitchoverRefused>> {
        self.coordinator.view(now, wall).foresee_scheduled()
    }

    /// An operator wants to know what a switchover would do.
    pub fn explain_switchover(
        &self,
        to: Option<&NodeName>,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Vec<String>, SwitchoverRefused> {
        self.coordinator.view(now, wall).explain_switchover(to)
    }

    /// An operator wants a node removed: what would be proposed for it.
    pub fn plan_remove(
        &self,
        node: &NodeName,
        force: bool,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Command, RemoveRefused> {
        self.coordinator.view(now, wall).plan_remove(node, force)
    }

    /// An operator wants forgotten whoever is silent now: what would be proposed for it.
    pub fn plan_reset(&self, now: MonoTime, wall: WallTime) -> Result<Vec<Command>, RemoveRefused> {
        self.coordinator.view(now, wall).plan_reset()
    }

    /// An operator wants a promotion come what may: what would be proposed for it.
    pub fn plan_forced(
        &self,
        to: Option<&NodeName>,
        allow_data_loss: bool,
        now: MonoTime,
        wall: WallTime,
    ) -> Result<Command, SwitchoverRefused> {
        self.coordinator.view(now, wall).plan_forced(to, allow_data_loss)
    }
}
