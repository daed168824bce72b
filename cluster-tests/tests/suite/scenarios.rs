//! The failover scenarios and the behaviours that a cluster of this kind has to show, row by row: one primary, two
//! standbys, a witness, two proxies, a virtual IP for the primary and one for the proxies, and an operator's scripts.

use std::time::Duration;

use pgherd_cluster_tests::desk::Desk;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{self, Signal, wait_gone};
use pgherd_cluster_tests::vip::{self, Watch, until_held};
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(40);
/// Longer than any failover takes to begin.
const WHILE: Duration = Duration::from_secs(5);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, time: Duration) {
    println!("FIGURE {what}: {} ms", time.as_millis());
}

/// The whole of it.
struct Site {
    cluster: Cluster,
    desk: Desk,
    /// Who has the primary's virtual IP.
    primary_ip: Watch,
    /// Who has the proxies'.
    proxy_ip: Watch,
}

impl Site {
    async fn start(name: &str) -> Result<Self, Failure> {
        let desk = Desk::apart()?;
        let told = desk.script("told", "printf '%s %s\\n' \"$PGHERD_EVENT\" \"$1\" >> told.txt")?;
        let scripts = format!("[scripts]\n{}notification = \"{told}\"\n", desk.hooks());
        let builder = Cluster::for_test(name).virtual_ip("").proxies(2).proxy_ip();
        let mut cluster = builder.agent_settings(&scripts).start().await?;
        let primary_ip = Watch::start(&cluster)?;
        let proxy_ip = Watch::of(&cluster, vip::proxy_address(&cluster))?;
        until_held(&primary_ip, "server1").await?;
        vip::give_to_first_proxy(&mut cluster, &proxy_ip).await?;
        desk.forget()?;
        Ok(Self { cluster, desk, primary_ip, proxy_ip })
    }

    /// Waits until the operator was told of an event.
    async fn until_told(&self, event: &str) -> Result<(), Failure> {
        Ok(wait_until(event, SOON, async || {
            let told = std::fs::read_to_string(self.desk.path("told.txt")).unwrap_or_default();
            let known = told.lines().any(|line| line.split(' ').next() == Some(event));
            if known { Ok(()) } else { Err(told) }
        })
        .await?)
    }

    /// Waits until a script was called so, by whichever agent.
    async fn until_called(&self, call: &str) -> Result<(), Failure> {
        Ok(wait_until(call, SOON, async || {
            let calls = self.desk.calls();
            let made = calls.iter().any(|one| one.split_once(' ').is_some_and(|(_, rest)| rest == call));
            if made { Ok(()) } else { Err(calls.join("\n")) }
        })
        .await?)
    }

    /// The primary that follows `old`, once it has the virtual IP.
    async fn until_replaced(&self, old: &str) -> Result<String, Failure> {
        let new = self.cluster.until("another primary", SOON, |status| {
            status.primary().filter(|name| *name != old).map(str::to_owned)
        });
        let new = new.await?;
        until_held(&self.primary_ip, &new).await?;
        Ok(new)
    }

    /// One primary, two standbys, and both take reads.
    async fn until_full_strength(&mut self) -> Result<(), Failure> {
        self.cluster.until_healthy(SOON).await?;
        let status = self.cluster.status().await?;
        let count = |kind: &str| status.nodes.iter().filter(|node| node.agent_type == kind).count();
        assert_eq!((count("Primary"), count("Standby"), count("Witness")), (1, 2, 1), "{}", status.summary());
        let shown = self.cluster.show(0, "SHOW NODES").await?;
        let reading = shown.iter().filter(|row| row["role"] == "standby" && row["status"] == "up").count();
        assert_eq!(reading, 2, "{shown:?}");
        Ok(())
    }

    fn host(&self, node: &str) -> String {
        self.cluster.node(node).place.host.clone()
    }

    fn finish(self, expected: &[&str]) -> TestResult {
        for (whose, watch) in [("the primary's", &self.primary_ip), ("the proxies'", &self.proxy_ip)] {
            let doubles = watch.seen().doubles;
            assert!(doubles.is_empty(), "{whose} virtual IP was on two machines: {doubles:?}");
        }
        Ok(self.cluster.finish(expected)?)
    }
}

