//! Looking at the local PostgreSQL.
//!
//! A look combines three witnesses: the kernel (does the postmaster live?), the lasting connection
//! (the facts, even when all connection slots are taken), and at least every second a new connection
//! (a postmaster that hangs still serves old ones).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt, Shared};
use pgherd_common::errors::Chain;
use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Clock, Generation, Lsn, MonoTime, Timeline, time::RealClock};
use pgherd_core::capacity::Capacity;
use pgherd_core::timings::NEW_CONNECTION_EVERY;
use tokio_postgres::error::SqlState;

use super::clone;
use super::controldata::{ControlData, ControlDataError};
use super::cover::{Waits, member_and_generation, standby_name};
use super::health::Pulse;
use super::instance::Instance;
use super::process::{self, Postmaster};
use super::rewind;
use super::session::{Session, SessionError};
use super::timelines;
use super::{conninfo, files};
use crate::observation::{
    Downstream, LogicalSeen, PostgresObservation, PostgresState, Running, SlotSeen, Stopped,
};
use crate::salvage::LeftWal;

/// How old the last proof may be that new connections are served.
const FRESH: Duration = NEW_CONNECTION_EVERY;

/// A file not written for so long is not being written.
const SETTLED: Duration = Duration::from_secs(1);

/// A disk that hangs must not hold up the word that nothing runs any more.
const LEFT_PATIENCE: Duration = Duration::from_millis(300);

/// What one look leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) postmaster: Option<Arc<Postmaster>>,
    pub(super) session: Option<Arc<Session>>,
    /// Whether this agent has ever seen a postmaster here.
    seen_up: bool,
    /// A predecessor of this process has.
    inherited: bool,
    /// When the present spell of being down, or of not letting anybody in, was first seen.
    down_since: Option<MonoTime>,
    starting_since: Option<MonoTime>,
    /// Since when nobody can tell whether there is a postmaster.
    blind_since: Option<MonoTime>,
    /// When this postmaster last answered anything on a new connection.
    answered: Option<MonoTime>,
    /// When a new connection was last tried, if that succeeded.
    fresh: Option<MonoTime>,
    /// When this postmaster was first seen.
    met: Option<MonoTime>,
    /// The newest timeline this postmaster was seen on.
    highest: Option<Timeline>,
    history: Option<(Timeline, TimelineHistory)>,
    /// `pg_control` as it was at this modification time.
    control: Option<(SystemTime, ControlData)>,
    /// The search for where the WAL ends that a killed primary has left, and how often it had been fenced when it began.
    left: Option<(u64, Shared<BoxFuture<'static, Option<LeftWal>>>)>,
    pub(super) pulse: Pulse,
    pub(super) waits: Waits,
    /// Where replay stood before the last promotion, and a number that no transaction which had ended by then reaches.
    pub(super) replayed: Option<(Lsn, u64)>,
}

impl Memory {
    /// If nothing was replayed behind what was known before the promotion that made this timeline.
    fn first_xid(&self, history: &TimelineHistory) -> Option<u64> {
        let (replayed, xid) = self.replayed?;
        let (_, end) = history.0.last()?;
        (*end == replayed).then_some(xid)
    }

    /// A predecessor of this process has seen one.
    pub(super) fn inherit(&mut self) {
        self.inherited = true;
    }

    /// Takes note of the postmaster that was found, or of there being none.
    pub(super) fn meet(&mut self, postmaster: Option<Arc<Postmaster>>) {
        let now = RealClock.now();
        self.seen_up |= postmaster.is_some();
        self.down_since = if postmaster.is_some() { None } else { self.down_since.or(Some(now)) };
        self.met = postmaster.is_some().then_some(now);
        self.postmaster = postmaster;
        (self.session, self.answered, self.fresh) = (None, None, None);
        (self.starting_since, self.blind_since, self.highest) = (None, None, None);
        self.pulse.meet();
        self.waits = Waits::default();
    }
}

