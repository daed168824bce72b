//! What others want of a client while it is at something, or at nothing: to go, to wait, to follow another
//! configuration.

use std::io;

use tokio::time::timeout;

use crate::clients::{Badge, Phase};
use crate::session::{LARGE, Segment};
use crate::sqlstate::Trouble;
use crate::upstream::Server;
use crate::wire::backend::TxStatus;

use super::fresh::Waited;
use super::state::{Client, Gone};

impl Client {
    /// The client asks for something.
    pub(super) fn begin_turn(&mut self, segment: &Segment) {
        // One atomic load, as long as nothing was reloaded.
        if self.configured.has_changed().unwrap_or(false) {
            self.config = self.configured.borrow_and_update().clone();
            self.own = self.config.effective(&self.user, self.account.database());
        }
        let asked = segment.messages().filter(|(tag, _)| matches!(*tag, b'Q' | b'E' | b'F')).count();
        let badge = &self.presence.badge;
        self.slot.begins();
        badge.next_turn();
        badge.counts.queries.add(u64::try_from(asked).unwrap_or(0));
        self.note(Phase::Active);
    }

    /// It was answered.
    pub(super) fn end_turn(&mut self) {
        let counts = &self.presence.badge.counts;
        if self.session.status() == TxStatus::Idle {
            counts.transactions.add(1);
        }
        counts.bytes_in.set(self.pipe.received);
        counts.bytes_out.set(self.pipe.sent);
    }

    /// Whether it has to go: an administrator sends it away, or it has lost what it cannot do without.
    pub(super) fn heed(&mut self) -> Result<(), Gone> {
        if self.presence.badge.is_killed() {
            return Err(Gone::Trouble(Trouble::Killed));
        }
        self.bereft.take().map_or(Ok(()), |trouble| Err(Gone::Trouble(trouble)))
    }

    /// Somebody wanted something of it while nothing ran.
    pub(super) fn answer_call(&mut self) -> Result<(), Gone> {
        self.heed()?;
        // What came meanwhile is answered: only a client that says nothing is sent away for that.
        let silent = self.segment.is_empty() && self.pipe.input.is_empty();
        if !silent || !self.presence.badge.is_expired() {
            return Ok(());
        }
        let open = self.session.status() != TxStatus::Idle;
        Err(Gone::Trouble(if open { Trouble::IdleInTransaction } else { Trouble::IdleSession }))
    }

    /// Writes what the client has yet to get, unless it is sent away before it takes it.
    pub(super) async fn flush_or_go(&mut self) -> io::Result<()> {
        unless_killed(&self.presence.badge, self.pipe.flush()).await
    }

    /// Waits until what is paused is resumed. New bytes are taken in meanwhile, so that a client that leaves is
    /// noticed.
    pub(super) async fn wait_for_resume(&mut self) -> Result<Option<Trouble>, Gone> {
        if let Waited::Trouble(trouble) = self.let_go().await {
            return Ok(Some(trouble));
        }
        self.note(Phase::Paused);
        self.shared.pauses.settled.notify_waiters();
        self.flush_or_go().await?;
        let (shared, slot, badge) = (self.shared.clone(), self.slot.clone(), self.presence.badge.clone());
        let account = self.account.clone();
        let over = shared.pauses.over(account.database());
        tokio::pin!(over);
        let trouble = loop {
            let room = self.pipe.input.len() < LARGE;
            tokio::select! {
                biased;
                () = slot.cancelled() => break Some(Trouble::Cancelled),
                () = &mut over => break None,
                () = badge.bell.rung() => {
                    self.heed()?;
                    if *self.stopping.borrow() {
                        return Err(Gone::Trouble(Trouble::ShuttingDown));
                    }
                }
                result = self.pipe.fill(), if room => result?,
            }
        };
        self.note(Phase::Active);
        Ok(trouble)
    }

    /// An administrator sends the client away while something runs for it. `cut`: a message to the client is
    /// half on its way.
    pub(super) fn on_killed(&mut self, server: Box<Server>, cut: bool) -> Gone {
        let (shared, limit) = (self.shared.clone(), self.config.connect_timeout);
        tokio::spawn(async move {
            // A server looks at its client only between statements.
            drop(timeout(limit, server.interrupt(&shared.server_tls)).await);
            server.close();
        });
        if cut {
            return Gone::Io(io::Error::other("killed in the middle of a large message"));
        }
        Gone::Trouble(Trouble::Killed)
    }
}

/// Writes to a client that may never take it. What can be written at once costs nothing more.
pub(super) async fn unless_killed(
    badge: &Badge,
    writing: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(writing);
    loop {
        tokio::select! {
            biased;
            written = &mut writing => return written,
            () = badge.bell.rung() => if badge.is_killed() {
                return Err(io::Error::other("killed by an administrator"));
            },
        }
    }
}
