//! PostgreSQL's own regression and isolation suites, run against the primary and through the proxy of a
//! cluster with two standbys, to see whether anybody could tell the two apart.

mod outcome;
mod shares;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::install;
use crate::process::{CommandError, run as run_command};
use outcome::Outcome;
use sources::Suites;

/// The superuser that runs the suites, with a password, since the proxy asks for one.
const USER: &str = "postgres";
const PASSWORD: &str = "regress-secret";

/// The suites do not test durability, and are over sooner without. Nothing here is about failover
/// either, so a loaded machine gets more patience than is usual.
const POSTGRES_SETTINGS: &str = "fsync = off\nmax_prepared_transactions = 10\nmax_connections = 200\n\
     max_locks_per_transaction = 128\nwal_keep_size = 512MB\npg_stat_statements.max = 50000\ncompute_query_id = regress\n\
     max_standby_streaming_delay = 30s\n";
const AGENT_SETTINGS: &str = "[timings]\nlease = \"8s\"\nlocal_timeout = \"60s\"\nnode_timeout = \"20s\"\n\
     node_lost_after = \"60s\"\nelection_timeout_min = \"2s\"\nelection_timeout_max = \"4s\"\n";

/// Which suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// `pg_regress` with the parallel schedule.
    Regression,
    /// `pg_isolation_regress`.
    Isolation,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which suite.
    pub suite: Suite,
    /// How often through the proxy.
    pub runs: usize,
    /// Only these tests, in this order; the whole schedule if empty.
    pub only: Vec<String>,
    /// Whether to run it directly.
    pub direct: bool,
    /// Whether to run it through the proxy.
    pub proxied: bool,
    /// Commits wait until both standbys have replayed them: what still differs then is not for
    /// reading from a standby that is behind.
    pub remote_apply: bool,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// A run may take so long.
    pub time_max: Duration,
    /// Where results are kept.
    pub keep: PathBuf,
    /// Where the suites' sources are kept.
    pub sources: PathBuf,
}

/// Runs it and tells every step to `say`. Whether no test differed.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<bool, Failure> {
    let bin_dir = install::postgres_programs(options.pg_bin.as_deref(), say).await?;
    let suites = sources::suites(&bin_dir, &absolute(&options.sources)?, say).await?;
    say("starting a primary, two standbys, their agents and a proxy");
    let cluster = Cluster::builder()
        .name("regress")
        .pg_bin(options.pg_bin.clone())
        .postgres_settings(POSTGRES_SETTINGS)
        .agent_settings(AGENT_SETTINGS)
        .keep_logs(options.keep.join("logs"))
        .start()
        .await?;
    let primary = cluster.primary().await?;
    let client = cluster.connect_server(&primary, "postgres").await?;
    client.batch_execute(&format!("ALTER ROLE {USER} PASSWORD '{PASSWORD}'")).await?;
    if options.remote_apply {
        client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '2 (*)'").await?;
        client.batch_execute("ALTER SYSTEM SET synchronous_commit = 'remote_apply'").await?;
        client.batch_execute("SELECT pg_reload_conf()").await?;
    }
    let stage = Stage { options, suites: &suites, cluster: &cluster, primary: &primary, bin_dir: &bin_dir };
    stage.install().await?;
    let direct = if options.direct { Some(stage.run("direct", say).await?) } else { None };
    let mut all_same = true;
    if options.proxied {
        for number in 1..=options.runs {
            let proxied = stage.run(&format!("proxy-{number}"), say).await?;
            let Some(direct) = &direct else { continue };
            let differing = outcome::differences(direct, &proxied);
            all_same &= differing.is_empty() && !proxied.hung;
            for (test, what) in &differing {
                say(&format!("  {test}: {what}"));
            }
            say(&format!("run {number}: {} tests differ", differing.len()));
        }
    }
    Ok(all_same)
}

/// Programs that run elsewhere are told of it. The directory is made.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(path)?;
    path.canonicalize()
}

/// Everything a run needs.
struct Stage<'a> {
    options: &'a Options,
    suites: &'a Suites,
    cluster: &'a Cluster,
    primary: &'a str,
    bin_dir: &'a Path,
}

