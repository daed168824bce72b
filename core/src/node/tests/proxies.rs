//! The proxies' virtual IP.

use super::*;
use crate::proxy_address::{Candidate, ProxyId};

fn id(name: &str) -> ProxyId {
    ProxyId { name: name.to_owned(), machine: "here".to_owned() }
}

/// Proxy `one` asks server 1, which leads, and has asked server 2.
fn asked_both(rig: &mut Rig) -> AddressAnswer {
    let first = rig.node.proxy_asks(&id("one"), 10, rig.now);
    let mut beat = rig.beat_of(2, rig.state.generation, None);
    beat.observation.proxies = vec![Candidate { priority: 10, proxy: id("one") }];
    beat.observation.serial = rig.node.serial + 1;
    let _ = rig.node.beaten(beat, rig.now);
    let _ = rig.turn();
    assert!(!first.granted || rig.node.picked_proxy() == Some(&id("one")));
    rig.node.proxy_asks(&id("one"), 10, rig.now)
}

fn leading() -> Rig {
    let mut rig = Rig::serving();
    let quorum = Quorum { leads: true, ..quorum(3) };
    rig.node.committed(Arc::new(rig.state.clone()), quorum, rig.now);
    rig
}

#[test]
fn a_leader_picks_a_proxy_that_a_majority_hears_and_a_voter_gives_its_word_to_no_other() {
    let mut rig = leading();
    let answer = asked_both(&mut rig);
    assert_eq!(rig.node.picked_proxy(), Some(&id("one")));
    assert!(!answer.granted, "this agent has only just started");
    assert_eq!((answer.voter, answer.voters), (NodeId(1), 3));
    rig.now = at(14_100);
    assert!(asked_both(&mut rig).granted);
    assert!(!rig.node.proxy_asks(&id("two"), 1, rig.now).granted, "another one stays, whatever its priority");
    rig.node.proxy_left(&id("one"), true);
    let _ = rig.turn();
    assert_eq!(rig.node.picked_proxy(), None, "one voter of three is no majority");
}

#[test]
fn who_does_not_lead_follows_the_leaders_pick() {
    let mut rig = Rig::serving();
    rig.now = at(14_100);
    assert!(!rig.node.proxy_asks(&id("one"), 10, rig.now).granted, "nobody is picked");
    let mut beat = rig.beat_of(2, rig.state.generation, None);
    beat.observation.picked_proxy = Some(id("one"));
    let _ = rig.node.beaten(beat, rig.now);
    let _ = rig.turn();
    assert_eq!(rig.node.picked_proxy(), Some(&id("one")));
    assert!(rig.node.proxy_asks(&id("one"), 10, rig.now).granted);
    // The leader is silent: whoever has the address goes on, and nobody else begins to.
    rig.now = at(17_000);
    let _ = rig.turn();
    assert_eq!(rig.node.picked_proxy(), None);
    assert!(!rig.node.proxy_asks(&id("two"), 1, rig.now).granted);
    assert!(rig.node.proxy_asks(&id("one"), 10, rig.now).granted);
}
