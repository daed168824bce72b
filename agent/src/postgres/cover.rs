//! For which standbys commits wait: `synchronous_standby_names`, and from when on it is known to hold.
//!
//! PostgreSQL does not say when it has taken that setting over. Each walsender reads it anew for itself, and whether there
//! is anybody to wait for at all is a word of the checkpointer. So, before a setting counts:
//!
//! 1. Where nothing shows yet that commits wait at all, they are made to wait for a standby that does not exist, until one
//!    of the agent's own is seen to do so.
//! 2. A connection that is new and knows the setting shows that the postmaster has signalled every process that is older.
//! 3. A record that is written after that has come back from every standby that commits may wait for: its walsender read
//!    the signal before it read the answer. Walsenders of others have to say that they count as asynchronous.

use std::collections::BTreeSet;

use pgherd_common::config::Secret;
use pgherd_common::{Generation, Lsn, NodeName};
use pgherd_core::cover::CoverSeen;

use super::files::Following;
use super::follow::{FollowError, SETTLE, SETTLE_PAUSE};
use super::instance::{Instance, Patience};
use super::session::{Session, SessionError};
use super::settings::Settings;
use crate::proof;
use crate::reconcile::Commits;

/// Why commits do not wait for those they are to wait for.
#[derive(Debug, thiserror::Error)]
pub enum CoverError {
    /// The setting was not taken over.
    #[error("cannot set synchronous_standby_names")]
    Setting(#[from] FollowError),
    /// The server did not answer.
    #[error("cannot tell for whom commits wait")]
    Session(#[from] SessionError),
    /// It would be a wait in name only.
    #[error(
        "synchronous_commit is {0:?} on this server, with which a commit may be acknowledged before a standby has it on disk: \
         set it to on"
    )]
    NotSynchronous(String),
    /// It is a standby.
    #[error("PostgreSQL is a standby: only a primary's commits wait for others")]
    NotAPrimary,
    /// Commits go on as before.
    #[error(
        "commits do not wait for standbys {} ms after synchronous_standby_names was set: the checkpointer, which has to take \
         it over, may be held up by a slow disk",
        SETTLE.as_millis()
    )]
    NotWaiting,
    /// New connections do not know it.
    #[error("new connections do not use the new synchronous_standby_names {} ms after it was set", SETTLE.as_millis())]
    NotInEffect,
}

/// What this agent has had PostgreSQL wait for, in the life of its present postmaster.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// A commit was seen to wait.
    proven: bool,
    set: Option<Set>,
}

#[derive(Debug, Clone)]
struct Set {
    number: u64,
    standbys: usize,
    names: BTreeSet<String>,
    /// Everything from before the setting is in effect lies before this.
    upto: Lsn,
    met: bool,
}

/// What a follower of this generation's primary calls itself: nobody can guess it who does not know the agents' password,
/// and nobody goes by it any more who has not heard of the generation.
pub(super) fn standby_name(settings: &Settings, node: &NodeName, generation: Generation) -> String {
    marked(settings, node.as_str(), generation)
}

fn marked(settings: &Settings, whose: &str, generation: Generation) -> String {
    const DIGITS: usize = 12;
    let secret = settings.password.clone().unwrap_or(Secret(String::new()));
    let mark = proof::prove(&secret, &format!("standby {whose} of generation {generation}"));
    format!("{whose}/{generation}/{}", mark.get(..DIGITS).unwrap_or_default())
}

/// The member and the generation in a walreceiver's name; any other name is the member's.
pub(super) fn member_and_generation(name: &str) -> (&str, Option<Generation>) {
    let mut parts = name.splitn(3, '/');
    let member = parts.next().unwrap_or(name);
    let generation: Option<Generation> = parts.next().and_then(|text| text.parse().ok());
    match (generation, parts.next()) {
        (Some(generation), Some(_)) => (member, Some(generation)),
        (_, _) => (name, None),
    }
}

/// `synchronous_standby_names` for so many of these.
fn any_of(standbys: usize, names: &BTreeSet<String>) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    format!("ANY {standbys} ({})", names.join(", "))
}

/// What a new primary's commits wait for until it is told.
pub(super) fn held(settings: &Settings, commits: Commits) -> Option<String> {
    match commits {
        Commits::Free => None,
        Commits::Held => Some(any_of(1, &[marked(settings, "nobody", Generation::ZERO)].into())),
    }
}

