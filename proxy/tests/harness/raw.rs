//! A client that says exactly these bytes.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

/// A message of protocol 3.
pub fn message(tag: char, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 4).unwrap().to_be_bytes();
    [&[tag as u8], &length[..], payload].concat()
}

/// See the module.
pub struct Raw {
    pub stream: TcpStream,
    read: BytesMut,
}

impl Raw {
    /// Connects, and says nothing.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: BytesMut::new() }
    }

    /// Logs in as `postgres`, who needs no password.
    pub async fn log_in(port: u16) -> Self {
        let mut raw = Self::connect(port).await;
        raw.say(b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0").await;
        raw.until("Z").await;
        raw
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        // Whoever was thrown out finds out by what it hears.
        drop(self.stream.write_all(bytes).await);
    }

    /// One message; `None` at the end.
    pub async fn hear(&mut self) -> Option<(char, Vec<u8>)> {
        loop {
            if let [tag, a, b, c, d, ..] = self.read[..] {
                let len = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
                if self.read.len() >= len {
                    let payload = self.read[5..len].to_vec();
                    self.read.advance(len);
                    return Some((char::from(tag), payload));
                }
            }
            match soon(self.stream.read_buf(&mut self.read)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Listens until messages with these tags have come, in their order; all that was said, for people.
    pub async fn until(&mut self, tags: &str) -> Vec<String> {
        let (mut heard, mut tags) = (Vec::new(), tags.chars().peekable());
        while let Some(awaited) = tags.peek().copied() {
            let Some((tag, payload)) = self.hear().await else {
                heard.push("end".to_owned());
                break;
            };
            heard.push(told(tag, &payload));
            if tag == awaited {
                tags.next();
            }
        }
        heard
    }

    /// All bytes up to the end.
    pub async fn read_out(&mut self) -> Vec<u8> {
        let mut all = self.read.split().to_vec();
        // A reset is an end, too.
        drop(soon(self.stream.read_to_end(&mut all)).await);
        all
    }
}

/// Without the place in the server's source, which is no part of what it says.
fn told(tag: char, payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    if !matches!(tag, 'E' | 'N') {
        return format!("{tag} {text:?}");
    }
    let fields = text.split('\0').filter(|field| !field.starts_with(['F', 'L', 'R']) && !field.is_empty());
    format!("{tag} {}", fields.collect::<Vec<_>>().join("|"))
}
