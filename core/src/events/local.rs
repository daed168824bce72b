//! What an agent sees of its own PostgreSQL.

use pgherd_common::{Generation, NodeName};

use super::{Event, Kind};
use crate::observation::{PostgresObservation, PostgresState};
use crate::rebuild::REBUILDING;
use crate::reconcile::LEASE_ENDED;

/// A look that fails now and then on a busy machine is no news.
const SILENT_FOR_MS: u64 = 3000;

/// Whether this server is out because its agent lost the lease.
pub(super) fn is_isolated(own: &PostgresObservation) -> bool {
    own.fenced.as_deref().is_some_and(|why| why.starts_with(LEASE_ENDED))
}

/// What is remembered of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnSeen {
    fenced: Option<String>,
    stopped: bool,
}

impl OwnSeen {
    pub(super) fn of(own: &PostgresObservation) -> Self {
        Self { fenced: own.fenced.clone(), stopped: own.stopped().is_some() }
    }
}

/// What has happened from one look to the next.
pub(super) fn compare(
    (me, generation): (&NodeName, Generation),
    before: &OwnSeen,
    after: &PostgresObservation,
) -> Option<Event> {
    let event = |kind, text| Some(Event::new(kind, Some(me.clone()), generation, text));
    if let Some(why) = after.fenced.as_ref().filter(|why| before.fenced.as_ref() != Some(why)) {
        let text = format!("PostgreSQL on {me} was killed by its agent: {why}");
        let kind = if is_isolated(after) { Kind::PrimaryIsolated } else { Kind::DatabaseFenced };
        return event(kind, text);
    }
    let crashed = |own: &PostgresObservation| own.stopped().is_some_and(|stopped| !stopped.clean);
    if !before.stopped && crashed(after) && after.fenced.is_none() {
        let text = format!(
            "PostgreSQL on {me} is down: it crashed or was killed. The cluster goes on with another node, or starts it again"
        );
        return event(Kind::DatabaseDown, text);
    }
    None
}

/// What is not as it should be, for as long as it lasts.
pub(super) fn conditions(me: &NodeName, generation: Generation, own: &PostgresObservation) -> Vec<Event> {
    let mut found = Vec::new();
    let mut add = |kind, text| found.push(Event::new(kind, Some(me.clone()), generation, text));
    match &own.state {
        PostgresState::Unusable(why) => {
            add(Kind::DatabaseUnusable, format!("PostgreSQL on {me} is left alone: {why}"));
        }
        PostgresState::Unresponsive { for_ms, reason } if *for_ms >= SILENT_FOR_MS => {
            add(
                Kind::DatabaseSilent,
                format!("PostgreSQL on {me} runs but does not answer its agent: {reason}"),
            );
        }
        PostgresState::Unresponsive { .. }
        | PostgresState::Down(_)
        | PostgresState::Starting { .. }
        | PostgresState::Running(_) => {}
    }
    if let Some(error) = own.trouble.as_ref().filter(|trouble| *trouble != REBUILDING) {
        add(Kind::ActionFailed, format!("{me}: {error}"));
    }
    if let Some(why) = &own.health.monitor {
        add(Kind::MonitorFailed, format!("the custom monitor of {me} failed: {why}"));
    }
    if let Some(sign) = own.health.database_complaint() {
        add(Kind::DatabaseSick, format!("PostgreSQL on {me} {sign}"));
    }
    found
}
