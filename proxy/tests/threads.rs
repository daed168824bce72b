//! Clients on several threads: they share server connections all the same.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test")]

mod harness;

use std::fs;

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

async fn pid(client: &Client) -> String {
    let messages = client.simple_query("SELECT pg_backend_pid()").await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_from_thread_to_thread() {
    let primary = Postgres::primary(Access::Trust);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, "threads = 2\n[pool]\nsize = 1").await;
    until_they_are(2).await;
    // Whoever comes goes to the thread that has the fewest.
    let clients = [proxy.connect().await, proxy.connect().await];
    let (first, begun) = (pid(&clients[0]).await, Instant::now());
    // For as long as it takes those who look after resting connections to come by, more than once.
    while begun.elapsed() < Duration::from_millis(2500) {
        let (one, other) = tokio::join!(pid(&clients[0]), pid(&clients[1]));
        assert_eq!([&one, &other], [&first, &first], "after {:?}", begun.elapsed());
    }
    drop(clients);
    proxy.stop().await;
    until_they_are(0).await;
}
