//! An open transaction that moves from one server to another.

use pgherd_common::{NodeId, NodeName};

use super::{Session, Tx};

impl Session {
    /// The transaction goes on elsewhere: here it is over, and nothing was changed in it.
    pub fn detach_tx(&mut self) {
        self.tx = None;
    }

    /// The text that opened the open transaction block, if nothing else ran in it.
    pub fn begun(&self) -> Option<&str> {
        self.begun.as_deref().and_then(|text| std::str::from_utf8(text).ok())
    }

    /// It goes on at `node`.
    pub fn attach_tx(&mut self, node: NodeId) {
        self.tx = Some(Tx { node, failed: false });
    }

    /// A standby is gone. If it held the open transaction, that only read, and can go on on the primary. Whether
    /// that is so.
    pub fn strand(&mut self, node: NodeId, server: &NodeName) -> bool {
        let held = self.tx.is_some_and(|tx| tx.node == node && !tx.failed);
        if held {
            self.tx = None;
            self.stranded = Some(server.clone());
        }
        held
    }

    /// The standby whose transaction has to go on elsewhere.
    pub fn take_stranded(&mut self) -> Option<NodeName> {
        self.stranded.take()
    }
}
