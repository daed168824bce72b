//! One client's session: its transaction, its prepared statements, its settings, and what of these each
//! of its server connections knows already.
//!
//! Bytes in, bytes and decisions out. Knows neither sockets nor time. A statement that is not
//! repeatable is never offered for a second run.

mod batch;
mod floor;
mod identity;
mod inject;
mod judge;
mod known;
mod passage;
mod reply;
mod segment;
mod settings;
mod statements;
mod taken;
mod temporary;
mod told;
mod transaction;

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use pgherd_common::{NodeId, NodeName};

use crate::sql::{Effect, Facts, Route, Standing, Why};
use crate::sqlstate::Trouble;
use crate::wire::backend::TxStatus;
use crate::wire::frontend;

pub use batch::Batch;
pub use floor::{Consistency, Floor, Freshness};
pub use identity::Identities;
pub use judge::Judge;
pub use known::{Introduction, Introductions, Known};
pub use passage::Passage;
pub use reply::ReplyError;
pub use reply::{Event, Reply};
pub use segment::{LARGE, Segment};
pub use settings::Seen;
pub use statements::Definition;
pub use taken::{TakeError, Taken};

use inject::{NOTHING, inject_read};
use segment::What;
use settings::Settings;
use statements::{By, Expected, Statements};
use temporary::Temporaries;
use transaction::Portal;

/// An open transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tx {
    node: NodeId,
    failed: bool,
}

/// Where a segment has to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// On the connection that holds the open transaction.
    Stay(NodeId),
    /// On a node that serves reads.
    Reader,
    /// On the primary.
    Writer,
    /// On any open connection; on the primary if there is none.
    Any,
}

/// The session.
#[derive(Debug, Default)]
pub struct Session {
    tx: Option<Tx>,
    lost: Option<Trouble>,
    /// What opened the open transaction block, while nothing else ran in it.
    begun: Option<Bytes>,
    /// The open transaction follows another one in a chain.
    chained: bool,
    portal: Portal,
    /// The batch under way has bound or closed it, on the server that it is on.
    portal_touched: bool,
    /// The standby that held the open transaction, which can go on on the primary, is gone.
    stranded: Option<NodeName>,
    /// Transaction blocks of this session only read, unless they are told otherwise.
    pub reads_as_usual: bool,
    pinned: bool,
    /// Functions that were called and may have left something behind in the session.
    suspects: BTreeSet<String>,
    /// Functions, views or the like got another meaning, once that is committed.
    redefined: bool,
    /// Texts may mean something else by what the open transaction did.
    altered: bool,
    /// The open transaction may have settings of its own: more than reads ran in it.
    has_local_settings: bool,
    /// Custom settings that it named so far.
    customs: BTreeSet<String>,
    /// It named the schema of temporary objects.
    names_temporary: bool,
    /// Something is on its primary connection that only it may have.
    kept: bool,
    why_kept: Option<Why>,
    /// What would be lost for good with its connection to the primary, beside temporary objects.
    unmovable: Option<Why>,
    temporaries: Temporaries,
    /// How often a standby would not follow the session's settings.
    refusals: u32,
    lazy_commits: bool,
    statements: Statements,
    settings: Settings,
    last_read: Option<NodeId>,
    /// How far a standby must have come to serve it.
    pub floor: Floor,
}

impl Session {
    /// Where `segment` has to run.
    pub fn wanted(&self, segment: &Segment) -> Wanted {
        if let Some(tx) = self.tx {
            return Wanted::Stay(tx.node);
        }
        match segment.route {
            Route::Primary => Wanted::Writer,
            Route::Read | Route::Neutral if segment.leaves_portals() => Wanted::Writer,
            Route::Neutral => Wanted::Any,
            Route::Read if self.is_pinned() || (self.kept && segment.binds_named()) => Wanted::Writer,
            Route::Read if segment.told.opens && !segment.suits_reader() => Wanted::Writer,
            Route::Read => Wanted::Reader,
        }
    }

