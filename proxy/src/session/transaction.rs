//! An open transaction that moves from one server to another.

use bytes::BytesMut;
use pgherd_common::{NodeId, NodeName};

use crate::sql::Effect;
use crate::sqlstate::Trouble;
use crate::wire::backend::TxStatus;
use crate::wire::frontend;

use super::statements::{By, Expected};
use super::{Batch, Reply, Segment, Session, Tx};

/// Longer beginnings are not remembered, in bytes.
const BEGINNING_MAX: usize = 1024;

/// The unnamed portal of the open transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Portal {
    #[default]
    Missing,
    There,
    /// The transaction moved, and has one in its place: once it fails, what it is does not matter any more.
    StandIn,
}

impl Session {
    /// Whether there is something that the next statement has to be answered with.
    pub fn has_trouble(&self) -> bool {
        self.lost.is_some()
    }

    /// Why the open transaction is lost, if it is.
    pub fn take_trouble(&mut self) -> Option<Trouble> {
        self.lost.take()
    }

    /// Trouble that the next statement has to be answered with, unless all it does is to roll back.
    pub fn take_lost(&mut self, segment: &Segment) -> Option<Trouble> {
        self.lost.take().filter(|_| !segment.only_rolls_back())
    }

    /// Whether all that `segment` does is to commit the open transaction, as the role that logged in.
    pub fn only_commits(&self, segment: &Segment) -> bool {
        self.tx.is_some_and(|tx| !tx.failed)
            && segment.effects == [Effect::Commit]
            && segment.told.statements == 1
            && segment.runs_one()
            && self.settles(segment)
            && self.acts_as_login()
    }

    /// Whether it has the rights of the role that logged in.
    pub fn acts_as_login(&self) -> bool {
        !self.settings.tell_who()
    }

    /// The open transaction, which `segment` commits, was committed.
    pub fn on_committed(&mut self, segment: &Segment) {
        self.on_answered(segment);
        (self.tx, self.has_local_settings, self.portal) = (None, false, Portal::Missing);
        self.settings.commit();
        if std::mem::take(&mut self.altered) {
            self.statements.identities.renew();
        }
    }

    /// The transaction goes on elsewhere: here it is over, and nothing was changed in it.
    pub fn detach_tx(&mut self) {
        self.tx = None;
    }

    /// What opened a transaction block, and told it to only read, is remembered until a query runs in it.
    pub(super) fn note_beginning(&mut self, batch: &Batch, status: TxStatus, was_open: bool) {
        let before = self.begun.take().filter(|_| was_open);
        let text = batch.begin.clone().filter(|_| status == TxStatus::Open);
        let ends = batch.effects.iter().any(|effect| matches!(effect, Effect::Commit | Effect::Rollback));
        self.chained = was_open && status != TxStatus::Idle && !batch.opens && (self.chained || ends);
        self.begun = match (before, text) {
            // A comment may be at the end of the first. Who says it again and again is not remembered for ever.
            (Some(before), Some(text)) if before.len() < BEGINNING_MAX => {
                Some([&before[..], b"\n;", &text[..]].concat().into())
            }
            (None, text) => text.filter(|_| !was_open),
            (Some(_), _) => None,
        };
    }

    /// Whether `batch`, which failed, may have changed the session for good before it did, so that only the
    /// server knows what holds. Also where names were freed and given to others: in which order is not known.
    pub(super) fn is_doubtful(&self, batch: &Batch, reply: &Reply) -> bool {
        let Some(completed) = reply.failed().then(|| reply.completed()) else {
            return batch.frees_at.is_some() && batch.prepares;
        };
        let any = |is: fn(&Effect) -> bool| batch.effects.iter().any(is);
        let frees = batch.frees_at.is_some_and(|at| at < completed);
        let sets = self.settings.has_pending()
            || any(|effect| matches!(effect, Effect::Set { .. } | Effect::ResetAll));
        frees || (completed > 0 && sets && any(|effect| matches!(effect, Effect::Commit)))
    }

    /// What is known of the unnamed portal, now that `batch` is over.
    pub(super) fn note_portal(&mut self, batch: &Batch, status: TxStatus, reply: &Reply) {
        self.portal = match batch.portal.filter(|_| !reply.failed()) {
            _ if status == TxStatus::Idle => Portal::Missing,
            Some(true) => Portal::There,
            Some(false) => Portal::Missing,
            None => self.portal,
        };
    }

    /// Whether the open transaction has an unnamed portal that its next server has not.
    pub fn lacks_portal(&self) -> bool {
        self.portal != Portal::Missing
    }

    /// Its new server has another one in that place.
    pub fn stand_in(&mut self) {
        self.portal = Portal::StandIn;
    }

    /// Where `segment` would find the stand-in, there is none.
    pub(super) fn before_portal(&mut self, segment: &Segment, reply: &mut Reply, out: &mut BytesMut) {
        let open = self.tx.is_some_and(|tx| !tx.failed);
        // What the batch has bound itself, on this server, is its own.
        let open = open && !self.portal_touched;
        if open && self.portal == Portal::StandIn && segment.reaches_back() {
            frontend::put_close_portal(out);
            reply.expect(Expected::Close { name: None, by: By::Proxy(None) });
            self.portal = Portal::Missing;
        }
        self.portal_touched |= segment.told.portal.is_some();
    }

    /// The text that opened the open transaction block, if nothing else ran in it.
    pub fn begun(&self) -> Option<&str> {
        self.begun.as_deref().and_then(|text| std::str::from_utf8(text).ok())
    }

    /// Whether the open transaction follows another one, whose properties it has: those outlive its failure, and others
    /// do not.
    pub fn is_chained(&self) -> bool {
        self.chained
    }

    /// It goes on at `node`.
    pub fn attach_tx(&mut self, node: NodeId) {
        self.tx = Some(Tx { node, failed: false });
    }

    /// A standby is gone. If it held the open transaction, that only read, and can go on on the primary. Whether
    /// that is so.
    pub fn strand(&mut self, node: NodeId, server: &NodeName) -> bool {
        let held = self.tx.is_some_and(|tx| tx.node == node && !tx.failed);
        if held {
            self.tx = None;
            self.stranded = Some(server.clone());
        }
        held
    }

    /// The standby whose transaction has to go on elsewhere.
    pub fn take_stranded(&mut self) -> Option<NodeName> {
        self.stranded.take()
    }
}
