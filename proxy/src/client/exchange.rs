//! One batch on one server: bytes go both ways until the server is ready for the next.

use std::io;
use std::task::Poll;

use pgherd_common::NodeId;

use crate::pipe;
use crate::routing;
use crate::session::{Event, LARGE, Segment, TakeError, Taken};
use crate::sql::Route;
use crate::sqlstate::Trouble;
use crate::topology::{Fate, Role, fate};
use crate::upstream::Server;
use crate::wire::backend::{self, ServerError, Severity, TxStatus};
use crate::wire::frontend;

use super::calls::unless_killed;
use super::flow::{Flow, Input, Progress};
use super::outcome::{Lost, Truth, Xid, hear_ahead};
use super::spare;
use super::state::{Client, Gone, protocol};

/// So much of an answer is kept for the client while its server goes to somebody else.
const SETTLED_MAX: usize = 16 << 10;

/// How the batch ended, for whoever runs it.
pub(super) enum Outcome {
    /// Answered, one way or the other.
    Done,
    /// Nothing of an answer was passed on: another server may give it.
    Elsewhere(Box<Segment>),
    /// The rest belongs on the primary.
    OnPrimary(Box<Segment>),
}

/// How the exchange ended, if not as usual.
enum End {
    /// The standby would not run it, and is ready for something else.
    Withdrawn,
    /// The question ahead of a `COMMIT` failed, and the transaction with it.
    Overruled(Vec<u8>),
    /// The standby was told that the batch ends here; the rest goes to the primary.
    Switched(TxStatus),
    /// The server is gone.
    Lost(String),
    /// The server said why it goes.
    Fatal(Box<ServerError>),
    ClientGone(io::Error),
    ClientLeft,
    ClientProtocol(TakeError),
    /// An administrator sends the client away.
    Killed,
}

impl Client {
    /// Runs `segment` on the open connection to `node`. `again`: it may be given to another server.
    pub(super) async fn exchange(
        &mut self,
        node: NodeId,
        segment: Box<Segment>,
        again: bool,
    ) -> Result<Outcome, Gone> {
        let Some(mut server) = self.servers.remove(node) else { return Ok(Outcome::Elsewhere(segment)) };
        if !self.slot.runs_on(&server.gate) {
            self.servers.insert(server);
            self.refuse_in_place(&Trouble::Cancelled, &segment).await?;
            return Ok(Outcome::Done);
        }
        let on_primary = matches!(server.role, Role::Primary(_));
        let _under_way = on_primary.then(|| self.shared.cluster.batch_begins());
        if on_primary && self.session.tx_node().is_none() && self.topology.has_changed().unwrap_or(false) {
            self.servers.insert(server);
            self.reap();
            return Ok(Outcome::Elsewhere(segment));
        }
        // In a transaction on a standby it is repeated by moving all of it.
        let in_reading = self.session.tx_node() == Some(node) && server.role == Role::Standby;
        let repeatable = self.session.is_repeatable(&segment)
            || (in_reading
                && segment.suits_reader()
                && !segment.reaches_back()
                && segment.route == Route::Read
                && segment.ended);
        let mut flow = Flow::new(&segment, again && repeatable);
        self.pipe.prepare();
        server.pipe.prepare();
        self.session.begin_batch();
        flow.xid = self.ask_ahead(&segment, &mut server);
        self.session.encode(&segment, &mut server.known, &mut flow.reply, &mut server.pipe.output);
        // Nobody waits for its answer, which comes behind that of the batch.
        flow.asked = self.asks_along(&segment, &server);
        if flow.asked {
            server.ask_position(self.session.commits_lazily(), self.session.acts_as_login());
        }
        flow.segment = Some(segment);
        server.at_rest = false;
        let end = self.carry(&mut flow, &mut server).await;
        self.slot.rests();
        match end {
            Ok(status) => self.on_ready(&mut flow, server, status).await,
            Err(end) => Box::pin(self.conclude(&mut flow, server, end)).await,
        }
    }

