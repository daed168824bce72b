//! What an operator wants left alone.

use super::*;
use crate::cluster::Rejected;

const ASKED: WallTime = WallTime(1_796_000_000_000);
const UNTIL: WallTime = WallTime(1_796_000_060_000);

fn paused(node: Option<u64>) -> Rig {
    let mut rig = Rig::formed();
    rig.wall = ASKED;
    let command = Command::Pause { node: node.map(NodeId), until: UNTIL, at: ASKED };
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig
}

fn forced() -> Command {
    command!(Begin { to: Some(NodeId(3)), at: ASKED, ..failover(generation(1), 1) })
}

#[test]
fn a_primary_that_fails_while_it_is_paused_is_replaced_when_the_pause_is_over() {
    for node in [None, Some(1)] {
        let mut rig = paused(node);
        rig.crash(1);
        let decision = rig.step(&[]);
        assert_eq!(decision.action, None);
        let said = decision.report.lines();
        let line = "PostgreSQL on server1 crashed; it is left alone: paused until 2026-11-30 00:54:20.000Z \
                    (`pgherd unpause` ends that)";
        assert_eq!(said, [line], "{said:?}");
        rig.wall = UNTIL;
        assert!(matches!(rig.step(&[]).action, Some(Action::Propose(Command::Unpause { .. }))));
        assert!(matches!(rig.step(&[]).action, Some(Action::Propose(Command::Begin { .. }))));
    }
}

#[test]
fn a_standby_that_is_paused_does_not_take_over_and_the_others_do() {
    let mut rig = paused(Some(3));
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 2000);
    rig.recruited(3, 3000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)), "server3 has more, and is left alone");
}

#[test]
fn operators_are_told_what_is_paused_and_the_log_refuses_as_well() {
    let cases = [(None, "the cluster"), (Some(1), "server1"), (Some(3), "server3")];
    for (node, name) in cases {
        let mut rig = paused(node);
        rig.pass(&[]);
        let to = "server3".parse().unwrap();
        let view = rig.coordinator.view(rig.now, rig.wall);
        for refused in [view.plan_switchover(Some(&to), false), view.plan_forced(Some(&to), true)] {
            let refused = refused.unwrap_err();
            assert_eq!(refused, SwitchoverRefused::Paused { what: name.to_owned(), until: UNTIL });
            assert!(refused.hint().contains("pgherd unpause"), "{}", refused.hint());
        }
        let rejected = Rejected::Paused { node: node.map(NodeId), until: UNTIL };
        assert_eq!(rig.propose(&forced()), Applied::Rejected(rejected));
    }
    // Another standby is none of its business.
    let mut rig = paused(Some(2));
    rig.pass(&[]);
    let view = rig.coordinator.view(rig.now, rig.wall);
    assert!(view.plan_switchover(Some(&"server3".parse().unwrap()), false).is_ok());
}

#[test]
fn the_end_of_a_pause_that_was_set_anew_does_not_end_the_new_one() {
    let mut rig = paused(None);
    let first = rig.state.pauses.cluster.unwrap();
    let later = UNTIL + Duration::from_secs(60);
    assert_eq!(rig.propose(&Command::Pause { node: None, until: later, at: ASKED }), Applied::Changed);
    let late = Command::Unpause { node: None, number: Some(first.number) };
    assert_eq!(rig.propose(&late), Applied::Rejected(Rejected::NotPaused(None)));
    assert_eq!(rig.state.pauses.cluster.map(|pause| pause.until), Some(later));
    rig.wall = UNTIL;
    assert_eq!(rig.step(&[]).action, None);
    rig.wall = later;
    rig.pass(&[]);
    assert_eq!(rig.state.pauses, Default::default());
}

#[test]
fn what_cannot_be_paused_is_refused() {
    let mut rig = Rig::formed();
    let mut pause = |node| rig.propose(&Command::Pause { node, until: UNTIL, at: ASKED });
    assert_eq!(pause(Some(NodeId(4))), Applied::Rejected(Rejected::Witness(NodeId(4))));
    assert_eq!(pause(Some(NodeId(9))), Applied::Rejected(Rejected::UnknownMember(NodeId(9))));
    rig.crash(1);
    rig.pass(&[]);
    let refused = rig.propose(&Command::Pause { node: None, until: UNTIL, at: ASKED });
    assert!(matches!(refused, Applied::Rejected(Rejected::ChangeInFlight { .. })), "{refused:?}");
}
