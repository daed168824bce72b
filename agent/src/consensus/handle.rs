//! The running group member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use openraft::{BasicNode, ChangeMembers, Instant as _, TokioInstant};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, HostPort, MonoTime, NodeId};
use pgherd_core::quorum::Admission;
use tokio::sync::watch;

use super::acks::AckClock;
use super::admission::{Keeper, is_voter_again};
use super::errors::{AdmissionError, FormError, OpenError, ProposeError, RegroupError, TransferError};
use super::network::{Peers, routes};
use super::options::Options;
use super::standing::Standing;
use super::store::{Store, Writer};
use super::types::{Group, Proposal, Raft};
use crate::cluster::{Applied, ClusterState, Command};
use crate::roster::Roster;

/// This node's part in the group. Clones are the same part.
#[derive(Clone)]
pub struct Consensus {
    options: Arc<Options>,
    roster: Roster,
    pub(super) raft: Raft,
    state: watch::Receiver<Arc<ClusterState>>,
    standing: watch::Receiver<Standing>,
    pub(super) acked: watch::Receiver<Option<MonoTime>>,
    pub(super) admission: Keeper,
    pub(super) writer: Writer,
}

impl Consensus {
    /// Opens the store, or creates it, and takes part in the group if there is one. Does not form one.
    /// The other agents' messages must arrive at [`routes`](Self::routes).
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Stored::open(options).await?.take_part().await
    }

    async fn start(stored: Stored) -> Result<Self, OpenError> {
        let Stored { options, store, roster } = stored;
        let mut config = options.config()?;
        let peers = Peers::new(&options, roster.clone())?;
        let start = |reason: String| OpenError::Start { dir: options.dir.clone(), reason };
        // In the past that a lost store is filled with, this node is a voter: it must not stand for
        // election on the strength of that.
        config.enable_elect = store.admission == Admission::Full;
        let raft = Raft::new(options.node.0, Arc::new(config), peers, store.log, store.machine)
            .await
            .map_err(|error| start(error.to_string()))?;
        let (cluster, writer) = (options.cluster.clone(), store.writer);
        let admission = Keeper::new(cluster, options.node, store.admission, writer.clone());
        let (standing, acked) = follow(&raft, &admission);
        tokio::spawn(await_return(raft.clone(), options.node, admission.clone(), store.state.clone()));
        Ok(Self { options, roster, raft, state: store.state, standing, acked, admission, writer })
    }

    /// Who takes part.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The applied state; changes whenever a command changed it.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Where this node stands.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// When the newest message that a majority answered was *sent*, if this node leads: up to then a
    /// majority surely followed it, so whatever it grants has to be counted from there. `None`: no
    /// majority has answered that this node knows of. Grows old at once when this leader is cut off.
    pub fn quorum_acked(&self) -> Option<MonoTime> {
        *self.acked.borrow()
    }

    /// Nothing was forgotten: no other member belongs to a group. From now on a group may be formed
    /// with this node.
    pub async fn nothing_forgotten(&self) -> Result<(), AdmissionError> {
        self.admission.change(&self.raft, Admission::Undecided, Admission::Full).await.map(|_| ())
    }

    /// Others belong to a group that this node has forgotten: it waits to be let in again.
    pub async fn has_forgotten(&self) -> Result<(), AdmissionError> {
        let probation = Admission::Probation(rand::random());
        self.admission.change(&self.raft, Admission::Undecided, probation).await.map(|_| ())
    }

    /// The log has let this node in again with the store of this number: it may be fed. Returns false if
    /// that was so already, or the number is not this store's.
    pub async fn rejoin(&self, token: u64) -> Result<bool, AdmissionError> {
        self.admission.change(&self.raft, Admission::Probation(token), Admission::Learner(token)).await
    }

    /// Forms the group of all configured members, unless there is one. Every member may call it, as
    /// long as all have the same list.
    pub async fn form(&self) -> Result<(), FormError> {
        let members = self.options.members.iter();
        let members: BTreeMap<u64, BasicNode> =
            members.map(|(node, contact)| (node.0, BasicNode::new(&contact.agent))).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(FormError::NotAMember(self.options.node))
            }
            Err(RaftError::Fatal(fatal)) => Err(FormError::Stopped(fatal.to_string())),
        }
    }

    /// Writes a command to the log and says what became of it once it is applied here. Bounded in time.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let bound = self.options.propose_timeout();
        let Ok(written) = tokio::time::timeout(bound, self.raft.client_write(Proposal(command))).await else {
            return Err(ProposeError::Timeout(bound));
        };
        match written {
            Ok(response) => Ok(response.data),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward))) => {
                Err(ProposeError::Overtaken { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(self.redirect(&forward))
            }
            // Neither is ever asked for by a command, so the command was not taken.
            Err(RaftError::APIError(
                ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_),
            )) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// A leader that hears no majority sends its callers nowhere.
    fn redirect(&self, forward: &ForwardToLeader<Group>) -> ProposeError {
        match forward.leader_id {
            None if self.standing.borrow().is_leader => ProposeError::NoQuorum,
            leader => ProposeError::NotLeader { leader: leader.map(NodeId) },
        }
    }

    /// Has exactly these vote. Whoever loses its vote goes on being fed the log, so that it can come
    /// back. Returns when the change is in force; safe to call again after any outcome. Bounded in time.
    pub async fn change_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), RegroupError> {
        let bound = self.options.propose_timeout();
        let wanted: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
        // Two entries: the old and the new voters together, then the new ones alone.
        let change = tokio::time::timeout(bound * 2, self.raft.change_membership(wanted, true)).await;
        regrouped(change.map(|change| change.map(drop)), bound * 2)
    }

    /// Has a node without a vote be fed the log; that it has anything of it is not waited for. Safe to call again. Bounded
    /// in time.
    pub async fn add_learner(&self, node: NodeId, agent: &HostPort) -> Result<(), RegroupError> {
        let bound = self.options.propose_timeout();
        let added = self.raft.add_learner(node.0, BasicNode::new(agent), false);
        regrouped(tokio::time::timeout(bound, added).await.map(|added| added.map(drop)), bound)
    }

    /// Has a node without a vote be fed no longer. Safe to call again. Bounded in time.
    pub async fn drop_node(&self, node: NodeId) -> Result<(), RegroupError> {
        let bound = self.options.propose_timeout();
        let gone = ChangeMembers::RemoveNodes([node.0].into());
        let dropped = self.raft.change_membership(gone, false);
        regrouped(tokio::time::timeout(bound, dropped).await.map(|dropped| dropped.map(drop)), bound)
    }

    /// Asks another voter to take over the leadership. Returns when it has been asked; whether it took
    /// over shows in [`standing`](Self::standing).
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), TransferError> {
        {
            let standing = self.standing.borrow();
            if !standing.is_leader {
                return Err(TransferError::NotLeader { leader: standing.leader });
            }
            if !standing.voters.contains(&to) {
                return Err(TransferError::NotAVoter(to));
            }
        }
        self.raft
            .trigger()
            .transfer_leader(to.0)
            .await
            .map_err(|fatal| TransferError::Stopped(fatal.to_string()))
    }

    /// Where the other agents' messages arrive: to be served at the address the members have for
    /// this node.
    pub fn routes(&self) -> Router {
        let admission = self.admission.watch();
        routes(self.raft.clone(), self.options.node, self.options.cluster.clone(), admission)
    }

    /// Stops taking part and closes the store.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!("raft did not stop in order: {error}");
        }
        self.writer.close().await;
    }
}

