//! PostgreSQL's parameters, set for the whole cluster, and its minor versions.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgherd_cluster_tests::cluster::CliAnswer;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, install, versions, wait_until};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(30);
const NODES: [&str; 3] = ["server1", "server2", "server3"];

/// What an agent says when it goes back to values that worked.
const GIVEN_UP: &str = "PostgreSQL does not start with this value";

async fn show(cluster: &Cluster, node: &str, name: &str) -> Result<String, tokio_postgres::Error> {
    let row = cluster.connect_server(node, APP).await?.query_one(&format!("SHOW {name}"), &[]).await?;
    Ok(row.get(0))
}

async fn all_have(cluster: &Cluster, name: &str, value: &str) -> TestResult {
    for node in NODES {
        assert_eq!(show(cluster, node, name).await?, value, "{name} on {node}");
    }
    Ok(())
}

/// What PostgreSQL says of a standby that has too little, whether it pauses or ends.
fn nobody_stopped_replaying(cluster: &Cluster) -> TestResult {
    for node in NODES {
        let server = cluster.node(node).postgres.as_ref().ok_or_else(|| Failure::new("a witness"))?;
        let log = String::from_utf8_lossy(&std::fs::read(&server.log)?).into_owned();
        for mark in ["insufficient parameter settings", "recovery has paused"] {
            assert!(!log.contains(mark), "{node} says: {mark}");
        }
    }
    Ok(())
}

fn refused(answer: &CliAnswer, why: &str) {
    assert!(answer.code == 1 && answer.err.contains(why), "{why} is not in {answer:?}");
}

/// Reads in one session until it is told to stop, and returns how often.
async fn read(client: Client, stop: Arc<AtomicBool>) -> Result<u64, tokio_postgres::Error> {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        client.query_one("SELECT count(*) FROM writer_parameters", &[]).await?;
        reads += 1;
    }
    Ok(reads)
}

/// The nodes that were restarted, in order.
fn restarted(answer: &CliAnswer) -> Vec<&str> {
    let begun = answer.out.lines().filter(|line| line.starts_with("restart of ") && line.ends_with(" begun"));
    begun.filter_map(|line| line.split_whitespace().nth(3)).collect()
}

async fn set(cluster: &Cluster, arguments: &[&str]) -> Result<CliAnswer, Failure> {
    let answer = cluster.cli("server4", &[&["pg-set"], arguments].concat()).await;
    answer.map_err(|error| Failure::new(format!("{error}")))
}

async fn is_set(cluster: &Cluster, arguments: &[&str]) -> TestResult {
    let answer = set(cluster, arguments).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    Ok(())
}

async fn is_restarted(cluster: &Cluster, node: &str) -> TestResult {
    let restarted = cluster.cli("server4", &["restart", node, "--yes"]).await?;
    assert_eq!(restarted.code, 0, "{restarted:?}");
    Ok(())
}

#[tokio::test]
async fn parameters_are_raised_on_standbys_first_and_lowered_on_the_primary_first() -> TestResult {
    let mut cluster = Cluster::for_test("parameters").start().await?;
    let writer = Writer::start(&cluster, "parameters").await?;
    writer.until_written(100, SOON).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read(cluster.connect().await?, Arc::clone(&stop)));
    what_a_reload_brings(&cluster).await?;

    let raised = set(&cluster, &["max_connections=120", "--restart"]).await?;
    assert_eq!((raised.code, restarted(&raised)), (0, vec!["server2", "server3", "server1"]), "{raised:?}");
    all_have(&cluster, "max_connections", "120").await?;
    // One of them is raised, the other is lowered.
    let mixed = set(&cluster, &["max_connections=90", "max_locks_per_transaction=80", "--restart"]).await?;
    let order = vec!["server2", "server3", "server1", "server2", "server3"];
    assert_eq!((mixed.code, restarted(&mixed)), (0, order), "{mixed:?}");
    all_have(&cluster, "max_connections", "90").await?;
    all_have(&cluster, "max_locks_per_transaction", "80").await?;
    let lowered = set(&cluster, &["max_connections=80", "--restart"]).await?;
    let order = vec!["server1", "server2", "server3"];
    assert_eq!((lowered.code, restarted(&lowered)), (0, order), "{lowered:?}");
    all_have(&cluster, "max_connections", "80").await?;

    // The primary alone is not raised.
    is_set(&cluster, &["max_connections=110"]).await?;
    let alone = cluster.cli("server4", &["restart", "server1", "--yes"]).await?;
    refused(&alone, "server1 would start with more than its standbys have");
    stop.store(true, Ordering::Relaxed);
    let reads = reader.await??;
    assert!(reads > 100, "{reads}");
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert!(outcome.errors.is_empty() && outcome.sessions_lost == 0, "it costs nobody an error: {outcome:?}");
    nobody_stopped_replaying(&cluster)?;
    a_failover_half_way(&mut cluster).await?;
    a_value_that_does_not_start(&mut cluster).await?;
    Ok(cluster.finish(&[CLIENT_LOST, GIVEN_UP])?)
}

