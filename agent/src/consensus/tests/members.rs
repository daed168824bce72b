//! Nodes that come to a group and leave it.

use super::*;
use pgherd_core::quorum::Admission;

fn everybody(size: u64) -> Vec<NodeId> {
    (1..=size).map(NodeId).collect()
}

impl Group {
    /// An agent that the group does not know, with an empty store; its number.
    async fn come(&mut self, node: NodeId) -> u64 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.members.insert(node, listener.local_addr().unwrap().to_string().parse().unwrap());
        self.dirs.insert(node, tempfile::tempdir().unwrap());
        self.remember.insert(node);
        self.run(node, "test", listener).await;
        match self.consensus(node).standing().borrow().admission {
            Admission::Probation(token) => token,
            other => panic!("{other:?}"),
        }
    }

    /// Invited, let in, and a voter.
    async fn join(&mut self, node: NodeId) {
        let token = self.come(node).await;
        let contact = contact(node, &self.members[&node]);
        let (name, agent) = (contact.name.clone(), contact.agent.clone());
        self.command(Command::Invite { id: node, name, agent: agent.clone(), at: WallTime(3) }).await;
        let leader = self.leader().await;
        for _ in 0..2 {
            self.consensus(leader).add_learner(node, &agent).await.unwrap();
        }
        self.propose(61).await;
        let blank = self.consensus(node).standing().borrow().clone();
        assert_eq!((blank.last_applied, blank.initialized), (0, false), "nobody feeds it: {blank:?}");
        self.command(Command::Readmit { node, token }).await;
        assert!(self.consensus(node).rejoin(token).await.unwrap());
        self.await_priority(node, 61).await;
        assert_eq!(self.consensus(node).standing().borrow().admission, Admission::Learner(token));
        let descriptor = Descriptor {
            id: node,
            name: contact.name,
            kind: NodeKind::Witness,
            agent,
            postgres: None,
            priority: 0,
            weight: 0,
            tags: Default::default(),
            upstream: None,
        };
        self.command(Command::Register { descriptor, at: WallTime(4) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_votes_last_and_disturbs_nobody_once_it_was_removed() {
    let mut group = Group::formed(3).await;
    let (leader, others) = group.leader_and_others().await;
    let new = NodeId(4);
    group.join(new).await;
    group.regroup(&everybody(4)).await;
    group.await_standing(new, |standing| standing.admission == Admission::Full).await;
    // Its vote counts: of four, three are needed.
    group.stop(others[0]).await;
    group.propose(62).await;
    group.restart(others[0], "test").await;
    group.await_priority(others[0], 62).await;

    group.command(Command::Remove { node: new, force: false, at: WallTime(5) }).await;
    let error = group.consensus(leader).drop_node(new).await.unwrap_err();
    assert!(matches!(error, RegroupError::Refused(_)), "it votes: {error}");
    group.regroup(&everybody(3)).await;
    for _ in 0..2 {
        group.consensus(leader).drop_node(new).await.unwrap();
    }
    let number = {
        let state = group.consensus(leader).state().borrow().clone();
        state.members[&new].leaving.unwrap().number
    };
    group.command(Command::Removed { node: new, number, at: WallTime(6) }).await;
    let standing = group.await_standing(leader, |standing| standing.learners.is_empty()).await;
    assert_eq!(standing.voters, everybody(3).into_iter().collect());

    // It hears of no leader any more, and does as it likes; also with no more than it remembers.
    for _ in 0..2 {
        assert!(!group.somebody_leads(&[new]).await);
        group.stop(new).await;
        group.restart(new, "test").await;
    }
    group.propose(63).await;
    let now = group.consensus(leader).standing().borrow().clone();
    assert!(now.is_leader && now.term == standing.term, "{now:?}");
    assert!(
        !group.consensus(new).state().borrow().removed.iter().any(|removed| removed.id == new),
        "it was told nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moved_is_reached_where_the_log_has_it() {
    let mut group = Group::formed(3).await;
    let new = NodeId(4);
    group.join(new).await;
    group.regroup(&everybody(4)).await;
    group.await_standing(new, |standing| standing.admission == Admission::Full).await;
    // The others' configuration does not know it, and raft's own group has its first address.
    group.stop(new).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent: HostPort = listener.local_addr().unwrap().to_string().parse().unwrap();
    group.members.insert(new, agent.clone());
    let descriptor = {
        let state = group.consensus(group.leader().await).state().borrow().clone();
        Descriptor { agent, ..state.members[&new].descriptor.clone() }
    };
    group.command(Command::Register { descriptor, at: WallTime(7) }).await;
    group.run(new, "test", listener).await;
    group.propose(64).await;
    group.await_priority(new, 64).await;
}
