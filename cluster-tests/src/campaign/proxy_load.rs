//! Applications behind the proxy: sessions that commit one row after the other, and remember which of
//! them were acknowledged, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Config, NoTls};

use crate::application::{Answer, Application, CONNECT_TIME_MAX, Work};
use crate::cluster::Cluster;
use crate::failure::Failure;

/// Between two commits of a session.
const PAUSE: Duration = Duration::from_millis(5);
/// After an error.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Among the errors: acknowledged with a warning, so that it may be on the primary alone.
const WARNED: &str = "acknowledged with a warning";
const INSERT: &str = "INSERT INTO campaign_rows VALUES ($1::bigint, $2::bigint)";

/// An acknowledged row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    writer: usize,
    seq: i64,
    /// When the answer was there.
    pub(crate) at: Instant,
}

/// What the sessions saw since the last look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The acknowledged rows in the order of their answers.
    pub(crate) acks: Vec<Ack>,
    /// Failed statements by SQLSTATE, or by what else went wrong.
    pub(crate) errors: BTreeMap<String, usize>,
    /// Sessions that the proxy closed, with its last words.
    pub(crate) sessions_lost: Vec<String>,
    /// Statements without an answer.
    pub(crate) unanswered: usize,
}

impl Seen {
    /// What became of a row. Only what was acknowledged without a warning must be there.
    fn record(&mut self, ack: Ack, answer: Answer) {
        let mut count = |kind: String| *self.errors.entry(kind).or_default() += 1;
        match answer {
            Answer::Committed => self.acks.push(ack),
            Answer::Warned => count(WARNED.to_owned()),
            Answer::Refused(kind) => count(format!("connect: {kind}")),
            Answer::Failed(kind) => count(kind),
            Answer::Closed { kind, said } => {
                count(kind);
                self.sessions_lost.push(format!("session {}: {said}", ack.writer));
            }
            Answer::Unanswered => self.unanswered += 1,
        }
    }
}

/// What the database has of the rows.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Acknowledged rows that are gone.
    pub(crate) lost: Vec<Ack>,
    /// Rows that are there more than once.
    pub(crate) duplicated: usize,
}

/// What sessions are wanted.
pub(crate) struct Load {
    /// How they get in.
    pub(crate) way_in: Config,
    /// An attempt to do so is given up after this, and made again.
    pub(crate) connect_within: Duration,
    /// How many.
    pub(crate) sessions: usize,
    /// How each row is committed.
    pub(crate) work: Work,
}

impl Load {
    /// Sessions through the first proxy, each of whose statements is a transaction.
    pub(crate) fn through(cluster: &Cluster, sessions: usize) -> Self {
        let (way_in, connect_within) = (cluster.way_in(0), CONNECT_TIME_MAX);
        Self { way_in, connect_within, sessions, work: Work::Statement }
    }
}

/// The sessions.
pub(crate) struct ProxyLoad {
    shared: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    /// Acknowledged, and not known to be lost.
    kept: BTreeSet<(usize, i64)>,
    /// The last number looked up of each writer.
    looked_up: BTreeMap<usize, i64>,
}

impl ProxyLoad {
    /// Creates the table and the sessions.
    pub(crate) async fn start(load: &Load) -> Result<Self, Failure> {
        let (client, connection) = load.way_in.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let table = "DROP TABLE IF EXISTS campaign_rows; \
                     CREATE TABLE campaign_rows (writer bigint, seq bigint); \
                     CREATE INDEX ON campaign_rows (writer, seq)";
        client.batch_execute(table).await?;
        drop(client);
        let _its_end = connection.await;
        let (shared, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let write = |writer| {
            let application = Application::to(load.way_in.clone(), load.connect_within);
            write((writer, load.work), application, Arc::clone(&shared), Arc::clone(&stop))
        };
        let tasks = (0..load.sessions).map(|writer| tokio::spawn(write(writer))).collect();
        Ok(Self { shared, stop, tasks, kept: BTreeSet::new(), looked_up: BTreeMap::new() })
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *locked(&self.shared))
    }

    /// When the last acknowledgement came, since the last [`take`](Self::take).
    pub(crate) fn last_ack(&self) -> Option<Instant> {
        locked(&self.shared).acks.last().map(|ack| ack.at)
    }

    /// Looks these rows up on a server, by a session past the proxy.
    pub(crate) async fn look_up(&mut self, client: &Client, acks: &[Ack]) -> Result<Rows, Failure> {
        let mut rows = Rows::default();
        let mut by_writer: BTreeMap<usize, Vec<Ack>> = BTreeMap::new();
        for ack in acks {
            by_writer.entry(ack.writer).or_default().push(*ack);
        }
        let query = "SELECT seq, count(*) FROM campaign_rows WHERE writer = $1 AND seq > $2 GROUP BY seq";
        for (writer, acks) in by_writer {
            let from = self.looked_up.get(&writer).copied().unwrap_or(0);
            let found = client.query(query, &[&key(writer), &from]).await?;
            let found: BTreeMap<i64, i64> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
            rows.duplicated += found.values().filter(|times| **times > 1).count();
            for ack in acks {
                if found.contains_key(&ack.seq) {
                    self.kept.insert((writer, ack.seq));
                } else {
                    rows.lost.push(ack);
                }
                let last = self.looked_up.entry(writer).or_default();
                *last = ack.seq.max(*last);
            }
        }
        rows.lost.sort_by_key(|ack| ack.at);
        Ok(rows)
    }

    /// Ends the sessions.
    pub(crate) async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            let _a_panic_was_printed = task.await;
        }
    }

    /// How many of all rows that were ever found are not there any more.
    pub(crate) async fn vanished(&self, client: &Client) -> Result<usize, Failure> {
        let rows = client.query("SELECT DISTINCT writer, seq FROM campaign_rows", &[]).await?;
        let found: BTreeSet<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(self.kept.iter().filter(|(writer, seq)| !found.contains(&(key(*writer), *seq))).count())
    }

    /// Rows that were acknowledged and found.
    pub(crate) fn kept(&self) -> usize {
        self.kept.len()
    }
}

fn key(writer: usize) -> i64 {
    i64::try_from(writer).unwrap_or(i64::MAX)
}

fn locked(shared: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(
    (writer, work): (usize, Work),
    mut application: Application,
    shared: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
) {
    let (key, mut seq) = (key(writer), 0i64);
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let answer = application.commit(work, INSERT, &[&key, &seq]).await;
        let acknowledged = matches!(answer, Answer::Committed);
        let ack = Ack { writer, seq, at: Instant::now() };
        locked(&shared).record(ack, answer);
        sleep(if acknowledged { PAUSE } else { ERROR_PAUSE }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_as_acknowledged_only_without_a_warning() {
        let ack = Ack { writer: 1, seq: 7, at: Instant::now() };
        let mut seen = Seen::default();
        seen.record(ack, Answer::Committed);
        seen.record(ack, Answer::Warned);
        seen.record(ack, Answer::Failed("57P01".to_owned()));
        seen.record(ack, Answer::Closed { kind: "57P01".to_owned(), said: "over".to_owned() });
        seen.record(ack, Answer::Unanswered);
        assert_eq!((seen.acks.len(), seen.unanswered), (1, 1));
        assert_eq!(seen.errors, BTreeMap::from([("57P01".to_owned(), 2), (WARNED.to_owned(), 1)]));
        assert_eq!(seen.sessions_lost, ["session 1: over"]);
    }
}
