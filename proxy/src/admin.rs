//! The proxy's own answers to `SHOW`: tables of texts.

mod pools;

use std::sync::atomic::Ordering;

use pgherd_common::topology::{Availability, Backend};
use pgherd_common::{NodeId, Topology};

use crate::control::{Cluster, LinkState};
use crate::pool::Pool;
use crate::routing::{self, Shares};
use crate::sql::Show;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<Vec<String>>,
}

const NODES: &[&str] = &[
    "node_id",
    "name",
    "hostname",
    "port",
    "status",
    "role",
    "weight",
    "lb_weight",
    "select_cnt",
    "write_cnt",
    "attached",
    "lag_bytes",
    "lag_ms",
    "reason",
    "generation",
    "last_status_change",
];

/// As Pgpool-II 4.7 names and orders them.
const POOL_NODES: &[&str] = &[
    "node_id",
    "hostname",
    "port",
    "status",
    "pg_status",
    "lb_weight",
    "role",
    "pg_role",
    "select_cnt",
    "load_balance_node",
    "replication_delay",
    "replication_state",
    "replication_sync_state",
    "last_status_change",
];

/// Answers `show` for a session whose last read went to `last_read`.
pub(crate) fn answer(
    show: Show,
    cluster: &Cluster,
    pool: &Pool,
    shares: &Shares,
    last_read: Option<NodeId>,
) -> Table {
    let topology = cluster.topology();
    match show {
        Show::PoolVersion => {
            let version = format!("pgherd-proxy {}", env!("CARGO_PKG_VERSION"));
            Table { columns: &["pool_version"], rows: vec![vec![version]] }
        }
        Show::Clients => pools::clients(pool),
        Show::Pools => pools::pools(pool),
        Show::Topology => {
            Table { columns: &["item", "value"], rows: topology_rows(cluster, topology.as_deref()) }
        }
        Show::Nodes => Table {
            columns: NODES,
            rows: each_node(cluster, topology.as_deref(), shares, last_read, node_row),
        },
        Show::PoolNodes => Table {
            columns: POOL_NODES,
            rows: each_node(cluster, topology.as_deref(), shares, last_read, pool_row),
        },
    }
}

/// Everything about one node.
struct NodeView<'a> {
    cluster: &'a Cluster,
    shares: &'a Shares,
    topology: &'a Topology,
    backend: &'a Backend,
    position: usize,
    weight: u32,
    weight_sum: u64,
    reads_here: bool,
}

fn each_node(
    cluster: &Cluster,
    topology: Option<&Topology>,
    shares: &Shares,
    last_read: Option<NodeId>,
    row: fn(&NodeView<'_>) -> Vec<String>,
) -> Vec<Vec<String>> {
    let Some(topology) = topology else { return Vec::new() };
    let primary = topology.primary().map(|primary| primary.id);
    let weight = |backend: &Backend| routing::weight_of(shares, primary, backend);
    let weight_sum = topology.backends().iter().map(|backend| u64::from(weight(backend))).sum();
    let view = |(position, backend)| NodeView {
        cluster,
        shares,
        topology,
        backend,
        position,
        weight: weight(backend),
        weight_sum,
        reads_here: last_read == Some(backend.id),
    };
    topology.backends().iter().enumerate().map(|numbered| row(&view(numbered))).collect()
}

impl NodeView<'_> {
    fn role(&self) -> &'static str {
        let primary = self.topology.primary().is_some_and(|primary| primary.id == self.backend.id);
        if primary { "primary" } else { "standby" }
    }

    fn lb_weight(&self) -> String {
        // Weights are small numbers: exact as floats.
        #[expect(clippy::cast_precision_loss, reason = "printed with six digits")]
        let share = if self.weight_sum == 0 { 0.0 } else { f64::from(self.weight) / self.weight_sum as f64 };
        format!("{share:.6}")
    }

    fn is_up(&self) -> bool {
        self.backend.availability == Availability::Up
    }

    /// `YYYY-MM-DD HH:MM:SS`, as Pgpool-II prints it.
    fn changed(&self) -> String {
        self.backend.changed.to_string().chars().take(19).collect()
    }

    fn reads(&self) -> String {
        self.cluster.counts(self.backend.id).reads.load(Ordering::Relaxed).to_string()
    }
}

fn up_or_down(up: bool) -> String {
    if up { "up" } else { "down" }.to_owned()
}