    /// Until the server is ready for the next batch, or whatever else comes of it.
    async fn carry(&mut self, flow: &mut Flow, server: &mut Server) -> Result<TxStatus, End> {
        if let Err(error) = server.pipe.flush_now() {
            return Err(End::Lost(format!("the connection broke: {error}")));
        }
        loop {
            if let Some(status) = self.on_server(flow, server)? {
                return Ok(status);
            }
            if let Some(end) = self.on_client(flow, server) {
                return Err(end);
            }
            // Large answers and COPY stay here for long.
            self.note_memory();
            server.lease.tag.has_buffers(server.pipe.memory());
            let (pipe, topology) = (&mut self.pipe, &mut self.topology);
            // Also where there is always something to move.
            if topology.has_changed().unwrap_or(false) {
                let current = topology.borrow_and_update().clone();
                if self.presence.badge.is_killed() {
                    return Err(End::Killed);
                }
                // A host that vanished never says so: the topology has to be enough.
                if current.is_some_and(|current| fate(&current, server.node, server.role) == Fate::Cut) {
                    return Err(End::Lost("the cluster declared the server out of service".to_owned()));
                }
            }
            let badge = &self.presence.badge;
            let progress = std::future::poll_fn(|cx| {
                if let Poll::Ready(progress) = flow.poll(cx, pipe, &mut server.pipe) {
                    return Poll::Ready(Some(progress));
                }
                badge.bell.listen(cx);
                // It is looked at above.
                if topology.has_changed().unwrap_or(false) { Poll::Ready(None) } else { Poll::Pending }
            });
            match progress.await {
                Some(Progress::Moved) | None => {}
                Some(Progress::ServerGone(error)) => {
                    return Err(End::Lost(format!("the connection broke: {error}")));
                }
                Some(Progress::ClientGone(error)) => return Err(End::ClientGone(error)),
            }
        }
    }

    /// Works through what the server sent.
    fn on_server(&mut self, flow: &mut Flow, server: &mut Server) -> Result<Option<TxStatus>, End> {
        loop {
            if flow.xid != Xid::Unasked
                && server.questions.awaits_xid()
                && hear_ahead(flow, server, &mut self.pipe.output)
            {
                continue;
            }
            let came = server.pipe.input.get(flow.cleared..).unwrap_or_default();
            if came.is_empty() {
                return Ok(None);
            }
            let event = flow.reply.next(came).map_err(|error| End::Lost(error.to_string()))?;
            let out = &mut self.pipe.output;
            match event {
                Event::Incomplete => return Ok(None),
                Event::Ready { status, len } if flow.withdrawn || flow.switching.is_some() => {
                    flow.swallow(len, &mut server.pipe.input, out);
                    server.at_rest = status == TxStatus::Idle;
                    return Err(match flow.overruled.take() {
                        Some(error) => End::Overruled(error),
                        None if flow.withdrawn => End::Withdrawn,
                        None => End::Switched(status),
                    });
                }
                Event::Forward(len) | Event::Swallow(len) | Event::Hold(len) if flow.withdrawn => {
                    flow.swallow(len, &mut server.pipe.input, out);
                }
                Event::Forward(len) => flow.clear(len, &mut server.pipe.input, out),
                Event::Swallow(len) => flow.swallow(len, &mut server.pipe.input, out),
                Event::Hold(len) => flow.hold(len, &mut server.pipe.input, out),
                Event::Release => flow.release(&mut server.pipe.input, out),
                Event::Parameter { len, name, value } => {
                    if !flow.withdrawn && self.tells(&name, &value) {
                        flow.clear(len, &mut server.pipe.input, &mut self.pipe.output);
                    } else {
                        flow.swallow(len, &mut server.pipe.input, &mut self.pipe.output);
                    }
                    server.parameters.note(&name, &value);
                }
                Event::Error { len, error } => {
                    if error.severity == Severity::Fatal {
                        flow.settle(&mut server.pipe.input, out);
                        return Err(End::Fatal(Box::new(error)));
                    }
                    self.on_error(flow, server, len, &error);
                }
                Event::CopyIn(_) if flow.asked => {
                    return Err(End::Lost("it takes a question for data".to_owned()));
                }
                Event::CopyIn(len) => {
                    flow.clear(len, &mut server.pipe.input, out);
                    self.begin_copy(flow, server);
                }
                Event::Ready { len, status } => {
                    flow.clear(len, &mut server.pipe.input, out);
                    server.at_rest = status == TxStatus::Idle;
                    return Ok(Some(status));
                }
            }
        }
    }

