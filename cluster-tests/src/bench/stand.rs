//! Everything that is measured, running: a primary, two standbys, and before them each target.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_postgres::{Config, NoTls};

use super::packages;
use super::rivals::{self, PgBouncer, Servers};
use super::target::Target;
use crate::builder::{make_dir_for_postgres, write};
use crate::cluster::Cluster;
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::logs;
use crate::network::Network;
use crate::postgres::APP;
use crate::process::{Signal, run};
use crate::wait::wait_until;

/// Every target may hold connections of its own for each client of the largest workload. Nothing here
/// is about failover, so a loaded machine gets more patience than is usual.
const POSTGRES_SETTINGS: &str =
    "max_connections = 800\nshared_buffers = 256MB\nmax_wal_size = 1GB\ncheckpoint_timeout = 30min\n";
const AGENT_SETTINGS: &str = "[timings]\nlease = \"8s\"\nlocal_timeout = \"60s\"\nnode_timeout = \"20s\"\n\
     node_lost_after = \"60s\"\nelection_timeout_min = \"2s\"\nelection_timeout_max = \"4s\"\n";

const INIT_TIME_MAX: Duration = Duration::from_secs(600);
const SERVING_TIME_MAX: Duration = Duration::from_secs(30);
const END_TIME_MAX: Duration = Duration::from_secs(30);

/// What is to be started.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Before the servers.
    pub(super) targets: Vec<Target>,
    /// Statements are prepared in one transaction and used in another.
    pub(super) prepares: bool,
    /// pgbench's: 100,000 rows each.
    pub(super) scale: u32,
    /// PostgreSQL's programs, if not the newest installed.
    pub(super) pg_bin: Option<PathBuf>,
    /// Another PgBouncer than Debian's.
    pub(super) pgbouncer: Option<PathBuf>,
    /// For the end of our proxy's configuration.
    pub(super) proxy_settings: &'static str,
    /// How many clients ours and PgBouncer let in.
    pub(super) clients_max: usize,
}

/// A target that runs, or why it does not.
#[derive(Debug)]
pub(super) struct Running {
    /// Which.
    pub(super) target: Target,
    /// Where it listens.
    pub(super) port: u16,
    /// Its process; `None` for the direct way.
    pub(super) pid: Option<u32>,
    /// Why it cannot be measured.
    pub(super) trouble: Option<String>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Stand {
    /// In the order that was asked for.
    pub(super) targets: Vec<Running>,
    /// Where PostgreSQL's programs are.
    pub(super) bin_dir: PathBuf,
    /// For files of runs.
    pub(super) dir: PathBuf,
    /// Name and version of every program.
    pub(super) versions: Vec<(String, String)>,
    #[expect(dead_code, reason = "kept for the claims on its ports, which end with it")]
    network: Network,
    #[expect(
        dead_code,
        reason = "kept so that their ends are collected; the cluster's undertaker ends them"
    )]
    daemons: Vec<Daemon>,
    /// The servers, and our proxy. Dropped last: its undertaker ends everything else, too.
    cluster: Cluster,
}

impl Stand {
    /// Starts all of it and waits until it works.
    pub(super) async fn start(setup: &Setup, say: &dyn Fn(&str)) -> Result<Self, Failure> {
        say("starting a primary, two standbys, their agents and a proxy");
        let builder = Cluster::builder().name("bench").pg_bin(setup.pg_bin.clone());
        let builder = builder.postgres_settings(POSTGRES_SETTINGS).agent_settings(AGENT_SETTINGS);
        let builder = builder.proxy_settings(setup.proxy_settings);
        let cluster = builder.proxy_clients_max(Some(setup.clients_max)).start().await?;
        let mut starter = Starter::of(&cluster).await?;
        say(&format!("filling a database (pgbench, scale {})", setup.scale));
        starter.fill(setup.scale).await?;
        let mut targets = Vec::new();
        for target in &setup.targets {
            targets.push(starter.run(*target, setup, say).await?);
            let stand_in = *target == Target::PgBouncer && !starter.plans;
            if stand_in && setup.prepares {
                targets.push(starter.run(Target::PgBouncerSession, setup, say).await?);
            }
        }
        let Starter { bin_dir, dir, versions, network, daemons, .. } = starter;
        Ok(Self { targets, bin_dir, dir, versions, network, daemons, cluster })
    }

    /// Has our proxy end as it does when it is told to: one that was built to count what it does writes that down then.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        Ok(self.cluster.proxy_mut(0).process.stop(Signal::TERM, END_TIME_MAX).await?)
    }

    /// The servers, and our proxy.
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

