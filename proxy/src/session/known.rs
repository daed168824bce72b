//! What one server connection knows of its session, what is left on it, and whom it can be given to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::sql::{Why, way_out};
use crate::wire::frontend;

use super::identity::Identity;
use super::segment::Segment;
use super::settings::Seen;
use super::statements::{By, Expected};
use super::{Batch, Reply, Session};

/// A connection with more prepared statements of those before is emptied: all of them cost the server memory.
pub(super) const LEFT_MAX: usize = 200;

/// What one server connection knows of the session.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Prepared statements by name, whoever prepared them; `None` when it is uncertain what the name stands for there.
    pub(super) statements: BTreeMap<String, Option<Identity>>,
    /// Settings.
    pub(super) seen: Seen,
    /// More than reads ran there: there may be state that is not known of.
    pub(super) soiled: bool,
    /// Something ran there that emptying does not undo.
    pub(super) indelible: bool,
    /// It may have a schema for temporary objects. That stays when the objects go, and a search path that
    /// names it tells the difference.
    pub(super) temporary: bool,
    /// It was so before this client came to it.
    pub(super) temporary_before: bool,
    /// Custom settings that are known there for as long as it lives.
    pub(super) customs: BTreeSet<String>,
}

impl Known {
    /// Whether a client that comes to it now would not find anything of those before, but for prepared statements,
    /// which are known.
    pub fn is_clean(&self) -> bool {
        let certain = self.statements.iter().all(|(name, there)| name.is_empty() || there.is_some());
        !self.soiled && self.statements.len() <= LEFT_MAX && certain
    }

    /// Whether a session that has named these custom settings finds nothing there that it would not find
    /// on a new connection, once it is emptied.
    pub fn suits(&self, customs: &BTreeSet<String>) -> bool {
        !self.indelible && self.customs.is_subset(customs)
    }

    /// Whether a client may find that others had temporary objects there.
    pub fn was_temporary(&self) -> bool {
        self.temporary_before
    }

    /// Whether emptying leaves something behind that nobody may have.
    pub fn is_indelible(&self) -> bool {
        self.indelible
    }

    /// Of a connection that served others before and is clean. `self`: what a new connection would know.
    #[must_use]
    pub fn behind_others(mut self, before: Self) -> Self {
        self.statements = before.statements;
        self.customs.extend(before.customs);
        self.temporary = before.temporary;
        self.temporary_before = before.temporary;
        self
    }

    /// None of the prepared statements is there any more.
    pub fn lose_statements(&mut self) {
        self.statements.clear();
    }

    /// The proxy ran a query of its own, which does away with the unnamed statement.
    pub fn forget_unnamed(&mut self) {
        self.statements.remove("");
    }

    /// One of the messages was refused: who knows which of the statements are there.
    pub fn doubt(&mut self, introductions: &Introductions) {
        let prepared = introductions.by_protocol.iter().map(|one| &one.name);
        self.statements.extend(prepared.chain(&introductions.closed).map(|name| (name.clone(), None)));
    }

    /// These names of prepared statements are no more; `None`: all.
    pub(super) fn free(&mut self, names: impl Iterator<Item = Option<String>>) {
        for name in names {
            match name {
                Some(name) => drop(self.statements.remove(&name)),
                None => self.statements.clear(),
            }
        }
    }

    /// What the server was told by the proxy and did not come to, or refused, is as it was, and not as was noted already.
    pub(super) fn restore_unconfirmed(&mut self, reply: &mut Reply) {
        if !reply.is_owed() {
            return;
        }
        for expected in reply.unconfirmed().into_iter().rev() {
            if let Expected::Parse { name, by: By::Proxy(before), .. }
            | Expected::Close { name: Some(name), by: By::Proxy(before) }
            | Expected::Placeholder { name, before } = expected
            {
                match before {
                    // What refused it did away with the unnamed statement, or did not.
                    _ if name.is_empty() => drop(self.statements.insert(name, None)),
                    Some(before) => drop(self.statements.insert(name, before)),
                    None => drop(self.statements.remove(&name)),
                }
            }
        }
    }

