//! From nothing to a healthy cluster, one step after the other.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::binaries::{Binaries, BinariesError};
use crate::cluster::{Cluster, Parts};
use crate::config_files;
use crate::daemon::{Daemon, DaemonError};
use crate::disk::SmallDisk;
use crate::install::{self, InstallError};
use crate::network::{Network, NetworkError, Place};
use crate::node::{Node, Proxy};
use crate::postgres::PostgresServer;
use crate::process::{CommandError, run};
use crate::undertaker::Undertaker;
use crate::vip;
use crate::wait::NotReached;

/// What a healthy cluster may take to form, on a machine that does other things too.
const HEALTHY_TIME_MAX: Duration = Duration::from_secs(90);
/// A Unix socket's path has room for 107 bytes; `/server1/socket/.s.PGSQL.65535` needs the rest.
const DIR_LENGTH_MAX: usize = 70;

/// No cluster.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL refuses to run as root, so somebody must be able to change users.
    #[error(
        "this needs root: PostgreSQL must run as user `postgres`, and missing packages are installed. \
         Run it with sudo, or in a container"
    )]
    NotRoot,
    /// Something is missing.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The programs are missing.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// The directory holds something.
    #[error(
        "{0} is not empty: everything in the cluster's directory is removed at the end, so give it one of its own"
    )]
    NotEmpty(PathBuf),
    /// PostgreSQL cannot get there.
    #[error(
        "user `postgres` cannot enter {0}: choose a directory all of whose parents are open to others, such as one in /tmp"
    )]
    NotOpen(PathBuf),
    /// Its sockets' names would be too long, or would break the tear-down.
    #[error("{0} cannot be used: the path may have at most {DIR_LENGTH_MAX} bytes and no blanks")]
    BadPath(PathBuf),
    /// A file or directory cannot be made.
    #[error("cannot write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The network cannot be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A PostgreSQL server cannot be made.
    #[error("cannot {step}")]
    Postgres {
        /// What was to be done.
        step: String,
        /// Why it was not.
        #[source]
        source: CommandError,
    },
    /// An agent or proxy cannot be started.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The cluster does not get well.
    #[error("{missed}{}", logs.iter().map(|log| format!("\n--- {log}")).collect::<String>())]
    Unhealthy {
        /// What it waited for. Told before the logs, so not as a source.
        missed: NotReached,
        /// The ends of the logs.
        logs: Vec<String>,
    },
}

type Progress = Box<dyn Fn(&str) + Send + Sync>;

/// What cluster is wanted.
pub struct Builder {
    name: String,
    dir: Option<PathBuf>,
    pg_bin: Option<PathBuf>,
    netns: bool,
    databases: usize,
    proxies: usize,
    synchronous: bool,
    virtual_ip: Option<String>,
    proxy_ip: bool,
    small_disk: Option<(String, u64)>,
    small_state_disk: Option<(String, u64)>,
    postgres_settings: String,
    agent_settings: String,
    node_settings: BTreeMap<String, String>,
    proxy_settings: String,
    proxy_clients_max: Option<usize>,
    keep_logs: Option<PathBuf>,
    progress: Progress,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: "demo".to_owned(),
            dir: None,
            pg_bin: None,
            netns: false,
            databases: 3,
            proxies: 1,
            synchronous: false,
            virtual_ip: None,
            proxy_ip: false,
            small_disk: None,
            small_state_disk: None,
            postgres_settings: String::new(),
            agent_settings: String::new(),
            node_settings: BTreeMap::new(),
            proxy_settings: String::new(),
            proxy_clients_max: None,
            keep_logs: None,
            progress: Box::new(|_| ()),
        }
    }
}

impl Builder {
    /// The cluster's name.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Where its files go: a new or an empty directory. A temporary one if not given.
    #[must_use]
    pub fn dir(self, dir: Option<PathBuf>) -> Self {
        Self { dir, ..self }
    }

    /// PostgreSQL's programs; the newest installed ones if not given.
    #[must_use]
    pub fn pg_bin(self, pg_bin: Option<PathBuf>) -> Self {
        Self { pg_bin, ..self }
    }

