//! The prepared statements of a session, by the names that the client gave them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::sql::{Route, Traces, Verdict};

use super::Judge;

/// A prepared statement.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Tells it from others that had its name; never 0.
    pub id: u64,
    /// Text and parameter types, to prepare it elsewhere; `None` when it is too large to keep. Of one that
    /// SQL prepared: the statement that did.
    pub body: Option<Bytes>,
    /// SQL prepared it.
    pub by_sql: bool,
    /// What its text means.
    pub verdict: Arc<Verdict>,
}

impl Definition {
    /// Its text, which stands in front of the parameter types.
    pub(super) fn text(&self) -> Option<Bytes> {
        let body = self.body.as_ref().filter(|_| !self.by_sql)?;
        let end = body.iter().position(|byte| *byte == 0)?;
        Some(body.slice(..end))
    }

    /// What its text means by now: more may be known than when it was prepared.
    pub(super) fn verdict_now(&self, judge: Judge<'_>) -> Arc<Verdict> {
        self.text().map_or_else(|| self.verdict.clone(), |text| judge(&text))
    }
}

/// An answer that a server owes.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    /// `ParseComplete`; so many messages of the client's came before it in the batch.
    Parse { name: String, definition: Arc<Definition>, injected: bool, at: usize },
    /// `CloseComplete`; of a statement when there is a name.
    Close { name: Option<String>, injected: bool },
    /// `CloseComplete` for nothing, in front of a simple query that has messages without a `Sync` before
    /// it: while it is owed, an error is one of theirs, and the query is not run.
    Barrier,
    /// `ParseComplete` for a name that the client prepares once more.
    Placeholder,
}

impl Expected {
    pub(super) fn is_injected(&self) -> bool {
        match self {
            Self::Parse { injected, .. } | Self::Close { injected, .. } => *injected,
            Self::Barrier | Self::Placeholder => true,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Statements {
    confirmed: BTreeMap<String, Arc<Definition>>,
    /// Sent in the current batch, not confirmed yet; they hide confirmed ones.
    pending: BTreeMap<String, Arc<Definition>>,
    /// Names whose `Parse` has been written to the server of the current batch: what comes after it
    /// there means the new statement, what came before it the old one.
    sent: BTreeSet<String>,
    last_id: u64,
}

impl Statements {
    /// The statement that a message sent now would find under this name.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Definition>> {
        self.pending.get(name).or_else(|| self.confirmed.get(name))
    }

    pub(super) fn confirmed(&self, name: &str) -> Option<&Arc<Definition>> {
        self.confirmed.get(name)
    }

    /// A `Parse` of this name goes out.
    pub(super) fn note_sent(&mut self, name: &str) {
        self.sent.insert(name.to_owned());
    }

    /// A statement goes out that frees these names; `None`: all.
    pub(super) fn note_freed(&mut self, names: &[Option<String>]) {
        for name in names {
            match name {
                Some(name) => self.note_sent(name),
                None => self.sent.extend(self.confirmed.keys().cloned()),
            }
        }
    }

    pub(super) fn is_sent(&self, name: &str) -> bool {
        self.sent.contains(name)
    }

    /// The client prepares a statement.
    pub(super) fn announce(
        &mut self,
        name: &str,
        body: Option<Bytes>,
        verdict: Arc<Verdict>,
    ) -> Arc<Definition> {
        self.last_id += 1;
        let definition = Arc::new(Definition { id: self.last_id, body, by_sql: false, verdict });
        self.pending.insert(name.to_owned(), definition.clone());
        definition
    }

    /// SQL prepared a statement; its number. `sql` did that.
    pub(super) fn note_prepared(&mut self, name: &str, sql: &str, indelible: bool) -> u64 {
        self.last_id += 1;
        let traces = Traces { indelible, ..Traces::default() };
        let verdict = Verdict { may_commit: true, traces, ..Verdict::plain(Route::Primary) };
        let body = Some(Bytes::copy_from_slice(sql.as_bytes()));
        let definition = Definition { id: self.last_id, body, by_sql: true, verdict: Arc::new(verdict) };
        self.confirmed.insert(name.to_owned(), Arc::new(definition));
        self.last_id
    }

    /// The names of all that exist.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.confirmed.keys()
    }

    pub(super) fn confirm(&mut self, name: String, definition: Arc<Definition>) {
        self.confirmed.insert(name, definition);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.confirmed.remove(name);
        self.pending.remove(name);
        self.sent.remove(name);
    }

    pub(super) fn forget_pending(&mut self) {
        self.pending.clear();
        self.sent.clear();
    }

    /// The batch goes on, or begins again, on another server.
    pub(super) fn forget_sent(&mut self) {
        self.sent.clear();
    }

    /// These names are no more; `None`: all.
    pub(super) fn free(&mut self, names: impl Iterator<Item = Option<String>>) {
        for name in names {
            match name {
                Some(name) => self.remove(&name),
                None => self.clear(),
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.confirmed.clear();
        self.forget_pending();
    }
}
