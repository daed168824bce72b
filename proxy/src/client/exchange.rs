//! One batch on one server: bytes go both ways until the server is ready for the next.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use pgherd_common::NodeId;

use crate::pipe::Pipe;
use crate::routing;
use crate::session::{Batch, Event, LARGE, Reply, ReplyError, Segment, TakeError, Taken};
use crate::sql::Route;
use crate::sqlstate::Trouble;
use crate::topology::{Fate, Role, fate};
use crate::upstream::Server;
use crate::wire::backend::{self, ServerError, Severity, TxStatus};
use crate::wire::{frame, frontend};

use super::state::{Client, Gone, protocol};

/// How the batch ended, for whoever runs it.
pub(super) enum Outcome {
    /// Answered, one way or the other.
    Done,
    /// Nothing of an answer was passed on: another server may give it.
    Elsewhere(Segment),
    /// The rest belongs on the primary.
    OnPrimary(Segment),
}

/// How the exchange ended.
enum End {
    Ready(TxStatus),
    /// The standby would not run it, and is ready for something else.
    Withdrawn,
    /// The standby was told that the batch ends here; the rest goes to the primary.
    Switched(TxStatus),
    /// The server is gone.
    Lost(String),
    /// The server said why it goes.
    Fatal(ServerError),
    ClientGone(io::Error),
    ClientLeft,
    ClientProtocol(TakeError),
}

/// What the client may send while the batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Nothing: its next batch waits in its socket.
    Closed,
    /// More messages of this batch.
    Open,
    /// Data for a COPY that a simple query began.
    Copy,
    /// Data for a COPY of the extended protocol; whether the end of the data was seen.
    CopyThenSync(bool),
    /// Whatever there is up to a `Sync`, for the server to ignore.
    UntilSync,
}

/// A batch on its way.
struct Flow {
    batch: Batch,
    reply: Reply,
    /// Kept while it may have to be run again.
    segment: Option<Segment>,
    /// The beginning of an answer that may have to be thrown away.
    held: BytesMut,
    /// So many bytes at the front of the server's input go to the client as they are.
    cleared: usize,
    input: Input,
    /// So many bytes of the client's belong to a message whose beginning the server has.
    streaming: usize,
    /// The batch was sent by a simple query.
    simple: bool,
    /// So often the server has all data for a COPY that it did not ask for yet.
    data_ends: usize,
    /// The answer is thrown away up to `ReadyForQuery`.
    withdrawn: bool,
    /// Waits for the server to end what it has, to go on elsewhere.
    switching: Option<Segment>,
}

/// Some progress, or why there will be none.
enum Progress {
    Moved,
    ServerGone(io::Error),
    ClientGone(io::Error),
}

impl Client {
    /// Runs `segment` on the open connection to `node`. `again`: it may be given to another server.
    pub(super) async fn exchange(
        &mut self,
        node: NodeId,
        segment: Segment,
        again: bool,
    ) -> Result<Outcome, Gone> {
        let Some(mut server) = self.servers.remove(&node) else { return Ok(Outcome::Elsewhere(segment)) };
        // In a transaction on a standby it is repeated by moving all of it.
        let in_reading = self.session.tx_node() == Some(node) && server.role == Role::Standby;
        let repeatable = self.session.is_repeatable(&segment)
            || (in_reading && segment.suits_reader() && segment.route == Route::Read && segment.ended);
        let mut flow = Flow::new(&segment, again && repeatable);
        self.session.begin_batch();
        self.session.encode(&segment, &mut server.known, &mut flow.reply, &mut server.pipe.output);
        flow.segment = Some(segment);
        server.at_rest = false;
        self.slot.runs_on(&server.address, server.key, &server.gate);
        let end = self.carry(&mut flow, &mut server).await;
        self.slot.rests();
        self.conclude(flow, server, end).await
    }

