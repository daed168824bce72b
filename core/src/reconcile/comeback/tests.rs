//! When a node comes back rewound, copied, or not at all.

use pgherd_common::{Timeline, WallTime};

use super::*;
use crate::fixtures::*;

const AUTO: RejoinRules = RULES.rejoin;
const MANUAL: RejoinRules = RejoinRules { auto: false, clone: true };

fn rules(rejoin: RejoinRules) -> Rules {
    Rules { rejoin, ..RULES }
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::since_boot(Duration::from_secs(seconds))
}

/// Server 2, which has taken over.
fn primary() -> Running {
    Running { timeline: Timeline(2), checkpoint_timeline: Timeline(2), ..running(false) }
}

fn member(service: Service) -> Member {
    Member {
        descriptor: descriptor(1),
        priority_override: None,
        attached: true,
        allowed: true,
        service,
        replaced: true,
        since: WallTime(0),
        leaving: None,
    }
}

fn rejoin() -> LocalAction {
    LocalAction::Rejoin { upstream: upstream(2), running: Box::new(primary()) }
}

type Decided = Result<Option<LocalAction>, (String, Option<MonoTime>)>;

fn decide(comeback: &Comeback, rejoin: RejoinRules, now: MonoTime) -> Decided {
    comeback.rebuild(&rules(rejoin), &upstream(2), &primary(), &[upstream(3), upstream(2)], now)
}

fn rebuild(decided: Decided) -> Rebuild {
    match decided {
        Ok(Some(LocalAction::Rebuild(rebuild))) => *rebuild,
        other => panic!("no rebuild: {other:?}"),
    }
}

#[test]
fn a_copy_is_made_once_nothing_else_helps_and_only_where_it_may() {
    let mut comeback = Comeback::default();
    assert_eq!(decide(&comeback, AUTO, at(10)), Ok(None));
    comeback.learn(&rejoin(), Some(None), at(10));
    for _ in 0..2 {
        comeback.learn(&rejoin(), Some(Some(Setback::RewindFailed)), at(10));
        assert_eq!(decide(&comeback, AUTO, at(10)), Ok(None), "another attempt may do better");
    }
    comeback.learn(&rejoin(), Some(Some(Setback::RewindFailed)), at(10));
    let clone = rebuild(decide(&comeback, AUTO, at(10)));
    assert_eq!((clone.means, clone.order), (Means::Clone, None));
    assert_eq!(clone.sources, [upstream(3), upstream(2)], "the primary comes last");
    let (note, until) = decide(&comeback, RejoinRules { auto: true, clone: false }, at(10)).unwrap_err();
    assert!(note.contains("failover.rejoin_clone") && note.contains("pgherd rebuild"), "{note}");
    assert_eq!(until, None);

    let mut hopeless = Comeback::default();
    hopeless.learn(&rejoin(), Some(Some(Setback::NeedsClone)), at(10));
    let clone = decide(&hopeless, AUTO, at(10)).unwrap().unwrap();
    hopeless.learn(&clone, None, at(20));
    assert_eq!(decide(&hopeless, AUTO, at(20)), Ok(None), "it has helped");
}

#[test]
fn copies_are_not_made_for_ever() {
    let mut comeback = Comeback::default();
    let mut now = at(1000);
    let mut made = 0;
    loop {
        comeback.learn(&rejoin(), Some(Some(Setback::NeedsClone)), now);
        match decide(&comeback, AUTO, now) {
            Ok(Some(clone)) => {
                made += 1;
                comeback.learn(&clone, Some(None), now);
            }
            Err((_, Some(until))) => now = until,
            Err((note, None)) => {
                assert!(note.starts_with("4 copies within a day"), "{note}");
                break;
            }
            Ok(None) => panic!("nothing is decided"),
        }
    }
    assert_eq!(made, 4);
    assert_eq!(now, at(1000 + 30 + 60 + 120), "each rest is twice the one before");
    rebuild(decide(&comeback, AUTO, now + CLONES_WITHIN));
    comeback.ask(Order { number: 1, means: Means::Best, from: None, rate: None });
    assert_eq!(rebuild(decide(&comeback, AUTO, now)).order, Some(1), "an operator may try again");
}

#[test]
fn an_order_is_settled_by_its_own_end_only() {
    let mut comeback = Comeback::default();
    let order = Order { number: 7, means: Means::Clone, from: Some(upstream(3).node), rate: Some(1 << 20) };
    comeback.ask(order);
    let rebuilt = rebuild(decide(&comeback, AUTO, at(10)));
    assert_eq!(rebuilt.sources, [upstream(3)], "whom the operator named, and nobody else");
    assert_eq!((rebuilt.rate, rebuilt.order, rebuilt.means), (Some(1 << 20), Some(7), Means::Clone));
    let older = LocalAction::Rebuild(Box::new(Rebuild { order: Some(6), ..rebuilt.clone() }));
    assert!(!comeback.learn(&older, None, at(11)));
    assert!(
        comeback.learn(&LocalAction::Rebuild(Box::new(rebuilt)), Some(None), at(12)),
        "also if it failed"
    );
    assert_eq!(comeback.order(), None);
}

#[test]
fn a_failed_primary_stays_out_where_a_dba_brings_it_back() {
    let mut comeback = Comeback::default();
    let failed = Service::Failed("PostgreSQL is down".to_owned());
    let note = comeback.stays_out(&rules(MANUAL), &member(failed.clone())).unwrap();
    assert!(note.contains("pgherd rebuild server1") && note.contains("pgherd resume server1"), "{note}");
    assert_eq!(comeback.stays_out(&rules(AUTO), &member(failed.clone())), None);
    assert_eq!(comeback.stays_out(&rules(MANUAL), &member(Service::Joining)), None, "it was resumed");
    let standby = Member { replaced: false, ..member(failed.clone()) };
    assert_eq!(comeback.stays_out(&rules(MANUAL), &standby), None, "a standby is no failed primary");
    comeback.ask(Order { number: 1, means: Means::Best, from: None, rate: None });
    assert_eq!(comeback.stays_out(&rules(MANUAL), &member(failed)), None, "an operator has it rebuilt");
}