    /// A statement is there now that was not prepared with the others.
    pub fn learn(&mut self, introduction: &Introduction) {
        self.forget_unnamed();
        self.statements.insert(introduction.name.clone(), Some(introduction.id));
    }
}

/// A statement that is prepared on another connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    name: String,
    id: Identity,
    /// The statement that prepares it, or else text and parameter types.
    prepares: Prepares,
    /// Has names looked for as when the session prepared it.
    pub path: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Prepares {
    BySql(String),
    ByProtocol(Bytes),
}

impl Introduction {
    /// Writes what prepares it, whatever has its name by now. One `ReadyForQuery` answers it.
    pub fn put(&self, out: &mut BytesMut) {
        match &self.prepares {
            Prepares::BySql(sql) => frontend::put_query(out, sql),
            Prepares::ByProtocol(body) => {
                frontend::put_close_statement(out, &self.name);
                frontend::put_parse(out, &self.name, body);
                frontend::put_sync(out);
            }
        }
    }

    /// The statement that prepares it, if one does.
    pub fn sql(&self) -> Option<&str> {
        match &self.prepares {
            Prepares::BySql(sql) => Some(sql),
            Prepares::ByProtocol(_) => None,
        }
    }
}

/// What a connection has to hear of prepared statements before a segment runs there.
#[derive(Debug, Default)]
pub struct Introductions {
    /// Messages with a `Sync` behind them, or nothing.
    pub messages: BytesMut,
    /// What is closed by them.
    closed: Vec<String>,
    /// What is prepared by them.
    pub by_protocol: Vec<Introduction>,
    /// Statements to be prepared by SQL, behind that.
    pub by_sql: Vec<Introduction>,
    /// What ends the failure of the open transaction as the first statement of the segment does, to be said before all
    /// else. `None` where it is not certain that nothing else comes first: a transaction that goes on being failed keeps
    /// its savepoints.
    pub way_out: Option<String>,
}

impl Introductions {
    /// Whether the connection knows all that it has to.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.by_sql.is_empty()
    }
}

/// The text of the simple query that it begins with.
fn simple_text(segment: &Segment) -> Option<&str> {
    let is_simple = segment.parts.first().is_some_and(|part| part.tag == b'Q');
    segment.texts().next().filter(|_| is_simple).and_then(|text| std::str::from_utf8(text).ok())
}

impl Session {
    /// Whether a connection needs to be told nothing before `segment` runs there.
    pub fn is_up_to_date(&self, segment: &Segment, known: &Known) -> bool {
        let by_sql = |name: &String| self.statements.confirmed(name).is_some_and(|known| known.by_sql);
        known.seen == self.settings.newest()
            && !segment.traces.uses_all
            && segment.uses.is_empty()
            && !(segment.told.opens && segment.uses_from_before().next().is_some())
            && !segment.names().any(by_sql)
    }

    /// What it takes that SQL in `segment` finds by name what the session has prepared, and nothing else. In a failed
    /// transaction without a way out: what it takes that it does not find what others prepared.
    pub fn introduce(&self, segment: &Segment, known: &mut Known) -> Introductions {
        let mut all = Introductions::default();
        // The protocol's messages look after those of the protocol themselves.
        let by_sql = |name: &&String| self.statements.confirmed(name).is_some_and(|known| known.by_sql);
        let names: BTreeSet<String> = if segment.traces.uses_all {
            let there = known.statements.keys().filter(|name| !name.is_empty());
            self.statements.names().chain(there).filter(|name| !name.is_empty()).cloned().collect()
        } else {
            let by_sql = segment.names().filter(by_sql);
            // Preparing takes a snapshot, and a transaction's isolation is told before that.
            let early = segment.uses_from_before().filter(|_| segment.told.opens && self.tx.is_none());
            let early = early.filter(|name| self.statements.confirmed(name).is_some());
            segment.uses.iter().chain(by_sql).chain(early).cloned().collect()
        };
        let failed = !names.is_empty() && self.tx.is_some_and(|tx| tx.failed);
        all.way_out = simple_text(segment).filter(|_| failed).and_then(way_out);
        let stuck = failed && all.way_out.is_none();
        for name in names {
            self.introduce_one(name, (segment, stuck), known, &mut all);
        }
        if !all.messages.is_empty() {
            frontend::put_sync(&mut all.messages);
        }
        all
    }

