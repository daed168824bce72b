//! Switchovers that are to begin at a set time.

use super::*;
use crate::cluster::{HistoryEntry, Scheduled};
use crate::waterfall::Step;

const ASKED: WallTime = WallTime(1_796_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn due() -> WallTime {
    ASKED + HOUR
}

/// A cluster in which an operator has asked for a switchover in an hour.
fn scheduled(to: Option<&str>) -> Rig {
    let mut rig = Rig::formed();
    rig.wall = ASKED;
    rig.ask(to).unwrap();
    rig
}

impl Rig {
    /// An operator asks for a switchover in an hour.
    fn ask(&mut self, to: Option<&str>) -> Result<Applied, SwitchoverRefused> {
        let to = to.map(|to| to.parse().unwrap());
        let view = self.coordinator.view(self.now, self.wall);
        let command = view.plan_schedule(due(), to.as_ref(), true)?;
        let applied = self.propose(&command);
        self.coordinator.committed(&self.state, &self.quorum, self.now);
        Ok(applied)
    }

    /// Wall time goes on; the agent leads all the while.
    fn wait_until(&mut self, wall: WallTime) {
        self.wall = wall;
        self.pass(&[]);
    }

    /// So much behind the time of the schedule, after having led since then.
    fn late_by(&mut self, late: Duration) {
        for _ in 0..=late.as_millis() / 100 {
            self.wait_until(self.wall.max(due()) + Duration::from_millis(100));
        }
    }

    fn newest(&self) -> &HistoryEntry {
        self.state.history.last().unwrap()
    }

    /// Another agent leads from now on. It knows what the log says.
    fn leader_is_lost(&mut self) {
        let policy = self.coordinator.policy.clone();
        self.coordinator = Coordinator::new(NodeId(4), policy);
        for observation in self.seen.values_mut() {
            observation.serial += 1;
        }
    }

    /// Server 1 crashes and server 2 takes over.
    fn lose_to_server2(&mut self) {
        self.crash(1);
        self.pass(&[]);
        self.released(1);
        self.recruited(2, 2000);
        self.recruited(3, 2000);
        self.pass(&[]);
        assert_eq!(granted_to(&self.state), Some(NodeId(2)));
        self.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
        self.pass(&[]);
        assert_eq!(self.state.serving(), Some(NodeId(2)));
    }
}

#[test]
fn a_switchover_begins_at_its_time_whoever_leads_then() {
    let mut rig = scheduled(Some("server3"));
    let known = rig.state.scheduled.clone().unwrap();
    let (from, to) = (NodeId(1), Some(NodeId(3)));
    let generation = rig.state.generation;
    assert_eq!(
        known,
        Scheduled { number: known.number, due: due(), from, generation, to, end_transactions: true }
    );
    rig.wait_until(WallTime(due().0 - 1));
    assert_eq!(rig.state.change, None);
    rig.leader_is_lost();
    rig.wait_until(due());
    let change = rig.state.change.clone().unwrap();
    assert_eq!((change.kind, change.from, change.to), (ChangeKind::Switchover, from, to));
    assert!(change.end_transactions);
    assert_eq!(change.reason, format!("an operator asked for a switchover at {}", due()));
    // It begins once, whatever becomes of it.
    assert_eq!(rig.state.scheduled, None);
    let generation = change.generation;
    let abandon = Command::Abandon { generation, stopping: false, reason: "test".to_owned(), at: rig.wall };
    assert_eq!(rig.propose(&abandon), Applied::Changed);
    rig.settle();
    assert_eq!(rig.state.change, None);
}

#[test]
fn without_a_wish_the_best_standby_of_that_moment_takes_over() {
    let mut rig = scheduled(None);
    let view = rig.coordinator.view(rig.now, rig.wall);
    assert_eq!(view.foresee_scheduled(), Some(Ok(NodeId(2))));
    assert_eq!(rig.propose(&Command::SetPriority { node: NodeId(3), priority: 1 }), Applied::Changed);
    rig.wait_until(due());
    assert_eq!(rig.state.change.unwrap().to, Some(NodeId(3)));
}

#[test]
fn one_is_scheduled_at_a_time_and_it_can_be_taken_back() {
    let mut rig = scheduled(Some("server2"));
    let refused = rig.ask(None).unwrap_err();
    let told = format!("a switchover is scheduled already: from server1 to server2 at {}", due());
    assert_eq!(refused.to_string(), told);
    let known = rig.state.scheduled.clone().unwrap();
    // Two who asked at the same moment.
    let again = Command::Schedule {
        generation: known.generation,
        due: known.due,
        from: known.from,
        to: None,
        end_transactions: false,
        at: rig.wall,
    };
    assert_eq!(rig.propose(&again), Applied::Rejected(crate::cluster::Rejected::AlreadyScheduled(due())));

    let before = rig.state.history.clone();
    let cancel = Command::Unschedule { number: known.number, why: None, at: rig.wall };
    assert_eq!(rig.propose(&cancel), Applied::Changed);
    assert_eq!(rig.propose(&cancel), Applied::Rejected(crate::cluster::Rejected::NotScheduled));
    rig.wait_until(due());
    assert_eq!((&rig.state.change, &rig.state.history), (&None, &before));
    // What was about to begin does not, and a later one is not meant.
    rig.wall = ASKED;
    rig.ask(None).unwrap();
    assert_eq!(rig.propose(&cancel), Applied::Rejected(crate::cluster::Rejected::NotScheduled));
    let begin = rig.coordinator.view(rig.now, due()).plan_switchover(None, false).unwrap();
    let stale = command!(Begin { scheduled: Some(known.number), ..begin });
    assert_eq!(rig.propose(&stale), Applied::Rejected(crate::cluster::Rejected::NotScheduled));
    assert_eq!(rig.state.change, None);
}

#[test]
fn times_that_cannot_be_meant_are_refused() {
    let rig = Rig::formed();
    let ask = |now: u64, to: Option<&str>| {
        let to = to.map(|to| to.parse().unwrap());
        let view = rig.coordinator.view(rig.now, WallTime(now));
        view.plan_schedule(WallTime(951_782_400_001), to.as_ref(), false).map_err(|error| error.to_string())
    };
    assert_eq!(
        ask(951_782_400_001, None).unwrap_err(),
        "2000-02-29 00:00:00.001Z is past: the clock of the agent that leads says 2000-02-29 00:00:00.001Z"
    );
    assert_eq!(ask(919_000_000_000, None).unwrap_err(), "2000-02-29 00:00:00.001Z is more than a year ahead");
    assert_eq!(
        ask(951_782_400_000, Some("server4")).unwrap_err(),
        "server4 is not a database node of this cluster"
    );
    assert_eq!(ask(951_782_400_000, Some("server1")).unwrap_err(), "server1 already is the primary");
    assert!(ask(951_782_400_000, Some("server2")).is_ok());
}

#[test]
fn it_is_dropped_once_another_node_is_the_primary() {
    let mut rig = scheduled(Some("server2"));
    rig.lose_to_server2();
    let decision = rig.step(&[]);
    let why = "server2 is the primary by now, not server1";
    let told = format!("the switchover scheduled for {} is dropped: {why}", due());
    assert_eq!(decision.report.doing, [told]);
    assert_eq!(rig.state.scheduled, None);
    let entry = rig.newest();
    assert_eq!(entry.outcome, Outcome::NotDone);
    assert_eq!(entry.reason, format!("an operator asked for a switchover at {}; not done: {why}", due()));
    assert_eq!(entry.from, Some("server1".parse().unwrap()));
    // What else is to be said of the failover goes to the failover.
    let failover = rig.state.present_entry().unwrap();
    assert_eq!((failover.kind, failover.outcome), (Some(ChangeKind::Failover), Outcome::Completed));
    assert_eq!(rig.state.history.iter().filter(|entry| entry.outcome == Outcome::NotDone).count(), 1);
    rig.coordinator.published(rig.now + Duration::from_millis(7));
    rig.pass(&[]);
    let steps: Vec<Step> = rig.state.present_entry().unwrap().took.iter().map(|took| took.step).collect();
    assert_eq!(steps.last(), Some(&Step::Publish));
    assert_eq!(rig.newest().took, []);
}

#[test]
fn it_stays_while_the_primary_does() {
    let mut rig = scheduled(None);
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    let generation = rig.state.change.as_ref().unwrap().generation;
    // Nobody else can take over: server 1 starts again in place.
    assert_eq!(rig.propose(&grant(generation, 1)), Applied::Changed);
    rig.postgres(1).state = PostgresState::Running(running(false));
    rig.settle();
    assert_eq!(rig.state.serving(), Some(NodeId(1)));
    assert_eq!(rig.state.scheduled.as_ref().unwrap().generation, generation);
    rig.wait_until(due());
    assert_eq!(rig.state.change.unwrap().kind, ChangeKind::Switchover);
}

#[test]
fn a_primary_that_was_replaced_in_between_is_not_the_one_that_was_meant() {
    let mut rig = scheduled(None);
    // There and back before anybody could say so.
    for (from, to) in [(1, 2), (2, 1)] {
        let (before, after) = (rig.state.generation, rig.state.generation.next());
        for command in [failover(before, from), grant(after, to), serve(after, 1)] {
            assert_eq!(rig.propose(&command), Applied::Changed, "{command:?}");
        }
    }
    rig.pass(&[]);
    assert_eq!(rig.state.scheduled, None);
    assert!(rig.newest().reason.ends_with("; not done: server1 was not the primary all the time"));
}

#[test]
fn what_cannot_begin_is_tried_for_a_minute_and_given_up_with_the_reason() {
    let mut rig = scheduled(Some("server2"));
    rig.postgres(2).state = down(true);
    rig.settle();
    rig.wait_until(due());
    let decision = rig.step(&[]);
    let refused = "no standby can take over: PostgreSQL on server2 does not run";
    let told =
        format!("the switchover scheduled for {} cannot begin: {refused}; it is given up in 60 s", due());
    assert!(decision.report.lines().contains(&told), "{:?}", decision.report.lines());
    rig.late_by(Duration::from_millis(59_800));
    assert!(rig.state.scheduled.is_some() && rig.state.change.is_none());
    rig.late_by(Duration::from_millis(300));
    assert_eq!(rig.state.scheduled, None);
    let entry = rig.newest();
    assert_eq!(entry.reason, format!("an operator asked for a switchover at {}; not done: {refused}", due()));
    assert_eq!((entry.outcome, entry.to.as_str()), (Outcome::NotDone, "server2"));
    // It does not begin after all.
    rig.postgres(2).state = PostgresState::Running(running(true));
    rig.settle();
    assert_eq!(rig.state.change, None);
}

#[test]
fn what_can_begin_within_the_minute_does() {
    let mut rig = scheduled(Some("server2"));
    rig.postgres(2).state = down(true);
    rig.late_by(Duration::from_secs(40));
    assert_eq!(rig.state.change, None);
    rig.postgres(2).state = PostgresState::Running(running(true));
    rig.late_by(Duration::from_secs(1));
    assert_eq!(rig.state.change.unwrap().to, Some(NodeId(2)));
}

#[test]
fn it_is_given_up_while_a_change_of_primary_is_stuck() {
    let mut rig = scheduled(None);
    rig.crash(1);
    rig.pass(&[]);
    assert_eq!(rig.state.change.as_ref().unwrap().phase, ChangePhase::Recruiting);
    // Whether the old primary is gone is not known.
    for id in 1..=4 {
        rig.seen.get_mut(&id).unwrap().promise_left_ms = 60_000;
    }
    rig.late_by(Duration::from_secs(61));
    assert_eq!(rig.state.scheduled, None);
    assert!(
        rig.newest().reason.ends_with("; not done: a failover is already in flight"),
        "{:?}",
        rig.newest()
    );
    // That change goes on as if nothing had been.
    rig.released(1);
    rig.recruited(2, 2000);
    rig.recruited(3, 2000);
    rig.pass(&[]);
    rig.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
    rig.pass(&[]);
    let served = rig.state.present_entry().unwrap();
    assert_eq!((rig.state.serving(), served.outcome), (Some(NodeId(2)), Outcome::Completed));
}

#[test]
fn nobody_begins_what_was_planned_for_a_time_when_all_agents_were_down() {
    let mut rig = scheduled(None);
    rig.leader_is_lost();
    rig.wait_until(due() + HOUR);
    assert_eq!((&rig.state.change, &rig.state.scheduled), (&None, &None));
    let why = "no agent led, or for long enough, while it could have begun";
    assert!(rig.newest().reason.ends_with(why), "{:?}", rig.newest());
}
