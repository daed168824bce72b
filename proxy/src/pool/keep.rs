//! Looks after the connections at rest, which nobody else does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::interval;

use crate::shared::Shared;

/// How often it is looked for connections that rest too long.
const EVERY: Duration = Duration::from_secs(1);

/// Closes connections at rest when their time is over, or their server has left its role.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let (mut topology, mut tick) = (shared.cluster.follow(), interval(EVERY));
    loop {
        tokio::select! {
            changed = topology.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
        }
        let current = topology.borrow_and_update().clone();
        shared.pool.sweep(current.as_deref());
        // What was on its way back when it was paused.
        for database in shared.pauses.held() {
            shared.pool.close_resting(database.as_deref());
        }
    }
}
