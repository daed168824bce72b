//! A switchover that is to begin at a set time: whoever leads then begins it, or says why not.
//!
//! The time is wall time, by the clock of the agent that leads: clocks that differ make it begin earlier or later, no
//! more. Once begun it is a switchover like any other. The log has it no longer then, so that it begins once.

use std::time::Duration;

use pgherd_common::{NodeId, NodeName, WallTime};

use super::report::{NotYet, Report};
use super::switchover::SwitchoverRefused;
use super::view::View;
use crate::cluster::{Command, Scheduled};

/// A switchover that cannot begin at its time is tried for so long, then given up: what was planned for a quiet
/// minute is not wanted an hour later.
pub const SCHEDULE_PATIENCE: Duration = Duration::from_secs(60);

/// A time further ahead is more likely a slip than a plan. A year, with a leap day.
pub const SCHEDULE_AHEAD_MAX: Duration = Duration::from_secs(366 * 86_400);

impl View<'_> {
    /// An operator asks for a switchover at a set time. Whether it can be done is not asked before then.
    pub fn plan_schedule(
        &self,
        due: WallTime,
        to: Option<&NodeName>,
        end_transactions: bool,
    ) -> Result<Command, SwitchoverRefused> {
        if let Some(known) = &self.state.scheduled {
            return Err(SwitchoverRefused::AlreadyScheduled(self.spell_schedule(known)));
        }
        if let Some(change) = &self.state.change {
            return Err(SwitchoverRefused::ChangeInFlight(change.kind));
        }
        let (from, to) = self.check_request(to)?;
        if self.state.serving() != Some(from) {
            return Err(SwitchoverRefused::PrimaryNotInService(self.name(from)));
        }
        if due <= self.wall {
            return Err(SwitchoverRefused::InThePast { due, now: self.wall });
        }
        if due > self.wall + SCHEDULE_AHEAD_MAX {
            return Err(SwitchoverRefused::TooFarAhead(due));
        }
        let generation = self.state.generation;
        Ok(Command::Schedule { generation, due, from, to, end_transactions, at: self.wall })
    }

    /// Who would take over, were the scheduled switchover to begin now.
    pub fn foresee_scheduled(&self) -> Option<Result<NodeId, SwitchoverRefused>> {
        let scheduled = self.state.scheduled.as_ref()?;
        Some(self.plan_scheduled(scheduled).map(|command| match command {
            Command::Begin { to: Some(to), .. } => to,
            ref other => unreachable!("a switchover has a target: {other:?}"),
        }))
    }

    /// Begins a switchover whose time has come, or takes it out of the log where it will not be done.
    pub(super) fn tend_schedule(&self, report: &mut Report) -> Option<Command> {
        let scheduled = self.state.scheduled.as_ref()?;
        let number = scheduled.number;
        if self.state.change.is_none() && scheduled.generation != self.state.generation {
            let why = self.spell_replaced(scheduled);
            report.doing.push(format!("the switchover scheduled for {} is dropped: {why}", scheduled.due));
            return Some(Command::Unschedule { number, why: Some(why), at: self.wall });
        }
        if self.wall < scheduled.due {
            return None;
        }
        let late = self.wall.since(scheduled.due);
        let why = match (self.plan_scheduled(scheduled), SCHEDULE_PATIENCE.checked_sub(late)) {
            (Ok(begin), Some(_)) => {
                report.doing.push(format!("begins a switchover: {}", self.spell_schedule(scheduled)));
                return Some(begin);
            }
            (Err(refused), Some(left)) => {
                let refused = refused.to_string();
                report.waiting.push(NotYet::Scheduled { due: scheduled.due, refused, left });
                return None;
            }
            (_, None) if self.led_for < late.saturating_sub(SCHEDULE_PATIENCE) => {
                "no agent led, or for long enough, while it could have begun".to_owned()
            }
            (Ok(_), None) => format!("it could not begin within {SCHEDULE_PATIENCE:?}"),
            (Err(refused), None) => refused.to_string(),
        };
        report.doing.push(format!("the switchover scheduled for {} is given up: {why}", scheduled.due));
        Some(Command::Unschedule { number, why: Some(why), at: self.wall })
    }

    /// The same as if an operator asked for it now.
    fn plan_scheduled(&self, known: &Scheduled) -> Result<Command, SwitchoverRefused> {
        let to = known.to.map(|to| self.name(to));
        let mut command = self.plan_switchover(to.as_ref(), known.end_transactions)?;
        if let Command::Begin { reason, scheduled, .. } = &mut command {
            *reason = format!("an operator asked for a switchover at {}", known.due);
            *scheduled = Some(known.number);
        }
        Ok(command)
    }

    fn spell_schedule(&self, scheduled: &Scheduled) -> String {
        let to = scheduled.to.map_or("the best standby".to_owned(), |to| self.name(to).to_string());
        format!("from {} to {to} at {}", self.name(scheduled.from), scheduled.due)
    }

    fn spell_replaced(&self, scheduled: &Scheduled) -> String {
        let from = self.name(scheduled.from);
        match self.state.primary.map(|primary| primary.node).filter(|node| *node != scheduled.from) {
            Some(primary) => format!("{} is the primary by now, not {from}", self.name(primary)),
            None => format!("{from} was not the primary all the time"),
        }
    }
}