    /// Whether each server gets a network namespace.
    #[must_use]
    pub fn netns(self, netns: bool) -> Self {
        Self { netns, ..self }
    }

    /// How many servers have a database; one more is a witness.
    #[must_use]
    pub fn databases(self, databases: usize) -> Self {
        Self { databases, ..self }
    }

    /// How many proxies there are, all beside the witness.
    #[must_use]
    pub fn proxies(self, proxies: usize) -> Self {
        Self { proxies, ..self }
    }

    /// Whether a commit waits until one of the standbys has it, whichever: `failover.durability`.
    #[must_use]
    pub fn synchronous(self, synchronous: bool) -> Self {
        Self { synchronous, ..self }
    }

    /// Gives the primary a virtual IP, with these lines besides, and each server a network namespace.
    #[must_use]
    pub fn virtual_ip(self, lines: &str) -> Self {
        Self { virtual_ip: Some(lines.to_owned()), netns: true, ..self }
    }

    /// Gives the proxies a virtual IP and each of them another server's network namespace, from the last one on.
    #[must_use]
    pub fn proxy_ip(self) -> Self {
        Self { proxy_ip: true, netns: true, ..self }
    }

    /// Gives one server's data a disk of its own of this many megabytes (see [`SmallDisk`]).
    #[must_use]
    pub fn small_disk(self, node: &str, megabytes: u64) -> Self {
        Self { small_disk: Some((node.to_owned(), megabytes)), ..self }
    }

    /// Gives the state directory of one server's agent a disk of its own of this many megabytes.
    #[must_use]
    pub fn small_state_disk(self, node: &str, megabytes: u64) -> Self {
        Self { small_state_disk: Some((node.to_owned(), megabytes)), ..self }
    }

    /// Lines for the end of every `postgresql.conf`.
    #[must_use]
    pub fn postgres_settings(self, lines: &str) -> Self {
        Self { postgres_settings: lines.to_owned(), ..self }
    }

    /// Lines for the end of every `agent.toml`, such as a `[timings]` section.
    #[must_use]
    pub fn agent_settings(self, lines: &str) -> Self {
        Self { agent_settings: lines.to_owned(), ..self }
    }

    /// Lines for the section `[node]` of one server's `agent.toml`, such as its tags.
    #[must_use]
    pub fn node_settings(mut self, node: &str, lines: &str) -> Self {
        self.node_settings.insert(node.to_owned(), lines.to_owned());
        self
    }

    /// Lines for the end of every `proxy.toml`.
    #[must_use]
    pub fn proxy_settings(self, lines: &str) -> Self {
        Self { proxy_settings: lines.to_owned(), ..self }
    }

    /// How many clients each proxy lets in, if not as many as by default.
    #[must_use]
    pub fn proxy_clients_max(self, clients: Option<usize>) -> Self {
        Self { proxy_clients_max: clients, ..self }
    }

    /// Where logs are kept unless the cluster ends with [`Cluster::finish`].
    #[must_use]
    pub fn keep_logs(self, dir: PathBuf) -> Self {
        Self { keep_logs: Some(dir), ..self }
    }

