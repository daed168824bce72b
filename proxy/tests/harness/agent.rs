//! An agent that says what the test wants it to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use pgherd_common::push::{Status, ToAgent, ToProxy};
use pgherd_common::{HostPort, Topology};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::soon;

/// Listens for proxies.
pub struct Agent {
    address: HostPort,
    say: broadcast::Sender<ToProxy>,
    heard: mpsc::UnboundedReceiver<ToAgent>,
    backed_ms: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts to listen; a proxy that connects first gets `topology`, if there is one.
    pub async fn start(topology: Option<Topology>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (say, _) = broadcast::channel(64);
        let (hear, heard) = mpsc::unbounded_channel();
        let backed_ms = Arc::new(AtomicU64::new(2_000));
        let task = tokio::spawn(accept(listener, topology, say.clone(), hear, backed_ms.clone()));
        Self { address, say, heard, backed_ms, task }
    }

    /// From now on it claims to have a quorum behind it for so long; 0: it may be cut off.
    pub fn claim_quorum(&self, backed_ms: u64) {
        self.backed_ms.store(backed_ms, Relaxed);
    }

    /// Where it listens.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// What the proxy says next.
    pub async fn hear(&mut self) -> ToAgent {
        soon(self.heard.recv()).await.unwrap()
    }

    /// Says something to the proxy.
    pub fn say(&self, message: ToProxy) {
        self.say.send(message).expect("no proxy is connected");
    }

    /// Returns when the proxy has `topology` in effect.
    pub async fn push(&mut self, topology: Topology) {
        let version = topology.version();
        self.say(ToProxy::Reset(topology));
        while self.hear().await != ToAgent::Ack(version) {}
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    topology: Option<Topology>,
    say: broadcast::Sender<ToProxy>,
    hear: mpsc::UnboundedSender<ToAgent>,
    backed: Arc<AtomicU64>,
) {
    // Aborted together with the listener.
    let links = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let link = link(stream, topology.clone(), say.subscribe(), hear.clone(), backed.clone());
        links.lock().await.spawn(link);
    }
}

async fn link(
    stream: TcpStream,
    topology: Option<Topology>,
    mut say: broadcast::Receiver<ToProxy>,
    hear: mpsc::UnboundedSender<ToAgent>,
    backed: Arc<AtomicU64>,
) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    if let Some(topology) = topology {
        socket.send(Message::text(ToProxy::Reset(topology).encode())).await.unwrap();
    }
    let mut pulse = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => drop(hear.send(ToAgent::decode(&text).unwrap())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            message = say.recv() => {
                let Ok(message) = message else { return };
                socket.send(Message::text(message.encode())).await.unwrap();
            }
            _ = pulse.tick() => {
                let status = ToProxy::Status(Status { backed_ms: backed.load(Relaxed), backends: vec![] });
                if socket.send(Message::text(status.encode())).await.is_err() {
                    return;
                }
            }
        }
    }
}
