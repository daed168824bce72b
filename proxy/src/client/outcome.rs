//! What became of a transaction whose `COMMIT` was on its way when its server was lost. In one go with the `COMMIT` goes
//! a question for the number of the transaction, whose answer comes before anything is committed. The next primary tells
//! what became of that number, as long as it is certain that it has not given it to another transaction.

use pgherd_common::{Generation, NodeId, NodeName};
use tokio::time::{Instant, timeout};

use crate::session::{Segment, Wanted};
use crate::topology::Role;
use crate::upstream::{Heard, Server};
use crate::wire::backend::ServerError;
use crate::wire::frame;

use super::flow::Flow;
use super::state::{Client, Gone};

/// The number of the transaction that a `COMMIT` ends, as far as its server told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Xid {
    /// It was not asked.
    Unasked,
    /// It was asked, and told none: no answer yet, or it has none, which may come with the `COMMIT` itself.
    Due,
    /// With its epoch.
    Is(u64),
}

/// A server that is gone. Its connection is not kept: others may wait for its place.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) node: NodeId,
    pub(super) name: NodeName,
    pub(super) role: Role,
}

/// What the next primary says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Committed,
    RolledBack,
    Unknown,
}

impl Client {
    /// Asks for the number of the transaction that `segment` commits, ahead of it.
    pub(super) fn ask_ahead(&self, segment: &Segment, server: &mut Server) -> Xid {
        let worth_it = matches!(server.role, Role::Primary(_)) && self.session.only_commits(segment);
        if worth_it && server.ask_xid() { Xid::Due } else { Xid::Unasked }
    }

    /// Answers a `COMMIT` in place of the server that did it, which has answered so many of its messages.
    pub(super) fn answer_committed(&mut self, segment: &Segment, answered: usize) {
        self.session.on_committed(segment);
        self.answer_command("COMMIT", segment, answered);
    }

    /// What became of the transaction, as the next primary knows it: it is waited for as long as any statement is held.
    pub(super) async fn truth_of(&mut self, flow: &Flow, lost: &Lost) -> Result<Truth, Gone> {
        let Role::Primary(generation) = lost.role else { return Ok(Truth::Unknown) };
        if flow.overruled.is_some() {
            return Ok(Truth::RolledBack);
        }
        let Xid::Is(xid) = flow.xid else { return Ok(Truth::Unknown) };
        if self.bereft.is_some() || flow.reply.completed() > 0 {
            return Ok(Truth::Unknown);
        }
        self.session.detach_tx();
        let Ok(node) = self.reach(&Segment::default(), Wanted::Writer).await? else {
            return Ok(Truth::Unknown);
        };
        let Some(first) = self.first_xid_of(node, lost.node, generation.next()) else {
            return Ok(Truth::Unknown);
        };
        let truth = if xid < first { self.ask_truth(node, xid).await } else { Truth::RolledBack };
        tracing::info!(server = %lost.name, user = self.user, xid, ?truth, "the outcome of a COMMIT was looked up");
        Ok(truth)
    }

    /// The first transaction of its own that the primary `node` of `generation` has, if it took over from `from`. One
    /// that came later may have been preceded by another that gave numbers to transactions of its own.
    fn first_xid_of(&self, node: NodeId, from: NodeId, generation: Generation) -> Option<u64> {
        let next =
            self.servers.get(node).filter(|next| next.role == Role::Primary(generation) && node != from)?;
        let topology = self.topology.borrow();
        let topology = topology.as_ref().filter(|topology| topology.version().generation == generation)?;
        topology.primary().filter(|primary| primary.id == next.node).and(topology.first_xid())
    }

    async fn ask_truth(&mut self, node: NodeId, xid: u64) -> Truth {
        let limit = self.config.connect_timeout;
        let Some(server) = self.servers.get_mut(node) else { return Truth::Unknown };
        server.known.forget_unnamed();
        let ask = format!("SELECT pg_catalog.pg_xact_status('{xid}')");
        let status = server.query(&ask);
        match timeout(limit, status).await {
            Ok(Ok(Some(row))) if row.ends_with(b"committed") => Truth::Committed,
            // It runs nowhere: its server is gone.
            Ok(Ok(Some(row))) if row.ends_with(b"aborted") || row.ends_with(b"in progress") => {
                Truth::RolledBack
            }
            // Too old, or not permitted.
            Ok(Ok(_)) => Truth::Unknown,
            Ok(Err(_)) | Err(_) => {
                self.drop_server(node, "it did not tell what became of a transaction");
                Truth::Unknown
            }
        }
    }
}

/// Takes in what comes before the answer to the `COMMIT`. Whether the next message was that.
pub(super) fn hear_ahead(flow: &mut Flow, server: &mut Server, out: &mut bytes::BytesMut) -> bool {
    let came = server.pipe.input.get(flow.cleared..).unwrap_or_default();
    let Ok(Some((header, payload))) = frame::message(came) else { return false };
    // What a server says on its own is not for here.
    if matches!(header.tag, b'S' | b'N' | b'A') {
        return false;
    }
    match server.questions.hear(header.tag, payload, Instant::now) {
        Heard::Unasked => return false,
        Heard::Xid(xid) => flow.xid = xid.map_or(Xid::Due, Xid::Is),
        // It was cancelled, and with it the transaction: the COMMIT will only roll back.
        _ if header.tag == b'E' => {
            flow.overruled = ServerError::read(payload)
                .is_ok()
                .then(|| came.get(..header.len).unwrap_or_default().to_vec());
            flow.withdrawn = true;
        }
        _ => {}
    }
    flow.swallow(header.len, &mut server.pipe.input, out);
    true
}
