//! What is told of what happens, and which scripts run, case by case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, Lsn, MonoTime, NodeId, WallTime};

use super::throttle::Throttle;
use super::*;
use crate::cluster::{ClusterState, Command, OldEnd, Service};
use crate::coordinator::NotYet;
use crate::fixtures::*;
use crate::observation::{Disk, PostgresObservation, PostgresState};
use crate::reconcile::LEASE_ENDED;

const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> MonoTime {
    MonoTime::since_boot(Duration::from_secs(seconds))
}

fn standby() -> PostgresObservation {
    observed(PostgresState::Running(running(true)))
}

fn down(clean: bool) -> PostgresObservation {
    observed(PostgresState::Down(stopped(clean, false)))
}

/// The log of three servers and a witness, and the narrator of each agent. Server 1 leads.
struct Rig {
    state: Arc<ClusterState>,
    narrators: Vec<Narrator>,
    own: Vec<PostgresObservation>,
    leader: u64,
    now: MonoTime,
    waiting: Vec<NotYet>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            state: Arc::default(),
            narrators: (1..=4).map(|_| Narrator::new(HOUR)).collect(),
            own: (1..=4).map(|_| standby()).collect(),
            leader: 1,
            now: at(100),
            waiting: Vec::new(),
        };
        let _nothing_yet = rig.look_all();
        rig
    }

    /// Server 1 serves, all others are in service, and everybody knows that all was told.
    fn serving() -> Self {
        let mut rig = Self::new();
        rig.apply(&form(1, descriptors(4)));
        rig.serve(1);
        for node in 2..=4 {
            rig.service(node, Service::Up);
        }
        let _told = rig.look_all();
        rig
    }

    fn apply(&mut self, command: &Command) {
        let mut state = ClusterState::clone(&self.state);
        commit(&mut state, command);
        self.state = Arc::new(state);
    }

    fn serve(&mut self, timeline: u32) {
        self.apply(&command!(Serve { at: WallTime(3), ..serve(self.state.generation, timeline) }));
    }

    fn service(&mut self, node: u64, service: Service) {
        let generation = self.state.generation;
        self.apply(&Command::SetService { generation, node: NodeId(node), service, at: WallTime(0) });
    }

    fn begin(&mut self, kind: ChangeKind, from: u64, began: u64) {
        self.apply(&command!(Begin { at: WallTime(began), ..begin(self.state.generation, kind, from) }));
    }

    fn stop(&mut self) {
        let generation = self.state.change.as_ref().unwrap().generation;
        self.apply(&Command::Stop { generation });
    }

    fn grant(&mut self, node: u64, old_end: Option<OldEnd>, rolled_back: Option<&str>) {
        self.apply(&command!(Grant {
            received: Lsn(1000),
            old_end,
            rolled_back: rolled_back.map(str::to_owned),
            at: WallTime(2),
            ..grant(self.state.generation.next(), node)
        }));
    }

    /// What one agent finds.
    fn look(&mut self, node: u64) -> Told {
        let index = usize::try_from(node - 1).unwrap();
        let heard = self.narrators.iter().map(Narrator::told).max().unwrap_or(0);
        let descriptor = descriptor(node);
        let own = descriptor.postgres.is_some().then(|| self.own[index].clone());
        let state = self.state.clone();
        self.narrators[index].look(&Look {
            me: NodeId(node),
            name: &descriptor.name,
            state: &state,
            own: own.as_ref(),
            leads: node == self.leader,
            waiting: if node == self.leader { &self.waiting } else { &[] },
            told: heard,
            heard: Some(state.revision),
            backed: true,
            now: self.now,
        })
    }

    /// What all agents find, the leader last. Each line begins with the node.
    fn look_all(&mut self) -> Vec<String> {
        let mut order: Vec<u64> = (1..=4).filter(|node| *node != self.leader).collect();
        order.push(self.leader);
        let mut lines = Vec::new();
        for node in order {
            let told = self.look(node);
            lines.extend(told.events.iter().map(|event| format!("{node} {}", event.kind.name())));
            lines.extend(told.calls.iter().map(|call| format!("{node} {}", shown(call))));
        }
        lines.sort();
        lines
    }
}

