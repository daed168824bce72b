//! While nothing runs: wait for the client, and keep an eye on its servers.

use std::io;
use std::task::Poll;

use pgherd_common::{NodeId, Topology};
use tokio::time::Instant;

use crate::sqlstate::Trouble;
use crate::topology::{Fate, Role, fate};
use crate::upstream::{Heard, Server};
use crate::wire::backend::{self, ServerError};
use crate::wire::frame;

use super::state::{Client, Gone};

/// What happened.
enum News {
    Client(io::Result<()>),
    Server(NodeId, io::Result<()>),
    /// Somebody wants something of the client.
    Called,
    Topology,
}

impl Client {
    /// Waits until something happens; what servers say on their own is passed on.
    pub(super) async fn idle(&mut self) -> Result<(), Gone> {
        if !self.pipe.flush_now()? {
            self.flush_or_go().await?;
        }
        if self.segment.is_empty() {
            self.segment.rest();
            self.pipe.shrink();
        }
        self.rest();
        self.servers.values_mut().for_each(|server| server.pipe.shrink());
        self.heed()?;
        if *self.stopping.borrow() && self.segment.is_empty() {
            return Err(Gone::Trouble(Trouble::ShuttingDown));
        }
        if let Some(worker) = self.departs_for() {
            return Err(Gone::Moves(worker));
        }
        let (pipe, servers, badge) = (&mut self.pipe, &mut self.servers, &self.presence.badge);
        let topology = &self.topology;
        let news = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = pipe.poll_fill(cx) {
                return Poll::Ready(News::Client(result));
            }
            for server in servers.values_mut() {
                if let Poll::Ready(result) = server.pipe.poll_fill(cx) {
                    return Poll::Ready(News::Server(server.node, result));
                }
            }
            if badge.bell.poll_rung(cx).is_ready() {
                return Poll::Ready(News::Called);
            }
            // Behind the bell, which tells of it. The sender lives as long as the process.
            if topology.has_changed().unwrap_or(false) { Poll::Ready(News::Topology) } else { Poll::Pending }
        });
        match news.await {
            News::Client(result) => return Ok(result?),
            News::Server(node, result) => self.on_server_news(node, result),
            News::Called => return self.answer_call(),
            News::Topology => self.reap(),
        }
        Ok(())
    }

    /// Looks whether a server said something, or is gone, since it was last used.
    pub(super) async fn look_at(&mut self, node: NodeId) {
        let Some(server) = self.servers.get_mut(node) else { return };
        let news = std::future::poll_fn(|cx| {
            Poll::Ready(match server.pipe.poll_fill(cx) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            })
        });
        if let Some(result) = news.await {
            self.on_server_news(node, result);
        }
    }

    pub(super) fn on_server_news(&mut self, node: NodeId, result: io::Result<()>) {
        if let Err(error) = result {
            return self.drop_server(node, &format!("the connection broke: {error}"));
        }
        let Some(server) = self.servers.get_mut(node) else { return };
        let mut input = std::mem::take(&mut server.pipe.input);
        let lost = loop {
            match frame::message(&input) {
                Ok(Some((header, payload))) => {
                    if let Some(why) = self.on_unasked(
                        node,
                        header.tag,
                        payload,
                        input.get(..header.len).unwrap_or_default(),
                    ) {
                        break Some(why);
                    }
                    frame::consume(&mut input, header.len);
                }
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        match (lost, self.servers.get_mut(node)) {
            (None, Some(server)) => server.pipe.input = input,
            (Some(why), _) => self.drop_server(node, &why),
            (None, None) => {}
        }
    }

    /// Passes on what a server says without being asked. Why it is lost, if it is.
    fn on_unasked(&mut self, node: NodeId, tag: u8, payload: &[u8], message: &[u8]) -> Option<String> {
        match tag {
            b'N' | b'A' => self.pipe.output.extend_from_slice(message),
            b'S' => match backend::parameter(payload) {
                Ok((name, value)) => {
                    if self.tells(name, value) {
                        self.pipe.output.extend_from_slice(message);
                    }
                    if let Some(server) = self.servers.get_mut(node) {
                        server.parameters.note(name, value);
                    }
                }
                Err(error) => return Some(error.to_string()),
            },
            _ if self.is_answer(node, tag, payload) => {}
            b'E' => {
                let said = ServerError::read(payload).map(|error| error.to_string());
                return Some(said.unwrap_or_else(|error| error.to_string()));
            }
            other => return Some(format!("unexpected message {:?}", char::from(other))),
        }
        None
    }

    /// Takes in what answers a question of the proxy's own. Whether the message does.
    fn is_answer(&mut self, node: NodeId, tag: u8, payload: &[u8]) -> bool {
        let Some(server) = self.servers.get_mut(node) else { return false };
        let heard = server.questions.hear(tag, payload, Instant::now);
        self.on_heard(node, heard);
        heard != Heard::Unasked
    }

    /// Forgets a server connection on which nothing runs.
    pub(super) fn drop_server(&mut self, node: NodeId, why: &str) {
        if let Some(server) = self.servers.remove(node) {
            tracing::debug!(user = self.user, server = %server.name, why, "server connection dropped");
            if server.role != Role::Standby || !self.session.strand(node, &server.name) {
                self.session.on_idle_loss(node, &server.name, why);
            }
            self.lose_state(&server, why);
            server.close();
        }
    }

    /// A connection is gone: whether the session can do without what only that one had.
    pub(super) fn lose_state(&mut self, server: &Server, why: &str) {
        let own = matches!(server.role, Role::Primary(_)) && !self.shares_always();
        if let Some(what) = self.session.why_unmovable().filter(|_| own) {
            self.bereft = Some(Trouble::StateLost { server: server.name.clone(), what, why: why.to_owned() });
        }
    }

    pub(super) fn is_useless(&self, server: &Server, topology: &Topology) -> bool {
        match fate(topology, server.node, server.role) {
            Fate::Keep => false,
            Fate::Cut => true,
            // A transaction may end where it began.
            Fate::Retire => self.session.tx_node() != Some(server.node),
        }
    }

    /// Whether the newest topology lets the connection to `node` be used.
    pub(super) fn is_of_use(&self, node: NodeId) -> bool {
        let topology = self.topology.borrow();
        let server = self.servers.get(node);
        server.zip(topology.as_ref()).is_some_and(|(server, topology)| !self.is_useless(server, topology))
    }

    /// Closes connections that the topology has no use for any more. Nothing runs on them.
    pub(super) fn reap(&mut self) {
        let Some(topology) = self.topology.borrow_and_update().clone() else { return };
        let useless = |own: &Self| {
            own.servers.values().find(|server| own.is_useless(server, &topology)).map(|server| server.node)
        };
        while let Some(node) = useless(self) {
            self.drop_server(node, "the server left its role");
        }
    }
}
