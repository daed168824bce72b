//! Voters that leave and come back, and stores that were lost.

use std::fs;

use pgherd_core::quorum::Admission;

use super::*;

fn ids(ids: &[NodeId]) -> BTreeSet<NodeId> {
    ids.iter().copied().collect()
}

impl Group {
    /// The established leader, and everybody else.
    pub(super) async fn leader_and_others(&self) -> (NodeId, Vec<NodeId>) {
        let leader = self.leader().await;
        (leader, self.nodes.keys().copied().filter(|node| *node != leader).collect())
    }

    pub(super) async fn change_voters(&self, voters: &[NodeId]) {
        let leader = self.leader().await;
        self.consensus(leader).change_voters(&ids(voters)).await.unwrap();
        let standing = self.consensus(leader).standing().borrow().clone();
        assert!(standing.settled && standing.voters == ids(voters), "{standing:?}");
    }

    pub(super) async fn command(&self, command: Command) {
        let leader = self.leader().await;
        assert_eq!(
            self.consensus(leader).propose(command.clone()).await.unwrap(),
            Applied::Changed,
            "{command:?}"
        );
    }

    /// The way of one voter more or less, as the coordinator goes it.
    pub(super) async fn regroup(&self, voters: &[NodeId]) {
        let generation = Generation::ZERO.next();
        self.command(Command::PlanVoters { generation, next: ids(voters) }).await;
        self.change_voters(voters).await;
        let planned =
            self.consensus(self.leader().await).state().borrow().voters.plan.as_ref().unwrap().revision;
        self.command(Command::SettleVoters { generation, planned }).await;
    }

    /// The store is gone, and the node knows from elsewhere that there was one.
    pub(super) async fn wipe(&mut self, node: NodeId) -> u64 {
        self.stop(node).await;
        self.dirs.insert(node, tempfile::tempdir().unwrap());
        self.remember.insert(node);
        self.restart(node, "test").await;
        match self.consensus(node).standing().borrow().admission {
            Admission::Probation(token) => token,
            other => panic!("{other:?}"),
        }
    }

