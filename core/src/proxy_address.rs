//! Which proxy has the proxies' virtual IP. Pure.
//!
//! Each voter gives its word to one proxy at a time, and keeps it for [`Terms::promise`] from when it was
//! asked. A proxy may have the address while a majority of voters have given it theirs, for
//! [`Terms::hold`] from when it *asked*, so it always ends first. Any two majorities share a voter, so there
//! are never two. Which proxy is to have it, the raft leader picks ([`pick`]), and voters give their word to
//! no other; but that there is one at most does not rest on their agreeing on the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{MonoTime, NodeId};
use serde::{Deserialize, Serialize};

use crate::cluster::majority;

/// The kernel counts whole seconds, and may be two late: an address that its holder does not renew any more
/// must be gone within this.
const LENGTH_MIN: Duration = Duration::from_secs(4);
/// How much faster or slower one machine's clock may run than another's.
const CLOCK_RATE_ERROR_PER_MILLE: u32 = 5;

/// How long a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    length: Duration,
}

impl Terms {
    /// Where the primary has this lease.
    pub fn of(lease: Duration) -> Self {
        Self { length: (lease * 2).max(LENGTH_MIN) }
    }

    /// How long a voter keeps its word, by its own clock.
    pub fn promise(self) -> Duration {
        self.length + self.length * CLOCK_RATE_ERROR_PER_MILLE / 1000
    }

    /// How long after having asked a proxy may count on it, by its own clock.
    pub fn hold(self) -> Duration {
        self.length - self.length * CLOCK_RATE_ERROR_PER_MILLE / 1000
    }
}

/// A proxy. Two machines whose proxies were given the same name by mistake have two all the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProxyId {
    /// Its name.
    pub name: String,
    /// The machine it runs on, as [`Hello`](pgherd_common::push::ToAgent::Hello) tells it: a proxy that is started again there
    /// goes on with what it was promised.
    #[serde(default)]
    pub machine: String,
}

/// A proxy that would take the address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Candidate {
    /// The lowest first.
    pub priority: u32,
    /// Who.
    #[serde(flatten)]
    pub proxy: ProxyId,
}

/// A voter's word.
#[derive(Debug, Clone)]
pub struct Word {
    terms: Terms,
    /// What was promised before this agent started may hold until then.
    silent_until: MonoTime,
    given: Option<(ProxyId, MonoTime)>,
}

impl Word {
    /// Of an agent that has just started.
    pub fn new(terms: Terms, now: MonoTime) -> Self {
        Self { terms, silent_until: now + terms.promise(), given: None }
    }

    /// A proxy asks for it. Whether it gets it.
    pub fn asked(&mut self, proxy: &ProxyId, pick: Option<&ProxyId>, now: MonoTime) -> bool {
        let standing = self.given.as_ref().filter(|(_, until)| now < *until).map(|(to, _)| to);
        let may = standing.is_none_or(|to| to == proxy) && now >= self.silent_until;
        // While nobody leads, whoever has the address goes on.
        let wanted = pick.or(standing) == Some(proxy);
        if may && wanted {
            self.given = Some((proxy.clone(), now + self.terms.promise()));
        }
        may && wanted
    }

    /// A proxy has given the address up, and will not ask again.
    pub fn given_back(&mut self, proxy: &ProxyId) {
        self.given = self.given.take().filter(|(to, _)| to != proxy);
    }
}

