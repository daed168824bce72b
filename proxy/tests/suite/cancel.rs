//! Requests to cancel: quick, whatever else is full, and for one query only.

#![allow(clippy::print_stdout, reason = "figures")]

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Raw, Script, message, soon};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

const SLEEP: &str = "SELECT pg_sleep(60)";

async fn code(client: &Client, sql: &str) -> SqlState {
    soon(client.simple_query(sql)).await.unwrap_err().code().unwrap().clone()
}

/// How long a request takes that ends what `client` does at `server`, from its connection to its end.
async fn cancelled(client: &Client, server: &Postgres, sql: &str) -> Duration {
    let token = client.cancel_token();
    let (code, took) = soon(async {
        tokio::join!(code(client, sql), async {
            server.until_it_runs(sql).await;
            let begun = Instant::now();
            token.cancel_query(NoTls).await.unwrap();
            begun.elapsed()
        })
    })
    .await;
    assert_eq!(code, SqlState::QUERY_CANCELED);
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_work_when_everything_is_full() {
    let primary = Postgres::primary(Access::Trust);
    primary.configure("max_connections = 12", "host all all all trust");
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let lines = "max_client_connections = 1\nreserve = 0\n[pool]\nsize = 1";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    let client = proxy.connect().await;
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { code(&client, SLEEP).await });
    primary.until_it_runs(SLEEP).await;
    let direct = |port: u16| async move {
        tokio_postgres::connect(&format!("host=127.0.0.1 port={port} user=postgres"), NoTls).await
    };
    let mut all = Vec::new();
    let full = loop {
        match direct(primary.port()).await {
            Ok((client, connection)) => all.push((client, tokio::spawn(connection))),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    let full = direct(proxy.port()).await.err().unwrap();
    assert_eq!(full.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    assert!(!sleeping.is_finished());
    token.cancel_query(NoTls).await.unwrap();
    assert_eq!(soon(sleeping).await.unwrap(), SqlState::QUERY_CANCELED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_take_no_longer_than_directly() {
    let primary = Postgres::primary(Access::Trust);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let (direct, proxied) = (primary.direct().await, proxy.connect().await);
    let (mut directly, mut through) = (Vec::new(), Vec::new());
    for number in 0..25 {
        // A server process still counts as active when its client has the error already: each has its own text.
        let sleep = |way: &str| format!("{SLEEP} /* {way} {number} */");
        directly.push(cancelled(&direct, &primary, &sleep("directly")).await);
        through.push(cancelled(&proxied, &primary, &sleep("through")).await);
    }
    directly.sort();
    through.sort();
    println!("cancelling takes {:?} directly, {:?} through the proxy (medians)", directly[12], through[12]);
    assert!(through[12] < directly[12] + Duration::from_millis(30), "{directly:?} {through:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_find_the_server_that_runs_the_query() {
    let primary = Postgres::primary(Access::Trust);
    let standby = primary.standby();
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let lines = "[routing]\nread_consistency = 'eventual'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    let client = proxy.connect().await;
    proxy.knows_catalogs().await;
    let long = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 1000000) b";
    for _ in 0..3 {
        cancelled(&client, &standby, long).await;
        cancelled(&client, &primary, SLEEP).await;
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        cancelled(&client, &standby, long).await;
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_are_answered_with_nothing() {
    let primary = Postgres::primary(Access::Trust);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let mut raw = Raw::connect(proxy.port()).await;
    raw.say(b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0").await;
    let mut key = Vec::new();
    while let Some((tag, payload)) = raw.hear().await {
        match tag {
            'K' => key = payload,
            'Z' => break,
            _ => {}
        }
    }
    raw.say(&message('Q', &[SLEEP.as_bytes(), b"\0"].concat())).await;
    primary.until_it_runs(SLEEP).await;
    let request = async |key: &[u8]| {
        let mut canceller = Raw::connect(proxy.port()).await;
        canceller.say(&[&b"\0\0\0\x10\x04\xd2\x16\x2e"[..], key].concat()).await;
        assert_eq!(canceller.read_out().await, b"");
    };
    let flipped = |at: usize| {
        let mut key = key.clone();
        key[at] ^= 1;
        key
    };
    for wrong in [flipped(3), flipped(7), vec![0; 8]] {
        request(&wrong).await;
    }
    primary.until_it_runs(SLEEP).await;
    // Whatever comes behind the key is nobody's business.
    request(&[&key[..], b"more"].concat()).await;
    let told = raw.until("Z").await;
    assert!(told.iter().any(|line| line.contains("C57014")), "{told:?}");
}
