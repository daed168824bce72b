//! Getting from "where a segment has to run" to a server connection that is ready for it, waiting where
//! there is none yet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::topology::Backend;
use pgherd_common::{NodeId, Topology};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::pool::Turn;
use crate::routing::{self, Choice, Need, View};
use crate::session::{Segment, Wanted};
use crate::sqlstate::Trouble;
use crate::topology::{Fate, Role, fate};
use crate::upstream::{ConnectError, QueryError};

use crate::wire::backend::Severity;
use crate::wire::frontend;

use super::pooled::Queued;
use super::state::{Client, Gone};

/// How long until a server that is not ready is tried again, when no news comes first.
const RETRY: Duration = Duration::from_millis(50);

/// A choice, free of what it was chosen from.
#[derive(Debug)]
pub(super) enum Goal {
    Node(Arc<Topology>, NodeId, Role),
    Wait,
}

impl Client {
    /// A connection for the login: to the primary, or else to a standby.
    pub(super) async fn reach_any(&mut self) -> Result<Result<NodeId, Trouble>, Gone> {
        let segment = Segment::default();
        self.reach(&segment, Wanted::Any).await
    }

    /// A connection where `segment` can run now: with the session's settings, and with the statements
    /// that the segment uses. Held until there is one, within the hold timeout.
    pub(super) async fn reach(
        &mut self,
        segment: &Segment,
        wanted: Wanted,
    ) -> Result<Result<NodeId, Trouble>, Gone> {
        self.session.expect(segment);
        if let Some(node) = self.reach_at_once(segment, self.session.as_pinned(wanted)) {
            return Ok(Ok(node));
        }
        Box::pin(self.reach_by_and_by(segment, wanted)).await
    }

    async fn reach_by_and_by(
        &mut self,
        segment: &Segment,
        wanted: Wanted,
    ) -> Result<Result<NodeId, Trouble>, Gone> {
        let begun = Instant::now();
        let mut deadline = begun + self.config.hold_timeout;
        let mut closed = BTreeSet::new();
        loop {
            self.heed()?;
            if !matches!(wanted, Wanted::Stay(_)) && self.shared.pauses.holds(self.account.database()) {
                let begun = Instant::now();
                if let Some(trouble) = self.wait_for_resume().await? {
                    return Ok(Err(trouble));
                }
                deadline += begun.elapsed();
            }
            self.reap();
            self.heed()?;
            // It may have turned out meanwhile that standbys cannot serve this session.
            let wanted = self.session.as_pinned(wanted);
            let attempt = match self.goal(wanted, &closed) {
                Ok(Goal::Wait) => None,
                Ok(Goal::Node(topology, node, role)) => {
                    let Some(backend) = topology.backend(node) else { continue };
                    let way = match self.queue_for(backend, role, &mut deadline).await? {
                        Queued::Open => None,
                        Queued::Turn(turn) => Some(turn),
                        // It is looked again at once where to go.
                        Queued::Changed => continue,
                        Queued::Trouble(trouble) => return Ok(Err(trouble)),
                    };
                    self.heed()?;
                    self.try_reach(backend, role, way, segment, deadline, &mut closed).await
                }
                Err(trouble) => return Ok(Err(trouble)),
            };
            if let Some(settled) = attempt {
                return Ok(settled);
            }
            if Instant::now() >= deadline {
                let held_ms = begun.elapsed().as_millis();
                return Ok(Err(Trouble::NoServer { primary: wanted == Wanted::Writer, held_ms }));
            }
            if let Some(trouble) = self.wait_for_news(deadline).await? {
                return Ok(Err(trouble));
            }
        }
    }

    /// Where to go by the newest topology, and rather not to a standby that is `closed` to this session.
    pub(super) fn goal(&mut self, wanted: Wanted, closed: &BTreeSet<NodeId>) -> Result<Goal, Trouble> {
        let Some(topology) = self.topology.borrow().clone() else { return Ok(Goal::Wait) };
        let shares = &self.config.shares;
        let lags = shares.limits_lag().then(|| self.shared.cluster.lags());
        let mut avoided = self.shared.cluster.avoided();
        if !closed.is_empty() {
            avoided.extend(closed);
        }
        let backed = self.shared.cluster.is_backed();
        let (lags, avoided, load) = (lags.as_deref(), &avoided, &self.places);
        let view = View { topology: &topology, shares, lags, avoided, load, backed };
        let generation = topology.version().generation;
        let choose = |need: Need| routing::choose(need, &view, rand::random());
        let choice = match wanted {
            Wanted::Stay(node) => return self.stay(node),
            Wanted::Any => {
                if let Some(open) = self.any_open() {
                    return Ok(open);
                }
                match choose(Need::Write) {
                    Choice::Wait => choose(Need::Read),
                    found => found,
                }
            }
            Wanted::Reader => choose(Need::Read),
            Wanted::Writer => choose(Need::Write),
        };
        let (node, role) = match choice {
            Choice::Primary(backend) => (backend.id, Role::Primary(generation)),
            Choice::Standby(backend) => (backend.id, Role::Standby),
            Choice::Wait => return Ok(Goal::Wait),
        };
        Ok(Goal::Node(topology, node, role))
    }

