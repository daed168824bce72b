//! Who comes, who goes, and who is known where.

use super::*;

fn act(state: &mut ClusterState, command: &Command) -> Applied {
    let revision = state.revision + 1;
    apply(state, command, revision)
}

fn invite(id: u64, name: &str, agent: &str) -> Command {
    Command::Invite {
        id: NodeId(id),
        name: name.parse().unwrap(),
        agent: agent.parse().unwrap(),
        at: WallTime(3),
    }
}

fn remove(id: u64) -> Command {
    Command::Remove { node: NodeId(id), force: false, at: WallTime(4) }
}

fn removed(state: &ClusterState, id: u64) -> Command {
    let leaving = state.members.get(&NodeId(id)).and_then(|member| member.leaving);
    Command::Removed {
        node: NodeId(id),
        number: leaving.map_or(0, |leaving| leaving.number),
        at: WallTime(5),
    }
}

/// One voter leaves, all the way.
fn take_vote(state: &mut ClusterState, next: &[u64]) {
    let generation = state.generation;
    let plan = Command::PlanVoters { generation, next: ids(next) };
    assert_eq!(act(state, &plan), Applied::Changed);
    let planned = state.voters.plan.as_ref().unwrap().revision;
    assert_eq!(act(state, &Command::SettleVoters { generation, planned }), Applied::Changed);
}

#[test]
fn an_invitation_is_refused_where_something_is_taken_and_says_what() {
    let mut state = ClusterState::default();
    assert_eq!(
        act(&mut state, &invite(5, "server5", "10.0.0.5:7800")),
        Applied::Rejected(Rejected::NotFormed)
    );
    let mut state = formed();
    for (command, told) in [
        (invite(2, "server5", "10.0.0.5:7800"), "server2 has id 2 already"),
        (invite(5, "server2", "10.0.0.5:7800"), "there is a server2 already, with id 2"),
        (invite(5, "server5", "10.0.0.2:7800"), "the agent at 10.0.0.2:7800 is that of server2"),
    ] {
        let Applied::Rejected(Rejected::Taken(why)) = act(&mut state, &command) else {
            panic!("{command:?}")
        };
        assert!(why.starts_with(told), "{why}");
    }
    assert_eq!(act(&mut state, &invite(5, "serv-5", "10.0.0.5:7800")), Applied::Changed);
    assert_eq!(act(&mut state, &invite(5, "serv-5", "10.0.0.5:7800")), Applied::Unchanged);
    let Applied::Rejected(Rejected::Taken(why)) = act(&mut state, &invite(6, "serv_5", "10.0.0.6:7800"))
    else {
        panic!("two names for one slot")
    };
    assert!(why.contains("would share the replication slot pgherd_serv_5"), "{why}");
    for id in 6..=15 {
        let (name, agent) = (format!("server{id}"), format!("10.0.0.{id}:7800"));
        assert_eq!(act(&mut state, &invite(id, &name, &agent)), Applied::Changed);
    }
    assert_eq!(
        act(&mut state, &invite(16, "server16", "10.0.0.16:7800")),
        Applied::Rejected(Rejected::TooManyMembers)
    );
}

#[test]
fn only_who_was_invited_becomes_a_member_also_while_the_primary_changes() {
    let mut state = formed();
    let register = Command::Register { descriptor: descriptor(5), at: WallTime(4) };
    assert_eq!(act(&mut state, &register), Applied::Rejected(Rejected::NotInvited(NodeId(5))));
    let readmit = Command::Readmit { node: NodeId(5), token: 7 };
    assert_eq!(act(&mut state, &readmit), Applied::Rejected(Rejected::UnknownMember(NodeId(5))));
    assert_eq!(act(&mut state, &failover(generation(1), 1)), Applied::Changed);
    assert_eq!(act(&mut state, &invite(5, "other", "10.0.0.5:7800")), Applied::Changed);
    assert_eq!(
        act(&mut state, &register),
        Applied::Rejected(Rejected::NotInvited(NodeId(5))),
        "another name"
    );
    assert_eq!(act(&mut state, &remove(5)), Applied::Changed, "taken back");
    assert!(!state.belongs(NodeId(5)) && state.removal(NodeId(5)).is_some());
    assert_eq!(act(&mut state, &invite(5, "server5", "10.0.0.5:7800")), Applied::Changed);
    assert_eq!(state.removal(NodeId(5)), None, "it is welcome again");
    assert_eq!(act(&mut state, &readmit), Applied::Changed);
    assert_eq!(act(&mut state, &register), Applied::Changed);
    assert!(state.invited.is_empty() && state.members[&NodeId(5)].service == Service::Joining);
    assert!(!state.voters.mentions(NodeId(5)), "its vote comes later");
}

