//! The prepared statements of a session, by the names that the client gave them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::control::lock;
use crate::memory::{Counted, Gauge};
use crate::sql::{Route, Traces, Verdict};

use super::identity::{Identities, Identity, is_timely};
use super::{Judge, Segment, Session};

/// A prepared statement.
#[derive(Debug)]
pub struct Definition {
    /// Tells it from others that have its name.
    pub id: Identity,
    /// Text and parameter types, to prepare it elsewhere; `None` when it is too large to keep. Of one that
    /// SQL prepared: the statement that did.
    pub body: Option<Bytes>,
    text: Option<Bytes>,
    /// What told where names were looked for when it was prepared; `None`: the login.
    pub(super) path: Option<Arc<str>>,
    /// SQL prepared it.
    pub by_sql: bool,
    /// What its text meant when it was prepared.
    pub verdict: Arc<Verdict>,
    /// What it meant when it was used last, as long as no verdict has changed since.
    pub(super) latest: Mutex<Option<(u64, Arc<Verdict>)>>,
    _counted: Counted,
}

impl Definition {
    /// Of what the protocol prepared, whose text stands in front of the parameter types.
    fn by_protocol(
        id: Identity,
        body: Option<Bytes>,
        verdict: Arc<Verdict>,
        path: Option<Arc<str>>,
        counted: Counted,
    ) -> Self {
        let text = body.as_ref().and_then(|body| {
            let end = body.iter().position(|byte| *byte == 0)?;
            Some(body.slice(..end))
        });
        Self { id, body, text, path, by_sql: false, verdict, latest: Mutex::default(), _counted: counted }
    }

    /// Its text, if the protocol prepared it and it is kept.
    pub(super) fn text(&self) -> Option<&Bytes> {
        self.text.as_ref()
    }

    /// What its text means by now: more may be known than when it was prepared.
    pub(super) fn verdict_now(&self, judge: &dyn Judge) -> Arc<Verdict> {
        let (version, mut latest) = (judge.version(), lock(&self.latest));
        if let Some((known, verdict)) = latest.as_ref()
            && Some(*known) == version
        {
            return verdict.clone();
        }
        let Some(text) = self.text() else { return self.verdict.clone() };
        let verdict = judge.verdict(text);
        *latest = latest_of(version, &verdict);
        verdict
    }
}

/// `version`: of before it was judged.
fn latest_of(version: Option<u64>, verdict: &Arc<Verdict>) -> Option<(u64, Arc<Verdict>)> {
    // Each time one is asked for that redefines something, what it redefines is doubted.
    version.filter(|_| verdict.defines.is_none()).map(|version| (version, verdict.clone()))
}

/// An answer that a server owes.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    /// `ParseComplete`; so many messages of the client's came before it in the batch.
    Parse { name: String, definition: Arc<Definition>, by: By, at: usize },
    /// `CloseComplete`; of a statement when there is a name.
    Close { name: Option<String>, by: By },
    /// `CloseComplete` for nothing, in front of a simple query that has messages without a `Sync` before
    /// it: while it is owed, an error is one of theirs, and the query is not run.
    Barrier,
    /// `ParseComplete` for a name that the client prepares once more, and what was known of it until then.
    Placeholder { name: String, before: Option<Option<Identity>> },
}

/// Whose message it is that a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Client,
    /// What was known of the name until then, which holds on if the server does not come to it.
    Proxy(Option<Option<Identity>>),
}

