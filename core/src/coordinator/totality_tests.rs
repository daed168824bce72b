//! Every state of the cluster against everything that may become of the old primary and of its
//! successor: each has a defined edge, and none is a dead end without a word.
//!
//! `docs/edges.md` shows the edges; `PGHERD_REWRITE=1` writes it anew.

use std::fmt::Write as _;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Lsn, NodeId};

use super::tests::{Rig, down};
use super::*;
use crate::cluster::{Applied, Command, Service};
use crate::fixtures::*;
use crate::observation::{PostgresState, RemoteDatabase, Running, Stopped};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/edges.md");
const OLD: u64 = 1;
const NEW: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NewlyFormed,
    Serving,
    Preparing,
    Stopping,
    Recruiting,
    RecruitingNamed,
    StartingInPlace,
    GrantedByFailover,
    GrantedBySwitchover,
    RolledBack,
}

const STATES: [(State, &str); 10] = [
    (State::NewlyFormed, "the cluster has just formed around server1"),
    (State::Serving, "server1 serves"),
    (State::Preparing, "switchover from server1 to server2: preparing"),
    (State::Stopping, "switchover from server1 to server2: stopping"),
    (State::Recruiting, "failover from server1: recruiting"),
    (State::RecruitingNamed, "failover from server1, forced to server2: recruiting"),
    (State::StartingInPlace, "failover from server1, to be started in place: recruiting"),
    (State::GrantedByFailover, "failover from server1: granted to server2"),
    (State::GrantedBySwitchover, "switchover from server1: granted to server2"),
    (State::RolledBack, "switchover from server1 to server2: granted back to server1"),
];

/// What is seen of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Writable,
    Streaming,
    Recruited,
    InRecovery,
    Crashed,
    CrashedReleased,
    CleanReleased,
    FoundDown,
    Starting,
    Unresponsive,
    Unusable,
    ActionFailed,
    SilentGone,
    SilentInService,
    SilentUnknown,
}

const SIGHTS: [(Sight, &str); 15] = [
    (Sight::Writable, "accepts writes"),
    (Sight::Streaming, "is a standby that streams"),
    (Sight::Recruited, "is a recruited standby"),
    (Sight::InRecovery, "is a standby without an upstream"),
    (Sight::Crashed, "crashed, not yet surely gone"),
    (Sight::CrashedReleased, "crashed, surely gone"),
    (Sight::CleanReleased, "stopped cleanly, surely gone"),
    (Sight::FoundDown, "was down when its agent started"),
    (Sight::Starting, "lets nobody in yet"),
    (Sight::Unresponsive, "answers nobody"),
    (Sight::Unusable, "has an unusable data directory"),
    (Sight::ActionFailed, "is down after its agent failed to start it"),
    (Sight::SilentGone, "agent silent, database gone"),
    (Sight::SilentInService, "agent silent, database in service"),
    (Sight::SilentUnknown, "agent silent, nobody has knocked yet"),
];

/// One combination.
#[derive(Debug, Clone, Copy)]
struct Case {
    state: State,
    old: Sight,
    new: Sight,
    overdue: bool,
    promises_lapsed: bool,
}

fn state(rig: &mut Rig, state: State) {
    let generation = rig.state.generation;
    let next = generation.next();
    let mut commit = |command: Command| assert_eq!(rig.propose(&command), Applied::Changed, "{command:?}");
    match state {
        State::Serving | State::NewlyFormed => {}
        State::Preparing => commit(switchover(generation, OLD, NEW)),
        State::Stopping | State::GrantedBySwitchover | State::RolledBack => {
            commit(switchover(generation, OLD, NEW));
            commit(Command::Stop { generation: next });
        }
        State::Recruiting | State::GrantedByFailover => commit(failover(generation, OLD)),
        State::RecruitingNamed => {
            let to = Some(NodeId(NEW));
            commit(command!(Begin { to, allow_data_loss: true, ..failover(generation, OLD) }));
        }
        State::StartingInPlace => {
            commit(command!(Begin { to: Some(NodeId(OLD)), ..failover(generation, OLD) }));
        }
    }
    match state {
        State::GrantedByFailover | State::GrantedBySwitchover => commit(grant(next, NEW)),
        State::RolledBack => commit(grant(next, OLD)),
        _ => {}
    }
}

fn is_recruiting(state: State) -> bool {
    matches!(state, State::Recruiting | State::RecruitingNamed | State::StartingInPlace)
}

fn is_silent(sight: Sight) -> bool {
    matches!(sight, Sight::SilentGone | Sight::SilentInService | Sight::SilentUnknown)
}