    /// Is told each step before it is done.
    #[must_use]
    pub fn progress(self, progress: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Makes the cluster and waits until all of it works.
    pub async fn start(self) -> Result<Cluster, StartError> {
        let mut cluster = self.prepare().await?;
        self.say("initdb, then starting PostgreSQL on server1");
        self.make_servers(&cluster).await?;
        self.start_agents(&mut cluster).await?;
        self.start_proxies(&mut cluster).await?;
        Ok(cluster)
    }

    /// Everything up to the first process: programs, directories, addresses, files. Nothing of it works
    /// yet, but all of it is already in the hands of the undertaker.
    pub async fn prepare(&self) -> Result<Cluster, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Err(StartError::NotRoot);
        }
        let bin_dir = install::postgres_programs(self.pg_bin.as_deref(), &self.progress).await?;
        self.say(&format!("PostgreSQL: {}", bin_dir.display()));
        if self.netns {
            install::tool(install::IP, &self.progress).await?;
        }
        if self.small_disk.is_some() || self.small_state_disk.is_some() {
            install::tool(install::MKFS, &self.progress).await?;
        }
        let binaries = Binaries::find().await?;
        let start = |source| StartError::Io { path: PathBuf::from("/bin/sh"), source };
        let mut undertaker = Undertaker::start().map_err(start)?;
        let dir = self.make_dir(&mut undertaker).await?;
        self.say(&format!("directory: {}", dir.display()));
        let servers = self.databases + 1;
        let mut network = if self.netns {
            self.say("network namespaces, one for each server, on a bridge");
            Network::namespaces(servers, &mut undertaker).await?
        } else {
            Network::loopback(servers)
        };
        let places = network.places().to_vec();
        let mut nodes = Vec::new();
        for (place, id) in places.into_iter().zip(1u64..) {
            let database = usize::try_from(id).is_ok_and(|id| id <= self.databases);
            nodes.push(node(id, place, database, &dir, &bin_dir, &binaries, &mut network)?);
        }
        let mut proxies = Vec::new();
        for number in 1..=self.proxies {
            let beside = if self.proxy_ip { nodes.iter().nth_back(number - 1) } else { nodes.last() };
            let beside = beside.map(|node| node.place.clone());
            let place = beside.ok_or(NetworkError::NoFreeSubnet)?;
            // Each has the namespace to itself where they share an address.
            let offset = if self.proxy_ip { 0 } else { number - 1 };
            proxies.push(proxy(number, offset, place, &dir, &binaries, &mut network)?);
        }
        let small = self.small_disks(&nodes);
        for (disk, _) in &small {
            let io = |source| StartError::Io { path: disk.at().to_path_buf(), source };
            undertaker.will_unmount(disk.at()).map_err(io)?;
        }
        let (name, keep_logs) = (self.name.clone(), self.keep_logs.clone());
        let parts = Parts { name, dir, binaries, nodes, proxies, keep_logs, network, undertaker };
        let cluster = Cluster::new(parts);
        self.write_files(&cluster)?;
        for (disk, size) in small {
            self.say("a small disk for one server");
            let made = disk.make(size).await;
            made.map_err(|source| StartError::Postgres { step: "make a small disk".to_owned(), source })?;
        }
        Ok(cluster)
    }

    fn small_disks(&self, nodes: &[Node]) -> Vec<(SmallDisk, u64)> {
        let of = |name: &String| nodes.iter().find(|node| node.name == *name);
        let data = self.small_disk.as_ref();
        let data = data.and_then(|(name, size)| Some((SmallDisk::of(of(name)?)?, *size)));
        let state = self.small_state_disk.as_ref();
        let state = state.and_then(|(name, size)| Some((SmallDisk::of_agent(of(name)?), *size)));
        data.into_iter().chain(state).collect()
    }

    fn say(&self, step: &str) {
        (self.progress)(step);
    }

    /// A directory for all of it.
    pub(crate) async fn make_dir(&self, undertaker: &mut Undertaker) -> Result<PathBuf, StartError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Io { path, source }
        };
        let existed = self.dir.as_ref().is_some_and(|dir| dir.exists());
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => {
                let made = tempfile::Builder::new().prefix("pgherd-").tempdir();
                made.map_err(io(&std::env::temp_dir()))?.keep()
            }
        };
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let dir = dir.canonicalize().map_err(io(&dir))?;
        if dir.as_os_str().len() > DIR_LENGTH_MAX || dir.display().to_string().contains(char::is_whitespace) {
            return Err(StartError::BadPath(dir));
        }
        if std::fs::read_dir(&dir).map_err(io(&dir))?.next().is_some() {
            return Err(StartError::NotEmpty(dir));
        }
        let told = if existed { undertaker.will_empty(&dir) } else { undertaker.will_remove(&dir) };
        told.map_err(io(&dir))?;
        if !existed {
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).map_err(io(&dir))?;
        }
        let mut entering = Command::new("setpriv");
        entering
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", "test", "-x"])
            .arg(&dir);
        let entered = run(entering, Duration::from_secs(10)).await;
        entered.map_err(|_| StartError::NotOpen(dir.clone()))?;
        Ok(dir)
    }

    fn write_files(&self, cluster: &Cluster) -> Result<(), StartError> {
        let durability = if self.synchronous { "[failover]\ndurability = \"sync\"\n" } else { "" };
        let agent_settings = format!("{durability}{}", self.agent_settings);
        let virtual_ip = self.virtual_ip.as_ref().map(|lines| vip::section(cluster.nodes(), lines));
        let members: Vec<&Node> = cluster.nodes().iter().collect();
        for node in cluster.nodes() {
            let everywhere = if virtual_ip.is_some() { "listen_addresses = '*'\n" } else { "" };
            prepare_postgres(node, &format!("{everywhere}{}", self.postgres_settings))?;
            let state_dir = node.dir.join("state");
            let virtual_ip = virtual_ip.as_ref().filter(|_| node.postgres.is_some());
            let settings = format!("{agent_settings}\n{}", virtual_ip.map_or("", String::as_str));
            let own = self.node_settings.get(&node.name).map_or("", String::as_str);
            let lines = (own, settings.as_str());
            let text = config_files::agent(&self.name, node, &members, &state_dir, lines);
            write(&node.dir.join("agent.toml"), &text)?;
        }
        for proxy in cluster.proxies() {
            let dir = cluster.dir().join(&proxy.name);
            make_dir_for_postgres(&dir)?;
            let host = if self.proxy_ip { "0.0.0.0" } else { proxy.place.host.as_str() };
            let listen = format!("{host}:{}", proxy.port);
            let front = config_files::Front {
                name: &proxy.name,
                listen: &listen,
                clients_max: self.proxy_clients_max,
            };
            let shared =
                if self.proxy_ip { vip::proxy_section(cluster.nodes(), &proxy.name) } else { String::new() };
            let settings = format!("{}\n{shared}", self.proxy_settings);
            let text = config_files::proxy(&self.name, &front, cluster.nodes(), &settings);
            write(&dir.join("proxy.toml"), &text)?;
        }
        Ok(())
    }

    /// The first server runs when the agents come; the standbys are left for them to start.
    pub async fn make_servers(&self, cluster: &Cluster) -> Result<(), StartError> {
        let mut servers = cluster.nodes().iter().filter_map(|node| Some((node, node.postgres.as_ref()?)));
        let Some((_, primary)) = servers.next() else { return Ok(()) };
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| StartError::Postgres { step, source }
        };
        primary.initdb().await.map_err(failed("initdb server1"))?;
        primary.start().await.map_err(failed("start PostgreSQL on server1"))?;
        primary.create_roles().await.map_err(failed("create the roles on server1"))?;
        if !primary.copies_running() {
            primary.stop().await.map_err(failed("stop PostgreSQL on server1"))?;
        }
        self.say("copying server1 to the standbys");
        let mut copies = tokio::task::JoinSet::new();
        for (node, standby) in servers {
            let (name, standby, primary) = (node.name.clone(), standby.clone(), primary.clone());
            copies.spawn(async move { (name, standby.copy_of(&primary).await, standby) });
        }
        while let Some(copy) = copies.join_next().await {
            let Ok((name, copied, standby)) = copy else { continue };
            copied.map_err(failed(&format!("copy server1 to {name}")))?;
            write(&standby.data_dir.join("standby.signal"), "")?;
        }
        if !primary.copies_running() {
            primary.start().await.map_err(failed("start PostgreSQL on server1 again"))?;
        }
        Ok(())
    }

    async fn start_agents(&self, cluster: &mut Cluster) -> Result<(), StartError> {
        self.say("starting the agents");
        for node in cluster.nodes_mut() {
            node.agent.start()?;
        }
        self.say("waiting until the cluster has formed and its standbys stream");
        let healthy = cluster.until_healthy(HEALTHY_TIME_MAX).await;
        healthy.map_err(|missed| StartError::Unhealthy { missed, logs: cluster.log_tails(6) })
    }

    async fn start_proxies(&self, cluster: &mut Cluster) -> Result<(), StartError> {
        self.say("starting the proxy and waiting until reads and writes work through it");
        for proxy in cluster.proxies_mut() {
            proxy.process.start()?;
        }
        for number in 0..cluster.proxies().len() {
            let serving = cluster.until_proxy_serves(number, HEALTHY_TIME_MAX).await;
            serving.map_err(|missed| StartError::Unhealthy { missed, logs: cluster.log_tails(6) })?;
        }
        Ok(())
    }
}

