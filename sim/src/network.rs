//! The network: a link in each direction between any two endpoints, with delays, losses and cuts.

use std::collections::BTreeMap;

use crate::clock::{MS, Micros, SECOND, Time};
use crate::rng::Rng;

/// What kind of traffic a cut hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Between agents, and between agents and proxies.
    Agent,
    /// To PostgreSQL: clients, replication, knocks.
    Postgres,
}

/// How a link behaves beyond what is usual.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// How many faults cut it, by class.
    cuts: [u32; 2],
    /// Packets lost, of a thousand.
    loss: u64,
    /// Added to every message, at most.
    slow: Micros,
}

/// See the module. Endpoints are numbered: machines first, then proxies.
#[derive(Debug)]
pub struct Network {
    links: BTreeMap<(usize, usize), Link>,
    rng: Rng,
}

/// A packet that is lost is sent again after this, doubled each time.
const RETRANSMIT: Micros = 200 * MS;
/// Nothing outlives this on its way.
const LIFE: Micros = 4 * SECOND;

impl Network {
    /// All links are well.
    pub fn new(rng: Rng) -> Self {
        Self { links: BTreeMap::new(), rng }
    }

    /// Whether nothing passes from one endpoint to another.
    pub fn is_cut(&self, from: usize, to: usize, class: Class) -> bool {
        from != to && self.links.get(&(from, to)).is_some_and(|link| link.cuts[class as usize] > 0)
    }

    /// Whether anything is cut at all.
    pub fn is_whole(&self) -> bool {
        self.links.values().all(|link| link.cuts == [0, 0] && link.loss == 0 && link.slow == 0)
    }

    /// Whether a connection between two endpoints can do its work.
    pub fn connects(&self, a: usize, b: usize, class: Class) -> bool {
        !self.is_cut(a, b, class) && !self.is_cut(b, a, class)
    }

    /// Cuts a direction.
    pub fn cut(&mut self, from: usize, to: usize, class: Class) {
        self.links.entry((from, to)).or_default().cuts[class as usize] += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, from: usize, to: usize, class: Class) {
        let link = self.links.entry((from, to)).or_default();
        link.cuts[class as usize] = link.cuts[class as usize].saturating_sub(1);
    }

    /// All links are well again.
    pub fn heal(&mut self) {
        self.links.clear();
    }

    /// Makes a direction slow and lossy, or well again.
    pub fn spoil(&mut self, from: usize, to: usize, loss: u64, slow: Micros) {
        let link = self.links.entry((from, to)).or_default();
        (link.loss, link.slow) = (loss, slow);
    }

    /// How long a message takes; `None`: it never arrives.
    pub fn delay(&mut self, from: usize, to: usize, class: Class) -> Option<Micros> {
        if from == to {
            return Some(self.rng.between(20, 80));
        }
        let link = self.links.get(&(from, to)).copied().unwrap_or_default();
        let mut delay = self.rng.tailed(350, 20 * MS);
        if link.slow > 0 {
            delay += self.rng.below(link.slow);
        }
        let mut again = RETRANSMIT;
        let mut blocked = link.cuts[class as usize] > 0;
        // What meets a cut mostly dies with its connection; some of it gets through much later.
        if blocked && self.rng.chance(700) {
            return None;
        }
        while blocked || self.rng.chance(link.loss) {
            delay += again;
            again *= 2;
            blocked = false;
            if delay > LIFE {
                return None;
            }
        }
        Some(delay)
    }

    /// Whether a message that took its time may arrive now.
    pub fn passes(&self, from: usize, to: usize, class: Class, _now: Time) -> bool {
        !self.is_cut(from, to, class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_have_a_direction_and_a_class_and_add_up() {
        let mut network = Network::new(Rng::new(1));
        network.cut(0, 1, Class::Agent);
        network.cut(0, 1, Class::Agent);
        assert!(network.is_cut(0, 1, Class::Agent) && !network.is_cut(1, 0, Class::Agent));
        assert!(!network.is_cut(0, 1, Class::Postgres));
        network.mend(0, 1, Class::Agent);
        assert!(network.is_cut(0, 1, Class::Agent));
        network.mend(0, 1, Class::Agent);
        assert!(network.is_whole());
    }

    #[test]
    fn a_well_link_always_delivers_and_a_lossy_one_late_or_never() {
        let mut network = Network::new(Rng::new(2));
        assert!((0..1000).all(|_| network.delay(0, 1, Class::Agent).is_some_and(|d| d <= 20 * MS)));
        network.spoil(0, 1, 500, 0);
        let late = (0..1000).filter(|_| network.delay(0, 1, Class::Agent).is_none_or(|d| d >= RETRANSMIT));
        assert!((400..600).contains(&late.count()));
    }
}