fn shown(call: &Call) -> String {
    let values = call.values();
    let host = |address: &Option<pgherd_common::HostPort>| {
        address.as_ref().map_or("-".to_owned(), |a| a.host.clone())
    };
    match call {
        Call::Attach(_, role) | Call::Detach(_, role) => {
            format!("run {} {} {}", call.name(), host(&values.host), role.letter())
        }
        Call::PostPromotion(_) => {
            format!("run {} {} {}", call.name(), host(&values.primary), host(&values.old_primary))
        }
        Call::RemotePrePromotion(_) | Call::RemotePostPromotion(_) => {
            format!("run {} {}", call.name(), host(&values.primary))
        }
        Call::DbFailure(_) | Call::PrimaryIsolated(_) | Call::Resumed(_) => format!("run {}", call.name()),
    }
}

#[test]
fn a_cluster_that_forms_is_told_once_and_runs_no_script() {
    let mut rig = Rig::new();
    rig.apply(&form(1, descriptors(4)));
    assert_eq!(rig.look_all(), ["1 cluster_formed"]);
    rig.serve(1);
    assert_eq!(rig.look_all(), Vec::<String>::new());
    rig.service(2, Service::Up);
    assert_eq!(rig.look_all(), ["1 node_in_service", "1 run load_balancer_attach 10.0.0.2 s"]);
}

#[test]
fn a_failover_runs_every_script_once_where_it_should() {
    let mut rig = Rig::serving();
    rig.leader = 2;
    rig.own[0] = down(false);
    assert_eq!(rig.look_all(), ["1 database_down"]);
    rig.begin(ChangeKind::Failover, 1, 1);
    assert_eq!(
        rig.look_all(),
        ["1 run db_failure", "2 failover_begun", "2 run load_balancer_detach 10.0.0.1 p"]
    );
    rig.grant(2, None, None);
    assert_eq!(
        rig.look_all(),
        [
            "1 run remote_pre_promotion 10.0.0.2",
            "3 run remote_pre_promotion 10.0.0.2",
            "4 run remote_pre_promotion 10.0.0.2"
        ]
    );
    rig.serve(2);
    assert_eq!(
        rig.look_all(),
        [
            "1 run remote_post_promotion 10.0.0.2",
            "2 failover_completed",
            "2 run load_balancer_attach 10.0.0.2 p",
            "2 run post_promotion 10.0.0.2 10.0.0.1",
            "3 run remote_post_promotion 10.0.0.2",
            "4 run remote_post_promotion 10.0.0.2",
        ]
    );
    rig.service(1, Service::Joining);
    rig.own[0] = standby();
    assert_eq!(rig.look_all(), Vec::<String>::new());
    rig.service(1, Service::Up);
    assert_eq!(
        rig.look_all(),
        ["1 run resumed", "2 node_in_service", "2 run load_balancer_attach 10.0.0.1 s"]
    );
}

#[test]
fn an_agent_that_sees_only_the_end_of_a_failover_runs_the_same() {
    let mut rig = Rig::serving();
    rig.begin(ChangeKind::Failover, 1, 1);
    rig.grant(2, None, None);
    rig.serve(2);
    let told = rig.look(3);
    let calls: Vec<String> = told.calls.iter().map(shown).collect();
    assert_eq!(calls, ["run remote_pre_promotion 10.0.0.2", "run remote_post_promotion 10.0.0.2"]);
    rig.leader = 2;
    let told = rig.look(2);
    let calls: Vec<String> = told.calls.iter().map(shown).collect();
    assert_eq!(
        calls,
        [
            "run post_promotion 10.0.0.2 10.0.0.1",
            "run load_balancer_detach 10.0.0.1 p",
            "run load_balancer_attach 10.0.0.2 p"
        ]
    );
    let kinds: Vec<&str> = told.events.iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["failover_completed"]);
}

