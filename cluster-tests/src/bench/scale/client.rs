//! A client that is light enough for ten thousand of them to fit in one process: a socket and what it counts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::scram::{Login, Password, ScramError};
use super::tally::{Counts, Tally};
use crate::postgres::APP;

/// A server that neither says nor takes anything for so long has lost the client.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What is read at once of a short answer, and of a long one.
const SHORT: usize = 4 << 10;
const LONG: usize = 256 << 10;
/// Clients come from 127.0.0.2 and so many addresses behind it, each of which has ports of its own.
const SOURCES: u8 = 16;
static NEXT_SOURCE: AtomicU8 = AtomicU8::new(0);

/// What a client wanted and did not get.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The connection broke.
    #[error("cannot {doing}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// Why it was not.
        #[source]
        source: io::Error,
    },
    /// Nothing happened any more.
    #[error("cannot {doing}: nothing happened for {SILENCE_MAX:?}")]
    Silent {
        /// What was to be done.
        doing: &'static str,
    },
    /// The connection was closed.
    #[error("the connection was closed before the answer was complete")]
    Closed,
    /// An error was answered.
    #[error("refused with {0}")]
    Refused(String),
    /// The login went wrong.
    #[error("cannot log in")]
    Scram(#[from] ScramError),
    /// An answer that is not the one to the question.
    #[error("wrong answer: {0}")]
    Wrong(String),
}

/// One session.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    tally: Tally,
    /// For long answers only.
    long: Vec<u8>,
}

/// What a pipeline did.
#[derive(Debug, Clone, Default)]
pub(super) struct Piped {
    /// Batches that were sent and answered.
    pub(super) batches: u64,
    /// What was sent.
    pub(super) sent_bytes: u64,
    /// What was answered.
    pub(super) counts: Counts,
}

/// Statements up to a `Sync`.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// As they are written.
    pub(super) bytes: Vec<u8>,
    /// How many.
    pub(super) statements: u64,
}

async fn patient<T>(
    doing: &'static str,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ClientError> {
    match timeout(SILENCE_MAX, work).await {
        Ok(done) => done.map_err(|source| ClientError::Io { doing, source }),
        Err(_) => Err(ClientError::Silent { doing }),
    }
}