#[tokio::test]
async fn primary_database_is_down() -> TestResult {
    let mut site = Site::start("row-database").await?;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    let begun = Instant::now();
    site.cluster.kill_postmaster("server1");
    let new = site.until_replaced("server1").await?;
    figure("crash until the virtual IP is on the new primary", begun.elapsed());
    site.until_told("failover_completed").await?;
    site.until_called(&format!("load_balancer_attach [{}] [p]", site.host(&new))).await?;
    writer.until_written(50, SOON).await?;
    site.until_full_strength().await?;
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn primary_agent_crashes() -> TestResult {
    let mut site = Site::start("row-agent").await?;
    let generation = site.cluster.status().await?.generation;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    // Guardian and worker: the database is first found to be in service.
    site.cluster.kill_agent("server1").await?;
    site.until_told("primary_unguarded").await?;
    never("the primary is replaced while it serves", WHILE, async || {
        let status = site.cluster.status_of("server4").await.ok()?;
        (status.generation != generation).then(|| status.summary())
    })
    .await?;
    assert_eq!(site.cluster.writable().await, ["server1"]);
    site.cluster.node_mut("server1").agent.start()?;
    site.until_full_strength().await?;
    until_held(&site.primary_ip, "server1").await?;
    writer.until_written(50, SOON).await?;
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn primary_node_fails() -> TestResult {
    let mut site = Site::start("row-node").await?;
    let begun = Instant::now();
    site.cluster.lose("server1").await?;
    site.until_replaced("server1").await?;
    figure("loss of the primary's machine until the virtual IP is on the new primary", begun.elapsed());
    site.until_told("failover_completed").await?;
    site.until_called(&format!("load_balancer_detach [{}] [p]", site.host("server1"))).await?;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    site.cluster.regain("server1").await?;
    site.until_full_strength().await?;
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.errors.is_empty(), "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn standby_agent_exits_or_standby_node_fails() -> TestResult {
    let mut site = Site::start("row-standby").await?;
    let generation = site.cluster.status().await?.generation;
    let detached = format!("load_balancer_detach [{}] [s]", site.host("server2"));
    let attached = format!("load_balancer_attach [{}] [s]", site.host("server2"));
    site.cluster.node_mut("server2").agent.stop(Signal::TERM, SOON).await?;
    site.until_told("node_failed").await?;
    site.until_called(&detached).await?;
    site.cluster.node_mut("server2").agent.start()?;
    site.until_called(&attached).await?;
    site.until_full_strength().await?;

    site.desk.forget()?;
    site.cluster.lose("server2").await?;
    site.until_called(&detached).await?;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    site.cluster.regain("server2").await?;
    site.until_called(&attached).await?;
    site.until_full_strength().await?;
    assert_eq!(site.cluster.status().await?.generation, generation, "the primary stayed");
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.errors.is_empty(), "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn dedicated_witness_agent_exits_or_node_fails() -> TestResult {
    let mut site = Site::start("row-witness").await?;
    let generation = site.cluster.status().await?.generation;
    // The active proxy is on that machine.
    site.cluster.lose("server4").await?;
    until_held(&site.proxy_ip, "server3").await?;
    site.until_told("witness_lost").await?;
    let client = site.cluster.connect_proxy(1).await?;
    client.batch_execute("CREATE TABLE without_witness (id int)").await?;
    assert_eq!(site.cluster.status_of("server2").await?.generation, generation, "the primary stayed");
    // A failover needs no witness.
    site.cluster.kill_postmaster("server1");
    let new = wait_until("another primary", SOON, async || {
        let status = site.cluster.status_of("server2").await.map_err(|error| error.to_string())?;
        status.primary().filter(|name| *name != "server1").map(str::to_owned).ok_or_else(|| status.summary())
    });
    until_held(&site.primary_ip, &new.await?).await?;
    client.batch_execute("INSERT INTO without_witness VALUES (1)").await?;
    site.cluster.regain("server4").await?;
    site.cluster.proxy_mut(0).process.start()?;
    site.cluster.until_proxy_serves(0, SOON).await?;
    site.until_told("witness_back").await?;
    site.until_full_strength().await?;
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn standby_gets_added_back_to_the_cluster() -> TestResult {
    let mut site = Site::start("row-back").await?;
    let standby = site.cluster.node("server3").postmaster().ok_or_else(|| Failure::new("it does not run"))?;
    // Shut down by hand, it stays down until it is asked for.
    process::signal(standby, Signal::INT);
    assert!(wait_gone(standby, SOON).await);
    site.until_called(&format!("load_balancer_detach [{}] [s]", site.host("server3"))).await?;
    let resumed = site.cluster.cli("server1", &["resume", "server3"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    site.until_called(&format!("load_balancer_attach [{}] [s]", site.host("server3"))).await?;
    site.until_full_strength().await?;
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn switchover_and_switchback() -> TestResult {
    let mut site = Site::start("row-switchover").await?;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    for to in ["server2", "server1"] {
        let answer = site.cluster.cli("server4", &["promote", "--switchover", "--to", to]).await?;
        assert_eq!(answer.code, 0, "{answer:?}");
        until_held(&site.primary_ip, to).await?;
        writer.until_written(50, SOON).await?;
        // The number of nodes is what it was, without anybody's doing.
        site.until_full_strength().await?;
    }
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.errors.is_empty() && outcome.lost.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}

#[tokio::test]
async fn failover_leaves_full_strength_and_read_scaling_without_a_dba() -> TestResult {
    let mut site = Site::start("row-failover").await?;
    let writer = Writer::start(&site.cluster, "row").await?;
    writer.until_written(50, SOON).await?;
    for _ in 0..2 {
        let old = site.cluster.primary().await?;
        let begun = Instant::now();
        site.cluster.kill_postmaster(&old);
        site.until_replaced(&old).await?;
        site.until_full_strength().await?;
        figure("crash until full strength", begun.elapsed());
        writer.until_written(50, SOON).await?;
    }
    let outcome = writer.finish(&site.cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
    site.finish(&[CLIENT_LOST])
}