    async fn carry(&mut self, flow: &mut Flow, server: &mut Server) -> End {
        loop {
            match self.on_server(flow, server) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(error) => return End::Lost(error.to_string()),
            }
            if let Some(end) = self.on_client(flow, server) {
                return end;
            }
            let (pipe, topology) = (&mut self.pipe, &mut self.topology);
            let progress = std::future::poll_fn(|cx| flow.poll(cx, pipe, &mut server.pipe));
            tokio::select! {
                biased;
                _ = topology.changed() => {
                    let current = topology.borrow_and_update().clone();
                    // A host that vanished never says so: the topology has to be enough.
                    if current.is_some_and(|current| fate(&current, server.node, server.role) == Fate::Cut) {
                        return End::Lost("the cluster declared the server out of service".to_owned());
                    }
                }
                progress = progress => match progress {
                    Progress::Moved => {}
                    Progress::ServerGone(error) => return End::Lost(format!("the connection broke: {error}")),
                    Progress::ClientGone(error) => return End::ClientGone(error),
                },
            }
        }
    }

    /// Works through what the server sent.
    fn on_server(&mut self, flow: &mut Flow, server: &mut Server) -> Result<Option<End>, ReplyError> {
        loop {
            let event = flow.reply.next(server.pipe.input.get(flow.cleared..).unwrap_or_default())?;
            let out = &mut self.pipe.output;
            match event {
                Event::Incomplete => return Ok(None),
                Event::Ready { status, len } if flow.withdrawn || flow.switching.is_some() => {
                    flow.swallow(len, &mut server.pipe.input, out);
                    server.at_rest = status == TxStatus::Idle;
                    return Ok(Some(if flow.withdrawn { End::Withdrawn } else { End::Switched(status) }));
                }
                Event::Forward(len) | Event::Swallow(len) | Event::Hold(len) if flow.withdrawn => {
                    flow.swallow(len, &mut server.pipe.input, out);
                }
                Event::Forward(len) => flow.clear(len, &mut server.pipe.input, out),
                Event::Swallow(len) => flow.swallow(len, &mut server.pipe.input, out),
                Event::Hold(len) => {
                    flow.settle(&mut server.pipe.input, out);
                    flow.held.extend_from_slice(&server.pipe.input.split_to(len));
                }
                Event::Release => flow.release(&mut server.pipe.input, out),
                Event::Parameter { len, name, value } => {
                    if self.tells(&name, &value) {
                        flow.clear(len, &mut server.pipe.input, &mut self.pipe.output);
                    } else {
                        flow.swallow(len, &mut server.pipe.input, &mut self.pipe.output);
                    }
                    server.parameters.insert(name, value);
                }
                Event::Error { len, error } => {
                    if error.severity == Severity::Fatal {
                        flow.settle(&mut server.pipe.input, out);
                        return Ok(Some(End::Fatal(error)));
                    }
                    self.on_error(flow, server, len, &error);
                }
                Event::CopyIn(len) => {
                    self.send_begun(flow, server);
                    flow.on_copy_in();
                    flow.clear(len, &mut server.pipe.input, &mut self.pipe.output);
                }
                Event::Ready { len, status } => {
                    flow.clear(len, &mut server.pipe.input, out);
                    server.at_rest = status == TxStatus::Idle;
                    return Ok(Some(End::Ready(status)));
                }
            }
        }
    }

    /// The statement failed. A standby does not have the last word on that.
    fn on_error(&mut self, flow: &mut Flow, server: &mut Server, len: usize, error: &ServerError) {
        flow.reply.on_error();
        let out = &mut self.pipe.output;
        let primary_known =
            self.topology.borrow().as_deref().is_some_and(|topology| routing::writable(topology).is_some());
        if server.role == Role::Standby
            && flow.reply.is_replaceable()
            && primary_known
            && may_differ(&error.code)
        {
            tracing::debug!(server = %server.name, %error, "a standby could not run a read; asking the primary");
            if recovery_refused(&error.code) {
                let texts = flow.segment.iter().flat_map(|segment| &segment.texts);
                self.shared.refused_by_standby(self.login.database(), texts.map(|text| text.as_ref()));
            }
            flow.withdrawn = true;
            flow.held.clear();
            flow.swallow(len, &mut server.pipe.input, out);
            if flow.reply.skips_to_sync() {
                frontend::put_sync(&mut server.pipe.output);
            }
        } else {
            if flow.reply.skips_to_sync() {
                flow.input = Input::UntilSync;
            }
            flow.release(&mut server.pipe.input, out);
            flow.clear(len, &mut server.pipe.input, out);
        }
    }

    /// Moves what the client sent for this batch.
    fn on_client(&mut self, flow: &mut Flow, server: &mut Server) -> Option<End> {
        while server.pipe.output.len() < LARGE {
            if flow.streaming > 0 {
                let bytes = self.pipe.input.split_to(flow.streaming.min(self.pipe.input.len()));
                flow.streaming -= bytes.len();
                server.pipe.output.extend_from_slice(&bytes);
                if flow.streaming > 0 {
                    return None;
                }
            }
            let step = match flow.input {
                Input::Closed => return None,
                Input::Open => self.on_more(flow, server),
                Input::Copy | Input::CopyThenSync(_) | Input::UntilSync => self.on_copy(flow),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return None,
                Err(end) => return Some(end),
            }
        }
        None
    }

    /// A further segment of a batch that was flushed before its end. Whether there was one.
    fn on_more(&mut self, flow: &mut Flow, server: &mut Server) -> Result<bool, End> {
        let shared = Arc::clone(&self.shared);
        let database = self.login.database().to_owned();
        let mut judge = |sql: &[u8]| shared.verdict(&database, sql);
        self.segment.continues = true;
        match self.session.take(&mut self.pipe.input, &mut self.segment, &mut judge) {
            Ok(Taken::Incomplete) => return Ok(false),
            Ok(Taken::Complete) => {}
            // No COPY is going on that this could belong to.
            Ok(Taken::Ignored(_)) => return Err(End::ClientProtocol(TakeError::Tag(b'd'))),
            Ok(Taken::Goodbye) => return Err(End::ClientLeft),
            Err(error) => return Err(End::ClientProtocol(error)),
        }
        let segment = std::mem::take(&mut self.segment);
        let in_reading = self.session.tx_node().is_some() || flow.batch.opens;
        let fits = server.role != Role::Standby
            || flow.reply.failed()
            || (!segment.leaves_portals()
                && (segment.suits_reader() || (segment.route != Route::Primary && !in_reading)));
        if fits {
            flow.batch.extend(&segment);
            self.session.encode(&segment, &mut server.known, &mut flow.reply, &mut server.pipe.output);
            flow.input = if segment.ended { Input::Closed } else { Input::Open };
            flow.streaming = segment.rest;
            flow.data_ends += segment.data_ends();
            flow.simple |= segment.messages().any(|(tag, _)| tag == b'Q');
            if flow.reply.skips_to_sync() {
                flow.input = Input::UntilSync;
            }
        } else {
            frontend::put_sync(&mut server.pipe.output);
            flow.input = Input::Closed;
            flow.switching = Some(segment);
        }
        Ok(true)
    }

    /// What was taken of a further segment goes out before the data for a COPY is passed on as it comes.
    fn send_begun(&mut self, flow: &mut Flow, server: &mut Server) {
        if flow.input == Input::Open && !self.segment.is_empty() {
            let segment = std::mem::take(&mut self.segment);
            flow.batch.extend(&segment);
            self.session.encode(&segment, &mut server.known, &mut flow.reply, &mut server.pipe.output);
            flow.data_ends += segment.data_ends();
        }
    }

    /// A message of a client that copies data in. Whether there was one.
    fn on_copy(&mut self, flow: &mut Flow) -> Result<bool, End> {
        let header =
            frame::header(&self.pipe.input).map_err(|error| End::ClientProtocol(TakeError::Frame(error)))?;
        let Some(header) = header else { return Ok(false) };
        let ends_data = matches!(header.tag, b'c' | b'f');
        flow.input = match (flow.input, header.tag) {
            (_, b'X') => return Err(End::ClientLeft),
            (Input::Copy, _) if ends_data => Input::Closed,
            // A Sync before the end of the data is ignored by the server.
            (Input::CopyThenSync(true) | Input::UntilSync, b'S') => Input::Closed,
            (Input::CopyThenSync(seen), _) => Input::CopyThenSync(seen || ends_data),
            (other, _) => other,
        };
        flow.streaming = header.len;
        Ok(true)
    }

    async fn conclude(&mut self, mut flow: Flow, mut server: Server, end: End) -> Result<Outcome, Gone> {
        let (node, role) = (server.node, server.role);
        match end {
            End::Ready(status) => {
                let was_open = self.session.tx_node().is_some();
                self.session.on_ready(&flow.batch, node, status, &mut flow.reply, &mut server.known);
                let flushed = flow.flush(&mut self.pipe, &mut server.pipe).await;
                self.owed = Some((node, flow.streaming)).filter(|(_, rest)| *rest > 0);
                self.note_writes(&flow.batch, was_open, &mut server).await;
                server.pipe.shrink();
                self.servers.insert(node, server);
                flushed?;
                Ok(Outcome::Done)
            }
            End::Switched(status) => {
                flow.settle(&mut server.pipe.input, &mut self.pipe.output);
                let (failed, was_open) = (flow.reply.failed(), self.session.tx_node().is_some());
                self.session.on_part_ready(&flow.batch, node, status, &mut flow.reply, &mut server.known);
                self.note_writes(&flow.batch, was_open, &mut server).await;
                self.servers.insert(node, server);
                match flow.switching {
                    // What follows an error in a pipeline is not run.
                    Some(rest) if failed => {
                        self.session.pass_over();
                        self.pass_over(&rest);
                        Ok(Outcome::Done)
                    }
                    switching => Ok(switching.map_or(Outcome::Done, Outcome::OnPrimary)),
                }
            }
            End::Withdrawn => {
                self.session.on_withdrawn(&mut flow.reply, &mut server.known);
                self.servers.insert(node, server);
                Ok(flow.segment.map_or(Outcome::Done, Outcome::OnPrimary))
            }
            End::Lost(why) => {
                flow.settle(&mut server.pipe.input, &mut self.pipe.output);
                self.on_lost(flow, &server, role, &why)
            }
            End::Fatal(error) if error.code == "57P01" && flow.batch.may_terminate() => {
                flow.release(&mut server.pipe.input, &mut self.pipe.output);
                Err(Gone::Trouble(Trouble::ServerEnded(error)))
            }
            End::Fatal(error) if matches!(error.code.as_str(), "57P01" | "57P02" | "57P03") => {
                self.on_lost(flow, &server, role, &format!("the server said: {}", error.message))
            }
            End::Fatal(error) => {
                flow.release(&mut server.pipe.input, &mut self.pipe.output);
                self.refuse(&Trouble::ServerEnded(error), flow.ends(), flow.streaming);
                Ok(Outcome::Done)
            }
            End::ClientGone(error) => Err(error.into()),
            End::ClientLeft => Err(Gone::Left),
            End::ClientProtocol(error) => Err(protocol(&error)),
        }
    }

    /// Asks for the position of what the batch may have committed.
    async fn note_writes(&mut self, batch: &Batch, was_open: bool, server: &mut Server) {
        if !matches!(server.role, Role::Primary(_)) || self.session.tx_node().is_some() {
            return;
        }
        if self.session.take_redefined() {
            self.shared.catalogs.renew(self.login.database());
        }
        if self.session.may_have_committed(batch, was_open) || self.session.floor.is_doubtful() {
            if self.owed.is_some() {
                // Nothing may be said to the server in the middle of a message.
                self.session.floor.doubt();
            } else {
                self.ask_position(server).await;
            }
        }
    }

    /// The server is gone in the middle of a batch.
    fn on_lost(&mut self, mut flow: Flow, server: &Server, role: Role, why: &str) -> Result<Outcome, Gone> {
        tracing::info!(server = %server.name, user = self.user, why, "server connection lost while in use");
        if role == Role::Standby {
            self.shared.cluster.avoid(server.node);
        }
        if flow.reply.is_replaceable()
            && self.session.tx_node().is_none()
            && let Some(segment) = flow.segment.take()
        {
            return Ok(Outcome::Elsewhere(segment));
        }
        if flow.reply.is_mid_message() {
            // Nothing can be said to the client before the rest of that message, which nobody has.
            return Err(Gone::Io(io::Error::other("a server was lost in the middle of a large message")));
        }
        let trouble = self.session.on_loss(&flow.batch, &server.name, why);
        self.refuse(&trouble, flow.ends(), flow.streaming);
        if let Some(rest) = flow.switching.take() {
            self.discard = rest.rest;
            self.skipping = !rest.ended;
            if rest.ended {
                backend::put_ready(&mut self.pipe.output, self.session.status());
            }
        }
        Ok(Outcome::Done)
    }
}

