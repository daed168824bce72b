//! `[postgres]`: the one PostgreSQL that this agent is in charge of.

use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::HostPort;
use pgherd_common::config::{Reader, Secret, Section};

/// The PostgreSQL server of a database node. Secrets do not show in `Debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where `postgres`, `pg_rewind` and the other programs are.
    pub bin_dir: PathBuf,
    /// `postgresql.conf`.
    pub config_file: PathBuf,
    /// Where applications and the other nodes reach it.
    pub address: HostPort,
    /// The directory of the Unix socket the agent connects through; over TCP to `address` when absent.
    pub socket_dir: Option<PathBuf>,
    /// The operating system user that owns the data directory.
    pub os_user: String,
    /// The superuser the agents log in as.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// The database the agents connect to.
    pub database: String,
    /// The user standbys replicate as.
    pub replication_user: String,
    /// Its password.
    pub replication_password: Option<Secret>,
    /// What the server prints before its own logging is set up.
    pub log_file: PathBuf,
    /// How long a start may take, crash recovery included.
    pub start_timeout: Duration,
    /// How long a fast stop may take before everything is killed.
    pub stop_timeout: Duration,
}

impl Postgres {
    /// What all agents of the cluster know and nobody else: the databases are replicas, so the logins are the same.
    pub(crate) fn shared_secret(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    pub(super) fn read(r: &mut Reader, mut section: Section) -> Option<Self> {
        let s = &mut section;
        let data_dir = s.required::<PathBuf>(r, "data_dir");
        let bin_dir = s.or(r, "bin_dir", "\"/usr/lib/postgresql/15/bin\"");
        let config_file = s.optional(r, "config_file");
        let address = s.required(r, "address");
        let socket_dir = s.optional(r, "socket_dir");
        let os_user = s.or(r, "os_user", "\"postgres\"");
        let user = s.or(r, "user", "\"postgres\"");
        let password = s.optional(r, "password");
        let database = s.or(r, "database", "\"postgres\"");
        let replication_user = s.or(r, "replication_user", "\"postgres\"");
        let replication_password = s.optional(r, "replication_password");
        let log_file = s.optional(r, "log_file");
        let start_timeout = s.positive(r, "start_timeout", "\"60s\"");
        let stop_timeout = s.positive(r, "stop_timeout", "\"10s\"");
        section.finish(r);
        let data_dir = data_dir?;
        Some(Self {
            config_file: config_file.unwrap_or_else(|| data_dir.join("postgresql.conf")),
            log_file: log_file.unwrap_or_else(|| data_dir.join("log/pgherd-postmaster.log")),
            data_dir,
            bin_dir: bin_dir?,
            address: address?,
            socket_dir,
            os_user: os_user?,
            user: user?,
            password,
            database: database?,
            replication_user: replication_user?,
            replication_password,
            start_timeout: start_timeout?,
            stop_timeout: stop_timeout?,
        })
    }
}
