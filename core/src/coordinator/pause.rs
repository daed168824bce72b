//! Maintenance: what is paused stays as it is, and every pause ends.
//!
//! The time is wall time, by the clock of the agent that leads: clocks that differ make a pause end earlier or later, no
//! more. What keeps two primaries apart goes on meanwhile: a primary that loses its lease is fenced, paused or not.

use std::time::Duration;

use pgherd_common::NodeId;

use super::report::{NotYet, Report};
use super::switchover::SwitchoverRefused;
use super::view::View;
use crate::cluster::{Command, Pause};

/// A longer pause is more likely a slip than a plan: nobody looks after the cluster meanwhile.
pub const PAUSE_MAX: Duration = Duration::from_secs(7 * 86_400);

impl View<'_> {
    /// Ends a pause whose time is over.
    pub(super) fn tend_pauses(&self, report: &mut Report) -> Option<Command> {
        let (node, pause) = self.state.pauses.iter().find(|(_, pause)| pause.until <= self.wall)?;
        report.doing.push(format!("the pause of {} is over", self.spell_paused(node)));
        Some(Command::Unpause { node, number: Some(pause.number) })
    }

    /// Says that a primary in trouble is left alone, if it is to be.
    pub(super) fn leaves_alone(&self, primary: NodeId, trouble: &str, report: &mut Report) -> bool {
        let Some(pause) = self.state.pauses.of(primary) else { return false };
        report.waiting.push(NotYet::Paused { trouble: trouble.to_owned(), until: pause.until });
        true
    }

    /// Nobody could stop the old primary or promote the new one.
    pub(super) fn refuse_paused(&self, from: NodeId, to: Option<NodeId>) -> Result<(), SwitchoverRefused> {
        let pauses = &self.state.pauses;
        let of_node = |node: NodeId| pauses.nodes.get(&node).map(|pause| (Some(node), *pause));
        let cluster = pauses.cluster.map(|pause| (None, pause));
        match cluster.or_else(|| of_node(from)).or_else(|| to.and_then(of_node)) {
            Some((node, Pause { until, .. })) => {
                Err(SwitchoverRefused::Paused { what: self.spell_paused(node), until })
            }
            None => Ok(()),
        }
    }

    fn spell_paused(&self, node: Option<NodeId>) -> String {
        node.map_or("the cluster".to_owned(), |node| self.name(node).to_string())
    }
}