    /// The statement failed. A standby does not have the last word on that.
    fn on_error(&mut self, flow: &mut Flow, server: &mut Server, len: usize, error: &ServerError) {
        flow.reply.on_error();
        let primary_known = self.knows_primary();
        let out = &mut self.pipe.output;
        if server.role == Role::Standby
            && flow.reply.is_replaceable()
            && primary_known
            && may_differ(&error.code)
        {
            tracing::debug!(server = %server.name, %error, "a standby could not run a read; asking the primary");
            if recovery_refused(&error.code) {
                let texts = flow.segment.iter().flat_map(|segment| segment.texts());
                self.shared.refused_by_standby(self.login.database(), texts);
            }
            flow.withdrawn = true;
            flow.held.clear();
            flow.swallow(len, &mut server.pipe.input, out);
            if flow.reply.skips_to_sync() {
                frontend::put_sync(&mut server.pipe.output);
            }
        } else {
            self.presence.badge.counts.errors.add(1);
            flow.release(&mut server.pipe.input, out);
            flow.clear(len, &mut server.pipe.input, out);
            if flow.reply.skips_to_sync() || flow.input == Input::CopyThenOpen {
                self.hand_over(flow, server);
                flow.input = Input::UntilSync;
            }
        }
    }

    fn knows_primary(&self) -> bool {
        self.topology.borrow().as_deref().is_some_and(|topology| routing::writable(topology).is_some())
    }

    /// The server asks for data, which the client may have sent already.
    fn begin_copy(&mut self, flow: &mut Flow, server: &mut Server) {
        self.hand_over(flow, server);
        if flow.simple {
            flow.input = Input::Copy;
        } else if flow.copies_ended > 0 {
            flow.copies_ended -= 1;
        } else {
            flow.input = Input::CopyThenOpen;
        }
    }

    /// What was gathered of the batch so far goes to the server before anything else does.
    fn hand_over(&mut self, flow: &mut Flow, server: &mut Server) {
        if flow.input == Input::Open && !self.segment.is_empty() {
            let segment = self.segment.take();
            self.continue_batch(flow, server, &segment);
        }
    }

    fn continue_batch(&mut self, flow: &mut Flow, server: &mut Server, segment: &Segment) {
        flow.batch.extend(segment);
        flow.copies_ended += segment.copies_ended();
        self.session.encode(segment, &mut server.known, &mut flow.reply, &mut server.pipe.output);
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
                Input::Copy | Input::CopyThenOpen | Input::UntilSync => self.on_copy(flow),
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
        let judge = self.shared.judge(self.account.database());
        self.segment.under_way = true;
        match self.session.take(&mut self.pipe.input, &mut self.segment, &judge) {
            Ok(Taken::Incomplete) => return Ok(false),
            Ok(Taken::Complete) => {}
            // In a batch that is under way nothing is.
            Ok(Taken::Ignored(_)) => return Err(End::ClientProtocol(TakeError::Tag(b'd'))),
            Ok(Taken::Goodbye) => return Err(End::ClientLeft),
            Err(error) => return Err(End::ClientProtocol(error)),
        }
        let mut segment = self.segment.take();
        let in_reading = self.session.tx_node().is_some() || flow.batch.opens || segment.opens();
        let fits = server.role != Role::Standby
            || flow.reply.failed()
            || ((!segment.leaves_portals() || segment.reaches_back())
                && (segment.suits_reader() || (segment.route != Route::Primary && !in_reading)));
        if fits {
            self.continue_batch(flow, server, &segment);
            flow.input = if segment.ended { Input::Closed } else { Input::Open };
            flow.streaming = segment.rest;
            flow.simple |= segment.messages().any(|(tag, _)| tag == b'Q');
            if flow.reply.skips_to_sync() {
                flow.input = Input::UntilSync;
            }
        } else {
            frontend::put_sync(&mut server.pipe.output);
            flow.input = Input::Closed;
            segment.behind_reads = flow.batch.route == Route::Read;
            flow.switching = Some(segment);
        }
        Ok(true)
    }

