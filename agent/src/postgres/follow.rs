//! What a running standby does with its walreceiver: be recruited, follow, be promoted.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::{Lsn, NodeName, Timeline};
use rustix::process::Signal;

use super::cover::waits_for;
use super::files::{FileError, Following, Replaced, own_file};
use super::instance::{Instance, Patience};
use super::process::{self, Process};
use super::session::{Session, SessionError};
use super::settings::Upstream;
use crate::reconcile::{Commits, held_back};

/// How long a reload and the end of a walreceiver may take; milliseconds on a healthy host.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
pub(super) const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// A walreceiver still there after this is ended by hand: the startup process, which ends it
/// otherwise, may be waiting for a query that conflicts with replay.
const RECEIVER_GRACE: Duration = Duration::from_millis(150);

/// Why a standby's upstream was not changed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// Nothing runs.
    #[error("PostgreSQL does not run")]
    NotRunning,
    /// The postmaster cannot be watched or signalled.
    #[error("cannot make PostgreSQL reload its configuration")]
    Reload(#[source] std::io::Error),
    /// `pgherd.conf` was not written.
    #[error("cannot change the agent's settings")]
    File(#[from] FileError),
    /// The server did not answer.
    #[error("cannot tell whether PostgreSQL uses the agent's settings")]
    Session(#[from] SessionError),
    /// Something else sets them.
    #[error(
        "{setting} is set in {by:?}, which wins over {own_file:?}; remove it there (the include line of the agent must come last)"
    )]
    Overridden {
        /// The setting.
        setting: String,
        /// The file that sets it.
        by: String,
        /// `pgherd.conf`.
        own_file: PathBuf,
    },
    /// The reload took too long.
    #[error("PostgreSQL has not taken over {own_file:?} within {} ms; its log tells about errors in the configuration files", SETTLE.as_millis())]
    NotInEffect {
        /// `pgherd.conf`.
        own_file: PathBuf,
    },
}

