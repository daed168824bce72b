//! Nodes that come and go.

use super::*;
use crate::cluster::LeaseVoters;

impl Rig {
    /// One step, obeyed by raft as well; what was asked of it.
    fn go(&mut self, silent: &[u64]) -> Decision {
        let decision = self.step(silent);
        match &decision.action {
            Some(Action::AddLearner(node, _)) => {
                self.quorum.learners.insert(*node);
            }
            Some(Action::DropNode(node)) => {
                self.quorum.learners.remove(node);
            }
            _ => {}
        }
        decision
    }

    /// Obeyed until nothing more is wanted.
    fn come_to_rest(&mut self, silent: &[u64]) {
        for _ in 0..200 {
            let _ = self.go(silent);
        }
        assert_eq!(self.go(silent).action, None);
    }

    fn order(&mut self, id: u64, force: bool) {
        let planned = self.view().plan_remove(&name(id), force).unwrap();
        assert_eq!(self.propose(&planned), Applied::Changed);
    }

    fn refusal(&self, id: u64, force: bool) -> String {
        self.view().plan_remove(&name(id), force).unwrap_err().to_string()
    }

    fn view(&self) -> View<'_> {
        self.coordinator.view(self.now, self.wall)
    }

    fn invite(&mut self, id: u64) {
        let agent = format!("10.0.0.{id}:7800").parse().unwrap();
        let invite = Command::Invite { id: NodeId(id), name: name(id), agent, at: self.wall };
        assert_eq!(self.propose(&invite), Applied::Changed);
    }
}

/// So many seconds, obeyed.
fn pass_seconds(rig: &mut Rig, seconds: usize, silent: &[u64]) {
    for _ in 0..seconds * 10 {
        let _ = rig.go(silent);
    }
}

#[test]
fn an_invited_node_is_fed_then_let_in_then_a_member_and_votes_last() {
    let mut rig = Rig::formed();
    let mut newcomer = observation(5);
    newcomer.probation = Some(77);
    rig.seen.insert(5, newcomer);
    rig.stuck.push(5);
    assert_eq!(rig.go(&[]).action, None, "a stranger that speaks is nobody");
    assert_eq!(rig.go(&[5]).action, None);
    rig.invite(5);
    assert_eq!(rig.go(&[5]).action, None, "it has not come");
    let agent = "10.0.0.5:7800".parse().unwrap();
    assert_eq!(rig.go(&[]).action, Some(Action::AddLearner(NodeId(5), agent)));
    let readmit = Command::Readmit { node: NodeId(5), token: 77 };
    assert_eq!(rig.go(&[]).action, Some(Action::Propose(readmit)));
    assert_eq!(rig.go(&[]).action, None, "once is enough");
    rig.seen.get_mut(&5).unwrap().probation = None;
    assert_eq!(rig.go(&[]).action, None, "it has yet to read of its invitation");
    rig.stuck.clear();
    let registered = rig.go(&[]).action;
    assert!(matches!(registered, Some(Action::Propose(Command::Register { .. }))), "{registered:?}");
    assert!(rig.state.members.contains_key(&NodeId(5)) && !rig.state.voters.mentions(NodeId(5)));
    pass_seconds(&mut rig, 6, &[]);
    assert_eq!(rig.state.voters, LeaseVoters::only(ids(&[1, 2, 3, 4, 5])));
    assert_eq!(rig.quorum.voters, ids(&[1, 2, 3, 4, 5]));
    assert_eq!(rig.state.members[&NodeId(5)].service, Service::Up);
}

#[test]
fn a_taken_back_invitation_leaves_nothing_in_raft_s_group() {
    let mut rig = Rig::formed();
    rig.seen.insert(5, observation(5));
    rig.stuck.push(5);
    rig.invite(5);
    let _ = rig.go(&[]);
    assert_eq!(rig.quorum.learners, ids(&[5]));
    rig.order(5, false);
    assert_eq!(rig.go(&[]).action, Some(Action::DropNode(NodeId(5))));
    assert_eq!(rig.go(&[5]).action, None);
    assert!(!rig.coordinator.seen().contains_key(&NodeId(5)), "what it says counts for nothing");
}

#[test]
fn a_node_that_leaves_is_seen_off_step_by_step() {
    let mut rig = Rig::formed();
    rig.state.cover.want(&sync_set(1, &[2, 3]), 1);
    rig.state.cover.promised = rig.state.cover.wanted.clone();
    for id in 1..=4 {
        rig.seen.get_mut(&id).unwrap().durability = Durability { standbys: 1, degrade_after_ms: 0 };
    }
    rig.order(3, false);
    let want = rig.go(&[]).action;
    assert!(matches!(want, Some(Action::Propose(Command::WantCover { .. }))), "{want:?}");
    let waits = rig.go(&[]);
    assert_eq!(waits.action, None);
    assert!(waits.report.lines().iter().any(|line| line.contains("commits to rest")), "{waits:?}");
    let number = rig.state.cover.number;
    let PostgresState::Running(primary) = &mut rig.postgres(1).state else { panic!() };
    primary.cover = Some(crate::cover::CoverSeen { number, met: true });
    let settled = rig.go(&[]).action;
    assert!(matches!(settled, Some(Action::Propose(Command::SettleCover { .. }))), "{settled:?}");
    let waits = rig.go(&[]);
    assert!(waits.report.lines().iter().any(|line| line.contains("to stop PostgreSQL")), "{waits:?}");
    rig.postgres(3).state = down(true);
    let plan = Command::PlanVoters { generation: rig.state.generation, next: ids(&[1, 2, 4]) };
    assert_eq!(rig.go(&[]).action, Some(Action::Propose(plan)));
    assert_eq!(rig.go(&[]).action, Some(Action::ChangeVoters(ids(&[1, 2, 4]))));
    let settle = rig.go(&[]).action;
    assert!(matches!(settle, Some(Action::Propose(Command::SettleVoters { .. }))), "{settle:?}");
    assert_eq!(rig.go(&[]).action, Some(Action::DropNode(NodeId(3))));
    let gone = rig.go(&[]).action;
    assert!(matches!(gone, Some(Action::Propose(Command::Removed { .. }))), "{gone:?}");
    assert!(!rig.state.belongs(NodeId(3)));
    rig.come_to_rest(&[]);
}