async fn what_a_reload_brings(cluster: &Cluster) -> TestResult {
    is_set(cluster, &["work_mem=6MB", "log_min_duration_statement=5s"]).await?;
    all_have(cluster, "work_mem", "6MB").await?;
    let shown = cluster.cli("server2", &["pg-show"]).await?;
    assert!(shown.code == 0 && shown.out.matches("in effect").count() == 6, "{shown:?}");
    is_set(cluster, &["--node", "server3", "work_mem=7MB"]).await?;
    assert_eq!(show(cluster, "server1", "work_mem").await?, "6MB");
    assert_eq!(show(cluster, "server3", "work_mem").await?, "7MB");
    is_set(cluster, &["--node", "server3", "--reset", "work_mem"]).await?;
    all_have(cluster, "work_mem", "6MB").await?;

    for (asked, why) in [
        ("primary_conninfo=host=x", "pgherd sets it itself"),
        ("archive_command=true", "it names a program"),
        ("fsync=off", "what was committed lost"),
        ("max_wal_senders=2", "too low for 3 database nodes"),
        ("wal_level=minimal", "standbys need at least replica"),
        ("work_mem=banana", "invalid value for parameter"),
        ("no_such_thing=1", "there is no parameter no_such_thing"),
        ("block_size=4096", "block_size is fixed"),
    ] {
        refused(&set(cluster, &[asked]).await?, why);
    }
    refused(&set(cluster, &["--node", "server4", "work_mem=1MB"]).await?, "is a witness");
    refused(&set(cluster, &["--node", "server9", "work_mem=1MB"]).await?, "there is no node server9");
    assert_eq!(set(cluster, &["work_mem"]).await?.code, 2);
    let shown = cluster.cli("server1", &["pg-show", "--json"]).await?;
    assert_eq!(shown.out.matches("\"in_effect\"").count(), 6, "{shown:?}");
    Ok(())
}

