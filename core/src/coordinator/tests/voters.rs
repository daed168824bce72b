//! Lost nodes leave the voters and come back.

use super::*;
use crate::cluster::LeaseVoters;

fn names(ids: &[u64]) -> Vec<pgherd_common::NodeName> {
    ids.iter().copied().map(name).collect()
}

impl Rig {
    /// So many seconds during which these agents are silent.
    fn pass_seconds(&mut self, seconds: usize, silent: &[u64]) {
        for _ in 0..seconds * 10 {
            self.pass(silent);
        }
    }

    fn assert_voters(&self, voters: &[u64]) {
        assert_eq!(self.state.voters, LeaseVoters::only(ids(voters)));
        assert_eq!(self.quorum.voters, ids(voters));
    }

    /// The primary's node is lost and `successor` takes over.
    fn fail_over(&mut self, silent: &[u64], successor: u64) {
        let from = self.state.serving().unwrap();
        let others: Vec<u64> = self.seen.keys().copied().filter(|id| !silent.contains(id)).collect();
        for _ in 0..30 {
            for id in &others {
                self.seen.get_mut(id).unwrap().remote.insert(from, RemoteDatabase::Silent);
            }
            self.pass(silent);
            if self.state.change.is_some() {
                for id in others.iter().filter(|id| **id != 4) {
                    self.recruited(*id, 1000);
                }
                self.pass(silent);
                break;
            }
        }
        assert_eq!(granted_to(&self.state), Some(NodeId(successor)), "{:?}", self.state);
        self.postgres(successor).state = PostgresState::Running(running(false));
        for id in &others {
            self.seen.get_mut(id).unwrap().remote.clear();
        }
        self.pass(silent);
        assert_eq!(self.state.serving(), Some(NodeId(successor)));
    }
}

