//! For which standbys commits wait: `synchronous_standby_names`, and from when on it is known to hold.
//!
//! PostgreSQL does not say when it has taken that setting over. Each walsender reads it anew for itself, and whether there
//! is anybody to wait for at all is a word of the checkpointer. So, before a setting counts:
//!
//! 1. Where nothing shows yet that commits wait at all, one of the agent's own has to be seen to do so; if standbys answer
//!    too quickly for that, commits are made to wait for one that does not exist.
//! 2. A connection that is new and knows the setting shows that the postmaster has signalled every process that is older.
//! 3. A record that is written after that has come back from every standby that commits may wait for: its walsender read
//!    the signal before it read the answer. Walsenders of others have to say that they count as asynchronous. A walsender
//!    that is younger than that connection has never known anything else; an older one that is still behind when enough
//!    others are not is ended, lest a standby that stands still keeps all others waiting.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_common::config::Secret;
use pgherd_common::{Generation, Lsn, NodeName};
use pgherd_core::cover::CoverSeen;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::files::Following;
use super::follow::{FollowError, SETTLE, SETTLE_PAUSE};
use super::instance::{Instance, Patience};
use super::process;
use super::session::{CONFIGURED, Session, SessionError};
use super::settings::Settings;
use crate::proof;
use crate::reconcile::{Commits, Wait};

/// How long one standby may keep the word of the others from counting.
const STANDS_STILL: Duration = Duration::from_secs(1);

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

/// A commit under way, for as long as somebody watches it.
struct Committing(JoinHandle<Result<(), SessionError>>);

impl Drop for Committing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Clone)]
struct Set {
    number: u64,
    standbys: usize,
    names: BTreeSet<String>,
    /// Everything from before the setting is in effect lies before this.
    upto: Lsn,
    /// The machine's processes when the setting was in effect: all others know nothing else. `None`: nobody can tell.
    before: Option<BTreeSet<u32>>,
    /// Since when walsenders have had time to show that they know the setting.
    since: Instant,
    met: bool,
}

impl Set {
    /// Whether a walsender may have known another setting.
    fn knew(&self, pid: i32) -> bool {
        let pid = u32::try_from(pid).unwrap_or_default();
        self.before.as_ref().is_none_or(|before| before.contains(&pid))
    }
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
fn any_of(standbys: u32, names: &BTreeSet<String>) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    format!("ANY {standbys} ({})", names.join(", "))
}

fn names(settings: &Settings, wait: &Wait) -> BTreeSet<String> {
    wait.of.iter().map(|node| standby_name(settings, node, wait.generation)).collect()
}

fn setting(settings: &Settings, wait: &Wait) -> String {
    let names = names(settings, wait);
    // Where nobody is left who could be waited for, commits wait all the same.
    if names.is_empty() { nobody(settings) } else { any_of(wait.standbys, &names) }
}

/// What a new primary's commits wait for.
pub(super) fn waits_for(settings: &Settings, commits: &Commits) -> Option<String> {
    match commits {
        Commits::Free => None,
        Commits::WaitFor(wait) => Some(setting(settings, wait)),
    }
}

fn nobody(settings: &Settings) -> String {
    any_of(1, &[marked(settings, "nobody", Generation::ZERO)].into())
}

