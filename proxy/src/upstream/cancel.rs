//! Whom a cancel request is for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd_common::HostPort;
use pgherd_common::errors::Chain;
use tokio::sync::{Notify, RwLock};
use tokio::time::timeout;

use crate::config::ServerTls;
use crate::control::lock;
use crate::tls::Kept;
use crate::wire::startup::{self, CancelKey};

use super::dial::{DialError, dial};

/// Cancel requests on their way to one server process. It must not serve anybody else before they are
/// there.
#[derive(Debug, Default, Clone)]
pub(crate) struct Gate {
    /// Read by each request on its way.
    passing: Arc<RwLock<()>>,
    /// It is not known of one whether it ever got there.
    doubtful: Arc<AtomicBool>,
}

impl Gate {
    /// Whether a request is on its way.
    pub(crate) fn is_passing(&self) -> bool {
        self.passing.try_write().is_err()
    }

    /// Returns when no request is on its way any more.
    pub(crate) async fn passed(&self) {
        drop(self.passing.write().await);
    }

    /// Whether a request may get there who knows when.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }
}

/// What runs for one session right now.
#[derive(Debug, Default)]
pub(crate) struct CancelSlot {
    running: Mutex<Option<(HostPort, CancelKey, Gate)>>,
    /// Wakes the session while it waits for a server.
    pub(crate) waiting: Notify,
}

impl CancelSlot {
    /// Something runs on this server from now on.
    pub(crate) fn runs_on(&self, address: &HostPort, key: CancelKey, gate: &Gate) {
        *lock(&self.running) = Some((address.clone(), key, gate.clone()));
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
        let Some(slot) = slot else { return };
        let running = lock(&slot.running).as_ref().and_then(|(address, key, gate)| {
            let passing = gate.passing.clone().try_read_owned().ok()?;
            Some((address.clone(), *key, gate.clone(), passing))
        });
        let Some((address, key, gate, _passing)) = running else { return slot.waiting.notify_waiters() };
        match timeout(limit, forward(&address, key, tls)).await {
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
        forward(&self.address, self.key, tls).await
    }
}

/// Encrypted like any other connection: the key would let others interrupt the session, too.
async fn forward(address: &HostPort, key: CancelKey, tls: &Kept<ServerTls>) -> Result<(), DialError> {
    let mut pipe = dial(address, tls).await?.into_pipe()?;
    startup::put_cancel(&mut pipe.output, key);
    pipe.flush().await?;
    // The server closes the connection once the signal is sent: only then may the client be told.
    drop(pipe.fill().await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
