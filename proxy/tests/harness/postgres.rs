//! Real servers in a temporary directory, gone when they are dropped.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgherd_common::HostPort;
use tempfile::TempDir;

use super::free_port;

const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
fsync = off
shared_buffers = 16MB
max_connections = 60
max_wal_senders = 4
wal_level = replica
hot_standby = on
wal_receiver_status_interval = 1
log_min_messages = warning
";

/// How clients over TCP prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Trust,
    Scram,
}

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
}

/// The binaries of the installed PostgreSQL with the highest version.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("no PostgreSQL under /usr/lib/postgresql");
    let newest = versions
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    newest.unwrap().join("bin")
}

/// `initdb` and the server refuse to run as root.
fn database_user() -> Option<(u32, u32)> {
    let id = |what: &str| {
        let output = Command::new("id").args([what, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    let own = Command::new("id").arg("-u").output().unwrap();
    (own.stdout == b"0\n").then(|| (id("-u"), id("-g")))
}

fn run(program: &str, directory: &Path, arguments: &[&str]) {
    let mut command = Command::new(binaries().join(program));
    command.args(arguments).current_dir(directory);
    if let Some((user, group)) = database_user() {
        command.uid(user).gid(group);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Postgres {
    fn directory() -> TempDir {
        let directory = tempfile::Builder::new().prefix("pgherd-proxy-test").tempdir().unwrap();
        if let Some((user, group)) = database_user() {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        directory
    }

    fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    /// A new server that takes writes. Superuser `postgres` with password `secret`.
    pub fn primary(access: Access) -> Self {
        let server = Self { directory: Self::directory(), port: free_port() };
        let root = server.directory.path();
        std::fs::write(root.join("password"), "secret").unwrap();
        let host = match access {
            Access::Trust => "--auth-host=trust",
            Access::Scram => "--auth-host=scram-sha-256",
        };
        let arguments = ["-D", &server.data(), "-U", "postgres", "--no-sync", "--auth-local=trust", host];
        run("initdb", root, &[&arguments[..], &["--pwfile=password", "--no-instructions"]].concat());
        server.start();
        server
    }

    /// A streaming standby of it.
    pub fn standby(&self) -> Self {
        let server = Self { directory: Self::directory(), port: free_port() };
        let (host, port) = (self.directory.path().display().to_string(), self.port.to_string());
        let arguments = [
            "-D",
            &server.data(),
            "-h",
            &host,
            "-p",
            &port,
            "-U",
            "postgres",
            "-R",
            "-c",
            "fast",
            "-X",
            "stream",
            "--no-sync",
        ];
        run("pg_basebackup", server.directory.path(), &arguments);
        server.start();
        server
    }

    /// Starts it; returns when it accepts connections.
    pub fn start(&self) {
        let root = self.directory.path().display();
        let own = format!(
            "port = {}\nunix_socket_directories = '{root}'\npgherd.port = '{}'\n",
            self.port, self.port
        );
        let file = self.directory.path().join("data/postgresql.conf");
        std::fs::write(file, format!("{CONFIGURATION}{own}")).unwrap();
        run("pg_ctl", self.directory.path(), &["-D", &self.data(), "-w", "-s", "-l", "log", "start"]);
    }

    /// From now on it speaks TLS with this certificate, and lets in over TCP whom these lines of pg_hba.conf
    /// let in.
    pub fn encrypt(&self, files: &super::Files, rules: &str) {
        self.keep(&files.certificate, "server.crt");
        self.keep(&files.key, "server.key");
        self.configure("ssl = on", rules);
    }

    /// Copies a file into its data directory under this name.
    pub fn keep(&self, from: &Path, name: &str) {
        let to = self.directory.path().join("data").join(name);
        std::fs::copy(from, &to).unwrap();
        if let Some((user, group)) = database_user() {
            std::os::unix::fs::chown(&to, Some(user), Some(group)).unwrap();
        }
    }

    /// From now on it has these further settings, and lets in over TCP whom these lines of pg_hba.conf let in.
    pub fn configure(&self, settings: &str, rules: &str) {
        let data = self.directory.path().join("data");
        let rules = format!("local all all trust\nlocal replication all trust\n{rules}\n");
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let file = data.join("postgresql.conf");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{before}{settings}\n")).unwrap();
        run("pg_ctl", self.directory.path(), &["-D", &self.data(), "-w", "-s", "-l", "log", "restart"]);
    }

    /// Ends it as a crash would.
    pub fn crash(&self) {
        run("pg_ctl", self.directory.path(), &["-D", &self.data(), "-w", "-s", "-m", "immediate", "stop"]);
    }

    /// Makes a primary of a standby; returns when it takes writes.
    pub fn promote(&self) {
        run("pg_ctl", self.directory.path(), &["-D", &self.data(), "-w", "-s", "promote"]);
    }

    /// Where it listens.
    pub fn address(&self) -> HostPort {
        format!("127.0.0.1:{}", self.port).parse().unwrap()
    }

    /// Its port, which is also its setting `pgherd.port`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection past the proxy.
    pub async fn direct(&self) -> tokio_postgres::Client {
        let parameters =
            format!("host=127.0.0.1 port={} user=postgres password=secret dbname=postgres", self.port);
        let (client, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Returns when this standby has everything that `primary` has now.
    pub async fn caught_up_with(&self, primary: &Postgres) {
        let row = primary.direct().await.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        let target: String = row.get(0);
        let own = self.direct().await;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{target}'::pg_lsn");
        super::soon(async {
            while !own.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.data();
        let mut command = Command::new(binaries().join("pg_ctl"));
        command.args(["-D", &data, "-w", "-s", "-m", "immediate", "stop"]).current_dir("/");
        if let Some((user, group)) = database_user() {
            command.uid(user).gid(group);
        }
        // It may be down already; there is nobody left to tell.
        drop(command.output());
    }
}
