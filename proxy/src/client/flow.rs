//! A batch on its way: which bytes may go where, and their way there.

use std::io;
use std::task::{Context, Poll};

use bytes::BytesMut;

use crate::pipe::{self, Pipe};
use crate::session::{Batch, LARGE, Reply, Segment};
use crate::wire::frame;

use super::outcome::Xid;

/// What the client may send while the batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing: its next batch waits in its socket.
    Closed,
    /// More messages of this batch.
    Open,
    /// Data for a COPY that a simple query began.
    Copy,
    /// Data for a COPY of the extended protocol, whose batch goes on behind it.
    CopyThenOpen,
    /// Whatever there is up to a `Sync`, for the server to ignore.
    UntilSync,
}

/// A batch on its way.
pub(super) struct Flow {
    pub(super) batch: Batch,
    pub(super) reply: Reply,
    /// Kept while it may have to be run again.
    pub(super) segment: Option<Box<Segment>>,
    /// The beginning of an answer that may have to be thrown away.
    pub(super) held: BytesMut,
    /// So many bytes at the front of the server's input go to the client as they are.
    pub(super) cleared: usize,
    pub(super) input: Input,
    /// So many bytes of the client's belong to a message whose beginning the server has.
    pub(super) streaming: usize,
    /// The batch was sent by a simple query.
    pub(super) simple: bool,
    /// A message that has no place among the data for a simple query's COPY was passed on.
    pub(super) stray: Option<u8>,
    /// So many ends of data were sent ahead of the server's asking for that data.
    pub(super) copies_ended: usize,
    /// The answer is thrown away up to `ReadyForQuery`.
    pub(super) withdrawn: bool,
    /// Waits for the server to end what it has, to go on elsewhere.
    pub(super) switching: Option<Box<Segment>>,
    /// The server was asked for its position in one go with the batch.
    pub(super) asked: bool,
    /// The transaction that the batch commits, if its server was asked ahead of it.
    pub(super) xid: Xid,
    /// That question failed, and the transaction with it: what the client is told in place of the answer.
    pub(super) overruled: Option<Vec<u8>>,
}

/// Some progress, or why there will be none.
pub(super) enum Progress {
    Moved,
    ServerGone(io::Error),
    ClientGone(io::Error),
}

impl Flow {
    pub(super) fn new(segment: &Segment, repeatable: bool) -> Self {
        Self {
            batch: Batch::of(segment),
            reply: Reply::new(repeatable),
            segment: None,
            held: BytesMut::new(),
            cleared: 0,
            input: if segment.ended { Input::Closed } else { Input::Open },
            streaming: segment.rest,
            simple: segment.messages().any(|(tag, _)| tag == b'Q'),
            stray: None,
            copies_ended: segment.copies_ended(),
            withdrawn: false,
            switching: None,
            asked: false,
            xid: Xid::Unasked,
            overruled: None,
        }
    }

    /// Whether the client has sent all of the batch, so that it waits for `ReadyForQuery`.
    pub(super) fn ends(&self) -> bool {
        match self.input {
            Input::Closed | Input::Copy => self.switching.is_none(),
            Input::Open | Input::CopyThenOpen | Input::UntilSync => false,
        }
    }

    /// So many more bytes go to the client as they are.
    pub(super) fn clear(&mut self, len: usize, input: &mut BytesMut, out: &mut BytesMut) {
        if !self.held.is_empty() && !self.reply.is_replaceable() {
            self.release(input, out);
        }
        self.cleared += len;
    }

    /// Hands over what was cleared, so that something else can come behind it.
    pub(super) fn settle(&mut self, input: &mut BytesMut, out: &mut BytesMut) {
        if self.cleared > 0 {
            carry_over(input, self.cleared, out);
            self.cleared = 0;
        }
    }

    /// Keeps back what may have to be thrown away.
    pub(super) fn hold(&mut self, len: usize, input: &mut BytesMut, out: &mut BytesMut) {
        self.settle(input, out);
        if self.held.capacity() == 0 {
            self.held = pipe::buffer();
        }
        carry_over(input, len, &mut self.held);
    }

    pub(super) fn swallow(&mut self, len: usize, input: &mut BytesMut, out: &mut BytesMut) {
        self.settle(input, out);
        frame::consume(input, len);
    }

    pub(super) fn release(&mut self, input: &mut BytesMut, out: &mut BytesMut) {
        self.settle(input, out);
        out.extend_from_slice(&self.held);
        self.held.clear();
    }

    /// Moves bytes between the sockets, wherever that is possible right now. Ready when there is something to look at:
    /// more came, or there is room for more than there was.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Pipe,
        server: &mut Pipe,
    ) -> Poll<Progress> {
        let full = server.output.len() >= LARGE;
        while server.has_output() {
            match server.poll_drain(cx, &[]) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ServerGone(error)),
                Poll::Pending => break,
            }
        }
        let mut moved = full && server.output.len() < LARGE;
        while self.cleared > 0 || client.has_output() {
            match client.poll_drain(cx, server.input.get(..self.cleared).unwrap_or_default()) {
                Poll::Ready(Ok(written)) => {
                    frame::consume(&mut server.input, written);
                    self.cleared -= written;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Progress::ClientGone(error)),
                Poll::Pending => break,
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
    pub(super) async fn flush(&mut self, client: &mut Pipe, server: &mut Pipe) -> io::Result<()> {
        while self.cleared > 0 {
            let more = server.input.get(..self.cleared).unwrap_or_default();
            let written = std::future::poll_fn(|cx| client.poll_drain(cx, more)).await?;
            frame::consume(&mut server.input, written);
            self.cleared -= written;
        }
        client.flush().await
    }
}

/// Moves `len` bytes at most. To share the memory that they are in would have the next read need other memory.
fn carry_over(from: &mut BytesMut, len: usize, to: &mut BytesMut) {
    let len = len.min(from.len());
    to.extend_from_slice(from.get(..len).unwrap_or_default());
    frame::consume(from, len);
}
