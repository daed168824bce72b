//! What the proxy says of itself, and what administrators may do with it: tables of texts, and commands.

pub(crate) mod command;
mod memory;
mod pools;
pub(crate) mod reload;
mod settings;

use std::sync::atomic::Ordering;

use pgherd_common::topology::{Availability, Backend};
use pgherd_common::{NodeId, Topology};

use crate::clients::Clients;
use crate::config::{Change, Config};
use crate::control::{Cluster, LinkState};
use crate::memory::Usage;
use crate::pauses::Pauses;
use crate::pool::Pool;
use crate::routing::{self, Shares};
use crate::sql::Show;
use crate::verdicts::Verdicts;

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

const TOPOLOGY: &[&str] = &["item", "value"];

const HELP: &[&str] = &["command", "meaning"];

const HELP_ROWS: &[(&str, &str)] = &[
    ("SHOW NODES", "the nodes, with what was sent to them"),
    ("SHOW POOL_NODES", "the same in the columns of Pgpool-II"),
    ("SHOW TOPOLOGY", "the topology in effect, and the links to the agents"),
    ("SHOW CLIENTS", "who is connected, and what each of them is at"),
    ("SHOW SERVERS", "the connections to servers"),
    ("SHOW POOLS", "how many of them there are by node, user and database"),
    ("SHOW STATS", "what was done, by database and user"),
    ("SHOW MEMORY", "what takes memory"),
    ("SHOW CONFIG", "every key of the configuration"),
    ("SHOW DATABASES", "what holds for databases"),
    ("SHOW USERS", "what holds for users"),
    ("SHOW VERSION", "the version of the proxy"),
    ("SHOW POOL_VERSION", "the same in the words of Pgpool-II"),
    ("SHOW HELP", "this list"),
    ("PAUSE [database]", "waits until nothing runs, closes server connections; new work waits"),
    ("RESUME [database]", "ends a pause"),
    ("RELOAD", "reads the configuration file again; the answer tells what changed"),
    ("KILL client_id", "ends a client's session; the number is that of SHOW CLIENTS"),
];

/// What answers are made of.
pub(crate) struct Scope<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pool: &'a Pool,
    pub(crate) clients: &'a Clients,
    pub(crate) pauses: &'a Pauses,
    pub(crate) verdicts: &'a Verdicts,
    /// What is known of databases takes so much.
    pub(crate) catalogs: &'a dyn Fn() -> Usage,
    pub(crate) config: &'a Config,
    /// Changes of the file that wait for a restart.
    pub(crate) waiting: &'a [Change],
    /// Where the session's last read went.
    pub(crate) last_read: Option<NodeId>,
}

/// The columns of the answer to `show`.
pub(crate) fn columns(show: Show) -> &'static [&'static str] {
    match show {
        Show::Nodes => NODES,
        Show::PoolNodes => POOL_NODES,
        Show::PoolVersion => &["pool_version"],
        Show::Version => &["version"],
        Show::Clients => pools::CLIENTS,
        Show::Servers => pools::SERVERS,
        Show::Pools => pools::POOLS,
        Show::Stats => pools::STATS,
        Show::Memory => memory::MEMORY,
        Show::Config => settings::CONFIG,
        Show::Databases => settings::DATABASES,
        Show::Users => settings::USERS,
        Show::Topology => TOPOLOGY,
        Show::Help => HELP,
    }
}

