//! I7: a proxy writes only to the primary of the newest topology it has heard of, and never goes back to
//! an older one.

use pgherd_common::{NodeId, Topology, Version};

use super::Violation;

/// The newest topology that each proxy took.
#[derive(Debug)]
pub(crate) struct Routes(Vec<Option<(Version, Option<NodeId>)>>);

impl Routes {
    pub(crate) fn new(proxies: usize) -> Self {
        Self(vec![None; proxies])
    }

    /// A proxy takes a topology.
    pub(crate) fn taken(&mut self, proxy: usize, topology: &Topology) -> Option<Violation> {
        let known = self.0.get_mut(proxy)?;
        let to = topology.version();
        if let Some((from, _)) = known.filter(|(from, _)| *from > to) {
            return Some(Violation::TopologyWentBack { proxy, from, to });
        }
        let settled = topology.change().is_none();
        *known = Some((to, topology.primary().filter(|_| settled).map(|backend| backend.id)));
        None
    }

    /// A proxy sends a write.
    pub(crate) fn routed(&self, proxy: usize, index: usize, node: NodeId) -> Option<Violation> {
        let why = match self.0.get(proxy).copied().flatten() {
            None => "it has no topology".to_owned(),
            Some((_, Some(primary))) if primary == node => return None,
            Some((version, Some(primary))) => format!("the primary of topology {version} is node {primary}"),
            Some((version, None)) => format!("topology {version} has no primary to write to"),
        };
        Some(Violation::WrongRoute { proxy, node: index, why })
    }
}

#[cfg(test)]
mod tests {
    use pgherd_common::Generation;
    use pgherd_common::topology::Parts;

    use super::*;

    fn topology(revision: u64) -> Topology {
        let version = Version { generation: Generation::ZERO.next(), revision };
        let cluster = "demo".parse().unwrap();
        Topology::new(Parts {
            cluster,
            version,
            backends: vec![],
            primary: None,
            first_xid: None,
            change: None,
        })
        .unwrap()
    }

    #[test]
    fn an_older_topology_and_a_write_without_primary_are_found() {
        let mut routes = Routes::new(1);
        assert!(routes.routed(0, 0, NodeId(1)).is_some());
        assert_eq!(routes.taken(0, &topology(5)), None);
        assert!(routes.routed(0, 0, NodeId(1)).is_some());
        assert!(matches!(routes.taken(0, &topology(4)), Some(Violation::TopologyWentBack { .. })));
    }
}
