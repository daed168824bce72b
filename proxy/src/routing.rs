//! Which node a piece of work goes to: the primary of the newest topology, or a standby by weight.
//!
//! Decides from a [`View`] and a drawn number. Knows neither SQL nor connections, and never names a node
//! for writes other than the topology's primary.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::topology::{Availability, Backend};
use pgherd_common::{NodeId, NodeName, Topology};

/// What a piece of work needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Any node with the data.
    Read,
    /// The primary, with no change of primary in flight.
    Write,
}

/// How reads are shared out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Read weight of whichever node is primary.
    pub primary_weight: u32,
    /// By node name, instead of the weights that the agents push.
    pub weights: BTreeMap<NodeName, u32>,
    /// A standby known to lag further behind gets no reads while another node can take them.
    pub lag_bytes_max: Option<u64>,
    /// The same for one that has been behind for longer.
    pub lag_time_max: Option<Duration>,
}

/// How far behind a standby is known to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// WAL that it has yet to replay.
    pub bytes: u64,
    /// For how long it has lacked something that the primary had.
    pub time: Duration,
}

impl Shares {
    /// Why a standby that is so far behind gets no reads while another node can take them, if so it is.
    pub fn excess(&self, lag: Lag) -> Option<String> {
        let (bytes, ms) = (lag.bytes, lag.time.as_millis());
        if let Some(max) = self.lag_bytes_max.filter(|max| bytes > *max) {
            return Some(format!(
                "gets no reads: {bytes} bytes behind, more than the {max} of routing.max_lag"
            ));
        }
        let max = self.lag_time_max.filter(|max| lag.time > *max)?.as_millis();
        Some(format!("gets no reads: behind for {ms} ms, more than the {max} of routing.max_lag_time"))
    }

    /// Whether lags matter at all.
    pub fn limits_lag(&self) -> bool {
        self.lag_bytes_max.is_some() || self.lag_time_max.is_some()
    }

    fn allows(&self, lag: Lag) -> bool {
        self.lag_bytes_max.is_none_or(|max| lag.bytes <= max)
            && self.lag_time_max.is_none_or(|max| lag.time <= max)
    }
}

/// What nodes have to do.
pub trait Load: std::fmt::Debug {
    /// So much is under way there.
    fn busy(&self, node: NodeId) -> usize;
}

/// As told; nothing where nothing is told.
impl Load for BTreeMap<NodeId, usize> {
    fn busy(&self, node: NodeId) -> usize {
        self.get(&node).copied().unwrap_or(0)
    }
}

/// All that a choice rests on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The newest topology.
    pub topology: &'a Topology,
    /// How reads are shared out.
    pub shares: &'a Shares,
    /// Known lags, where they matter.
    pub lags: Option<&'a BTreeMap<NodeId, Lag>>,
    /// Nodes that just now could not be reached.
    pub avoided: &'a BTreeSet<NodeId>,
    /// What nodes have to do.
    pub load: &'a dyn Load,
    /// An agent that a quorum backs was heard within a lease. Without one the primary may have been
    /// replaced unheard, so it gets nothing new.
    pub backed: bool,
}

impl<'a> View<'a> {
    fn writable(&self) -> Option<&'a Backend> {
        writable(self.topology).filter(|_| self.backed)
    }
}

/// Where to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// To the primary, on a connection opened as such.
    Primary(&'a Backend),
    /// To a standby.
    Standby(&'a Backend),
    /// Nowhere yet: wait for the next topology.
    Wait,
}

/// The node that takes writes now, if one does.
pub fn writable(topology: &Topology) -> Option<&Backend> {
    let settled = topology.change().is_none();
    topology.primary().filter(|primary| settled && primary.availability == Availability::Up)
}

/// Chooses. `draw` is a fresh random number, used for reads only.
pub fn choose<'a>(need: Need, view: &View<'a>, draw: u64) -> Choice<'a> {
    let primary = view.writable().map_or(Choice::Wait, Choice::Primary);
    match need {
        Need::Write => primary,
        Need::Read => choose_reader(view, draw).unwrap_or(primary),
    }
}

