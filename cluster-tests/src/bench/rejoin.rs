//! How long it takes until a cluster is at full strength again, with no command: a primary that serves and two standbys that
//! stream and take reads. And how long `create-standby` takes beside plain `pg_basebackup`, under load.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::machine::Machine;
use super::stats::Spread;
use super::table::spread;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::install;
use crate::postgres::{APP, REPLICATION_PASSWORD, REPLICATION_USER};
use crate::process;
use crate::workload::Writer;

const PATIENCE: Duration = Duration::from_secs(300);

/// In one row of the filler, with what surrounds it: about 1.1 kB.
const ROWS_PER_MEGABYTE: u64 = 950;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each event is inflicted.
    pub runs: usize,
    /// How much `create-standby` copies; 0: it is left out.
    pub megabytes: u64,
    /// How often it does, in turn with `pg_basebackup`.
    pub copies: usize,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
}

/// Measures, and tells every step and the results to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<(), Failure> {
    say(&format!("load average: {}", Machine::here().load));
    install::tool(install::IP, say).await?;
    let builder = Cluster::builder().name("rejoin").netns(true).pg_bin(options.pg_bin.clone());
    let mut cluster = builder.start().await?;
    let writer = Writer::start(&cluster, "rejoin").await?;
    for event in [Event::Crash, Event::Loss, Event::Switchover] {
        let mut took = Vec::new();
        for _ in 0..options.runs {
            writer.until_written(50, PATIENCE).await?;
            let seconds = event.inflict(&mut cluster).await?.as_secs_f64();
            say(&format!("{}: {seconds:.2} s", event.told()));
            took.push(seconds);
        }
        say(&format!("{}, full strength after: {}", event.told(), spread(Spread::of(took), 2, " s")));
    }
    if options.megabytes > 0 {
        copies(&mut cluster, options, say).await?;
    }
    let outcome = writer.finish(&cluster).await?;
    say(&format!("meanwhile: {} commits, {} lost", outcome.acked, outcome.lost.len()));
    Ok(())
}

/// What happens to the primary.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Its postmaster is killed.
    Crash,
    /// Its machine is lost, and back once another node serves: counted from then on.
    Loss,
    /// It is asked for.
    Switchover,
}

impl Event {
    fn told(self) -> &'static str {
        match self {
            Self::Crash => "crash of the primary",
            Self::Loss => "loss of its node, from its return",
            Self::Switchover => "switchover",
        }
    }

    /// How long it took until all was well.
    async fn inflict(self, cluster: &mut Cluster) -> Result<Duration, Failure> {
        let primary = cluster.primary().await?;
        let mut begun = Instant::now();
        match self {
            Self::Crash => {
                cluster.kill_postmaster(&primary).ok_or_else(|| Failure::new("the primary does not run"))?;
            }
            Self::Loss => {
                cluster.lose(&primary).await?;
                let another = cluster.until("another primary", PATIENCE, |status| {
                    status.primary().filter(|name| *name != primary).map(|_| ())
                });
                another.await?;
                begun = Instant::now();
                cluster.regain(&primary).await?;
            }
            Self::Switchover => {
                let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
                if answer.code != 0 {
                    return Err(Failure::new(answer.err));
                }
            }
        }
        if !matches!(self, Self::Switchover) {
            // The status of a moment before it was noticed is healthy, too.
            let gone = cluster.until("it is noticed", PATIENCE, |status| {
                (!status.healthy || status.primary().is_some_and(|name| name != primary)).then_some(())
            });
            gone.await?;
        }
        cluster.until_healthy(PATIENCE).await?;
        cluster.until_proxy_serves(0, PATIENCE).await?;
        Ok(begun.elapsed())
    }
}