#[test]
fn a_lost_node_leaves_after_a_while_and_its_return_takes_half_of_it() {
    let mut rig = Rig::formed();
    rig.pass_seconds(9, &[3]);
    rig.assert_voters(&[1, 2, 3, 4]);
    rig.pass_seconds(2, &[3]);
    rig.assert_voters(&[1, 2, 4]);
    assert_eq!(rig.quorum.learners, ids(&[3]));
    rig.pass_seconds(4, &[]);
    rig.assert_voters(&[1, 2, 4]);
    let decision = rig.step(&[]);
    assert!(
        matches!(decision.report.waiting.as_slice(), [NotYet::Voters(VotersStay::Returning { left, .. })] if !left.is_zero()),
        "{decision:?}"
    );
    rig.pass_seconds(2, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn whoever_speaks_but_no_longer_follows_the_log_loses_its_vote_and_gets_it_back() {
    let mut rig = Rig::formed();
    rig.stuck.push(3);
    rig.pass_seconds(20, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
    let allow = Command::SetAllowed { node: NodeId(2), allowed: false, at: WallTime(2) };
    assert_eq!(rig.propose(&allow), Applied::Changed);
    rig.pass_seconds(9, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
    rig.pass_seconds(2, &[]);
    rig.assert_voters(&[1, 2, 4]);
    rig.stuck.clear();
    rig.pass_seconds(1, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn an_agent_that_returns_with_an_old_state_is_given_the_time_to_catch_up() {
    let mut rig = Rig::formed();
    rig.stuck.push(3);
    rig.pass_seconds(2, &[3]);
    let allow = Command::SetAllowed { node: NodeId(2), allowed: false, at: WallTime(2) };
    assert_eq!(rig.propose(&allow), Applied::Changed);
    rig.pass_seconds(1, &[]);
    rig.pass_seconds(7, &[3]);
    rig.pass_seconds(9, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn one_that_does_not_follow_the_log_and_one_that_is_silent_both_keep_their_votes() {
    let mut rig = Rig::formed();
    rig.stuck.push(3);
    let allow = Command::SetAllowed { node: NodeId(2), allowed: false, at: WallTime(2) };
    assert_eq!(rig.propose(&allow), Applied::Changed);
    rig.pass_seconds(30, &[4]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn two_lost_at_once_both_keep_their_votes() {
    let mut rig = Rig::formed();
    rig.pass_seconds(60, &[2, 3]);
    rig.assert_voters(&[1, 2, 3, 4]);
    assert!(
        rig.step(&[2, 3]).report.waiting.contains(&NotYet::Voters(VotersStay::SeveralLost(names(&[2, 3]))))
    );
    // Nor does one that is lost while another has just fallen silent.
    let mut rig = Rig::formed();
    rig.pass_seconds(7, &[3]);
    rig.pass_seconds(30, &[2, 3]);
    rig.assert_voters(&[1, 2, 3, 4]);
    // With one of them back, the other one leaves.
    rig.pass_seconds(1, &[3]);
    rig.assert_voters(&[1, 2, 4]);
}

#[test]
fn losses_one_after_the_other_down_to_two_the_primary_among_them() {
    let mut rig = Rig::formed();
    rig.pass_seconds(11, &[2]);
    rig.assert_voters(&[1, 3, 4]);
    rig.fail_over(&[1, 2], 3);
    rig.pass_seconds(11, &[1, 2]);
    rig.assert_voters(&[3, 4]);
    // The last two stay, whatever happens.
    rig.pass_seconds(30, &[1, 2, 4]);
    rig.assert_voters(&[3, 4]);
    let said = rig.step(&[1, 2, 4]).report.waiting;
    assert!(said.contains(&NotYet::Voters(VotersStay::LastVoters(name(4)))), "{said:?}");
    rig.postgres(1).state = PostgresState::Running(running(true));
    rig.pass_seconds(12, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn of_two_voters_nobody_replaces_a_lost_primary() {
    let mut rig = Rig::formed();
    rig.pass_seconds(11, &[2]);
    rig.pass_seconds(11, &[2, 3]);
    rig.assert_voters(&[1, 4]);
    rig.knocked(4, RemoteDatabase::Silent);
    rig.pass_seconds(30, &[1, 2, 3]);
    assert_eq!(rig.state.serving(), Some(NodeId(1)));
    assert_eq!(rig.state.generation, Generation::ZERO.next());
}

#[test]
fn the_primary_keeps_its_vote_and_nobody_leaves_without_its_word() {
    let mut rig = Rig::formed();
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Writable);
    }
    rig.pass_seconds(30, &[1]);
    rig.assert_voters(&[1, 2, 3, 4]);
    rig.pass_seconds(30, &[1, 3]);
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn nothing_is_planned_during_a_change_of_primary() {
    let mut rig = Rig::formed();
    rig.pass_seconds(5, &[3]);
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(None, false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.pass_seconds(8, &[3]);
    assert!(rig.state.change.is_some());
    rig.assert_voters(&[1, 2, 3, 4]);
}

#[test]
fn a_plan_is_settled_only_when_raft_has_followed_and_the_primary_knows() {
    let mut rig = Rig::formed();
    rig.pass_seconds(9, &[3]);
    let asked = loop {
        let decision = rig.step(&[3]);
        if let Some(Action::ChangeVoters(voters)) = decision.action {
            break voters;
        }
    };
    assert_eq!(asked, ids(&[1, 2, 4]));
    // Raft is between the two.
    rig.quorum.settled = false;
    assert_eq!(rig.step(&[3]).action, Some(Action::ChangeVoters(ids(&[1, 2, 4]))));
    rig.quorum.settled = true;
    // The primary has not said that it knows.
    rig.seen.get_mut(&1).unwrap().revision = 0;
    let before = rig.seen[&1].clone();
    rig.coordinator.observe(before, rig.now);
    let decision = rig.step(&[1, 3]);
    assert!(
        decision.report.waiting.contains(&NotYet::Voters(VotersStay::PlanUnknown(name(1)))),
        "{decision:?}"
    );
    assert!(rig.state.voters.plan.is_some());
    rig.pass(&[3]);
    rig.assert_voters(&[1, 2, 4]);
}

#[test]
fn a_successor_needs_the_old_and_the_new_voters() {
    let mut rig = Rig::formed();
    rig.pass_seconds(9, &[3]);
    while rig.state.voters.plan.is_none() {
        rig.pass(&[3]);
    }
    rig.crash(1);
    rig.pass(&[3]);
    assert!(rig.state.change.is_some());
    // Two of {1, 2, 4} would do; of {1, 2, 3, 4} it takes three.
    rig.recruited(2, 1000);
    let decision = rig.step(&[3]);
    assert!(
        matches!(decision.report.waiting.as_slice(), [NotYet::LeaseRunning { lapsed: 2, needed: 3, .. }]),
        "{decision:?}"
    );
    // Raft had followed already and the primary knew: the plan is settled, and a successor possible.
    rig.quorum.voters = ids(&[1, 2, 4]);
    rig.pass(&[3]);
    assert!(rig.state.voters.plan.is_none());
    rig.pass_seconds(2, &[3]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn raft_is_brought_back_to_the_voters_in_the_log() {
    let mut rig = Rig::formed();
    rig.quorum.voters = ids(&[1, 2, 4]);
    rig.quorum.learners = ids(&[3]);
    assert_eq!(rig.step(&[]).action, Some(Action::ChangeVoters(ids(&[1, 2, 3, 4]))));
    assert_eq!(rig.step(&[]).action, None);
}

#[test]
fn an_agent_that_slept_does_not_take_its_own_silence_for_that_of_others() {
    let mut rig = Rig::formed();
    rig.now = rig.now + Duration::from_secs(60);
    rig.pass(&[3]);
    rig.pass_seconds(8, &[3]);
    rig.assert_voters(&[1, 2, 3, 4]);
    // Nor does one that has just begun to listen.
    let mut rig = Rig::formed();
    let policy = rig.coordinator.policy.clone();
    rig.coordinator = Coordinator::new(NodeId(4), policy);
    rig.pass_seconds(9, &[3]);
    rig.assert_voters(&[1, 2, 3, 4]);
    rig.pass_seconds(2, &[3]);
    rig.assert_voters(&[1, 2, 4]);
}

#[test]
fn a_node_that_comes_and_goes_or_lags_does_not_vote() {
    let mut rig = Rig::formed();
    rig.pass_seconds(11, &[3]);
    for _ in 0..5 {
        rig.pass_seconds(4, &[]);
        rig.pass_seconds(3, &[3]);
    }
    rig.assert_voters(&[1, 2, 4]);
    // Another process each time.
    for incarnation in 10..15 {
        rig.seen.get_mut(&3).unwrap().incarnation = incarnation;
        rig.pass_seconds(3, &[]);
    }
    rig.assert_voters(&[1, 2, 4]);
    // Heard, but without the log.
    for _ in 0..80 {
        let mut lagging = rig.seen[&3].clone();
        lagging.revision = 1;
        rig.now = rig.now + Duration::from_millis(50);
        rig.coordinator.observe(lagging, rig.now);
        rig.pass(&[3]);
    }
    rig.assert_voters(&[1, 2, 4]);
    let left = Duration::ZERO;
    let node = name(3);
    assert!(rig.step(&[3]).report.waiting.contains(&NotYet::Voters(VotersStay::Returning { node, left })));
}

#[test]
fn a_node_without_a_vote_is_not_promoted() {
    let mut rig = Rig::formed();
    rig.pass_seconds(11, &[2]);
    rig.assert_voters(&[1, 3, 4]);
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 9000);
    rig.recruited(3, 1000);
    rig.pass_seconds(2, &[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
}

#[test]
fn a_node_that_lost_its_store_leaves_at_once_and_is_let_in_again() {
    let mut rig = Rig::formed();
    rig.seen.get_mut(&3).unwrap().probation = Some(77);
    rig.seen.get_mut(&3).unwrap().incarnation = 9;
    for _ in 0..4 {
        rig.pass(&[]);
    }
    rig.assert_voters(&[1, 2, 4]);
    assert_eq!(rig.state.readmitted.get(&NodeId(3)), Some(&77));
    // Until it has learned of that, nothing more happens.
    rig.pass_seconds(12, &[]);
    rig.assert_voters(&[1, 2, 4]);
    rig.seen.get_mut(&3).unwrap().probation = None;
    rig.pass(&[]);
    rig.pass_seconds(1, &[]);
    rig.assert_voters(&[1, 2, 3, 4]);
    // And again, with another new store.
    rig.seen.get_mut(&3).unwrap().probation = Some(78);
    rig.pass_seconds(1, &[]);
    rig.assert_voters(&[1, 2, 4]);
    assert_eq!(rig.state.readmitted.get(&NodeId(3)), Some(&78));
}

#[test]
fn of_two_voters_nobody_lets_the_other_in_again() {
    let mut rig = Rig::formed();
    rig.pass_seconds(11, &[2]);
    rig.pass_seconds(11, &[2, 3]);
    rig.assert_voters(&[1, 4]);
    rig.seen.get_mut(&4).unwrap().probation = Some(77);
    rig.pass_seconds(5, &[2, 3]);
    rig.assert_voters(&[1, 4]);
    assert!(rig.state.readmitted.is_empty());
    let said = rig.step(&[2, 3]).report.waiting;
    assert!(said.contains(&NotYet::Voters(VotersStay::NobodyReadmits(name(4)))), "{said:?}");
}

#[test]
fn a_primary_that_lost_its_store_is_replaced_once_it_is_down_and_never_started_in_place() {
    let mut rig = Rig::formed();
    rig.seen.get_mut(&1).unwrap().probation = Some(77);
    rig.pass_seconds(5, &[]);
    assert_eq!(rig.state.change, None, "its database may be writable until its agent has fenced it");
    rig.assert_voters(&[1, 2, 3, 4]);
    let PostgresState::Down(mut stopped) = down(false) else { unreachable!() };
    stopped.found_down = true;
    rig.postgres(1).state = PostgresState::Down(stopped);
    rig.pass(&[]);
    assert_eq!(rig.state.change.as_ref().unwrap().to, None);
    rig.recruited(2, 1000);
    rig.recruited(3, 1000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}