#[test]
fn a_switchover_is_told_and_detaches_only_what_stops() {
    let mut rig = Rig::serving();
    rig.begin(ChangeKind::Switchover, 1, 1);
    assert_eq!(rig.look_all(), ["1 switchover_begun"]);
    rig.stop();
    assert_eq!(rig.look_all(), ["1 run load_balancer_detach 10.0.0.1 p"]);
    rig.grant(2, None, None);
    assert_eq!(rig.look_all().len(), 3, "remote_pre_promotion on the others");
    rig.serve(2);
    let told = rig.look_all();
    assert!(told.contains(&"1 switchover_completed".to_owned()), "{told:?}");
    assert!(told.contains(&"2 run post_promotion 10.0.0.2 10.0.0.1".to_owned()), "{told:?}");
    rig.service(1, Service::Up);
    assert_eq!(rig.look_all(), ["1 node_in_service", "1 run load_balancer_attach 10.0.0.1 s"]);
}

#[test]
fn what_is_given_up_attaches_the_old_primary_again() {
    let mut rig = Rig::serving();
    rig.begin(ChangeKind::Switchover, 1, 1);
    rig.stop();
    let _detached = rig.look_all();
    let generation = rig.state.change.as_ref().unwrap().generation;
    let reason = "transactions did not end".to_owned();
    rig.apply(&Command::Abandon { generation, stopping: true, reason, at: WallTime(2) });
    assert_eq!(rig.look_all(), ["1 change_rolled_back", "1 run load_balancer_attach 10.0.0.1 p"]);

    // Once it had been stopped, as another generation.
    rig.begin(ChangeKind::Switchover, 1, 5);
    rig.stop();
    let _detached = rig.look_all();
    rig.grant(1, None, Some("the standby is gone"));
    assert_eq!(rig.look_all(), Vec::<String>::new(), "no node is told of a primary that stays");
    rig.serve(1);
    assert_eq!(rig.look_all(), ["1 change_rolled_back", "1 run load_balancer_attach 10.0.0.1 p"]);
}

#[test]
fn a_failed_promotion_and_lost_commits_are_severe() {
    let mut rig = Rig::serving();
    rig.leader = 3;
    rig.begin(ChangeKind::Failover, 1, 1);
    rig.grant(2, None, None);
    let _told = rig.look_all();
    rig.begin(ChangeKind::Failover, 2, 2);
    let told = rig.look_all();
    assert!(told.contains(&"3 promotion_failed".to_owned()), "{told:?}");
    assert!(!told.iter().any(|line| line.contains("load_balancer")), "it was never attached: {told:?}");
    rig.grant(3, Some(OldEnd { at: Lsn(1500), exact: true, covered: false }), None);
    rig.serve(2);
    let told = rig.look(3);
    let lost = told.events.iter().find(|event| event.kind == Kind::CommitsLost).unwrap();
    assert!(lost.text.contains("lost 500 bytes of WAL"), "{lost:?}");
    assert_eq!(lost.kind.severity(), Severity::Severe);
}

