//! Replication connections: after the login, bytes pass as they are between the client and the primary.

use std::io;
use std::task::{Context, Poll};

use bytes::Buf;
use pgherd_common::NodeId;

use crate::clients::Phase;
use crate::pipe::Pipe;
use crate::session::{LARGE, Passage, Segment, Wanted};
use crate::sqlstate::Trouble;
use crate::topology::{Fate, fate};
use crate::upstream::Server;

use super::state::{Client, Gone};

/// Why no more passes.
enum End {
    Client(io::Error),
    Server(String),
    Protocol,
}

/// What is on its way.
#[derive(Default)]
struct Relay {
    passage: Passage,
    /// So many bytes at the front of the server's input go to the client.
    cleared: usize,
    /// What became of the server's connection.
    ended: Option<String>,
}

impl Client {
    /// A connection of its own to the primary.
    pub(super) async fn reach_for_replication(&mut self) -> Result<Result<NodeId, Trouble>, Gone> {
        self.reach(&Segment::default(), Wanted::Writer).await
    }

    /// Serves a replication connection to its end.
    pub(super) async fn replicate(&mut self) -> Gone {
        self.note(Phase::Active);
        let Some(mut server) = self.servers.remove_one(|_| true) else {
            return Gone::Trouble(Trouble::NoServer { primary: true, held_ms: 0 });
        };
        self.slot.begins();
        if !self.slot.runs_on(&server.gate) {
            return Gone::Trouble(Trouble::Cancelled);
        }
        let mut relay = Relay::default();
        let gone = self.relay(&mut relay, &mut server).await;
        self.slot.rests();
        // What was passed on goes out before anything else is said, and all that the client said gets there.
        let passed = server.pipe.input.split_to(relay.cleared.min(server.pipe.input.len()));
        self.pipe.output.extend_from_slice(&passed);
        server.pipe.output.extend_from_slice(&self.pipe.input.split());
        server.leave();
        match gone {
            Gone::Trouble(trouble) if !relay.passage.is_between() => {
                tracing::info!(user = self.user, ?trouble, "replication ended in the middle of a message");
                Gone::Left
            }
            gone => gone,
        }
    }

    async fn relay(&mut self, relay: &mut Relay, server: &mut Server) -> Gone {
        let badge = self.presence.badge.clone();
        loop {
            let pipe = &mut self.pipe;
            let end = tokio::select! {
                biased;
                _ = self.topology.changed() => {
                    let current = self.topology.borrow_and_update().clone();
                    // A host that vanished never says so.
                    if current.is_none_or(|current| fate(&current, server.node, server.role) != Fate::Cut) {
                        continue;
                    }
                    End::Server("The server is not the primary any more.".to_owned())
                }
                () = badge.bell.rung() => {
                    if badge.is_killed() {
                        return Gone::Trouble(Trouble::Killed);
                    }
                    continue;
                }
                _ = self.stopping.changed() => return Gone::Trouble(Trouble::ShuttingDown),
                end = std::future::poll_fn(|cx| relay.poll(cx, pipe, &mut server.pipe)) => end,
            };
            let name = server.name.clone();
            tracing::info!(server = %name, user = self.user, "a replication connection ends");
            return match end {
                End::Client(error) => error.into(),
                // The server said why, in its own words.
                End::Server(_) if relay.passage.ends_with_error() => Gone::Left,
                End::Server(why) => Gone::Trouble(Trouble::ReplicationEnded { server: name, why }),
                End::Protocol => Gone::Trouble(Trouble::ServerProtocol { server: name }),
            };
        }
    }
}

impl Relay {
    /// Moves bytes both ways, until one side is at its end.
    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Pipe, server: &mut Pipe) -> Poll<End> {
        loop {
            let mut moved = false;
            if server.has_output() || !client.input.is_empty() {
                match server.poll_drain(cx, &client.input) {
                    Poll::Ready(Ok(written)) => {
                        client.input.advance(written);
                        moved = true;
                    }
                    // What it says last is still to be read.
                    Poll::Ready(Err(_)) => {
                        server.output.clear();
                        client.input.clear();
                    }
                    Poll::Pending => {}
                }
            }
            if client.input.len() < LARGE {
                match client.poll_fill(cx) {
                    Poll::Ready(Ok(())) => moved = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(End::Client(error)),
                    Poll::Pending => {}
                }
            }
            match self.poll_to_client(cx, client, server) {
                Poll::Ready(None) => moved = true,
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Ready when something moved, or will never again.
    fn poll_to_client(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Pipe,
        server: &mut Pipe,
    ) -> Poll<Option<End>> {
        let mut moved = false;
        if self.cleared > 0 || client.has_output() {
            match client.poll_drain(cx, server.input.get(..self.cleared).unwrap_or_default()) {
                Poll::Ready(Ok(written)) => {
                    server.input.advance(written);
                    self.cleared -= written;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(End::Client(error))),
                Poll::Pending => {}
            }
        }
        if let Some(why) = &self.ended {
            if self.cleared == 0 && !client.has_output() {
                return Poll::Ready(Some(End::Server(why.clone())));
            }
        } else if self.cleared + client.output.len() < LARGE {
            match server.poll_fill(cx) {
                Poll::Ready(Ok(())) => {
                    let new = server.input.get(self.cleared..).unwrap_or_default();
                    let Ok(passed) = self.passage.pass(new) else { return Poll::Ready(Some(End::Protocol)) };
                    self.cleared += passed;
                    moved = true;
                }
                Poll::Ready(Err(error)) => {
                    self.ended = Some(format!("The connection broke: {error}."));
                    moved = true;
                }
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(None) } else { Poll::Pending }
    }
}
