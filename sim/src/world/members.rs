//! Nodes that an operator removes, and adds again.

use pgherd_core::cluster::Command;

use crate::clock::SECOND;

use super::{Event, World};

impl World {
    /// An operator has a node removed, if that may be.
    pub(super) fn remove_node(&mut self, index: usize) {
        self.banished.insert(index);
        let Some(leader) = self.leader() else { return };
        let name = self.machines[index].descriptor.name.clone();
        let (now, wall) = (self.mono(leader), self.wall());
        let Some(node) = self.node(leader) else { return };
        match node.plan_remove(&name, false, now, wall) {
            Ok(command) => self.propose_as_operator(leader, command),
            Err(refused) => self.note(|| format!("the operator is refused: {refused}")),
        }
    }

    /// An operator adds it again, and does not rest before it belongs.
    pub(super) fn welcome(&mut self, index: usize) {
        if !self.banished.contains(&index) {
            return;
        }
        let descriptor = self.machines[index].descriptor.clone();
        let (id, at) = (descriptor.id, self.wall());
        let leader = self.leader();
        let state = leader.and_then(|leader| Some((leader, self.node(leader)?.state().clone())));
        match state {
            Some((_, state)) if state.belongs(id) && !state.is_leaving(id) => {
                self.banished.remove(&index);
                self.start_agent(index);
                return;
            }
            Some((leader, state)) if !state.belongs(id) => {
                let (name, agent) = (descriptor.name, descriptor.agent);
                self.propose_as_operator(leader, Command::Invite { id, name, agent, at });
            }
            Some(_) | None => {}
        }
        self.after(SECOND, Event::Welcome(index));
    }

    /// Whoever was removed has nothing more to do.
    pub(super) fn let_go(&mut self, index: usize) {
        if self.node(index).and_then(pgherd_core::node::Node::has_left).is_none() {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: it was removed, and its agent ends"));
        self.kill_agent(index);
    }
}
