//! The virtual IP.

use super::*;

fn rules() -> AddressRules {
    AddressRules {
        name: "10.0.0.100/24".to_owned(),
        check_before_promotion: false,
        check_timeout: Duration::from_secs(15),
        take_anyway: false,
    }
}

fn with(mut rig: Rig, rules: AddressRules) -> Rig {
    rig.node.setup.address = Some(rules.clone());
    rig.node.address = AddressDuty::new(Some(rules));
    rig
}

fn seen(rig: &mut Rig, held: bool, asked: Asked) {
    rig.node.address(AddressSeen { held, asked, trouble: None });
}

fn holds(turn: &Turn) -> Option<MonoTime> {
    match turn.address {
        Some(AddressOrder::Hold { until, .. }) => Some(until),
        Some(AddressOrder::Ask | AddressOrder::Release) | None => None,
    }
}

/// A primary with a lease that has got the address.
fn holding() -> Rig {
    let mut rig = with(Rig::serving(), rules());
    rig.answered(rig.now);
    seen(&mut rig, true, Asked::Unknown);
    assert!(holds(&rig.turn()).is_some());
    rig
}

#[test]
fn nothing_is_done_about_it_before_somebody_has_looked_or_where_there_is_none() {
    let mut rig = with(Rig::serving(), rules());
    rig.answered(rig.now);
    assert_eq!(rig.turn().address, None);
    let mut rig = Rig::serving();
    rig.answered(rig.now);
    seen(&mut rig, true, Asked::Unknown);
    assert_eq!(rig.turn().address, None);
}

#[test]
fn a_primary_has_it_for_as_long_as_its_lease_and_no_longer() {
    let mut rig = holding();
    let fence_at = rig.node.fence_at(rig.now).unwrap();
    rig.now = rig.now + Duration::from_millis(200);
    assert_eq!(rig.turn().address, None, "nothing is new");
    rig.answered(rig.now);
    let until = holds(&rig.turn()).unwrap();
    assert!(until > fence_at, "it is renewed with the lease");
    assert_eq!(Some(until), rig.node.fence_at(rig.now));
    rig.now = until;
    let turn = rig.turn();
    assert_eq!(turn.address, Some(AddressOrder::Release));
    assert!(fences(&turn), "together with PostgreSQL");
}

#[test]
fn it_is_given_up_with_postgresql() {
    let mut rig = holding();
    rig.node.look(down(false));
    assert_eq!(rig.turn().address, Some(AddressOrder::Release));
    // One that hangs has its time.
    let mut rig = holding();
    let hangs = PostgresState::Unresponsive { for_ms: 100, reason: "test".to_owned() };
    rig.node.look(observed(hangs));
    assert_eq!(rig.turn().address, None);
}

#[test]
fn a_worker_that_follows_another_leaves_it_where_it_is_until_it_has_a_lease() {
    let mut rig = with(Rig::serving(), rules());
    seen(&mut rig, true, Asked::Unknown);
    assert_eq!(rig.turn().address, None);
    rig.answered(rig.now);
    assert!(holds(&rig.turn()).is_some(), "without asking: it was never given up");
    // Nobody answers: it goes with the time that was left.
    let mut rig = with(Rig::serving(), rules());
    seen(&mut rig, true, Asked::Unknown);
    let _armed = rig.turn();
    rig.now = at(10_500);
    let turn = rig.turn();
    assert!(fences(&turn));
    assert_eq!(turn.address, Some(AddressOrder::Release));
}

#[test]
fn a_standby_removes_it() {
    let mut rig = with(Rig::new(Generation::ZERO), rules());
    rig.commit(&form(2, descriptors(3)));
    rig.node.look(postgres(true));
    seen(&mut rig, true, Asked::Unknown);
    assert_eq!(rig.turn().address, Some(AddressOrder::Release));
}

/// Server 1, which was a standby, is chosen to follow server 2.
fn chosen(rules: AddressRules) -> Rig {
    let mut rig = with(Rig::new(Generation::ZERO), rules);
    rig.commit(&form(2, descriptors(3)));
    let generation = rig.state.generation;
    rig.commit(&serve(generation, 1));
    rig.node.look(postgres(true));
    seen(&mut rig, false, Asked::Unknown);
    rig.commit(&failover(generation, 2));
    let turn = rig.turn();
    assert_eq!(turn.address, Some(AddressOrder::Ask), "while nobody is chosen yet");
    let begun = turn.act.unwrap();
    assert!(matches!(begun.action, LocalAction::Recruit(_)), "{begun:?}");
    rig.node.acted(done(begun, postgres(true)), rig.now);
    let generation = rig.state.change.as_ref().unwrap().generation;
    rig.commit(&grant(generation, 1));
    rig.answered(rig.now);
    rig
}

#[test]
fn a_new_primary_takes_it_once_it_serves_and_nobody_else_answers() {
    let mut rig = chosen(rules());
    let turn = rig.turn();
    assert!(turn.act.is_some_and(|begun| begun.action.makes_writable()), "the promotion does not wait");
    rig.node.look(postgres(false));
    assert_eq!(holds(&rig.turn()), None, "nobody knows whether another has it");
    seen(&mut rig, false, Asked::Elsewhere("02:00:00:00:00:02".to_owned()));
    assert_eq!(holds(&rig.turn()), None);
    let told = rig.node.address_told().unwrap();
    assert!(told.trouble.unwrap().contains("answered for by 02:00:00:00:00:02"));
    rig.now = rig.now + Duration::from_secs(1);
    rig.answered(rig.now);
    seen(&mut rig, false, Asked::Silent);
    assert!(holds(&rig.turn()).is_some());
    assert_eq!(rig.node.address_told().unwrap().trouble, None);
}

#[test]
fn where_it_is_configured_nobody_is_promoted_before_the_address_is_free() {
    let mut rig = chosen(AddressRules { check_before_promotion: true, ..rules() });
    assert_eq!(rig.turn().act, None);
    assert!(rig.node.note().unwrap().contains("asking whether anybody has"), "{:?}", rig.node.note());
    seen(&mut rig, false, Asked::Elsewhere("02:00:00:00:00:02".to_owned()));
    assert_eq!(rig.turn().act, None);
    assert!(rig.node.note().unwrap().contains("02:00:00:00:00:02 answers for"), "{:?}", rig.node.note());
    seen(&mut rig, false, Asked::Silent);
    assert!(rig.turn().act.is_some_and(|begun| begun.action.makes_writable()));
}

#[test]
fn a_foreign_holder_is_overruled_only_where_that_is_wanted_and_after_the_time() {
    let mut rig = chosen(AddressRules { take_anyway: true, ..rules() });
    rig.node.look(postgres(false));
    let _asks = rig.turn();
    seen(&mut rig, false, Asked::Elsewhere("02:00:00:00:00:02".to_owned()));
    let began = rig.now;
    for (after, takes) in [(14_000, false), (15_000, true)] {
        rig.now = began + Duration::from_millis(after);
        rig.answered(rig.now);
        assert_eq!(holds(&rig.turn()).is_some(), takes, "after {after} ms");
    }
}
