//! Nodes that are lost one after the other, at once, or with their memory.

use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::Signal;
use pgherd_cluster_tests::{Cluster, Failure, NotReached, TestResult, never, wait_until};

const SOON: Duration = Duration::from_secs(40);
/// Short, so that a test need not be long; more than two leases.
const LOST_AFTER: &str = "[timings]\nnode_lost_after = \"5s\"";
/// Long enough that whoever was to leave would have left.
const LONG: Duration = Duration::from_secs(9);
const ALL: &[&str] = &["server1", "server2", "server3", "server4"];
/// What a server says when the agent at the other end of its session is killed, and what an agent says
/// of its lost store.
const EXPECTED: &[&str] = &[CLIENT_LOST, "the raft store of this node is new"];

/// The agent and the database of a node are killed.
async fn lose(cluster: &mut Cluster, name: &str) -> TestResult {
    cluster.node_mut(name).agent.stop(Signal::KILL, SOON).await?;
    if cluster.node(name).postgres.is_some() {
        cluster
            .kill_postmaster(name)
            .ok_or_else(|| Failure::new(format!("PostgreSQL of {name} does not run")))?;
    }
    Ok(())
}

async fn until_voting(cluster: &Cluster, voters: &[&str]) -> Result<(), NotReached> {
    let what = format!("the voters are {voters:?}");
    cluster.until(&what, SOON, |status| (status.voting == voters).then_some(())).await
}

async fn until_primary(cluster: &Cluster, name: &str) -> Result<(), NotReached> {
    cluster.until("the next primary", SOON, |status| (status.primary() == Some(name)).then_some(())).await
}

/// The voters stay as they are and `primary` stays writable, for long enough.
async fn stays(cluster: &Cluster, voters: &[&str], primary: &str) -> TestResult {
    let watched = never("the voters change, or nobody can write", LONG, async || {
        let status = cluster.status().await.ok()?;
        let writable = cluster.writable().await;
        (status.voting != voters || writable != [primary])
            .then(|| format!("voters {:?}, writable {writable:?}", status.voting))
    });
    Ok(watched.await?)
}

#[tokio::test]
async fn four_nodes_survive_losses_one_after_the_other() -> TestResult {
    let mut cluster = Cluster::for_test("losses").proxies(0).agent_settings(LOST_AFTER).start().await?;
    assert_eq!(cluster.status().await?.voting, ALL);

    lose(&mut cluster, "server3").await?;
    until_voting(&cluster, &["server1", "server2", "server4"]).await?;
    assert_eq!(cluster.writable().await, ["server1"]);

    // The primary's node; two of four voters could not have replaced it.
    lose(&mut cluster, "server1").await?;
    until_primary(&cluster, "server2").await?;
    until_voting(&cluster, &["server2", "server4"]).await?;
    assert_eq!(cluster.writable().await, ["server2"]);

    // A database and a witness are left. Without the witness the primary goes on, and the voters stay.
    lose(&mut cluster, "server4").await?;
    stays(&cluster, &["server2", "server4"], "server2").await?;

    for name in ["server4", "server3", "server1"] {
        cluster.node_mut(name).agent.start()?;
    }
    until_voting(&cluster, ALL).await?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await, ["server2"]);
    assert_eq!(cluster.status().await?.generation, 2, "one failover");
    Ok(cluster.finish(EXPECTED)?)
}

#[tokio::test]
async fn two_lost_at_once_keep_their_votes_and_lost_stores_come_back() -> TestResult {
    let mut cluster = Cluster::for_test("amnesia").proxies(0).agent_settings(LOST_AFTER).start().await?;
    for name in ["server3", "server4"] {
        cluster.node_mut(name).agent.stop(Signal::KILL, SOON).await?;
    }
    stays(&cluster, ALL, "server1").await?;
    for name in ["server3", "server4"] {
        cluster.node_mut(name).agent.start()?;
    }
    cluster.until_healthy(SOON).await?;

    // The raft store alone, then everything an agent has on its disk; then the primary's.
    for (name, everything) in [("server4", false), ("server3", true), ("server1", false)] {
        cluster.node_mut(name).agent.stop(Signal::KILL, SOON).await?;
        let state = cluster.node(name).dir.join("state");
        std::fs::remove_file(state.join("raft.redb"))?;
        if everything {
            std::fs::remove_file(state.join("generation"))?;
        }
        cluster.node_mut(name).agent.start()?;
        // It may be without a vote for a moment only, so its own word is what is waited for.
        wait_until("the node has its vote back", SOON, async || {
            let log = std::fs::read_to_string(cluster.node(name).agent.log()).map_err(|e| e.to_string())?;
            if log.contains("this node has its vote back") { Ok(()) } else { Err(name.to_owned()) }
        })
        .await?;
        until_voting(&cluster, ALL).await?;
        cluster.until_healthy(SOON).await?;
    }
    assert_eq!(cluster.writable().await.len(), 1);
    let status = cluster.status().await?;
    assert_ne!(status.primary(), Some("server1"), "without its memory it could not hold its lease");
    assert!(status.standbys().contains(&"server1"), "{}", status.summary());
    Ok(cluster.finish(EXPECTED)?)
}
