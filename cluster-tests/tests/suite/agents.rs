//! What agents do, and above all do not do, while applications are not looked at: no proxy takes part.

use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{Signal, wait_gone};
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Every database node's postmaster.
fn postmasters(cluster: &Cluster) -> Vec<Option<u32>> {
    cluster.nodes().iter().map(|node| node.postmaster()).collect()
}

#[tokio::test]
async fn agents_come_and_go_and_postgresql_does_not_notice() -> TestResult {
    let mut cluster = Cluster::for_test("agents").proxies(0).start().await?;
    let before = postmasters(&cluster);
    let generation = cluster.status().await?.generation;
    assert!(before[..3].iter().all(Option::is_some), "all three servers run: {before:?}");
    assert_eq!(cluster.writable().await, ["server1"]);

    // The primary's agent, once asked to go and once killed; then all of them.
    for signal in [Signal::TERM, Signal::KILL] {
        let agent = &mut cluster.node_mut("server1").agent;
        agent.stop(signal, SOON).await?;
        agent.start()?;
        cluster.until_healthy(SOON).await?;
        assert_eq!(postmasters(&cluster), before, "after {signal:?}");
    }
    for name in ["server2", "server3", "server4"] {
        cluster.node_mut(name).agent.stop(Signal::TERM, SOON).await?;
        cluster.node_mut(name).agent.start()?;
        cluster.until_healthy(SOON).await?;
    }
    assert_eq!(postmasters(&cluster), before);
    assert_eq!(cluster.status().await?.generation, generation, "nobody changed the primary");

    // The witness is lost: nothing to do, but it is told.
    cluster.node_mut("server4").agent.stop(Signal::KILL, SOON).await?;
    cluster
        .until("the loss of the witness is told", SOON, |status| {
            (!status.healthy && status.node("server4").is_some_and(|node| node.agent_type == "DOWN"))
                .then_some(())
        })
        .await?;
    assert_eq!(cluster.writable().await, ["server1"]);
    cluster.node_mut("server4").agent.start()?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(postmasters(&cluster), before);
    // The session of an agent, killed while it asked something.
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn without_a_majority_nobody_is_promoted_and_in_the_end_nobody_writes() -> TestResult {
    let mut cluster = Cluster::for_test("minority").proxies(0).start().await?;
    let generation = cluster.status().await?.generation;
    let primary = cluster.node("server1").postmaster().ok_or_else(|| Failure::new("server1 does not run"))?;

    // Two of four agents are left. They could promote nobody, so nobody else can be: the primary stays.
    for name in ["server3", "server4"] {
        cluster.node_mut(name).agent.stop(Signal::KILL, SOON).await?;
    }
    let watched = never("the primary changes without a majority", Duration::from_secs(6), async || {
        let writable = cluster.writable().await;
        (writable != ["server1"]).then(|| format!("writable: {writable:?}"))
    });
    watched.await?;

    // One is left, and can no longer tell whether it is alone or cut off.
    cluster.node_mut("server2").agent.stop(Signal::KILL, SOON).await?;
    assert!(wait_gone(primary, SOON).await, "the primary goes on all alone");
    assert_eq!(cluster.writable().await, Vec::<&str>::new());
    for name in ["server2", "server3", "server4"] {
        cluster.node_mut(name).agent.start()?;
    }
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await.len(), 1);

    // Two are left and the primary crashes: still nobody is promoted.
    let primary = cluster.primary().await?;
    let reached = cluster.status().await?.generation;
    assert!(reached >= generation);
    let others: Vec<String> =
        cluster.nodes().iter().map(|node| node.name.clone()).filter(|name| *name != primary).collect();
    for name in &others[1..] {
        cluster.node_mut(name).agent.stop(Signal::KILL, SOON).await?;
    }
    cluster.kill_postmaster(&primary).ok_or_else(|| Failure::new("the primary does not run"))?;
    let watched = never("a standby is promoted without a majority", Duration::from_secs(6), async || {
        let mut writable = cluster.writable().await;
        writable.retain(|name| *name != primary);
        (!writable.is_empty()).then(|| format!("writable: {writable:?}"))
    });
    watched.await?;
    for name in &others[1..] {
        cluster.node_mut(name).agent.start()?;
    }
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await.len(), 1);
    // The session of an agent, killed while it asked something.
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn servers_fail_and_come_back() -> TestResult {
    // Standbys are not started again by themselves, so that `resume` has something to do.
    let builder = Cluster::for_test("servers").proxies(0);
    let mut cluster = builder.agent_settings("[timings]\nrestart_standby_after = \"0s\"").start().await?;

    // A standby crashes: an operator takes it back, and nothing else happens.
    let generation = cluster.status().await?.generation;
    let killed = cluster.kill_postmaster("server3").ok_or_else(|| Failure::new("server3 does not run"))?;
    assert!(wait_gone(killed, SOON).await);
    cluster.until("server3 is missed", SOON, |status| (!status.healthy).then_some(())).await?;
    let resumed = cluster.cli("server4", &["resume", "server3"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.status().await?.generation, generation);

    // The primary crashes: a standby takes over, and the old primary follows it.
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    let promoted = cluster.until("another primary", SOON, |status| {
        status.primary().filter(|name| *name != "server1").map(str::to_owned)
    });
    let promoted = promoted.await?;
    assert_eq!(promoted, "server2", "the first in the order of priorities");
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.status().await?.generation, generation + 1);
    assert_eq!(cluster.writable().await, ["server2"]);

    // Planned, there and back.
    for to in ["server3", "server1"] {
        let answer = cluster.cli("server4", &["promote", "--switchover", "--to", to]).await?;
        assert_eq!(answer.code, 0, "{answer:?}");
        cluster.until_healthy(SOON).await?;
        assert_eq!(cluster.writable().await, [to]);
    }
    let history = cluster.cli("server2", &["history"]).await?;
    assert_eq!(history.code, 0, "{history:?}");
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_lost_node_is_replaced_and_returns_as_a_standby() -> TestResult {
    let mut cluster = Cluster::for_test("lost-node").proxies(0).netns(true).start().await?;
    let primary = cluster.node("server1").postmaster().ok_or_else(|| Failure::new("server1 does not run"))?;
    cluster.cut("server1").await?;
    // Cut off, it must stop writing by itself before anybody else starts.
    assert!(wait_gone(primary, SOON).await, "the cut-off primary goes on");
    let there = wait_until("another primary", SOON, async || {
        let status = cluster.status_of("server4").await.map_err(|error| error.to_string())?;
        status.primary().filter(|name| *name != "server1").map(str::to_owned).ok_or_else(|| status.summary())
    });
    let promoted = there.await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    cluster.heal("server1").await?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()]);
    let status = cluster.status().await?;
    assert!(status.standbys().contains(&"server1"), "{}", status.summary());
    Ok(cluster.finish(&[])?)
}
