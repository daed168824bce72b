//! Real PostgreSQL servers in temporary directories.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use pgherd_agent::observation::{PostgresState, Running};
use pgherd_agent::postgres::{Instance, Settings, Upstream, kill_instance};
use pgherd_agent::reconcile::Commits;
use pgherd_common::{Clock, MonoTime, time::RealClock};
use tempfile::TempDir;

/// A node: a data directory, its settings, and an open instance. Everything ends with it.
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) instance: Instance,
    root: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_instance(&self.settings.data_dir, Duration::from_secs(5)).expect("the test's server is killed");
    }
}

pub(crate) fn bin_dir() -> PathBuf {
    std::env::var_os("PGHERD_TEST_BIN_DIR").map_or("/usr/lib/postgresql/15/bin".into(), PathBuf::from)
}

/// Runs a program of PostgreSQL as its user; panics when it fails.
pub(crate) fn pg(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]);
    let output = command.arg(bin_dir().join(program)).args(arguments).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

pub(crate) fn chown(path: &Path) {
    let status = Command::new("chown").args(["-R", "postgres:postgres"]).arg(path).status().unwrap();
    assert!(status.success());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn root() -> TempDir {
    let root = tempfile::Builder::new().prefix("pgherd-pg-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    chown(root.path());
    root
}

fn settings(root: &Path, name: &str) -> Settings {
    let data_dir = root.join("data");
    Settings {
        node: name.parse().unwrap(),
        bin_dir: bin_dir(),
        config_file: data_dir.join("postgresql.conf"),
        address: format!("127.0.0.1:{}", free_port()).parse().unwrap(),
        socket_dir: Some(root.to_owned()),
        os_user: "postgres".to_owned(),
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        replication_user: "postgres".to_owned(),
        replication_password: None,
        log_file: root.join("postmaster.log"),
        state_dir: root.join("state"),
        keep_old_data: Duration::from_secs(3600),
        start_timeout: Duration::from_secs(20),
        stop_timeout: Duration::from_secs(5),
        probe_interval: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(1),
        data_dir,
    }
}

fn configure(settings: &Settings, root: &Path) {
    // Processes are killed here, never the machine: nothing has to be on disk.
    let text = format!(
        "fsync = off\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nshared_buffers = 16MB\n\
         max_connections = 20\nwal_keep_size = 64MB\ncluster_name = '{}'\ninclude_if_exists = 'pgherd.conf'\n",
        settings.address.port,
        root.display(),
        settings.node
    );
    std::fs::write(&settings.config_file, text).unwrap();
    let access =
        "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
    std::fs::write(settings.data_dir.join("pg_hba.conf"), access).unwrap();
    std::fs::write(settings.data_dir.join("pg_ident.conf"), "").unwrap();
    chown(&settings.data_dir);
}

impl Server {
    /// A fresh cluster, not started.
    pub(crate) async fn initialised(name: &str) -> Self {
        // Small segments make clones and rewinds quick.
        Self::initialised_with(name, &["-k", "--wal-segsize=1"]).await
    }

    pub(crate) async fn initialised_with(name: &str, options: &[&str]) -> Self {
        let root = root();
        let settings = settings(root.path(), name);
        let data = settings.data_dir.to_str().unwrap();
        pg("initdb", &[&["-D", data, "-A", "trust", "-N", "-U", "postgres"], options].concat());
        configure(&settings, root.path());
        Self::open(settings, root).await
    }

    /// A running primary.
    pub(crate) async fn primary(name: &str) -> Self {
        let server = Self::initialised(name).await;
        server.instance.start_primary(&Commits::Free).await.unwrap();
        server
    }

    /// A clone of a running server, not started.
    pub(crate) async fn clone_of(other: &Server, name: &str, options: &[&str]) -> Self {
        let root = root();
        let settings = settings(root.path(), name);
        let (data, port) = (settings.data_dir.to_str().unwrap(), other.settings.address.port.to_string());
        let arguments = ["-D", data, "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-c", "fast", "-N"];
        pg("pg_basebackup", &[&arguments, options].concat());
        configure(&settings, root.path());
        Self::open(settings, root).await
    }

    /// A streaming standby.
    pub(crate) async fn standby(primary: &Server, name: &str) -> Self {
        let server = Self::clone_of(primary, name, &[]).await;
        primary.instance.align_slots(&[server.settings.node.clone()].into(), false).await.unwrap();
        server.instance.start_standby(Some(&primary.upstream())).await.unwrap();
        server.streams().await;
        server
    }

    /// Moves the configuration of a stopped server to where Debian has it.
    pub(crate) async fn move_configuration(&mut self) {
        let etc = self.root().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let (from, data) = (self.settings.config_file.clone(), self.settings.data_dir.display());
        let text =
            std::fs::read_to_string(&from).unwrap().replace("pgherd.conf", &format!("{data}/pgherd.conf"));
        let text =
            format!("{text}data_directory = '{data}'\nhba_file = '{}'\n", etc.join("pg_hba.conf").display());
        self.settings.config_file = etc.join("postgresql.conf");
        std::fs::write(&self.settings.config_file, text).unwrap();
        for name in ["pg_hba.conf", "pg_ident.conf"] {
            std::fs::rename(self.settings.data_dir.join(name), etc.join(name)).unwrap();
        }
        std::fs::remove_file(from).unwrap();
        chown(&etc);
        self.instance = Instance::open(self.settings.clone()).await.unwrap();
    }

    async fn open(settings: Settings, root: TempDir) -> Self {
        let instance = Instance::open(settings.clone()).await.unwrap();
        Self { settings, instance, root }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn upstream(&self) -> Upstream {
        Upstream {
            address: self.settings.address.clone(),
            node: self.settings.node.clone(),
            generation: None,
            copy_slots: false,
        }
    }

    pub(crate) async fn running(&self) -> Running {
        let observation = self.instance.observe().await;
        observation.running().cloned().unwrap_or_else(|| panic!("does not run: {observation:?}"))
    }

    /// Looks until the condition holds; panics after ten seconds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&PostgresState) -> bool) -> PostgresState {
        let begun = now();
        loop {
            let state = self.instance.observe().await.state;
            if holds(&state) {
                return state;
            }
            assert!(now().since(begun) < Duration::from_secs(10), "waited in vain for {what}: {state:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn streams(&self) {
        let streaming = |state: &PostgresState| matches!(state, PostgresState::Running(running) if running.is_streaming());
        self.until("streaming", streaming).await;
    }

    /// The server takes notice of a reload when it gets to it.
    pub(crate) async fn until_pending_lowered(&self, names: &[&str]) {
        let begun = now();
        loop {
            let pending = self.instance.pending().await.unwrap();
            if pending.lowered == names {
                return;
            }
            assert!(
                now().since(begun) < Duration::from_secs(10),
                "waited in vain for {names:?}: {pending:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lines for `postgresql.conf`.
    pub(crate) fn configure_more(&self, lines: &str) {
        let path = &self.settings.config_file;
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, format!("{lines}{text}")).unwrap();
    }

    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        self.try_connect().await.unwrap()
    }

    pub(crate) async fn try_connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.root()).port(self.settings.address.port).user("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    /// The one text value of a query.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.connect().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

pub(crate) fn now() -> MonoTime {
    RealClock.now()
}