    fn stay(&mut self, node: NodeId) -> Result<Goal, Trouble> {
        let topology = self.topology.borrow().clone();
        let topology = topology.filter(|topology| topology.backend(node).is_some());
        match (self.servers.get(node), topology) {
            (Some(server), Some(topology)) => Ok(Goal::Node(topology, node, server.role)),
            // It was just closed, and the session noted what that means.
            _ => Err(self.session.take_trouble().unwrap_or(Trouble::NoServer { primary: false, held_ms: 0 })),
        }
    }

    /// An open connection, to the primary if there is one.
    fn any_open(&self) -> Option<Goal> {
        let topology = self.topology.borrow().clone()?;
        let open = self.servers.values().filter(|server| {
            let known = topology.backend(server.node).is_some();
            known && fate(&topology, server.node, server.role) == Fate::Keep
        });
        let (node, role) = open
            .min_by_key(|server| server.role == Role::Standby)
            .map(|server| (server.node, server.role))?;
        Some(Goal::Node(topology, node, role))
    }

    /// `None` when it is worth trying again.
    async fn try_reach(
        &mut self,
        backend: &Backend,
        role: Role,
        way: Option<Turn>,
        segment: &Segment,
        deadline: Instant,
        closed: &mut BTreeSet<NodeId>,
    ) -> Option<Result<NodeId, Trouble>> {
        let node = backend.id;
        if let Some(turn) = way {
            let opened = timeout_at(deadline, self.open(backend, role, turn)).await;
            match opened {
                Err(_) => return None,
                Ok(Ok(())) => {}
                // Another standby, or the primary, may well let this session in; but each is asked once.
                Ok(Err(error)) if role == Role::Standby && closed.insert(node) => {
                    tracing::info!(server = %backend.name, error = %Chain(&error), "a standby is closed to a session");
                    if error.concerns_everybody() {
                        self.shared.cluster.avoid(node);
                    }
                    return None;
                }
                Ok(Err(error)) => return self.on_connect_error(backend, error),
            }
        }
        let known = self.servers.get(node).map(|server| &server.known);
        if known.is_some_and(|known| self.session.is_up_to_date(segment, known)) {
            return self.is_of_use(node).then_some(Ok(node));
        }
        match timeout(self.config.connect_timeout, self.bring_up_to_date(node, segment)).await {
            // The topology may have changed while the connection was opened and prepared.
            Ok(Ok(())) => self.is_of_use(node).then_some(Ok(node)),
            Ok(Err(QueryError::Refused(error))) if error.severity != Severity::Fatal => {
                tracing::info!(server = %backend.name, user = self.user, error = error.message, "a setting of the session is refused");
                self.drop_server(node, "a setting could not be replayed");
                if role == Role::Standby {
                    // It may be behind, and know a role only later; or it is this session's fault, not the server's.
                    closed.insert(node);
                    self.session.note_refusal();
                    return None;
                }
                self.session.forget_settings();
                Some(Err(Trouble::ServerEnded(Box::new(error))))
            }
            Ok(Err(error)) => {
                tracing::warn!(server = %backend.name, error = %Chain(&error), "session state could not be replayed");
                self.shared.cluster.avoid(node);
                self.drop_server(node, "session state could not be replayed");
                None
            }
            Err(_) => {
                self.drop_server(node, "session state was not replayed in time");
                None
            }
        }
    }

    fn on_connect_error(&self, backend: &Backend, error: ConnectError) -> Option<Result<NodeId, Trouble>> {
        let server = backend.name.clone();
        tracing::info!(%server, error = %Chain(&error), "no connection to server");
        if error.is_passing() {
            self.shared.cluster.avoid(backend.id);
            return None;
        }
        if matches!(error, ConnectError::Scram(_)) {
            self.shared.verifiers.doubt(&self.user);
        }
        Some(Err(match error {
            ConnectError::Refused(error) => {
                if error.code.starts_with("28") {
                    self.shared.verifiers.doubt(&self.user);
                }
                Trouble::ConnectionRefused(Box::new(error))
            }
            ConnectError::Frame(_) | ConnectError::Content(_) => Trouble::ServerProtocol { server },
            // What is wrong with a certificate is for the log: it names addresses.
            ConnectError::Dial(error) => Trouble::ServerLogin { server, why: error.to_string() },
            other => Trouble::ServerLogin { server, why: Chain(&other).to_string() },
        }))
    }

    /// Has a connection follow the session's settings and learn the statements that SQL names.
    async fn bring_up_to_date(&mut self, node: NodeId, segment: &Segment) -> Result<(), QueryError> {
        let Some(server) = self.servers.get_mut(node) else { return Ok(()) };
        let replay = self.session.replay(&server.known);
        for sql in &replay {
            frontend::put_query(&mut server.pipe.output, sql);
        }
        for _ in &replay {
            server.ask().await?;
        }
        self.session.on_replayed(&mut server.known);
        self.introduce(node, segment).await
    }

    /// Waits for another topology, for a moment, or for the client to lose patience.
    async fn wait_for_news(&mut self, deadline: Instant) -> Result<Option<Trouble>, Gone> {
        self.pipe.flush().await?;
        let slot = self.slot.clone();
        let room = self.pipe.input.len() < crate::session::LARGE;
        tokio::select! {
            // First: it is told once.
            biased;
            () = slot.cancelled() => Ok(Some(Trouble::Cancelled)),
            _ = self.topology.changed() => Ok(None),
            () = sleep(RETRY.min(deadline.saturating_duration_since(Instant::now()))) => Ok(None),
            result = self.pipe.fill(), if room => Ok(result.map(|()| None)?),
        }
    }
}
