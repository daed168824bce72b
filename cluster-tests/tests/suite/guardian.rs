//! What becomes of PostgreSQL when an agent crashes, hangs or is taken away.

use std::time::Duration;

use pgherd_cluster_tests::disk::SmallDisk;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{self, Signal, wait_gone};
use pgherd_cluster_tests::workload::{Outcome, Writer};
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(2);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, value: impl std::fmt::Debug) {
    println!("{what}: {value:?}");
}

fn worker(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).worker().ok_or_else(|| Failure::new(format!("{node} has no worker")))
}

fn postmaster(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).postmaster().ok_or_else(|| Failure::new(format!("{node} runs no PostgreSQL")))
}

/// The worker that follows `before`.
async fn replaced(cluster: &Cluster, node: &str, before: u32) -> Result<u32, Failure> {
    let new = wait_until("another worker", SOON, async || {
        let worker = cluster.node(node).worker().filter(|worker| *worker != before);
        worker.ok_or_else(|| "not yet".to_owned())
    });
    Ok(new.await?)
}

fn assert_undisturbed(outcome: &Outcome, what: &str) {
    assert!(outcome.acked > 100, "{what}: {outcome:?}");
    assert!(outcome.duplicated.is_empty() && outcome.sessions_lost == 0, "{what}: {outcome:?}");
}

#[tokio::test]
async fn a_killed_worker_costs_nothing() -> TestResult {
    let mut cluster = Cluster::for_test("worker-killed").start().await?;
    let generation = cluster.status().await?.generation;
    let before = postmaster(&cluster, "server1")?;
    figure("resident kB of the guardian", cluster.node("server1").agent.pid().and_then(process::resident_kb));
    for (number, signal) in [Signal::KILL, Signal::ABORT, Signal::KILL].into_iter().enumerate() {
        let writer = Writer::start(&cluster, &format!("killed{number}")).await?;
        writer.until_written(100, SOON).await?;
        let old = worker(&cluster, "server1")?;
        process::signal(old, signal);
        let killed = Instant::now();
        assert!(wait_gone(old, SOON).await);
        let new = replaced(&cluster, "server1", old).await?;
        assert_ne!(old, new);
        writer.until_written(100, SOON).await?;
        cluster.until_healthy(SOON).await?;
        figure("healthy again after", killed.elapsed());
        // Longer than the deadline that stood when the worker died.
        writer.until_written(600, SOON).await?;
        let outcome = writer.finish(&cluster).await?;
        assert_undisturbed(&outcome, "worker killed");
        assert!(outcome.lost.is_empty() && outcome.errors.is_empty(), "{outcome:?}");
        figure(&format!("outage after {signal:?} of the worker"), outcome.longest_gap);
        // A quiet machine shows less than 100 ms, which is told.
        assert!(outcome.longest_gap < Duration::from_millis(500), "{outcome:?}");
        assert_eq!(postmaster(&cluster, "server1")?, before, "PostgreSQL was touched");
    }
    // A standby's and the witness's, in the same way.
    for node in ["server2", "server4"] {
        let postmaster = cluster.node(node).postmaster();
        let old = worker(&cluster, node)?;
        process::signal(old, Signal::KILL);
        replaced(&cluster, node, old).await?;
        cluster.until_healthy(SOON).await?;
        assert_eq!(cluster.node(node).postmaster(), postmaster);
    }
    assert_eq!(cluster.status().await?.generation, generation, "nobody changed the primary");
    // The session of a worker that was killed while it asked something.
    Ok(cluster.finish(&["panicked", "RUST_BACKTRACE", CLIENT_LOST])?)
}

