//! Who takes part, as this agent knows at the moment: from its configuration, the log, and what others have told it.

use std::sync::Arc;

use pgherd_common::{HostPort, NodeId};
use tokio::sync::watch;

use crate::cluster::{ClusterState, Contact, Contacts, contact, roster};

/// What others have told an agent that does not know the cluster yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduced {
    /// Everybody they know.
    pub contacts: Contacts,
    /// This node is new in the cluster, and was invited.
    pub invited: bool,
    /// The revision of the newest state in which it was found to belong.
    pub welcomed: u64,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub struct Roster {
    configured: Arc<Contacts>,
    introduced: Arc<watch::Sender<Introduced>>,
    state: watch::Receiver<Arc<ClusterState>>,
}

impl Roster {
    /// By the configuration and what is applied of the log.
    pub fn new(configured: Contacts, state: watch::Receiver<Arc<ClusterState>>) -> Self {
        Self { configured: Arc::new(configured), introduced: Arc::default(), state }
    }

    /// Others have answered. It counts for as long as this agent does not know the log.
    pub fn introduced(&self, introduced: Introduced) {
        self.introduced.send_if_modified(|known| {
            let before = known.clone();
            known.contacts.extend(introduced.contacts);
            known.invited |= introduced.invited;
            known.welcomed = known.welcomed.max(introduced.welcomed);
            *known != before
        });
    }

    /// Whether others say that this node is new, and was invited.
    pub fn is_invited(&self) -> bool {
        self.introduced.borrow().invited
    }

    /// The revision of the newest state in which others have found that this node belongs.
    pub fn welcomed(&self) -> u64 {
        self.introduced.borrow().welcomed
    }

    /// Everybody.
    pub fn now(&self) -> Contacts {
        let state = self.state.borrow().clone();
        if state.identity.is_some() {
            return roster(&self.configured, &state);
        }
        let mut all = self.introduced.borrow().contacts.clone();
        all.extend(self.configured.iter().map(|(id, contact)| (*id, contact.clone())));
        all
    }

    /// One of them.
    pub fn get(&self, id: NodeId) -> Option<Contact> {
        let state = self.state.borrow().clone();
        let introduced = || self.introduced.borrow().contacts.get(&id).cloned();
        contact(&self.configured, &state, id).or_else(|| state.identity.is_none().then(introduced).flatten())
    }

    /// Everybody but this node.
    pub fn others(&self, me: NodeId) -> Contacts {
        let mut others = self.now();
        others.remove(&me);
        others
    }

    /// What the configuration has for a node, whether it belongs or not.
    pub fn configured(&self, id: NodeId) -> Option<&Contact> {
        self.configured.get(&id)
    }

    /// Where the agent of a node is reached.
    pub fn agent(&self, id: NodeId) -> Option<HostPort> {
        self.get(id).map(|contact| contact.agent)
    }

    /// Waits until something may have changed; false once nothing can any more.
    pub async fn changed(&mut self, introduced: &mut watch::Receiver<Introduced>) -> bool {
        tokio::select! {
            changed = self.state.changed() => changed.is_ok(),
            changed = introduced.changed() => changed.is_ok(),
        }
    }

    /// To wait with.
    pub fn introductions(&self) -> watch::Receiver<Introduced> {
        self.introduced.subscribe()
    }
}
