//! Making PostgreSQL servers: the first with `initdb`, its standbys with `pg_basebackup`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::network::Place;
use crate::process::{CommandError, run};

/// Everything here takes seconds; this is for a machine that does other things too.
const STEP_TIME_MAX: Duration = Duration::from_secs(180);

/// The superuser the agents log in as.
pub const AGENT_USER: &str = "pgherd";
/// Its password.
pub const AGENT_PASSWORD: &str = "pgherd-secret";
/// The user standbys replicate as.
pub const REPLICATION_USER: &str = "replicator";
/// Its password.
pub const REPLICATION_PASSWORD: &str = "replicator-secret";
/// The user the proxy looks up password verifiers with.
pub const AUTH_USER: &str = "pgherd_auth";
/// Its password.
pub const AUTH_PASSWORD: &str = "auth-secret";
/// The application's user, password and database.
pub const APP: &str = "app";

/// The PostgreSQL of one node.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    /// Where its programs are.
    pub bin_dir: PathBuf,
    /// Where it lives.
    pub place: Place,
    /// Its port.
    pub port: u16,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// `postgresql.conf` and `pg_hba.conf`: outside the data directory, as Debian has it, so that a
    /// copy of another server's data never brings that server's port along.
    pub conf_dir: PathBuf,
    /// Its Unix socket.
    pub socket_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

impl PostgresServer {
    /// A server that has all its files within `dir`.
    pub fn within(dir: &Path, bin_dir: &Path, place: Place, port: u16) -> Self {
        Self {
            bin_dir: bin_dir.to_owned(),
            place,
            port,
            data_dir: dir.join("data"),
            conf_dir: dir.join("conf"),
            socket_dir: dir.join("socket"),
            log: dir.join("postgres.log"),
        }
    }

    /// `postgresql.conf`.
    pub fn config_file(&self) -> PathBuf {
        self.conf_dir.join("postgresql.conf")
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.place.host, self.port)
    }

    /// An empty server.
    pub async fn initdb(&self) -> Result<(), CommandError> {
        let mut command = self.command("initdb");
        command.args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-sync"]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        command.arg("-D").arg(&self.data_dir);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    /// A copy of a server, to be started as its standby.
    pub async fn copy_of(&self, primary: &Self) -> Result<(), CommandError> {
        if !self.copies_running() {
            let mut copy = self.place.postgres_command("cp");
            copy.arg("-a").arg(&primary.data_dir).arg(&self.data_dir);
            return run(copy, STEP_TIME_MAX).await.map(drop);
        }
        let mut command = self.command("pg_basebackup");
        command.args(["-h", &primary.place.host, "-p", &primary.port.to_string(), "-U", REPLICATION_USER]);
        command.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"]);
        command.arg("-D").arg(&self.data_dir).env("PGPASSWORD", REPLICATION_PASSWORD);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    /// Whether there is a `pg_basebackup` of its version. Without one it is copied while it is stopped.
    pub(crate) fn copies_running(&self) -> bool {
        self.bin_dir.join("pg_basebackup").exists()
    }

    /// Stops it in order.
    pub(crate) async fn stop(&self) -> Result<(), CommandError> {
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(&self.data_dir).args(["-m", "fast", "-w", "-t", "60", "stop"]);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    /// Starts it; from then on it belongs to nobody in particular, like a server that was there before
    /// its agent.
    pub async fn start(&self) -> Result<(), CommandError> {
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(&self.data_dir).arg("-l").arg(&self.log);
        command.arg("-o").arg(format!("-c config_file={}", self.config_file().display()));
        command.args(["-w", "-t", "60", "start"]);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    /// The roles and the database of a fresh server.
    pub async fn create_roles(&self) -> Result<(), CommandError> {
        let roles = format!(
            "CREATE ROLE {AGENT_USER} SUPERUSER LOGIN PASSWORD '{AGENT_PASSWORD}';\n\
             CREATE ROLE {REPLICATION_USER} REPLICATION LOGIN PASSWORD '{REPLICATION_PASSWORD}';\n\
             CREATE ROLE {AUTH_USER} SUPERUSER LOGIN PASSWORD '{AUTH_PASSWORD}';\n\
             CREATE ROLE {APP} LOGIN PASSWORD '{APP}';\n\
             CREATE EXTENSION pg_stat_statements;\n"
        );
        self.psql("postgres", &roles).await?;
        self.psql("postgres", &format!("CREATE DATABASE {APP} OWNER {APP}")).await?;
        self.psql(APP, "CREATE EXTENSION pg_stat_statements").await
    }

    async fn psql(&self, database: &str, sql: &str) -> Result<(), CommandError> {
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
        command.arg("-h").arg(&self.socket_dir).args(["-p", &self.port.to_string(), "-c", sql]);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    fn command(&self, program: &str) -> Command {
        self.place.postgres_command(self.bin_dir.join(program))
    }

    /// The text of its `postgresql.conf`. Everything that makes commits durable is left on.
    pub fn config(&self) -> String {
        let shown = |path: &Path| path.display().to_string();
        format!(
            "data_directory = '{data}'\nhba_file = '{hba}'\nident_file = '{ident}'\n\
             listen_addresses = '{host}'\nport = {port}\nunix_socket_directories = '{socket}'\n\
             max_connections = 100\nshared_buffers = 64MB\nmax_wal_size = 256MB\n\
             # A killed server leaves nothing in /dev/shm.\ndynamic_shared_memory_type = mmap\n\
             wal_level = replica\nwal_log_hints = on\nmax_wal_senders = 10\nmax_replication_slots = 10\n\
             hot_standby = on\nwal_keep_size = 128MB\npassword_encryption = 'scram-sha-256'\n\
             shared_preload_libraries = 'pg_stat_statements'\nlogging_collector = off\n\
             log_line_prefix = '%m [%p] '\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n\
             include_if_exists = '{data}/pgherd.conf'\n",
            data = shown(&self.data_dir),
            hba = shown(&self.conf_dir.join("pg_hba.conf")),
            ident = shown(&self.conf_dir.join("pg_ident.conf")),
            host = self.place.host,
            port = self.port,
            socket = shown(&self.socket_dir),
        )
    }

    /// The text of its `pg_hba.conf`.
    pub fn hba(&self) -> String {
        "local all all trust\n\
         local replication all trust\n\
         host all all samenet scram-sha-256\n\
         host replication all samenet scram-sha-256\n"
            .to_owned()
    }
}
