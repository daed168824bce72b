//! What a change of topology does to an open server connection.

use pgherd_common::topology::{Availability, ChangeKind};
use pgherd_common::{Generation, NodeId, Topology};

/// As what a server connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To write, under this generation. Never used to write under another.
    Primary(Generation),
    /// To read.
    Standby,
}

/// What becomes of a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays in use.
    Keep,
    /// What runs on it may end; then it is closed.
    Retire,
    /// It is closed at once: nothing that runs on it can be trusted to ever end.
    Cut,
}

/// The fate of a connection to `node`.
pub fn fate(topology: &Topology, node: NodeId, role: Role) -> Fate {
    let Some(backend) = topology.backend(node) else { return Fate::Cut };
    if backend.availability != Availability::Up {
        return Fate::Cut;
    }
    let stopping = topology.primary().is_none() && topology.change() == Some(ChangeKind::Switchover);
    let is_primary = topology.primary().is_some_and(|primary| primary.id == node);
    match role {
        Role::Primary(generation) if is_primary && topology.version().generation == generation => Fate::Keep,
        // The old primary of a switchover lives until what runs on it has ended, or for a moment longer.
        Role::Primary(generation) if stopping && topology.version().generation == generation => Fate::Retire,
        Role::Primary(_) => Fate::Cut,
        // A standby that was promoted still serves what it was asked, but writes need a new connection.
        Role::Standby if is_primary || !backend.attached => Fate::Retire,
        Role::Standby => Fate::Keep,
    }
}

#[cfg(test)]
mod tests {
    use pgherd_common::topology::Parts;

    use super::*;
    use crate::routing::tests::{down, topology, up};

    #[test]
    fn a_primary_connection_serves_one_node_under_one_generation() {
        let before = topology(1, Some(1), vec![up(1), up(2)]);
        let role = Role::Primary(before.version().generation);
        assert_eq!(fate(&before, NodeId(1), role), Fate::Keep);
        for after in [
            topology(2, Some(2), vec![up(1), up(2)]),
            topology(2, Some(1), vec![up(1), up(2)]),
            topology(1, None, vec![up(1), up(2)]),
            topology(1, Some(1), vec![down(1), up(2)]),
            topology(1, Some(2), vec![up(2)]),
        ] {
            assert_eq!(fate(&after, NodeId(1), role), Fate::Cut, "{after:?}");
        }
    }

    #[test]
    fn what_runs_on_the_old_primary_of_a_switchover_may_end() {
        let role = Role::Primary(topology(1, Some(1), vec![up(1)]).version().generation);
        let changing = |kind, generation| {
            let parts = Parts { change: Some(kind), ..topology(generation, None, vec![up(1), up(2)]).into() };
            fate(&Topology::new(parts).unwrap(), NodeId(1), role)
        };
        assert_eq!(changing(ChangeKind::Switchover, 1), Fate::Retire);
        assert_eq!(changing(ChangeKind::Switchover, 2), Fate::Cut, "its successor is chosen");
        assert_eq!(changing(ChangeKind::Failover, 1), Fate::Cut);
    }

    #[test]
    fn a_standby_connection_outlives_changes_elsewhere() {
        let standby = |topology: &Topology| fate(topology, NodeId(2), Role::Standby);
        assert_eq!(standby(&topology(1, None, vec![down(1), up(2)])), Fate::Keep);
        assert_eq!(standby(&topology(2, Some(2), vec![down(1), up(2)])), Fate::Retire);
        assert_eq!(standby(&topology(1, Some(1), vec![up(1), down(2)])), Fate::Cut);
        let mut detached = up(2);
        detached.attached = false;
        assert_eq!(standby(&topology(1, Some(1), vec![up(1), detached])), Fate::Retire);
    }
}