    /// Whether `segment` may be run a second time when nothing of its answer was passed on.
    pub fn is_repeatable(&self, segment: &Segment) -> bool {
        let harmless = segment.only_begins() || segment.route != Route::Primary;
        self.tx.is_none() && harmless && segment.ended && segment.rest == 0
    }

    /// Where something has to run, when the session may be one that stays with the primary.
    pub fn as_pinned(&self, wanted: Wanted) -> Wanted {
        if wanted == Wanted::Reader && self.is_pinned() { Wanted::Writer } else { wanted }
    }

    /// The session stays with the primary from now on.
    pub fn pin(&mut self) {
        self.pinned = true;
    }

    /// A standby would not follow the session's settings. After some of these no other is asked.
    pub fn note_refusal(&mut self) {
        self.refusals += 1;
        self.pinned |= self.refusals > REFUSALS_MAX;
    }

    /// What its reads are sure to see: as the session was told by a SET, or else `usual`.
    pub fn consistency(&self, usual: Consistency) -> Consistency {
        let set = self.settings.newest_of(floor::SETTING);
        set.and_then(Consistency::from_set).unwrap_or(usual)
    }

    /// Whether a commit may have been acknowledged before it was written.
    pub fn commits_lazily(&self) -> bool {
        self.lazy_commits
    }

    /// Whether something may have been committed, now that `batch` is over on the primary; `was_open`: a
    /// transaction was open before.
    pub fn may_have_committed(&self, batch: &Batch, was_open: bool) -> bool {
        self.tx.is_none() && (was_open || batch.may_commit || batch.route == Route::Primary)
    }

    /// Whether `segment`, run on the primary, commits something for all that is known, and leaves no
    /// transaction open for certain.
    pub fn settles(&self, segment: &Segment) -> bool {
        let in_block = self.tx.is_some();
        let commits = in_block
            || segment.told.may_commit
            || segment.route == Route::Primary
            || self.floor.is_doubtful();
        commits && segment.settles(in_block)
    }

    /// Whether reads go to the primary, too.
    pub fn is_pinned(&self) -> bool {
        self.pinned || !self.suspects.is_empty()
    }

    /// Whether the session is with the primary only because little is known of functions that it called.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// The catalogs tell about functions: those that leave nothing behind are suspects no more.
    pub fn acquit(&mut self, facts: &Facts) {
        let standing = |name: &String| facts.function(None, name);
        self.pinned |= self.suspects.iter().any(|name| standing(name) == Standing::Stateful);
        self.suspects.retain(|name| standing(name) == Standing::Unknown);
    }

    /// Whether names got another meaning by what was committed; asked once.
    pub fn take_redefined(&mut self) -> bool {
        self.tx.is_none() && std::mem::take(&mut self.redefined)
    }

    /// Whether its connection to the primary is for it alone.
    pub fn is_kept(&self) -> bool {
        self.kept || self.is_pinned() || !self.temporaries.is_empty()
    }

    /// Why that is so; the first reason counts.
    pub fn why_kept(&self) -> Option<Why> {
        let why = || self.why_unmovable().or(self.why_kept).unwrap_or(Why::Unknown);
        self.is_kept().then(why)
    }

    /// What is lost for good with its connection to the primary, if something is.
    pub fn why_unmovable(&self) -> Option<Why> {
        let temporary = self.temporaries.are_there().then_some(Why::Temporary);
        temporary.or(self.unmovable.filter(|_| self.is_kept()))
    }

    fn is_kept_for(&mut self, why: Why) {
        self.why_kept = self.why_kept.or(Some(why));
    }

    /// Whatever only one connection had is gone with it.
    pub fn shed(&mut self) {
        self.pinned = false;
        self.suspects.clear();
        self.kept = false;
        self.temporaries.forget();
        (self.why_kept, self.unmovable) = (None, None);
    }

    /// `segment` is to be run next.
    pub fn expect(&mut self, segment: &Segment) {
        self.names_temporary |= segment.traces.names_temporary;
    }

    /// Whether it would find on a connection what is none of its own.
    pub fn shuns(&self, known: &Known) -> bool {
        self.names_temporary && known.was_temporary() && self.tx.is_none() && self.temporaries.is_empty()
    }

