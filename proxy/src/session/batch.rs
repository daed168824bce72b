//! What becomes of a session by everything that goes to a server before it is ready again.

use bytes::Bytes;

use crate::sql::{Effect, Route, Traces};

use super::{Reply, Segment};

/// What is known of everything that a client sent up to the server's next `ReadyForQuery`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Where it may run.
    pub route: Route,
    /// A transaction block was opened in it.
    pub opens: bool,
    /// The text that opened it, or told it to only read, if there is nothing else in the batch.
    pub(super) begin: Option<Bytes>,
    pub(super) redefines: bool,
    pub(super) effects: Vec<Effect>,
    pub(super) traces: Traces,
    pub(super) statements: usize,
    /// The protocol prepared a named statement in it.
    pub(super) prepares: bool,
    /// Whether the unnamed portal is there behind it; `None`: as before.
    pub(super) portal: Option<bool>,
    /// The same, those of one text counted one by one.
    runs: usize,
    /// So many of these come before the first that frees names of prepared statements.
    pub(super) frees_at: Option<usize>,
    pub(super) may_commit: bool,
    pub(super) ends_tx: bool,
}

impl Batch {
    /// A batch that begins with `segment`.
    pub fn of(segment: &Segment) -> Self {
        Self {
            route: segment.route,
            opens: segment.told.opens,
            begin: segment.beginning(),
            redefines: segment.told.redefines,
            effects: segment.effects.clone(),
            traces: segment.traces.clone(),
            statements: segment.told.statements,
            prepares: segment.prepares_named(),
            portal: segment.told.portal,
            runs: segment.told.runs,
            frees_at: segment.told.frees_at,
            may_commit: segment.told.may_commit,
            ends_tx: segment.told.ends_tx,
        }
    }

    /// Whether all it does is to open a transaction block, or to tell it to only read.
    pub(super) fn only_begins(&self) -> bool {
        self.begin.is_some()
    }

    /// Whether the client asked for its own connection to be ended, perhaps.
    pub fn may_terminate(&self) -> bool {
        self.effects.contains(&Effect::Terminate)
    }

    /// Whether something that is not known to be a read was run without an error, now that it is over.
    pub fn has_written(&self, reply: &Reply) -> bool {
        self.route == Route::Primary && !self.only_begins() && !reply.failed() && reply.completed() > 0
    }

    /// The batch goes on.
    pub fn extend(&mut self, segment: &Segment) {
        self.route = self.route.together(segment.route);
        self.opens |= segment.told.opens;
        self.begin = self.begin.take().filter(|_| !segment.has_statements());
        self.redefines |= segment.told.redefines;
        self.effects.extend(segment.effects.iter().cloned());
        self.traces.add(&segment.traces);
        self.frees_at = self.frees_at.or(segment.told.frees_at.map(|at| at + self.runs));
        self.portal = segment.told.portal.or(self.portal);
        self.runs += segment.told.runs;
        self.statements += segment.told.statements;
        self.prepares |= segment.prepares_named();
        self.may_commit |= segment.told.may_commit || self.ends_tx || segment.told.ends_tx;
        self.ends_tx |= segment.told.ends_tx;
    }
}
