//! Every command against every kind of state.

mod membership;

use pgherd_common::topology::{Availability, ChangeKind};
use pgherd_common::{NodeId, WallTime};

use super::*;
use crate::fixtures::*;

/// Every kind of command, for every node (one of them a stranger) and for generations around 1.
fn commands() -> Vec<Command> {
    let at = WallTime(5);
    let mut commands = Vec::new();
    for node in [1, 2, 4, 9].map(NodeId) {
        commands.push(form(node.0, descriptors(4)));
        commands.push(Command::Register { descriptor: Descriptor { weight: 7, ..descriptor(node.0) }, at });
        let (name, agent) = (descriptor(node.0).name, descriptor(node.0).agent);
        commands.push(Command::Invite { id: node, name, agent, at });
        commands.push(Command::Remove { node, force: false, at });
        (1..6).for_each(|number| commands.push(Command::Removed { node, number, at }));
        commands.push(Command::SetAttached { node, attached: false });
        commands.push(Command::SetPriority { node, priority: 0 });
        commands.push(Command::SetAllowed { node, allowed: false, at });
        commands.push(Command::SetAllowed { node, allowed: true, at });
        commands.push(Command::Resume { node, at });
        let one = Some(node).filter(|node| node.0 > 1);
        commands.push(Command::Pause { node: one, until: WallTime(9), at });
        commands.push(Command::Unpause { node: one, number: None });
        let values = [("work_mem".to_owned(), (node.0 > 2).then(String::new))].into();
        let by = "dba".to_owned();
        commands.push(Command::SetParameters { node: one.filter(|node| node.0 > 2), values, by, at });
        for generation in (0..4).map(generation) {
            let reason = String::new;
            for service in [Service::Joining, Service::Up, Service::Failed(reason())] {
                commands.push(Command::SetService { generation, node, service, at });
            }
            commands.push(failover(generation, node.0));
            commands.push(switchover(generation, node.0, 2));
            commands.push(grant(generation, node.0));
            commands.push(serve(generation, 1));
            let (from, to, due) = (NodeId(1), Some(node).filter(|node| node.0 > 1), WallTime(9));
            commands.push(Command::Schedule { generation, due, from, to, end_transactions: false, at });
            commands.push(Command::Stop { generation });
            commands.push(Command::Abandon { generation, stopping: node.0 % 2 == 0, reason: reason(), at });
        }
        commands.push(Command::Readmit { node, token: 7 });
        for relay in [None, Some(NodeId(1)), Some(NodeId(2)), Some(NodeId(3))] {
            commands.push(Command::SetRelay { generation: generation(1), node, relay });
        }
        let sync = Some(SlotSync { standbys: [node].into() });
        commands.push(Command::SyncSlots { generation: generation(1), sync });
    }
    let sets = [&[1, 2, 3, 4][..], &[1, 2, 4], &[1, 2], &[2, 4], &[2], &[1, 2, 3, 4, 9], &[]];
    for next in sets.map(|set| set.iter().copied().map(NodeId).collect()) {
        commands.push(Command::PlanVoters { generation: generation(1), next });
    }
    for planned in 1..6 {
        let why = (planned % 2 == 0).then(|| "test".to_owned());
        commands.push(Command::Unschedule { number: planned, why, at });
        commands.push(Command::SettleVoters { generation: generation(1), planned });
    }
    commands
}

fn check(before: &ClusterState, after: &ClusterState, command: &Command, applied: &Applied) {
    match applied {
        Applied::Changed => assert!(after.revision > before.revision, "{command:?}"),
        Applied::Unchanged | Applied::Rejected(_) => assert_eq!(before, after, "{command:?} -> {applied:?}"),
    }
    assert!(after.generation >= before.generation, "{command:?} turned the generation back");
    assert!(after.generation <= before.generation.next(), "{command:?} skipped a generation");
    if before.primary.map(|p| p.node) != after.primary.map(|p| p.node) {
        assert!(after.generation > before.generation, "{command:?} changed the primary within a generation");
    }
    if let Some(change) = &after.change {
        let expected =
            if change.phase == ChangePhase::Granted { after.generation } else { after.generation.next() };
        assert_eq!(change.generation, expected, "{command:?}");
    }
    if let Some(primary) = after.primary {
        assert!(after.voters.contains(primary.node), "{command:?} left the primary without a vote");
        assert!(after.voters.sets().all(|set| set.len() >= ClusterState::VOTERS_MIN), "{command:?}");
        assert!(
            after
                .readmitted
                .keys()
                .all(|node| !before.voters.mentions(*node) || before.readmitted.contains_key(node))
        );
    }
    if before.identity.is_some() && before.voters.current != after.voters.current {
        let planned = before.voters.plan.as_ref().map(|plan| &plan.next);
        assert_eq!(planned, Some(&after.voters.current), "{command:?} changed the voters without a plan");
    }
    if let Some(topology) = after.topology() {
        let topology = topology.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let databases = after.databases().filter(|member| member.leaving.is_none()).count();
        assert_eq!(topology.backends().len(), databases, "{command:?}");
    }
}