#[tokio::test]
async fn a_hung_worker_does_not_keep_postgresql_writable() -> TestResult {
    let mut cluster = Cluster::for_test("worker-hung").start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "hung").await?;
    writer.until_written(100, SOON).await?;
    let (old, primary) = (worker(&cluster, "server1")?, postmaster(&cluster, "server1")?);
    process::signal(old, Signal::STOP);
    let stopped = Instant::now();
    assert!(wait_gone(primary, SOON).await, "the primary goes on");
    figure("from SIGSTOP of the worker to the end of the postmaster", stopped.elapsed());
    assert!(stopped.elapsed() < LEASE, "{:?}", stopped.elapsed());
    cluster
        .until("another primary", SOON, |status| {
            status.primary().filter(|name| *name != "server1").map(|_| ())
        })
        .await?;
    // Nobody wakes it: it is replaced.
    assert!(wait_gone(old, SOON).await, "the hung worker was left");
    cluster.until_healthy(SOON).await?;
    writer.until_written(100, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "worker hung");
    figure("outage after SIGSTOP of the worker", outcome.longest_gap);
    let status = cluster.status().await?;
    assert_eq!(status.generation, generation + 1, "one failover: {}", status.summary());
    assert!(status.standbys().contains(&"server1"), "{}", status.summary());

    // A standby's worker guards nothing: it is replaced and its PostgreSQL not touched.
    let name = if status.primary() == Some("server3") { "server2" } else { "server3" };
    let (old, standby) = (worker(&cluster, name)?, postmaster(&cluster, name)?);
    process::signal(old, Signal::STOP);
    replaced(&cluster, name, old).await?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(postmaster(&cluster, name)?, standby);
    assert_eq!(cluster.status().await?.generation, generation + 1);
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_worker_killed_with_its_postmaster_leads_to_a_failover_that_loses_nothing() -> TestResult {
    let mut cluster = Cluster::for_test("both-killed").start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "both").await?;
    writer.until_written(100, SOON).await?;
    // What is committed from here on only this node's disk has: its next worker gives it to the others.
    cluster.node("server1").walsenders().iter().for_each(|sender| process::signal(*sender, Signal::STOP));
    writer.until_written(100, SOON).await?;
    let (worker, primary) = (worker(&cluster, "server1")?, postmaster(&cluster, "server1")?);
    process::signal(worker, Signal::KILL);
    process::signal(primary, Signal::KILL);
    cluster
        .until("another primary", SOON, |status| {
            status.primary().filter(|name| *name != "server1").map(|_| ())
        })
        .await?;
    writer.until_written(100, SOON).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "both killed");
    assert!(outcome.lost.is_empty(), "{outcome:?}");
    figure("outage after SIGKILL of worker and postmaster", outcome.longest_gap);
    assert!(outcome.longest_gap < Duration::from_millis(1500), "{outcome:?}");
    assert_eq!(cluster.status().await?.generation, generation + 1);
    // The session of the worker, killed while it asked something.
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn without_agent_and_guardian_the_primary_stays_and_is_called_unguarded() -> TestResult {
    let mut cluster = Cluster::for_test("unguarded").start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "unguarded").await?;
    writer.until_written(100, SOON).await?;
    let (old, primary) = (worker(&cluster, "server1")?, postmaster(&cluster, "server1")?);
    cluster.node_mut("server1").agent.stop(Signal::KILL, SOON).await?;
    assert!(wait_gone(old, Duration::from_secs(2)).await, "the worker outlives its guardian");
    let told = wait_until("it is told", SOON, async || {
        let answer = cluster.cli("server2", &["cluster-status"]).await.map_err(|error| error.to_string())?;
        if answer.out.contains("unguarded") { Ok(()) } else { Err(answer.out) }
    });
    told.await?;
    let watched = never("the primary changes", LEASE * 2, async || {
        let writable = cluster.writable().await;
        (writable != ["server1"]).then(|| format!("writable: {writable:?}"))
    });
    watched.await?;
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(100, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "unguarded");
    assert!(outcome.errors.is_empty() && outcome.lost.is_empty(), "{outcome:?}");
    assert_eq!(postmaster(&cluster, "server1")?, primary, "it is adopted as it is");
    assert_eq!(cluster.status().await?.generation, generation);

    // Told to stop, an agent leaves PostgreSQL too, and says so.
    cluster.node_mut("server1").agent.stop(Signal::TERM, SOON).await?;
    let log = std::fs::read_to_string(cluster.node("server1").agent.log())?;
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("PostgreSQL is left as it is"), "{last}");
    assert_eq!(postmaster(&cluster, "server1")?, primary);
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(postmaster(&cluster, "server1")?, primary);
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

fn guardian(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).agent.pid().ok_or_else(|| Failure::new(format!("{node} has no guardian")))
}

