//! The primary's virtual IP through every kind of change of primary: never on two servers, and where the
//! primary is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{self, CommandError, Signal, wait_gone};
use pgherd_cluster_tests::vip::{self, Change, Pings, Seen, Watch, until_held};
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(30);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, value: impl std::fmt::Debug) {
    println!("{what}: {value:?}");
}

async fn cluster(name: &str) -> Result<(Cluster, Watch), Failure> {
    let cluster = Cluster::for_test(name).virtual_ip("").start().await?;
    let watch = Watch::start(&cluster)?;
    until_held(&watch, "server1").await?;
    Ok((cluster, watch))
}

/// The primary that follows `old`, once it has the address.
async fn until_moved(cluster: &Cluster, watch: &Watch, old: &str) -> Result<String, Failure> {
    let new = cluster.until("another primary", SOON, |status| {
        status.primary().filter(|name| *name != old).map(str::to_owned)
    });
    let new = new.await?;
    until_held(watch, &new).await?;
    Ok(new)
}

/// Never two, and how long nobody had it.
fn assert_never_two(seen: &Seen, what: &str) {
    assert!(seen.doubles.is_empty(), "{what}: {:?}", seen.doubles);
    let gap = |pair: &[Change]| match pair {
        [one, next] if !one.taken && next.taken => Some(next.at.since(one.at)),
        _ => None,
    };
    let gaps: Vec<Duration> = seen.changes.windows(2).filter_map(gap).collect();
    figure(&format!("{what}: held by nobody for"), gaps);
}

/// The way in of `like`, but at this address.
fn through(address: &str, like: &tokio_postgres::Config) -> tokio_postgres::Config {
    let mut way = tokio_postgres::Config::new();
    way.host(address).user("app").password("app").dbname("app").connect_timeout(Duration::from_secs(2));
    for port in like.get_ports() {
        way.port(*port);
    }
    way
}

/// Whether whoever answers at the address accepts writes.
async fn writes_through(cluster: &Cluster) -> TestResult {
    let way = through(&vip::address(cluster).to_string(), &cluster.way_in_past_proxies("server1")?);
    let (client, connection) = way.connect(NoTls).await?;
    tokio::spawn(connection);
    let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    assert!(!row.get::<_, bool>(0), "a standby answers at the virtual IP");
    Ok(())
}