/// Errors of a standby that the primary may not have: it is behind, or in recovery.
fn may_differ(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    matches!(class, "3D" | "3F" | "42" | "40" | "55" | "XX") || matches!(code, "25006" | "0A000" | "26000")
}

/// Errors that say that no standby will ever run this.
fn recovery_refused(code: &str) -> bool {
    matches!(code, "25006" | "55000")
}

impl Flow {
    fn new(segment: &Segment, repeatable: bool) -> Self {
        Self {
            batch: Batch::of(segment),
            reply: Reply::new(repeatable),
            segment: None,
            held: BytesMut::new(),
            cleared: 0,
            input: if segment.ended { Input::Closed } else { Input::Open },
            streaming: segment.rest,
            simple: segment.messages().any(|(tag, _)| tag == b'Q'),
            data_ends: segment.data_ends(),
            withdrawn: false,
            switching: None,
        }
    }

    /// The server asks for data, which it may have already.
    fn on_copy_in(&mut self) {
        if self.data_ends > 0 {
            self.data_ends -= 1;
        } else {
            self.input = if self.simple { Input::Copy } else { Input::CopyThenSync(false) };
        }
    }

    /// Whether the client has sent all of the batch, so that it waits for `ReadyForQuery`.
    fn ends(&self) -> bool {
        match self.input {
            Input::Closed | Input::Copy => self.switching.is_none(),
            Input::Open | Input::CopyThenSync(_) | Input::UntilSync => false,
        }
    }