/// Weighted choice among the nodes in good shape, then whoever is left. `None`: only the primary can
/// take it, if anyone.
fn choose_reader<'a>(view: &View<'a>, draw: u64) -> Option<Choice<'a>> {
    let (primary, writable) = (view.topology.primary().map(|primary| primary.id), view.writable().is_some());
    let as_choice = |backend: &'a Backend| {
        if Some(backend.id) == primary { Choice::Primary(backend) } else { Choice::Standby(backend) }
    };
    let lag_matters = view.shares.limits_lag();
    let is_healthy = |backend: &Backend| {
        let lag = || view.lags.and_then(|lags| lags.get(&backend.id)).copied().unwrap_or_default();
        let lags = lag_matters && Some(backend.id) != primary && !view.shares.allows(lag());
        !lags && (view.avoided.is_empty() || !view.avoided.contains(&backend.id))
    };
    let is_usable = |backend: &Backend| {
        let settled = Some(backend.id) != primary || writable;
        settled && backend.in_rotation()
    };
    let weight = |backend: &Backend| match weight_of(view.shares, primary, backend) {
        weight if weight > 0 && is_usable(backend) && is_healthy(backend) => u64::from(weight),
        _ => 0,
    };
    if let Some(backend) = weighted(view.topology.backends(), weight, view.load, draw) {
        return Some(as_choice(backend));
    }
    if writable {
        return None;
    }
    let usable = || view.topology.backends().iter().filter(|backend| is_usable(backend));
    usable().find(|backend| is_healthy(backend)).or_else(|| usable().next()).map(as_choice)
}

/// What makes one random number of another (Knuth, MMIX).
const STEP: u64 = 6_364_136_223_846_793_005;

/// One drawn by weight, unless it has more to do already than its share and a quarter of what all have: then the one
/// that has least for its weight. Who hangs or is slow would otherwise have everybody wait there in the end.
fn weighted<'a>(
    backends: &'a [Backend],
    weight: impl Fn(&Backend) -> u64,
    load: &dyn Load,
    draw: u64,
) -> Option<&'a Backend> {
    let busy = |backend: &Backend| u64::try_from(load.busy(backend.id)).unwrap_or(u64::MAX);
    let (mut weights, mut all, mut drawn, mut draw) = (0_u64, 1_u64, None, draw);
    for backend in backends {
        let weight = weight(backend);
        if weight == 0 {
            continue;
        }
        (weights, all) = (weights + weight, all.saturating_add(busy(backend)));
        draw = draw.wrapping_mul(STEP).wrapping_add(1);
        // It takes the place of those before with the probability of its share of the weights so far.
        if (u128::from(draw) * u128::from(weights)) >> 64 < u128::from(weight) {
            drawn = Some((weight, backend));
        }
    }
    let (own, drawn) = drawn?;
    let share = all.saturating_mul(own).saturating_mul(5).div_ceil(weights.saturating_mul(4));
    if busy(drawn) <= share {
        return Some(drawn);
    }
    let weighed = backends.iter().map(|backend| (weight(backend), backend)).filter(|(weight, _)| *weight > 0);
    let least = weighed.min_by(|(one, a), (other, b)| {
        let (a, b) = (busy(a).saturating_add(1), busy(b).saturating_add(1));
        a.saturating_mul(*other).cmp(&b.saturating_mul(*one))
    });
    least.map(|(_, backend)| backend)
}

/// The weight that counts for a node's share of reads.
pub fn weight_of(shares: &Shares, primary: Option<NodeId>, backend: &Backend) -> u32 {
    if Some(backend.id) == primary {
        return shares.primary_weight;
    }
    if shares.weights.is_empty() {
        return backend.weight;
    }
    shares.weights.get(&backend.name).copied().unwrap_or(backend.weight)
}

