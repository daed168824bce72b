//! Starting, stopping, checkpointing.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_core::capacity::Capacity;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::oneshot;

use super::clone;
use super::command::release_priority;
use super::cover::waits_for;
use super::fence::FenceError;
use super::files::{self, FileError, Following};
use super::follow::FollowError;
use super::instance::{Instance, Patience};
use super::parameters::{Told, complaint};
use super::process::{self, Postmaster};
use super::rewind;
use super::session::{Session, SessionError};
use super::settings::Upstream;
use crate::reconcile::Commits;

/// How often a starting server is asked whether it lets us in. It announces that to nobody.
const READY_PAUSE: Duration = Duration::from_millis(15);
/// How much of the server's output an error shows.
const TAIL_BYTES_MAX: u64 = 2000;
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(300);

/// Why PostgreSQL was not started, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A rewind was begun and not finished.
    #[error(
        "the data directory {0:?} was left half rewound; it must not be started before a rewind of it has finished (the agent repeats it), or before it was copied anew with `pgherd rebuild NODE --clone`"
    )]
    RewindPending(PathBuf),
    /// A copy is taking the place of the data.
    #[error(
        "the data directory {0:?} is about to be replaced by a copy; it must not be started before that is done (the agent does it)"
    )]
    SwapPending(PathBuf),
    /// It runs in the other role.
    #[error("PostgreSQL runs as a {found} already and was to be started as a {wanted}; stop it first")]
    OtherRole {
        /// What it is.
        found: &'static str,
        /// What it was to be.
        wanted: &'static str,
    },
    /// A file of ours could not be written.
    #[error("cannot prepare the start of PostgreSQL")]
    File(#[from] FileError),
    /// Processes of a dead server could not be killed.
    #[error("the processes of a dead server are in the way")]
    InTheWay(#[from] FenceError),
    /// It was fenced in the meantime.
    #[error("PostgreSQL was fenced while it was being started")]
    Fenced,
    /// The program did not start.
    #[error("cannot run {program:?}")]
    Spawn {
        /// `postgres`.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It gave up.
    #[error("PostgreSQL ended during its start ({status}); the end of {log_file:?} says:\n{tail}")]
    Ended {
        /// Its exit status.
        status: String,
        /// Where its output went.
        log_file: PathBuf,
        /// The last of it.
        tail: String,
    },
    /// It takes longer than `start_timeout`.
    #[error("PostgreSQL runs, but lets nobody in after {} s; it goes on starting (replaying WAL?), see its log", after.as_secs())]
    NotReady {
        /// `start_timeout`.
        after: Duration,
        /// What the last attempt met.
        #[source]
        source: SessionError,
    },
    /// It runs with other settings than those of `pgherd.conf`.
    #[error("PostgreSQL runs, but not with the settings of the agent")]
    Settings(#[source] FollowError),
}

/// Why PostgreSQL did not stop in order.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It took too long and was killed.
    #[error("PostgreSQL did not stop within {} ms of a fast shutdown and was killed; it will need crash recovery", after.as_millis())]
    Killed {
        /// The deadline.
        after: Duration,
    },
    /// The signal was refused.
    #[error("may not signal the postmaster (pid {pid})")]
    Refused {
        /// The postmaster.
        pid: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was to be killed, and survives.
    #[error("PostgreSQL did not stop, and could not be killed")]
    Fence(#[from] FenceError),
    /// The postmaster cannot be watched.
    #[error("cannot watch the postmaster")]
    Watch(#[source] std::io::Error),
}

/// Why a primary was not stopped for a switchover.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Something still runs.
    #[error(
        "transactions or statements still run after {} s, {count} in all; the oldest is {oldest}; end it (SELECT pg_terminate_backend(PID)) or switch over with --end-transactions",
        after.as_secs_f32()
    )]
    Busy {
        /// How many.
        count: i64,
        /// The wait.
        after: Duration,
        /// The one that began first.
        oldest: String,
    },
    /// The server did not answer.
    #[error("cannot tell what runs")]
    Session(#[from] SessionError),
}

/// A checkpoint failed.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint did not finish")]
pub struct CheckpointError(#[from] SessionError);

impl StartError {
    /// What PostgreSQL itself said.
    fn complaint(&self) -> String {
        match self {
            Self::Ended { tail, .. } => complaint(tail),
            other => other.to_string(),
        }
    }
}

/// What a start is told besides its files.
#[derive(Debug, Default)]
struct Besides<'a> {
    /// What `hba_file` is to name, if not what the DBA has it name.
    gate: Option<&'a Path>,
    /// It must not have less than its WAL says,
    standby: bool,
    /// nor than this.
    floor: Option<Capacity>,
}

impl<'a> Besides<'a> {
    fn gate(gate: &'a Path) -> Self {
        Self { gate: Some(gate), ..Self::default() }
    }
}

impl Instance {
    /// Runs PostgreSQL as a primary and returns when it lets us in. Fine when it does already.
    pub async fn start_primary(&self, commits: &Commits) -> Result<(), StartError> {
        let _acting = self.shared.acting.lock().await;
        let fenced = *self.births();
        if self.runs_as("primary").await? {
            return Ok(());
        }
        let following = Following::nobody().waiting(waits_for(self.settings(), commits));
        following.write(self.data_dir(), &self.shared.owner)?;
        files::remove_durably(&files::standby_signal(self.data_dir()))?;
        let open = |error: &dyn std::error::Error| {
            // Worse than no gate would be no primary.
            tracing::warn!(
                "clients that connect directly are let in before standbys have what this primary has: {}",
                Chain(error)
            );
        };
        if matches!(commits, Commits::WaitFor(_)) {
            match self.close_gate().await {
                Ok(gate) => match self.launch(&following, fenced, &Besides::gate(&gate)).await {
                    Err(error @ StartError::Ended { .. }) => open(&error),
                    started => return started,
                },
                Err(error) => open(&error),
            }
        }
        self.launch(&following, fenced, &Besides::default()).await
    }

    /// Runs PostgreSQL as a standby, of nobody when `upstream` is `None`, and returns when it lets us
    /// in. Fine when it does already; then it is only repointed.
    pub async fn start_standby(&self, upstream: Option<&Upstream>) -> Result<(), StartError> {
        let _acting = self.shared.acting.lock().await;
        let fenced = *self.births();
        self.bring_up_standby(upstream, None, fenced).await
    }

    /// `floor`: how much the upstream has of what its standbys need. `fenced`: how often the instance had been fenced when
    /// this was decided.
    pub(super) async fn bring_up_standby(
        &self,
        upstream: Option<&Upstream>,
        floor: Option<Capacity>,
        fenced: u64,
    ) -> Result<(), StartError> {
        let following =
            upstream.map_or_else(Following::nobody, |upstream| Following::of(self.settings(), upstream));
        if self.runs_as("standby").await? {
            return self.apply(&following).await.map_err(StartError::Settings);
        }
        // First of all, so that from here on no start by anybody makes a primary of it.
        files::create_standby_signal(self.data_dir(), &self.shared.owner)?;
        self.forget_gate()?;
        following.write(self.data_dir(), &self.shared.owner)?;
        self.launch(&following, fenced, &Besides { floor, standby: true, gate: None }).await
    }

    /// Fast shutdown; what is still there after `deadline` is killed.
    pub async fn stop_fast(&self, deadline: Duration) -> Result<(), StopError> {
        let Some(postmaster) = self.postmaster().map_err(StopError::Watch)? else {
            return Ok(self.fence().await?);
        };
        // Afterwards nobody is let in who could tell.
        let subscribers = self.subscribers().await;
        match postmaster.signal(Signal::INT) {
            Err(source) if postmaster.is_alive() => {
                return Err(StopError::Refused { pid: postmaster.pid, source });
            }
            Ok(()) | Err(_) => {}
        }
        let ended = async {
            let patient = tokio::time::timeout(deadline / 3, postmaster.ended()).await;
            if patient.is_err() {
                self.end_subscribers(&subscribers);
                postmaster.ended().await;
            }
        };
        let stopped = tokio::time::timeout(deadline, ended).await;
        // In order or not: nothing of it may be left.
        self.fence().await?;
        stopped.map_err(|_| StopError::Killed { after: deadline })
    }

    /// How many statements and transactions of clients run that began by `until` (now, if `None`), and which of them began
    /// first. Nothing of what they say: that may be secret.
    pub async fn busy(&self, until: Option<&str>) -> Result<(i64, String), SessionError> {
        const BUSY: &str = "SELECT count(*), coalesce((array_agg(format('pid %s of user %s, application %L, %s for %s s', \
             pid, usename, application_name, state, extract(epoch FROM clock_timestamp() - began)::int) \
             ORDER BY began))[1], '') \
             FROM (SELECT *, coalesce(xact_start, query_start) AS began FROM pg_stat_activity) AS activity \
             WHERE backend_type = 'client backend' AND state NOT IN ('idle', 'disabled') \
             AND application_name <> 'pgherd-agent' \
             AND began <= coalesce($1::text::timestamptz, clock_timestamp())";
        let session = self.session().await?;
        let row = session.row(BUSY, &[&until]).await?;
        Ok((session.take(&row, 0)?, session.take(&row, 1)?))
    }

    /// Waits until none of the clients' statements and transactions runs any more that run now, no longer than
    /// `patience`. PostgreSQL announces that to nobody. What clients begin meanwhile that no proxy holds does not count.
    pub async fn drain(&self, patience: Duration) -> Result<(), DrainError> {
        let begun: String = self.session().await?.value("SELECT clock_timestamp()::text").await?;
        let waits = Patience::new(patience, Duration::from_millis(3));
        loop {
            let (count, oldest) = self.busy(Some(&begun)).await?;
            if count == 0 {
                return Ok(());
            }
            if !waits.next().await {
                return Err(DrainError::Busy { count, after: patience, oldest });
            }
        }
    }

    /// Makes PostgreSQL write all it has in memory, so that a stop soon after is quick and pg_rewind
    /// sees the newest timeline.
    pub async fn checkpoint(&self) -> Result<(), CheckpointError> {
        // A connection of its own: looks must not queue behind it.
        let session = self.connect().await?;
        session.run("SET statement_timeout = 0", self.settings().connect_timeout).await?;
        Ok(session.run("CHECKPOINT", CHECKPOINT_DEADLINE).await?)
    }

    /// Whether it runs in this role; an error when it runs in the other, or must not run at all.
    async fn runs_as(&self, wanted: &'static str) -> Result<bool, StartError> {
        if rewind::is_pending(self.settings()) {
            return Err(StartError::RewindPending(self.data_dir().to_owned()));
        }
        if clone::is_swapping(self.settings()) {
            return Err(StartError::SwapPending(self.data_dir().to_owned()));
        }
        let Some(postmaster) = self.watch_start()? else { return Ok(false) };
        let session = self.wait_until_ready(&postmaster, 0).await?;
        let recovering = session.value::<bool>("SELECT pg_is_in_recovery()").await;
        let recovering = recovering
            .map_err(|source| StartError::NotReady { after: self.settings().connect_timeout, source })?;
        let found = if recovering { "standby" } else { "primary" };
        if found == wanted { Ok(true) } else { Err(StartError::OtherRole { found, wanted }) }
    }

    /// Removes lock files that would keep PostgreSQL from starting though nothing of it runs.
    pub(super) fn clear_stale_locks(&self) -> Result<(), FileError> {
        let settings = self.settings();
        let socket = settings.socket_dir.as_deref().map(|dir| (dir, settings.address.port));
        if let Some(lock) = process::stale_socket_lock(self.data_dir(), socket) {
            tracing::info!(?lock, "removing the lock of a socket whose server was killed");
            files::remove_durably(&lock)?;
        }
        if process::pid_file_is_stale(self.data_dir()) {
            tracing::warn!("removing a postmaster.pid that names a process of somebody else");
            files::remove_durably(&process::pid_file(self.data_dir()))?;
        }
        Ok(())
    }

    fn watch_start(&self) -> Result<Option<Arc<Postmaster>>, StartError> {
        self.postmaster().map_err(|source| StartError::Spawn { program: self.program(), source })
    }

    fn program(&self) -> PathBuf {
        self.settings().bin_dir.join("postgres")
    }

    /// Starts it with the parameters that are wanted, or where it does not start with them, with those that it last had.
    async fn launch(
        &self,
        following: &Following,
        fenced: u64,
        besides: &Besides<'_>,
    ) -> Result<(), StartError> {
        self.lay_out_wanted().await?;
        let first = match self.launch_once(following, fenced, besides).await {
            Ok(told) => {
                self.started(&told).await;
                return Ok(());
            }
            Err(first @ StartError::Ended { .. }) => first,
            Err(error) => return Err(error),
        };
        for doubts in self.doubts().await {
            self.lay_out_instead(&doubts).await?;
            if let Ok(told) = self.launch_once(following, fenced, besides).await {
                self.refuse_values(doubts, &first.complaint()).await;
                self.started(&told).await;
                return Ok(());
            }
        }
        // It was not for them.
        self.lay_out_wanted().await?;
        Err(first)
    }

    /// Tells what the start was told besides.
    async fn launch_once(
        &self,
        following: &Following,
        fenced: u64,
        besides: &Besides<'_>,
    ) -> Result<Vec<Told>, StartError> {
        let told = if besides.standby { self.lift(besides.floor).await } else { self.cap().await };
        // Backends of a postmaster that died hold its shared memory, and would block the start.
        self.clear().await?;
        self.clear_stale_locks()?;
        let log_file = &self.settings().log_file;
        let (log, log_start) = files::open_log(log_file, &self.shared.owner)?;
        let ended = self.spawn(log, fenced, besides.gate, &told)?;
        let ready = async {
            let postmaster = self.appeared().await?;
            self.wait_until_ready(&postmaster, log_start).await
        };
        tokio::select! {
            biased;
            ready = ready => drop(ready?),
            status = ended => return Err(self.ended(status.ok(), log_start)),
        }
        self.shared.stirred.notify_one();
        if !told.is_empty() {
            // Only then does it notice that its files say something else, and tell.
            self.reload().map_err(StartError::Settings)?;
        }
        self.apply(following).await.map_err(StartError::Settings)?;
        Ok(told)
    }

    /// `postgres` on this data directory.
    pub(super) fn server_command(&self) -> Command {
        let settings = self.settings();
        let mut command = self.shared.owner.command(&self.program());
        command.arg("-D").arg(&settings.data_dir).current_dir(&settings.data_dir);
        if settings.config_file != settings.data_dir.join("postgresql.conf") {
            command.arg("-c").arg(format!("config_file={}", settings.config_file.display()));
        }
        command
    }

    /// Starts `postgres`; the receiver gets its exit status. It lives on when the agent ends.
    fn spawn(
        &self,
        log: fs::File,
        fenced: u64,
        gate: Option<&Path>,
        told: &[Told],
    ) -> Result<oneshot::Receiver<ExitStatus>, StartError> {
        let settings = self.settings();
        let program = self.program();
        let births = self.births();
        if *births != fenced {
            return Err(StartError::Fenced);
        }
        let spawned = (|| {
            let mut command = self.server_command();
            if let Some(gate) = gate {
                command.arg("-c").arg(format!("hba_file={}", gate.display()));
            }
            for (name, value) in told {
                command.arg("-c").arg(format!("{name}={value}"));
            }
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.spawn()
        })();
        drop(births);
        let mut child = spawned.map_err(|source| StartError::Spawn { program, source })?;
        if let Some(pid) = child.id() {
            release_priority(pid);
        }
        tracing::info!(pid = child.id(), data_dir = %settings.data_dir.display(), "started PostgreSQL");
        let (sender, receiver) = oneshot::channel();
        // Waits for the child to its end, lest a zombie blocks the next start.
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                tracing::info!(%status, "the postmaster ended");
                // Nobody listens any more once the start has succeeded.
                let _ = sender.send(status);
            }
        });
        Ok(receiver)
    }

    /// The postmaster just spawned, once it is one.
    async fn appeared(&self) -> Result<Arc<Postmaster>, StartError> {
        loop {
            if let Some(postmaster) = self.watch_start()? {
                return Ok(postmaster);
            }
            // Whoever waits here also waits for the child's end.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn wait_until_ready(
        &self,
        postmaster: &Postmaster,
        log_start: u64,
    ) -> Result<Arc<Session>, StartError> {
        let after = self.settings().start_timeout;
        let patience = Patience::new(after, READY_PAUSE);
        loop {
            let attempt = tokio::select! {
                attempt = self.session() => attempt,
                () = postmaster.ended() => return Err(self.ended(None, log_start)),
            };
            match attempt {
                Ok(session) => return Ok(session),
                Err(source) => {
                    if !patience.next().await {
                        return Err(StartError::NotReady { after, source });
                    }
                }
            }
        }
    }

    fn ended(&self, status: Option<ExitStatus>, log_start: u64) -> StartError {
        self.shared.stirred.notify_one();
        let log_file = self.settings().log_file.clone();
        let tail = tail(&log_file, log_start).unwrap_or_else(|error| format!("(unreadable: {error})"));
        let status = status.map_or("exit status unknown".to_owned(), |status| status.to_string());
        StartError::Ended { status, log_file, tail }
    }
}

/// The end of a file, not from before `start`.
fn tail(path: &Path, start: u64) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES_MAX))))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
