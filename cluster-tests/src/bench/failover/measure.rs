//! One run: writers, the event, and what became of the rows.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use super::case::Case;
use super::stack::Stack;
use super::system::System;
use super::tally::{Sample, outage};
use crate::campaign::proxy_load::{Ack, Load, ProxyLoad};
use crate::failure::Failure;
use crate::wait::wait_until;

const WRITERS: usize = 4;
/// An application that hears nothing for so long when it connects tries again.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
const WRITING_TIME_MAX: Duration = Duration::from_secs(20);
/// Writers have been at it for so long before anything happens.
const WARM_UP: Duration = Duration::from_secs(1);
/// Who has no primary after this has failed.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(150);
/// Commits that follow each other this closely are no outage.
const FLOWING: Duration = Duration::from_millis(500);
/// It is over once commits have flowed for so long.
const STEADY: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOK_UP_TIME_MAX: Duration = Duration::from_secs(60);

/// From a healthy cluster to a healthy cluster.
pub(super) async fn run(stack: &mut Stack, system: System, case: Case) -> Result<Sample, Failure> {
    stack.until_whole().await?;
    let (way_in, work) = (stack.way_in(), case.work());
    let load = Load { way_in, connect_within: CONNECT_TIME_MAX, sessions: WRITERS, work };
    let mut load = ProxyLoad::start(&load).await?;
    let over = watched(stack, system, case, &load).await;
    load.stop().await;
    let Over { old, acks: mut all, begun, ended } = over?;
    let seen = load.take();
    all.extend(seen.acks);
    stack.mend(case, &old).await?;
    stack.until_whole().await?;
    let rows = timeout(LOOK_UP_TIME_MAX, look_up(stack, &mut load, &all)).await;
    let rows = rows.map_err(|_| Failure::new("the rows cannot be looked up"))??;
    let mut errors = seen.errors;
    if seen.unanswered > 0 {
        errors.insert("no answer".to_owned(), seen.unanswered);
    }
    let answers: Vec<Instant> = all.iter().map(|ack| ack.at).collect();
    Ok(Sample {
        outage: outage(&answers, begun, ended),
        dropped: seen.sessions_lost.len() + seen.unanswered,
        errors,
        acked: all.len(),
        lost: rows.lost.len(),
        duplicated: rows.duplicated,
    })
}

/// An event that is over.
struct Over {
    /// Who was primary before.
    old: String,
    /// What was acknowledged before.
    acks: Vec<Ack>,
    begun: Instant,
    ended: Instant,
}

/// Lets the writers begin, does it, and waits until they go on.
async fn watched(stack: &mut Stack, system: System, case: Case, load: &ProxyLoad) -> Result<Over, Failure> {
    wait_until("the writers write", WRITING_TIME_MAX, async || load.last_ack().ok_or("no commit yet"))
        .await?;
    sleep(WARM_UP + system.period().mul_f64(rand::random::<f64>())).await;
    let old = stack.primary().await?;
    let before = load.take();
    if !before.errors.is_empty() || before.acks.is_empty() {
        return Err(Failure::new(format!("commits failed before anything was done: {:?}", before.errors)));
    }
    let begun = Instant::now();
    let done = stack.inflict(case, &old).await;
    // What the writers see counts, even of an event that its own program calls failed.
    flowing(load, begun).await?;
    let ended = Instant::now();
    done.map(|()| Over { old, acks: before.acks, begun, ended })
}

/// Waits until commits have flowed for a while.
async fn flowing(load: &ProxyLoad, begun: Instant) -> Result<(), Failure> {
    let mut since = None;
    while begun.elapsed() < RECOVERY_TIME_MAX {
        match load.last_ack() {
            Some(last) if last.elapsed() < FLOWING => {
                if since.get_or_insert(last).elapsed() >= STEADY {
                    return Ok(());
                }
            }
            _ => since = None,
        }
        sleep(LOOK_EVERY).await;
    }
    let last = load.last_ack().map(|last| last.duration_since(begun));
    Err(Failure::new(format!("no steady commits within {RECOVERY_TIME_MAX:?}; the last came after {last:?}")))
}

/// As an application would: through what it connects to, from the primary.
async fn look_up(
    stack: &Stack,
    load: &mut ProxyLoad,
    acks: &[Ack],
) -> Result<crate::campaign::proxy_load::Rows, Failure> {
    let (client, connection) = stack.way_in().connect(NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("BEGIN READ WRITE").await?;
    let rows = load.look_up(&client, acks).await?;
    client.batch_execute("COMMIT").await?;
    Ok(rows)
}