/// A server, of which nothing is there yet.
pub(crate) fn node(
    id: u64,
    place: Place,
    database: bool,
    dir: &Path,
    bin_dir: &Path,
    binaries: &Binaries,
    network: &mut Network,
) -> Result<Node, StartError> {
    let name = format!("server{id}");
    let dir = dir.join(&name);
    let offset = u16::try_from(id).unwrap_or(0);
    let agent_port = network.port(7800, 7800 + offset)?;
    let postgres = if database {
        Some(PostgresServer::within(&dir, bin_dir, place.clone(), network.port(5432, 5600 + offset)?))
    } else {
        None
    };
    let arguments = vec!["--config".to_owned(), dir.join("agent.toml").display().to_string()];
    let agent = Daemon::new("agent", &binaries.agent, arguments, place.clone(), &dir);
    Ok(Node { id, name, place, dir, agent_port, agent, postgres })
}

/// The directories of a server, and what its PostgreSQL is configured with: these lines besides.
pub(crate) fn prepare_postgres(node: &Node, lines: &str) -> Result<(), StartError> {
    make_dir_for_postgres(&node.dir)?;
    let Some(postgres) = &node.postgres else { return Ok(()) };
    make_dir_for_postgres(&postgres.conf_dir)?;
    make_dir_for_postgres(&postgres.socket_dir)?;
    write(&postgres.config_file(), &(postgres.config() + lines))?;
    write(&postgres.conf_dir.join("pg_hba.conf"), &postgres.hba())?;
    write(&postgres.conf_dir.join("pg_ident.conf"), "")
}

