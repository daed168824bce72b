//! An application's session through the proxy, opened again when it was lost, and what becomes of each
//! commit in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::Severity;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};

use crate::cluster::Cluster;

/// Between a client and the proxy there is nothing slow.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(20);
/// A statement that is not answered for so long has been forgotten by somebody.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(60);

/// The session.
pub(crate) struct Application {
    config: Config,
    connect_within: Duration,
    open: Option<Open>,
}

struct Open {
    client: Client,
    /// Whether the server has warned of anything since the last statement was sent.
    warned: Arc<AtomicBool>,
}

/// What is done around a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing: it is a transaction by itself.
    Statement,
    /// `BEGIN`, the statement, a read, `COMMIT`: four round trips.
    Transaction,
}

/// What became of a commit.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It was acknowledged.
    Committed,
    /// It was acknowledged with a warning. A wait for a standby that is cancelled ends like that: the commit
    /// is on the primary, and perhaps nowhere else.
    Warned,
    /// There is no session, and none can be opened: the SQLSTATE, or what else went wrong.
    Refused(String),
    /// It failed, with this SQLSTATE.
    Failed(String),
    /// The proxy closed the session.
    Closed {
        /// The SQLSTATE, or what else went wrong.
        kind: String,
        /// Its last words.
        said: String,
    },
    /// No answer came, and the session was given up.
    Unanswered,
}

impl Application {
    /// A session through the first proxy, which is yet to be opened.
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self::to(cluster.way_in(0), CONNECT_TIME_MAX)
    }

    /// A session to whoever this leads to. An attempt to open it is given up after a while, and made again.
    pub(crate) fn to(mut config: Config, connect_within: Duration) -> Self {
        config.connect_timeout(connect_within);
        Self { config, connect_within, open: None }
    }

    /// Commits one statement, in the session there is or in a new one.
    pub(crate) async fn commit(
        &mut self,
        work: Work,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Answer {
        let open = match self.open.take() {
            Some(open) => open,
            None => match timeout(self.connect_within, open(&self.config)).await {
                Ok(Ok(open)) => open,
                Ok(Err(error)) => return Answer::Refused(kind(&error)),
                Err(_) => return Answer::Refused("no answer".to_owned()),
            },
        };
        open.warned.store(false, Ordering::Relaxed);
        let answer = match timeout(STATEMENT_TIME_MAX, perform(&open.client, work, statement, values)).await {
            Ok(Ok(())) if open.warned.load(Ordering::Relaxed) => Answer::Warned,
            Ok(Ok(())) => Answer::Committed,
            Ok(Err(error)) if open.client.is_closed() => {
                let said = pgherd_common::errors::Chain(&error).to_string();
                return Answer::Closed { kind: kind(&error), said };
            }
            Ok(Err(error)) => {
                if work == Work::Transaction {
                    let ended = timeout(STATEMENT_TIME_MAX, open.client.batch_execute("ROLLBACK")).await;
                    if !matches!(ended, Ok(Ok(()))) {
                        return Answer::Closed { kind: kind(&error), said: error.to_string() };
                    }
                }
                Answer::Failed(kind(&error))
            }
            Err(_) => return Answer::Unanswered,
        };
        self.open = Some(open);
        answer
    }
}

async fn perform(
    client: &Client,
    work: Work,
    statement: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<(), tokio_postgres::Error> {
    match work {
        Work::Statement => client.execute(statement, values).await.map(drop),
        Work::Transaction => {
            client.batch_execute("BEGIN").await?;
            client.execute(statement, values).await?;
            client.query_one("SELECT 1", &[]).await?;
            client.batch_execute("COMMIT").await
        }
    }
}

async fn open(config: &Config) -> Result<Open, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    let warned = Arc::new(AtomicBool::new(false));
    tokio::spawn(listen(connection, Arc::clone(&warned)));
    Ok(Open { client, warned })
}

/// Carries the session, and hears what the server says beside its answers.
async fn listen(mut connection: Connection<Socket, NoTlsStream>, warned: Arc<AtomicBool>) {
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message
            && notice.parsed_severity() == Some(Severity::Warning)
        {
            // It comes before the answer it belongs to.
            warned.store(true, Ordering::Relaxed);
        }
    }
}

fn kind(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}
