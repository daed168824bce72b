//! A cluster in the hands of a test or the demo: what can be asked of it and done to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::binaries::Binaries;
use crate::builder::Builder;
use crate::failure::Failure;
use crate::logs;
use crate::network::{Network, NetworkError, set_link};
use crate::node::{Node, Proxy};
use crate::postgres::{AGENT_USER, APP};
use crate::process::{self, CommandError};
use crate::status::{Status, StatusError};
use crate::undertaker::Undertaker;
use crate::wait::{NotReached, wait_until};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// What [`Builder::prepare`] hands over.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) binaries: Binaries,
    pub(crate) nodes: Vec<Node>,
    pub(crate) proxies: Vec<Proxy>,
    /// Where the logs go when nobody says that all went well.
    pub(crate) keep_logs: Option<PathBuf>,
    /// Holds the claims on its ports.
    pub(crate) network: Network,
    /// Removes everything; dropped last, when nothing of ours holds a child process any more.
    #[expect(dead_code, reason = "kept for its drop")]
    pub(crate) undertaker: Undertaker,
}

/// A whole cluster. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Cluster {
    http: reqwest::Client,
    parts: Parts,
}

/// What the operator's command line answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliAnswer {
    /// Its exit status; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// What a person would have to look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the logs hold what nobody expects:\n{}", .0.join("\n"))]
pub struct Alarms(Vec<String>);

/// One row of a `SHOW` command, by column.
pub type ShownRow = BTreeMap<String, String>;

impl Cluster {
    /// The way to a cluster.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The way to a cluster for a test, which keeps its logs unless it ends with [`Cluster::finish`].
    pub fn for_test(name: &str) -> Builder {
        let logs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs").join(name);
        Builder::default().name(name).keep_logs(logs)
    }

    pub(crate) fn new(parts: Parts) -> Self {
        Self { http: reqwest::Client::new(), parts }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.parts.dir
    }

    /// Its programs.
    pub fn binaries(&self) -> &Binaries {
        &self.parts.binaries
    }

    /// All nodes in the order of their ids.
    pub fn nodes(&self) -> &[Node] {
        &self.parts.nodes
    }