impl Instance {
    /// Has commits wait for so many of these members, which call themselves as followers of this generation's primary do.
    /// Returns when the setting is in effect; when it also holds for what was committed before, a later look tells.
    pub async fn cover(
        &self,
        generation: Generation,
        number: u64,
        (standbys, of): (u32, &BTreeSet<NodeName>),
    ) -> Result<(), CoverError> {
        let _acting = self.shared.acting.lock().await;
        let session = self.session().await?;
        if session.value::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err(CoverError::NotAPrimary);
        }
        let level: String =
            session.value("SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'").await?;
        if standbys > 0 && !matches!(level.as_str(), "on" | "remote_apply") {
            return Err(CoverError::NotSynchronous(level));
        }
        let names: BTreeSet<String> =
            of.iter().map(|node| standby_name(self.settings(), node, generation)).collect();
        let standbys = usize::try_from(standbys).unwrap_or(usize::MAX);
        let upto = if standbys == 0 {
            self.apply(&Following::nobody()).await?;
            self.memory().waits.proven = false;
            Lsn::default()
        } else {
            if !self.memory().waits.proven {
                self.apply(&Following::nobody().waiting(held(self.settings(), Commits::Held))).await?;
                self.see_one_wait(&session).await?;
                self.memory().waits.proven = true;
            }
            let setting = any_of(standbys, &names);
            self.apply(&Following::nobody().waiting(Some(setting.clone()))).await?;
            self.everybody_signalled(&setting).await?
        };
        self.memory().waits.set = Some(Set { number, standbys, names, upto, met: standbys == 0 });
        self.shared.stirred.notify_one();
        Ok(())
    }

    /// Commits until one is seen to wait for standbys.
    async fn see_one_wait(&self, session: &Session) -> Result<(), CoverError> {
        const COMMIT: &str =
            "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'pgherd', 'does this wait?')";
        const WAITS: &str =
            "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = ";
        let committer = self.connect().await?;
        let pid = committer.value::<i32>("SELECT pg_backend_pid()").await?;
        let waits = format!("{WAITS}{pid}");
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        let watch = async {
            while !session.value::<bool>(&waits).await? {
                if !patience.next().await {
                    return Err(CoverError::NotWaiting);
                }
            }
            Ok(())
        };
        let commit = async {
            // One that does not wait came too early.
            loop {
                committer.run(COMMIT, SETTLE).await?;
            }
        };
        // What is left of the last commit ends when a standby has it, or by its statement_timeout.
        tokio::select! {
            seen = watch => seen,
            failed = commit => failed,
        }
    }

    /// Returns a position behind which every process has been told of the setting.
    async fn everybody_signalled(&self, setting: &str) -> Result<Lsn, CoverError> {
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        loop {
            let fresh = self.connect().await?;
            if fresh.value::<String>("SELECT current_setting('synchronous_standby_names')").await? == setting
            {
                let mark = "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'pgherd', 'from here on')";
                fresh.run(mark, SETTLE).await?;
                let upto = fresh.value::<String>("SELECT pg_current_wal_flush_lsn()::text").await?;
                return Ok(upto.parse().unwrap_or(Lsn(u64::MAX)));
            }
            if !patience.next().await {
                return Err(CoverError::NotInEffect);
            }
        }
    }

    /// For whom commits wait, and whether all from before it is on as many standbys.
    pub(super) async fn cover_seen(&self, session: &Session) -> Result<Option<CoverSeen>, SessionError> {
        let Some(set) = self.memory().waits.set.clone() else { return Ok(None) };
        let met = set.met || self.is_met(session, &set).await?;
        if let Some(now) = self.memory().waits.set.as_mut().filter(|now| now.number == set.number) {
            now.met = met;
        }
        Ok(Some(CoverSeen { number: set.number, met }))
    }

    async fn is_met(&self, session: &Session, set: &Set) -> Result<bool, SessionError> {
        const WALSENDERS: &str = "SELECT application_name, sync_state <> 'async', flush_lsn::text \
                                  FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'";
        let mut have = 0;
        for row in session.rows(WALSENDERS, &[]).await? {
            let (name, counts): (&str, bool) = (session.take(&row, 0)?, session.take(&row, 1)?);
            let flushed: Option<&str> = session.take(&row, 2)?;
            let flushed = flushed.and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_default();
            match (set.names.contains(name), counts) {
                (true, true) if flushed >= set.upto => have += 1,
                (false, false) => {}
                // It has yet to catch up, or to take notice that it does not count any more.
                (true, _) | (false, true) => return Ok(false),
            }
        }
        Ok(have >= set.standbys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_members() {
        let read = |name| member_and_generation(name);
        assert_eq!(read("server2/7/3f9a2c01b4d5"), ("server2", "7".parse().ok()));
        for other in ["server2", "server2/7", "server2/x/3f", "", "/"] {
            assert_eq!(read(other), (other, None));
        }
    }

    #[test]
    fn names_are_quoted_for_the_setting() {
        let names = ["b/1/x".to_owned(), "a\"".to_owned()].into();
        assert_eq!(any_of(1, &names), "ANY 1 (\"a\"\"\", \"b/1/x\")");
    }
}
