//! This agent's part in who has the proxies' virtual IP: see [`crate::proxy_address`].

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{MonoTime, NodeId};

use crate::proxy_address::{Candidate, ProxyId, Terms, Word, pick};
use crate::quorum::Admission;

use super::Node;

/// What a proxy that asked for the address is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressAnswer {
    /// It has this voter's word.
    pub granted: bool,
    /// This agent.
    pub voter: NodeId,
    /// Of how many voters it needs a majority.
    pub voters: usize,
    /// For how long it may count on the word, from when it asked.
    pub hold: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Proxies {
    terms: Terms,
    word: Word,
    /// Who has asked, and when last.
    asked: BTreeMap<ProxyId, (u32, MonoTime)>,
    pick: Option<ProxyId>,
}

impl Proxies {
    pub(super) fn new(lease: Duration, now: MonoTime) -> Self {
        let terms = Terms::of(lease);
        Self { terms, word: Word::new(terms, now), asked: BTreeMap::new(), pick: None }
    }
}

impl Node {
    /// A proxy would have, or keep, the address.
    pub fn proxy_asks(&mut self, proxy: &ProxyId, priority: u32, now: MonoTime) -> AddressAnswer {
        self.proxies.asked.insert(proxy.clone(), (priority, now));
        let voters = &self.state.voters;
        let votes = self.quorum.admission == Admission::Full && voters.current.contains(&self.id());
        // Between two sets of voters a majority of one need not meet a majority of the other.
        let settled = voters.plan.is_none();
        let granted = votes && settled && self.proxies.word.asked(proxy, self.proxies.pick.as_ref(), now);
        let (voter, voters) = (self.id(), voters.current.len());
        AddressAnswer { granted, voter, voters, hold: self.proxies.terms.hold() }
    }

    /// The link to a proxy has ended; `gave_up`: after it had given the address up.
    pub fn proxy_left(&mut self, proxy: &ProxyId, gave_up: bool) {
        self.proxies.asked.remove(proxy);
        if gave_up {
            self.proxies.word.given_back(proxy);
        }
    }

    /// Who is to have the address, as far as this agent knows.
    pub fn picked_proxy(&self) -> Option<&ProxyId> {
        self.proxies.pick.as_ref()
    }

    /// Who would take it, as this agent tells the others.
    pub(super) fn proxies_told(&self) -> Vec<Candidate> {
        let asked = self.proxies.asked.iter();
        asked.map(|(proxy, (priority, _))| Candidate { priority: *priority, proxy: proxy.clone() }).collect()
    }

    /// Forgets who asks no more, and picks, or hears who was picked.
    pub(super) fn pick_proxy(&mut self, now: MonoTime) {
        let patience = self.setup.timings.lease;
        self.proxies.asked.retain(|_, (_, at)| now.since(*at) < patience);
        let seen = self.coordinator.seen().iter().filter(|(_, seen)| now.since(seen.at) < patience);
        let picked = self.proxies.pick.as_ref();
        let picked = if self.quorum.leads {
            let mut heard: BTreeMap<NodeId, Vec<Candidate>> =
                seen.map(|(id, seen)| (*id, seen.observation.proxies.clone())).collect();
            heard.insert(self.id(), self.proxies_told());
            pick(&heard, &self.state.voters.current, picked)
        } else {
            let told = seen.filter(|(_, seen)| seen.observation.picked_proxy.is_some());
            let newest = told.max_by_key(|(_, seen)| (seen.observation.revision, seen.at));
            newest.and_then(|(_, seen)| seen.observation.picked_proxy.clone())
        };
        self.proxies.pick = picked;
    }
}
