//! `SHOW CLIENTS`, `SHOW SERVERS`, `SHOW POOLS` and `SHOW STATS`.

use pgherd_common::WallTime;

use super::{Scope, Table};

pub(super) const CLIENTS: &[&str] = &[
    "client_id",
    "user",
    "database",
    "application_name",
    "address",
    "tls",
    "state",
    "connections",
    "kept_by",
    "connected_since",
    "queries",
    "transactions",
    "bytes_in",
    "bytes_out",
];

pub(super) const SERVERS: &[&str] =
    &["server_id", "node_id", "user", "database", "state", "client_id", "pid", "opened"];

pub(super) const POOLS: &[&str] =
    &["node_id", "user", "database", "in_use", "resting", "claimed", "waiting", "size"];

pub(super) const STATS: &[&str] = &[
    "database",
    "user",
    "clients",
    "queries",
    "transactions",
    "standby_reads",
    "primary_reads",
    "writes",
    "bytes_in",
    "bytes_out",
    "waits",
    "wait_ms",
    "errors",
];

/// `YYYY-MM-DD HH:MM:SS`, in UTC.
pub(super) fn to_the_second(time: WallTime) -> String {
    time.to_string().chars().take(19).collect()
}

/// Who is logged in, and what keeps them on their connections.
pub(super) fn clients(scope: &Scope<'_>) -> Table {
    let row = |badge: &std::sync::Arc<crate::clients::Badge>| {
        let (guest, tally) = (badge.guest.clone(), badge.counts.tally());
        vec![
            badge.id.to_string(),
            guest.user,
            guest.database,
            guest.application,
            guest.address,
            guest.encrypted.to_string(),
            badge.phase().word().to_owned(),
            badge.connections().to_string(),
            badge.kept_by().map(|why| why.to_string()).unwrap_or_default(),
            to_the_second(badge.since),
            tally.queries.to_string(),
            tally.transactions.to_string(),
            tally.bytes_in.to_string(),
            tally.bytes_out.to_string(),
        ]
    };
    Table { columns: CLIENTS, rows: scope.clients.all().iter().map(row).collect() }
}

/// Every connection to a server.
pub(super) fn servers(scope: &Scope<'_>) -> Table {
    let open = scope.pool.servers.all();
    let row = |(id, facts): &(u64, std::sync::Arc<crate::pool::ServerFacts>)| {
        let client = facts.client();
        let state = match (client, facts.pid()) {
            (_, 0) => "login",
            (0, _) => "resting",
            _ => "in use",
        };
        vec![
            id.to_string(),
            facts.node.to_string(),
            facts.user.clone(),
            facts.database.clone(),
            state.to_owned(),
            if client == 0 { String::new() } else { client.to_string() },
            facts.pid().to_string(),
            to_the_second(facts.since),
        ]
    };
    Table { columns: SERVERS, rows: open.iter().map(row).collect() }
}

/// The connections of each place.
pub(super) fn pools(scope: &Scope<'_>) -> Table {
    let row = |place: crate::pool::PlaceRow| {
        let counts = [place.in_use, place.resting, place.claimed, place.waiting, place.size];
        let named = [place.node.to_string(), place.user, place.database];
        named.into_iter().chain(counts.iter().map(usize::to_string)).collect()
    };
    Table { columns: POOLS, rows: scope.pool.places().into_iter().map(row).collect() }
}

/// What was done since the proxy was started.
pub(super) fn stats(scope: &Scope<'_>) -> Table {
    let present = scope.clients.all();
    let row = |((database, user), tally): ((String, String), crate::clients::Tally)| {
        let here = |badge: &&std::sync::Arc<crate::clients::Badge>| {
            badge.guest.database == database && badge.guest.user == user
        };
        let clients = present.iter().filter(here).count();
        let counts = [
            tally.queries,
            tally.transactions,
            tally.standby_reads,
            tally.primary_reads,
            tally.writes,
            tally.bytes_in,
            tally.bytes_out,
            tally.waits,
            tally.waited_us / 1000,
            tally.errors,
        ];
        let mut row = vec![database, user, clients.to_string()];
        row.extend(counts.iter().map(u64::to_string));
        row
    };
    Table { columns: STATS, rows: scope.clients.totals().into_iter().map(row).collect() }
}