#[test]
fn a_member_leaves_only_once_nothing_rests_on_it() {
    let mut state = formed();
    state.cover.want(&sync_set(1, &[2, 3]), 1);
    state.cover.promised = state.cover.wanted.clone();
    assert_eq!(act(&mut state, &remove(1)), Applied::Rejected(Rejected::IsPrimary(NodeId(1))));
    assert_eq!(act(&mut state, &remove(9)), Applied::Rejected(Rejected::UnknownMember(NodeId(9))));
    assert_eq!(act(&mut state, &remove(3)), Applied::Changed);
    assert_eq!(act(&mut state, &remove(3)), Applied::Unchanged);
    let topology = state.topology().unwrap().unwrap();
    assert!(topology.backend(NodeId(3)).is_none(), "proxies know it no longer");
    assert!(state.promotion_order().iter().all(|member| member.descriptor.id != NodeId(3)));
    let leaving = Applied::Rejected(Rejected::Leaving(NodeId(3)));
    let (node, at) = (NodeId(3), WallTime(6));
    for command in [
        Command::SetService { generation: generation(1), node, service: Service::Up, at },
        Command::SetAllowed { node, allowed: false, at },
        Command::Resume { node, at },
    ] {
        assert_eq!(act(&mut state, &command), leaving, "{command:?}");
    }
    let gone = |state: &mut ClusterState| {
        let command = removed(state, 3);
        act(state, &command)
    };
    let not_yet = Applied::Rejected(Rejected::NotLeft(node));
    assert_eq!(gone(&mut state), not_yet, "it votes");
    take_vote(&mut state, &[1, 2, 4]);
    assert_eq!(gone(&mut state), not_yet, "commits wait for it");
    let set = sync_set(1, &[2]);
    assert_eq!(act(&mut state, &Command::WantCover { generation: generation(1), set }), Applied::Changed);
    assert_eq!(gone(&mut state), not_yet, "a failover may rest on it");
    let number = state.cover.number;
    assert_eq!(
        act(&mut state, &Command::SettleCover { generation: generation(1), number }),
        Applied::Changed
    );
    let late = Command::Removed { node, number: 1, at };
    assert_eq!(act(&mut state, &late), not_yet, "that was another time");
    let next = ids(&[1, 2, 3, 4]);
    let plan = Command::PlanVoters { generation: generation(1), next };
    assert_eq!(act(&mut state, &plan), Applied::Rejected(Rejected::UnfitVoters), "it gets no vote any more");
    state.readmitted.insert(node, 7);
    assert_eq!(gone(&mut state), Applied::Changed);
    assert!(!state.belongs(node));
    assert_eq!(state.readmitted.get(&node), Some(&7), "it may be added again with the store that it has");
    assert_eq!(state.removal(node).map(|removed| removed.at), Some(WallTime(5)));
}

