//! The server connections that a client has: one to a node at most, so that looking through all of them is the quickest
//! way to find one.

use pgherd_common::NodeId;

use crate::upstream::Server;

/// See the module.
#[derive(Debug, Default)]
#[allow(clippy::vec_box, reason = "they are large, and go from hand to hand")]
pub(super) struct Servers(Vec<Box<Server>>);

impl Servers {
    fn position(&self, node: NodeId) -> Option<usize> {
        self.0.iter().position(|server| server.node == node)
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Server> {
        self.values().find(|server| server.node == node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Server> {
        self.values_mut().find(|server| server.node == node)
    }

    pub(super) fn has(&self, node: NodeId) -> bool {
        self.position(node).is_some()
    }

    /// In the place of another one to the same node.
    pub(super) fn insert(&mut self, server: Box<Server>) {
        drop(self.remove(server.node));
        self.0.push(server);
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Box<Server>> {
        self.position(node).map(|position| self.0.swap_remove(position))
    }

    /// Removes the first of which `unwanted` says so.
    pub(super) fn remove_one(&mut self, unwanted: impl Fn(&Server) -> bool) -> Option<Box<Server>> {
        let position = self.values().position(unwanted)?;
        Some(self.0.swap_remove(position))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Server> {
        self.0.iter().map(|server| &**server)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.0.iter_mut().map(|server| &mut **server)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