    /// So many more bytes go to the client as they are.
    fn clear(&mut self, len: usize, input: &mut BytesMut, out: &mut BytesMut) {
        if !self.held.is_empty() && !self.reply.is_replaceable() {
            self.release(input, out);
        }
        self.cleared += len;
    }

    /// Hands over what was cleared, so that something else can come behind it.
    fn settle(&mut self, input: &mut BytesMut, out: &mut BytesMut) {
        if self.cleared > 0 {
            out.extend_from_slice(&input.split_to(self.cleared.min(input.len())));
            self.cleared = 0;
        }
    }

    fn swallow(&mut self, len: usize, input: &mut BytesMut, out: &mut BytesMut) {
        self.settle(input, out);
        input.advance(len.min(input.len()));
    }

    fn release(&mut self, input: &mut BytesMut, out: &mut BytesMut) {
        self.settle(input, out);
        out.extend_from_slice(&self.held);
        self.held.clear();
    }

    /// Moves bytes between the sockets, wherever that is possible right now.
    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Pipe, server: &mut Pipe) -> Poll<Progress> {
        let mut moved = false;
        if server.has_output() {
            match server.poll_drain(cx, &[]) {
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ServerGone(error)),
                Poll::Pending => {}
            }
        }
        if self.cleared > 0 || client.has_output() {
            match client.poll_drain(cx, server.input.get(..self.cleared).unwrap_or_default()) {
                Poll::Ready(Ok(written)) => {
                    server.input.advance(written);
                    self.cleared -= written;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ClientGone(error)),
                Poll::Pending => {}
            }
        }
        if self.cleared + client.output.len() < LARGE {
            match server.poll_fill(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ServerGone(error)),
                Poll::Pending => {}
            }
        }
        let wanted = self.input != Input::Closed || self.streaming > 0;
        if wanted && server.output.len() < LARGE && client.input.len() < LARGE {
            match client.poll_fill(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ClientGone(error)),
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(Progress::Moved) } else { Poll::Pending }
    }

    /// Writes what the client has yet to get.
    async fn flush(&mut self, client: &mut Pipe, server: &mut Pipe) -> io::Result<()> {
        while self.cleared > 0 {
            let more = server.input.get(..self.cleared).unwrap_or_default();
            let written = std::future::poll_fn(|cx| client.poll_drain(cx, more)).await?;
            server.input.advance(written);
            self.cleared -= written;
        }
        client.flush().await
    }
}
