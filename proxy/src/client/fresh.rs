//! Reads see what the session wrote: after each commit the primary is asked for its position while the
//! client already has its answer, and a standby serves the session once it has replayed that far.

use std::time::Duration;

use pgherd_common::{Generation, Lsn, NodeId};
use tokio::time::{Instant, sleep, timeout};

use crate::session::{Consistency, Freshness, Segment, Wanted};
use crate::topology::Role;
use crate::upstream::Server;

use super::state::{Client, Gone};

/// Between two looks at a standby that is behind; twice as long each time, up to the second.
const PAUSE_MIN: Duration = Duration::from_micros(250);
const PAUSE_MAX: Duration = Duration::from_millis(5);

impl Client {
    pub(super) fn consistency(&self) -> Consistency {
        self.session.consistency(self.own.read_consistency)
    }

    /// Something may have been committed on the primary: asks it how far that is. The answer is taken in
    /// when it comes, or waited for when it is needed.
    pub(super) async fn ask_position(&mut self, server: &mut Server) {
        self.session.floor.doubt();
        // Should the session want it after all, its next read goes to the primary, and asks then.
        if self.consistency() == Consistency::Eventual {
            return;
        }
        server.ask_position(self.session.commits_lazily());
        // Whether the connection is broken is found out when it is used.
        drop(server.pipe.flush().await);
    }

    /// The same for a connection at rest.
    pub(super) async fn ask_position_of(&mut self, node: NodeId) {
        if let Some(mut server) = self.servers.remove(&node) {
            if matches!(server.role, Role::Primary(_)) {
                self.ask_position(&mut server).await;
            }
            self.servers.insert(node, server);
        }
    }

    /// Waits for the position that a server was asked for. Notices and notifications that come with it
    /// go to the client.
    pub(super) async fn settle_position(&mut self, node: NodeId) {
        let limit = self.config.connect_timeout;
        while self.servers.get(&node).is_some_and(|server| server.position_asked) {
            let Some(server) = self.servers.get_mut(&node) else { return };
            match timeout(limit, server.pipe.fill()).await {
                Ok(result) => self.on_server_news(node, result),
                Err(_) => self.drop_server(node, "it did not tell its position in time"),
            }
        }
    }

    /// A server told its position.
    pub(super) fn on_position(&mut self, node: NodeId, at: Option<Lsn>) {
        let role = self.servers.get(&node).map(|server| server.role);
        if let (Some(at), Some(Role::Primary(generation))) = (at, role) {
            self.session.floor.learn(at, generation);
            self.shared.cluster.note_position(at, generation);
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
    pub(super) async fn with_regard_to_writes(&mut self, wanted: Wanted) -> Result<Wanted, Gone> {
        if wanted != Wanted::Reader || self.consistency() == Consistency::Eventual {
            return Ok(wanted);
        }
        let primary = self.servers.values().find(|server| matches!(server.role, Role::Primary(_)));
        let mut primary = primary.map(|server| server.node);
        if self.consistency() == Consistency::Global {
            self.session.floor.doubt();
            if primary.is_none() {
                primary = self.reach(&Segment::default(), Wanted::Writer).await?.ok();
            }
            if let Some(node) = primary {
                self.settle_position(node).await;
                self.ask_position_of(node).await;
            }
        }
        if let Some(node) = primary {
            self.settle_position(node).await;
        }
        Ok(if self.session.floor.is_doubtful() { Wanted::Writer } else { wanted })
    }

    /// Whether `node` has all that the session must see; a standby that has not is given some time.
    pub(super) async fn is_fresh(&mut self, node: NodeId) -> bool {
        let begun = Instant::now();
        let (limit, patience) = (self.config.connect_timeout, self.config.causal_wait);
        let mut pause = PAUSE_MIN;
        loop {
            let generation = self.generation();
            let eventual = self.consistency() == Consistency::Eventual;
            let Some(server) = self.servers.get_mut(&node) else { return false };
            if server.role != Role::Standby || eventual {
                return true;
            }
            if self.session.floor.judge(server.replayed, generation) == Freshness::Fresh {
                return true;
            }
            match timeout(limit, server.look_at_replay()).await {
                // Whatever it is, it is no standby any more.
                Ok(Ok(None)) => return false,
                Ok(Ok(Some(replayed))) => server.replayed = replayed,
                Ok(Err(_)) | Err(_) => {
                    self.shared.cluster.avoid(node);
                    self.drop_server(node, "it did not tell how far it has replayed");
                    return false;
                }
            }
            match self.session.floor.judge(server.replayed, generation) {
                Freshness::Fresh => return true,
                Freshness::Behind if begun.elapsed() < patience => {}
                Freshness::Behind | Freshness::Unknown => return false,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn generation(&self) -> Generation {
        self.topology.borrow().as_ref().map(|topology| topology.version().generation).unwrap_or_default()
    }
}