#[test]
fn a_node_that_is_down_is_removed_at_once_and_never_together_with_another_silent_voter() {
    let mut rig = Rig::formed();
    pass_seconds(&mut rig, 3, &[3]);
    rig.order(3, false);
    for _ in 0..10 {
        let _ = rig.go(&[3]);
    }
    assert!(!rig.state.belongs(NodeId(3)), "nobody waited for node_lost_after");
    rig.come_to_rest(&[3]);
    assert_eq!(rig.state.voters, LeaseVoters::only(ids(&[1, 2, 4])));

    // Another voter falls silent after it was asked for.
    let mut rig = Rig::formed();
    rig.order(3, false);
    pass_seconds(&mut rig, 3, &[2, 3]);
    let stays = rig.go(&[2, 3]);
    assert!(rig.state.voters.contains(NodeId(3)), "{stays:?}");
    assert!(
        matches!(stays.report.waiting.as_slice(), [.., NotYet::Voters(VotersStay::SeveralLost(names))] if names.len() == 2),
        "{stays:?}"
    );
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    let mut rig = Rig::formed();
    rig.order(4, false);
    let handed = (0..10).find_map(|_| rig.go(&[]).action);
    assert_eq!(handed, Some(Action::TransferLeadership(NodeId(3))));
    assert!(rig.state.voters.contains(NodeId(4)), "it is the next leader that takes its vote");
}

#[test]
fn what_cannot_be_removed_is_refused_with_the_reason() {
    let mut rig = Rig::formed();
    let _ = rig.go(&[]);
    assert_eq!(rig.refusal(1, true), "server1 is the primary");
    assert!(rig.refusal(9, true).contains("the nodes are server1, server2, server3, server4"));
    // One of the others is silent.
    pass_seconds(&mut rig, 3, &[2]);
    assert!(rig.refusal(3, false).starts_with("server2 cannot be heard"), "{}", rig.refusal(3, false));
    assert!(rig.view().plan_remove(&name(3), true).is_ok(), "server1 and server4 are two of three");
    // Fewer than a majority would be heard.
    let mut rig = Rig::formed();
    pass_seconds(&mut rig, 3, &[2, 3]);
    let told = rig.refusal(4, true);
    assert!(told.contains("2 of those have to be heard, but only 1 are"), "{told}");
    // Commits would wait for nobody.
    let mut rig = Rig::formed();
    for id in 1..=4 {
        rig.seen.get_mut(&id).unwrap().durability = Durability { standbys: 2, degrade_after_ms: 0 };
    }
    pass_seconds(&mut rig, 1, &[]);
    let told = rig.refusal(3, true);
    assert!(
        told.contains("commits are to wait for 2 standbys") && told.contains("only 1 that can be"),
        "{told}"
    );
    assert!(rig.view().plan_remove(&name(4), false).is_ok(), "a witness is nothing to wait for");
    // Two voters are the least.
    let mut rig = Rig::formed();
    for id in [4, 3] {
        let order = Command::Remove { node: NodeId(id), force: true, at: rig.wall };
        assert_eq!(rig.propose(&order), Applied::Changed);
    }
    let _ = rig.look_at(&[]);
    assert!(rig.refusal(2, true).contains("one voter alone decides nothing"), "{}", rig.refusal(2, true));
}

#[test]
fn whoever_is_silent_is_forgotten_if_the_rest_can_decide() {
    let mut rig = Rig::formed();
    let _ = rig.go(&[]);
    assert_eq!(rig.view().plan_reset(), Err(RemoveRefused::NobodySilent));
    pass_seconds(&mut rig, 4, &[3]);
    let commands = rig.view().plan_reset().unwrap();
    assert_eq!(commands, [Command::Remove { node: NodeId(3), force: true, at: rig.wall }]);
    for command in commands {
        assert_eq!(rig.propose(&command), Applied::Changed);
    }
    rig.come_to_rest(&[3]);
    assert_eq!(rig.state.voters, LeaseVoters::only(ids(&[1, 2, 4])));
    assert!(!rig.state.belongs(NodeId(3)));
    // Another one, and there would be two: still enough. A third, and there would not.
    pass_seconds(&mut rig, 4, &[2, 3]);
    for command in rig.view().plan_reset().unwrap() {
        assert_eq!(rig.propose(&command), Applied::Changed);
    }
    rig.come_to_rest(&[2, 3]);
    assert_eq!(rig.state.voters, LeaseVoters::only(ids(&[1, 4])));
    assert!(matches!(rig.view().plan_remove(&name(4), true), Err(RemoveRefused::TooFewVoters { .. })));
}
