//! What an agent has done for the cluster, as it tells the others.

use pgherd_common::{Generation, WallTime};

use super::restart::Restart;
use crate::observation::{Health, PostgresObservation};
use crate::rebuild::Setback;
use crate::reconcile::LocalAction;

/// A local action that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub action: LocalAction,
    /// How things stood when it began.
    pub before: Before,
    /// The error with its causes.
    pub result: Result<(), String>,
    /// What an error has taught of coming back.
    pub setback: Option<Setback>,
    /// A look taken after it ended.
    pub observation: PostgresObservation,
}

impl Done {
    /// Whether it failed because the PostgreSQL it was asked of went away meanwhile: what is to be told is that, and is told
    /// by whoever sees it.
    pub fn was_cut_short(&self) -> bool {
        self.result.is_err()
            && self.before.ran
            && self.action.asks_a_server()
            && self.observation.running().is_none()
    }
}

/// How things stood when an action began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The generation of which this node was primary.
    pub primary_of: Option<Generation>,
    /// Whether there was a postmaster.
    pub ran: bool,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(super) struct Duty {
    pub(super) recruited: Option<Generation>,
    pub(super) salvaged: Option<Generation>,
    pub(super) undrained: Option<WallTime>,
    pub(super) prepared: Option<Generation>,
    pub(super) released: Option<Generation>,
    pub(super) fenced: Option<String>,
    pub(super) trouble: Option<String>,
    pub(super) restart: Option<Restart>,
    /// What the operators' own monitor says is wrong.
    pub(super) monitor: Option<String>,
    /// PostgreSQL is down because this agent stopped or killed it.
    pub(super) stopped_here: bool,
}

impl Duty {
    /// Takes note of what became of an action.
    pub(super) fn acted(&mut self, done: &Done) {
        if let Err(error) = &done.result {
            match &done.action {
                // What could not be had is told by the history: nothing is wrong with this node.
                LocalAction::Salvage { .. } => return,
                LocalAction::Prepare { begun, .. } | LocalAction::DrainAndStop { begun, .. } => {
                    self.undrained = Some(*begun);
                }
                _ => {}
            }
            self.trouble = gist(error);
            return;
        }
        self.trouble = None;
        match &done.action {
            LocalAction::Recruit(generation) => self.recruited = Some(*generation),
            LocalAction::Salvage { generation, .. } => self.salvaged = Some(*generation),
            LocalAction::Prepare { generation, .. } => self.prepared = Some(*generation),
            LocalAction::Fence { .. } | LocalAction::StopFast { .. } | LocalAction::DrainAndStop { .. } => {
                self.released = done.before.primary_of.or(self.released);
                self.stopped_here |= done.before.ran;
                if let LocalAction::Fence { reason } = &done.action
                    && done.before.ran
                {
                    self.fenced = Some(reason.clone());
                }
            }
            LocalAction::StartPrimary(..)
            | LocalAction::StartStandby
            | LocalAction::Rejoin { .. }
            | LocalAction::Rebuild(_) => {
                self.fenced = None;
            }
            LocalAction::Checkpoint
            | LocalAction::FenceScript { .. }
            | LocalAction::Promote(..)
            | LocalAction::Cover(_)
            | LocalAction::LetIn
            | LocalAction::Follow(_)
            | LocalAction::AlignSlots { .. }
            | LocalAction::HoldBack(_) => {}
        }
    }

    /// The observation with what only the agent knows.
    pub(super) fn told(&self, own: &PostgresObservation) -> PostgresObservation {
        PostgresObservation {
            recruited: self.recruited,
            salvaged: self.salvaged,
            undrained: self.undrained,
            prepared: self.prepared,
            released: self.released,
            restarting: self.restart.and_then(|restart| restart.asked(own)),
            fenced: self.fenced.clone(),
            trouble: self.trouble.clone(),
            health: Health { monitor: self.monitor.clone(), ..own.health.clone() },
            ..own.clone()
        }
    }
}

/// The log has it all; in tables and in the cluster's state there is room for a line. Where an error
/// goes on to quote a program, that is its first line and the program's own complaint.
fn gist(error: &str) -> Option<String> {
    let mut lines = error.lines();
    let first = lines.next()?;
    let complaint = lines.find(|line| ["FATAL:", "PANIC:", "error:"].iter().any(|mark| line.contains(mark)));
    Some(complaint.map_or(first.to_owned(), |complaint| format!("{first} {complaint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_a_line_with_what_a_quoted_program_complained_of() {
        assert_eq!(gist(""), None);
        assert_eq!(gist("one\ntwo").as_deref(), Some("one"));
        let quoted = "cannot rewind. It said:\npg_rewind: servers diverged\npg_rewind: error: no space\n";
        assert_eq!(gist(quoted).as_deref(), Some("cannot rewind. It said: pg_rewind: error: no space"));
    }
}