/// Starts one after the other.
struct Starter<'a> {
    cluster: &'a Cluster,
    primary: String,
    servers: Servers,
    bin_dir: PathBuf,
    dir: PathBuf,
    versions: Vec<(String, String)>,
    network: Network,
    daemons: Vec<Daemon>,
    /// Whether PgBouncer carries prepared statements in transaction mode.
    plans: bool,
}

impl<'a> Starter<'a> {
    async fn of(cluster: &'a Cluster) -> Result<Self, Failure> {
        let primary = cluster.primary().await?;
        let of = |name: &str| cluster.node(name).postgres.as_ref();
        let first = of(&primary).ok_or_else(|| Failure::new("the primary has no PostgreSQL"))?;
        let standbys = cluster.nodes().iter().filter(|node| node.name != primary);
        let standbys = standbys.filter_map(|node| Some(node.postgres.as_ref()?.port));
        let ports = std::iter::once(first.port).chain(standbys).collect();
        let servers = Servers { host: first.place.host.clone(), ports };
        let (bin_dir, dir) = (first.bin_dir.clone(), cluster.dir().join("bench"));
        std::fs::create_dir_all(&dir)?;
        let versions = vec![
            ("PostgreSQL".to_owned(), packages::version(&bin_dir.join("postgres")).await),
            ("pgbench".to_owned(), packages::version(&bin_dir.join("pgbench")).await),
        ];
        let (network, daemons) = (Network::loopback(1), Vec::new());
        Ok(Self { cluster, primary, servers, bin_dir, dir, versions, network, daemons, plans: false })
    }

    /// pgbench's tables, on all three servers.
    async fn fill(&self, scale: u32) -> Result<(), Failure> {
        let mut command = Command::new(self.bin_dir.join("pgbench"));
        command.args(["-i", "-q", "-s", &scale.to_string(), "-U", APP, "-h", &self.servers.host]);
        command.args(["-p", &self.servers.primary_port().to_string(), APP]).env("PGPASSWORD", APP);
        run(command, INIT_TIME_MAX).await?;
        let client = self.cluster.connect_server(&self.primary, APP).await?;
        // What a read finds for the first time it would otherwise mark while it is measured.
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
        let row = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?;
        let written: String = row.get(0);
        let standbys = self.cluster.nodes().iter().filter(|node| node.postgres.is_some());
        for standby in standbys.filter(|node| node.name != self.primary) {
            let client = self.cluster.connect_server(&standby.name, APP).await?;
            let what = format!("{} has replayed all of it", standby.name);
            let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
            wait_until(&what, INIT_TIME_MAX, async || {
                let row = client.query_one(&caught_up, &[]).await.map_err(|error| error.to_string())?;
                let there: bool = row.get(0);
                if there { Ok(()) } else { Err(format!("not yet at {written}")) }
            })
            .await?;
        }
        Ok(())
    }

    /// A target that cannot be started is in trouble, which is no reason not to measure the others.
    async fn run(&mut self, target: Target, setup: &Setup, say: &dyn Fn(&str)) -> Result<Running, Failure> {
        let running = |port, pid, trouble| Running { target, port, pid, trouble };
        let proxy = self.cluster.proxy(0);
        match target {
            Target::Direct => return Ok(running(self.servers.primary_port(), None, None)),
            Target::Pgherd => {
                let version = packages::our_version(&self.cluster.binaries().proxy).await;
                self.versions.push((target.name().to_owned(), version));
                return Ok(running(proxy.port, proxy.process.pid(), None));
            }
            Target::PgBouncer
            | Target::PgBouncerSession
            | Target::Pgpool
            | Target::HaProxy
            | Target::Relay => (),
        }
        say(&format!("starting {target}"));
        let port = self.network.port(6500, 6500)?;
        let started = self.start(target, port, setup, say).await;
        Ok(match started {
            Ok(pid) => running(port, Some(pid), None),
            Err(error) => running(port, None, Some(format!("{error:?}"))),
        })
    }