    /// Custom settings that it knows of, as far as texts tell.
    pub fn customs(&self) -> &BTreeSet<String> {
        &self.customs
    }

    /// The open transaction failed on its server, for a reason of the proxy's.
    pub fn fail_tx(&mut self) {
        self.tx = self.tx.map(|tx| Tx { failed: true, ..tx });
        self.statements.forget_pending();
    }

    /// A new server connection refused the session's settings: they are void, as the client is told.
    pub fn forget_settings(&mut self) {
        self.settings.discard_all();
    }

    /// The node that the last read went to.
    pub fn last_read(&self) -> Option<NodeId> {
        self.last_read
    }

    /// A read goes to `node`.
    pub fn reads_from(&mut self, node: NodeId) {
        self.last_read = Some(node);
    }

    /// The transaction status as the client knows it.
    pub fn status(&self) -> TxStatus {
        match self.tx {
            None if self.stranded.is_none() => TxStatus::Idle,
            None => TxStatus::Open,
            Some(Tx { failed: false, .. }) => TxStatus::Open,
            Some(Tx { failed: true, .. }) => TxStatus::Failed,
        }
    }

    /// The node that holds the open transaction.
    pub fn tx_node(&self) -> Option<NodeId> {
        self.tx.map(|tx| tx.node)
    }

    /// The connection to `server` is gone while nothing ran on it.
    pub fn on_idle_loss(&mut self, node: NodeId, server: &NodeName, why: &str) {
        if self.tx.is_some_and(|tx| tx.node == node) {
            self.abandon_tx();
            let (server, why) = (server.clone(), why.to_owned());
            self.lost = Some(Trouble::RolledBack { server, why, transaction: true });
        }
    }

    /// The connection to `server` is gone while `segment` (and what came before it in its batch) ran.
    pub fn trouble_of(&self, batch: &Batch, server: &NodeName, why: &str) -> Trouble {
        let (server, why) = (server.clone(), why.to_owned());
        let in_transaction = self.tx.is_some();
        if in_transaction && !batch.may_commit {
            Trouble::RolledBack { server, why, transaction: true }
        } else if !in_transaction && batch.route != Route::Primary {
            Trouble::RolledBack { server, why, transaction: false }
        } else {
            Trouble::OutcomeUnknown { server, why }
        }
    }

    /// The batch came to its end without reaching its server, or its server is gone.
    pub fn abandon_tx(&mut self) {
        (self.tx, self.stranded) = (None, None);
        self.settings.rollback();
        self.statements.forget_pending();
    }

    /// What was read ahead of the batch is not run.
    pub fn pass_over(&mut self) {
        self.statements.forget_pending();
    }

    /// The answer is not passed on: `segment` will be run again elsewhere.
    pub fn on_withdrawn(&mut self, reply: &mut Reply, known: &mut Known) {
        for expected in reply.confirmed() {
            match expected {
                Expected::Parse { name, .. } => drop(known.statements.insert(name, None)),
                // There, the session's own has yet to be closed.
                Expected::Close { name: Some(name), by: By::Client } => drop(known.statements.remove(&name)),
                Expected::Close { .. } | Expected::Barrier | Expected::Placeholder { .. } => {}
            }
        }
        known.restore_unconfirmed(reply);
    }

    /// The proxy answered `segment` itself: the statements in it exist.
    pub fn on_answered(&mut self, segment: &Segment) {
        for part in &segment.parts {
            match &part.what {
                What::Parse { name, definition } => self.statements.confirm(name.clone(), definition.clone()),
                What::CloseStatement(name) => self.statements.remove(name),
                What::Uses(_) | What::Binds { .. } | What::ClosePortal | What::Other => {}
            }
        }
        self.statements.forget_pending();
    }

    /// What has to run on a connection before the session's next statement does, in order.
    pub fn replay(&self, known: &Known) -> Vec<String> {
        if self.tx.is_some() { Vec::new() } else { self.settings.replay(known.seen) }
    }

