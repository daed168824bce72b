//! Nodes that are added and removed while the cluster works.

use std::process::Stdio;
use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::newcomer::Kind;
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::process::Signal;
use pgherd_cluster_tests::workload::{Outcome, Writer};
use pgherd_cluster_tests::{Cluster, Failure, NotReached, TestResult, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);
/// Half of it is what a node waits for its vote; more than two leases.
const SETTINGS: &str = "[timings]\nnode_lost_after = \"5s\"";

/// Runs a command that is to be refused.
async fn refused(cluster: &Cluster, arguments: &[&str], told: &str) -> TestResult {
    let answer = cluster.cli("server3", arguments).await?;
    assert!(answer.code == 1 && answer.err.contains(told), "{arguments:?}: {answer:?}");
    Ok(())
}

/// Runs a command that is to succeed; what it printed.
async fn done(cluster: &Cluster, arguments: &[&str]) -> Result<String, Failure> {
    let answer = cluster.cli("server3", arguments).await?;
    assert_eq!(answer.code, 0, "{arguments:?}: {answer:?}");
    Ok(answer.out)
}

async fn until_voting(cluster: &Cluster, voters: &[&str]) -> Result<(), NotReached> {
    let what = format!("the voters are {voters:?}");
    cluster.until(&what, SOON, |status| (status.voting == voters).then_some(())).await
}

/// Waits until the slots of a server are those of these nodes.
async fn until_slots(cluster: &Cluster, node: &str, of: &[&str]) -> TestResult {
    let wanted: Vec<String> = of.iter().map(|name| format!("pgherd_{name}")).collect();
    let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE NOT temporary ORDER BY 1";
    wait_until("slots are those of the members", SOON, async || {
        let client = cluster.connect_server(node, APP).await.map_err(|error| error.to_string())?;
        let rows = client.query(sql, &[]).await.map_err(|error| error.to_string())?;
        let slots: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if slots == wanted { Ok(()) } else { Err(format!("{node} has {slots:?}, not {wanted:?}")) }
    })
    .await?;
    Ok(())
}

fn log_of(cluster: &Cluster, node: &str) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(cluster.node(node).agent.log())?)
}

async fn create_standby(cluster: &Cluster, node: &str) -> Result<String, Failure> {
    let mut command = cluster.node(node).place.command(&cluster.binaries().cli);
    command.arg("--config").arg(cluster.node(node).dir.join("agent.toml")).arg("create-standby");
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", text(output.stderr));
    Ok(text(output.stdout))
}

fn assert_unharmed(outcome: &Outcome) {
    let harm = (&outcome.errors, &outcome.lost, outcome.sessions_lost);
    assert!(outcome.errors.is_empty() && outcome.lost.is_empty() && outcome.sessions_lost == 0, "{harm:?}");
}

/// The machine of a node is gone.
async fn lose(cluster: &mut Cluster, node: &str) -> TestResult {
    cluster.kill_agent(node).await?;
    cluster.kill_postmaster(node).ok_or_else(|| Failure::new(format!("{node} does not run")))?;
    Ok(())
}

/// A third database is added from an empty machine. Its configuration lists one member besides itself.
async fn add_server4(cluster: &mut Cluster) -> TestResult {
    let address = cluster.equip(Kind::Database, &["server2"], SETTINGS)?.agent_address();
    let begun = Instant::now();
    assert!(create_standby(cluster, "server4").await?.contains("server4 has the data of server"));
    // Nobody has invited it.
    let said = cluster.refused_agent("server4", |text| text).await?;
    let told = format!("run `pgherd add-node server4 --id 4 --address {address}` on a member first");
    assert!(said.contains(&told), "{said}");
    let taken = cluster.node("server2").agent_address();
    for (arguments, told) in [
        (["server4", "2", &address], "server2 has id 2 already"),
        (["server2", "4", &address], "there is a server2 already"),
        (["server4", "4", &taken], "is that of server2 already"),
    ] {
        let [name, id, address] = arguments;
        refused(cluster, &["add-node", name, "--id", id, "--address", address], told).await?;
    }
    let out = done(cluster, &["add-node", "server4", "--id", "4", "--address", &address]).await?;
    assert!(out.starts_with("server4 is invited: its agent at "), "{out}");
    let shown = cluster.cli("server3", &["cluster-status"]).await?.out;
    assert!(shown.contains("server4: invited; its agent has not come yet: start it with"), "{shown}");
    cluster.until_healthy(SOON).await?;
    cluster.node_mut("server4").agent.start()?;
    until_voting(cluster, &["server1", "server2", "server3", "server4"]).await?;
    cluster.until_healthy(SOON).await?;
    figure("a third database from an empty machine, until all is well", begun);
    until_slots(cluster, "server1", &["server2", "server4"]).await?;
    until_slots(cluster, "server2", &["server1", "server4"]).await?;
    cluster.until_proxy_serves(0, SOON).await?;
    assert!(!log_of(cluster, "server4")?.contains("was lost"), "it has forgotten nothing");
    Ok(())
}

