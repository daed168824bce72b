//! The way that nearly every statement takes to its connection: there is one, or one rests in the pool, and it needs
//! nothing first. Nothing is waited for here, not even the clock is read; whatever is not as usual is left as it is, to
//! the long way ([`Client::reach`]).

use std::collections::BTreeSet;
use std::task::Poll;

use pgherd_common::NodeId;

use crate::session::{Consistency, Segment, Wanted};
use crate::topology::Role;
use crate::upstream::Server;

use super::reach::Goal;
use super::state::Client;

impl Client {
    /// A connection where `segment` can run now, with regard to what the session has written. Whether it sees all that
    /// has yet to be told.
    pub(super) fn place_at_once(&mut self, segment: &Segment, wanted: Wanted) -> Option<(NodeId, Wanted)> {
        let is_asked =
            |server: &Server| matches!(server.role, Role::Primary(_)) && server.questions.are_due();
        let has_to_wait = || match self.consistency() {
            Consistency::Global => true,
            Consistency::Session => self.servers.values().any(is_asked),
            Consistency::Eventual => false,
        };
        if wanted == Wanted::Reader && has_to_wait() {
            return None;
        }
        let wanted = self.as_written(wanted);
        self.session.expect(segment);
        let node = self.reach_at_once(segment, self.session.as_pinned(wanted))?;
        Some((node, wanted))
    }

    /// A connection where `segment` can run now.
    pub(super) fn reach_at_once(&mut self, segment: &Segment, wanted: Wanted) -> Option<NodeId> {
        let usual = !self.shared.pauses.any() && !self.presence.badge.is_killed() && self.bereft.is_none();
        let usual = usual && !self.session.has_trouble();
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
