//! What a watchdog is told: that it is petted as long as somebody can end PostgreSQL in time, and no
//! longer. The device is a stand-in; what it would do to the machine, the test does.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_cluster_tests::disk::SmallDisk;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{self, Signal, wait_gone};
use pgherd_cluster_tests::watchdog::{self, TIMEOUT, Watchdog};
use pgherd_cluster_tests::{Builder, Cluster, Failure, TestResult, never, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(2);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, value: impl std::fmt::Debug) {
    println!("FIGURE {what}: {value:?}");
}

type Watchdogs = BTreeMap<String, Watchdog>;

/// A healthy cluster, each of whose nodes has a watchdog.
async fn start(builder: Builder) -> Result<(Cluster, Watchdogs), Failure> {
    let builder = builder.proxies(0);
    let mut cluster = builder.prepare().await?;
    let mut watchdogs = Watchdogs::new();
    for node in cluster.nodes() {
        watchdogs.insert(node.name.clone(), Watchdog::of(node)?);
    }
    builder.make_servers(&cluster).await?;
    let names: Vec<String> = watchdogs.keys().cloned().collect();
    for name in names {
        cluster.node_mut(&name).agent.start()?;
    }
    cluster.until_healthy(SOON * 3).await?;
    Ok((cluster, watchdogs))
}

fn guardian(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).agent.pid().ok_or_else(|| Failure::new(format!("the agent of {node} does not run")))
}

fn worker(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).worker().ok_or_else(|| Failure::new(format!("{node} has no worker")))
}

fn postmaster(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).postmaster().ok_or_else(|| Failure::new(format!("{node} runs no PostgreSQL")))
}

async fn until_disarmed(watchdog: &Watchdog) -> TestResult {
    let disarmed = wait_until("the watchdog is disarmed", SOON, async || {
        if watchdog.is_disarmed() { Ok(()) } else { Err("it counts") }
    });
    Ok(disarmed.await?)
}

/// What a reset does to a node.
async fn reset(cluster: &mut Cluster, node: &str) -> Result<(), Failure> {
    let postmaster = cluster.node(node).postmaster();
    let mut doomed: Vec<u32> = postmaster.into_iter().chain(cluster.node(node).worker()).collect();
    doomed.extend(postmaster.map(process::children).unwrap_or_default());
    doomed.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    cluster.node_mut(node).agent.stop(Signal::KILL, SOON).await?;
    for pid in doomed {
        if !wait_gone(pid, SOON).await {
            return Err(Failure::new(format!("process {pid} of {node} outlives the reset")));
        }
    }
    Ok(())
}

/// Whoever of the others accepts writes.
async fn successor(cluster: &Cluster, old: &str) -> Result<String, Failure> {
    let others: Vec<&str> =
        ["server1", "server2", "server3"].into_iter().filter(|name| *name != old).collect();
    let found = wait_until("another primary", SOON, async || {
        for node in &others {
            if cluster.is_writable(node).await {
                return Ok((*node).to_owned());
            }
        }
        Err("none")
    });
    Ok(found.await?)
}

