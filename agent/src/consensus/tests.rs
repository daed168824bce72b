//! Real groups over loopback: real stores, real HTTP, and a wire that can be cut.

mod members;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, ClusterName, Generation, HostPort, NodeId, Timeline, WallTime};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::cluster::{Applied, ClusterState, Command, Contact, Descriptor, Identity, NodeKind};

const HEARTBEAT: Duration = Duration::from_millis(75);
const ELECTION: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(800));
const RPC_TIMEOUT: Duration = Duration::from_millis(500);
/// Far more than anything here takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Nodes that nothing reaches and that reach nobody: requests wait, as if their packets were dropped.
type Cut = watch::Sender<BTreeSet<NodeId>>;

struct Running {
    consensus: Consensus,
    server: JoinHandle<()>,
}

struct Group {
    dirs: BTreeMap<NodeId, TempDir>,
    members: BTreeMap<NodeId, HostPort>,
    nodes: BTreeMap<NodeId, Running>,
    cut: Arc<Cut>,
    /// Nodes that know from elsewhere that they have been part of a group.
    remember: BTreeSet<NodeId>,
}

async fn wire(State((node, cut)): State<(NodeId, Arc<Cut>)>, request: Request, next: Next) -> Response {
    let from = request.headers().get("x-pgherd-node").and_then(|id| id.to_str().ok()?.parse::<NodeId>().ok());
    let severed =
        move |cut: &BTreeSet<NodeId>| cut.contains(&node) || from.is_some_and(|from| cut.contains(&from));
    if severed(&cut.borrow()) {
        std::future::pending::<()>().await;
    }
    let answer = next.run(request).await;
    if severed(&cut.borrow()) { StatusCode::BAD_GATEWAY.into_response() } else { answer }
}