fn set(rig: &mut Rig, id: u64, sight: Sight) {
    let current = rig.state.generation;
    let change = rig.state.change.as_ref().map(|change| change.generation);
    let postgres = rig.postgres(id);
    let standby = || Running { received: Lsn(5000), ..running(true) };
    postgres.state = match sight {
        Sight::Writable => PostgresState::Running(running(false)),
        Sight::Streaming => PostgresState::Running(standby()),
        Sight::Recruited => PostgresState::Running(Running { receiver: None, follows: None, ..standby() }),
        Sight::InRecovery => {
            PostgresState::Running(Running { receiver: None, follows: None, ..running(true) })
        }
        Sight::Crashed | Sight::CrashedReleased | Sight::ActionFailed => down(false),
        Sight::CleanReleased => down(true),
        Sight::FoundDown => PostgresState::Down(Stopped { found_down: true, ..stopped(false, false) }),
        Sight::Starting => PostgresState::Starting { for_ms: 40_000, standby: false },
        Sight::Unresponsive => PostgresState::Unresponsive { for_ms: 40_000, reason: "timeout".to_owned() },
        Sight::Unusable => PostgresState::Unusable("the disk is gone".to_owned()),
        Sight::SilentGone | Sight::SilentInService | Sight::SilentUnknown => return,
    };
    postgres.recruited = change.filter(|_| sight == Sight::Recruited);
    let gone = matches!(sight, Sight::CrashedReleased | Sight::CleanReleased);
    postgres.released = gone.then_some(current);
    postgres.trouble = (sight == Sight::ActionFailed).then(|| "no space left on device".to_owned());
}

/// What the coordinator does in this case.
fn edge(case: Case) -> (Rig, Decision) {
    let mut rig = if case.state == State::NewlyFormed { Rig::just_formed() } else { Rig::formed() };
    state(&mut rig, case.state);
    rig.coordinator.committed(&rig.state, &rig.quorum, rig.now);
    rig.now = rig.now + Duration::from_secs(if case.overdue { 40 } else { 4 });
    set(&mut rig, OLD, case.old);
    set(&mut rig, NEW, case.new);
    set(&mut rig, 3, if is_recruiting(case.state) { Sight::Recruited } else { Sight::Streaming });
    for (id, observation) in &mut rig.seen {
        observation.promise_left_ms = if case.promises_lapsed { 0 } else { 60_000 };
        for (node, sight) in [(OLD, case.old), (NEW, case.new)] {
            let saw = match sight {
                Sight::SilentGone => RemoteDatabase::Silent,
                Sight::SilentInService => RemoteDatabase::Writable,
                _ => continue,
            };
            if *id != node {
                observation.remote.insert(NodeId(node), saw);
            }
        }
    }
    let silent: Vec<u64> = [(OLD, case.old), (NEW, case.new)]
        .into_iter()
        .filter(|(_, s)| is_silent(*s))
        .map(|(id, _)| id)
        .collect();
    // Whoever begins to lead listens for a while before it judges.
    for _ in 0..11 {
        let _ = rig.look_at(&silent);
    }
    let decision = rig.look_at(&silent);
    (rig, decision)
}

/// A sight that needs no answer by itself: nothing has failed, or it is for the node's own agent.
fn may_be_passed_over(case: Case) -> bool {
    let state = matches!(case.state, State::Serving);
    state && matches!(case.old, Sight::Writable | Sight::Unresponsive)
}

fn cases() -> impl Iterator<Item = Case> {
    let states = STATES.iter().map(|(state, _)| *state);
    states.flat_map(|state| {
        SIGHTS.iter().flat_map(move |(old, _)| {
            SIGHTS.iter().flat_map(move |(new, _)| {
                [(false, false), (false, true), (true, false), (true, true)].into_iter().map(
                    move |(overdue, promises_lapsed)| Case {
                        state,
                        old: *old,
                        new: *new,
                        overdue,
                        promises_lapsed,
                    },
                )
            })
        })
    })
}