#[test]
fn members_come_and_go() {
    let mut rig = Rig::serving();
    for (command, told) in [
        (
            Command::SetAttached { node: NodeId(2), attached: false },
            vec!["node_detached", "run load_balancer_detach 10.0.0.2 s"],
        ),
        (
            Command::SetAttached { node: NodeId(2), attached: true },
            vec!["node_attached", "run load_balancer_attach 10.0.0.2 s"],
        ),
        (Command::SetPriority { node: NodeId(2), priority: 3 }, vec!["priority_changed"]),
        (
            Command::SetParameters {
                node: None,
                values: [("work_mem".to_owned(), Some("4MB".to_owned()))].into(),
                by: "dba".to_owned(),
                at: WallTime(0),
            },
            vec!["parameters_set"],
        ),
        (
            Command::SetAllowed { node: NodeId(3), allowed: false, at: WallTime(0) },
            vec!["node_disallowed", "run load_balancer_detach 10.0.0.3 s"],
        ),
        (Command::SetAllowed { node: NodeId(3), allowed: true, at: WallTime(0) }, vec!["node_allowed"]),
        (
            Command::Invite {
                id: NodeId(5),
                name: "server5".parse().unwrap(),
                agent: "10.0.0.5:7800".parse().unwrap(),
                at: WallTime(0),
            },
            vec!["member_invited"],
        ),
        (Command::Register { descriptor: descriptor(5), at: WallTime(0) }, vec!["member_joined"]),
        (Command::Remove { node: NodeId(5), force: false, at: WallTime(0) }, vec!["member_leaving"]),
        (
            Command::Invite {
                id: NodeId(6),
                name: "server6".parse().unwrap(),
                agent: "10.0.0.6:7800".parse().unwrap(),
                at: WallTime(0),
            },
            vec!["member_invited"],
        ),
        (Command::Remove { node: NodeId(6), force: false, at: WallTime(0) }, vec!["member_removed"]),
    ] {
        rig.apply(&command);
        let expected: Vec<String> = told.into_iter().map(|line| format!("1 {line}")).collect();
        assert_eq!(rig.look_all(), expected, "{command:?}");
    }
    rig.service(2, Service::Failed("it crashed".to_owned()));
    assert_eq!(rig.look_all(), ["1 node_failed", "1 run load_balancer_detach 10.0.0.2 s"]);
    rig.service(4, Service::Failed("its agent is silent".to_owned()));
    assert_eq!(rig.look_all(), ["1 witness_lost"]);
    rig.service(4, Service::Up);
    assert_eq!(rig.look_all(), ["1 witness_back"]);
}

#[test]
fn voters_and_standbys_to_wait_for_are_told() {
    let mut rig = Rig::serving();
    let compare = |before: &ClusterState, after: &ClusterState| -> Vec<&'static str> {
        states::compare(before, after).iter().map(|event| event.kind.name()).collect()
    };
    let before = ClusterState::clone(&rig.state);
    let mut after = before.clone();
    after.voters.current.remove(&NodeId(4));
    assert_eq!(compare(&before, &after), ["voters_lowered"]);
    assert_eq!(compare(&after, &before), ["voters_raised"]);
    let mut after = before.clone();
    after.cover.wanted = sync_set(1, &[2, 3]);
    assert_eq!(compare(&before, &after), ["sync_raised"]);
    assert_eq!(compare(&after, &before), ["sync_lowered"]);
    rig.apply(&Command::Schedule {
        generation: rig.state.generation,
        due: WallTime(60_000),
        from: NodeId(1),
        to: Some(NodeId(2)),
        end_transactions: false,
        at: WallTime(0),
    });
    assert_eq!(rig.look_all(), ["1 switchover_scheduled"]);
    let number = rig.state.scheduled.as_ref().unwrap().number;
    rig.apply(&Command::Unschedule { number, why: Some("no standby".to_owned()), at: WallTime(0) });
    assert_eq!(rig.look_all(), ["1 switchover_not_done"]);
}

#[test]
fn a_new_leader_tells_what_the_last_one_had_no_time_for_and_nothing_twice() {
    let mut rig = Rig::serving();
    rig.service(3, Service::Failed("it crashed".to_owned()));
    // The leader dies before it has applied this; the others have.
    for node in 2..=4 {
        assert_eq!(rig.look(node), Told::default());
    }
    rig.leader = 2;
    let told = rig.look(2);
    assert_eq!(told.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [Kind::NodeFailed]);
    assert_eq!(told.calls.len(), 1);
    assert_eq!(rig.look(2), Told::default());
    // One that leads later has heard that it was told.
    rig.leader = 4;
    assert_eq!(rig.look(4), Told::default());
}