#[cfg(test)]
pub(crate) mod tests {
    use pgherd_common::topology::{ChangeKind, Parts};
    use pgherd_common::{Generation, Version, WallTime};

    use super::*;

    pub(crate) fn up(id: u64) -> Backend {
        Backend {
            id: NodeId(id),
            name: format!("server{id}").parse().unwrap(),
            address: format!("10.0.0.{id}:5432").parse().unwrap(),
            weight: 1,
            attached: true,
            availability: Availability::Up,
            changed: WallTime(0),
        }
    }

    pub(crate) fn down(id: u64) -> Backend {
        Backend { availability: Availability::Down { reason: "test".into() }, ..up(id) }
    }

    fn parts(generation: u64, primary: Option<u64>, backends: Vec<Backend>) -> Parts {
        let generation = (0..generation).fold(Generation::ZERO, |generation, _| generation.next());
        Parts {
            cluster: "demo".parse().unwrap(),
            version: Version { generation, revision: 1 },
            backends,
            primary: primary.map(NodeId),
            first_xid: None,
            change: None,
        }
    }

    pub(crate) fn topology(generation: u64, primary: Option<u64>, backends: Vec<Backend>) -> Topology {
        Topology::new(parts(generation, primary, backends)).unwrap()
    }

    struct World {
        shares: Shares,
        lags: BTreeMap<NodeId, Lag>,
        avoided: BTreeSet<NodeId>,
        load: BTreeMap<NodeId, usize>,
        backed: bool,
    }

    impl Default for World {
        fn default() -> Self {
            let (shares, lags, avoided) = <(Shares, BTreeMap<_, _>, BTreeSet<_>)>::default();
            Self { shares, lags, avoided, load: BTreeMap::new(), backed: true }
        }
    }

    impl World {
        fn view<'a>(&'a self, topology: &'a Topology) -> View<'a> {
            let Self { shares, lags, avoided, load, backed } = self;
            View { topology, shares, lags: Some(lags), avoided, load, backed: *backed }
        }

        /// Node chosen for each of many draws, with its count; 0 stands for waiting.
        fn reads(&self, topology: &Topology) -> BTreeMap<u64, usize> {
            let view = self.view(topology);
            let mut counts = BTreeMap::new();
            let mut draw = 0x9E37_79B9_7F4A_7C15_u64;
            for _ in 0..10_000 {
                draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let node = match choose(Need::Read, &view, draw) {
                    Choice::Primary(backend) | Choice::Standby(backend) => backend.id.0,
                    Choice::Wait => 0,
                };
                *counts.entry(node).or_default() += 1;
            }
            counts
        }

        fn write(&self, topology: &Topology) -> u64 {
            let view = self.view(topology);
            match choose(Need::Write, &view, 0) {
                Choice::Primary(backend) => backend.id.0,
                Choice::Standby(_) => panic!("a write was sent to a standby"),
                Choice::Wait => 0,
            }
        }
    }

    #[test]
    fn reads_are_shared_by_weight() {
        let mut heavy = up(3);
        heavy.weight = 3;
        let cluster = topology(1, Some(1), vec![up(1), up(2), heavy]);
        let counts = World::default().reads(&cluster);
        assert!(!counts.contains_key(&1), "{counts:?}");
        assert!((2_300..2_700).contains(&counts[&2]), "{counts:?}");

        let weights = [("server2".parse().unwrap(), 3)].into();
        let world =
            World { shares: Shares { primary_weight: 2, weights, ..Shares::default() }, ..World::default() };
        let counts = world.reads(&cluster);
        assert!((2_300..2_700).contains(&counts[&1]), "{counts:?}");
        assert!((3_500..4_000).contains(&counts[&2]), "{counts:?}");
    }

