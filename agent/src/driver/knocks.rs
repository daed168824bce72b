//! Knocking on the PostgreSQL of a primary whose agent is silent.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::Duration;

use pgherd_common::{HostPort, MonoTime, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Event;
use crate::observation::RemoteDatabase;
use crate::postgres::Instance;

/// Between two knocks.
const PAUSE: Duration = Duration::from_millis(300);

/// Who is being knocked on, and what was seen.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    target: Option<NodeId>,
    in_flight: bool,
    last: Option<MonoTime>,
    seen: BTreeMap<NodeId, RemoteDatabase>,
}

impl Knocks {
    /// A knock has ended.
    pub(super) fn answered(&mut self, node: NodeId, result: RemoteDatabase) {
        self.in_flight = false;
        if self.target == Some(node) {
            self.seen.insert(node, result);
        }
    }

    /// What is known, for the beat.
    pub(super) fn results(&self) -> BTreeMap<NodeId, RemoteDatabase> {
        self.seen.clone()
    }

    /// Begins the next knock if it is time; forgets everything once nobody is silent.
    pub(super) fn turn(
        &mut self,
        target: Option<(NodeId, HostPort)>,
        instance: Option<&Instance>,
        timeout: Duration,
        events: &mpsc::Sender<Event>,
        now: MonoTime,
    ) {
        if self.target != target.as_ref().map(|(node, _)| *node) {
            self.target = target.as_ref().map(|(node, _)| *node);
            self.seen.clear();
            self.last = None;
        }
        let Some((node, address)) = target else { return };
        if self.in_flight || self.last.is_some_and(|last| now.since(last) < PAUSE) {
            return;
        }
        self.in_flight = true;
        self.last = Some(now);
        let (instance, events) = (instance.cloned(), events.clone());
        tokio::spawn(async move {
            let result = match instance {
                Some(instance) => instance.knock(&address).await,
                None => knock_unauthenticated(&address, timeout).await,
            };
            let _ = events.send(Event::Knocked(node, result)).await;
        });
    }
}

/// A witness has no login: it can only tell whether a PostgreSQL answers at all.
async fn knock_unauthenticated(address: &HostPort, timeout: Duration) -> RemoteDatabase {
    /// SSLRequest, which every server answers with one byte before it asks who we are.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let ask = async {
        let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    let answer: Result<io::Result<u8>, _> = tokio::time::timeout(timeout, ask).await;
    match answer {
        Ok(Ok(_)) => RemoteDatabase::Answering,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => RemoteDatabase::Refused,
        Ok(Err(_)) | Err(_) => RemoteDatabase::Silent,
    }
}