/// Looks for so long that nobody but `primary` accepts writes.
async fn nobody_else_writes(cluster: &Cluster, primary: &str, during: Duration) -> TestResult {
    let watched = never("somebody else writes", during, async || {
        let writable = cluster.writable().await;
        (writable != [primary]).then(|| format!("writable: {writable:?}"))
    });
    Ok(watched.await?)
}

#[tokio::test]
async fn a_guardian_that_hangs_alone_changes_nothing() -> TestResult {
    let mut cluster = Cluster::for_test("guardian-hung").start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "guardian").await?;
    writer.until_written(100, SOON).await?;
    let (guardian, worker) = (guardian(&cluster, "server1")?, worker(&cluster, "server1")?);
    let primary = postmaster(&cluster, "server1")?;
    process::signal(guardian, Signal::STOP);
    nobody_else_writes(&cluster, "server1", LEASE * 4).await?;
    writer.until_written(100, SOON).await?;
    process::signal(guardian, Signal::CONT);
    // It hears all that it has missed before it acts.
    nobody_else_writes(&cluster, "server1", LEASE * 2).await?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(100, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "guardian hung");
    assert!(outcome.errors.is_empty() && outcome.lost.is_empty(), "{outcome:?}");
    assert_eq!(postmaster(&cluster, "server1")?, primary);
    assert_eq!(cluster.node("server1").worker(), Some(worker));
    assert_eq!(cluster.status().await?.generation, generation);
    Ok(cluster.finish(&["the guardian of this agent hangs", CLIENT_LOST])?)
}

#[tokio::test]
async fn an_agent_that_hangs_as_a_whole_never_makes_two_primaries() -> TestResult {
    let mut cluster = Cluster::for_test("agent-hung").start().await?;
    let writer = Writer::start(&cluster, "agent").await?;
    for first_awake in ["guardian", "worker"] {
        let primary = cluster.primary().await?;
        let generation = cluster.status().await?.generation;
        let (guardian, worker) = (guardian(&cluster, &primary)?, worker(&cluster, &primary)?);
        writer.until_written(100, SOON).await?;
        process::signal(guardian, Signal::STOP);
        process::signal(worker, Signal::STOP);
        // Nobody can end this PostgreSQL, and it answers: it stays what it is.
        let told = wait_until("it is told", SOON, async || {
            let answer =
                cluster.cli("server4", &["cluster-status"]).await.map_err(|error| error.to_string())?;
            if answer.out.contains("unguarded") { Ok(()) } else { Err(answer.out) }
        });
        told.await?;
        nobody_else_writes(&cluster, &primary, LEASE * 2).await?;
        writer.until_written(100, SOON).await?;
        let (first, second) = if first_awake == "guardian" { (guardian, worker) } else { (worker, guardian) };
        process::signal(first, Signal::CONT);
        let two = never("two accept writes", LEASE * 2, async || {
            let writable = cluster.writable().await;
            process::signal(second, Signal::CONT);
            (writable.len() > 1).then(|| format!("writable: {writable:?}"))
        });
        two.await?;
        cluster.until_healthy(SOON).await?;
        writer.until_written(100, SOON).await?;
        let after = cluster.status().await?.generation;
        figure(&format!("failovers, the {first_awake} first awake"), after - generation);
        assert!(after <= generation + 1, "{generation} {after}");
    }
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "agent hung");
    figure("outage after a whole agent hung", outcome.longest_gap);
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

/// What the kernel was asked for: who is to die for want of memory, and who runs first.
fn standing_of(process: u32) -> Result<(i32, i32), Failure> {
    let score = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj"))?;
    let nice = rustix::process::getpriority_process(process::pid(process))?;
    Ok((score.trim().parse()?, nice))
}

/// Whether the kernel lets this process, and what it starts, ask not to be chosen when memory runs out.
fn may_ask_to_be_spared() -> Result<bool, Failure> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("0");
    Ok(u64::from_str_radix(held.trim(), 16)? & CAP_SYS_RESOURCE != 0)
}