    /// Starts it; its process.
    async fn start(
        &mut self,
        target: Target,
        port: u16,
        setup: &Setup,
        say: &dyn Fn(&str),
    ) -> Result<u32, Failure> {
        let given = match target {
            Target::PgBouncer | Target::PgBouncerSession => setup.pgbouncer.clone(),
            Target::Direct | Target::Pgherd | Target::Pgpool | Target::HaProxy | Target::Relay => None,
        };
        let program = match given {
            Some(program) => Some(program),
            None => packages::program(target, say).await?,
        };
        if let Some(program) = &program {
            let version = packages::version(program).await;
            if target == Target::PgBouncer {
                self.plans = packages::carries_prepared(&version);
            }
            if target != Target::PgBouncerSession {
                self.versions.push((target.name().to_owned(), version));
            }
        }
        let dir = self.dir.join(target.name());
        make_dir_for_postgres(&dir)?;
        let mut daemon = self.daemon(target, program, port, &dir, setup.clients_max).await?;
        daemon.start()?;
        let served = self.until_serving(&mut daemon, port).await;
        let log = daemon.log().to_owned();
        let pid = daemon.pid();
        self.daemons.push(daemon);
        served.map_err(|error| Failure::new(format!("{error:?}; its log: {}", logs::tail(&log, 5))))?;
        pid.ok_or_else(|| Failure::new("it has ended"))
    }

    /// Its files, and the command that starts it.
    async fn daemon(
        &mut self,
        target: Target,
        program: Option<PathBuf>,
        port: u16,
        dir: &Path,
        clients_max: usize,
    ) -> Result<Daemon, Failure> {
        let place = self.cluster.proxy(0).place.clone();
        let file = |name: &str| dir.join(name);
        let text = |path: &Path| path.display().to_string();
        let Some(program) = program else {
            let program = self.cluster.binaries().proxy.with_file_name("pgherd-bench");
            let at = |port: u16| format!("{}:{port}", self.servers.host);
            let arguments = ["relay", "--listen", &at(port), "--to", &at(self.servers.primary_port())];
            let arguments = arguments.map(str::to_owned).to_vec();
            return Ok(Daemon::new(target.name(), &program, arguments, place, dir));
        };
        let arguments: Vec<String> = match target {
            Target::Pgpool => {
                let control_port = self.network.port(9898, 9898)?;
                let conf = rivals::pgpool(&self.servers, port, control_port, dir);
                write(&file("pgpool.conf"), &conf)?;
                write(&file("pool_hba.conf"), rivals::pgpool_hba())?;
                write(&file("pool_passwd"), &rivals::pgpool_users())?;
                write(&file("pcp.conf"), "")?;
                let [conf, hba, control] = ["pgpool.conf", "pool_hba.conf", "pcp.conf"].map(file);
                vec![
                    "-n".into(),
                    "-f".into(),
                    text(&conf),
                    "-a".into(),
                    text(&hba),
                    "-F".into(),
                    text(&control),
                ]
            }
            Target::HaProxy => {
                write(&file("haproxy.cfg"), &rivals::haproxy(&self.servers, port))?;
                vec!["-db".into(), "-f".into(), text(&file("haproxy.cfg"))]
            }
            Target::PgBouncer
            | Target::PgBouncerSession
            | Target::Direct
            | Target::Pgherd
            | Target::Relay => {
                let session = target == Target::PgBouncerSession;
                let kind = PgBouncer { session, plans: self.plans, clients_max };
                let conf = rivals::pgbouncer(&self.servers, port, dir, kind);
                write(&file("pgbouncer.ini"), &conf)?;
                write(&file("users.txt"), &rivals::pgbouncer_users(&self.verifier().await?))?;
                vec![text(&file("pgbouncer.ini"))]
            }
        };
        // PgBouncer refuses to be root.
        let command = place.postgres_command(program);
        let words = command.as_std().get_args().map(|word| word.to_string_lossy().into_owned());
        let arguments = words.chain(arguments).collect();
        let first = Path::new(command.as_std().get_program());
        Ok(Daemon::new(target.name(), first, arguments, place, dir))
    }

    /// What the servers keep of the application's password.
    async fn verifier(&self) -> Result<String, Failure> {
        let client = self.cluster.connect_server(&self.primary, "postgres").await?;
        let row = client.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&APP]).await?;
        Ok(row.get(0))
    }

    async fn until_serving(&self, daemon: &mut Daemon, port: u16) -> Result<(), Failure> {
        let mut config = Config::new();
        config.host(&self.servers.host).port(port).user(APP).password(APP).dbname(APP);
        let mut ended = None;
        let what = format!("{} serves", daemon.name());
        wait_until(&what, SERVING_TIME_MAX, async || {
            ended = daemon.ended();
            if ended.is_some() {
                return Ok(());
            }
            let (client, connection) = config.connect(NoTls).await.map_err(|error| error.to_string())?;
            let connection = tokio::spawn(connection);
            let asked = client.simple_query("SELECT count(*) FROM pgbench_branches").await;
            drop(client);
            let _its_end = connection.await;
            asked.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        ended.map_or(Ok(()), |status| Err(Failure::new(format!("it ended with {status}"))))
    }
}
