//! Whom a cancel request is for.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd_common::HostPort;
use pgherd_common::errors::Chain;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clients::Bell;
use crate::config::ServerTls;
use crate::control::lock;
use crate::tls::Kept;
use crate::wire::startup::{self, CancelKey};

use super::dial::{DialError, dial};

/// Where cancel requests to one server process go, and those that are on their way. It must not serve anybody else
/// before they are there.
#[derive(Debug)]
pub(crate) struct Gate {
    address: HostPort,
    pub(crate) key: CancelKey,
    /// So many are on their way.
    passing: AtomicUsize,
    /// The last of them got there.
    passed: Notify,
    /// It is not known of one whether it ever got there.
    doubtful: AtomicBool,
}

impl Gate {
    pub(super) fn new(address: HostPort, key: CancelKey) -> Self {
        let (passing, passed, doubtful) = (AtomicUsize::new(0), Notify::new(), AtomicBool::new(false));
        Self { address, key, passing, passed, doubtful }
    }

    /// The same place, now that its key is known. No request is on its way to it yet.
    pub(super) fn with_key(&self, key: CancelKey) -> Self {
        Self::new(self.address.clone(), key)
    }

    /// Whether a request is on its way.
    pub(crate) fn is_passing(&self) -> bool {
        self.passing.load(Ordering::Acquire) > 0
    }

    /// Returns when no request is on its way any more.
    pub(crate) async fn passed(&self) {
        loop {
            let mut passed = pin!(self.passed.notified());
            // What comes behind the look is heard.
            passed.as_mut().enable();
            if !self.is_passing() {
                return;
            }
            passed.await;
        }
    }

    /// Whether a request may get there who knows when.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }
}

/// A request on its way.
struct Passage(Arc<Gate>);

impl Passage {
    fn through(gate: &Arc<Gate>) -> Self {
        gate.passing.fetch_add(1, Ordering::AcqRel);
        Self(gate.clone())
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.0.passing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.passed.notify_waiters();
        }
    }
}

/// What runs for one session right now.
#[derive(Debug, Default)]
pub(crate) struct CancelSlot {
    running: Mutex<Option<Arc<Gate>>>,
    /// Tells the session of a request that came while nothing ran on a server.
    called: Bell,
}

impl CancelSlot {
    /// A statement begins: what came before it was not for it.
    pub(crate) fn begins(&self) {
        self.called.take_ring();
    }

    /// Waits for a request to interrupt the statement that has yet to run.
    pub(crate) async fn cancelled(&self) {
        self.called.rung().await;
    }

    /// Something runs on this server from now on, unless it was interrupted before. Whether it does.
    #[must_use]
    pub(crate) fn runs_on(&self, gate: &Arc<Gate>) -> bool {
        let mut running = lock(&self.running);
        let runs = !self.called.take_ring();
        *running = runs.then(|| gate.clone());
        runs
    }

    /// The way to the server on which something runs. Where nothing does, the session is told.
    fn interrupt(&self) -> Option<Passage> {
        // Under the lock: it does not come to rest, and is not given to anybody else, before that; nor does something
        // begin to run that is not told.
        let running = lock(&self.running);
        let passage = running.as_ref().map(Passage::through);
        if passage.is_none() {
            self.called.ring();
        }
        passage
    }

    /// Nothing runs any more.
    pub(crate) fn rests(&self) {
        *lock(&self.running) = None;
    }
}

/// The sessions by the keys that the proxy gave them.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    slots: Mutex<BTreeMap<(i32, i32), Arc<CancelSlot>>>,
}

impl Cancels {
    /// A session whose statements `slot` knows; its key. It names the process that serves the session on
    /// its first server, so that the client can look for that in `pg_stat_activity` and `pg_locks`.
    pub(crate) fn register(&self, pid: i32, slot: &Arc<CancelSlot>) -> CancelKey {
        let mut slots = lock(&self.slots);
        loop {
            let key = CancelKey { pid, secret: rand::random() };
            if let std::collections::btree_map::Entry::Vacant(entry) = slots.entry((key.pid, key.secret)) {
                entry.insert(slot.clone());
                return key;
            }
        }
    }

    /// The session is over.
    pub(crate) fn forget(&self, key: CancelKey) {
        lock(&self.slots).remove(&(key.pid, key.secret));
    }

    /// Interrupts what runs for `key`; a wrong key does nothing, as with PostgreSQL.
    pub(crate) async fn cancel(&self, key: CancelKey, limit: Duration, tls: &Kept<ServerTls>) {
        let slot = lock(&self.slots).get(&(key.pid, key.secret)).cloned();
        let Some(passage) = slot.and_then(|slot| slot.interrupt()) else { return };
        let Passage(gate) = &passage;
        let address = &gate.address;
        match timeout(limit, forward(gate, tls)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = Chain(&error);
                tracing::warn!(server = %address, %error, "cannot forward a cancel request");
            }
            Err(_) => {
                gate.doubtful.store(true, Ordering::Relaxed);
                tracing::warn!(server = %address, ?limit, "cannot forward a cancel request in time");
            }
        }
    }
}

impl super::Server {
    /// Interrupts what runs on it.
    pub(crate) async fn interrupt(&self, tls: &Kept<ServerTls>) -> Result<(), DialError> {
        forward(&self.gate, tls).await
    }
}

/// Encrypted like any other connection: the key would let others interrupt the session, too.
async fn forward(gate: &Gate, tls: &Kept<ServerTls>) -> Result<(), DialError> {
    let mut pipe = dial(&gate.address, tls).await?.into_pipe()?;
    startup::put_cancel(&mut pipe.output, gate.key);
    pipe.flush().await?;
    // The server closes the connection once the signal is sent: only then may the client be told.
    drop(pipe.fill().await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_one_waits_for_every_request_on_its_way() {
        let key = CancelKey { pid: 7, secret: 1 };
        let gate = Arc::new(Gate::new("h:1".parse().unwrap(), key));
        gate.passed().await;
        let (one, other) = (Passage::through(&gate), Passage::through(&gate));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.passed().await }
        });
        tokio::task::yield_now().await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(gate.is_passing() && !waiting.is_finished());
        drop(other);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_request_is_heard_by_the_statement_that_it_came_for() {
        let gate = Arc::new(Gate::new("h:1".parse().unwrap(), CancelKey { pid: 7, secret: 1 }));
        let slot = CancelSlot::default();
        assert!(slot.interrupt().is_none());
        slot.begins();
        assert!(slot.runs_on(&gate), "it came before the statement");
        assert!(slot.interrupt().is_some() && gate.passing.load(Ordering::Relaxed) == 0);
        slot.rests();
        slot.begins();
        assert!(slot.interrupt().is_none());
        assert!(!slot.runs_on(&gate), "it came while the server was looked for");
        assert!(slot.interrupt().is_none(), "nothing runs");
        slot.cancelled().await;
        assert!(slot.runs_on(&gate), "it is heard once");
    }

    #[test]
    fn sessions_of_one_server_process_are_told_apart() {
        let (cancels, slot) = (Cancels::default(), Arc::default());
        let (one, other) = (cancels.register(7, &slot), cancels.register(7, &slot));
        assert_eq!((one.pid, other.pid), (7, 7));
        assert_ne!(one.secret, other.secret);
        cancels.forget(one);
        assert_eq!(lock(&cancels.slots).len(), 1);
    }
}
