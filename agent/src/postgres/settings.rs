//! What the adapter must be told.

use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::config::Secret;
use pgherd_common::{HostPort, NodeName};

pub use crate::reconcile::Upstream;

/// One PostgreSQL instance, and how to act on it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node: its walreceiver's `application_name`.
    pub node: NodeName,
    /// `PGDATA`.
    pub data_dir: PathBuf,
    /// Where `postgres`, `pg_controldata` and `pg_rewind` are.
    pub bin_dir: PathBuf,
    /// The main configuration file, in the data directory or (Debian) elsewhere.
    pub config_file: PathBuf,
    /// Where applications and other nodes reach this PostgreSQL.
    pub address: HostPort,
    /// When set, the agent connects through the Unix socket here instead of over TCP.
    pub socket_dir: Option<PathBuf>,
    /// The operating system user PostgreSQL runs as.
    pub os_user: String,
    /// The agents' login on every node, a superuser.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// The database the agents connect to.
    pub database: String,
    /// The login of walreceivers.
    pub replication_user: String,
    /// Its password.
    pub replication_password: Option<Secret>,
    /// Where output of the postmaster goes before its own logging is up.
    pub log_file: PathBuf,
    /// Durable files of the agent. What must survive `pg_rewind` is kept here, since that removes
    /// every file from the data directory that its source does not have.
    pub state_dir: PathBuf,
    /// How long data is kept that a copy has replaced.
    pub keep_old_data: Duration,
    /// How long a start may take until it is reported as unfinished.
    pub start_timeout: Duration,
    /// How long a fast stop may take until everything is killed.
    pub stop_timeout: Duration,
    /// How often to look.
    pub probe_interval: Duration,
    /// How long a new connection or a query of the agent may take.
    pub connect_timeout: Duration,
}
