//! Reads see what the session wrote: the primary is asked for its position in one go with what may commit,
//! or else behind its answer, and a standby serves the session once it has replayed that far.

use std::time::Duration;

use pgherd_common::{Generation, NodeId};
use tokio::time::{Instant, sleep};

use crate::session::{Batch, Consistency, Freshness, LARGE, Segment, Wanted};
use crate::sqlstate::Trouble;
use crate::topology::Role;
use crate::upstream::{Heard, Server};

use super::flow::Flow;
use super::state::{Client, Gone};

/// Between two looks at a standby that is behind; twice as long each time, up to the second.
const PAUSE_MIN: Duration = Duration::from_micros(250);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// How a wait on behalf of a statement ended.
pub(super) enum Waited {
    /// It is over.
    Done,
    /// The statement is not to be run.
    Trouble(Trouble),
}

/// What came of a look at the standby that was chosen for a read.
pub(super) enum Look {
    /// It has all that the session must see.
    Fresh,
    /// The primary has to serve.
    Behind,
    /// The statement is not to be run.
    Trouble(Trouble),
}

impl Client {
    pub(super) fn consistency(&self) -> Consistency {
        self.session.consistency(self.own.read_consistency)
    }

    /// Whether the server is asked for its position in one go with `segment`.
    pub(super) fn asks_along(&self, segment: &Segment, server: &Server) -> bool {
        matches!(server.role, Role::Primary(_))
            && self.session.settles(segment)
            && self.consistency() != Consistency::Eventual
    }

    /// Agents want to know how soon a new primary has answered a write.
    pub(super) fn note_first_write(&self, flow: &Flow, role: Role) {
        if let Role::Primary(generation) = role
            && self.shared.cluster.awaits_write(generation)
            && flow.batch.has_written(&flow.reply)
        {
            self.shared.cluster.wrote(generation);
        }
    }

    /// Asks for the position of what the batch may have committed.
    pub(super) async fn note_writes(&mut self, batch: &Batch, was_open: bool, server: &mut Server) {
        if !matches!(server.role, Role::Primary(_)) || self.session.tx_node().is_some() {
            return;
        }
        if self.session.may_have_committed(batch, was_open) || self.session.floor.is_doubtful() {
            if self.owed.is_some() {
                // Nothing may be said to the server in the middle of a message.
                self.session.floor.doubt();
            } else {
                self.ask_position(server).await;
            }
        }
    }

    /// Something may have been committed on the primary: asks it how far that is. The answer is taken in
    /// when it comes, or waited for when it is needed.
    pub(super) async fn ask_position(&mut self, server: &mut Server) {
        self.session.floor.doubt();
        // Should the session want it after all, its next read goes to the primary, and asks then.
        if self.consistency() == Consistency::Eventual {
            return;
        }
        server.ask_position(self.session.commits_lazily(), self.session.acts_as_login());
        // Whether the connection is broken is found out when it is used.
        drop(server.pipe.flush().await);
    }

    /// The same for a connection at rest.
    async fn ask_position_of(&mut self, node: NodeId) {
        if let Some(mut server) = self.servers.remove(node) {
            if matches!(server.role, Role::Primary(_)) {
                self.ask_position(&mut server).await;
            }
            self.servers.insert(server);
        }
    }

    /// Waits for what a server was asked. Notices and notifications that come with it go to the client.
    /// That the client may have left meanwhile is no reason to stop: what it sent before is run, as a server
    /// would run it.
    pub(super) async fn settle(&mut self, node: NodeId) -> Waited {
        let due = |server: &Server| server.questions.are_due();
        if !self.servers.get(node).is_some_and(due) {
            return Waited::Done;
        }
        let late = sleep(self.config.connect_timeout);
        tokio::pin!(late);
        while self.servers.get(node).is_some_and(due) {
            let Some(server) = self.servers.get_mut(node) else { break };
            tokio::select! {
                biased;
                () = self.slot.cancelled() => return Waited::Trouble(Trouble::Cancelled),
                result = server.pipe.fill() => self.on_server_news(node, result),
                _ = self.topology.changed() => self.reap(),
                () = &mut late => self.drop_server(node, "it did not tell its position in time"),
            }
        }
        Waited::Done
    }

    /// A server answered what it was asked.
    pub(super) fn on_heard(&mut self, node: NodeId, heard: Heard) {
        let Some(server) = self.servers.get_mut(node) else { return };
        match (heard, server.role) {
            (Heard::Position(at), Role::Primary(generation)) => {
                self.session.floor.learn(at, generation);
                self.shared.cluster.note_position(at, generation);
            }
            (Heard::Lazy, _) => self.session.floor.doubt(),
            (Heard::Replayed(Some(at)), _) => server.replayed = at,
            (Heard::Replayed(None), _) => self.drop_server(node, "it is no standby any more"),
            (Heard::Position(_) | Heard::Xid(_) | Heard::Nothing | Heard::Unasked, _) => {}
        }
    }

