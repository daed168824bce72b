//! An agent that does not belong here says so and goes, and PostgreSQL does not notice.

use std::time::Duration;

use pgherd_cluster_tests::process::{self, Signal, wait_gone};
use pgherd_cluster_tests::{Cluster, Failure, TestResult};

const SOON: Duration = Duration::from_secs(30);

fn postmasters(cluster: &Cluster) -> Vec<Option<u32>> {
    cluster.nodes().iter().map(|node| node.postmaster()).collect()
}

#[tokio::test]
async fn wrong_agents_are_turned_away() -> TestResult {
    let mut cluster = Cluster::for_test("refusals").proxies(0).start().await?;
    let before = postmasters(&cluster);
    cluster.node_mut("server3").agent.stop(Signal::TERM, SOON).await?;

    let other = |text: String| text.replace("name = \"refusals\"", "name = \"elsewhere\"");
    let reason = cluster.refused_agent("server3", other).await?;
    assert!(reason.contains("elsewhere") && reason.contains("refusals"), "{reason}");

    let twin = |text: String| text.replace("name = \"server3\"", "name = \"server2\"");
    let reason = cluster.refused_agent("server3", twin).await?;
    assert!(reason.contains("server2"), "{reason}");

    let typo = |text: String| text.replace("[node]", "[node]\npriorty = 1");
    let reason = cluster.refused_agent("server3", typo).await?;
    assert!(reason.contains("node.priorty") && reason.contains("priority"), "{reason}");
    let unwatched =
        |text: String| text + "\n[watchdog]\nmode = \"required\"\ndevice = \"/nowhere/watchdog\"\n";
    let reason = cluster.refused_agent("server3", unwatched).await?;
    assert!(reason.contains("cannot open the watchdog /nowhere/watchdog"), "{reason}");
    assert_eq!(postmasters(&cluster), before, "a refused agent touches nothing");

    cluster.node_mut("server3").agent.start()?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(postmasters(&cluster), before);
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_foreign_server_is_never_touched() -> TestResult {
    let mut cluster = Cluster::for_test("foreign").proxies(0).start().await?;
    cluster.node_mut("server3").agent.stop(Signal::TERM, SOON).await?;
    let standby = cluster.node("server3").postmaster().ok_or_else(|| Failure::new("server3 does not run"))?;
    process::signal(standby, Signal::INT);
    assert!(wait_gone(standby, SOON).await, "server3 does not stop");

    // Somebody else's data where ours was.
    let foreign = cluster.node("server3").postgres.clone().ok_or_else(|| Failure::new("a database node"))?;
    std::fs::rename(&foreign.data_dir, foreign.data_dir.with_extension("ours"))?;
    foreign.initdb().await?;
    foreign.start().await?;
    let running = cluster.node("server3").postmaster();
    let reason = cluster.refused_agent("server3", |text| text).await?;
    assert!(reason.contains("system identifier"), "{reason}");
    assert_eq!(cluster.node("server3").postmaster(), running, "the foreign server was touched");
    assert!(
        !foreign.data_dir.join("standby.signal").exists() && !foreign.data_dir.join("pgherd.conf").exists()
    );
    Ok(cluster.finish(&["password authentication failed", "role \"pgherd\" does not exist"])?)
}