fn encoded(encode: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<BytesMut, ClientError> {
    let mut bytes = BytesMut::new();
    encode(&mut bytes).map_err(|source| ClientError::Io { doing: "write a message", source })?;
    Ok(bytes)
}

impl Client {
    /// Logs in as the application.
    pub(super) async fn open(address: SocketAddr, password: &Password) -> Result<Self, ClientError> {
        let stream = patient("connect", connect(address)).await?;
        let mut client = Self { stream, tally: Tally::default(), long: vec![] };
        let hello = [("user", APP), ("database", APP)];
        client.say(&encoded(|out| frontend::startup_message(hello, out))?).await?;
        client.log_in(password).await?;
        client.answer().await?;
        Ok(client)
    }

    async fn log_in(&mut self, password: &Password) -> Result<(), ClientError> {
        let mut login = Login::new(rand::random());
        loop {
            let message = self.authentication().await?;
            let (code, data) = message.split_at_checked(4).unwrap_or_default();
            let data = String::from_utf8_lossy(data);
            match code {
                [0, 0, 0, 0] => return Ok(()),
                [0, 0, 0, 10] => {
                    let first = login.first();
                    let initial = |out: &mut BytesMut| {
                        frontend::sasl_initial_response("SCRAM-SHA-256", first.as_bytes(), out)
                    };
                    self.say(&encoded(initial)?).await?;
                }
                [0, 0, 0, 11] => {
                    let proof = login.answer(&data, password)?;
                    self.say(&encoded(|out| frontend::sasl_response(proof.as_bytes(), out))?).await?;
                }
                [0, 0, 0, 12] => login.verify(&data)?,
                _ => return Err(ClientError::Wrong(format!("a login of another kind: {code:?}"))),
            }
        }
    }

    /// The next message of the login.
    async fn authentication(&mut self) -> Result<Vec<u8>, ClientError> {
        loop {
            if let Some(message) = self.tally.next_authentication() {
                return Ok(message);
            }
            if self.tally.counts().error.is_some() {
                self.checked()?;
            }
            self.hear().await?;
        }
    }

    /// Will read much at once.
    pub(super) fn for_long_answers(mut self) -> Self {
        self.long = vec![0; LONG];
        self
    }

    /// Asks in the simple protocol, and hears the whole answer.
    pub(super) async fn ask(&mut self, sql: &str) -> Result<Counts, ClientError> {
        self.say(&encoded(|out| frontend::query(sql, out))?).await?;
        self.answer().await
    }

    /// Asks what has one row, whose first column is known.
    pub(super) async fn ask_known(&mut self, sql: &str, expected: &str) -> Result<(), ClientError> {
        let counts = self.ask(sql).await?;
        known(&counts, expected)
    }

    /// Prepares a statement under this name.
    pub(super) async fn prepare(&mut self, name: &str, sql: &str) -> Result<(), ClientError> {
        let mut message = encoded(|out| frontend::parse(name, sql, [], out))?;
        frontend::sync(&mut message);
        self.say(&message).await?;
        self.answer().await.map(drop)
    }

    /// Executes it with one parameter; its one row must begin with that.
    pub(super) async fn execute(&mut self, name: &str, parameter: &str) -> Result<(), ClientError> {
        let mut message = encoded(|out| bind_and_execute(name, parameter, out))?;
        frontend::sync(&mut message);
        self.say(&message).await?;
        known(&self.answer().await?, parameter)
    }

    /// Begins a `COPY ... FROM STDIN`.
    pub(super) async fn begin_copy(&mut self, sql: &str) -> Result<(), ClientError> {
        self.say(&encoded(|out| frontend::query(sql, out))?).await?;
        while self.tally.counts().copy_starts == 0 {
            if self.tally.counts().ready > 0 {
                return Err(self.checked().err().unwrap_or(ClientError::Closed));
            }
            self.hear().await?;
        }
        Ok(())
    }

    /// Ends it.
    pub(super) async fn end_copy(&mut self) -> Result<Counts, ClientError> {
        let mut done = BytesMut::new();
        frontend::copy_done(&mut done);
        self.say(&done).await?;
        self.answer().await
    }

    /// Keeps `depth` batches in flight until it is time, and hears all their answers.
    pub(super) async fn pipeline(
        &mut self,
        batches: &[Batch],
        depth: u64,
        until: Instant,
    ) -> Result<Piped, ClientError> {
        let mut piped = Piped::default();
        let mut queue = batches.iter().cycle();
        let mut unsent: &[u8] = &[];
        loop {
            let answered = self.tally.counts().ready;
            if unsent.is_empty() && piped.batches - answered < depth && Instant::now() < until {
                unsent = queue.next().map(|batch| batch.bytes.as_slice()).unwrap_or_default();
                piped.batches += 1;
            }
            if answered == piped.batches {
                piped.counts = self.checked()?;
                return Ok(piped);
            }
            let interest =
                if unsent.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = patient("go on with a pipeline", self.stream.ready(interest)).await?;
            if ready.is_writable() && !unsent.is_empty() {
                let written = written(self.stream.try_write(unsent))?;
                piped.sent_bytes += u64::try_from(written).unwrap_or(0);
                unsent = unsent.get(written..).unwrap_or_default();
            }
            if ready.is_readable() {
                self.hear_at_once()?;
            }
        }
    }

    /// Says goodbye and waits until the other side has closed the connection.
    pub(super) async fn close(mut self) -> Result<(), ClientError> {
        let mut bye = BytesMut::new();
        frontend::terminate(&mut bye);
        self.say(&bye).await?;
        loop {
            match self.hear().await {
                Ok(()) => (),
                Err(ClientError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends bytes.
    pub(super) async fn say(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        patient("send", self.stream.write_all(bytes)).await
    }

    /// Everything up to `ReadyForQuery`.
    async fn answer(&mut self) -> Result<Counts, ClientError> {
        while self.tally.counts().ready == 0 {
            self.hear().await?;
        }
        self.checked()
    }

    fn checked(&mut self) -> Result<Counts, ClientError> {
        let mut counts = self.tally.take();
        counts.error.take().map_or(Ok(counts), |error| Err(ClientError::Refused(error)))
    }

    async fn hear(&mut self) -> Result<(), ClientError> {
        patient("wait for an answer", self.stream.readable()).await?;
        self.hear_at_once()
    }

    /// What is there.
    fn hear_at_once(&mut self) -> Result<(), ClientError> {
        let mut short = [0; SHORT];
        let chunk = if self.long.is_empty() { short.as_mut_slice() } else { self.long.as_mut_slice() };
        match self.stream.try_read(chunk) {
            Ok(0) => Err(self.checked().err().unwrap_or(ClientError::Closed)),
            Ok(length) => {
                self.tally.hear(chunk.get(..length).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(source) => Err(ClientError::Io { doing: "read", source }),
        }
    }
}

fn written(result: io::Result<usize>) -> Result<usize, ClientError> {
    match result {
        Ok(length) => Ok(length),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(source) => Err(ClientError::Io { doing: "send", source }),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if address.ip().is_loopback() {
        let source = 2 + NEXT_SOURCE.fetch_add(1, Ordering::Relaxed) % SOURCES;
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, source)), 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn known(counts: &Counts, expected: &str) -> Result<(), ClientError> {
    if counts.rows == 1 && counts.first_column() == Some(expected) {
        return Ok(());
    }
    let told = counts.first_column().unwrap_or("something else");
    Err(ClientError::Wrong(format!("{} rows with {told:?} instead of one with {expected:?}", counts.rows)))
}

/// Binds the statement to one parameter in text format, and executes it.
fn bind_and_execute(name: &str, parameter: &str, out: &mut BytesMut) -> io::Result<()> {
    let value = |value: &str, out: &mut BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    let bound = frontend::bind("", name, [], [parameter], value, [], out);
    bound.map_err(|_| io::Error::other("the parameter is too long"))?;
    frontend::execute("", 0, out)
}

impl Batch {
    /// As many statements as fit in about `bytes`, each parsed, bound and executed, for keys from `first` up
    /// to `keys`, where it begins again.
    pub(super) fn new(sql: &str, bytes: usize, first: u32, keys: u32) -> io::Result<Self> {
        let (mut out, mut statements, mut key) = (BytesMut::with_capacity(bytes), 0, first);
        while out.len() < bytes {
            frontend::parse("", sql, [], &mut out)?;
            bind_and_execute("", &key.to_string(), &mut out)?;
            key = key % keys.max(1) + 1;
            statements += 1;
        }
        frontend::sync(&mut out);
        Ok(Self { bytes: out.to_vec(), statements })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_long_as_it_should_be() {
        let batch = Batch::new("SELECT $1", 1000, 1, 10).unwrap();
        assert!(batch.bytes.len() >= 1000 && batch.bytes.len() < 1100, "{}", batch.bytes.len());
        let parses = batch.bytes.windows(9).filter(|window| *window == b"SELECT $1".as_slice()).count();
        assert_eq!(u64::try_from(parses).unwrap(), batch.statements);
        assert!(batch.bytes.ends_with(&[b'S', 0, 0, 0, 4]));
    }
}