#[test]
fn what_happened_before_an_agent_came_is_not_told() {
    let mut rig = Rig::serving();
    let mut late = Narrator::new(HOUR);
    let name = descriptor(3).name;
    let mut look = |state: &Arc<ClusterState>, heard| {
        late.look(&Look {
            me: NodeId(3),
            name: &name,
            state,
            own: None,
            leads: false,
            waiting: &[],
            told: 0,
            heard,
            backed: true,
            now: at(100),
        })
    };
    let old = rig.state.clone();
    rig.begin(ChangeKind::Failover, 1, 1);
    rig.grant(2, None, None);
    rig.serve(2);
    let newest = Some(rig.state.revision);
    assert_eq!(look(&old, newest), Told::default());
    assert_eq!(look(&rig.state.clone(), newest), Told::default(), "it only catches up");
    rig.service(1, Service::Joining);
    rig.service(1, Service::Up);
    rig.begin(ChangeKind::Failover, 2, 9);
    rig.grant(1, None, None);
    let told = look(&rig.state.clone(), newest);
    assert_eq!(told.calls.iter().map(shown).collect::<Vec<_>>(), ["run remote_pre_promotion 10.0.0.1"]);
}

#[test]
fn a_primary_that_was_cut_off_is_isolated_and_not_failed() {
    let mut rig = Rig::serving();
    rig.leader = 2;
    rig.own[0] = PostgresObservation { fenced: Some(format!("{LEASE_ENDED}: too few")), ..down(false) };
    assert_eq!(rig.look_all(), ["1 primary_isolated", "1 run primary_isolated"]);
    rig.begin(ChangeKind::Failover, 1, 1);
    let told = rig.look_all();
    assert!(!told.iter().any(|line| line.contains("db_failure")), "{told:?}");
    let mut rig = Rig::serving();
    rig.own[1] = PostgresObservation { fenced: Some("it accepts writes".to_owned()), ..down(false) };
    assert_eq!(rig.look_all(), ["2 database_fenced"]);
    // Stopped by hand: the log will tell.
    let mut rig = Rig::serving();
    rig.own[1] = down(true);
    assert_eq!(rig.look_all(), Vec::<String>::new());
}

#[test]
fn what_lasts_is_told_again_after_a_while_only() {
    let mut rig = Rig::serving();
    rig.own[1].trouble = Some("pg_rewind failed".to_owned());
    rig.own[2].health.disk = Disk::Full { for_ms: 5 };
    rig.own[0].health.monitor = Some("it failed".to_owned());
    rig.waiting = vec![
        NotYet::AutoFailoverOff("server1".parse().unwrap()),
        NotYet::Listening("server1".parse().unwrap()),
    ];
    let all = ["1 failover_is_off", "1 monitor_failed", "2 action_failed", "3 database_sick"];
    assert_eq!(rig.look_all(), all);
    rig.now = at(200);
    assert_eq!(rig.look_all(), Vec::<String>::new());
    rig.now = at(100 + 3600);
    assert_eq!(rig.look_all(), all);
    // Gone and back: new.
    rig.own[1].trouble = None;
    rig.now = at(4000);
    assert_eq!(rig.look_all(), Vec::<String>::new());
    rig.own[1].trouble = Some("pg_rewind failed".to_owned());
    assert_eq!(rig.look_all(), ["2 action_failed"]);
    for (state, kind) in [
        (PostgresState::Unusable("foreign".to_owned()), "2 database_unusable"),
        (PostgresState::Unresponsive { for_ms: 5000, reason: "28P01".to_owned() }, "2 database_silent"),
    ] {
        let mut rig = Rig::serving();
        rig.own[1] = observed(state);
        assert_eq!(rig.look_all(), [kind]);
    }
}