/// From nothing, five commands deep through every shape of state that can be reached. Nothing panics,
/// rejected commands change nothing, generations behave.
#[test]
fn every_command_has_a_defined_outcome_in_every_state() {
    let commands = commands();
    let mut states = vec![ClusterState::default()];
    for _ in 0..5 {
        let mut next: Vec<ClusterState> = Vec::new();
        for state in &states {
            for command in &commands {
                let mut after = state.clone();
                let applied = apply(&mut after, command, state.revision + 1);
                check(state, &after, command, &applied);
                // States that differ in nothing that a precondition looks at are alike.
                let shape = |s: &ClusterState| {
                    let change = s.change.as_ref().map(|c| (c.kind, c.phase, c.from));
                    let leaving = |node: u64| s.is_leaving(NodeId(node));
                    let members = (s.members.len(), s.invited.len(), leaving(2), leaving(4));
                    (s.generation, s.primary, change, s.voters.clone(), s.scheduled.is_some(), members)
                };
                if applied == Applied::Changed && next.iter().all(|known| shape(known) != shape(&after)) {
                    next.push(after);
                }
            }
        }
        assert!(!next.is_empty());
        states = next;
    }
}

fn formed() -> ClusterState {
    let mut state = ClusterState::default();
    commit(&mut state, &form(1, descriptors(4)));
    commit(&mut state, &serve(generation(1), 1));
    state
}

#[test]
fn a_late_proposal_of_an_older_generation_is_rejected() {
    let mut state = formed();
    let begin = failover(generation(1), 1);
    assert_eq!(apply(&mut state, &begin, 10), Applied::Changed);
    let again = apply(&mut state, &begin, 11);
    let in_flight = Rejected::ChangeInFlight { kind: ChangeKind::Failover, generation: generation(2) };
    assert_eq!(again, Applied::Rejected(in_flight));
    assert_eq!(apply(&mut state, &grant(generation(2), 2), 12), Applied::Changed);
    let stale = Rejected::Stale { decided: generation(1), current: generation(2) };
    assert_eq!(apply(&mut state, &begin, 13), Applied::Rejected(stale));
}

#[test]
fn detached_disallowed_and_failed_nodes_are_out_of_rotation_and_say_why() {
    let mut state = formed();
    let up = |state: &ClusterState, id: u64| {
        let topology = state.topology().unwrap().unwrap();
        topology.backend(NodeId(id)).unwrap().in_rotation()
    };
    let set = |service| Command::SetService {
        generation: generation(1),
        node: NodeId(2),
        service,
        at: WallTime(3),
    };
    let steps = [
        (set(Service::Up), true),
        (Command::SetAttached { node: NodeId(2), attached: false }, false),
        (Command::SetAttached { node: NodeId(2), attached: true }, true),
        (Command::SetAllowed { node: NodeId(2), allowed: false, at: WallTime(4) }, false),
        (Command::SetAllowed { node: NodeId(2), allowed: true, at: WallTime(5) }, false),
        (set(Service::Up), true),
        (set(Service::Failed("PostgreSQL crashed".to_owned())), false),
        (Command::Resume { node: NodeId(2), at: WallTime(6) }, false),
    ];
    for (command, expected) in steps {
        commit(&mut state, &command);
        assert_eq!(up(&state, 2), expected, "after {command:?}");
    }
    let topology = state.topology().unwrap().unwrap();
    let backend = topology.backend(NodeId(2)).unwrap();
    assert_eq!(backend.availability, Availability::Down { reason: "joining".to_owned() });
}