    /// The replay was done.
    pub fn on_replayed(&self, known: &mut Known) {
        if self.settings.discards(known.seen) {
            known.statements.clear();
        }
        if known.seen != self.settings.newest() {
            known.soiled = true;
            known.customs.extend(self.customs.iter().cloned());
        }
        known.seen = self.settings.newest();
    }

    /// What a new connection knows.
    pub fn fresh(&self) -> Known {
        Known { seen: self.settings.beginning(), ..Known::default() }
    }

    /// What is encoded next is the beginning of a batch on a server of its own.
    pub fn begin_batch(&mut self) {
        self.statements.forget_sent();
        self.portal_touched = false;
    }

    /// Writes `segment` for a connection, with the statements it lacks, and notes in `reply` which
    /// answers to expect.
    pub fn encode(&mut self, segment: &Segment, known: &mut Known, reply: &mut Reply, out: &mut BytesMut) {
        known.soiled |= segment.told.soils;
        self.note_traces(segment, known);
        if segment.behind_reads {
            inject_read(reply, out);
        }
        self.before_portal(segment, reply, out);
        let prepared_before = reply.prepared();
        if segment.under_way && segment.traces.uses_all {
            self.close_others(known, reply, out);
        }
        // Too late to introduce what SQL names in any other way.
        for name in segment.uses.iter().filter(|_| segment.under_way) {
            self.before_use(name, known, reply, out);
        }
        let mut at = 0;
        for part in &segment.parts {
            if matches!(part.tag, b'Q' | b'F') && reply.is_unsynced() {
                frontend::put_close_statement(out, NOTHING);
                reply.expect(Expected::Barrier);
            }
            reply.note_sent(part.tag);
            match &part.what {
                What::Parse { name, definition } => {
                    self.before_parse(name, known, reply, out);
                    self.statements.note_sent(name);
                    reply.expect(Expected::Parse {
                        name: name.clone(),
                        definition: definition.clone(),
                        by: By::Client,
                        at: reply.sent_before(),
                    });
                }
                What::Uses(name) => self.before_use(name, known, reply, out),
                What::CloseStatement(name) => {
                    self.statements.note_sent(name);
                    reply.expect(Expected::Close { name: Some(name.clone()), by: By::Client });
                }
                What::ClosePortal => reply.expect(Expected::Close { name: None, by: By::Client }),
                What::Binds { name, frees } => {
                    self.before_use(name, known, reply, out);
                    self.statements.note_freed(frees);
                }
                What::Other => {}
            }
            let end = at + part.len;
            out.extend_from_slice(segment.bytes.get(at..end).unwrap_or_default());
            at = end;
        }
        // What is prepared under settings of a transaction's own is not the same as elsewhere.
        let disturbed = self.has_local_settings || segment.is_disturbed();
        known.soiled |= disturbed && reply.prepared() > prepared_before;
    }

    /// A server confirmed the oldest thing expected of it.
    fn on_confirmed(&mut self, expected: Expected, known: &mut Known) {
        match expected {
            Expected::Parse { name, definition, by, .. } => {
                known.statements.insert(name.clone(), Some(definition.id));
                // The session had it when it went out, and may have freed it behind that.
                if by == By::Client {
                    self.statements.confirm(name, definition);
                }
            }
            Expected::Close { name: Some(name), by: By::Client } => {
                known.statements.remove(&name);
                self.statements.remove(&name);
            }
            Expected::Close { .. } | Expected::Barrier | Expected::Placeholder { .. } => {}
        }
    }

    /// The batch is over: the server is ready for the next.
    pub fn on_ready(
        &mut self,
        batch: &Batch,
        node: NodeId,
        status: TxStatus,
        reply: &mut Reply,
        known: &mut Known,
    ) {
        self.on_part_ready(batch, node, status, reply, known);
        self.statements.forget_pending();
    }

