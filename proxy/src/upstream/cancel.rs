//! Whom a cancel request is for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use pgherd_common::HostPort;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::control::lock;
use crate::wire::startup::{self, CancelKey};

/// What runs for one session right now.
#[derive(Debug, Default)]
pub(crate) struct CancelSlot {
    running: Mutex<Option<(HostPort, CancelKey)>>,
    /// Wakes the session while it waits for a server.
    pub(crate) waiting: Notify,
}

impl CancelSlot {
    /// Something runs on this server from now on.
    pub(crate) fn runs_on(&self, address: &HostPort, key: CancelKey) {
        *lock(&self.running) = Some((address.clone(), key));
    }

    /// Nothing runs any more.
    pub(crate) fn rests(&self) {
        *lock(&self.running) = None;
    }
}

/// The sessions by the keys that the proxy gave them.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    slots: Mutex<BTreeMap<i32, (i32, Arc<CancelSlot>)>>,
}

impl Cancels {
    /// A new session: its key, and where it says what it runs.
    pub(crate) fn register(&self) -> (CancelKey, Arc<CancelSlot>) {
        let slot = Arc::new(CancelSlot::default());
        let mut slots = lock(&self.slots);
        loop {
            let key = CancelKey { pid: rand::random_range(1..i32::MAX), secret: rand::random() };
            if let std::collections::btree_map::Entry::Vacant(entry) = slots.entry(key.pid) {
                entry.insert((key.secret, slot.clone()));
                return (key, slot);
            }
        }
    }

    /// The session is over.
    pub(crate) fn forget(&self, key: CancelKey) {
        lock(&self.slots).remove(&key.pid);
    }

    /// Interrupts what runs for `key`; a wrong key does nothing, as with PostgreSQL.
    pub(crate) async fn cancel(&self, key: CancelKey, limit: Duration) {
        let slot = lock(&self.slots)
            .get(&key.pid)
            .filter(|(secret, _)| *secret == key.secret)
            .map(|(_, slot)| slot.clone());
        let Some(slot) = slot else { return };
        let running = lock(&slot.running).clone();
        let Some((address, key)) = running else { return slot.waiting.notify_waiters() };
        match timeout(limit, forward(&address, key)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(server = %address, %error, "cannot forward a cancel request"),
            Err(_) => tracing::warn!(server = %address, ?limit, "cannot forward a cancel request in time"),
        }
    }
}

async fn forward(address: &HostPort, key: CancelKey) -> io::Result<()> {
    let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    let mut packet = BytesMut::new();
    startup::put_cancel(&mut packet, key);
    stream.write_all_buf(&mut packet).await?;
    // The server closes the connection once the signal is sent: only then may the client be told.
    let mut end = [0];
    tokio::io::AsyncReadExt::read(&mut stream, &mut end).await.map(drop)
}