    /// Whether anybody among these leads before all have stood for election several times over.
    pub(super) async fn somebody_leads(&self, among: &[NodeId]) -> bool {
        let waiting = among.iter().map(|node| {
            let mut standing = self.consensus(*node).standing();
            Box::pin(async move { standing.wait_for(|standing| standing.is_established).await.is_ok() })
        });
        timeout(ELECTION.1 * 4, futures_util::future::select_all(waiting)).await.is_ok()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_shrink_to_two_and_grow_again() {
    let mut group = Group::formed(4).await;
    let (leader, others) = group.leader_and_others().await;
    let [first, second, third] = others[..] else { panic!("{others:?}") };
    group.stop(first).await;
    group.change_voters(&[leader, second, third]).await;
    let standing = group.await_standing(second, |standing| standing.learners == ids(&[first])).await;
    assert_eq!(standing.voters, ids(&[leader, second, third]));
    // The leader itself is the next one lost.
    group.stop(leader).await;
    let (next, rest) = group.leader_and_others().await;
    group.change_voters(&[next, rest[0]]).await;
    group.propose(21).await;
    // Long enough that whoever comes back needs a snapshot.
    for hundred in 0..25 {
        let writes = (0..100).map(|round| {
            let consensus = group.consensus(next).clone();
            async move { consensus.propose(set_priority(1000 + hundred * 100 + round)).await }
        });
        for written in futures_util::future::join_all(writes).await {
            assert_eq!(written.unwrap(), Applied::Changed);
        }
    }
    group.propose(22).await;
    let term = group.consensus(next).standing().borrow().term;
    for back in [first, leader] {
        group.restart(back, "test").await;
        group.await_priority(back, 22).await;
    }
    let back = group.await_standing(first, |standing| standing.leader == Some(next)).await;
    assert!(!back.is_voter && back.term == term, "it disturbs nobody: {back:?}");
    group.change_voters(&[next, rest[0], first]).await;
    group.change_voters(&[next, rest[0], first, leader]).await;
    group.change_voters(&[next, rest[0], first, leader]).await;
    group.await_standing(leader, |standing| standing.voters.len() == 4 && standing.settled).await;
    // Two of four would not do.
    group.stop(rest[0]).await;
    group.propose(23).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_leader_with_a_majority_changes_the_voters() {
    let group = Group::formed(3).await;
    let (leader, others) = group.leader_and_others().await;
    let error = group.consensus(others[0]).change_voters(&ids(&others)).await.unwrap_err();
    assert!(matches!(error, RegroupError::NotLeader { leader: Some(known) } if known == leader), "{error}");
    let error = group.consensus(leader).change_voters(&ids(&[leader, NodeId(9)])).await.unwrap_err();
    assert!(matches!(error, RegroupError::Refused(_)), "{error}");
    group.cut(&others);
    let error = group.consensus(leader).change_voters(&ids(&[leader, others[0]])).await.unwrap_err();
    assert!(matches!(error, RegroupError::Timeout(_) | RegroupError::NotLeader { .. }), "{error}");
    assert!(!group.consensus(leader).standing().borrow().settled);
}

/// Node `a` and `c` have committed what `b` has not; `c` loses its store and `a` is gone. If the
/// empty `c` votes, `b` leads without it. Returns whether it did.
async fn vote_from_an_empty_store(rule: bool) -> bool {
    let mut group = Group::formed(3).await;
    let (a, others) = group.leader_and_others().await;
    let [b, c] = others[..] else { panic!("{others:?}") };
    group.stop(b).await;
    group.propose(31).await;
    group.stop(a).await;
    let token = group.wipe(c).await;
    group.restart(b, "test").await;
    if !rule {
        let consensus = group.consensus(c);
        consensus
            .admission
            .change(&consensus.raft, Admission::Probation(token), Admission::Full)
            .await
            .unwrap();
    }
    if group.somebody_leads(&[b, c]).await {
        group.propose(32).await;
        group.await_state(b, |state| state.members[&NodeId(1)].priority_override == Some(32)).await;
        return true;
    }
    // The rest is a majority again: nothing is lost, and the empty node is still kept out.
    group.restart(a, "test").await;
    group.await_priority(b, 31).await;
    assert_eq!(group.consensus(c).standing().borrow().last_applied, 0);
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_never_votes() {
    assert!(!vote_from_an_empty_store(true).await);
}

/// What the rule is there for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_rule_a_vote_from_an_empty_store_loses_what_was_committed() {
    assert!(vote_from_an_empty_store(false).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_is_filled_only_after_readmission_and_votes_only_after_its_return() {
    let mut group = Group::formed(4).await;
    let (leader, others) = group.leader_and_others().await;
    let [a, b, lost] = others[..] else { panic!("{others:?}") };
    let token = group.wipe(lost).await;
    group.regroup(&[leader, a, b]).await;
    group.propose(41).await;
    group.await_priority(a, 41).await;
    let blank = group.consensus(lost).standing().borrow().clone();
    assert_eq!((blank.last_applied, blank.initialized), (0, false), "nobody feeds it: {blank:?}");
    // The wrong number opens nothing.
    assert!(!group.consensus(lost).rejoin(token ^ 1).await.unwrap());
    assert_eq!(group.consensus(lost).standing().borrow().admission, Admission::Probation(token));

    group.command(Command::Readmit { node: lost, token }).await;
    assert!(group.consensus(lost).rejoin(token).await.unwrap());
    group.await_state(lost, |state| state.readmitted.get(&lost) == Some(&token)).await;
    // It has been through the log, whose first entries say that it votes.
    let fed = group.await_standing(lost, |standing| standing.learners == ids(&[lost])).await;
    assert_eq!(fed.admission, Admission::Learner(token));
    let ask = reqwest::Client::new()
        .post(format!("http://{}/raft/vote", group.members[&lost]))
        .header("x-pgherd-cluster", "test")
        .header("x-pgherd-node", a.0)
        .header("x-pgherd-to", lost.0)
        .json(&serde_json::json!({}));
    assert_eq!(ask.send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    // A restart changes nothing.
    group.stop(lost).await;
    group.restart(lost, "test").await;
    assert_eq!(group.consensus(lost).standing().borrow().admission, Admission::Learner(token));

    group.regroup(&[leader, a, b, lost]).await;
    group.await_standing(lost, |standing| standing.admission == Admission::Full).await;
    group.stop(lost).await;
    group.restart(lost, "test").await;
    assert_eq!(group.consensus(lost).standing().borrow().admission, Admission::Full);
    // Its vote and its acknowledgement count again.
    group.stop(a).await;
    group.propose(42).await;
}

/// Three voters: `b` was away when they changed, and the store of `x` is being filled again and has
/// come to the entries of that time. Together they are a majority of the voters of then. Returns whether
/// they elect a leader beside the one there is.
async fn election_from_the_past(rule: bool) -> bool {
    let mut group = Group::formed(4).await;
    let (a, others) = group.leader_and_others().await;
    let [b, x, w] = others[..] else { panic!("{others:?}") };
    group.change_voters(&[a, b, x]).await;
    group.propose(51).await;
    for node in [b, x] {
        group.await_priority(node, 51).await;
        group.await_standing(node, |standing| standing.settled && standing.voters == ids(&[a, b, x])).await;
    }
    group.stop(b).await;
    group.stop(x).await;
    let past = tempfile::tempdir().unwrap();
    fs::copy(group.dirs[&x].path().join("raft.redb"), past.path().join("raft.redb")).unwrap();
    group.restart(x, "test").await;
    group.change_voters(&[a, b, x, w]).await;
    group.change_voters(&[a, x, w]).await;
    group.stop(x).await;
    group.change_voters(&[a, w]).await;
    group.propose(52).await;

    group.dirs.insert(x, past);
    group.cut(&[a, w]);
    group.restart(x, "test").await;
    if rule {
        let consensus = group.consensus(x);
        consensus.admission.change(&consensus.raft, Admission::Full, Admission::Learner(5)).await.unwrap();
    }
    group.restart(b, "test").await;
    group.somebody_leads(&[b, x]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_being_filled_elects_nobody_from_the_past() {
    assert!(!election_from_the_past(true).await);
}

/// What the rule is there for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_rule_two_leaders_commit_side_by_side() {
    assert!(election_from_the_past(false).await);
}
