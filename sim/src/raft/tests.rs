//! A group of three, message by message.

use super::*;
use crate::clock::SECOND;

struct Group {
    members: Vec<Raft>,
    now: Time,
    cut: BTreeSet<usize>,
    applied: Vec<Vec<usize>>,
}

impl Group {
    fn new(count: usize) -> Self {
        let voters: BTreeSet<usize> = (0..count).collect();
        let open = |me: usize| {
            let rng = Rng::new(u64::try_from(me).unwrap());
            Raft::open(me, Stored::formed(voters.clone()), (0, Arc::default()), Time(0), rng)
        };
        let members = (0..count).map(open).collect();
        Self { members, now: Time(0), cut: BTreeSet::new(), applied: vec![Vec::new(); count] }
    }

    /// Instant disks, instant network.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for me in 0..self.members.len() {
                for output in self.members[me].take_output() {
                    quiet = false;
                    match output {
                        Output::Send(to, message) => self.deliver(me, to, message),
                        Output::Sync(version, then) => {
                            self.members[me].synced(version, self.now);
                            if let Some((to, message)) = then {
                                self.deliver(me, to, message);
                            }
                        }
                        Output::Applied(index, ..) => self.applied[me].push(index),
                        Output::Proposed(..) | Output::Committed(..) | Output::Regrouped => {}
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        if from == to || !(self.cut.contains(&from) || self.cut.contains(&to)) {
            self.members[to].receive(from, message, self.now);
        }
    }

    fn run(&mut self, span: Micros) {
        let until = self.now + span;
        while self.now < until {
            self.now = self.now + 10 * MS;
            for me in 0..self.members.len() {
                self.members[me].tick(self.now);
            }
            self.settle();
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |me: &usize| self.members[*me].is_established() && !self.cut.contains(me);
        (0..self.members.len()).find(leads)
    }
}

#[test]
fn a_group_elects_a_leader_and_keeps_it() {
    let mut group = Group::new(3);
    group.run(3 * SECOND);
    let leader = group.leader().unwrap();
    let term = group.members[leader].term();
    group.run(30 * SECOND);
    assert_eq!((group.leader(), group.members[leader].term()), (Some(leader), term));
}

#[test]
fn a_lost_leader_is_replaced_and_comes_back_as_a_follower() {
    let mut group = Group::new(3);
    group.run(3 * SECOND);
    let first = group.leader().unwrap();
    group.cut.insert(first);
    group.run(4 * SECOND);
    let second = group.leader().unwrap();
    assert_ne!(first, second);
    assert!(!group.members[first].leads(), "a leader that nobody answers steps down");
    group.cut.clear();
    let command = Command::Resume { node: pgherd_common::NodeId(1), at: pgherd_common::WallTime(0) };
    let now = group.now;
    group.members[second].propose(command, now);
    group.run(SECOND);
    assert_eq!(group.leader(), Some(second), "whoever was away does not disturb");
    let (index, _) = group.members[second].applied();
    assert!((0..3).all(|me| group.members[me].applied().0 == index));
    for me in 0..3 {
        assert!(group.applied[me].windows(2).all(|pair| pair[1] == pair[0] + 1), "{:?}", group.applied);
    }
}

#[test]
fn leadership_is_handed_over() {
    let mut group = Group::new(3);
    group.run(3 * SECOND);
    let first = group.leader().unwrap();
    let to = (first + 1) % 3;
    let now = group.now;
    group.members[first].transfer(to, now);
    group.run(SECOND);
    assert_eq!(group.leader(), Some(to));
}

#[test]
fn nothing_is_decided_without_a_majority() {
    let mut group = Group::new(3);
    group.run(3 * SECOND);
    let leader = group.leader().unwrap();
    group.cut = (0..3).filter(|me| *me != leader).collect();
    let (before, _) = group.members[leader].applied();
    let command = Command::Resume { node: pgherd_common::NodeId(1), at: pgherd_common::WallTime(0) };
    let now = group.now;
    group.members[leader].propose(command, now);
    group.run(5 * SECOND);
    assert_eq!(group.members[leader].applied().0, before);
    assert_eq!(group.leader(), None);
}
