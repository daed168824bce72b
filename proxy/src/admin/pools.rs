//! `SHOW CLIENTS` and `SHOW POOLS`.

use crate::pool::Pool;

use super::Table;

const CLIENTS: &[&str] = &["client_id", "user", "database", "state", "connections", "kept_by"];

const POOLS: &[&str] = &["node_id", "user", "database", "in_use", "resting", "claimed", "waiting", "size"];

/// Who is logged in, and what keeps them on their connections.
pub(super) fn clients(pool: &Pool) -> Table {
    let row = |client: crate::pool::ClientRow| {
        let kept_by = client.state.kept_by.map(|why| why.to_string()).unwrap_or_default();
        vec![
            client.id.to_string(),
            client.user,
            client.database,
            client.state.phase.to_owned(),
            client.state.connections.to_string(),
            kept_by,
        ]
    };
    Table { columns: CLIENTS, rows: pool.clients().into_iter().map(row).collect() }
}

/// The connections of each place.
pub(super) fn pools(pool: &Pool) -> Table {
    let row = |place: crate::pool::PlaceRow| {
        let counts = [place.in_use, place.resting, place.claimed, place.waiting, place.size];
        let named = [place.node.to_string(), place.user, place.database];
        named.into_iter().chain(counts.iter().map(usize::to_string)).collect()
    };
    Table { columns: POOLS, rows: pool.places().into_iter().map(row).collect() }
}