/// server2 has more already, and becomes the primary of server3, which has less.
async fn a_failover_half_way(cluster: &mut Cluster) -> TestResult {
    is_restarted(cluster, "server2").await?;
    assert_eq!(cluster.cli("server4", &["set-priority", "server3", "0"]).await?.code, 0);
    cluster.until_healthy(SOON).await?;
    cluster.kill_agent("server1").await?;
    cluster.kill_postmaster("server1");
    cluster
        .until("server2 is the primary", SOON, |status| (status.primary() == Some("server2")).then_some(()))
        .await?;
    wait_until("server3 has as much as server2", SOON, async || {
        match show(cluster, "server3", "max_connections").await {
            Ok(value) if value == "110" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    // Meanwhile something is set, and server1 has it when it is back.
    let away = set(cluster, &["work_mem=9MB"]).await?;
    assert!(
        away.out.contains("server1 does not answer: it takes over what was set when it is back"),
        "{away:?}"
    );
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    all_have(cluster, "work_mem", "9MB").await?;
    all_have(cluster, "max_connections", "110").await?;
    nobody_stopped_replaying(cluster)
}

/// PostgreSQL reads it, and does not start with it: the first standby finds out, and nobody else tries.
async fn a_value_that_does_not_start(cluster: &mut Cluster) -> TestResult {
    let tried = set(cluster, &["superuser_reserved_connections=110", "--restart"]).await?;
    assert!(tried.code == 1 && tried.out.contains("must be less than max_connections"), "{tried:?}");
    assert!(tried.out.contains("not restarted, since that went wrong: server3, server2"), "{tried:?}");
    let status = cluster.cli("server4", &["cluster-status"]).await?;
    let told = "PostgreSQL on server1 does not take superuser_reserved_connections = '110'";
    assert!(status.code == 1 && status.out.contains(told), "{status:?}");
    is_set(cluster, &["--reset", "superuser_reserved_connections"]).await?;
    cluster.until_healthy(SOON).await?;
    Ok(())
}

/// Two minor versions of PostgreSQL, one after the other in the same place.
struct Minors {
    root: TempDir,
    old_dir: PathBuf,
    old: String,
    new_dir: PathBuf,
    new: String,
}

impl Minors {
    /// The installed one, and an older one, which is in place.
    async fn find() -> Result<Self, Failure> {
        let new_dir = install::postgres_programs(None, &|_| ()).await?;
        let new = versions::version_of(&new_dir).await?;
        let old_dir = versions::programs_of(new.0).await?;
        let old = versions::version_of(&old_dir).await?;
        assert!(old.0 == new.0 && old.1 < new.1, "{old:?} is not an older minor version than {new:?}");
        let [old, new] = [old, new].map(|(major, minor)| format!("{major}.{minor}"));
        let root = tempfile::Builder::new().prefix("pgherd-update-").tempdir()?;
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
        let minors = Self { root, old_dir, old, new_dir, new };
        minors.install_old()?;
        Ok(minors)
    }

    /// `postgres.bin_dir`.
    fn bin_dir(&self) -> PathBuf {
        self.root.path().join("bin")
    }

    fn install_old(&self) -> std::io::Result<()> {
        self.install(&self.old_dir)
    }

    fn install_new(&self) -> std::io::Result<()> {
        self.install(&self.new_dir)
    }

    /// As a package manager does it: all at once.
    fn install(&self, programs: &Path) -> std::io::Result<()> {
        let link = self.root.path().join("new");
        symlink(programs, &link)?;
        std::fs::rename(link, self.bin_dir())
    }
}

/// A `pgherd update` that waits for programs.
struct Waiting {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
}

impl Waiting {
    /// Until it has said so.
    async fn start(cluster: &Cluster, options: &[&str], mark: &str) -> Result<Self, Failure> {
        let mut command = Command::new(&cluster.binaries().cli);
        command.arg("--agent").arg(cluster.node("server4").agent_url()).arg("update").args(options);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let out = child.stdout.take().ok_or_else(|| Failure::new("its output is not piped"))?;
        let mut waiting = Self { child, lines: BufReader::new(out).lines(), said: String::new() };
        while !waiting.said.contains(mark) {
            let ended = || Failure::new(format!("it does not say {mark:?}"));
            tokio::time::timeout(SOON, waiting.hear()).await??.ok_or_else(ended)?;
        }
        Ok(waiting)
    }

    async fn hear(&mut self) -> std::io::Result<Option<()>> {
        let line = self.lines.next_line().await?;
        Ok(line.map(|line| self.said += &format!("{line}\n")))
    }

    /// All it has said, once it has succeeded.
    async fn finish(mut self) -> Result<String, Failure> {
        let finished = async {
            while self.hear().await?.is_some() {}
            self.child.wait().await
        };
        let status = tokio::time::timeout(SOON * 4, finished).await??;
        assert!(status.success(), "{}", self.said);
        Ok(self.said)
    }
}

/// Whether these are said one after the other.
fn in_this_order(said: &str, steps: &[&str]) -> bool {
    let places: Vec<_> = steps.iter().map(|step| said.find(step)).collect();
    places.iter().all(Option::is_some) && places.is_sorted()
}

async fn all_run(cluster: &Cluster, version: &str) -> TestResult {
    for node in NODES {
        let runs = show(cluster, node, "server_version").await?;
        assert_eq!(runs.split_whitespace().next(), Some(version), "{node}");
    }
    Ok(())
}

#[tokio::test]
async fn one_node_after_the_other_is_updated_and_no_client_gets_an_error() -> TestResult {
    let minors = Minors::find().await?;
    let mut cluster = Cluster::for_test("update").pg_bin(Some(minors.bin_dir())).start().await?;
    let check = cluster.cli("server4", &["update", "--check"]).await?;
    assert!(check.code == 0 && check.out.matches(&minors.old).count() == 6, "{check:?}");
    let nothing = cluster.cli("server4", &["update", "--yes"]).await?;
    let first_step = "to update, install the new version on a standby";
    assert!(nothing.code == 0 && nothing.out.contains(first_step), "{nothing:?}");
    let major = cluster.cli("server4", &["update", "--to", "99.1", "--yes"]).await?;
    assert!(major.code == 1 && major.out.contains("it takes pg_upgrade"), "{major:?}");

    let writer = Writer::start(&cluster, "update").await?;
    writer.until_written(100, SOON).await?;
    it_waits_for_the_programs(&cluster, &minors, &writer).await?;
    it_goes_on_from_what_it_finds(&cluster, &minors).await?;
    cluster.until_healthy(SOON).await?;
    who_is_disallowed_is_left_out(&mut cluster, &minors).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert!(outcome.errors.is_empty() && outcome.sessions_lost == 0, "it costs nobody an error: {outcome:?}");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

/// And goes on by itself once they are there.
async fn it_waits_for_the_programs(cluster: &Cluster, minors: &Minors, writer: &Writer) -> TestResult {
    let Minors { old, new, .. } = minors;
    let before = cluster.node("server2").postmaster();
    let told =
        format!("server2 has {old} installed; waiting for {new}. On server2, run:\n  put the new programs");
    let waiting = Waiting::start(cluster, &["--to", new, "--yes"], &told).await?;
    writer.until_written(200, SOON).await?;
    assert_eq!(cluster.node("server2").postmaster(), before, "nothing is restarted before they are there");
    minors.install_new()?;
    let said = waiting.finish().await?;
    assert!(said.ends_with(&format!("every node runs {new}\n")), "{said}");
    let steps = ["restart of standby server2", "restart of standby server3", "restart of primary server1"];
    assert!(in_this_order(&said, &steps), "{said}");
    all_run(cluster, new).await
}

/// From where somebody has left it half done, and what has changed while it waited.
async fn it_goes_on_from_what_it_finds(cluster: &Cluster, minors: &Minors) -> TestResult {
    let Minors { old, new, .. } = minors;
    minors.install_old()?;
    let check = cluster.cli("server4", &["update", "--check"]).await?;
    assert_eq!((check.code, check.out.matches("restart").count()), (1, 0), "nobody is made older: {check:?}");
    for node in NODES {
        is_restarted(cluster, node).await?;
    }
    all_run(cluster, old).await?;
    minors.install_new()?;
    is_restarted(cluster, "server3").await?;
    let check = cluster.cli("server4", &["update", "--check"]).await?;
    assert_eq!((check.code, check.out.matches("restart").count()), (1, 2), "{check:?}");

    // It waits for a standby that has become the primary by the time its programs are there.
    minors.install_old()?;
    let told = format!("server2 has {old} installed; waiting for {new}");
    let waiting = Waiting::start(cluster, &["--to", new, "--switchover", "--yes"], &told).await?;
    let promoted = cluster.cli("server4", &["promote", "--switchover", "--to", "server2"]).await?;
    assert_eq!(promoted.code, 0, "{promoted:?}");
    minors.install_new()?;
    let said = waiting.finish().await?;
    // A switchover stops the old primary, which starts with the new programs.
    let steps =
        ["restart of standby server1", "server1 runs", "is the primary (generation", "every node runs"];
    assert!(in_this_order(&said, &steps), "{said}");
    for never in ["restart of standby server3", "restart of primary"] {
        assert!(!said.contains(never), "{said}");
    }
    all_run(cluster, new).await?;
    assert_ne!(cluster.status().await?.primary(), Some("server2"));
    Ok(())
}

/// Stopped, it would stay down until it is allowed again.
async fn who_is_disallowed_is_left_out(cluster: &mut Cluster, minors: &Minors) -> TestResult {
    let Minors { old, new, .. } = minors;
    minors.install_old()?;
    is_restarted(cluster, "server2").await?;
    minors.install_new()?;
    assert_eq!(cluster.cli("server4", &["disallow-node", "server2"]).await?.code, 0);
    let before = cluster.node("server2").postmaster();
    let updated = cluster.cli("server4", &["update", "--yes"]).await?;
    assert!(updated.code == 1 && updated.out.contains("left out: it is disallowed"), "{updated:?}");
    let told = format!("every node that is allowed in the cluster runs {new}; left out, since disallow-node");
    let which = format!("\n  server2: runs {old}\nto update them as well, run `pgherd allow-node NODE`");
    assert!(in_this_order(&updated.out, &[&told, &which]), "{updated:?}");
    assert_eq!(cluster.node("server2").postmaster(), before);
    assert_eq!(cluster.cli("server4", &["allow-node", "server2"]).await?.code, 0);
    let updated = cluster.cli("server4", &["update", "--yes"]).await?;
    assert_eq!((updated.code, restarted(&updated)), (0, vec!["server2"]), "{updated:?}");
    assert!(updated.out.ends_with(&format!("every node runs {new}\n")), "{updated:?}");
    all_run(cluster, new).await
}