/// A store that was opened, of a node that does not take part yet.
pub struct Stored {
    options: Arc<Options>,
    store: Store,
    roster: Roster,
}

impl Stored {
    /// Opens the store, or creates it.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        // What would be refused leaves nothing behind.
        options.config()?;
        if !options.members.contains_key(&options.node) {
            return Err(OpenError::NotAMember(options.node));
        }
        let new = if options.remembers { Admission::Probation(rand::random()) } else { Admission::Undecided };
        let options = Arc::new(options);
        let opening = Arc::clone(&options);
        let opened = tokio::task::spawn_blocking(move || {
            Store::open(&opening.dir, &opening.cluster, opening.node, new)
        })
        .await;
        let start = |error: tokio::task::JoinError| OpenError::Start {
            dir: options.dir.clone(),
            reason: error.to_string(),
        };
        let store = opened.map_err(start)??;
        let roster = Roster::new(options.members.clone(), store.state.clone());
        Ok(Self { options, store, roster })
    }

    /// Opens the store if there is one.
    pub async fn existing(options: Options) -> Result<Option<Self>, OpenError> {
        if Store::exists(&options.dir) { Self::open(options).await.map(Some) } else { Ok(None) }
    }

    /// Who takes part, as far as the store tells.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Takes part in the group if there is one.
    pub async fn take_part(self) -> Result<Consensus, OpenError> {
        Consensus::start(self).await
    }
}

