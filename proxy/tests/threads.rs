//! Clients on several threads: they share server connections all the same.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test")]

mod harness;

use std::fs;

use futures_util::future::join_all;
use harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// How many threads of this process serve clients.
fn threads() -> usize {
    let named = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).ok();
    let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|entry| named(entry.unwrap()));
    names.filter(|name| name.starts_with("worker-")).count()
}

/// Returns when so many do: a thread names itself, and is listed for a moment longer than it lives.
async fn until_they_are(number: usize) {
    soon(async {
        while threads() != number {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What a thread has used of the processor so far, in the system's ticks.
fn used(name: &str) -> u64 {
    let of = |dir: std::path::PathBuf| {
        let named = fs::read_to_string(dir.join("comm")).ok()?.trim_end() == name;
        let stat = fs::read_to_string(dir.join("stat")).ok().filter(|_| named)?;
        let numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        Some(numbers.map(|number| number.parse::<u64>().unwrap()).sum())
    };
    fs::read_dir("/proc/self/task").unwrap().find_map(|entry| of(entry.unwrap().path())).unwrap_or(0)
}

/// Asks for the process of the connection in a text that costs the proxy much, and was never seen before.
async fn pid(client: &Client, number: u64) -> String {
    let sql = format!("SELECT pg_backend_pid(), {number} /**/ {}", " + 1".repeat(100));
    let messages = client.simple_query(&sql).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_spread_over_the_threads_and_share_a_connection() {
    let primary = Postgres::primary(Access::Trust);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, "threads = 2\n[pool]\nsize = 1").await;
    until_they_are(2).await;
    let clients =
        [proxy.connect().await, proxy.connect().await, proxy.connect().await, proxy.connect().await];
    let first = pid(&clients[0], 0).await;
    assert!(used("worker-1") < 10, "one thread is enough for those that do nothing");
    let (mut number, mut both_since) = (0, None::<Instant>);
    // For as long as it takes those who look after resting connections to come by, more than once.
    while both_since.is_none_or(|since| since.elapsed() < Duration::from_millis(2500)) {
        let asked = clients.iter().zip(1..).map(|(client, more)| pid(client, number + more));
        let pids = soon(join_all(asked)).await;
        assert!(pids.iter().all(|pid| *pid == first), "{pids:?} are not {first}");
        number += 4;
        if both_since.is_none() && used("worker-1") > 20 {
            both_since = Some(Instant::now());
        }
    }
    drop(clients);
    proxy.stop().await;
    until_they_are(0).await;
}
