//! Physical replication slots for the other members.

use std::collections::BTreeSet;

use pgherd_common::NodeName;
use tokio_postgres::error::SqlState;

use super::instance::Instance;
use super::session::{Session, SessionError};

/// Why the slots are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// The role changed in between.
    #[error("PostgreSQL has changed its role; slots are aligned again with the new one")]
    RoleChanged,
    /// `max_replication_slots` is too low.
    #[error("no room for the replication slot {slot}; raise max_replication_slots or drop unused slots")]
    Full {
        /// The slot.
        slot: String,
        /// What PostgreSQL says.
        #[source]
        source: SessionError,
    },
    /// The server refused or did not answer.
    #[error("cannot align the replication slots")]
    Session(#[from] SessionError),
}

struct Slot {
    name: String,
    active: bool,
    holds_wal: bool,
    lost: bool,
}

impl Instance {
    /// Makes sure that there is a slot for each of `members` (the other database members), and none
    /// for anybody else, so far as they are not in use.
    ///
    /// On a primary such a slot holds WAL from the last checkpoint on, also for a member that is away:
    /// a former primary needs all since then to rejoin. On a standby it may hold none, since nobody
    /// would move it on: it exists so that a member can follow at once after a promotion.
    pub async fn align_slots(
        &self,
        members: &BTreeSet<NodeName>,
        in_recovery: bool,
    ) -> Result<(), SlotsError> {
        let session = self.session().await?;
        if session.value::<bool>("SELECT pg_is_in_recovery()").await? != in_recovery {
            return Err(SlotsError::RoleChanged);
        }
        let wanted: BTreeSet<String> = members.iter().map(NodeName::slot).collect();
        let mut present = BTreeSet::new();
        for slot in slots(&session).await? {
            let stale = slot.lost || slot.holds_wal == in_recovery;
            let doomed = !slot.active && (stale || !wanted.contains(&slot.name));
            if doomed && drop_slot(&session, &slot.name).await? {
                tracing::info!(slot = slot.name, "dropped a replication slot that does not fit the role");
            } else {
                present.insert(slot.name);
            }
        }
        for name in wanted.difference(&present) {
            create(&session, name, !in_recovery).await?;
        }
        Ok(())
    }
}

async fn slots(session: &Session) -> Result<Vec<Slot>, SessionError> {
    let sql = "SELECT slot_name::text, active, restart_lsn IS NOT NULL, wal_status IS NOT DISTINCT FROM 'lost' \
               FROM pg_replication_slots \
               WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name::text, 'pgherd_')";
    let rows = session.rows(sql, &[]).await?;
    let slot = |row: &tokio_postgres::Row| {
        Ok(Slot {
            name: session.take(row, 0)?,
            active: session.take(row, 1)?,
            holds_wal: session.take(row, 2)?,
            lost: session.take(row, 3)?,
        })
    };
    rows.iter().map(slot).collect()
}

/// False when somebody took it into use in the meantime.
async fn drop_slot(session: &Session, name: &str) -> Result<bool, SessionError> {
    match session.rows("SELECT pg_drop_replication_slot($1::text::name)", &[&name]).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => Ok(false),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(true),
        Err(error) => Err(error),
    }
}

async fn create(session: &Session, name: &str, reserve: bool) -> Result<(), SlotsError> {
    let sql = "SELECT pg_create_physical_replication_slot($1::text::name, $2::bool)";
    match session.rows(sql, &[&name, &reserve]).await {
        Ok(_) => {
            tracing::info!(slot = name, "created a replication slot");
            Ok(())
        }
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
        Err(source) if source.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => {
            Err(SlotsError::Full { slot: name.to_owned(), source })
        }
        Err(error) => Err(error.into()),
    }
}