    /// A session begins: what was committed before it came is seen by it, too. Without a primary to ask
    /// that is what this proxy knows of.
    pub(super) async fn begin_floor(&mut self, node: NodeId) {
        let (generation, at) = self.shared.cluster.position();
        self.session.floor.learn(at, generation);
        self.ask_position_of(node).await;
    }

    /// Where a read goes when the position of the session's last commit is considered, too.
    pub(super) async fn with_regard_to_writes(
        &mut self,
        wanted: Wanted,
    ) -> Result<Result<Wanted, Trouble>, Gone> {
        if wanted != Wanted::Reader || self.consistency() == Consistency::Eventual {
            return Ok(Ok(wanted));
        }
        let primary = self.servers.values().find(|server| matches!(server.role, Role::Primary(_)));
        let mut primary = primary.map(|server| server.node);
        if self.consistency() == Consistency::Global {
            if primary.is_none() {
                primary = self.reach(&Segment::default(), Wanted::Writer).await?.ok();
            }
            if let Some(node) = primary {
                if let Waited::Trouble(trouble) = self.settle(node).await {
                    return Ok(Err(trouble));
                }
                self.ask_position_of(node).await;
            }
            self.session.floor.doubt();
        }
        if let Some(node) = primary
            && let Waited::Trouble(trouble) = self.settle(node).await
        {
            return Ok(Err(trouble));
        }
        Ok(Ok(self.as_written(wanted)))
    }

    /// Where a read goes, by what is known of the session's last commit: no standby can be told to have it as long as
    /// its position is not known.
    pub(super) fn as_written(&self, wanted: Wanted) -> Wanted {
        let blind = self.consistency() != Consistency::Eventual && self.session.floor.is_doubtful();
        if wanted == Wanted::Reader && blind { Wanted::Writer } else { wanted }
    }

    /// Whether `node` has all that the session must see, as far as that is known without asking; `None` without a
    /// connection there.
    pub(super) fn freshness(&self, node: NodeId) -> Option<Freshness> {
        let server = self.servers.get(node)?;
        Some(if server.role != Role::Standby || self.consistency() == Consistency::Eventual {
            Freshness::Fresh
        } else {
            self.session.floor.judge(server.replayed, self.generation())
        })
    }

    /// Whether `node` has all that the session must see; a standby that has not is given some time.
    pub(super) async fn look_for_writes(&mut self, node: NodeId) -> Result<Look, Gone> {
        let (patience, mut begun, mut pause) = (self.config.causal_wait, None, PAUSE_MIN);
        loop {
            match self.freshness(node) {
                None => return Ok(Look::Behind),
                Some(Freshness::Fresh) => return Ok(Look::Fresh),
                Some(Freshness::Unknown) if begun.is_some() => return Ok(Look::Behind),
                Some(Freshness::Unknown | Freshness::Behind) => {}
            }
            match begun {
                None => begun = Some(Instant::now()),
                Some(begun) if begun.elapsed() >= patience => return Ok(Look::Behind),
                Some(_) => {
                    if let Waited::Trouble(trouble) = self.pause(pause).await? {
                        return Ok(Look::Trouble(trouble));
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            if let Some(trouble) = self.ask_replayed(node).await {
                return Ok(Look::Trouble(trouble));
            }
        }
    }

    /// Asks a standby how far it has replayed. Without an answer it is gone.
    async fn ask_replayed(&mut self, node: NodeId) -> Option<Trouble> {
        let server = self.servers.get_mut(node)?;
        if !server.questions.are_due() {
            server.questions.ask_replayed(&mut server.pipe.output);
        }
        // Whether the connection is broken is found out in a moment.
        drop(server.pipe.flush().await);
        let waited = self.settle(node).await;
        if !self.servers.has(node) {
            self.shared.cluster.avoid(node);
        }
        match waited {
            Waited::Done => None,
            Waited::Trouble(trouble) => Some(trouble),
        }
    }

    /// Lets some time pass before a read, or less if something happens. Nobody misses a read whose client
    /// left.
    async fn pause(&mut self, span: Duration) -> Result<Waited, Gone> {
        let room = self.pipe.input.len() < LARGE;
        tokio::select! {
            biased;
            () = self.slot.cancelled() => return Ok(Waited::Trouble(Trouble::Cancelled)),
            () = sleep(span) => {}
            _ = self.topology.changed() => self.reap(),
            result = self.pipe.fill(), if room => result?,
        }
        Ok(Waited::Done)
    }

    pub(super) fn generation(&self) -> Generation {
        self.topology.borrow().as_ref().map(|topology| topology.version().generation).unwrap_or_default()
    }
}