#[tokio::test]
async fn a_watchdog_is_petted_while_a_guardian_lives_and_disarmed_when_it_leaves() -> TestResult {
    let settings = Cluster::for_test("watchdog").agent_settings(watchdog::SETTINGS);
    let (mut cluster, watchdogs) = start(settings).await?;
    let generation = cluster.status().await?.generation;
    assert!(watchdogs.values().all(Watchdog::is_counting), "every agent has opened its device");
    // Counted anew from here.
    let starting: Vec<Duration> = watchdogs.values().map(Watchdog::longest_pause).collect();
    figure("longest pauses while the cluster formed", starting);

    // A worker that is killed is its guardian's business.
    process::signal(worker(&cluster, "server1")?, Signal::KILL);
    let leaving = never("a watchdog is left", LEASE * 2, async || {
        let left = watchdogs.iter().filter(|(_, watchdog)| !watchdog.is_counting());
        let left: Vec<&String> = left.map(|(name, _)| name).collect();
        (!left.is_empty()).then(|| format!("{left:?}"))
    });
    leaving.await?;
    cluster.until_healthy(SOON).await?;
    for (name, watchdog) in &watchdogs {
        let pause = watchdog.longest_pause();
        figure(&format!("longest pause of the watchdog of {name}"), pause);
        assert!(pause < TIMEOUT / 2, "{name}: {pause:?}");
    }

    // A worker that hangs over a primary: PostgreSQL is fenced in time, so the machine goes on.
    let primary = postmaster(&cluster, "server1")?;
    process::signal(worker(&cluster, "server1")?, Signal::STOP);
    assert!(wait_gone(primary, SOON).await, "the primary goes on");
    let promoted = successor(&cluster, "server1").await?;
    cluster.until_healthy(SOON).await?;
    let pause = watchdogs["server1"].longest_pause();
    figure("longest pause while the guardian fenced", pause);
    assert!(pause < TIMEOUT, "{pause:?}");
    assert_eq!(cluster.status().await?.generation, generation + 1);

    // Whoever is told to leave says goodbye, over a primary too.
    for node in [promoted.as_str(), "server4"] {
        let runs = cluster.node(node).postmaster();
        cluster.node_mut(node).agent.stop(Signal::TERM, SOON).await?;
        until_disarmed(&watchdogs[node]).await?;
        assert_eq!(cluster.node(node).postmaster(), runs);
        cluster.node_mut(node).agent.start()?;
        cluster.until_healthy(SOON).await?;
        assert!(watchdogs[node].is_counting(), "{node}");
    }
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_guardian_that_dies_or_hangs_is_missed_within_the_lease() -> TestResult {
    let settings = Cluster::for_test("watchdog-bites").agent_settings(watchdog::SETTINGS);
    let (mut cluster, watchdogs) = start(settings).await?;
    let generation = cluster.status().await?.generation;
    let deaths = [(Signal::KILL, "alone"), (Signal::STOP, "alone"), (Signal::STOP, "with its worker")];
    for (number, (signal, company)) in deaths.into_iter().enumerate() {
        let primary = cluster.primary().await?;
        let (guardian, worker) = (guardian(&cluster, &primary)?, worker(&cluster, &primary)?);
        let begun = Instant::now();
        process::signal(guardian, signal);
        if company != "alone" {
            process::signal(worker, signal);
        }
        let bites = watchdogs[&primary].until_it_bites(SOON).await?;
        let after = bites.saturating_duration_since(begun);
        figure(&format!("from {signal:?} of the guardian, {company}, to the reset"), after);
        assert!(!watchdogs[&primary].is_disarmed() && after < LEASE, "{after:?}");
        assert_eq!(cluster.writable().await, [primary.as_str()], "nobody else before");
        reset(&mut cluster, &primary).await?;
        let promoted = successor(&cluster, &primary).await?;
        figure("and to the first write elsewhere", begun.elapsed());
        assert_eq!(cluster.writable().await, [promoted.as_str()]);
        cluster.node_mut(&primary).agent.start()?;
        cluster.until_healthy(SOON * 2).await?;
        assert_eq!(cluster.writable().await, [promoted.as_str()]);
        let failovers = u64::try_from(number)? + 1;
        assert_eq!(cluster.status().await?.generation, generation + failovers, "one failover each");
    }
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_postgresql_that_cannot_be_killed_is_left_to_the_watchdog() -> TestResult {
    let settings = format!("{}\n[timings]\nlocal_timeout = \"3s\"", watchdog::SETTINGS);
    let settings = Cluster::for_test("watchdog-stuck").agent_settings(&settings).small_disk("server1", 300);
    let (mut cluster, watchdogs) = start(settings).await?;
    let generation = cluster.status().await?.generation;
    let disk = SmallDisk::of(cluster.node("server1")).ok_or_else(|| Failure::new("server1 has no disk"))?;
    // Whoever writes to a disk that hangs cannot be killed.
    disk.freeze().await?;
    let frozen = Instant::now();
    let bites = watchdogs["server1"].until_it_bites(SOON).await?;
    figure("from a disk that hangs to the reset", bites.saturating_duration_since(frozen));
    for other in ["server2", "server3"] {
        assert!(!cluster.is_writable(other).await, "{other} before the reset");
    }
    // A machine that survives its watchdog gets no other sign of life, since nothing is fenced.
    let petting = never("it is petted again", LEASE * 2, async || {
        let pause = watchdogs["server1"].longest_pause();
        (pause < TIMEOUT).then(|| format!("{pause:?}"))
    });
    petting.await?;
    let told = std::fs::read_to_string(cluster.node("server1").agent.log())?;
    assert!(told.contains("could not fence PostgreSQL"), "the guardian tries, and says that it cannot");
    // On the way down the disk lets go of whoever waited for it.
    let (reset, thawed) = tokio::join!(reset(&mut cluster, "server1"), disk.thaw());
    thawed?;
    reset?;
    let promoted = successor(&cluster, "server1").await?;
    figure("and to the first write elsewhere", frozen.elapsed());
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON * 2).await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    assert_eq!(cluster.status().await?.generation, generation + 1);
    Ok(cluster.finish(&["survive SIGKILL", CLIENT_LOST])?)
}