#[test]
fn whoever_is_wanted_or_needed_does_not_leave() {
    let state = formed();
    let refused = |prepare: &[Command], node: u64| {
        let mut state = state.clone();
        for command in prepare {
            assert_eq!(act(&mut state, command), Applied::Changed, "{command:?}");
        }
        act(&mut state, &remove(node))
    };
    let begin = switchover(generation(1), 1, 2);
    let in_flight = Rejected::ChangeInFlight { kind: ChangeKind::Switchover, generation: generation(2) };
    assert_eq!(refused(std::slice::from_ref(&begin), 3), Applied::Rejected(in_flight));
    let schedule = Command::Schedule {
        generation: generation(1),
        due: WallTime(9),
        from: NodeId(1),
        to: Some(NodeId(2)),
        end_transactions: false,
        at: WallTime(3),
    };
    assert_eq!(
        refused(std::slice::from_ref(&schedule), 2),
        Applied::Rejected(Rejected::ScheduledTo(NodeId(2)))
    );
    let pause = |node| Command::Pause { node, until: WallTime(9), at: WallTime(3) };
    let paused = |node| Applied::Rejected(Rejected::Paused { node, until: WallTime(9) });
    assert_eq!(refused(&[pause(Some(NodeId(2)))], 2), paused(Some(NodeId(2))));
    assert_eq!(refused(&[pause(None)], 2), paused(None));
    // The last two that would have a vote.
    assert_eq!(refused(&[remove(4), remove(3)], 2), Applied::Rejected(Rejected::TooFewVoters(NodeId(2))));
    // Nor is it chosen by what was decided before.
    let mut state = state.clone();
    assert_eq!(act(&mut state, &remove(2)), Applied::Changed);
    for command in [begin, schedule] {
        assert_eq!(act(&mut state, &command), Applied::Rejected(Rejected::Leaving(NodeId(2))));
    }
}

#[test]
fn force_can_be_added_later_and_removals_are_not_kept_for_ever() {
    let mut state = formed();
    assert_eq!(act(&mut state, &remove(2)), Applied::Changed);
    let number = state.members[&NodeId(2)].leaving.unwrap().number;
    let force = Command::Remove { node: NodeId(2), force: true, at: WallTime(9) };
    assert_eq!(act(&mut state, &force), Applied::Changed);
    let leaving = state.members[&NodeId(2)].leaving.unwrap();
    assert!(leaving.force && leaving.number == number, "it goes on: {leaving:?}");
    assert_eq!(act(&mut state, &remove(2)), Applied::Unchanged);
    for id in 5..100 {
        let (name, agent) = (format!("server{id}"), format!("10.0.0.{id}:7800"));
        assert_eq!(act(&mut state, &invite(id, &name, &agent)), Applied::Changed);
        assert_eq!(act(&mut state, &remove(id)), Applied::Changed);
    }
    assert_eq!(state.removed.len(), ClusterState::REMOVED_MAX);
    assert!(state.removal(NodeId(99)).is_some() && state.removal(NodeId(5)).is_none());
}

#[test]
fn the_configuration_counts_before_the_cluster_has_formed_and_the_log_afterwards() {
    let entry =
        |name: &str, agent: &str| Contact { name: name.parse().unwrap(), agent: agent.parse().unwrap() };
    let configured: Contacts = [
        (NodeId(1), entry("server1", "10.9.9.1:7800")),
        (NodeId(2), entry("renamed", "10.9.9.2:7800")),
        (NodeId(9), entry("server9", "10.0.0.9:7800")),
    ]
    .into();
    assert_eq!(roster(&configured, &ClusterState::default()), configured);
    let mut state = formed();
    assert_eq!(act(&mut state, &invite(5, "server5", "10.0.0.5:7800")), Applied::Changed);
    let known = roster(&configured, &state);
    assert_eq!(known.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "9 is no member");
    assert_eq!(known[&NodeId(1)], entry("server1", "10.9.9.1:7800"), "an operator has moved it");
    assert_eq!(known[&NodeId(2)], entry("server2", "10.0.0.2:7800"), "that is another node");
    assert_eq!(known[&NodeId(5)], entry("server5", "10.0.0.5:7800"));
    assert_eq!(contact(&configured, &state, NodeId(9)), None);
}