fn node_row(node: &NodeView<'_>) -> Vec<String> {
    let backend = node.backend;
    let lag = node.cluster.lags().get(&backend.id).copied();
    let reason = match &backend.availability {
        Availability::Up => lag.and_then(|lag| node.shares.excess(lag)).unwrap_or_default(),
        Availability::Down { reason } => reason.clone(),
    };
    vec![
        backend.id.to_string(),
        backend.name.to_string(),
        backend.address.host.clone(),
        backend.address.port.to_string(),
        up_or_down(node.is_up()),
        node.role().to_owned(),
        node.weight.to_string(),
        node.lb_weight(),
        node.reads(),
        node.cluster.counts(backend.id).writes.load(Ordering::Relaxed).to_string(),
        backend.attached.to_string(),
        lag.map(|lag| lag.bytes.to_string()).unwrap_or_default(),
        lag.map(|lag| lag.time.as_millis().to_string()).unwrap_or_default(),
        reason,
        node.topology.version().generation.to_string(),
        node.changed(),
    ]
}

fn pool_row(node: &NodeView<'_>) -> Vec<String> {
    let status = node.cluster.status(node.backend.id);
    let observed = |field: Option<String>| field.unwrap_or_default();
    let in_recovery = status.as_ref().and_then(|status| status.in_recovery);
    vec![
        node.position.to_string(),
        node.backend.address.host.clone(),
        node.backend.address.port.to_string(),
        up_or_down(node.backend.in_rotation()),
        match in_recovery {
            Some(_) => up_or_down(true),
            None if node.is_up() => "unknown".to_owned(),
            None => up_or_down(false),
        },
        node.lb_weight(),
        node.role().to_owned(),
        match in_recovery {
            Some(true) => "standby",
            Some(false) => "primary",
            None => "unknown",
        }
        .to_owned(),
        node.reads(),
        node.reads_here.to_string(),
        status.as_ref().and_then(|status| status.lag_bytes).unwrap_or(0).to_string(),
        observed(status.as_ref().and_then(|status| status.replication_state.clone())),
        observed(status.as_ref().and_then(|status| status.sync_state.clone())),
        node.changed(),
    ]
}

fn topology_rows(cluster: &Cluster, topology: Option<&Topology>) -> Vec<Vec<String>> {
    let row = |item: &str, value: String| vec![item.to_owned(), value];
    let none = || "none".to_owned();
    let primary = topology.and_then(Topology::primary);
    let change = topology.and_then(Topology::change);
    let mut rows = vec![
        row("version", topology.map_or_else(none, |topology| topology.version().to_string())),
        row("primary", primary.map_or_else(none, |primary| primary.name.to_string())),
        row("change", change.map_or_else(none, |change| change.to_string())),
        row("refused", cluster.refused().to_string()),
    ];
    for (agent, state) in cluster.links() {
        let state = match state {
            LinkState::Connected => "connected".to_owned(),
            LinkState::Down(why) => format!("down: {why}"),
        };
        rows.push(row(&format!("agent {agent}"), state));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PoolMode, Pooling};
    use crate::pool::Account;
    use crate::routing::tests::{topology, up};
    use crate::upstream::Login;

    fn pool() -> Pool {
        let long = std::time::Duration::from_secs(60);
        let (queue_timeout, server_idle_timeout, server_lifetime) = (long, long, long);
        let mode = PoolMode::Auto;
        Pool::new(Pooling { mode, size: 2, queue_timeout, server_idle_timeout, server_lifetime })
    }

    #[test]
    fn pool_nodes_has_pgpools_columns() {
        let cluster = Cluster::new("demo".parse().unwrap());
        let mut detached = up(2);
        detached.attached = false;
        cluster.offer(topology(1, Some(1), vec![up(1), detached, up(3)]));
        let shares = Shares { primary_weight: 2, ..Shares::default() };
        let table = answer(Show::PoolNodes, &cluster, &pool(), &shares, Some(NodeId(3)));
        assert_eq!((table.columns.len(), table.rows.len()), (14, 3));
        assert!(table.rows.iter().all(|row| row.len() == 14));
        let column = |name: &str| table.columns.iter().position(|column| *column == name).unwrap();
        let values = |name: &str| table.rows.iter().map(|row| row[column(name)].as_str()).collect::<Vec<_>>();
        assert_eq!(values("node_id"), ["0", "1", "2"]);
        assert_eq!(values("status"), ["up", "down", "up"]);
        assert_eq!(values("role"), ["primary", "standby", "standby"]);
        assert_eq!(values("lb_weight"), ["0.500000", "0.250000", "0.250000"]);
        assert_eq!(values("load_balance_node"), ["false", "false", "true"]);
    }

    #[test]
    fn every_table_is_as_wide_as_its_head() {
        let cluster = Cluster::new("demo".parse().unwrap());
        cluster.offer(topology(1, None, vec![up(1)]));
        let pool = pool();
        let account = std::sync::Arc::new(Account::new("ann", &Login { parameters: vec![], keys: None }));
        pool.enter(&account);
        pool.place(NodeId(1), &account);
        let every =
            [Show::Nodes, Show::PoolNodes, Show::PoolVersion, Show::Topology, Show::Clients, Show::Pools];
        for show in every {
            let table = answer(show, &cluster, &pool, &Shares::default(), None);
            assert!(!table.rows.is_empty());
            assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{show:?}");
        }
    }
}