const LOOK: &str = "\
SELECT recovering,
       CASE WHEN recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
       CASE WHEN recovering THEN pg_last_wal_receive_lsn() END::text,
       CASE WHEN NOT recovering THEN left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) END,
       control.timeline_id,
       (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
       receiver.received_tli,
       receiver.status,
       current_setting('primary_conninfo'),
       ARRAY(SELECT concat(state, ' ', sync_state, ' ', application_name)
               FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup' ORDER BY application_name, pid),
       ARRAY(SELECT concat(slot_name, ' ', active, ' ', coalesce(wal_status = 'lost', false), ' ', xmin IS NOT NULL, ' ',
                           restart_lsn)
               FROM pg_replication_slots
              WHERE slot_type = 'physical' AND starts_with(slot_name::text, 'pgherd_') ORDER BY slot_name),
       (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'),
       current_setting('hba_file'),
       control.redo_lsn::text,
       ARRAY(SELECT concat(CASE WHEN recovering AND NOT (to_jsonb(slot)->>'synced')::bool THEN '-'
                                WHEN wal_status = 'lost' OR to_jsonb(slot)->>'invalidation_reason' IS NOT NULL THEN '!'
                                ELSE '+' END, slot_name)
               FROM pg_replication_slots AS slot
              WHERE slot_type = 'logical' AND NOT temporary AND (to_jsonb(slot)->>'failover')::bool ORDER BY slot_name),
       coalesce(current_setting('synchronized_standby_slots', true), ''),
       ARRAY[current_setting('max_connections'), current_setting('max_worker_processes'),
             current_setting('max_wal_senders'), current_setting('max_prepared_transactions'),
             current_setting('max_locks_per_transaction')]
  FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) AS role
 CROSS JOIN pg_control_checkpoint() AS control
  LEFT JOIN pg_stat_wal_receiver AS receiver ON true";

impl Instance {
    /// One full look, now. What only the caller knows (`recruited`, `prepared`, `released`,
    /// `trouble`) is left empty. Takes at most two or three times `connect_timeout`.
    pub async fn observe(&self) -> PostgresObservation {
        let (pid, state) = match self.postmaster() {
            Ok(Some(postmaster)) => {
                // The end of the postmaster cuts short whatever hangs on it.
                let state = tokio::select! {
                    state = self.look() => Some(state),
                    () = postmaster.ended() => None,
                };
                match state {
                    Some(state) => (Some(postmaster.pid), state),
                    None => {
                        self.memory().meet(None);
                        (None, self.stopped().await)
                    }
                }
            }
            Ok(None) => (None, self.stopped().await),
            Err(error) => self.unwatched(&error),
        };
        let (system_identifier, major) = self.identity();
        let health = self.health(&state);
        PostgresObservation {
            system_identifier,
            major,
            pid,
            state,
            recruited: None,
            salvaged: None,
            undrained: None,
            restarting: None,
            prepared: None,
            released: None,
            fenced: None,
            trouble: None,
            health,
        }
    }

    /// A server that may be there, for all this agent can tell: it counts as one that does not answer,
    /// never as one that is down.
    fn unwatched(&self, error: &std::io::Error) -> (Option<u32>, PostgresState) {
        let since = *self.memory().blind_since.get_or_insert(RealClock.now());
        let reason = format!("cannot watch the postmaster: {error}; check the agent's limits (ulimit -n)");
        let state = PostgresState::Unresponsive { for_ms: age_ms(Some(since)), reason };
        (process::unheld(self.data_dir()), state)
    }

    /// Resolves when the next look is due: after `probe_interval`, or at once when the postmaster has
    /// died or an action has changed something.
    pub async fn changed(&self) {
        let known = self.memory().postmaster.clone();
        let died = async {
            match known {
                Some(postmaster) => postmaster.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = died => {}
            () = self.shared.stirred.notified() => {}
            () = tokio::time::sleep(self.settings().probe_interval) => {}
        }
    }

    async fn stopped(&self) -> PostgresState {
        if clone::is_swapping(self.settings()) {
            let text = "a copy is taking the place of the data directory";
            return PostgresState::Unusable(text.to_owned());
        }
        let control = match self.control_in_time().await {
            Ok(control) => control,
            Err(error) => {
                let text =
                    format!("{}; restore the data directory or clone it from the primary", Chain(&error));
                return PostgresState::Unusable(text);
            }
        };
        if control.system_identifier != self.shared.system_identifier {
            return PostgresState::Unusable(format!(
                "the data directory was replaced by one of another cluster (system identifier {}, was {}); \
                 restart the agent if that is intended",
                control.system_identifier, self.shared.system_identifier
            ));
        }
        // A half rewound directory is in no state at all, whatever pg_control says.
        let whole = !rewind::is_pending(self.settings());
        let clean = whole && control.is_clean();
        let standby = whole && files::standby_signal(self.data_dir()).exists();
        let left = if whole && !clean && !standby { self.left_wal_in_time().await } else { None };
        let memory = self.memory();
        PostgresState::Down(Stopped {
            clean,
            standby,
            timeline: control.timeline(),
            checkpoint: control.checkpoint,
            redo: control.redo,
            // What was stopped in order may have been stopped by the predecessor, just before it died.
            found_down: !memory.seen_up && (control.is_clean() || !memory.inherited),
            for_ms: age_ms(memory.down_since),
            left,
        })
    }

    /// Sought anew at every look, since backends may outlive their postmaster until they are fenced; but one search at a
    /// time: each that meets a disk which hangs takes a thread.
    async fn left_wal_in_time(&self) -> Option<LeftWal> {
        let fenced = *self.births();
        let sought = {
            let mut memory = self.memory();
            let under_way = |(when, sought): &(u64, Shared<_>)| *when == fenced && sought.peek().is_none();
            let under_way = memory.left.take().filter(under_way);
            let (_, sought) = memory.left.insert(under_way.unwrap_or_else(|| {
                let instance = self.clone();
                (fenced, async move { instance.left_wal().await }.boxed().shared())
            }));
            sought.clone()
        };
        tokio::time::timeout(LEFT_PATIENCE, sought).await.ok().flatten()
    }

    /// `pg_control`, read only when it has changed: the death of a postmaster is told some
    /// milliseconds earlier.
    async fn control_in_time(&self) -> Result<ControlData, ControlDataError> {
        let written = std::fs::metadata(self.data_dir().join("global/pg_control")).and_then(|m| m.modified());
        let written = written.ok();
        if let Some((_, control)) = self.memory().control.clone().filter(|(at, _)| Some(*at) == written) {
            return Ok(control);
        }
        let control = self.control().await?;
        // A second write within the clock's grain would leave the time as it is.
        let settled = written.filter(|written| written.elapsed().is_ok_and(|age| age > SETTLED));
        self.memory().control = settled.map(|written| (written, control.clone()));
        Ok(control)
    }

    /// The state of an instance whose postmaster lives.
    async fn look(&self) -> PostgresState {
        let facts = self.facts_from_lasting_connection().await;
        if facts.is_some() {
            // For the look that finds the postmaster dead; an error is for that look to tell.
            let _ = self.control_in_time().await;
        }
        let proven = self.memory().fresh.is_some_and(|at| RealClock.now().since(at) < FRESH);
        if let (Some(facts), true) = (&facts, proven) {
            return PostgresState::Running(facts.clone());
        }
        match self.connect().await {
            Ok(session) => self.welcomed(facts, session).await,
            Err(error) => self.turned_away(facts, &error),
        }
    }

    async fn facts_from_lasting_connection(&self) -> Option<Running> {
        let session = self.memory().session.clone().filter(|session| !session.is_closed())?;
        match self.facts(&session).await {
            Ok(facts) => Some(facts),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the lasting connection to PostgreSQL broke");
                self.memory().session = None;
                None
            }
        }
    }

    async fn welcomed(&self, facts: Option<Running>, session: Session) -> PostgresState {
        let facts = match facts {
            Some(facts) => Ok(facts),
            None => self.facts(&session).await,
        };
        let now = RealClock.now();
        let mut memory = self.memory();
        memory.answered = Some(now);
        match facts {
            Ok(facts) => {
                (memory.fresh, memory.starting_since) = (Some(now), None);
                if memory.session.as_ref().is_none_or(|present| present.is_closed()) {
                    memory.session = Some(Arc::new(session));
                }
                PostgresState::Running(facts)
            }
            Err(error) => {
                memory.fresh = None;
                PostgresState::Unresponsive { for_ms: 0, reason: Chain(&error).to_string() }
            }
        }
    }

    fn turned_away(&self, facts: Option<Running>, error: &SessionError) -> PostgresState {
        let now = RealClock.now();
        let mut memory = self.memory();
        let reason = Chain(error).to_string();
        let Some(code) = error.code() else {
            memory.fresh = None;
            // Between its fork and its listening a postmaster refuses; one that has answered before
            // does not.
            let refused = matches!(
                error.io(),
                Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound)
            );
            if refused && memory.answered.is_none() {
                let since = *memory.starting_since.get_or_insert(now);
                return self.starting(since);
            }
            let for_ms = age_ms(memory.answered.or(memory.met));
            return PostgresState::Unresponsive { for_ms, reason };
        };
        memory.answered = Some(now);
        if *code == SqlState::CANNOT_CONNECT_NOW {
            memory.fresh = None;
            let since = *memory.starting_since.get_or_insert(now);
            return self.starting(since);
        }
        // It refuses the agent, but it answers: too many connections, a wrong password.
        match facts {
            Some(facts) => {
                memory.fresh = Some(now);
                PostgresState::Running(facts)
            }
            None => PostgresState::Unresponsive { for_ms: 0, reason },
        }
    }

    fn starting(&self, since: MonoTime) -> PostgresState {
        let standby = files::standby_signal(self.data_dir()).exists();
        PostgresState::Starting { for_ms: age_ms(Some(since)), standby }
    }

    /// Reads everything there is to know in one query.
    pub(super) async fn facts(&self, session: &Session) -> Result<Running, SessionError> {
        let row = session.row(LOOK, &[]).await?;
        let lsn = |text: Option<&str>| text.and_then(|text| text.parse::<Lsn>().ok()).unwrap_or_default();
        let positive = |timeline: Option<i32>| timeline.and_then(|t| u32::try_from(t).ok()).map(Timeline);
        let in_recovery: bool = session.take(&row, 0)?;
        self.memory().pulse.saw_checkpointer(session.take(&row, 11)?);
        let position = lsn(session.take(&row, 1)?);
        let received = lsn(session.take(&row, 2)?).max(position);
        let written: Option<&str> = session.take(&row, 3)?;
        let written = written.and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(Timeline);
        let checkpoint_timeline = positive(session.take(&row, 4)?).unwrap_or(Timeline(1));
        let seen =
            [Some(checkpoint_timeline), positive(session.take(&row, 5)?), positive(session.take(&row, 6)?)];
        let timeline = written.unwrap_or_else(|| self.highest_timeline(&seen, checkpoint_timeline));
        let conninfo: &str = session.take(&row, 8)?;
        let standbys: Vec<String> = session.take(&row, 9)?;
        let capacity: Vec<&str> = session.take(&row, 16)?;
        let capacity = capacity.iter().map(|value| value.parse().ok()).collect::<Option<Vec<u32>>>();
        let slots: Vec<String> = session.take(&row, 10)?;
        let logical: Vec<String> = session.take(&row, 14)?;
        let waits_for = Some(session.take::<String>(&row, 15)?);
        let ours = |_: &String| files::sets(self.data_dir(), files::HELD_BACK).is_some();
        let history = self.history(timeline);
        let first_xid = if in_recovery { None } else { self.memory().first_xid(&history) };
        Ok(Running {
            in_recovery,
            timeline,
            position,
            received,
            checkpoint_timeline,
            history,
            follows: conninfo::address(conninfo),
            follows_in: conninfo::application_name(conninfo).and_then(|name| self.own_generation(&name)),
            receiver: session.take(&row, 7)?,
            standbys: standbys.iter().map(|text| downstream(text)).collect(),
            redo: lsn(session.take(&row, 13)?),
            slots: slots.iter().filter_map(|text| slot_seen(text)).collect(),
            logical: Box::new(LogicalSeen {
                slots: marked(&logical, '+'),
                leftover: marked(&logical, '-'),
                copies: in_recovery && conninfo::names_database(conninfo),
                waits_for: waits_for.filter(|names| !names.is_empty()).filter(ours),
            }),
            cover: if in_recovery { None } else { self.cover_seen(session).await? },
            gated: self.is_gated(session.take(&row, 12)?),
            first_xid,
            capacity: capacity.and_then(|values| Some(Capacity::new(values.try_into().ok()?))),
        })
    }

    /// The generation in a name that is this node's own, with the password as it is now.
    fn own_generation(&self, name: &str) -> Option<Generation> {
        let (_, generation) = member_and_generation(name);
        let own = |generation: &Generation| {
            standby_name(self.settings(), &self.settings().node, *generation) == name
        };
        generation.filter(own)
    }

    /// A standby's timeline: `pg_control` lags behind a fork that was followed, and without a
    /// walreceiver nothing else tells.
    fn highest_timeline(&self, seen: &[Option<Timeline>], floor: Timeline) -> Timeline {
        let mut memory = self.memory();
        let highest = seen.iter().copied().flatten().chain(memory.highest).max().unwrap_or(floor);
        memory.highest = Some(highest);
        highest
    }

    fn history(&self, timeline: Timeline) -> TimelineHistory {
        if let Some((_, history)) = self.memory().history.clone().filter(|(of, _)| *of == timeline) {
            return history;
        }
        let Some(history) = timelines::history(self.data_dir(), timeline) else {
            return TimelineHistory::default();
        };
        self.memory().history = Some((timeline, history.clone()));
        history
    }
}

fn downstream(text: &str) -> Downstream {
    let mut fields = text.splitn(3, ' ').map(str::to_owned);
    let mut field = || fields.next().unwrap_or_default();
    let (state, sync_state, name) = (field(), field(), field());
    let name = member_and_generation(&name).0.to_owned();
    Downstream { name, state, sync_state }
}

/// Logical slots of one kind: a primary's or a copy that is whole (`+`), in the way of copies (`-`).
fn marked(logical: &[String], mark: char) -> Vec<String> {
    logical.iter().filter_map(|text| text.strip_prefix(mark)).map(str::to_owned).collect()
}

/// A slot as the look spells it.
fn slot_seen(text: &str) -> Option<SlotSeen> {
    let fields: Vec<&str> = text.split(' ').collect();
    let &[name, active, lost, pinned, restart] = fields.as_slice() else { return None };
    let restart = restart.parse().ok();
    Some(SlotSeen {
        name: name.to_owned(),
        active: active == "t",
        restart,
        lost: lost == "t",
        pinned: pinned == "t",
    })
}

fn age_ms(since: Option<MonoTime>) -> u64 {
    let age = since.map(|since| RealClock.now().since(since)).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
