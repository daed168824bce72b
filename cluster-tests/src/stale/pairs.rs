//! Each client writes a number that only it writes, in one of many ways, and reads it back at once, in one
//! of several.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::SinkExt;
use pgherd_common::errors::Chain;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage, Statement};

use super::tally::Tally;
use super::{Consistency, Options};

/// What the clients need. Each has a row in `stale_pairs`; what is copied in comes to `stale_copied`.
pub(super) const SCHEMA: &str = "
    CREATE TABLE stale_pairs (client bigint PRIMARY KEY, n bigint);
    CREATE TABLE stale_copied (client bigint, n bigint, PRIMARY KEY (client, n));
    CREATE FUNCTION stale_write(who bigint, what bigint) RETURNS void LANGUAGE plpgsql AS
        'BEGIN UPDATE stale_pairs SET n = what WHERE client = who; END';
";

/// A login costs more than a statement: one in so many of those that could be is done.
const NEW_SESSIONS: u64 = 100;
/// After an error.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

const UPDATE: &str = "UPDATE stale_pairs SET n = $2 WHERE client = $1";
const READ: &str = "SELECT n, current_setting('pgherd.port') FROM stale_pairs WHERE client = $1";
const READ_COPIED: &str = "SELECT max(n), current_setting('pgherd.port') FROM stale_copied WHERE client = $1";

/// How a number is written.
const WRITES: &[Write] = &[
    Write::Simple,
    Write::Typed,
    Write::Prepared,
    Write::Block,
    Write::Together,
    Write::Function,
    Write::WithQuery,
    Write::Lazily,
    Write::Copy,
    Write::NextSession,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    /// A simple query.
    Simple,
    /// The unnamed statement of the extended protocol.
    Typed,
    /// A prepared statement.
    Prepared,
    /// A transaction block of several messages.
    Block,
    /// Several statements in one text.
    Together,
    /// A function that writes.
    Function,
    /// `WITH ... UPDATE` in a query.
    WithQuery,
    /// Without waiting for the commit to be written.
    Lazily,
    /// COPY FROM STDIN.
    Copy,
    /// A simple query; a new session reads.
    NextSession,
}

/// What all clients share.
pub(super) struct Pairs {
    config: Config,
    primary_port: String,
    options: Options,
    begun: AtomicU64,
}

/// A client's sessions.
struct Sessions {
    own: Client,
    /// Of somebody else, who reads what this one wrote.
    other: Option<Client>,
    update: Statement,
    function: Statement,
    read: Statement,
}

impl Pairs {
    pub(super) fn new(config: Config, primary_port: u16, options: &Options) -> Self {
        let (options, begun) = (options.clone(), AtomicU64::new(0));
        Self { config, primary_port: primary_port.to_string(), options, begun }
    }

    /// The line that tells how far it is.
    pub(super) fn progress(&self, after: Duration) -> String {
        let begun = self.begun.load(Ordering::Relaxed).min(self.options.pairs);
        format!("{begun} of {} pairs after {:.0} s", self.options.pairs, after.as_secs_f64())
    }

    /// One client, until all pairs are done.
    pub(super) async fn run(self: Arc<Self>, client: u64) -> Tally {
        let mut tally = Tally::default();
        let mut random = StdRng::seed_from_u64(self.options.seed.wrapping_mul(1_000).wrapping_add(client));
        let (who, mut n) = (i64::try_from(client).unwrap_or(i64::MAX), 0);
        let mut sessions = None;
        while self.begun.fetch_add(1, Ordering::Relaxed) < self.options.pairs {
            n += 1;
            let paired = self.pair(&mut sessions, (who, n), &mut random, &mut tally).await;
            if let Err(error) = paired {
                tally.failed(Chain(&error).to_string());
                sessions = None;
                sleep(ERROR_PAUSE).await;
            }
        }
        tally
    }

    async fn connect(&self) -> Result<Client, Error> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn sessions(&self) -> Result<Sessions, Error> {
        let own = self.connect().await?;
        let global = self.options.consistency == Consistency::Global;
        let other = if global { Some(self.connect().await?) } else { None };
        let update = own.prepare(UPDATE).await?;
        let function = own.prepare("SELECT stale_write($1, $2)").await?;
        let read = own.prepare(READ).await?;
        Ok(Sessions { own, other, update, function, read })
    }