impl Stage<'_> {
    /// Where the suites are for user `postgres`, who cannot be expected to get into this repository.
    fn dir(&self) -> PathBuf {
        self.cluster.dir().join("suites")
    }

    async fn install(&self) -> Result<(), CommandError> {
        let dir = self.dir();
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(&self.suites.tests).arg(&dir);
        run_command(copy, Duration::from_secs(60)).await?;
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(&self.suites.libraries).arg(dir.join("lib"));
        run_command(copy, Duration::from_secs(60)).await?;
        let mut own = Command::new("chown");
        own.args(["-R", "postgres:postgres"]).arg(&dir);
        run_command(own, Duration::from_secs(60)).await.map(drop)
    }

    fn driver(&self, output: &Path, host: &str, port: u16) -> Command {
        let (driver, inside, schedule) = match self.options.suite {
            Suite::Regression => ("regress/pg_regress", "regress", "parallel_schedule"),
            Suite::Isolation => ("isolation/pg_isolation_regress", "isolation", "isolation_schedule"),
        };
        let input = self.dir().join(inside);
        let place = &self.cluster.proxy(0).place;
        let mut command = place.postgres_command(self.suites.drivers.join(driver));
        command.arg(format!("--inputdir={}", input.display()));
        command.arg(format!("--outputdir={}", output.display()));
        command.arg(format!("--dlpath={}", self.dir().join("lib").display()));
        command.arg(format!("--bindir={}", self.bin_dir.display()));
        command.args([format!("--host={host}"), format!("--port={port}"), format!("--user={USER}")]);
        command.arg(format!("--dbname={}", self.database())).env("PGPASSWORD", PASSWORD);
        if self.options.only.is_empty() {
            command.arg(format!("--schedule={}", input.join(schedule).display()));
        }
        command.args(&self.options.only);
        command
    }

    fn database(&self) -> &'static str {
        match self.options.suite {
            Suite::Regression => "regression",
            Suite::Isolation => "isolation_regression",
        }
    }

    /// One run of the suite; its files are kept under `name`.
    async fn run(&self, name: &str, say: &dyn Fn(&str)) -> Result<Outcome, Failure> {
        let direct = name == "direct";
        say(&format!("running the suite: {name}"));
        self.clean().await?;
        let output = self.dir().join(name);
        std::fs::create_dir_all(output.join("results"))?;
        let mut own = Command::new("chown");
        own.args(["-R", "postgres:postgres"]).arg(&output);
        run_command(own, Duration::from_secs(10)).await?;
        shares::reset(self.cluster).await?;
        let server = self.cluster.node(self.primary).postgres.as_ref();
        let proxy = self.cluster.proxy(0);
        let mut command = match server {
            Some(server) if direct => self.driver(&output, &server.place.host, server.port),
            _ => self.driver(&output, &proxy.place.host, proxy.port),
        };
        let said = output.join("said");
        let log = std::fs::File::create(&said)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut child = command.spawn()?;
        let hung = timeout(self.options.time_max, child.wait()).await.is_err();
        if hung {
            child.kill().await?;
        }
        let counted = shares::count(self.cluster, self.database()).await?;
        let kept = absolute(&self.options.keep)?.join(name);
        let _of_an_earlier_run = std::fs::remove_dir_all(&kept);
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(&output).arg(&kept);
        run_command(copy, Duration::from_secs(60)).await?;
        let outcome = Outcome::read(&std::fs::read_to_string(&said)?, &kept, hung);
        say(&format!("{name}: {}; files in {}", outcome.told(), kept.display()));
        say(&format!("{name}: {}", counted.told()));
        Ok(outcome)
    }

    /// Takes away what an earlier run left, so that every run finds the same.
    async fn clean(&self) -> Result<(), Failure> {
        let client = self.cluster.connect_server(self.primary, "postgres").await?;
        client.batch_execute("SET synchronous_commit = local").await?;
        let stale = "SELECT gid, database FROM pg_prepared_xacts";
        for row in client.query(stale, &[]).await? {
            let (gid, database): (String, String) = (row.get(0), row.get(1));
            let client = self.cluster.connect_server(self.primary, &database).await?;
            client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await?;
        }
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database());
        client.batch_execute(&drop).await?;
        let left = "SELECT format('DROP SUBSCRIPTION %I', subname) FROM pg_subscription \
             UNION ALL SELECT format('DROP TABLESPACE %I', spcname) FROM pg_tablespace WHERE spcname LIKE 'regress%' \
             UNION ALL SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname LIKE 'regress%'";
        for row in client.query(left, &[]).await? {
            let statement: String = row.get(0);
            // Roles may hold on to others; what cannot go is seen by the suite itself.
            let _best_effort = client.batch_execute(&statement).await;
        }
        Ok(())
    }
}
