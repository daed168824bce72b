//! The `[pool]` table: who shares server connections, and how many there are.

use std::time::Duration;

use pgherd_common::config::{Millis, Reader, Section};

use super::one_of;

/// When a client gives its server connections back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// After each transaction, unless the connection holds something that only this client may have.
    Auto,
    /// After each transaction, always: what needs a connection of its own is refused.
    Transaction,
    /// When it leaves.
    Session,
}

/// The words for it, the default first.
pub(super) const MODES: &[(&str, PoolMode)] =
    &[("auto", PoolMode::Auto), ("transaction", PoolMode::Transaction), ("session", PoolMode::Session)];

/// The checked table.
#[derive(Debug, Clone)]
pub struct Pooling {
    /// When a client gives its server connections back.
    pub mode: PoolMode,
    /// Connections to one node as one user to one database.
    pub size: u32,
    /// So many more for administrators.
    pub reserve: u32,
    /// So many clients wait for one of them at most.
    pub queue_size: u32,
    /// How long a client waits for one of them.
    pub queue_timeout: Duration,
    /// A connection that nobody used for so long is closed.
    pub server_idle_timeout: Duration,
    /// A connection older than this is closed once nobody uses it.
    pub server_lifetime: Duration,
}

/// Reads the table.
pub(super) fn read(r: &mut Reader, root: &mut Section) -> Option<Pooling> {
    let mut section = root.table(r, "pool");
    let mode = one_of(r, &mut section, "mode", MODES);
    let size: Option<u32> = section.or(r, "size", "20");
    let reserve: Option<u32> = section.or(r, "reserve", "0");
    let queue_size: Option<u32> = section.or(r, "queue_size", "1000");
    let queue_timeout: Option<Millis> = section.or(r, "queue_timeout", "\"30s\"");
    let server_idle_timeout: Option<Millis> = section.or(r, "server_idle_timeout", "\"10min\"");
    let server_lifetime: Option<Millis> = section.or(r, "server_lifetime", "\"60min\"");
    if size == Some(0) {
        let path = section.path_of("size");
        r.problem(&path, "0 would let nobody reach a server");
    }
    section.finish(r);
    Some(Pooling {
        mode: mode?,
        size: size?,
        reserve: reserve?,
        queue_size: queue_size?,
        queue_timeout: queue_timeout?.0,
        server_idle_timeout: server_idle_timeout?.0,
        server_lifetime: server_lifetime?.0,
    })
}
