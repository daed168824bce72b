//! How a cluster comes to be: around the one server that is already primary.

use std::collections::BTreeSet;

use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Command, Identity, NodeKind};
use crate::observation::{NodeObservation, PostgresObservation, PostgresState};

impl View<'_> {
    /// Forms the cluster once every configured member has been heard and they fit together. Waiting
    /// for all is what makes a second primary impossible: nobody unseen can be one.
    pub(super) fn form(&self, report: &mut Report) -> Option<Command> {
        if self.state.identity.is_some() || self.quorum.voters.is_empty() {
            return None;
        }
        let unseen: Vec<_> = self.quorum.voters.iter().copied().filter(|id| !self.is_fresh(*id)).collect();
        if !unseen.is_empty() {
            report.waiting.push(NotYet::MembersUnseen(unseen));
            return None;
        }
        let members: Vec<&NodeObservation> =
            self.quorum.voters.iter().filter_map(|id| self.fresh(*id)).collect();
        let mut names = BTreeSet::new();
        for member in &members {
            if !names.insert(&member.descriptor.name) {
                report.waiting.push(NotYet::DuplicateName(member.descriptor.name.clone()));
                return None;
            }
        }
        let servers: Vec<_> =
            members.iter().filter_map(|member| Some((*member, member.postgres.as_ref()?))).collect();
        let unsettled: Vec<_> = members.iter().filter(|member| is_unsettled(member)).collect();
        if !unsettled.is_empty() {
            let names = unsettled.iter().map(|member| member.descriptor.name.clone()).collect();
            report.waiting.push(NotYet::Unsettled(names));
            return None;
        }
        let name = |(member, _): &&(&NodeObservation, &PostgresObservation)| member.descriptor.name.clone();
        let primaries: Vec<_> = servers.iter().filter(|(_, postgres)| would_be_primary(postgres)).collect();
        let [(primary, truth)] = primaries.as_slice() else {
            report.waiting.push(if primaries.is_empty() {
                NotYet::NoPrimaryToForm(servers.iter().map(|server| name(&server)).collect())
            } else {
                NotYet::SeveralPrimaries(primaries.iter().map(name).collect())
            });
            return None;
        };
        for (member, postgres) in &servers {
            let node = member.descriptor.name.clone();
            if postgres.system_identifier != truth.system_identifier {
                let (found, expected) = (postgres.system_identifier, truth.system_identifier);
                report.waiting.push(NotYet::ForeignSystem { node, found, expected });
            } else if postgres.major != truth.major {
                let (found, expected) = (postgres.major, truth.major);
                report.waiting.push(NotYet::MajorVersion { node, found, expected });
            }
        }
        if !report.waiting.is_empty() {
            return None;
        }
        Some(Command::Form {
            identity: Identity {
                cluster: primary.cluster.clone(),
                system_identifier: truth.system_identifier,
                major: truth.major,
            },
            primary: primary.descriptor.id,
            members: members.iter().map(|member| member.descriptor.clone()).collect(),
            at: self.wall,
        })
    }
}

/// Whether it cannot be told yet what this member's server would be.
fn is_unsettled(member: &NodeObservation) -> bool {
    match (member.descriptor.kind, member.postgres.as_ref().map(|postgres| &postgres.state)) {
        (NodeKind::Witness, _) | (_, Some(PostgresState::Running(_) | PostgresState::Down(_))) => false,
        (NodeKind::Database, _) => true,
    }
}

/// Whether this server accepts writes, or would when it is started as it is.
fn would_be_primary(postgres: &PostgresObservation) -> bool {
    match &postgres.state {
        PostgresState::Running(running) => !running.in_recovery,
        PostgresState::Down(stopped) => !stopped.standby,
        PostgresState::Starting { .. } | PostgresState::Unresponsive { .. } | PostgresState::Unusable(_) => {
            false
        }
    }
}