    async fn pair(
        &self,
        open: &mut Option<Sessions>,
        (who, n): (i64, i64),
        random: &mut StdRng,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let mut write = WRITES.get(random.random_range(0..WRITES.len())).copied().unwrap_or(Write::Simple);
        if write == Write::NextSession && random.random_range(0..NEW_SESSIONS) > 0 {
            write = Write::Simple;
        }
        let sessions = match open {
            Some(sessions) => sessions,
            None => open.insert(self.sessions().await?),
        };
        sessions.write(write, who, n).await?;
        let how = random.random_range(0..4);
        let begun = Instant::now();
        let text = if write == Write::Copy { READ_COPIED } else { READ }.replace("$1", &who.to_string());
        let (seen, port) = match (&sessions.other, write) {
            (_, Write::NextSession) => {
                let next = self.connect().await?;
                simple(&next, &text).await?
            }
            (Some(other), _) if how < 2 => simple(other, &text).await?,
            _ => sessions.read(write == Write::Copy, how, who).await?,
        };
        let stale = (seen < n).then(|| {
            format!("{write:?} by client {who}: {n} was written, {seen} read (in way {how}) at port {port}")
        });
        tally.note(stale, port != self.primary_port, begun.elapsed());
        Ok(())
    }
}

impl Sessions {
    async fn write(&self, write: Write, who: i64, n: i64) -> Result<(), Error> {
        let own = &self.own;
        let text = format!("UPDATE stale_pairs SET n = {n} WHERE client = {who}");
        match write {
            Write::Simple | Write::NextSession => own.batch_execute(&text).await?,
            Write::Typed => {
                own.query_typed(UPDATE, &[(&who, Type::INT8), (&n, Type::INT8)]).await?;
            }
            Write::Prepared => {
                own.execute(&self.update, &[&who, &n]).await?;
            }
            Write::Block => {
                own.batch_execute("BEGIN").await?;
                own.execute(&self.update, &[&who, &n]).await?;
                own.batch_execute("COMMIT").await?;
            }
            Write::Together => own.batch_execute(&format!("SELECT 1; {text}; SELECT 2")).await?,
            Write::Function => {
                own.query(&self.function, &[&who, &n]).await?;
            }
            Write::WithQuery => {
                own.simple_query(&format!("WITH w AS ({text} RETURNING n) SELECT n FROM w")).await?;
            }
            Write::Lazily => {
                own.batch_execute("BEGIN").await?;
                own.batch_execute("SET LOCAL synchronous_commit = off").await?;
                own.batch_execute(&text).await?;
                own.batch_execute("COMMIT").await?;
            }
            Write::Copy => {
                let sink = own.copy_in("COPY stale_copied FROM STDIN").await?;
                futures_util::pin_mut!(sink);
                sink.send(bytes::Bytes::from(format!("{who}\t{n}\n"))).await?;
                sink.finish().await?;
            }
        }
        Ok(())
    }

    /// What is there, and the port of the server that says so.
    async fn read(&self, copied: bool, how: u8, who: i64) -> Result<(i64, String), Error> {
        let sql = if copied { READ_COPIED } else { READ };
        let text = sql.replace("$1", &who.to_string());
        match how {
            0 => simple(&self.own, &text).await,
            1 => {
                self.own.batch_execute("BEGIN READ ONLY").await?;
                let seen = simple(&self.own, &text).await?;
                self.own.batch_execute("COMMIT").await?;
                Ok(seen)
            }
            2 if !copied => {
                let row = self.own.query_one(&self.read, &[&who]).await?;
                Ok((row.get(0), row.get(1)))
            }
            _ => {
                let rows = self.own.query_typed(sql, &[(&who, Type::INT8)]).await?;
                let row = rows.first().map(|row| (row.get::<_, Option<i64>>(0).unwrap_or(0), row.get(1)));
                Ok(row.unwrap_or_default())
            }
        }
    }
}

/// The number in the only row, and the port; 0 where there is none.
async fn simple(client: &Client, sql: &str) -> Result<(i64, String), Error> {
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let n = row.get(0).and_then(|n| n.parse().ok()).unwrap_or(0);
            return Ok((n, row.get(1).unwrap_or_default().to_owned()));
        }
    }
    Ok((0, String::new()))
}