/// A failover from one node to another, or back to the same, whose primary tells this of its transactions.
fn fail_over(state: &mut ClusterState, from: u64, to: u64, forced: bool, first_xid: Option<u64>) {
    let (decided, next) = (state.generation, state.generation.next());
    commit(state, &command!(Begin { allow_data_loss: forced, ..failover(decided, from) }));
    commit(state, &grant(next, to));
    commit(state, &command!(Serve { first_xid, ..serve(next, 2) }));
}

#[test]
fn the_history_is_bounded() {
    let mut state = formed();
    for round in 0..ClusterState::HISTORY_MAX as u64 + 10 {
        let (from, to) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        fail_over(&mut state, from, to, false, None);
    }
    assert_eq!(state.history.len(), ClusterState::HISTORY_MAX);
    assert_eq!(state.history.last().unwrap().outcome, Outcome::Completed);
}

#[test]
fn where_a_primarys_own_transactions_begin_counts_only_where_it_took_over_from_the_last_one() {
    let told = |state: &ClusterState| state.topology().unwrap().unwrap().first_xid();
    let mut state = formed();
    assert_eq!(told(&state), None);
    fail_over(&mut state, 1, 2, false, Some(700));
    assert_eq!(told(&state), Some(700));
    // It comes back by itself: the numbers behind that are its own.
    fail_over(&mut state, 2, 2, false, Some(700));
    assert_eq!(told(&state), None);
    // A forced one may lack what the last primary had.
    fail_over(&mut state, 2, 3, true, Some(800));
    assert_eq!(told(&state), None);
}

#[test]
fn voters_change_one_at_a_time_and_by_a_plan() {
    let mut state = formed();
    let plan = |next: &[u64]| Command::PlanVoters { generation: generation(1), next: ids(next) };
    let settle = |planned| Command::SettleVoters { generation: generation(1), planned };
    assert_eq!(state.voters, LeaseVoters::only(ids(&[1, 2, 3, 4])));
    for unfit in [&[1, 2, 3, 4][..], &[1, 2], &[2, 3, 4], &[1, 2, 3, 4, 9], &[]] {
        assert_eq!(apply(&mut state, &plan(unfit), 9), Applied::Rejected(Rejected::UnfitVoters), "{unfit:?}");
    }
    assert_eq!(apply(&mut state, &settle(9), 9), Applied::Rejected(Rejected::NoSuchPlan(9)));
    assert_eq!(apply(&mut state, &plan(&[1, 2, 4]), 10), Applied::Changed);
    assert_eq!(apply(&mut state, &plan(&[1, 3, 4]), 11), Applied::Rejected(Rejected::VotersChanging));
    assert!(!state.voters.contains(NodeId(3)) && state.voters.mentions(NodeId(3)));
    let readmit = Command::Readmit { node: NodeId(3), token: 5 };
    assert_eq!(apply(&mut state, &readmit, 12), Applied::Rejected(Rejected::IsVoter(NodeId(3))));
    assert_eq!(apply(&mut state, &settle(9), 12), Applied::Rejected(Rejected::NoSuchPlan(9)));
    assert_eq!(apply(&mut state, &settle(10), 12), Applied::Changed);
    assert_eq!(state.voters, LeaseVoters::only(ids(&[1, 2, 4])));
    assert_eq!(apply(&mut state, &readmit, 13), Applied::Changed);
    assert_eq!(apply(&mut state, &readmit, 14), Applied::Unchanged);
    assert_eq!(apply(&mut state, &plan(&[1, 2]), 15), Applied::Changed);
    assert_eq!(apply(&mut state, &settle(15), 16), Applied::Changed);
    assert_eq!(apply(&mut state, &plan(&[1]), 17), Applied::Rejected(Rejected::UnfitVoters), "two stay");
}