    #[test]
    fn who_has_more_to_do_than_its_share_gets_no_more() {
        let mut heavy = up(3);
        heavy.weight = 3;
        let cluster = topology(1, Some(1), vec![up(1), up(2), heavy]);
        let with = |second, third| {
            let load = [(NodeId(1), 100), (NodeId(2), second), (NodeId(3), third)].into();
            World { load, ..World::default() }.reads(&cluster)
        };
        let shared = with(3, 4);
        assert!((2_300..2_700).contains(&shared[&2]), "3 of 8 are within its share: {shared:?}");
        assert_eq!(with(4, 3), [(3, 10_000)].into(), "4 of 8 are beyond it");
    }

    #[test]
    fn reads_fall_back_to_the_primary() {
        let only = |node: u64| BTreeMap::from([(node, 10_000)]);
        let world = World::default();
        assert_eq!(world.reads(&topology(1, Some(1), vec![up(1), down(2)])), only(1));
        let (mut detached, mut weightless) = (up(2), up(2));
        (detached.attached, weightless.weight) = (false, 0);
        assert_eq!(world.reads(&topology(1, Some(1), vec![up(1), detached.clone()])), only(1));
        assert_eq!(world.reads(&topology(1, Some(1), vec![up(1), weightless.clone()])), only(1));
        assert_eq!(world.reads(&topology(1, None, vec![down(1), weightless])), only(2));
        assert_eq!(world.reads(&topology(1, None, vec![down(1), detached])), only(0));
    }

    #[test]
    fn lagging_and_unreachable_standbys_come_last() {
        let cluster = topology(1, Some(1), vec![up(1), up(2), up(3)]);
        let shares = Shares { lag_bytes_max: Some(100), ..Shares::default() };
        let of = |bytes, seconds| Lag { bytes, time: Duration::from_secs(seconds) };
        let lags = [(NodeId(2), of(101, 1)), (NodeId(3), of(100, 9))].into();
        let mut world = World { shares, lags, ..World::default() };
        assert_eq!(world.reads(&cluster), [(3, 10_000)].into());
        let by_time = Some(Duration::from_secs(2));
        world.shares = Shares { lag_time_max: by_time, ..Shares::default() };
        assert_eq!(world.reads(&cluster), [(2, 10_000)].into());
        assert!(world.shares.excess(of(101, 1)).is_none() && world.shares.excess(of(0, 3)).is_some());
        world.shares = Shares { lag_bytes_max: Some(100), ..Shares::default() };
        world.avoided.insert(NodeId(3));
        assert_eq!(world.reads(&cluster), [(1, 10_000)].into());
        let orphaned = topology(1, None, vec![down(1), up(2), down(3)]);
        assert_eq!(world.reads(&orphaned), [(2, 10_000)].into());
    }

    #[test]
    fn without_a_backed_agent_the_primary_gets_nothing_new() {
        let world = World { backed: false, ..World::default() };
        let cluster = topology(1, Some(1), vec![up(1), up(2)]);
        assert_eq!(world.write(&cluster), 0);
        assert_eq!(world.reads(&cluster), [(2, 10_000)].into());
        assert_eq!(world.reads(&topology(1, Some(1), vec![up(1)])), [(0, 10_000)].into());
    }

    #[test]
    fn writes_wait_while_the_primary_changes_and_reads_do_not() {
        let world = World::default();
        let backends = || vec![up(1), up(2)];
        assert_eq!(world.write(&topology(1, Some(1), backends())), 1);
        assert_eq!(world.write(&topology(1, None, backends())), 0);
        assert_eq!(world.write(&topology(1, Some(1), vec![down(1), up(2)])), 0);
        let mut changing = parts(1, Some(1), backends());
        changing.change = Some(ChangeKind::Switchover);
        let changing = Topology::new(changing).unwrap();
        assert_eq!(world.write(&changing), 0);
        assert_eq!(world.reads(&changing), [(2, 10_000)].into());
    }
}