    pub(crate) fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    pub(crate) fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.parts.nodes
    }

    /// All proxies.
    pub fn proxies(&self) -> &[Proxy] {
        &self.parts.proxies
    }

    pub(crate) fn proxies_mut(&mut self) -> &mut [Proxy] {
        &mut self.parts.proxies
    }

    /// The node with this name.
    ///
    /// # Panics
    /// When there is none: a test that misspells a name is wrong.
    pub fn node(&self, name: &str) -> &Node {
        let found = self.parts.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("there is no node {name:?}"))
    }

    /// The same, to start and stop its agent.
    ///
    /// # Panics
    /// When there is none.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let found = self.parts.nodes.iter_mut().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("there is no node {name:?}"))
    }

    /// The proxy with this number, from 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn proxy(&self, number: usize) -> &Proxy {
        self.parts.proxies.get(number).unwrap_or_else(|| panic!("there is no proxy {number}"))
    }

    /// The same, to start and stop it.
    ///
    /// # Panics
    /// When there is none.
    pub fn proxy_mut(&mut self, number: usize) -> &mut Proxy {
        self.parts.proxies.get_mut(number).unwrap_or_else(|| panic!("there is no proxy {number}"))
    }

    /// Starts the agent of `node` with an altered configuration and waits until it gives up; what it
    /// wrote. An agent that runs on in spite of it is ended, and is a failure.
    pub async fn refused_agent(
        &self,
        node: &str,
        alter: impl FnOnce(String) -> String,
    ) -> Result<String, Failure> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let node = self.node(node);
        let text = std::fs::read_to_string(node.dir.join("agent.toml"))?;
        let altered = node.dir.join("altered.toml");
        std::fs::write(&altered, alter(text))?;
        let mut command = node.place.command(&self.parts.binaries.agent);
        command.arg("--config").arg(altered).current_dir(&node.dir);
        match process::run(command, PATIENCE).await {
            Err(CommandError::Failed { said, .. }) => Ok(said),
            Err(error) => Err(error.into()),
            Ok(said) => Err(Failure::new(format!("the agent ended as if all were well: {said}"))),
        }
    }

    /// What one agent says of the cluster.
    pub async fn status_of(&self, node: &str) -> Result<Status, StatusError> {
        Status::of(&self.http, &self.node(node).agent_url()).await
    }

    /// What the first agent that answers says of the cluster.
    pub async fn status(&self) -> Result<Status, StatusError> {
        first_status(&self.http, &self.parts.nodes).await
    }

    /// The primary now.
    pub async fn primary(&self) -> Result<String, NotReached> {
        self.until("there is a primary", Duration::from_secs(30), |status| {
            status.primary().map(str::to_owned)
        })
        .await
    }

    /// Waits for something in the status; the last status is told when it does not come.
    pub async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T, NotReached> {
        wait_until(what, within, async || {
            let status = self.status().await.map_err(|error| chain(&error))?;
            look(&status).ok_or_else(|| status.summary())
        })
        .await
    }

    /// Waits until every agent that runs says that all is well.
    pub async fn until_healthy(&mut self, within: Duration) -> Result<(), NotReached> {
        const WHAT: &str = "the cluster is healthy";
        let (http, nodes) = (self.http.clone(), &mut self.parts.nodes);
        let mut given_up = None;
        let waited = wait_until(WHAT, within, async || {
            for node in nodes.iter_mut() {
                if let Some(ended) = node.agent.ended() {
                    // Nothing gets better from here on: say so at once.
                    given_up = Some(format!("the agent of {} ended with {ended}", node.name));
                    return Ok(());
                }
            }
            // Each is asked: the others may not have missed one yet that was started a moment ago.
            let running: Vec<&Node> = nodes.iter().filter(|node| node.agent.pid().is_some()).collect();
            if running.is_empty() {
                return Err(chain(&StatusError::AllSilent));
            }
            for node in running {
                let status = Status::of(&http, &node.agent_url()).await;
                let status = status.map_err(|error| format!("{}: {}", node.name, chain(&error)))?;
                if !status.healthy {
                    return Err(status.summary());
                }
            }
            Ok(())
        });
        waited.await?;
        given_up.map_or(Ok(()), |missing| Err(NotReached { what: WHAT.to_owned(), missing }))
    }

    /// Waits until a proxy reads and writes, and sees every backend up.
    pub async fn until_proxy_serves(&mut self, number: usize, within: Duration) -> Result<(), NotReached> {
        const WHAT: &str = "the proxy serves";
        let mut given_up = None;
        let waited = wait_until(WHAT, within, async || {
            if let Some(ended) = self.proxy_mut(number).process.ended() {
                given_up = Some(format!("it ended with {ended}"));
                return Ok(());
            }
            let client = self.connect_proxy(number).await.map_err(|error| chain(&error))?;
            let written = "BEGIN; CREATE TEMP TABLE pgherd_try (n int) ON COMMIT DROP; INSERT INTO pgherd_try VALUES (1); COMMIT";
            client.batch_execute(written).await.map_err(|error| chain(&error))?;
            client.query_one("SELECT 1", &[]).await.map_err(|error| chain(&error))?;
            let nodes = self.show(number, "SHOW NODES").await.map_err(|error| chain(&error))?;
            let up =
                nodes.iter().filter(|row| row.get("status").is_some_and(|status| status == "up")).count();
            let databases = self.parts.nodes.iter().filter(|node| node.postgres.is_some()).count();
            if up == databases {
                Ok(())
            } else {
                Err(format!("{up} of {databases} backends are up: {nodes:?}"))
            }
        });
        waited.await?;
        given_up.map_or(Ok(()), |missing| Err(NotReached { what: WHAT.to_owned(), missing }))
    }

    /// A session of the application through the first proxy.
    pub async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        self.connect_proxy(0).await
    }

    /// A session of the application through a proxy.
    pub async fn connect_proxy(&self, number: usize) -> Result<Client, tokio_postgres::Error> {
        open(&self.way_in(number)).await
    }

    /// How the application gets in through a proxy.
    pub fn way_in(&self, number: usize) -> Config {
        let proxy = self.proxy(number);
        let mut config = Config::new();
        config.host(&proxy.place.host).port(proxy.port).user(APP).password(APP).dbname(APP);
        config
    }

    /// How the application gets in past the proxies.
    pub fn way_in_past_proxies(&self, node: &str) -> Result<Config, Failure> {
        let postgres = self.node(node).postgres.as_ref();
        let postgres = postgres.ok_or_else(|| Failure::new(format!("{node} has no PostgreSQL")))?;
        let mut config = Config::new();
        config.host(&postgres.place.host).port(postgres.port).user(APP).password(APP).dbname(APP);
        Ok(config)
    }

    /// A superuser's session on one server, past the proxy and past any cut network.
    pub async fn connect_server(&self, node: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        let Some(postgres) = &self.node(node).postgres else { return open(&config).await };
        config.host_path(&postgres.socket_dir).port(postgres.port).user(AGENT_USER).dbname(database);
        open(&config).await
    }

    /// What a proxy answers to one of its own questions, such as `SHOW NODES`.
    pub async fn show(&self, number: usize, question: &str) -> Result<Vec<ShownRow>, tokio_postgres::Error> {
        let client = self.connect_proxy(number).await?;
        let messages = client.simple_query(question).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let shown = |row: tokio_postgres::SimpleQueryRow| {
            let names: Vec<String> = row.columns().iter().map(|column| column.name().to_owned()).collect();
            let value = |at: usize| row.get(at).unwrap_or_default().to_owned();
            names.into_iter().enumerate().map(|(at, name)| (name, value(at))).collect()
        };
        Ok(rows.map(shown).collect())
    }

    /// The beginning of a command line that reaches this cluster.
    pub fn cli_prefix(&self) -> String {
        let url = self.parts.nodes.last().map(Node::agent_url).unwrap_or_default();
        format!("{} --agent {url}", self.parts.binaries.cli.display())
    }

    /// Runs the operator's command line against the agent of `node`.
    pub async fn cli(&self, node: &str, arguments: &[&str]) -> std::io::Result<CliAnswer> {
        let mut command = Command::new(&self.parts.binaries.cli);
        command.arg("--agent").arg(self.node(node).agent_url()).args(arguments);
        let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output().await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(CliAnswer {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        })
    }

    /// `kill -9` of a node's postmaster; its process number.
    pub fn kill_postmaster(&self, node: &str) -> Option<u32> {
        let postmaster = self.node(node).postmaster()?;
        process::signal(postmaster, Signal::KILL);
        Some(postmaster)
    }

    /// Cuts a node off from all others, as if its machine were lost.
    pub async fn cut(&self, node: &str) -> Result<(), NetworkError> {
        self.link(node, false).await
    }

    /// Connects it again.
    pub async fn heal(&self, node: &str) -> Result<(), NetworkError> {
        self.link(node, true).await
    }

    /// Loses the machine of a node: it is cut off, and every process on it is gone.
    pub async fn lose(&mut self, node: &str) -> Result<(), Failure> {
        self.cut(node).await?;
        self.kill_agent(node).await?;
        if let Some(netns) = &self.node(node).place.netns {
            process::kill_netns(netns).await;
            // A machine without power has no address that nobody has configured.
            crate::vip::drop_from(netns, crate::vip::address(self)).await;
        }
        Ok(())
    }

    /// Has it back: it is connected again, and its agent is started.
    pub async fn regain(&mut self, node: &str) -> Result<(), Failure> {
        self.heal(node).await?;
        Ok(self.node_mut(node).agent.start()?)
    }

    /// Ends an agent, its guardian first, so that nobody starts it again.
    pub async fn kill_agent(&mut self, node: &str) -> Result<(), Failure> {
        let node = self.node_mut(node);
        let worker = node.worker();
        node.agent.stop(Signal::KILL, STOP_TIME_MAX).await?;
        if let Some(worker) = worker {
            process::signal(worker, Signal::KILL);
            process::wait_gone(worker, STOP_TIME_MAX).await;
        }
        Ok(())
    }

    async fn link(&self, node: &str, up: bool) -> Result<(), NetworkError> {
        match &self.node(node).place.host_if {
            Some(host_if) => set_link(host_if, up).await,
            None => panic!("{node} lives on loopback: only a cluster with network namespaces can be cut"),
        }
    }

    /// Whether a server runs and accepts writes, asked past agents, proxies and network.
    pub async fn is_writable(&self, node: &str) -> bool {
        let Ok(client) = self.connect_server(node, APP).await else { return false };
        let row = client.query_one("SELECT NOT pg_is_in_recovery()", &[]).await;
        row.is_ok_and(|row| row.get(0))
    }

    /// The nodes whose server accepts writes; more than one must never be seen.
    pub async fn writable(&self) -> Vec<&str> {
        let mut writable = Vec::new();
        for node in &self.parts.nodes {
            if self.is_writable(&node.name).await {
                writable.push(node.name.as_str());
            }
        }
        writable
    }

    /// What the logs of all nodes and proxies hold that nobody expects.
    pub fn alarms(&self, expected: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for node in &self.parts.nodes {
            let mut here = logs::program_alarms(node.agent.log(), expected);
            if let Some(postgres) = &node.postgres {
                here.extend(logs::postgres_alarms(&postgres.log, expected));
            }
            found.extend(here.into_iter().map(|line| format!("{}/{line}", node.name)));
        }
        for proxy in &self.parts.proxies {
            found.extend(logs::program_alarms(proxy.process.log(), expected));
        }
        found
    }

    /// The end of a test in which all went well, if the logs agree. Whatever ends otherwise leaves its
    /// logs in `target/cluster-logs`.
    pub fn finish(mut self, expected: &[&str]) -> Result<(), Alarms> {
        let alarms = self.alarms(expected);
        if !alarms.is_empty() {
            return Err(Alarms(alarms));
        }
        self.parts.keep_logs = None;
        Ok(())
    }

    /// The ends of all logs.
    pub fn log_tails(&self, lines: usize) -> Vec<String> {
        self.logs().map(|log| format!("{}\n{}", log.display(), logs::tail(log, lines))).collect()
    }

    fn logs(&self) -> impl Iterator<Item = &Path> {
        let nodes = self.parts.nodes.iter();
        nodes
            .flat_map(|node| {
                std::iter::once(node.agent.log())
                    .chain(node.postgres.as_ref().map(|postgres| postgres.log.as_path()))
            })
            .chain(self.parts.proxies.iter().map(|proxy| proxy.process.log()))
    }
}

impl Drop for Cluster {
    /// Keeps the logs of a test that did not get to its end.
    fn drop(&mut self) {
        let Some(kept) = &self.parts.keep_logs else { return };
        let _of_an_earlier_run = std::fs::remove_dir_all(kept);
        for log in self.logs() {
            let Ok(inside) = log.strip_prefix(&self.parts.dir) else { continue };
            let to = kept.join(inside.display().to_string().replace('/', "-"));
            let _best_effort = std::fs::create_dir_all(kept).and_then(|()| std::fs::copy(log, to));
        }
    }
}

async fn first_status(http: &reqwest::Client, nodes: &[Node]) -> Result<Status, StatusError> {
    for node in nodes.iter().filter(|node| node.agent.pid().is_some()) {
        if let Ok(status) = Status::of(http, &node.agent_url()).await {
            return Ok(status);
        }
    }
    Err(StatusError::AllSilent)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    pgherd_common::errors::Chain(error).to_string()
}

async fn open(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let mut config = config.clone();
    config.connect_timeout(CONNECT_TIME_MAX);
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client, or with the server; either way the client's next query tells.
    tokio::spawn(connection);
    Ok(client)
}