impl Expected {
    pub(super) fn is_injected(&self) -> bool {
        match self {
            Self::Parse { by, .. } | Self::Close { by, .. } => *by != By::Client,
            Self::Barrier | Self::Placeholder { .. } => true,
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
    gauge: Arc<Gauge>,
    pub(super) identities: Arc<Identities>,
}

/// A session whose statements take more than this stays with the connection that has them: only there can it use
/// those that it prepares from then on, which are not kept.
const BYTES_MAX: usize = 16 << 20;

/// About what a statement takes beside its name and its body.
const DEFINITION_BYTES: usize = size_of::<Definition>() + 2 * size_of::<String>() + 64;

fn size(name: &str, body: Option<&Bytes>) -> usize {
    name.len() + body.map_or(0, Bytes::len) + DEFINITION_BYTES
}

impl Statements {
    /// Whether no more of them are kept.
    pub(super) fn are_too_many(&self) -> bool {
        self.gauge.usage().bytes >= BYTES_MAX
    }

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

    /// The client prepares a statement, judged on grounds of that version. `common`: the same is the same one in other
    /// sessions.
    pub(super) fn announce(
        &mut self,
        name: &str,
        body: Option<Bytes>,
        (verdict, version): (Arc<Verdict>, Option<u64>),
        path: Option<Arc<str>>,
        common: bool,
    ) -> Arc<Definition> {
        let counted = self.gauge.count(size(name, body.as_ref()));
        let id = match &body {
            Some(body) if common => self.identities.of(body),
            _ => self.identities.unique(),
        };
        let latest = Mutex::new(latest_of(version, &verdict));
        let definition = Definition { latest, ..Definition::by_protocol(id, body, verdict, path, counted) };
        let definition = Arc::new(definition);
        self.pending.insert(name.to_owned(), definition.clone());
        definition
    }

    /// SQL prepared a statement; its number. `sql` did that.
    pub(super) fn note_prepared(
        &mut self,
        name: &str,
        sql: &str,
        indelible: bool,
        path: Option<Arc<str>>,
    ) -> Identity {
        let traces = Traces { indelible, ..Traces::default() };
        let verdict = Verdict { may_commit: true, traces, ..Verdict::plain(Route::Primary) };
        let body = Some(Bytes::copy_from_slice(sql.as_bytes()));
        let (id, verdict, latest) = (self.identities.unique(), Arc::new(verdict), Mutex::default());
        let _counted = self.gauge.count(size(name, body.as_ref()));
        let definition = Definition { id, body, text: None, path, by_sql: true, verdict, latest, _counted };
        self.confirmed.insert(name.to_owned(), Arc::new(definition));
        id
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
        // To clear an empty map is not for nothing.
        if !self.pending.is_empty() {
            self.pending.clear();
        }
        self.forget_sent();
    }

    /// The batch goes on, or begins again, on another server.
    pub(super) fn forget_sent(&mut self) {
        if !self.sent.is_empty() {
            self.sent.clear();
        }
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

impl Session {
    /// Whose prepared statements are counted there, and told apart so.
    pub fn new(gauge: Arc<Gauge>, identities: Arc<Identities>) -> Self {
        Self { statements: Statements { gauge, identities, ..Statements::default() }, ..Self::default() }
    }

    /// Whether a statement that `segment` prepares is the same one as in any other session that prepares its text: it
    /// is made of nothing but that and the login's settings.
    pub(super) fn prepares_commonly(&self, name: &str, sql: &[u8], segment: &Segment) -> bool {
        let undisturbed = segment.told.statements == 0 && !segment.under_way;
        let as_at_login = self.settings.are_untouched() && !self.has_local_settings && !self.altered;
        let as_at_login = as_at_login && !self.is_kept();
        !name.is_empty() && undisturbed && as_at_login && !is_timely(sql)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_prepared_is_counted_until_it_is_gone_and_bounded() {
        let mut statements = Statements::default();
        let verdict = Arc::new(Verdict::plain(Route::Read));
        let mut prepare = |name: &str, bytes: usize| {
            let body = Some(Bytes::from(vec![b' '; bytes]));
            let definition = statements.announce(name, body, (verdict.clone(), None), None, false);
            statements.confirm(name.to_owned(), definition);
            statements.forget_pending();
            (statements.gauge.usage(), statements.are_too_many())
        };
        let (first, full) = prepare("a", 1 << 20);
        assert!(first.number == 1 && first.bytes >= 1 << 20 && !full);
        assert_eq!(prepare("a", 1 << 20), (first, false), "in the place of the other");
        assert!(prepare("b", 15 << 20).1);
        statements.remove("b");
        assert_eq!((statements.gauge.usage(), statements.are_too_many()), (first, false));
    }
}