#[test]
fn every_reason_that_a_person_should_hear_of_is_an_event() {
    let name: NodeName = "server1".parse().unwrap();
    let one = |why| reported::of(&why, Generation::ZERO).map(|event| event.kind);
    for (why, kind) in [
        (NotYet::Unguarded(name.clone()), Some(Kind::PrimaryUnguarded)),
        (NotYet::NoCandidate { node: name.clone(), rejected: Vec::new() }, Some(Kind::NoCandidate)),
        (NotYet::TooFewLeft { node: name.clone(), left: 0, wanted: 1 }, Some(Kind::TooFewLeft)),
        (NotYet::Paused { trouble: "it crashed".to_owned(), until: WallTime(9) }, Some(Kind::LeftAlone)),
        (NotYet::Minority { node: name.clone(), heard: 1, needed: 2 }, Some(Kind::Minority)),
        (NotYet::Sick("disk".to_owned()), Some(Kind::PrimarySick)),
        (
            NotYet::TooFewStandbys { asked: 1, up: Vec::new(), never: Vec::new(), so: "they wait" },
            Some(Kind::TooFewStandbys),
        ),
        (NotYet::SeveralPrimaries(vec![name.clone()]), Some(Kind::SeveralPrimaries)),
        (NotYet::DuplicateName(name.clone()), Some(Kind::DuplicateName)),
        (NotYet::MajorVersion { node: name.clone(), found: 14, expected: 15 }, Some(Kind::WrongDatabase)),
        (NotYet::Recruiting { done: 1, expected: 2 }, None),
    ] {
        let text = why.to_string();
        assert_eq!(one(why), kind, "{text}");
    }
}

#[test]
fn an_agent_that_hears_too_few_says_so() {
    let rig = Rig::serving();
    let mut narrator = Narrator::new(HOUR);
    let name = descriptor(3).name;
    let mut look = |backed, seconds| {
        let look = Look {
            me: NodeId(3),
            name: &name,
            state: &rig.state,
            own: None,
            leads: false,
            waiting: &[],
            told: 0,
            heard: None,
            backed,
            now: at(seconds),
        };
        narrator.look(&look).events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
    };
    assert_eq!(look(true, 100), []);
    assert_eq!(look(false, 101), []);
    assert_eq!(look(true, 103), []);
    assert_eq!(look(false, 110), []);
    assert_eq!(look(false, 115), [Kind::AgentIsolated]);
    assert_eq!(look(false, 120), []);
}

#[test]
fn what_flaps_is_collected_and_told_with_its_count() {
    let mut throttle = Throttle::new(HOUR);
    let event =
        |text: &str| Event::new(Kind::NodeFailed, Some("server2".parse().unwrap()), Generation::ZERO, text);
    assert_eq!(throttle.happened(event("first"), at(0)), Some(event("first")));
    assert_eq!(throttle.happened(event("second"), at(1)), None);
    assert_eq!(throttle.happened(event("third"), at(2)), None);
    assert_eq!(throttle.due(at(59)), []);
    assert_eq!(throttle.wake_at(), Some(at(60)));
    let due = throttle.due(at(60));
    assert_eq!(due, [Event { times: 2, ..event("third") }]);
    assert_eq!(due.first().unwrap().headline(), "third (2 times)");
    assert_eq!(throttle.due(at(200)), []);
    assert_eq!(throttle.happened(event("fourth"), at(201)), Some(event("fourth")));
    // Of another generation it is another one.
    let next = Event { generation: Generation::ZERO.next(), ..event("next") };
    assert_eq!(throttle.happened(next.clone(), at(202)), Some(next));
}

#[test]
fn every_kind_is_in_the_documentation_as_it_is() {
    let page = include_str!("../../../docs/notifications.md");
    for kind in Kind::ALL {
        let who = match kind.scope() {
            Scope::Cluster => "leader",
            Scope::Node => "node",
        };
        let row = format!("| `{}` | {} | {who} | {} |", kind.name(), kind.severity(), kind.what());
        assert!(page.contains(&row), "docs/notifications.md lacks the row\n{row}");
    }
    let rows = page.lines().filter(|line| {
        line.starts_with("| `") && line.contains(" | leader | ") || line.contains(" | node | ")
    });
    assert_eq!(rows.count(), Kind::ALL.len(), "docs/notifications.md has rows of no event");
    let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
}
