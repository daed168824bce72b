//! A proxy in this process.

use std::process::Stdio;

use pgherd_common::push::ToAgent;
use pgherd_proxy::Config;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{Access, Agent, free_port, soon};

fn configuration(agent: &Agent, port: u16, access: Access, lines: &str) -> String {
    let method = match access {
        Access::Trust => "trust",
        Access::Scram => "scram-sha-256",
    };
    format!(
        "[cluster]
        name = 'demo'
        [proxy]
        name = 'proxy1'
        listen = ['127.0.0.1:{port}']
        admins = ['postgres']
        {lines}
        [agents]
        addresses = ['{agent}']
        [auth]
        method = '{method}'
        user = 'postgres'
        password = 'secret'",
        agent = agent.address()
    )
}

/// Serves on a port of its own.
pub struct Proxy {
    port: u16,
    directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts it; returns when it is linked to `agent`.
    pub async fn start(agent: &mut Agent, access: Access) -> Self {
        Self::start_with(agent, access, "").await
    }

    /// With further lines for the `[proxy]` section.
    pub async fn start_with(agent: &mut Agent, access: Access, lines: &str) -> Self {
        let port = free_port();
        let directory = tempfile::Builder::new().prefix("pgherd-proxy-test").tempdir().unwrap();
        let file = directory.path().join("proxy.toml");
        let text = configuration(agent, port, access, lines);
        std::fs::write(&file, &text).unwrap();
        let config = Config { file: Some(file), ..Config::parse(&text).unwrap() };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            pgherd_proxy::serve(config, async { drop(stopped.await) }).await.unwrap();
        });
        let hello = agent.hear().await;
        assert!(matches!(&hello, ToAgent::Hello { proxy, .. } if proxy == "proxy1"), "{hello:?}");
        Self { port, directory, stop: Some(stop), task }
    }

    /// Puts `new` in the place of `old` in its configuration file, which it has yet to read again.
    pub fn rewrite(&self, old: &str, new: &str) {
        let file = self.directory.path().join("proxy.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{old} is not in {text}");
        std::fs::write(&file, text.replace(old, new)).unwrap();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Parameters for a login.
    pub fn login(&self, user: &str, password: &str, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={user} password={password} dbname={database}", self.port)
    }

    /// A session.
    pub async fn connect(&self) -> Client {
        let login = self.login("postgres", "secret", "postgres");
        let (client, connection) = soon(tokio_postgres::connect(&login, NoTls)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Returns when it has read the catalogs, so that it knows more than names.
    pub async fn knows_catalogs(&self) {
        let client = self.connect().await;
        let knows = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                row.get("item") == Some("catalogs") && row.get("number") != Some("0")
            }
            _ => false,
        };
        soon(async {
            loop {
                // It reads them for whoever names something.
                client.simple_query("SELECT count(*) FROM pg_class").await.unwrap();
                if client.simple_query("SHOW MEMORY").await.unwrap().iter().any(knows) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Stops it and waits until it is gone.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        soon(&mut self.task).await.unwrap();
    }
}

/// A proxy in a process of its own, the real program.
pub struct Process {
    pub port: u16,
    child: tokio::process::Child,
    log: Lines<BufReader<tokio::process::ChildStderr>>,
    _directory: tempfile::TempDir,
}

impl Process {
    /// Starts it; returns when it is linked to `agent`.
    pub async fn start(agent: &mut Agent, access: Access, lines: &str) -> Self {
        let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
        let text = configuration(agent, port, access, lines);
        let path = directory.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgherd-proxy"));
        command.arg("--config").arg(path).kill_on_drop(true).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let hello = agent.hear().await;
        assert!(matches!(&hello, ToAgent::Hello { .. }), "{hello:?}");
        Self { port, child, log, _directory: directory }
    }

    /// Returns when it has logged something with this in it.
    pub async fn until_it_logs(&mut self, part: &str) {
        let found = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                if line.contains(part) {
                    return;
                }
            }
            panic!("{part:?} was never logged");
        };
        soon(found).await;
    }

    /// SIGHUP, as an operator would send it.
    pub fn hang_up(&self) {
        let id = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-HUP", &id]).status().unwrap();
        assert!(sent.success());
    }

    /// The most memory that it ever had, in MB.
    pub fn memory_peak_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What psql prints, or its complaint.
pub async fn psql(proxy: &Proxy, parameters: &str, sql: &str) -> Result<String, String> {
    psql_at(proxy.port, parameters, sql).await
}

/// The same for whatever listens there.
pub async fn psql_at(port: u16, parameters: &str, sql: &str) -> Result<String, String> {
    let login = format!("port={port} user=postgres password=secret dbname=postgres {parameters}");
    let mut command = tokio::process::Command::new("psql");
    command.args(["-XAt", &login]).kill_on_drop(true).stdin(std::process::Stdio::piped());
    // No files of whoever runs the test.
    command.env("HOME", "/nonexistent").stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may be gone before it reads anything.
    drop(tokio::io::AsyncWriteExt::write_all(&mut stdin, sql.as_bytes()).await);
    drop(stdin);
    let output = soon(child.wait_with_output()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(err.into_owned()) }
}