/// A standby that runs is removed: nothing of it stays, and it says why.
async fn remove_server1(cluster: &mut Cluster) -> TestResult {
    refused(cluster, &["remove-node", "server4", "--yes"], "server4 is the primary").await?;
    refused(cluster, &["remove-node", "server9", "--yes"], "there is no node server9").await?;
    refused(cluster, &["remove-node", "server1"], "this asks for confirmation").await?;
    let begun = Instant::now();
    let out = done(cluster, &["remove-node", "server1", "--yes"]).await?;
    assert!(out.contains("server1 is not in the cluster any more"), "{out}");
    figure("a standby that is removed", begun);
    until_voting(cluster, &["server2", "server3", "server4"]).await?;
    until_slots(cluster, "server4", &["server2"]).await?;
    until_slots(cluster, "server2", &["server4"]).await?;
    assert_eq!(cluster.node("server1").postmaster(), None, "nobody looks after its PostgreSQL");
    let agent = &mut cluster.node_mut("server1").agent;
    let ended = wait_until("its agent ends", SOON, async || agent.ended().ok_or("it runs")).await?;
    assert!(ended.success(), "{ended}: nothing is to start it again");
    agent.stop(Signal::TERM, SOON).await?;
    let log = log_of(cluster, "server1")?;
    assert!(log.contains("this node was removed from the cluster at "), "{log}");
    let said = cluster.refused_agent("server1", |text| text).await?;
    assert!(said.contains("server1 was removed from this cluster at "), "{said}");
    let shown = cluster.status().await?;
    assert!(shown.node("server1").is_none(), "{}", shown.summary());
    cluster.until_healthy(SOON).await?;
    Ok(())
}

#[tokio::test]
async fn nodes_come_and_go_under_load() -> TestResult {
    let builder = Cluster::for_test("membership").databases(2).agent_settings(SETTINGS);
    let mut cluster = builder.start().await?;
    let writer = Writer::start(&cluster, "membership").await?;
    writer.until_written(50, SOON).await?;
    refused(&cluster, &["reset-members", "--yes"], "no member's agent is silent").await?;
    add_server4(&mut cluster).await?;

    done(&cluster, &["promote", "--switchover", "--to", "server4"]).await?;
    cluster.until_healthy(SOON).await?;
    remove_server1(&mut cluster).await?;
    writer.until_written(50, SOON).await?;
    assert_unharmed(&writer.finish(&cluster).await?);

    // Its configuration lists who was there in the beginning.
    cluster.node_mut("server3").agent.stop(Signal::KILL, SOON).await?;
    cluster.node_mut("server3").agent.start()?;
    cluster.until_healthy(SOON).await?;
    let shown = cluster.status_of("server3").await?;
    let names: Vec<&str> = shown.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["server2", "server3", "server4"]);

    let writer = Writer::start(&cluster, "failover").await?;
    writer.until_written(50, SOON).await?;
    cluster.kill_postmaster("server4").ok_or_else(|| Failure::new("server4 does not run"))?;
    let next = cluster.until("server2 is primary", SOON, |s| (s.primary() == Some("server2")).then_some(()));
    next.await?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(50, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty(), "{outcome:?}");

    lose(&mut cluster, "server4").await?;
    cluster
        .until("server4 is silent", SOON, |s| (s.node("server4")?.agent_type == "DOWN").then_some(()))
        .await?;
    wait_until("the leader misses it, too", SOON, async || {
        let answer = cluster.cli("server3", &["reset-members"]).await.map_err(|error| error.to_string())?;
        if answer.err.contains("this asks for confirmation") { Ok(()) } else { Err(answer.err) }
    })
    .await?;
    let out = done(&cluster, &["reset-members", "--yes"]).await?;
    assert!(out.contains("server4 is not in the cluster any more"), "{out}");
    until_voting(&cluster, &["server2", "server3"]).await?;
    until_slots(&cluster, "server2", &[]).await?;
    refused(&cluster, &["remove-node", "server3", "--yes"], "one voter alone decides nothing").await?;

    come_again(&mut cluster).await?;
    Ok(cluster.finish(&[CLIENT_LOST, "turned this agent away"])?)
}

/// One that was removed comes with the memory and the data that it had, and one that knows nothing as a second witness.
async fn come_again(cluster: &mut Cluster) -> TestResult {
    let address = cluster.node("server1").agent_address();
    done(cluster, &["add-node", "server1", "--id", "1", "--address", &address]).await?;
    cluster.node_mut("server1").agent.start()?;
    let address = cluster.equip(Kind::Witness, &["server2", "server3"], SETTINGS)?.agent_address();
    done(cluster, &["add-node", "server5", "--id", "5", "--address", &address]).await?;
    cluster.node_mut("server5").agent.start()?;
    until_voting(cluster, &["server1", "server2", "server3", "server5"]).await?;
    cluster.until_healthy(SOON).await?;
    until_slots(cluster, "server2", &["server1"]).await
}

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, begun: Instant) {
    println!("{what}: {} ms", begun.elapsed().as_millis());
}