/// Why a standby was not recruited.
#[derive(Debug, thiserror::Error)]
pub enum RecruitError {
    /// Its upstream could not be taken away.
    #[error("the standby cannot be cut from its upstream")]
    Cut(#[from] FollowError),
    /// The server did not answer.
    #[error("cannot tell whether the walreceiver has ended")]
    Session(#[from] SessionError),
    /// It is a primary.
    #[error("PostgreSQL is a primary, not a standby; only standbys are recruited")]
    NotAStandby,
    /// WAL may still come in.
    #[error("WAL still arrives after {} ms: the walreceiver has not ended", SETTLE.as_millis())]
    StillReceiving,
    /// It has WAL of unknown length on disk.
    #[error("the WAL that is here is still being replayed after {} s; it is tried again", after.as_secs())]
    Replaying {
        /// `start_timeout`.
        after: Duration,
    },
}

/// Why a standby was not promoted, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// It may still receive WAL of another primary.
    #[error("the standby still follows {0}; it must be recruited before it is promoted")]
    NotRecruited(String),
    /// The server did not answer.
    #[error("cannot promote")]
    Session(#[from] SessionError),
    /// It takes longer than `start_timeout`.
    #[error("the promotion goes on, but is not finished after {} s: replay is at {replayed}", after.as_secs())]
    StillRecovering {
        /// `start_timeout`.
        after: Duration,
        /// How far replay is.
        replayed: Lsn,
    },
}

impl Instance {
    /// Makes the standby follow `upstream`. Returns when the setting is in effect; that WAL flows is
    /// for a later look to tell.
    pub async fn follow(&self, upstream: &Upstream) -> Result<(), FollowError> {
        let _acting = self.shared.acting.lock().await;
        let done = self.apply(&Following::of(self.settings(), upstream)).await;
        self.shared.stirred.notify_one();
        done
    }

    /// Has a primary's logical slots send nothing that these standbys do not have.
    pub async fn hold_back(&self, standbys: &BTreeSet<NodeName>) -> Result<(), FollowError> {
        let _acting = self.shared.acting.lock().await;
        let present = Following::as_primary(self.data_dir());
        let done = self.apply(&Following { held_back: held_back(standbys), ..present }).await;
        self.shared.stirred.notify_one();
        done
    }

    /// Cuts the standby from its upstream and from the archive, and returns when no WAL can arrive any
    /// more: no walreceiver and no `restore_command` at work. The position read after that is final, but
    /// for WAL that is here already and not yet replayed.
    ///
    /// A `restore_command` that does not end does not hold it up. What it brings in the end is more than
    /// the position tells, never less, and it acknowledges nothing to the old primary: all that this
    /// standby ever acknowledged came through the walreceiver, which is gone.
    pub async fn recruit(&self) -> Result<(), RecruitError> {
        self.cut(&Commits::Free).await
    }

    /// The same, with what holds for commits if it becomes a primary.
    pub async fn cut(&self, commits: &Commits) -> Result<(), RecruitError> {
        let _acting = self.shared.acting.lock().await;
        let session = self.session().await?;
        if !session.value::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err(RecruitError::NotAStandby);
        }
        self.apply(&Following::nobody().waiting(waits_for(self.settings(), commits))).await?;
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        let grace = Patience::new(RECEIVER_GRACE, Duration::ZERO);
        // The startup process starts a walreceiver with the old setting only if the reload reached it
        // later than it reached our session. Two looks apart, it has passed by. Back from a
        // restore_command, it takes notice of a reload before anything else.
        let mut quiet = 0;
        loop {
            let inflow = self.inflow(&session).await?;
            match &inflow.walreceiver {
                None => quiet += 1,
                Some(walreceiver) => {
                    quiet = 0;
                    if !grace.next().await {
                        self.end(*walreceiver);
                    }
                }
            }
            if quiet >= 2 && !inflow.restoring {
                break;
            }
            if !patience.next().await {
                if quiet < 2 {
                    return Err(RecruitError::StillReceiving);
                }
                tracing::warn!("restore_command is still at work, and is waited for no longer");
                break;
            }
        }
        self.replay_what_is_here(&session).await?;
        self.shared.stirred.notify_one();
        Ok(())
    }

    /// A server that was started without an upstream does not know how much WAL it has until it has
    /// replayed it: only then is its position what it is worth. While it waits for a `restore_command`
    /// it has not, since it asks the archive first.
    async fn replay_what_is_here(&self, session: &Session) -> Result<(), RecruitError> {
        const KNOWN_OR_DONE: &str = "SELECT pg_last_wal_receive_lsn() IS NOT NULL OR EXISTS (SELECT FROM \
             pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN \
             ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval', 'RecoveryPause'))";
        let patience = Patience::new(self.settings().start_timeout, SETTLE_PAUSE);
        while !session.value::<bool>(KNOWN_OR_DONE).await? {
            if !patience.next().await {
                return Err(RecruitError::Replaying { after: self.settings().start_timeout });
            }
        }
        Ok(())
    }

    /// Promotes the standby, which must have been recruited, and returns its new timeline when it
    /// accepts writes. Fine when it is a primary already. After [`PromoteError::StillRecovering`]
    /// another call waits on.
    pub async fn promote(&self) -> Result<Timeline, PromoteError> {
        let _acting = self.shared.acting.lock().await;
        let session = self.session().await?;
        let row = session
            .row(
                "SELECT pg_is_in_recovery(), current_setting('primary_conninfo') <> '' OR EXISTS \
                  (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')",
                &[],
            )
            .await?;
        if session.take::<bool>(&row, 0)? {
            if session.take::<bool>(&row, 1)? {
                let at = session.value::<String>("SELECT current_setting('primary_conninfo')").await?;
                let at =
                    super::conninfo::address(&at).map_or("another server".to_owned(), |at| at.to_string());
                return Err(PromoteError::NotRecruited(at));
            }
            // A promotion ends a pause of replay too, but says so in the log as if by accident.
            session.rows("SELECT pg_wal_replay_resume() WHERE pg_is_wal_replay_paused()", &[]).await?;
            self.note_replayed(&session).await?;
            session.rows("SELECT pg_promote(wait => false)", &[]).await?;
        }
        let timeline = self.promoted(&session).await;
        self.shared.stirred.notify_one();
        timeline
    }

    /// What was decided before a promotion is to be told from what comes after it.
    async fn note_replayed(&self, session: &Session) -> Result<(), SessionError> {
        // One after the other: the snapshot has all that was replayed up to that position.
        let at = session.value::<String>("SELECT pg_last_wal_replay_lsn()::text").await?;
        let xid = session.value::<String>("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").await?;
        // A promotion that somebody else has begun may have ended in between, and the first number be given.
        let still = session.value::<bool>("SELECT pg_is_in_recovery()").await?;
        self.memory().replayed = at.parse().ok().zip(xid.parse().ok()).filter(|_| still);
        Ok(())
    }

    async fn promoted(&self, session: &Session) -> Result<Timeline, PromoteError> {
        let after = self.settings().start_timeout;
        let patience = Patience::new(after, SETTLE_PAUSE);
        loop {
            if !session.value::<bool>("SELECT pg_is_in_recovery()").await? {
                return Ok(self.facts(session).await?.timeline);
            }
            if !patience.next().await {
                let replayed = self.facts(session).await?.position;
                return Err(PromoteError::StillRecovering { after, replayed });
            }
        }
    }

    /// Puts the walreceiver's settings into `pgherd.conf` and waits until the running server has them.
    pub(super) async fn apply(&self, following: &Following) -> Result<(), FollowError> {
        // The server takes it over while the directory is synced.
        let written = following.replace(self.data_dir(), &self.shared.owner)?;
        let mut first = written.is_none();
        if !first {
            self.reload()?;
        }
        written.map_or(Ok(()), Replaced::outlives_crash)?;
        let session = self.session().await?;
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        loop {
            let foreign = match self.effective(&session, following).await? {
                Effect::Ours => return Ok(()),
                Effect::Other(foreign) => foreign,
            };
            // pg_basebackup -R and ALTER SYSTEM leave the setting in a file that is read after ours.
            for (setting, _) in
                foreign.iter().filter(|(setting, by)| !is_archive(setting) && is_automatic(by))
            {
                tracing::warn!(%setting, "ALTER SYSTEM has set this over the agent's setting; resetting it");
                session.run(&format!("ALTER SYSTEM RESET {setting}"), SETTLE).await?;
                first = true;
            }
            if first {
                self.reload()?;
                first = false;
            } else if foreign.iter().all(|(setting, by)| is_archive(setting) && is_automatic(by)) {
                archive_stays();
                return Ok(());
            }
            if !patience.next().await {
                let own_file = own_file(self.data_dir());
                if foreign.iter().all(|(setting, by)| is_archive(setting) && is_foreign(by)) {
                    archive_stays();
                    return Ok(());
                }
                let elsewhere = foreign.into_iter().find(|(_, by)| is_foreign(by));
                return Err(match elsewhere {
                    Some((setting, by)) => FollowError::Overridden { setting, by, own_file },
                    None => FollowError::NotInEffect { own_file },
                });
            }
        }
    }

    pub(super) fn reload(&self) -> Result<(), FollowError> {
        let postmaster = self.postmaster().map_err(FollowError::Reload)?.ok_or(FollowError::NotRunning)?;
        postmaster.signal(Signal::HUP).map_err(FollowError::Reload)
    }

    async fn effective(&self, session: &Session, wanted: &Following) -> Result<Effect, SessionError> {
        let sql = "SELECT name, setting, coalesce(sourcefile, '') FROM pg_settings \
                   WHERE name IN \
                   ('primary_conninfo', 'primary_slot_name', 'restore_command', 'synchronous_standby_names', \
                    'synchronized_standby_slots', 'sync_replication_slots', 'hot_standby_feedback')";
        let mut other = Vec::new();
        for row in session.rows(sql, &[]).await? {
            let (name, value): (String, &str) = (session.take(&row, 0)?, session.take(&row, 1)?);
            let by: String = session.take(&row, 2)?;
            let ours = match name.as_str() {
                "primary_conninfo" => value == wanted.primary_conninfo,
                "primary_slot_name" => value == wanted.primary_slot_name,
                "synchronous_standby_names" => names_are(wanted.waits_for.as_ref(), value, &by),
                "synchronized_standby_slots" => names_are(wanted.held_back.as_ref(), value, &by),
                "sync_replication_slots" | "hot_standby_feedback" => !wanted.copies || value == "on",
                _ => !wanted.is_of_nobody() || value.is_empty(),
            };
            if !ours {
                other.push((name, by));
            }
        }
        Ok(if other.is_empty() { Effect::Ours } else { Effect::Other(other) })
    }

    /// What brings WAL in right now.
    async fn inflow(&self, session: &Session) -> Result<Inflow, SessionError> {
        let sql =
            "SELECT pid, backend_type FROM pg_stat_activity WHERE backend_type IN ('walreceiver', 'startup')";
        let mut inflow = Inflow { walreceiver: None, restoring: false };
        for row in session.rows(sql, &[]).await? {
            let pid = u32::try_from(session.take::<i32>(&row, 0)?).unwrap_or(0);
            if session.take::<&str>(&row, 1)? == "walreceiver" {
                inflow.walreceiver = Some(pid);
            } else {
                inflow.restoring = process::has_children(pid);
            }
        }
        Ok(inflow)
    }

    fn end(&self, walreceiver: u32) {
        if let Ok(Some(process)) = Process::of_instance(walreceiver, self.data_dir()) {
            tracing::warn!(pid = process.pid, "the walreceiver outlives its setting; ending it");
            // Should it be gone already, the next look says so. One that is stopped takes notice only
            // when it goes on, and then before anything else.
            let _ = process.signal(Signal::TERM);
            let _ = process.signal(Signal::CONT);
        }
    }
}

/// Whether it is the setting that brings WAL in from an archive.
fn is_archive(setting: &str) -> bool {
    setting == "restore_command"
}

/// Backup tools set it over ours for good. That is not for the agent to remove, and a recruit can do
/// without: it only waits for every call that is at work.
fn archive_stays() {
    tracing::warn!("restore_command is set over the agent's setting: the archive is not cut off");
}

/// Whether a list is as it should be, or the DBA's where it should not be ours.
fn names_are(wanted: Option<&String>, value: &str, by: &str) -> bool {
    wanted.map_or(by.is_empty() || is_foreign(by), |names| value == names)
}

/// Whether another file than ours sets something.
fn is_foreign(file: &str) -> bool {
    !file.is_empty() && !file.ends_with("/pgherd.conf")
}

/// Whether ALTER SYSTEM set it.
fn is_automatic(file: &str) -> bool {
    file.ends_with("/postgresql.auto.conf")
}

enum Effect {
    Ours,
    /// Settings with another value, and the file each comes from.
    Other(Vec<(String, String)>),
}

struct Inflow {
    /// Its pid.
    walreceiver: Option<u32>,
    /// Whether a `restore_command` is at work.
    restoring: bool,
}
