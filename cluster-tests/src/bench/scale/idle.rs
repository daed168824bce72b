//! Very many clients who have logged in, have asked once, and say nothing more: what each of them costs.

use futures_util::{StreamExt, stream};

use super::client::{Client, ClientError};
use super::ground::{Faults, Ground, LOGINS_AT_ONCE, Way};
use super::text::number;
use super::{Figures, Promise, Row};
use crate::bench::target::Target;
use crate::bench::usage::pss_mb;

/// At ten thousand clients; fewer get no more.
const PSS_MB_MAX: f64 = 60.0;
const CLIENTS_OF_PROMISE: usize = 10_000;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Idle {
    /// How many there were.
    pub clients: usize,
    /// Proportional set size of the proxy before the first of them, in megabytes.
    pub before_mb: f64,
    /// With all of them.
    pub with_all_mb: f64,
    /// When all had left.
    pub left_mb: f64,
    /// What each of them added.
    pub bytes_per_client: f64,
}

impl Figures for Idle {
    const HEADS: &'static [&'static str] = &["clients", "MB before", "MB with all", "MB left", "bytes each"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.clients.to_string(),
            number(self.before_mb, 1),
            number(self.with_all_mb, 1),
            number(self.left_mb, 1),
            number(self.bytes_per_client, 0),
        ]
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Idle>> {
    let clients = ground.options.idle;
    let measured = async |way: &Way, faults: &Faults| one(way, faults, clients).await;
    ground.each(&[Target::PgBouncer, Target::Pgherd], measured).await
}

async fn one(way: &Way, faults: &Faults, wanted: usize) -> Result<Idle, ClientError> {
    // The first one makes the proxy allocate what it needs in any case.
    let mut first = way.open().await?;
    first.ask_known("SELECT 1", "1").await?;
    first.close().await?;
    let ended = || ClientError::Wrong("the proxy has ended".to_owned());
    let before_mb = way.pid.and_then(pss_mb).ok_or_else(ended)?;
    let mut clients = all(way, faults, wanted).await;
    let with_all_mb = way.pid.and_then(pss_mb).ok_or_else(ended)?;
    for client in &mut clients {
        faults.passed(client.ask_known("SELECT 2", "2").await);
    }
    let there = clients.len();
    leave(clients, faults).await;
    let left_mb = way.pid.and_then(pss_mb).ok_or_else(ended)?;
    let bytes_per_client = (with_all_mb - before_mb) * f64::from(1 << 20) / there as f64;
    Ok(Idle { clients: there, before_mb, with_all_mb, left_mb, bytes_per_client })
}

/// So many clients, each of whom has asked once.
pub(super) async fn all(way: &Way, faults: &Faults, wanted: usize) -> Vec<Client> {
    let opened = stream::iter(0..wanted).map(|_| async {
        let mut client = way.open().await?;
        client.ask_known("SELECT 1", "1").await?;
        Ok(client)
    });
    let opened = opened.buffer_unordered(LOGINS_AT_ONCE);
    opened.filter_map(async |client| faults.passed(client)).collect().await
}

/// All of them go, and are seen to be gone.
pub(super) async fn leave(clients: Vec<Client>, faults: &Faults) {
    let closed = stream::iter(clients).map(Client::close).buffer_unordered(LOGINS_AT_ONCE);
    closed
        .for_each(async |closed| {
            faults.passed(closed);
        })
        .await;
}

pub(super) fn promises(rows: &[Row<Idle>]) -> Vec<Promise> {
    let of = |idle: &Idle| Promise {
        what: format!(
            "idle: {} clients cost the proxy {:.1} MB, at most {PSS_MB_MAX} are promised for {CLIENTS_OF_PROMISE}",
            idle.clients, idle.with_all_mb
        ),
        kept: idle.with_all_mb <= PSS_MB_MAX || idle.clients > CLIENTS_OF_PROMISE,
    };
    rows.iter()
        .filter(|row| row.target == Target::Pgherd)
        .filter_map(|row| row.figures.as_ref().map(of))
        .collect()
}
