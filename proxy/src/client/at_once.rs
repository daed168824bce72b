//! The way that nearly every statement takes to its connection: there is one, or one rests in the pool, and it needs
//! nothing first. Nothing is waited for here, not even the clock is read; whatever is not as usual is left as it is, to
//! the long way ([`Client::reach`]).

use std::collections::BTreeSet;
use std::task::Poll;

use pgherd_common::NodeId;

use crate::session::{Segment, Wanted};
use crate::topology::Role;

use super::reach::Goal;
use super::state::Client;

impl Client {
    /// A connection where `segment` can run now.
    pub(super) fn reach_at_once(&mut self, segment: &Segment, wanted: Wanted) -> Option<NodeId> {
        let usual =
            !self.shared.pauses.any() && !self.presence.badge.is_killed() && !self.session.has_trouble();
        let there = !matches!(wanted, Wanted::Stay(node) if !self.servers.has(node));
        if !usual || !there {
            return None;
        }
        let Ok(Goal::Node(topology, node, role)) = self.goal(wanted, &BTreeSet::new()) else { return None };
        if self.servers.values().any(|server| self.is_useless(server, &topology)) {
            return None;
        }
        match self.servers.has(node) {
            true => self.hear_at_once(node),
            // It was listened to where it was taken.
            false => self.take_at_once(node, role)?,
        }
        let server = self.servers.get(node)?;
        let shunned = server.at_rest && self.session.shuns(&server.known);
        let busy = server.role != role || server.questions.are_due();
        (!shunned
            && !busy
            && !self.session.has_trouble()
            && self.session.is_up_to_date(segment, &server.known))
        .then_some(node)
    }

    /// Takes a connection from the pool, if there is one that has only to be taken.
    fn take_at_once(&mut self, node: NodeId, role: Role) -> Option<()> {
        let turn = self.place(node).turn_now(false)?;
        let customs = self.session.customs();
        let mut server = self.shared.pool.take_at_once(turn, self.id, role, &self.account, customs)?;
        if server.owner != self.id {
            server.questions.forget_laziness();
            server.known = self.session.fresh().behind_others(std::mem::take(&mut server.known));
            server.owner = self.id;
        }
        server.lease.tag.is_with(self.id);
        self.servers.insert(server);
        Some(())
    }

    /// Takes in what a server said on its own, its end above all.
    fn hear_at_once(&mut self, node: NodeId) {
        let Some(server) = self.servers.get_mut(node) else { return };
        if let Poll::Ready(result) = server.pipe.fill_now() {
            self.on_server_news(node, result);
        }
    }
}
