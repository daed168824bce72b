//! Physical replication slots for the other members.

use std::collections::{BTreeMap, BTreeSet};

use pgherd_common::{Lsn, NodeName};
use rustix::process::Signal;
use tokio_postgres::error::SqlState;

use super::instance::Instance;
use super::process::Process;
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
    /// Somebody streams through it, or it was lost, in this moment.
    #[error(
        "the replication slot {slot} cannot be moved on to {upto}; it keeps more WAL than it should, which is tried again"
    )]
    Advance {
        /// The slot.
        slot: String,
        /// Where to.
        upto: Lsn,
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
    pinned: bool,
}

impl Instance {
    /// Makes sure that there is a slot for each of `members` (the other database members), and none
    /// for anybody else, so far as they are not in use.
    ///
    /// On a primary such a slot holds WAL from the last checkpoint on, also for a member that is away:
    /// a former primary needs all since then to rejoin. On a standby it holds as much, from the last
    /// restartpoint on, until [`Instance::move_slots`] moves it on: so after a promotion nobody lacks what the old
    /// primary had kept for him. One that keeps rows from being vacuumed there is made anew: nobody would move that on.
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
            let stale = slot.lost || !slot.holds_wal || (in_recovery && slot.pinned);
            let doomed = !slot.active && (stale || !wanted.contains(&slot.name));
            if doomed && drop_slot(&session, &slot.name).await? {
                tracing::info!(slot = slot.name, "dropped a replication slot that does not fit the role");
            } else {
                present.insert(slot.name);
            }
        }
        if in_recovery {
            drop_leftovers(&session).await?;
        }
        for name in wanted.difference(&present) {
            create(&session, name).await?;
        }
        Ok(())
    }

    /// Has the slots of these members keep no WAL from before these positions, as far as nobody streams through them. No
    /// slot is moved back, nor past what this server has replayed.
    pub async fn move_slots(&self, upto: &BTreeMap<NodeName, Lsn>) -> Result<(), SlotsError> {
        const MOVE: &str = "SELECT pg_replication_slot_advance(slot_name, here) FROM \
             (SELECT slot_name, restart_lsn, least($2::text::pg_lsn, CASE WHEN pg_is_in_recovery() \
                     THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END) AS here \
                FROM pg_replication_slots WHERE slot_name = $1::text AND NOT active OFFSET 0) AS slot \
              WHERE restart_lsn < here";
        if upto.is_empty() {
            return Ok(());
        }
        let session = self.session().await?;
        let pinned = slots(&session).await?.into_iter().filter(|slot| slot.pinned && !slot.active);
        let pinned: BTreeSet<String> = pinned.map(|slot| slot.name).collect();
        for (member, upto) in upto {
            let slot = member.slot();
            if pinned.contains(&slot) && drop_slot(&session, &slot).await? {
                create(&session, &slot).await?;
            }
            let moved = session.rows(MOVE, &[&slot, &upto.to_string()]).await;
            moved.map_err(|source| SlotsError::Advance { slot, upto: *upto, source })?;
        }
        Ok(())
    }
}

/// A stop waits until every subscriber has confirmed what it was sent, and so for ever for one that confirms nothing. One
/// whose buffers are full besides cannot be ended in order: its walsender waits until it has told it why.
impl Instance {
    /// Walsenders of logical slots; none where the server does not say.
    pub(super) async fn subscribers(&self) -> Vec<u32> {
        const SUBSCRIBERS: &str = "SELECT coalesce(array_agg(active_pid), '{}') FROM pg_replication_slots \
                                   WHERE slot_type = 'logical' AND active_pid IS NOT NULL";
        let asked = async { self.session().await?.value::<Vec<i32>>(SUBSCRIBERS).await };
        let pids = asked.await.unwrap_or_default();
        pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect()
    }

    /// They connect again to the next primary.
    pub(super) fn end_subscribers(&self, pids: &[u32]) {
        for pid in pids {
            if let Ok(Some(walsender)) = Process::of_instance(*pid, self.data_dir()) {
                tracing::warn!(pid, "a subscriber holds up the stop of PostgreSQL; ending its connection");
                // One that has ended meanwhile holds up nothing.
                let _ = walsender.signal(Signal::TERM);
            }
        }
    }
}

async fn slots(session: &Session) -> Result<Vec<Slot>, SessionError> {
    let sql = "SELECT slot_name::text, active, restart_lsn IS NOT NULL, wal_status IS NOT DISTINCT FROM 'lost', \
                      xmin IS NOT NULL \
               FROM pg_replication_slots \
               WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name::text, 'pgherd_')";
    let rows = session.rows(sql, &[]).await?;
    let slot = |row: &tokio_postgres::Row| {
        Ok(Slot {
            name: session.take(row, 0)?,
            active: session.take(row, 1)?,
            holds_wal: session.take(row, 2)?,
            lost: session.take(row, 3)?,
            pinned: session.take(row, 4)?,
        })
    };
    rows.iter().map(slot).collect()
}

/// A former primary's own logical slots are in the way of the copies of those that the new one has, and keep WAL that
/// nobody will ask for.
async fn drop_leftovers(session: &Session) -> Result<(), SessionError> {
    const LEFTOVERS: &str = "SELECT slot_name::text FROM pg_replication_slots AS slot \
        WHERE slot_type = 'logical' AND NOT temporary AND NOT active \
        AND (to_jsonb(slot)->>'failover')::bool AND NOT (to_jsonb(slot)->>'synced')::bool";
    for row in session.rows(LEFTOVERS, &[]).await? {
        let name: &str = session.take(&row, 0)?;
        if drop_slot(session, name).await? {
            tracing::info!(slot = name, "dropped a logical slot from when this server was the primary");
        }
    }
    Ok(())
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

async fn create(session: &Session, name: &str) -> Result<(), SlotsError> {
    let sql = "SELECT pg_create_physical_replication_slot($1::text::name, true)";
    match session.rows(sql, &[&name]).await {
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