#[test]
fn no_plan_is_made_during_a_change_of_primary_and_nobody_without_a_vote_becomes_primary() {
    let mut state = formed();
    let next = ids(&[1, 2, 4]);
    let plan = Command::PlanVoters { generation: generation(1), next };
    assert_eq!(apply(&mut state, &plan, 10), Applied::Changed);
    assert_eq!(apply(&mut state, &failover(generation(1), 1), 11), Applied::Changed);
    let without_a_vote = apply(&mut state, &grant(generation(2), 3), 12);
    assert_eq!(without_a_vote, Applied::Rejected(Rejected::NotAVoter(NodeId(3))));
    // A plan that was made before is settled all the same: the successor may depend on it.
    let settle = Command::SettleVoters { generation: generation(1), planned: 10 };
    assert_eq!(apply(&mut state, &settle, 12), Applied::Changed);
    assert!(matches!(apply(&mut state, &plan, 13), Applied::Rejected(Rejected::ChangeInFlight { .. })));
    assert_eq!(apply(&mut state, &grant(generation(2), 2), 14), Applied::Changed);
}

#[test]
fn a_primary_that_was_given_up_meanwhile_calls_nothing_off_by_serving() {
    let mut state = formed();
    for command in [
        failover(generation(1), 1),
        grant(generation(2), 2),
        command!(Begin { allow_data_loss: true, ..failover(generation(2), 2) }),
    ] {
        commit(&mut state, &command);
    }
    let late = serve(generation(2), 2);
    let in_flight = Rejected::ChangeInFlight { kind: ChangeKind::Failover, generation: generation(3) };
    assert_eq!(apply(&mut state, &late, 9), Applied::Rejected(in_flight));
    assert_eq!(state.change.map(|change| change.generation), Some(generation(3)));
}

#[test]
fn parameters_are_set_for_everybody_and_for_single_nodes_and_taken_back() {
    let mut state = formed();
    let set = |node: Option<u64>, values: &[(&str, Option<&str>)]| Command::SetParameters {
        node: node.map(NodeId),
        values: values.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect(),
        by: "dba".to_owned(),
        at: WallTime(5),
    };
    let everybody = set(None, &[("work_mem", Some("4MB")), ("max_connections", Some("200"))]);
    assert_eq!(apply(&mut ClusterState::default(), &everybody, 1), Applied::Rejected(Rejected::NotFormed));
    assert_eq!(apply(&mut state, &everybody, 20), Applied::Changed);
    assert_eq!(apply(&mut state, &set(Some(2), &[("work_mem", Some("8MB"))]), 21), Applied::Changed);
    let witness = set(Some(4), &[("work_mem", Some("8MB"))]);
    assert_eq!(apply(&mut state, &witness, 22), Applied::Rejected(Rejected::Witness(NodeId(4))));
    let stranger = set(Some(9), &[("work_mem", Some("8MB"))]);
    assert_eq!(apply(&mut state, &stranger, 22), Applied::Rejected(Rejected::UnknownMember(NodeId(9))));
    let value = |state: &ClusterState, node| {
        state.parameters.of(NodeId(node)).get("work_mem").map(|p| p.value.clone())
    };
    assert_eq!((value(&state, 1).as_deref(), value(&state, 2).as_deref()), (Some("4MB"), Some("8MB")));
    assert_eq!(state.parameters.number, 21);
    // The same again is to be tried again.
    let before = state.parameters.clone();
    assert_eq!(apply(&mut state, &set(None, &[("work_mem", Some("4MB"))]), 23), Applied::Changed);
    assert_eq!((state.parameters.number, state.parameters.cluster["max_connections"].number), (23, 20));
    assert_eq!(state.parameters.changes_since(&before, None), ["work_mem = '4MB' (by dba)"]);
    let back = set(Some(2), &[("work_mem", None)]);
    assert_eq!(apply(&mut state, &back, 24), Applied::Changed);
    assert_eq!(apply(&mut state, &back, 25), Applied::Unchanged);
    assert_eq!((value(&state, 2).as_deref(), state.parameters.nodes.len()), (Some("4MB"), 0));
    assert_eq!(state.parameters.changes_since(&before, Some(NodeId(2))), ["work_mem taken back"]);
    assert_eq!(state.parameters.names().collect::<Vec<_>>(), ["max_connections", "work_mem"]);
}

fn serving() -> ClusterState {
    let mut state = formed();
    let (generation, at) = (state.generation, WallTime(0));
    for node in [2, 3].map(NodeId) {
        commit(&mut state, &Command::SetService { generation, node, service: Service::Up, at });
    }
    state
}