    /// `stuck`: nothing can be prepared.
    fn introduce_one(
        &self,
        name: String,
        (segment, stuck): (&Segment, bool),
        known: &mut Known,
        all: &mut Introductions,
    ) {
        let there = known.statements.get(&name).copied();
        let Some(definition) = self.statements.confirmed(&name) else {
            // It is no more, or was somebody else's.
            if there.is_some() {
                frontend::put_close_statement(&mut all.messages, &name);
                known.statements.remove(&name);
                all.closed.push(name);
            }
            return;
        };
        if there == Some(Some(definition.id)) {
            return;
        }
        known.soiled |= self.has_local_settings;
        let Some(body) = definition.body.as_ref().filter(|_| !stuck) else {
            // Another's is not to pass for it.
            if matches!(there, Some(Some(_))) {
                frontend::put_close_statement(&mut all.messages, &name);
                known.statements.remove(&name);
                all.closed.push(name);
            }
            return;
        };
        let introduction = |name, prepares| {
            let path = definition.path.clone();
            Introduction { name, id: definition.id, prepares, path }
        };
        if there.is_some() || !definition.by_sql {
            frontend::put_close_statement(&mut all.messages, &name);
            known.statements.remove(&name);
            all.closed.push(name.clone());
        }
        if definition.by_sql {
            // What is to be freed may stand for what is gone.
            let sql = if segment.only_frees(&name) {
                format!("PREPARE \"{}\" AS SELECT", name.replace('"', "\"\""))
            } else {
                String::from_utf8_lossy(body).into_owned()
            };
            all.by_sql.push(introduction(name, Prepares::BySql(sql)));
        } else {
            frontend::put_parse(&mut all.messages, &name, body);
            known.statements.insert(name.clone(), Some(definition.id));
            all.by_protocol.push(introduction(name, Prepares::ByProtocol(body.clone())));
        }
    }

    /// `segment` goes to a connection: what will be left there, however it ends.
    pub(super) fn note_traces(&mut self, segment: &Segment, known: &mut Known) {
        let mut prepared = segment.uses.iter().filter_map(|name| self.statements.confirmed(name));
        known.indelible |= segment.traces.indelible || prepared.any(|used| used.verdict.traces.indelible);
        known.temporary |= segment.may_make_temporary();
        if !segment.traces.customs.is_empty() {
            known.customs.extend(segment.traces.customs.iter().cloned());
            self.customs.extend(segment.traces.customs.iter().cloned());
        }
    }

    /// What `batch` held on to, and what it prepared by SQL.
    pub(super) fn on_traces(&mut self, batch: &Batch, reply: &Reply, known: &mut Known) {
        batch.traces.holds.iter().for_each(|why| self.is_kept_for(*why));
        if !reply.failed() {
            let lost = batch.traces.holds.iter().find(|why| why.is_unmovable() && **why != Why::Temporary);
            self.unmovable = self.unmovable.or(lost.copied());
        }
        let Some((name, sql)) = &batch.traces.prepares else { return };
        if !reply.failed() {
            let path = self.settings.path();
            let id = self.statements.note_prepared(name, sql, batch.traces.indelible, path);
            known.statements.insert(name.clone(), Some(id));
        } else if batch.statements > 1 || reply.completed() > 0 {
            // Whether it was this one that failed is not known.
            self.kept = true;
            self.is_kept_for(Why::Prepare);
        }
    }
}
