//! A standby that hangs does not have everybody wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::Client;

const CLIENTS: usize = 12;

/// Processes that are stopped, and go on at the latest when this is dropped.
struct Stopped(Vec<Pid>);

impl Stopped {
    /// All of a server's.
    async fn of(server: &Postgres) -> Self {
        let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
            UNION ALL SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int";
        let rows = server.direct().await.query(sql, &[]).await.unwrap();
        let stopped = Self(rows.iter().filter_map(|row| Pid::from_raw(row.get(0))).collect());
        stopped.all(Signal::STOP);
        stopped
    }

    fn all(&self, signal: Signal) {
        for pid in &self.0 {
            // One may have ended by itself.
            kill_process(*pid, signal).ok();
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.all(Signal::CONT);
    }
}

async fn read(client: &Client, times: usize) {
    for _ in 0..times {
        client.simple_query("SELECT count(*) FROM pg_class").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_is_waited_for_by_some_and_not_by_all() {
    let primary = Postgres::primary(Access::Trust);
    let (one, other) = (primary.standby(), primary.standby());
    let mut agent = Agent::start(Some(Script::new(&[&primary, &one, &other]).steady())).await;
    let lines = "connect_timeout = '60s'\nhold_timeout = '60s'\n[pool]\nsize = 40";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    proxy.knows_catalogs().await;
    let clients = join_all((0..CLIENTS).map(|_| proxy.connect())).await;
    // So that there are connections to both.
    join_all(clients.iter().map(|client| read(client, 10))).await;
    let stopped = Stopped::of(&one).await;
    let done = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let done = done.clone();
            tokio::spawn(async move {
                // Whoever drew by weight alone would meet it sooner or later.
                read(&client, 60).await;
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    // Beyond its share and a quarter nobody goes there: at most nine of twelve wait.
    soon(async {
        while done.load(Ordering::SeqCst) < CLIENTS - 9 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(stopped);
    for reader in readers {
        soon(reader).await.unwrap();
    }
    proxy.stop().await;
}
