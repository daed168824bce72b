//! A connection on which every byte is seen: nothing is interpreted but the login and where a message ends.

use std::io;
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::say::{counted, message, text};
use super::told::Told;
use crate::postgres::APP;

/// A server that has said nothing for so long has said all that it has to say for now. If it was only
/// slow, the rest counts as said to what the client says next: on both sides alike.
const QUIET: Duration = Duration::from_millis(15);

/// Where to connect to.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// When an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// So many `ReadyForQuery`.
    Ready(usize),
    /// So many, and whatever else comes soon.
    Quiet(usize),
    /// So many messages.
    Count(usize),
}

impl Until {
    /// With so many `ReadyForQuery` among so many messages.
    fn is_met(self, ready: usize, messages: usize) -> bool {
        match self {
            Self::Ready(count) | Self::Quiet(count) => ready >= count,
            Self::Count(count) => messages >= count,
        }
    }

    /// Nothing that comes behind it belongs to it.
    fn is_exact(self) -> bool {
        !matches!(self, Self::Quiet(_))
    }
}

/// A connection.
pub(super) struct Line {
    stream: TcpStream,
    input: Vec<u8>,
    used: usize,
    ended: bool,
    patience: Duration,
}

impl Line {
    /// Logs in. What the server said between that and its first `ReadyForQuery`, but for its process number.
    /// `patience`: how long an answer may take.
    pub(super) async fn open(address: &Address, patience: Duration) -> io::Result<(Self, Vec<Told>)> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        let mut line = Self { stream, input: vec![], used: 0, ended: false, patience };
        let mut hello = Vec::new();
        counted(&mut hello, |out| {
            out.extend(0x0003_0000u32.to_be_bytes());
            for word in ["user", APP, "database", APP] {
                text(out, word);
            }
            out.push(0);
        });
        line.stream.write_all(&hello).await?;
        let mut scram = ScramSha256::new(APP.as_bytes(), ChannelBinding::unsupported());
        loop {
            let told = line.told().await?;
            let (code, data) = told.payload.split_at_checked(4).unwrap_or_default();
            let mut answer = Vec::new();
            match (told.tag, code) {
                (b'R', [0, 0, 0, 0]) => break,
                (b'R', [0, 0, 0, 10]) => message(&mut answer, b'p', |out| {
                    text(out, SCRAM_SHA_256);
                    out.extend(u32::try_from(scram.message().len()).unwrap_or(0).to_be_bytes());
                    out.extend(scram.message());
                }),
                (b'R', [0, 0, 0, 11]) => {
                    scram.update(data)?;
                    message(&mut answer, b'p', |out| out.extend(scram.message()));
                }
                (b'R', [0, 0, 0, 12]) => scram.finish(data)?,
                _ => return Err(io::Error::other(format!("cannot log in: {told}"))),
            }
            line.stream.write_all(&answer).await?;
        }
        let mut greeting = Vec::new();
        let heard = line.exchange(&[], Until::Ready(1), &mut greeting).await;
        if !heard || greeting.last().is_none_or(|last| last.tag != b'Z') {
            return Err(io::Error::other(format!("no ReadyForQuery after the login: {greeting:?}")));
        }
        greeting.retain(|told| told.tag != b'K');
        Ok((line, greeting))
    }

    async fn told(&mut self) -> io::Result<Told> {
        let mut told = Vec::new();
        self.exchange(&[], Until::Count(1), &mut told).await;
        told.pop().ok_or_else(|| io::Error::other("no answer"))
    }

    /// Sends `bytes` and listens at the same time. False if the answer did not come.
    pub(super) async fn exchange(&mut self, bytes: &[u8], until: Until, told: &mut Vec<Told>) -> bool {
        let (mut reader, mut writer) = self.stream.split();
        let long = self.patience;
        let (input, used, ended) = (&mut self.input, &mut self.used, &mut self.ended);
        let mut ready = 0;
        let listen = async {
            loop {
                while !(until.is_met(ready, told.len()) && until.is_exact())
                    && let Some(next) = next(input, used)
                {
                    ready += usize::from(next.tag == b'Z');
                    told.push(next);
                }
                let met = until.is_met(ready, told.len());
                if *ended && told.last().is_none_or(|last| last.tag != 0) && !(met && until.is_exact()) {
                    told.push(Told::end());
                }
                if *ended || (met && until.is_exact()) {
                    return;
                }
                let patience = if met { QUIET } else { long };
                let Ok(read) = timeout(patience, reader.read_buf(input)).await else { return };
                *ended = !read.is_ok_and(|count| count > 0);
            }
        };
        let say = async {
            // Whoever hangs up in the middle has said why.
            let _gone = writer.write_all(bytes).await;
        };
        let both = async { tokio::join!(say, listen) };
        let in_time = timeout(long * 2, both).await.is_ok();
        in_time && (until.is_met(ready, told.len()) || self.ended)
    }
}

/// The next whole message.
fn next(input: &mut Vec<u8>, used: &mut usize) -> Option<Told> {
    let rest = input.get(*used..).unwrap_or_default();
    let next = (|| {
        let [tag, a, b, c, d, ..] = *rest else { return None };
        let len = 1 + usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let payload = rest.get(5..len)?.to_vec();
        *used += len;
        Some(Told::new(tag, payload))
    })();
    if next.is_none() && *used > 0 {
        input.drain(..*used);
        *used = 0;
    }
    next
}