/// What became of a change of the group.
fn regrouped<E>(
    ended: Result<Result<(), RaftError<Group, ClientWriteError<Group>>>, E>,
    bound: Duration,
) -> Result<(), RegroupError> {
    match ended {
        Err(_) => Err(RegroupError::Timeout(bound)),
        Ok(Ok(())) => Ok(()),
        Ok(Err(RaftError::Fatal(fatal))) => Err(RegroupError::Stopped(fatal.to_string())),
        Ok(Err(RaftError::APIError(
            ClientWriteError::ForwardToLeader(forward) | ClientWriteError::LogEntryDiscarded(forward),
        ))) => Err(RegroupError::NotLeader { leader: forward.leader_id.map(NodeId) }),
        Ok(Err(RaftError::APIError(
            refused @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
        ))) => Err(RegroupError::Refused(refused.to_string())),
    }
}

/// Translates what the library tells of itself, for as long as it runs.
fn follow(raft: &Raft, admission: &Keeper) -> (watch::Receiver<Standing>, watch::Receiver<Option<MonoTime>>) {
    let (mut metrics, mut admission) = (raft.metrics(), admission.watch());
    let first = Standing::new(&metrics.borrow_watched(), *admission.borrow());
    let (standing, standing_seen) = watch::channel(first);
    let (acked, acked_seen) = watch::channel(None);
    tokio::spawn(async move {
        let mut clock = AckClock::default();
        loop {
            let (now, latest) = {
                let metrics = metrics.borrow_and_update();
                let mono = RealClock.now();
                clock.sample(TokioInstant::now(), mono);
                let worth = *admission.borrow_and_update();
                (Standing::new(&metrics, worth), metrics.last_quorum_acked.map(|acked| acked.into_inner()))
            };
            acked.send_replace(clock.observe(latest.filter(|_| now.is_leader)));
            standing.send_if_modified(|shown| {
                let changed = *shown != now;
                if changed {
                    *shown = now;
                }
                changed
            });
            let stopped = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                changed = admission.changed() => changed.is_err(),
            };
            if stopped {
                // Raft has stopped. What was last said of it stays readable.
                standing.closed().await;
                return;
            }
        }
    });
    (standing_seen, acked_seen)
}

/// Lets this node vote again as soon as it has learned that it may.
async fn await_return(
    raft: Raft,
    node: NodeId,
    admission: Keeper,
    mut state: watch::Receiver<Arc<ClusterState>>,
) {
    let (mut metrics, mut changes) = (raft.metrics(), admission.watch());
    loop {
        let worth = *changes.borrow_and_update();
        if let Admission::Learner(token) = worth {
            let known = state.borrow_and_update().clone();
            let back = is_voter_again(node, token, &known, &metrics.borrow_and_update());
            if back {
                match admission.change(&raft, worth, Admission::Full).await {
                    Ok(_) => tracing::info!("this node has its vote back"),
                    Err(error) => {
                        tracing::error!("{}", pgherd_common::errors::Chain(&error));
                        return;
                    }
                }
            }
        }
        let ended = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            changed = state.changed() => changed.is_err(),
            changed = metrics.changed() => changed.is_err(),
        };
        if ended || worth == Admission::Full {
            return;
        }
    }
}
