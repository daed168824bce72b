//! Every open server connection, for people to see, whoever has it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeId, WallTime};

use crate::clients::ClientId;
use crate::control::lock;

/// What is known of one of them.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) node: NodeId,
    pub(crate) user: String,
    pub(crate) database: String,
    /// When it was opened.
    pub(crate) since: WallTime,
    /// The server process; 0 until it is logged in.
    pid: AtomicI32,
    /// Who has it; 0: it rests.
    client: AtomicU64,
    /// Bytes of its buffers, as of a moment ago.
    buffers: AtomicUsize,
}

impl Facts {
    /// The server process; 0 until it is logged in.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Who has it; 0: it rests.
    pub(crate) fn client(&self) -> ClientId {
        self.client.load(Ordering::Relaxed)
    }

    /// Bytes of its buffers, as of a moment ago.
    pub(crate) fn buffers(&self) -> usize {
        self.buffers.load(Ordering::Relaxed)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    last: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Facts>>>,
}

/// Goes with the connection, and away with it.
#[derive(Debug)]
pub(crate) struct Tag {
    all: Arc<Tags>,
    id: u64,
    facts: Arc<Facts>,
}

impl Tags {
    /// A connection is opened.
    pub(super) fn tag(self: &Arc<Self>, node: NodeId, user: &str, database: &str) -> Tag {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let facts = Arc::new(Facts {
            node,
            user: user.to_owned(),
            database: database.to_owned(),
            since: RealClock.wall(),
            pid: AtomicI32::new(0),
            client: AtomicU64::new(0),
            buffers: AtomicUsize::new(0),
        });
        lock(&self.open).insert(id, facts.clone());
        Tag { all: self.clone(), id, facts }
    }

    /// All that are open, by number, in the order in which they were opened.
    pub(crate) fn all(&self) -> Vec<(u64, Arc<Facts>)> {
        lock(&self.open).iter().map(|(id, facts)| (*id, facts.clone())).collect()
    }
}

impl Tag {
    /// It is logged in.
    pub(crate) fn is_process(&self, pid: i32) {
        self.facts.pid.store(pid, Ordering::Relaxed);
    }

    /// Somebody has it now; 0: nobody.
    pub(crate) fn is_with(&self, client: ClientId) {
        self.facts.client.store(client, Ordering::Relaxed);
    }

    /// Its buffers take so many bytes now.
    pub(crate) fn has_buffers(&self, bytes: usize) {
        self.facts.buffers.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        lock(&self.all.open).remove(&self.id);
    }
}