/// `create-standby` and `pg_basebackup` in turn, of the same source.
async fn copies(cluster: &mut Cluster, options: &Options, say: &dyn Fn(&str)) -> Result<(), Failure> {
    let switch = cluster.primary().await?;
    if switch != "server1" {
        let answer = cluster.cli("server4", &["promote", "--switchover", "--to", "server1"]).await?;
        if answer.code != 0 {
            return Err(Failure::new(answer.err));
        }
        cluster.until_healthy(PATIENCE).await?;
    }
    say(&format!("filling {} MB", options.megabytes));
    let client = cluster.connect_server("server1", APP).await?;
    let rows = options.megabytes * ROWS_PER_MEGABYTE;
    client.batch_execute("SET statement_timeout = 0; CREATE TABLE filler (i bigint, t text)").await?;
    for first in (1..=rows).step_by(100_000) {
        let last = (first + 99_999).min(rows);
        // Text that compresses badly is not needed: nothing on the way compresses.
        let fill = format!(
            "INSERT INTO filler SELECT g, repeat(md5(g::text), 32) FROM generate_series({first}, {last}) AS g"
        );
        client.batch_execute(&fill).await?;
    }
    client.batch_execute("CHECKPOINT").await?;
    cluster.until_healthy(PATIENCE).await?;
    let (mut plain, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.copies {
        let own = standby_gone(cluster).await?;
        let backup = plain_copy(cluster, &own).await?.as_secs_f64();
        std::fs::remove_dir_all(&own)?;
        settle_disk();
        let begun = Instant::now();
        let mut command = cluster.node("server3").place.command(&cluster.binaries().cli);
        command.arg("--config").arg(cluster.node("server3").dir.join("agent.toml"));
        command.args(["create-standby", "--from", "server2"]).stdin(Stdio::null()).kill_on_drop(true);
        process::run(command, PATIENCE * 4).await?;
        let created = begun.elapsed().as_secs_f64();
        cluster.node_mut("server3").agent.start()?;
        cluster.until_healthy(PATIENCE).await?;
        let strength = begun.elapsed().as_secs_f64();
        say(&format!(
            "pg_basebackup {backup:.1} s, create-standby {created:.1} s (in rotation after {strength:.1} s), ratio {:.3}",
            created / backup
        ));
        plain.push(backup);
        ours.push(created);
        ratios.push(created / backup);
    }
    say(&format!("pg_basebackup: {}", spread(Spread::of(plain), 1, " s")));
    say(&format!("create-standby: {}", spread(Spread::of(ours), 1, " s")));
    say(&format!("ratio: {}", spread(Spread::of(ratios), 3, "")));
    Ok(())
}

/// Takes server3 away, data and all; where that was.
async fn standby_gone(cluster: &mut Cluster) -> Result<PathBuf, Failure> {
    let node = cluster.node("server3");
    let data = node.data_dir().ok_or_else(|| Failure::new("server3 has no data"))?.to_owned();
    let postmaster = node.postmaster();
    cluster.kill_agent("server3").await?;
    if let Some(postmaster) = postmaster {
        process::signal(postmaster, Signal::QUIT);
        process::wait_gone(postmaster, PATIENCE).await;
    }
    std::fs::remove_dir_all(&data)?;
    settle_disk();
    Ok(data)
}

/// The disk is not to be busy with what was removed, nor with what the servers have written before.
fn settle_disk() {
    rustix::fs::sync();
}

/// What a DBA would run.
async fn plain_copy(cluster: &Cluster, into: &std::path::Path) -> Result<Duration, Failure> {
    let server = |name: &str| {
        let postgres = cluster.node(name).postgres.as_ref();
        postgres.ok_or_else(|| Failure::new(format!("{name} has no PostgreSQL")))
    };
    let (source, own) = (server("server2")?, server("server3")?);
    let mut command = own.place.postgres_command(own.bin_dir.join("pg_basebackup"));
    command.args(["-h", &source.place.host, "-p", &source.port.to_string(), "-U", REPLICATION_USER]);
    command.args(["--checkpoint=fast", "--wal-method=stream"]).arg("-D").arg(into);
    command.env("PGPASSWORD", REPLICATION_PASSWORD);
    let begun = Instant::now();
    process::run(command, PATIENCE * 4).await?;
    Ok(begun.elapsed())
}