fn proxy(
    number: usize,
    offset: usize,
    place: Place,
    dir: &Path,
    binaries: &Binaries,
    network: &mut Network,
) -> Result<Proxy, StartError> {
    let name = format!("proxy{number}");
    let offset = u16::try_from(offset).unwrap_or(0);
    // Proxies share a namespace, so beyond the first there is no usual port.
    let port = network.port(6432 + offset, 6432 + offset)?;
    let dir = dir.join(&name);
    let arguments = vec!["--config".to_owned(), dir.join("proxy.toml").display().to_string()];
    let process = Daemon::new("proxy", &binaries.proxy, arguments, place.clone(), &dir);
    Ok(Proxy { name, place, port, process })
}

/// Makes it, and gives it to user `postgres`.
pub(crate) fn make_dir_for_postgres(dir: &Path) -> Result<(), StartError> {
    let io = |source| StartError::Io { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    give_to_postgres(dir)
}

/// A file that only user `postgres` can read.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), StartError> {
    let io = |source| StartError::Io { path: path.to_owned(), source };
    std::fs::write(path, text).map_err(io)?;
    // Some hold passwords.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(io)?;
    give_to_postgres(path)
}

fn give_to_postgres(path: &Path) -> Result<(), StartError> {
    let io = |source| StartError::Io { path: path.to_owned(), source };
    let (uid, gid) = postgres_ids().map_err(io)?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(io)
}

/// The numbers of the operating system user `postgres`, which Debian's packages create locally.
fn postgres_ids() -> std::io::Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut fields = line.into_iter().flat_map(|line| line.split(':')).skip(1).map(str::parse::<u32>);
    match (fields.next(), fields.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok((uid, gid)),
        _ => Err(std::io::Error::other("there is no user `postgres` in /etc/passwd")),
    }
}
