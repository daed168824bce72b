//! Which members are in service: what proxies may send reads to.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{MonoTime, NodeId};

use super::report::Report;
use super::view::View;
use crate::cluster::{Command, Member, Service};
use crate::observation::{PostgresObservation, PostgresState, Running};

/// A standby that receives nothing for so long, while there is a primary to receive from, serves no
/// more reads: they would grow older and older.
const STALLED_AFTER: Duration = Duration::from_secs(10);

impl View<'_> {
    /// The first member whose state of service has changed.
    pub(super) fn serve_services(
        &self,
        stalled: &BTreeMap<NodeId, MonoTime>,
        report: &mut Report,
    ) -> Option<Command> {
        let primary = self.state.primary.map(|primary| primary.node);
        for member in self.state.members.values() {
            let id = member.descriptor.id;
            if Some(id) == primary || member.leaving.is_some() {
                continue;
            }
            let since = stalled.get(&id).map(|since| self.now.since(*since));
            let Some(service) = self.service_of(member, since) else { continue };
            if service != member.service {
                let what = match &service {
                    Service::Up => "is in service".to_owned(),
                    Service::Joining => "is joining".to_owned(),
                    Service::Failed(reason) => format!("is out of service: {reason}"),
                };
                report.doing.push(format!("{} {what}", member.descriptor.name));
                let generation = self.state.generation;
                return Some(Command::SetService { generation, node: id, service, at: self.wall });
            }
        }
        None
    }

    /// What a member's state of service should be; `None` leaves it as it is.
    fn service_of(&self, member: &Member, stalled: Option<Duration>) -> Option<Service> {
        let id = member.descriptor.id;
        let silent = match self.age(id) {
            Some(age) => age >= self.policy.node_timeout,
            // Never heard: give a coordinator that has just begun to listen the same time.
            None if self.step_age >= self.policy.node_timeout => true,
            None => return None,
        };
        if silent {
            return Some(Service::Failed("its agent is silent: node lost or agent stopped".to_owned()));
        }
        if !member.is_database() {
            return Some(Service::Up);
        }
        let postgres = self.fresh(id)?.postgres.as_ref()?;
        self.standby_service(member, postgres, stalled)
    }

    fn standby_service(
        &self,
        member: &Member,
        postgres: &PostgresObservation,
        stalled: Option<Duration>,
    ) -> Option<Service> {
        let because = |what: &str| match &postgres.trouble {
            Some(error) => Some(Service::Failed(format!("{what}: {error}"))),
            None => Some(Service::Failed(what.to_owned())),
        };
        match &postgres.state {
            PostgresState::Running(running) if !running.in_recovery => {
                because("it accepts writes but is not the primary")
            }
            PostgresState::Running(_) if postgres.restarting.is_some() => {
                because("an operator has it restarted or rebuilt")
            }
            PostgresState::Running(_) if postgres.health.monitor.is_some() => {
                let why = postgres.health.monitor.as_deref().unwrap_or_default();
                Some(Service::Failed(format!("its custom monitor failed: {why}")))
            }
            PostgresState::Running(running) if self.is_fed(member, running) => Some(Service::Up),
            PostgresState::Running(_) => match (&member.service, stalled) {
                (Service::Up, Some(since)) if since >= STALLED_AFTER => {
                    because("it receives no WAL from the primary")
                }
                (Service::Joining, Some(since)) if since >= STALLED_AFTER && postgres.trouble.is_some() => {
                    because("it cannot follow the primary")
                }
                (Service::Up | Service::Joining | Service::Failed(_), _) => None,
            },
            PostgresState::Down(_) if member.service == Service::Joining && postgres.trouble.is_none() => {
                None
            }
            PostgresState::Down(stopped) if stopped.clean => because("PostgreSQL was shut down"),
            PostgresState::Down(_) => match &postgres.fenced {
                Some(why) => because(&format!("PostgreSQL was fenced: {why}")),
                None => because("PostgreSQL is down: it crashed or was killed"),
            },
            PostgresState::Starting { .. } if member.service == Service::Up => {
                because("PostgreSQL is starting")
            }
            PostgresState::Starting { .. } => None,
            // A busy machine lets a single look fail.
            PostgresState::Unresponsive { for_ms, .. } => {
                let silent = Duration::from_millis(*for_ms) >= self.policy.node_timeout;
                silent.then(|| because("PostgreSQL does not answer")).flatten()
            }
            PostgresState::Unusable(reason) => because(reason),
        }
    }

    fn is_fed(&self, member: &Member, running: &Running) -> bool {
        self.state.is_fed(member.descriptor.id, running)
    }

    /// Standbys that run but receive nothing although the primary serves.
    pub(super) fn stalled_standbys(&self) -> Vec<NodeId> {
        if self.state.serving().is_none() || self.state.change.is_some() {
            return Vec::new();
        }
        let stalled = |member: &&Member| {
            let running = self.running(member.descriptor.id);
            running.is_some_and(|running| running.in_recovery && !self.is_fed(member, running))
        };
        self.standbys().filter(stalled).map(|member| member.descriptor.id).collect()
    }
}
