//! What the proxy says to a server on its own account, between the client's messages.

use bytes::BytesMut;

use crate::wire::frontend;

use super::identity::Identity;
use super::statements::{By, Expected};
use super::{Known, Reply, Session};

/// A name that no client gives to a statement.
pub(super) const NOTHING: &str = "\u{1}";

/// The body of a `Parse` that cannot fail: an empty text without parameters.
const NO_QUERY: &[u8] = b"\0\0\0";

/// `before`: what is known of that name.
pub(super) fn inject_close(name: &str, before: Option<Identity>, reply: &mut Reply, out: &mut BytesMut) {
    frontend::put_close_statement(out, name);
    reply.expect(Expected::Close { name: Some(name.to_owned()), by: By::Proxy(Some(before)) });
}

/// On one server, a transaction that has read is too old to be told its isolation.
pub(super) fn inject_read(reply: &mut Reply, out: &mut BytesMut) {
    frontend::put_parse(out, NOTHING, b"SELECT\0\0\0");
    reply.expect(Expected::Placeholder { name: NOTHING.to_owned(), before: None });
    inject_close(NOTHING, None, reply, out);
}

impl Session {
    /// A client's own `Parse` must meet the same names on every server as it would on one.
    pub(super) fn before_parse(&self, name: &str, known: &mut Known, reply: &mut Reply, out: &mut BytesMut) {
        if name.is_empty() || self.statements.is_sent(name) {
            return;
        }
        if self.statements.confirmed(name).is_none() {
            return self.close_anothers(name, known, reply, out);
        }
        // What it is does not matter: it is there, and that is an error.
        if known.statements.get(name).copied().flatten().is_none() {
            self.close_anothers(name, known, reply, out);
            frontend::put_parse(out, name, NO_QUERY);
            // It is nobody's.
            let before = known.statements.insert(name.to_owned(), Some(self.statements.identities.unique()));
            reply.expect(Expected::Placeholder { name: name.to_owned(), before });
        }
    }

    /// What is used is there, and is the session's own.
    pub(super) fn before_use(&self, name: &str, known: &mut Known, reply: &mut Reply, out: &mut BytesMut) {
        if self.statements.is_sent(name) {
            return;
        }
        let Some(definition) = self.statements.confirmed(name) else {
            return self.close_anothers(name, known, reply, out);
        };
        let there = known.statements.get(name).copied();
        if there == Some(Some(definition.id)) {
            return;
        }
        // In a failed transaction what may be the session's own is to be refused, and not to be lost.
        let failed = self.tx.is_some_and(|tx| tx.failed);
        let is_others = matches!(there, Some(Some(_)));
        // What SQL prepared is introduced before, if at all.
        let Some(body) = definition.body.as_ref().filter(|_| !definition.by_sql) else {
            if is_others {
                self.close_anothers(name, known, reply, out);
            }
            return;
        };
        if !name.is_empty() && (is_others || !failed) {
            self.close_anothers(name, known, reply, out);
        }
        let before = known.statements.insert(name.to_owned(), Some(definition.id));
        frontend::put_parse(out, name, body);
        reply.expect(Expected::Parse {
            name: name.to_owned(),
            definition: definition.clone(),
            by: By::Proxy(before),
            at: reply.sent_before(),
        });
    }

    /// What another client left under this name, or may have left, is none of this one's.
    fn close_anothers(&self, name: &str, known: &mut Known, reply: &mut Reply, out: &mut BytesMut) {
        if let Some(before) = known.statements.remove(name) {
            inject_close(name, before, reply, out);
        }
    }

    /// What others prepared is closed where it would be shown, when it is too late to introduce the session's own.
    pub(super) fn close_others(&self, known: &mut Known, reply: &mut Reply, out: &mut BytesMut) {
        known.statements.retain(|name, there| {
            let own = self.statements.confirmed(name).map(|own| own.id);
            // What the batch has dealt with already is its own, whatever was there before.
            let is_open = !name.is_empty() && !self.statements.is_sent(name);
            let is_others = is_open && there.is_some() && *there != own;
            if is_others {
                inject_close(name, *there, reply, out);
            }
            !is_others
        });
    }
}