/// Answers `show`.
pub(crate) fn answer(show: Show, scope: &Scope<'_>) -> Table {
    let topology = scope.cluster.topology();
    let topology = topology.as_deref();
    let rows = match show {
        Show::PoolVersion | Show::Version => {
            vec![vec![format!("pgherd-proxy {}", env!("CARGO_PKG_VERSION"))]]
        }
        Show::Clients => return pools::clients(scope),
        Show::Servers => return pools::servers(scope),
        Show::Pools => return pools::pools(scope),
        Show::Stats => return pools::stats(scope),
        Show::Memory => return memory::memory(scope),
        Show::Config => return settings::config(scope),
        Show::Databases => return settings::databases(scope),
        Show::Users => return settings::users(scope),
        Show::Topology => topology_rows(scope, topology),
        Show::Nodes => each_node(scope, topology, node_row),
        Show::PoolNodes => each_node(scope, topology, pool_row),
        Show::Help => {
            HELP_ROWS.iter().map(|(command, meaning)| vec![(*command).into(), (*meaning).into()]).collect()
        }
    };
    Table { columns: columns(show), rows }
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
    scope: &Scope<'_>,
    topology: Option<&Topology>,
    row: fn(&NodeView<'_>) -> Vec<String>,
) -> Vec<Vec<String>> {
    let Some(topology) = topology else { return Vec::new() };
    let (cluster, shares, last_read) = (scope.cluster, &scope.config.shares, scope.last_read);
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

    /// As Pgpool-II prints it.
    fn changed(&self) -> String {
        pools::to_the_second(self.backend.changed)
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

fn topology_rows(scope: &Scope<'_>, topology: Option<&Topology>) -> Vec<Vec<String>> {
    let cluster = scope.cluster;
    let row = |item: &str, value: String| vec![item.to_owned(), value];
    let none = || "none".to_owned();
    let primary = topology.and_then(Topology::primary);
    let change = topology.and_then(Topology::change);
    let mut rows = vec![
        row("version", topology.map_or_else(none, |topology| topology.version().to_string())),
        row("primary", primary.map_or_else(none, |primary| primary.name.to_string())),
        row("change", change.map_or_else(none, |change| change.to_string())),
        row("refused", cluster.refused().to_string()),
        row("paused", scope.pauses.told().join(", ")),
    ];
    if let Some(ip) = &scope.config.virtual_ip {
        let held = if cluster.holds_address() { "*" } else { "" };
        rows.push(row("virtual_ip", format!("{}{held}", ip.address)));
    }
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
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::clients::Guest;
    use crate::pool::Account;
    use crate::routing::tests::{topology, up};
    use crate::upstream::Login;

    struct World {
        cluster: Cluster,
        pool: Pool,
        clients: Arc<Clients>,
        pauses: Pauses,
        config: Arc<Config>,
    }

    impl World {
        fn new() -> Self {
            let text = "[cluster]\nname = 'demo'\n[proxy]\nname = 'p'\n[agents]\naddresses = ['h:1']
                 [auth]\nmethod = 'trust'\npassword = 'hunter2'\n[routing]\nprimary_weight = 2\n[users.bob]\npool_size = 3";
            let config = Arc::new(Config::parse(text).unwrap());
            let pool = Pool::new(watch::Sender::new(config.clone()).subscribe());
            let cluster = Cluster::new("demo".parse().unwrap());
            Self { cluster, pool, clients: Arc::default(), pauses: Pauses::default(), config }
        }

        fn answer(&self, show: Show) -> Table {
            let Self { cluster, pool, clients, pauses, config } = self;
            let (last_read, verdicts) = (Some(NodeId(3)), &Verdicts::new(1, 1 << 20));
            let catalogs = &|| Usage { number: 3, bytes: 70 };
            let waiting = &[];
            let scope =
                Scope { cluster, pool, clients, pauses, verdicts, catalogs, config, waiting, last_read };
            answer(show, &scope)
        }
    }

    fn values<'a>(table: &'a Table, name: &str) -> Vec<&'a str> {
        let column = table.columns.iter().position(|column| *column == name).unwrap();
        table.rows.iter().map(|row| row[column].as_str()).collect()
    }

    #[test]
    fn pool_nodes_has_pgpools_columns() {
        let world = World::new();
        let mut detached = up(2);
        detached.attached = false;
        world.cluster.offer(topology(1, Some(1), vec![up(1), detached, up(3)]));
        let table = world.answer(Show::PoolNodes);
        assert_eq!((table.columns.len(), table.rows.len()), (14, 3));
        assert!(table.rows.iter().all(|row| row.len() == 14));
        assert_eq!(values(&table, "node_id"), ["0", "1", "2"]);
        assert_eq!(values(&table, "status"), ["up", "down", "up"]);
        assert_eq!(values(&table, "role"), ["primary", "standby", "standby"]);
        assert_eq!(values(&table, "lb_weight"), ["0.500000", "0.250000", "0.250000"]);
        assert_eq!(values(&table, "load_balance_node"), ["false", "false", "true"]);
    }

    #[test]
    fn every_table_is_as_wide_as_its_head() {
        let world = World::new();
        world.cluster.offer(topology(1, None, vec![up(1)]));
        let account =
            Arc::new(Account::new("ann", &Login { parameters: vec![], keys: None, replication: None }));
        world.pool.place(NodeId(1), &account);
        let (user, database) = ("ann".to_owned(), "app".to_owned());
        let _ann = world.clients.enter(Guest { user, database, ..Guest::default() }, &world.config).unwrap();
        for show in Show::ALL {
            let table = world.answer(show);
            assert_eq!(table.columns, columns(show));
            assert!(!table.rows.is_empty() || show == Show::Servers, "{show:?}");
            assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{show:?}");
        }
        assert_eq!(values(&world.answer(Show::Users), "pool_size"), ["20", "3"]);
    }

    #[test]
    fn no_secret_is_shown() {
        let table = World::new().answer(Show::Config);
        assert!(!format!("{table:?}").contains("hunter2"));
        let position = values(&table, "key").iter().position(|key| *key == "auth.password").unwrap();
        assert_eq!(values(&table, "value")[position], "***");
    }

    #[test]
    fn every_column_is_documented_and_no_other() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/administration.md");
        let page = std::fs::read_to_string(path).unwrap();
        for show in Show::ALL {
            let title = format!("\n### `SHOW {}`\n", show.word().to_uppercase());
            let part = page.split_once(&title).unwrap_or_else(|| panic!("no part {title:?}")).1;
            let part = part.split_once("\n#").map_or(part, |(part, _)| part);
            let rows = part.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
            let documented: Vec<&str> = rows.map(|(column, _)| column).collect();
            assert_eq!(documented, columns(show), "{show:?}");
        }
        for (command, _) in HELP_ROWS {
            let word = command.split(' ').next().unwrap();
            assert!(page.contains(&format!("`{word}")), "{command}");
        }
    }
}