impl Instance {
    /// Has commits wait for these. Returns when the setting is in effect; when it also holds for what was committed before,
    /// a later look tells.
    pub async fn cover(&self, wait: &Wait) -> Result<(), CoverError> {
        let _acting = self.shared.acting.lock().await;
        let session = self.session().await?;
        if session.value::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err(CoverError::NotAPrimary);
        }
        let upto = if wait.standbys == 0 {
            self.apply(&self.waiting(None)).await?;
            self.memory().waits.proven = false;
            Lsn::default()
        } else {
            let level =
                format!("SELECT {CONFIGURED} FROM pg_settings AS s WHERE s.name = 'synchronous_commit'");
            let level: String = session.value(&level).await?;
            // From a file it comes as it was written there.
            let is_on =
                ["on", "true", "yes", "1", "remote_apply"].iter().any(|on| level.eq_ignore_ascii_case(on));
            if !is_on {
                return Err(CoverError::NotSynchronous(level));
            }
            let setting = setting(self.settings(), wait);
            self.apply(&self.waiting(Some(setting.clone()))).await?;
            if self.memory().waits.proven {
                self.mark(&setting).await?
            } else {
                self.prove(&session, &setting).await?
            }
        };
        let standbys = usize::try_from(wait.standbys).unwrap_or(usize::MAX);
        let names = names(self.settings(), wait);
        let before = process::everybody().ok().map(BTreeSet::from_iter);
        let (since, met) = (Instant::now(), standbys == 0);
        let set = Set { number: wait.number, standbys, names, upto, before, since, met };
        self.memory().waits.set = Some(set);
        self.shared.stirred.notify_one();
        Ok(())
    }

    /// What a primary is configured to, with commits that wait for these.
    fn waiting(&self, names: Option<String>) -> Following {
        Following::as_primary(self.data_dir()).waiting(names)
    }

    /// Shows that commits wait, with this setting in effect. Returns a position behind which every process has been told.
    async fn prove(&self, session: &Session, setting: &str) -> Result<Lsn, CoverError> {
        let upto = match self.one_waits(session, setting).await? {
            Some(upto) => upto,
            None => {
                let nobody = nobody(self.settings());
                self.apply(&self.waiting(Some(nobody.clone()))).await?;
                let seen = self.one_waits_for_nobody(session, &nobody).await;
                // Whatever came of it: commits are not to wait for nobody.
                self.apply(&self.waiting(Some(setting.to_owned()))).await?;
                seen?;
                self.mark(setting).await?
            }
        };
        self.memory().waits.proven = true;
        Ok(upto)
    }

    async fn one_waits_for_nobody(&self, session: &Session, nobody: &str) -> Result<(), CoverError> {
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        while self.one_waits(session, nobody).await?.is_none() {
            if !patience.next().await {
                return Err(CoverError::NotWaiting);
            }
        }
        Ok(())
    }

    /// Commits something on a new connection, and watches it wait. Where it ends after that; `None` when it was not seen to
    /// wait: it did not, or not for long.
    async fn one_waits(&self, session: &Session, setting: &str) -> Result<Option<Lsn>, CoverError> {
        const COMMIT: &str =
            "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'pgherd', 'does this wait?')";
        let committer = self.knows(setting).await?;
        let pid = committer.value::<i32>("SELECT pg_backend_pid()").await?;
        let waits = format!(
            "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep', pg_current_wal_flush_lsn()::text \
               FROM pg_stat_activity WHERE pid = {pid}"
        );
        // Left to itself it ends when a standby has it, or by its statement_timeout.
        let commit = Committing(tokio::spawn(async move { committer.run(COMMIT, SETTLE).await }));
        while !commit.0.is_finished() {
            let row = session.rows(&waits, &[]).await?;
            let Some(row) = row.first() else { break };
            if session.take::<bool>(row, 0)? {
                // It was flushed before it began to wait.
                return Ok(session.take::<&str>(row, 1)?.parse().ok());
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Ok(None)
    }

    /// Returns a position behind which every process has been told of the setting.
    async fn mark(&self, setting: &str) -> Result<Lsn, CoverError> {
        const MARK: &str =
            "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'pgherd', 'from here on')";
        let fresh = self.knows(setting).await?;
        fresh.run(MARK, SETTLE).await?;
        let upto = fresh.value::<String>("SELECT pg_current_wal_flush_lsn()::text").await?;
        Ok(upto.parse().unwrap_or(Lsn(u64::MAX)))
    }

    /// A new connection that knows the setting.
    async fn knows(&self, setting: &str) -> Result<Session, CoverError> {
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        loop {
            let fresh = self.connect().await?;
            if fresh.value::<String>("SELECT current_setting('synchronous_standby_names')").await? == setting
            {
                return Ok(fresh);
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
        const WALSENDERS: &str = "SELECT application_name, sync_state <> 'async', flush_lsn::text, pid \
                                  FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'";
        let (mut have, mut behind) = (0, Vec::new());
        for row in session.rows(WALSENDERS, &[]).await? {
            let (name, counts): (&str, bool) = (session.take(&row, 0)?, session.take(&row, 1)?);
            let flushed: Option<&str> = session.take(&row, 2)?;
            let flushed = flushed.and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_default();
            let pid: i32 = session.take(&row, 3)?;
            match (set.names.contains(name), counts) {
                (true, true) if flushed >= set.upto => have += 1,
                (false, false) => {}
                // It has yet to catch up, or to take notice that it does not count any more.
                (true, _) | (false, true) if set.knew(pid) => behind.push(pid),
                (true, _) | (false, true) => {}
            }
        }
        if have < set.standbys {
            return Ok(false);
        }
        if !behind.is_empty() && set.since.elapsed() > STANDS_STILL {
            self.end_walsenders(session, set.number, &behind).await?;
        }
        Ok(behind.is_empty())
    }

    /// Their standbys connect anew when they are able to.
    async fn end_walsenders(&self, session: &Session, number: u64, pids: &[i32]) -> Result<(), SessionError> {
        tracing::warn!(
            ?pids,
            "these walsenders have not shown within {} ms that they know for whom commits wait, and keep the others' word \
             from counting; ending them, their standbys connect anew",
            STANDS_STILL.as_millis()
        );
        session.rows("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", &[&pids]).await?;
        if let Some(now) = self.memory().waits.set.as_mut().filter(|now| now.number == number) {
            now.since = Instant::now();
        }
        Ok(())
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