#[test]
fn every_state_has_an_edge_for_everything_that_may_be_seen() {
    let mut seen = 0;
    for case in cases() {
        let (mut rig, decision) = edge(case);
        seen += 1;
        let Some(Action::Propose(command)) = &decision.action else {
            let told = !decision.report.waiting.is_empty();
            assert!(told || may_be_passed_over(case), "a dead end without a word: {case:?}");
            continue;
        };
        if let Command::Grant { node, .. } = command {
            let safe = rig.state.change.as_ref().is_none_or(|change| {
                let gone = matches!(case.old, Sight::CrashedReleased | Sight::CleanReleased);
                let back = change.kind == ChangeKind::Switchover && *node == change.from;
                let goes_on = back && case.old == Sight::Writable;
                let failover = change.kind == ChangeKind::Failover;
                gone || goes_on || (failover && case.promises_lapsed && case.old != Sight::Writable)
            });
            assert!(safe, "granted while the old primary may be writable: {case:?}");
        }
        assert_eq!(rig.propose(command), Applied::Changed, "{case:?} proposes {command:?}");
    }
    assert_eq!(seen, STATES.len() * SIGHTS.len() * SIGHTS.len() * 4);
}

fn shown(decision: &Decision) -> String {
    match &decision.action {
        Some(Action::Propose(command)) => match command {
            Command::Begin { kind, to: Some(to), reason, .. } => {
                format!("begin {kind} to server{to}: {reason}")
            }
            Command::Begin { kind, reason, .. } => format!("begin {kind}: {reason}"),
            Command::Stop { .. } => "stop server1".to_owned(),
            Command::Grant { node, .. } => format!("grant to server{node}"),
            Command::Serve { .. } => "serve".to_owned(),
            Command::Abandon { reason, .. } => format!("abandon: {reason}"),
            Command::SetService { node, service: Service::Failed(reason), .. } => {
                format!("server{node} is out of service: {reason}")
            }
            Command::SetService { node, service, .. } => format!("server{node}: {service:?}"),
            other => format!("{other:?}"),
        },
        Some(other) => format!("{other:?}"),
        None => match decision.report.waiting.as_slice() {
            [] => "-".to_owned(),
            waiting => {
                format!("wait: {}", waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
        },
    }
}

fn page() -> String {
    let mut page = "# Every state, and what follows from what is seen\n\n\
        Written by `core/src/coordinator/totality_tests.rs`, which also checks all combinations of both servers' sights\n\
        for dead ends. *In time*: four seconds into the step; *overdue*: forty. Unless a row says otherwise, server2 and\n\
        server3 are standbys that stream (or have been recruited, when that is what is waited for), and no voter has a\n\
        promise to the old primary left.\n"
        .to_owned();
    let mut add = |line: String| writeln!(page, "{line}").unwrap_or_else(|_| unreachable!("a string grows"));
    for (state, name) in STATES {
        add(format!("\n## {}\n\n| Seen | In time | Overdue |\n|---|---|---|", capitalised(name)));
        let recruiting = is_recruiting(state);
        let usual_new = match state {
            State::GrantedByFailover | State::GrantedBySwitchover => Sight::InRecovery,
            _ if recruiting => Sight::Recruited,
            _ => Sight::Streaming,
        };
        let usual_old = match state {
            State::NewlyFormed | State::Serving | State::Preparing => Sight::Writable,
            State::Stopping | State::GrantedBySwitchover => Sight::CleanReleased,
            _ if recruiting => Sight::CrashedReleased,
            State::RolledBack => Sight::CleanReleased,
            _ => Sight::CrashedReleased,
        };
        let edges = |old: Sight, new: Sight| {
            [false, true]
                .map(|overdue| shown(&edge(Case { state, old, new, overdue, promises_lapsed: true }).1))
        };
        let mut group = |who: &str, edges: &dyn Fn(Sight) -> [String; 2]| {
            let mut rows: Vec<([String; 2], Vec<&str>)> = Vec::new();
            for (sight, told) in SIGHTS {
                let outcome = edges(sight);
                match rows.iter_mut().find(|(known, _)| *known == outcome) {
                    Some((_, seen)) => seen.push(told),
                    None => rows.push((outcome, vec![told])),
                }
            }
            for ([in_time, overdue], seen) in rows {
                let overdue = if in_time == overdue { "the same" } else { &overdue };
                add(format!("| {who}: {} | {in_time} | {overdue} |", seen.join("; ")));
            }
        };
        group("server1", &|old| edges(old, usual_new));
        group("server2", &|new| edges(usual_old, new));
    }
    page
}

fn capitalised(text: &str) -> String {
    let (first, rest) = text.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

#[test]
fn the_page_of_edges_is_up_to_date() {
    let page = page();
    if std::env::var_os("PGHERD_REWRITE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert_eq!(
        differs, None,
        "run the tests with PGHERD_REWRITE=1 and look at what changed in docs/edges.md"
    );
    assert_eq!(page.lines().count(), written.lines().count());
}