fn set_relay(state: &mut ClusterState, node: u64, relay: Option<u64>) -> Applied {
    let command =
        Command::SetRelay { generation: state.generation, node: NodeId(node), relay: relay.map(NodeId) };
    let revision = state.revision + 1;
    apply(state, &command, revision)
}

#[test]
fn a_standby_streams_from_another_one_only_while_that_is_in_service() {
    let mut state = serving();
    assert_eq!(set_relay(&mut state, 3, Some(2)), Applied::Changed);
    assert_eq!(state.relay(NodeId(3)), Some(NodeId(2)));
    assert_eq!(set_relay(&mut state, 3, Some(2)), Applied::Unchanged);
    // Nobody goes back by himself: the coordinator looks first.
    let (generation, at, node) = (state.generation, WallTime(1), NodeId(2));
    for service in [Service::Failed("gone".to_owned()), Service::Up] {
        commit(&mut state, &Command::SetService { generation, node, service, at });
        assert_eq!(state.relay(NodeId(3)), None);
    }
    assert_eq!(set_relay(&mut state, 3, Some(2)), Applied::Changed);
    let revision = state.revision + 1;
    apply(&mut state, &Command::Pause { node: Some(node), until: WallTime(9_000), at }, revision);
    assert_eq!(state.relay(NodeId(3)), None, "what is left alone may be stopped at any time");
}

#[test]
fn nobody_streams_from_himself_or_from_what_is_no_standby_in_service() {
    let mut state = serving();
    let rejected = |state: &mut ClusterState, node, relay| match set_relay(state, node, Some(relay)) {
        Applied::Rejected(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(rejected(&mut state, 3, 1), Rejected::NotARelay(NodeId(1)));
    assert_eq!(rejected(&mut state, 3, 4), Rejected::NotARelay(NodeId(4)));
    assert_eq!(rejected(&mut state, 3, 9), Rejected::NotARelay(NodeId(9)));
    assert_eq!(rejected(&mut state, 4, 2), Rejected::Witness(NodeId(4)));
    assert_eq!(rejected(&mut state, 1, 2), Rejected::IsPrimary(NodeId(1)));
    assert_eq!(rejected(&mut state, 3, 3), Rejected::Circle(NodeId(3)));
    assert_eq!(set_relay(&mut state, 3, Some(2)), Applied::Changed);
    assert_eq!(rejected(&mut state, 2, 3), Rejected::Circle(NodeId(2)));
}

#[test]
fn behind_a_change_of_primary_all_stream_from_the_new_one_and_subscribers_wait_for_nobody_yet() {
    let mut state = serving();
    assert_eq!(set_relay(&mut state, 3, Some(2)), Applied::Changed);
    let sync = Some(SlotSync { standbys: [2, 3].map(NodeId).into() });
    let command = Command::SyncSlots { generation: state.generation, sync };
    assert_eq!(apply(&mut state, &command, 20), Applied::Changed);
    let begin = failover(state.generation, 1);
    assert_eq!(apply(&mut state, &begin, 21), Applied::Changed);
    assert!(matches!(set_relay(&mut state, 2, Some(3)), Applied::Rejected(Rejected::ChangeInFlight { .. })));
    let grant = grant(state.generation.next(), 2);
    assert_eq!(apply(&mut state, &grant, 22), Applied::Changed);
    assert!(state.relays.is_empty());
    assert_eq!(state.slot_sync, Some(SlotSync::default()), "still copied, but waited for by nobody");
}

#[test]
fn tags_take_a_node_out_of_the_promotion_order_and_out_of_the_rotation() {
    let mut state = serving();
    let tags = Tags { promotable: false, balance: false, ..Tags::default() };
    let descriptor = Descriptor { tags, ..descriptor(2) };
    assert_eq!(apply(&mut state, &Command::Register { descriptor, at: WallTime(1) }, 30), Applied::Changed);
    let order: Vec<_> = state.promotion_order().iter().map(|member| member.descriptor.id).collect();
    assert_eq!(order, [NodeId(3)]);
    // No priority makes up for it.
    apply(&mut state, &Command::SetPriority { node: NodeId(2), priority: 1 }, 31);
    assert_eq!(state.members[&NodeId(2)].priority(), 0);
    let topology = state.topology().unwrap().unwrap();
    let attached: Vec<_> = topology.backends().iter().map(|backend| backend.attached).collect();
    assert_eq!(attached, [true, false, true]);
}