#[tokio::test]
async fn it_follows_the_primary_through_switchover_and_crash() -> TestResult {
    let (mut cluster, watch) = cluster("vip-moves").await?;
    writes_through(&cluster).await?;
    let status = cluster.cli("server4", &["cluster-status"]).await?;
    let address = vip::address(&cluster);
    assert_eq!(status.out.matches(&format!("{address}/24*")).count(), 1, "{}", status.out);
    assert_eq!(status.out.matches(&format!("{address}/24")).count(), 3, "{}", status.out);
    let node = cluster.cli("server1", &["node-status"]).await?;
    assert!(node.out.contains(&format!("{address}/24*")), "{}", node.out);

    let pings = Pings::start(address)?;
    wait_until("pings are answered", SOON, async || {
        (pings.answers() > 20).then_some(()).ok_or("no".to_owned())
    })
    .await?;
    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", "server2"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until_held(&watch, "server2").await?;
    cluster.until_healthy(SOON).await?;
    writes_through(&cluster).await?;
    figure("pings unanswered through a switchover", pings.finish());

    let pings = Pings::start(address)?;
    wait_until("pings are answered", SOON, async || {
        (pings.answers() > 20).then_some(()).ok_or("no".to_owned())
    })
    .await?;
    cluster.kill_postmaster("server2");
    let new = until_moved(&cluster, &watch, "server2").await?;
    cluster.until_healthy(SOON).await?;
    writes_through(&cluster).await?;
    let gap = pings.finish();
    figure("pings unanswered through a crash of the primary", gap);
    assert!(gap < Duration::from_secs(2), "{gap:?}");

    // A machine's loss: the lease has to end first.
    let pings = Pings::start(address)?;
    cluster.lose(&new).await?;
    until_moved(&cluster, &watch, &new).await?;
    writes_through(&cluster).await?;
    cluster.regain(&new).await?;
    cluster.until_healthy(SOON).await?;
    figure("pings unanswered through the loss of the primary's machine", pings.finish());
    assert_never_two(&watch.finish(), "switchover, crash, loss");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn an_isolated_primary_gives_it_up_before_another_takes_it() -> TestResult {
    let (mut cluster, watch) = cluster("vip-isolated").await?;
    cluster.cut("server1").await?;
    let cut = Instant::now();
    let new = until_moved(&cluster, &watch, "server1").await?;
    figure("from the cut to the new holder", cut.elapsed());
    cluster.heal("server1").await?;
    cluster.until_healthy(SOON).await?;
    until_held(&watch, &new).await?;
    assert_never_two(&watch.finish(), "isolated");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_frozen_agent_loses_it_to_its_guardian_and_a_frozen_guardian_to_the_kernel() -> TestResult {
    let (mut cluster, watch) = cluster("vip-frozen").await?;
    let worker = cluster.node("server1").worker().ok_or_else(|| Failure::new("no worker"))?;
    process::signal(worker, Signal::STOP);
    let new = until_moved(&cluster, &watch, "server1").await?;
    assert!(wait_gone(worker, SOON).await, "the hung worker was left");
    cluster.until_healthy(SOON).await?;

    // Both: PostgreSQL goes on, so nobody is promoted, and the address goes by itself.
    let guardian = cluster.node(&new).agent.pid().ok_or_else(|| Failure::new("no guardian"))?;
    let worker = cluster.node(&new).worker().ok_or_else(|| Failure::new("no worker"))?;
    process::signal(guardian, Signal::STOP);
    process::signal(worker, Signal::STOP);
    let stopped = Instant::now();
    wait_until("the kernel has ended the address", SOON, async || {
        let holders = watch.seen().holders;
        if holders.is_empty() { Ok(()) } else { Err(format!("{holders:?}")) }
    })
    .await?;
    figure("from SIGSTOP of worker and guardian to the end of the address", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    // Now PostgreSQL dies too: another takes over.
    cluster.kill_postmaster(&new);
    let third = until_moved(&cluster, &watch, &new).await?;
    process::signal(guardian, Signal::CONT);
    process::signal(worker, Signal::CONT);
    cluster.until_healthy(SOON).await?;
    until_held(&watch, &third).await?;
    assert_never_two(&watch.finish(), "frozen");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn an_agent_that_is_stopped_leaves_it_and_nobody_takes_it_from_there() -> TestResult {
    let (mut cluster, watch) = cluster("vip-stopped").await?;
    cluster.node_mut("server1").agent.stop(Signal::TERM, SOON).await?;
    // For longer than the kernel would have kept what is not renewed.
    never("the address leaves a primary that goes on", Duration::from_secs(7), async || {
        let holders = watch.seen().holders;
        if holders.iter().eq(["server1"]) { None } else { Some(format!("{holders:?} have it")) }
    })
    .await?;
    writes_through(&cluster).await?;
    cluster.kill_postmaster("server1");
    let new = cluster.until("another primary", SOON, |status| {
        status.primary().filter(|name| *name != "server1").map(str::to_owned)
    });
    let new = new.await?;
    wait_until("the status tells who has the address", SOON, async || {
        let status = cluster.cli("server4", &["cluster-status"]).await.map_err(|error| error.to_string())?;
        if status.out.contains("is answered for by") { Ok(()) } else { Err(status.out) }
    })
    .await?;
    assert!(watch.seen().holders.iter().eq(["server1"]), "{:?}", watch.seen());
    cluster.node_mut("server1").agent.start()?;
    until_held(&watch, &new).await?;
    cluster.until_healthy(SOON).await?;
    writes_through(&cluster).await?;
    assert_never_two(&watch.finish(), "agent stopped");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn without_the_rights_an_agent_does_not_start_and_says_what_to_do() -> TestResult {
    let cluster = Cluster::for_test("vip-rights").virtual_ip("").prepare().await?;
    let node = cluster.node("server1");
    let mut command = node.place.command("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-net_admin,-net_raw"]);
    command.arg(&cluster.binaries().agent).arg("--config").arg(node.dir.join("agent.toml"));
    let said = match process::run(command, SOON).await {
        Err(CommandError::Failed { said, .. }) => said,
        Err(error) => return Err(error.into()),
        Ok(said) => return Err(Failure::new(format!("it started: {said}"))),
    };
    assert!(said.contains("lacks CAP_NET_ADMIN and CAP_NET_RAW"), "{said}");
    assert!(said.contains("AmbientCapabilities"), "{said}");
    Ok(cluster.finish(&["cannot take care of the virtual IP"])?)
}

/// An application that has one connection through the proxies' address and opens another one when that ends.
struct Application {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u32, Duration)>,
}

impl Application {
    fn start(way: tokio_postgres::Config) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = stop.clone();
        let task = tokio::spawn(async move {
            let (mut connects, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
            while !theirs.load(Ordering::Relaxed) {
                let Ok((client, connection)) = way.connect(NoTls).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                tokio::spawn(connection);
                let mut answered = false;
                while !theirs.load(Ordering::Relaxed) {
                    let asked = client.simple_query("SELECT 1");
                    if !matches!(tokio::time::timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) {
                        break;
                    }
                    // A connection that never answered anything is none.
                    connects += u32::from(!std::mem::replace(&mut answered, true));
                    gap = gap.max(last.elapsed());
                    last = Instant::now();
                }
            }
            (connects, gap)
        });
        Self { stop, task }
    }

    /// How often it connected, and the longest time without an answer.
    async fn finish(self) -> Result<(u32, Duration), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

#[tokio::test]
async fn clients_see_the_loss_of_the_active_proxy_as_one_reconnect() -> TestResult {
    let mut cluster = Cluster::for_test("vip-proxies").proxies(2).proxy_ip().start().await?;
    let address = vip::proxy_address(&cluster);
    let watch = Watch::of(&cluster, address)?;
    vip::give_to_first_proxy(&mut cluster, &watch).await?;
    let shown = cluster.show(0, "SHOW TOPOLOGY").await?;
    let row = shown.iter().find(|row| row["item"] == "virtual_ip").ok_or_else(|| Failure::new("no row"))?;
    assert_eq!(row["value"], format!("{address}/24*"));
    let mut way = through(&address.to_string(), &cluster.way_in(0));
    // Nobody answers while nobody has the address.
    way.connect_timeout(Duration::from_millis(300));

    let application = Application::start(way.clone());
    let killed = cluster.proxy(0).process.pid().ok_or_else(|| Failure::new("no proxy"))?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.proxy_mut(0).process.stop(Signal::KILL, SOON).await?;
    assert!(wait_gone(killed, SOON).await);
    until_held(&watch, "server3").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (connects, gap) = application.finish().await?;
    figure("kill -9 of the active proxy: longest time without an answer", gap);
    assert_eq!(connects, 2, "one connection and one more");

    // One that is back takes nothing from the other; one that ends in order hands over at once.
    cluster.proxy_mut(0).process.start()?;
    cluster.until_proxy_serves(0, SOON).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    until_held(&watch, "server3").await?;
    let application = Application::start(way);
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.proxy_mut(1).process.stop(Signal::TERM, SOON).await?;
    until_held(&watch, "server4").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (connects, gap) = application.finish().await?;
    figure("SIGTERM of the active proxy: longest time without an answer", gap);
    assert_eq!(connects, 2, "one connection and one more");
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    cluster.proxy_mut(1).process.start()?;
    cluster.until_proxy_serves(1, SOON).await?;

    // One that hangs loses it to the kernel before the other is given it.
    let hung = cluster.proxy(0).process.pid().ok_or_else(|| Failure::new("no proxy"))?;
    process::signal(hung, Signal::STOP);
    until_held(&watch, "server3").await?;
    process::signal(hung, Signal::CONT);
    cluster.until_proxy_serves(0, SOON).await?;
    until_held(&watch, "server3").await?;
    assert_never_two(&watch.finish(), "proxies: killed, stopped, hung");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