    /// A message of a client that copies data in. Whether there was one.
    fn on_copy(&mut self, flow: &mut Flow) -> Result<bool, End> {
        let header = frontend::header(&self.pipe.input)
            .map_err(|error| End::ClientProtocol(TakeError::Frame(error)))?;
        let Some(header) = header else { return Ok(false) };
        flow.input = match (flow.input, header.tag) {
            (_, b'X') => return Err(End::ClientLeft),
            // A Sync or a Flush before the end of the data is ignored by the server.
            (Input::Copy | Input::CopyThenOpen, b'd' | b'H' | b'S') => flow.input,
            (Input::Copy, b'c' | b'f') => Input::Closed,
            // The server ends the connection.
            (Input::Copy, tag) => {
                flow.stray = Some(tag);
                Input::Closed
            }
            (Input::CopyThenOpen, b'c' | b'f') => Input::Open,
            (Input::CopyThenOpen, _) => Input::UntilSync,
            (Input::UntilSync, b'S') => Input::Closed,
            (other, _) => other,
        };
        flow.streaming = header.len;
        Ok(true)
    }

    async fn conclude(
        &mut self,
        flow: &mut Flow,
        mut server: Box<Server>,
        end: End,
    ) -> Result<Outcome, Gone> {
        let node = server.node;
        match end {
            End::Switched(status) => {
                flow.settle(&mut server.pipe.input, &mut self.pipe.output);
                let (failed, was_open) = (flow.reply.failed(), self.session.tx_node().is_some());
                self.session.on_part_ready(&flow.batch, node, status, &mut flow.reply, &mut server.known);
                self.note_writes(&flow.batch, was_open, &mut server).await;
                self.note_redefinitions();
                self.servers.insert(server);
                match flow.switching.take() {
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
                self.servers.insert(server);
                Ok(flow.segment.take().map_or(Outcome::Done, Outcome::OnPrimary))
            }
            End::Overruled(error) => {
                self.session.on_withdrawn(&mut flow.reply, &mut server.known);
                self.session.abandon_tx();
                self.presence.badge.counts.errors.add(1);
                let (ended, heard) = (server.at_rest, !server.pipe.input.is_empty());
                self.servers.insert(server);
                if !ended {
                    self.drop_server(node, "a transaction did not end");
                } else if heard {
                    self.on_server_news(node, Ok(()));
                }
                self.pipe.output.extend_from_slice(&error);
                backend::put_ready(&mut self.pipe.output, self.session.status());
                Ok(Outcome::Done)
            }
            End::Lost(why) => {
                flow.settle(&mut server.pipe.input, &mut self.pipe.output);
                self.on_lost(flow, server, false, &why).await
            }
            End::Fatal(error) => self.on_fatal(flow, server, error).await,
            End::ClientGone(error) => {
                server.leave();
                Err(error.into())
            }
            End::ClientLeft => {
                // It gets all that the client sent, the goodbye too.
                frontend::put_terminate(&mut server.pipe.output);
                server.leave();
                Err(Gone::Left)
            }
            End::ClientProtocol(error) => {
                server.leave();
                Err(protocol(&error))
            }
            End::Killed => {
                flow.settle(&mut server.pipe.input, &mut self.pipe.output);
                Err(self.on_killed(server, flow.reply.is_mid_message()))
            }
        }
    }

    /// The server said why it goes.
    async fn on_fatal(
        &mut self,
        flow: &mut Flow,
        mut server: Box<Server>,
        error: Box<ServerError>,
    ) -> Result<Outcome, Gone> {
        let code = error.code.as_str();
        // It was asked for, or the client broke the protocol.
        if (code == "57P01" && flow.batch.may_terminate()) || code == "08P01" {
            flow.release(&mut server.pipe.input, &mut self.pipe.output);
            return Err(Gone::Trouble(Trouble::ServerEnded(error)));
        }
        // The last is for what stood in the way of recovery.
        if matches!(code, "57P01" | "57P02" | "57P03" | "40001") {
            let in_the_way = code == "40001" && server.role == Role::Standby && self.knows_primary();
            let why = format!("the server said: {}", error.message);
            return self.on_lost(flow, server, in_the_way, &why).await;
        }
        flow.release(&mut server.pipe.input, &mut self.pipe.output);
        self.refuse(&Trouble::ServerEnded(error), flow.ends(), flow.streaming);
        Ok(Outcome::Done)
    }

    /// The server is ready for the next batch.
    async fn on_ready(
        &mut self,
        flow: &mut Flow,
        mut server: Box<Server>,
        status: TxStatus,
    ) -> Result<Outcome, Gone> {
        if let Some(stray) = flow.stray {
            // The COPY was over before the server saw it: who knows what it made of it.
            flow.settle(&mut server.pipe.input, &mut self.pipe.output);
            server.leave();
            return Err(protocol(&TakeError::InCopy(stray)));
        }
        self.note_first_write(flow, server.role);
        let (node, was_open) = (server.node, self.session.tx_node().is_some());
        self.session.on_ready(&flow.batch, node, status, &mut flow.reply, &mut server.known);
        Self::keep_memory(flow);
        // A server does not wait for a client that reads slowly, unless it would take much memory.
        let flushed = if flow.cleared <= SETTLED_MAX {
            flow.settle(&mut server.pipe.input, &mut self.pipe.output);
            Ok(())
        } else {
            let flush = flow.flush(&mut self.pipe, &mut server.pipe);
            unless_killed(&self.presence.badge, flush).await
        };
        self.owed = Some((node, flow.streaming)).filter(|(_, rest)| *rest > 0);
        if flow.asked {
            self.session.floor.doubt();
        } else {
            if matches!(server.role, Role::Primary(_)) {
                self.note_writes(&flow.batch, was_open, &mut server).await;
            }
        }
        self.note_redefinitions();
        let heard = flushed.is_ok() && !server.pipe.input.is_empty();
        self.servers.insert(server);
        if heard {
            self.on_server_news(node, Ok(()));
        }
        flushed?;
        self.give_back();
        Ok(Outcome::Done)
    }

    /// What a batch used is for the next one.
    fn keep_memory(flow: &mut Flow) {
        if let Some(segment) = flow.segment.take() {
            spare::give(segment);
        }
        if flow.held.capacity() > 0 {
            flow.held.clear();
            pipe::give_back(std::mem::take(&mut flow.held));
        }
    }

    /// Names may have got another meaning by what was committed.
    fn note_redefinitions(&mut self) {
        if self.session.take_redefined() {
            self.shared.catalogs.renew(self.login.database());
        }
    }

    /// The server is gone in the middle of a batch. `in_the_way`: what ran there stood in the way of recovery.
    async fn on_lost(
        &mut self,
        flow: &mut Flow,
        server: Box<Server>,
        in_the_way: bool,
        why: &str,
    ) -> Result<Outcome, Gone> {
        tracing::info!(server = %server.name, user = self.user, why, "server connection lost while in use");
        match server.role {
            // That says nothing against the standby.
            Role::Standby if in_the_way => {}
            Role::Standby => self.shared.cluster.avoid(server.node),
            // Whatever became of it, the next read sees all of it or nothing.
            Role::Primary(_) => self.session.floor.doubt(),
        }
        self.lose_state(&server, why);
        if flow.reply.is_replaceable()
            && self.bereft.is_none()
            && let Some(segment) = flow.segment.take()
        {
            if self.session.tx_node().is_none() {
                return Ok(if in_the_way {
                    Outcome::OnPrimary(segment)
                } else {
                    Outcome::Elsewhere(segment)
                });
            }
            if server.role == Role::Standby && self.session.strand(server.node, &server.name) {
                return Ok(Outcome::OnPrimary(segment));
            }
        }
        if flow.reply.is_mid_message() {
            // Nothing can be said to the client before the rest of that message, which nobody has.
            return Err(Gone::Io(io::Error::other("a server was lost in the middle of a large message")));
        }
        let mut trouble = self.session.trouble_of(&flow.batch, &server.name, why);
        let lost = Lost { node: server.node, name: server.name.clone(), role: server.role };
        drop(server);
        if let Trouble::OutcomeUnknown { server: name, why } = &trouble {
            match (self.truth_of(flow, &lost).await?, flow.segment.take()) {
                (Truth::Committed, Some(segment)) => {
                    self.answer_committed(&segment, flow.reply.answered());
                    self.note_redefinitions();
                    return Ok(Outcome::Done);
                }
                (Truth::RolledBack, _) => {
                    let (server, why) = (name.clone(), why.clone());
                    trouble = Trouble::RolledBack { server, why, transaction: true };
                }
                (Truth::Committed | Truth::Unknown, _) => {}
            }
        }
        self.session.abandon_tx();
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