impl Group {
    /// `size` agents, started, not formed.
    async fn start(size: u64) -> Self {
        let mut listeners = BTreeMap::new();
        for id in 1..=size {
            listeners.insert(NodeId(id), TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let members = listeners
            .iter()
            .map(|(id, listener)| (*id, listener.local_addr().unwrap().to_string().parse().unwrap()))
            .collect();
        let dirs = listeners.keys().map(|id| (*id, tempfile::tempdir().unwrap())).collect();
        let mut group = Self {
            dirs,
            members,
            nodes: BTreeMap::new(),
            cut: Arc::new(watch::Sender::default()),
            remember: BTreeSet::new(),
        };
        for (id, listener) in listeners {
            group.run(id, "test", listener).await;
        }
        group
    }

    /// The same, formed, with an established leader and the cluster's first command applied everywhere.
    async fn formed(size: u64) -> Self {
        let group = Self::start(size).await;
        group.nodes[&NodeId(1)].consensus.form().await.unwrap();
        let leader = group.leader().await;
        for command in [form(size), serve()] {
            assert_eq!(group.nodes[&leader].consensus.propose(command).await.unwrap(), Applied::Changed);
        }
        for node in group.nodes.keys() {
            group.await_state(*node, |state| state.serving().is_some()).await;
        }
        group
    }

    fn options(&self, node: NodeId, cluster: &str, dir: &Path) -> Options {
        Options {
            node,
            cluster: cluster.parse().unwrap(),
            dir: dir.to_owned(),
            members: self.members.iter().map(|(id, agent)| (*id, contact(*id, agent))).collect(),
            remembers: self.remember.contains(&node),
            heartbeat: HEARTBEAT,
            election_timeout: ELECTION,
            rpc_timeout: RPC_TIMEOUT,
        }
    }

    async fn run(&mut self, node: NodeId, cluster: &str, listener: TcpListener) {
        let options = self.options(node, cluster, self.dirs[&node].path());
        let consensus = Consensus::open(options).await.unwrap();
        consensus.nothing_forgotten().await.unwrap();
        let wire = middleware::from_fn_with_state((node, Arc::clone(&self.cut)), wire);
        let routes = consensus.routes().layer(wire);
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        self.nodes.insert(node, Running { consensus, server });
    }

    async fn stop(&mut self, node: NodeId) {
        let running = self.nodes.remove(&node).unwrap();
        running.server.abort();
        running.consensus.shutdown().await;
        assert!(running.server.await.unwrap_err().is_cancelled());
    }

    async fn restart(&mut self, node: NodeId, cluster: &str) {
        let address: SocketAddr = self.members[&node].to_string().parse().unwrap();
        self.run(node, cluster, TcpListener::bind(address).await.unwrap()).await;
    }

    fn cut(&self, nodes: &[NodeId]) {
        self.cut.send_replace(nodes.iter().copied().collect());
    }

    fn consensus(&self, node: NodeId) -> &Consensus {
        &self.nodes[&node].consensus
    }

    async fn await_standing(&self, node: NodeId, wanted: impl Fn(&Standing) -> bool) -> Standing {
        let mut standing = self.consensus(node).standing();
        let seen = timeout(PATIENCE, standing.wait_for(|standing| wanted(standing))).await;
        match seen {
            Ok(seen) => seen.unwrap().clone(),
            Err(_) => panic!("node {node} stays at {:?}", self.consensus(node).standing().borrow()),
        }
    }

    async fn await_state(&self, node: NodeId, wanted: impl Fn(&ClusterState) -> bool) {
        let mut state = self.consensus(node).state();
        if timeout(PATIENCE, state.wait_for(|state| wanted(state))).await.is_err() {
            panic!("node {node} stays at {:?}", self.consensus(node).state().borrow());
        }
    }

    /// The established leader among the nodes that are not cut off.
    async fn leader(&self) -> NodeId {
        let reachable = self.nodes.iter().filter(|(node, _)| !self.cut.borrow().contains(node));
        let waiting = reachable.map(|(node, running)| {
            let mut standing = running.consensus.standing();
            Box::pin(async move {
                standing.wait_for(|standing| standing.is_established).await.unwrap();
                *node
            })
        });
        timeout(PATIENCE, futures_util::future::select_all(waiting)).await.expect("nobody leads").0
    }

    async fn propose(&self, priority: u32) {
        let leader = self.leader().await;
        assert_eq!(self.consensus(leader).propose(set_priority(priority)).await.unwrap(), Applied::Changed);
    }

    async fn await_priority(&self, node: NodeId, priority: u32) {
        self.await_state(node, |state| {
            state.members.get(&NodeId(1)).is_some_and(|member| member.priority_override == Some(priority))
        })
        .await;
    }
}

fn contact(id: NodeId, agent: &HostPort) -> Contact {
    Contact { name: format!("server{id}").parse().unwrap(), agent: agent.clone() }
}

fn form(size: u64) -> Command {
    let cluster: ClusterName = "test".parse().unwrap();
    let member = |id| Descriptor {
        id: NodeId(id),
        name: format!("server{id}").parse().unwrap(),
        kind: NodeKind::Database,
        agent: "127.0.0.1:7800".parse().unwrap(),
        postgres: Some("127.0.0.1:5432".parse().unwrap()),
        priority: 100,
        weight: 1,
        tags: Default::default(),
        upstream: None,
    };
    Command::Form {
        identity: Identity { cluster, system_identifier: 7, major: 15 },
        primary: NodeId(1),
        members: (1..=size).map(member).collect(),
        at: WallTime(1),
    }
}

fn serve() -> Command {
    Command::Serve {
        generation: Generation::ZERO.next(),
        timeline: Timeline(1),
        first_xid: None,
        took: Vec::new(),
        at: WallTime(2),
    }
}

fn set_priority(priority: u32) -> Command {
    Command::SetPriority { node: NodeId(1), priority }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree() {
    let group = Group::start(3).await;
    for node in group.nodes.keys() {
        assert!(!group.consensus(*node).standing().borrow().initialized);
        let error = group.consensus(*node).propose(form(3)).await.unwrap_err();
        assert!(matches!(error, ProposeError::NotLeader { leader: None }), "{error}");
    }
    // All at once, and again.
    for _ in 0..2 {
        for running in group.nodes.values() {
            running.consensus.form().await.unwrap();
        }
    }
    let leader = group.leader().await;
    assert_eq!(group.consensus(leader).propose(form(3)).await.unwrap(), Applied::Changed);
    assert!(matches!(group.consensus(leader).propose(form(3)).await.unwrap(), Applied::Rejected(_)));
    group.propose(3).await;
    for node in group.nodes.keys() {
        group.await_priority(*node, 3).await;
        let standing = group.await_standing(*node, |standing| standing.leader == Some(leader)).await;
        assert_eq!(standing.voters, group.members.keys().copied().collect());
        assert!(standing.initialized && standing.is_voter && standing.failed.is_none());
        assert_eq!(standing.is_leader, *node == leader);
    }
    let follower = *group.nodes.keys().find(|node| **node != leader).unwrap();
    let error = group.consensus(follower).propose(set_priority(4)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotLeader { leader: Some(known) } if known == leader), "{error}");
    // Heartbeats alone keep the acknowledgements coming.
    let asked = RealClock.now();
    let mut acked = group.consensus(leader).acked.clone();
    timeout(PATIENCE, acked.wait_for(|acked| acked.is_some_and(|acked| acked > asked)))
        .await
        .unwrap()
        .unwrap();
    assert!(group.consensus(leader).quorum_acked().unwrap() <= RealClock.now());
    assert_eq!(group.consensus(follower).quorum_acked(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_a_group() {
    let mut group = Group::formed(1).await;
    group.propose(2).await;
    let error = group.consensus(NodeId(1)).transfer_leadership(NodeId(2)).await.unwrap_err();
    assert!(matches!(error, TransferError::NotAVoter(NodeId(2))), "{error}");
    group.stop(NodeId(1)).await;
    group.restart(NodeId(1), "test").await;
    group.await_priority(NodeId(1), 2).await;
    group.propose(3).await;
}

/// A leader that can no longer write its store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_write_leaves_the_lead_to_others() {
    let group = Group::formed(3).await;
    let first = group.leader().await;
    group.consensus(first).writer.close().await;
    let error = group.consensus(first).propose(set_priority(4)).await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped(_)), "{error}");
    let standing = group.await_standing(first, |standing| standing.failed.is_some()).await;
    assert!(!standing.is_leader && standing.leader.is_none(), "{standing:?}");
    assert!(standing.failed.unwrap().contains("store is closed"));
    assert_eq!(group.consensus(first).quorum_acked(), None);
    let second = group.leader().await;
    assert_ne!(second, first);
    group.propose(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_goes_on_when_the_leader_stops() {
    let mut group = Group::formed(3).await;
    let first = group.leader().await;
    let term = group.consensus(first).standing().borrow().term;
    let stopped = Instant::now();
    group.stop(first).await;
    let second = group.leader().await;
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(3), "the next leader took {took:?}");
    assert!(group.consensus(second).standing().borrow().term > term);
    group.propose(5).await;
    for node in group.nodes.keys() {
        group.await_priority(*node, 5).await;
    }
    // It comes back from its store, and learns what it missed.
    group.restart(first, "test").await;
    assert!(group.consensus(first).state().borrow().identity.is_some(), "the stored state is there at once");
    group.await_priority(first, 5).await;
    group.await_standing(first, |standing| standing.leader == Some(second)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_is_handed_over() {
    let group = Group::formed(3).await;
    let first = group.leader().await;
    let followers: Vec<NodeId> = group.nodes.keys().copied().filter(|node| *node != first).collect();
    let error = group.consensus(followers[0]).transfer_leadership(first).await.unwrap_err();
    assert!(matches!(error, TransferError::NotLeader { leader: Some(known) } if known == first), "{error}");
    let error = group.consensus(first).transfer_leadership(NodeId(9)).await.unwrap_err();
    assert!(matches!(error, TransferError::NotAVoter(NodeId(9))), "{error}");

    group.consensus(first).transfer_leadership(followers[1]).await.unwrap();
    group.await_standing(followers[1], |standing| standing.is_established).await;
    group
        .await_standing(first, |standing| standing.leader == Some(followers[1]) && !standing.is_leader)
        .await;
    assert_eq!(group.consensus(followers[1]).propose(set_priority(6)).await.unwrap(), Applied::Changed);
    group.await_priority(first, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_commits_nothing_and_heals() {
    let group = Group::formed(3).await;
    let old = group.leader().await;
    let before = group.consensus(old).quorum_acked().unwrap();
    group.cut(&[old]);
    let asked = Instant::now();
    let error = group.consensus(old).propose(set_priority(8)).await.unwrap_err();
    assert!(matches!(error, ProposeError::Timeout(_) | ProposeError::NoQuorum), "{error}");
    assert!(asked.elapsed() < ELECTION.1 + RPC_TIMEOUT * 2, "took {:?}", asked.elapsed());

    let new = group.leader().await;
    assert_ne!(new, old);
    group.propose(9).await;
    // Once its lease is over, the old leader refuses at once; and it knows how long it has been alone.
    let error = group.consensus(old).propose(set_priority(8)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum), "{error}");
    let acked = group.consensus(old).quorum_acked().unwrap();
    assert!(
        acked >= before && RealClock.now().since(acked) > ELECTION.0,
        "acked {acked:?}, cut after {before:?}"
    );

    let healed = Instant::now();
    group.cut(&[]);
    group.await_priority(old, 9).await;
    let standing = group.await_standing(old, |standing| standing.leader == Some(new)).await;
    assert!(!standing.is_leader);
    assert!(healed.elapsed() < Duration::from_secs(3), "took {:?}", healed.elapsed());
    for node in group.nodes.keys() {
        group.await_priority(*node, 9).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_does_not_unseat_the_leader() {
    let group = Group::formed(3).await;
    let leader = group.leader().await;
    let term = group.consensus(leader).standing().borrow().term;
    let away = *group.nodes.keys().find(|node| **node != leader).unwrap();
    group.cut(&[away]);
    // Its leader is gone for it: it has asked around, and was heard by nobody.
    let lost = Instant::now();
    while lost.elapsed() < ELECTION.1 * 2 {
        group.propose(u32::try_from(lost.elapsed().as_millis()).unwrap() + 10).await;
    }
    group.propose(7).await;
    group.cut(&[]);
    group.await_priority(away, 7).await;
    let standing = group.await_standing(away, |standing| standing.leader == Some(leader)).await;
    assert_eq!(standing.term, term, "pre-vote keeps the term");
    assert!(group.consensus(leader).standing().borrow().is_leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() {
    let mut group = Group::formed(3).await;
    let leader = group.leader().await;
    let other = *group.nodes.keys().find(|node| **node != leader).unwrap();
    group.stop(other).await;
    group.dirs.insert(other, tempfile::tempdir().unwrap());
    group.restart(other, "other").await;
    group.propose(11).await;

    let address = &group.members[&other];
    let post = |cluster: &'static str, from: u64, to: u64| {
        reqwest::Client::new()
            .post(format!("http://{address}/raft/vote"))
            .header("x-pgherd-cluster", cluster)
            .header("x-pgherd-node", from)
            .header("x-pgherd-to", to)
            .json(&serde_json::json!({}))
            .send()
    };
    let answer = post("test", leader.0, other.0).await.unwrap();
    assert_eq!(answer.status(), reqwest::StatusCode::CONFLICT);
    let text = answer.text().await.unwrap();
    assert!(text.contains(&format!("node {other} of cluster other")) && text.contains("test"), "{text}");
    let misdirected = post("other", leader.0, leader.0).await.unwrap();
    assert_eq!(misdirected.status(), reqwest::StatusCode::CONFLICT);
    let impostor = post("other", other.0, other.0).await.unwrap();
    assert_eq!(impostor.status(), reqwest::StatusCode::CONFLICT);
    let understood = post("other", leader.0, other.0).await.unwrap();
    assert_eq!(understood.status(), reqwest::StatusCode::UNPROCESSABLE_ENTITY);
    let standing = group.consensus(other).standing().borrow().clone();
    assert!(!standing.initialized && standing.term == 0, "{standing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_gets_a_snapshot() {
    let mut group = Group::formed(3).await;
    let leader = group.leader().await;
    let away = *group.nodes.keys().find(|node| **node != leader).unwrap();
    group.stop(away).await;
    let entries = 2500;
    let writes = (0..entries).map(|round| {
        let consensus = group.consensus(leader).clone();
        async move { consensus.propose(set_priority(1000 + round)).await }
    });
    for written in futures_util::future::join_all(writes).await {
        assert!(matches!(written.unwrap(), Applied::Changed | Applied::Unchanged));
    }
    group.propose(1).await;
    group.restart(away, "test").await;
    group.await_priority(away, 1).await;
    let standing = group.await_standing(away, |standing| standing.last_applied > u64::from(entries)).await;
    assert_eq!(standing.leader, Some(leader));
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group {
        dirs: BTreeMap::new(),
        members: BTreeMap::new(),
        nodes: BTreeMap::new(),
        cut: Arc::default(),
        remember: BTreeSet::new(),
    };
    let alone = group.options(NodeId(1), "test", dir.path());
    let error = Consensus::open(alone.clone()).await.err().unwrap();
    assert!(matches!(error, OpenError::NotAMember(NodeId(1))), "{error}");
    let hasty = Options { heartbeat: Duration::from_millis(300), ..alone };
    let error = Consensus::open(hasty).await.err().unwrap();
    assert!(matches!(error, OpenError::Timings { .. }), "{error}");
    assert!(fs_is_empty(dir.path()), "nothing is created for options that are refused");
}

fn fs_is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