/// Whom a leader picks: the one that has been picked, while a majority of voters hears it; otherwise the
/// first by priority of those that a majority hears. A proxy that is back takes nothing from another one.
pub fn pick(
    heard: &BTreeMap<NodeId, Vec<Candidate>>,
    voters: &BTreeSet<NodeId>,
    picked: Option<&ProxyId>,
) -> Option<ProxyId> {
    let mut hearers: BTreeMap<&Candidate, usize> = BTreeMap::new();
    for (_, candidates) in heard.iter().filter(|(voter, _)| voters.contains(voter)) {
        for candidate in candidates.iter().filter(|candidate| candidate.priority > 0) {
            *hearers.entry(candidate).or_default() += 1;
        }
    }
    let needed = majority(voters.len());
    let mut fit =
        hearers.into_iter().filter(|(_, hearers)| *hearers >= needed).map(|(candidate, _)| candidate);
    let first = fit.next()?;
    let stays = std::iter::once(first).chain(fit).find(|candidate| Some(&candidate.proxy) == picked);
    Some(stays.unwrap_or(first).proxy.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(millis))
    }

    fn terms() -> Terms {
        Terms::of(Duration::from_secs(2))
    }

    #[test]
    fn a_proxy_always_ends_before_the_word_that_was_given_to_it() {
        assert!(terms().hold() < terms().promise());
        assert_eq!(Terms::of(Duration::from_secs(1)).hold(), Duration::from_millis(3980));
        assert_eq!(Terms::of(Duration::from_secs(10)).hold(), Duration::from_millis(19_900));
    }

    fn on(name: &str, machine: &str) -> ProxyId {
        ProxyId { name: name.to_owned(), machine: machine.to_owned() }
    }

    #[test]
    fn two_machines_with_a_proxy_of_one_name_are_two() {
        let mut word = Word::new(terms(), at(0));
        let (here, there) = (on("one", "here"), on("one", "there"));
        assert!(word.asked(&here, Some(&here), at(5000)));
        assert!(!word.asked(&there, Some(&there), at(5001)));
        word.given_back(&there);
        assert!(!word.asked(&there, Some(&there), at(5002)));
        let voters: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
        let candidate = |proxy: &ProxyId| Candidate { priority: 1, proxy: proxy.clone() };
        let heard = |first: &ProxyId, second: &ProxyId| {
            let by = [(NodeId(1), vec![candidate(first)]), (NodeId(2), vec![candidate(second)])];
            pick(&by.into(), &voters, None)
        };
        assert_eq!(heard(&here, &there), None, "neither is heard by a majority");
        assert_eq!(heard(&here, &here), Some(here));
    }

    #[test]
    fn a_word_is_given_to_one_and_kept() {
        let (one, two) = (&on("one", ""), &on("two", ""));
        let mut word = Word::new(terms(), at(0));
        assert!(!word.asked(one, Some(one), at(4000)), "what was promised before the start may hold");
        assert!(word.asked(one, Some(one), at(5000)));
        assert!(!word.asked(two, Some(two), at(5001)), "another is picked, but this word stands");
        assert!(!word.asked(one, Some(two), at(5002)), "and is not renewed");
        assert!(!word.asked(two, Some(two), at(9019)));
        assert!(word.asked(two, Some(two), at(9020)));
        assert!(word.asked(two, None, at(9100)), "while nobody leads");
        assert!(!word.asked(one, None, at(20_000)));
        assert!(word.asked(two, Some(two), at(20_001)));
        word.given_back(one);
        assert!(!word.asked(one, Some(one), at(20_002)));
        word.given_back(two);
        assert!(word.asked(one, Some(one), at(20_003)));
    }

    #[test]
    fn who_is_picked_stays_while_a_majority_hears_it() {
        let voters: BTreeSet<NodeId> = (1..=4).map(NodeId).collect();
        let candidate = |name: &str, priority| Candidate { priority, proxy: on(name, "") };
        let (one, two, never) = (candidate("one", 10), candidate("two", 20), candidate("never", 0));
        let heard = |by: &[(u64, &[&Candidate])]| {
            let each =
                |(id, all): &(u64, &[&Candidate])| (NodeId(*id), all.iter().map(|c| (*c).clone()).collect());
            by.iter().map(each).collect::<BTreeMap<NodeId, Vec<Candidate>>>()
        };
        let both =
            heard(&[(1, &[&one, &two, &never]), (2, &[&one, &two, &never]), (3, &[&two, &one, &never])]);
        let picked = |heard: &BTreeMap<NodeId, Vec<Candidate>>, picked: Option<&str>| {
            pick(heard, &voters, picked.map(|name| on(name, "")).as_ref()).map(|proxy| proxy.name)
        };
        assert_eq!(picked(&both, None).as_deref(), Some("one"));
        assert_eq!(picked(&both, Some("two")).as_deref(), Some("two"), "nothing is taken from it");
        let cut = heard(&[(1, &[&one, &two]), (2, &[&two]), (3, &[&two]), (9, &[&one])]);
        assert_eq!(picked(&cut, Some("one")).as_deref(), Some("two"), "two voters are no majority of four");
        assert_eq!(picked(&heard(&[(1, &[&one])]), Some("one")), None);
    }
}
