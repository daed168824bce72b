//! Newer topologies win, older ones are refused.

use pgherd_common::{ClusterName, Topology, Version};

/// What to do with a pushed topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// Put it into effect, then acknowledge it.
    Switch,
    /// It is in effect already: acknowledge it.
    Known,
    /// An older one than that in effect.
    Older {
        /// In effect.
        have: Version,
    },
    /// Of another cluster.
    Stranger,
}

/// Judges a pushed topology against the one in effect.
pub fn accept(own: &ClusterName, current: Option<&Topology>, pushed: &Topology) -> Acceptance {
    if pushed.cluster() != own {
        return Acceptance::Stranger;
    }
    match current.map(Topology::version) {
        Some(have) if pushed.version() < have => Acceptance::Older { have },
        Some(have) if pushed.version() == have => Acceptance::Known,
        Some(_) | None => Acceptance::Switch,
    }
}

#[cfg(test)]
mod tests {
    use pgherd_common::Generation;
    use pgherd_common::topology::Parts;

    use super::*;

    fn topology(cluster: &str, generation: Generation, revision: u64) -> Topology {
        let version = Version { generation, revision };
        let cluster = cluster.parse().unwrap();
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
    fn only_newer_topologies_of_the_own_cluster_are_taken() {
        let own: ClusterName = "demo".parse().unwrap();
        let (first, second) = (Generation::ZERO.next(), Generation::ZERO.next().next());
        let current = topology("demo", second, 5);
        let judge = |pushed: &Topology| accept(&own, Some(&current), pushed);
        assert_eq!(accept(&own, None, &topology("demo", first, 1)), Acceptance::Switch);
        assert_eq!(judge(&topology("demo", second, 6)), Acceptance::Switch);
        assert_eq!(judge(&topology("demo", second.next(), 1)), Acceptance::Switch);
        assert_eq!(judge(&current.clone()), Acceptance::Known);
        let have = current.version();
        assert_eq!(judge(&topology("demo", second, 4)), Acceptance::Older { have });
        assert_eq!(judge(&topology("demo", first, 99)), Acceptance::Older { have });
        assert_eq!(judge(&topology("other", second, 6)), Acceptance::Stranger);
    }
}