    /// What `batch` did to prepared statements.
    fn on_prepared(&mut self, batch: &Batch, reply: &mut Reply, known: &mut Known) {
        let unnamed_is_gone = reply.loses_unnamed();
        let doubtful = self.is_doubtful(batch, reply);
        self.pinned |= doubtful;
        // Names that are freed first may be given anew behind that. What failed, and freed them in all likelihood, may
        // have left some on its server: these are closed before their name is used.
        if !reply.failed() || doubtful {
            self.statements.free(batch.effects.iter().filter_map(Effect::frees));
        }
        if !reply.failed() {
            known.free(batch.effects.iter().filter_map(Effect::frees));
        }
        for expected in reply.confirmed() {
            self.on_confirmed(expected, known);
        }
        known.restore_unconfirmed(reply);
        if unnamed_is_gone {
            known.statements.remove("");
            self.statements.remove("");
        }
    }

    /// The server is done with its part of the batch, which may go on elsewhere.
    pub fn on_part_ready(
        &mut self,
        batch: &Batch,
        node: NodeId,
        status: TxStatus,
        reply: &mut Reply,
        known: &mut Known,
    ) {
        self.on_prepared(batch, reply, known);
        let (was_open, mut was_failed) = (self.tx.is_some(), self.tx.is_some_and(|tx| tx.failed));
        self.tx = match status {
            TxStatus::Idle => None,
            TxStatus::Open => Some(Tx { node, failed: false }),
            TxStatus::Failed => Some(Tx { node, failed: true }),
        };
        self.note_beginning(batch, status, was_open);
        self.note_portal(batch, status, reply);
        self.redefined |= batch.redefines;
        self.altered |= batch.traces.alters;
        self.has_local_settings |= batch.route != Route::Read && !batch.only_begins();
        self.on_traces(batch, reply, known);
        for effect in &batch.effects {
            self.pinned |= !self.temporaries.on_effect(effect);
            match effect {
                Effect::Pin => self.pinned = true,
                Effect::Suspect(name) => self.suspect(name),
                Effect::Keep => self.kept = true,
                Effect::Because(why) => self.is_kept_for(*why),
                // What failed is over with the first of these.
                Effect::Commit if std::mem::take(&mut was_failed) => self.settings.rollback(),
                Effect::Rollback => {
                    was_failed = false;
                    self.settings.rollback();
                }
                Effect::Terminate => {}
                Effect::LazyCommits => self.lazy_commits = true,
                other if !reply.failed() => self.apply(other),
                _ => {}
            }
        }
        if status == TxStatus::Idle {
            if reply.failed() || was_failed {
                self.settings.rollback();
            } else {
                self.settings.commit();
            }
            known.seen = self.settings.newest();
            self.has_local_settings = false;
            if std::mem::take(&mut self.altered) {
                self.statements.identities.renew();
            }
        }
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Set { key, sql } => self.settings.set(key, sql),
            Effect::ResetAll => self.settings.reset_all(),
            Effect::Savepoint(name) => self.settings.savepoint(name),
            Effect::RollbackTo(name) => self.settings.rollback_to(name),
            Effect::Commit => self.settings.commit(),
            Effect::Pin => self.pinned = true,
            Effect::Suspect(name) => self.suspect(name),
            Effect::Keep => self.kept = true,
            Effect::Dropped(name) => self.temporaries.on_dropped(name),
            Effect::Temporary(name) => self.temporaries.on_made(name),
            Effect::Rollback
            | Effect::ForTransaction
            | Effect::Terminate
            | Effect::LazyCommits
            | Effect::Because(_)
            | Effect::Logins(_) => {}
            Effect::LikelyTemporary(_) | Effect::Mingles => {}
            Effect::Deallocate(_) | Effect::DeallocateAll => {}
            Effect::DiscardAll => {
                self.settings.discard_all();
                self.shed();
            }
        }
    }

    fn suspect(&mut self, name: &str) {
        self.suspects.insert(name.to_owned());
        self.pinned |= self.suspects.len() > SUSPECTS_MAX;
    }
}

/// Each costs a connection.
const REFUSALS_MAX: u32 = 5;

/// Whoever calls more functions that nobody knows stays with the primary.
const SUSPECTS_MAX: usize = 100;

#[cfg(test)]
mod tests;