#[tokio::test]
async fn memory_and_processors_are_there_for_the_guardian_first() -> TestResult {
    let mut cluster = Cluster::for_test("standing").proxies(0).start().await?;
    // The standbys' servers were started by their agents. One was started by an agent's second worker.
    let old = worker(&cluster, "server3")?;
    process::signal(old, Signal::KILL);
    replaced(&cluster, "server3", old).await?;
    let killed = cluster.kill_postmaster("server3");
    let started = wait_until("server3 is started again", SOON, async || {
        let postmaster = cluster.node("server3").postmaster();
        if postmaster.is_some() && postmaster != killed { Ok(()) } else { Err(format!("{postmaster:?}")) }
    });
    started.await?;
    cluster.until_healthy(SOON).await?;
    let (guardian_score, worker_score) = if may_ask_to_be_spared()? { (-1000, -900) } else { (0, 0) };
    figure("scores of guardian and worker", (guardian_score, worker_score));
    for node in ["server1", "server2", "server3", "server4"] {
        let agent = (standing_of(guardian(&cluster, node)?)?, standing_of(worker(&cluster, node)?)?);
        assert_eq!(agent, ((guardian_score, -10), (worker_score, -10)), "guardian and worker of {node}");
    }
    for node in ["server2", "server3"] {
        let postmaster = postmaster(&cluster, node)?;
        let (score, nice) = standing_of(postmaster)?;
        assert!(score > -1000 && nice == 0, "postmaster of {node}: {score} {nice}");
        let children = process::children(postmaster);
        assert!(children.len() > 3, "{children:?}");
        for child in children {
            // One that has just ended is no matter.
            let Ok(standing) = standing_of(child) else { continue };
            assert_eq!(standing, (0, 0), "{} of {node}", process::title(child));
        }
    }
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_primary_that_is_cut_off_while_its_worker_hangs_is_fenced() -> TestResult {
    let mut cluster = Cluster::for_test("cut-and-hung").proxies(0).netns(true).start().await?;
    let (old, primary) = (worker(&cluster, "server1")?, postmaster(&cluster, "server1")?);
    process::signal(old, Signal::STOP);
    cluster.cut("server1").await?;
    let cut = Instant::now();
    assert!(wait_gone(primary, SOON).await, "the primary goes on");
    figure("from cut and SIGSTOP to the end of the postmaster", cut.elapsed());
    assert!(cut.elapsed() < LEASE, "{:?}", cut.elapsed());
    let there = wait_until("another primary", SOON, async || {
        let status = cluster.status_of("server4").await.map_err(|error| error.to_string())?;
        status.primary().filter(|name| *name != "server1").map(str::to_owned).ok_or_else(|| status.summary())
    });
    let promoted = there.await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    cluster.heal("server1").await?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn an_agent_whose_disk_breaks_hands_its_primary_to_nobody() -> TestResult {
    let cluster = Cluster::for_test("state-disk").small_state_disk("server1", 24).start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "statedisk").await?;
    writer.until_written(100, SOON).await?;
    let primary = postmaster(&cluster, "server1")?;
    let disk = SmallDisk::of_agent(cluster.node("server1"));
    disk.break_down().await?;
    let (broken, acknowledged) = (Instant::now(), writer.acknowledged());
    // An entry for every log to write.
    let _answer = cluster.cli("server4", &["set-priority", "server3", "7"]).await?;
    assert!(wait_gone(primary, SOON).await, "the primary goes on unguarded");
    figure("from a broken state disk to the end of the postmaster", broken.elapsed());
    let elsewhere = wait_until("another primary", SOON, async || {
        let status = cluster.status_of("server4").await.map_err(|error| error.to_string())?;
        let primary = status.primary().filter(|name| *name != "server1");
        primary.map(str::to_owned).ok_or_else(|| status.summary())
    });
    elsewhere.await?;
    writer.until_written(100, SOON).await?;
    figure("outage after a broken state disk", broken.elapsed());
    assert_eq!(cluster.status_of("server4").await?.generation, generation + 1);
    let told =
        cluster.log_tails(2000).iter().any(|log| log.contains("raft has stopped on this node because"));
    assert!(told, "the agent says why");
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.duplicated.is_empty(), "{outcome:?}");
    // Replication is asynchronous, and no agent is left to hand out what the killed primary had not sent.
    figure("acknowledged commits that were not sent yet", outcome.lost.len());
    assert!(outcome.lost.iter().all(|seq| *seq > acknowledged), "{acknowledged} before: {outcome:?}");
    Ok(cluster.finish(&["Read-only file system", "raft has stopped", CLIENT_LOST])?)
}
