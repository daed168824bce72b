//! A standby takes over what a dead primary has left: its WAL goes where the walreceiver would have put it, and recovery
//! reads it from there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::{Lsn, Timeline};

use super::command::OsUser;
use super::files::{FileError, failed, sync_parent};
use super::follow::FollowError;
use super::instance::{Instance, Patience};
use super::left_wal;
use super::rewind;
use super::session::{Session, SessionError};
use crate::salvage::LeftWal;

/// Of one answer of the other agent.
pub const CHUNK_MAX: u64 = 256 << 10;
/// Looks at replay, and how long it may stand still with WAL to read: three times `wal_retrieve_retry_interval`, and a
/// busy machine.
const REPLAY_PAUSE: Duration = Duration::from_millis(2);
const REPLAY_STANDS: Duration = Duration::from_secs(1);
/// Recovery compares what it reads with the page it is in.
const PAGE: u64 = 8192;

/// Why the WAL of the old primary was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// It may receive WAL of somebody else meanwhile.
    #[error("this server is not a standby that was cut from its upstream; it has to be recruited first")]
    NotRecruited,
    /// The server did not answer.
    #[error("cannot tell how much WAL this standby has")]
    Session(#[from] SessionError),
    /// The old primary's agent did not answer.
    #[error("cannot fetch the WAL that the old primary has left")]
    Fetch(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The old primary's agent will not give it.
    #[error("the WAL that the old primary has left is not to be had")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It ends too early.
    #[error("the old primary's agent sent nothing from {0} on, although its WAL goes further")]
    Short(Lsn),
    /// It is not the continuation.
    #[error(
        "the WAL of the old primary differs before {0} from what this standby has received: nothing of it is taken over"
    )]
    Differs(Lsn),
    /// A file could not be written.
    #[error("cannot store the WAL that the old primary has left")]
    File(#[from] FileError),
    /// Recovery could not be told.
    #[error("cannot make PostgreSQL read the WAL that was fetched")]
    Wake(#[source] FollowError),
    /// The task that writes has ended.
    #[error("storing the WAL that the old primary has left was interrupted")]
    Interrupted,
}

impl SalvageError {
    /// Whether another attempt would end alike.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Differs(_))
    }
}

/// An error of whatever WAL is fetched with.
pub trait FetchError: std::error::Error + Send + Sync + 'static {
    /// Whether the other side answered that it will not.
    fn is_refusal(&self) -> bool {
        false
    }
}

impl FetchError for io::Error {}

impl Instance {
    /// Where the WAL ends that a primary which was killed has left here; `None` while PostgreSQL runs.
    pub async fn left_wal(&self) -> Option<LeftWal> {
        let data_dir = self.data_dir().to_owned();
        let found = tokio::task::spawn_blocking(move || left_wal::find(&data_dir)).await.ok()?;
        found.unwrap_or_else(|error| {
            tracing::warn!("cannot tell where the WAL ends that is here: {error}");
            None
        })
    }

    /// Bytes of that WAL, at most [`CHUNK_MAX`]. Refused while PostgreSQL runs: then a standby streams.
    pub async fn read_left_wal(&self, timeline: Timeline, from: Lsn, length: u64) -> io::Result<Vec<u8>> {
        if self.postmaster()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "PostgreSQL runs"));
        }
        if rewind::is_pending(self.settings()) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is being rewound"));
        }
        let data_dir = self.data_dir().to_owned();
        let length = usize::try_from(length.min(CHUNK_MAX)).unwrap_or(0);
        let read = move || left_wal::read(&data_dir, timeline, from, length);
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Takes over, on a recruited standby, what it lacks of `left`: `fetch` gets bytes of it, from a position on, at most so
    /// many. Returns how far replay came: short of the end if the last of it cannot be replayed.
    pub async fn salvage<E, F>(
        &self,
        left: LeftWal,
        fetch: impl Fn(Lsn, u64) -> F,
    ) -> Result<Lsn, SalvageError>
    where
        E: FetchError,
        F: Future<Output = Result<Vec<u8>, E>>,
    {
        let _acting = self.shared.acting.lock().await;
        let session = self.session().await?;
        let facts = self.facts(&session).await?;
        if !facts.in_recovery || facts.follows.is_some() || facts.receiver.is_some() {
            return Err(SalvageError::NotRecruited);
        }
        let segment = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'";
        let segment = session.value::<i64>(segment).await?;
        let target = Target {
            data_dir: self.data_dir().to_owned(),
            owner: self.shared.owner.clone(),
            timeline: left.timeline,
            segment: u64::try_from(segment).unwrap_or(0).max(PAGE),
        };
        let mut at = target.start(facts.received);
        let mut known = facts.received;
        let mut current = Current::default();
        while at < left.end {
            let bytes = fetch(at, (left.end.0 - at.0).min(CHUNK_MAX)).await;
            let bytes = bytes.map_err(|error| match error.is_refusal() {
                true => SalvageError::Refused(Box::new(error)),
                false => SalvageError::Fetch(Box::new(error)),
            })?;
            if bytes.is_empty() {
                return Err(SalvageError::Short(at));
            }
            let (target, length) = (target.clone(), bytes.len() as u64);
            let write = move || {
                target.write(&mut current, at, known, &bytes)?;
                Ok::<_, SalvageError>(current)
            };
            current = tokio::task::spawn_blocking(write).await.map_err(|_| SalvageError::Interrupted)??;
            at = Lsn(at.0 + length);
            known = known.max(at);
        }
        let sync = move || current.sync();
        tokio::task::spawn_blocking(sync).await.map_err(|_| SalvageError::Interrupted)??;
        self.replay_until(&session, left.end).await
    }

    /// Recovery looks for WAL now and then; told to look at its settings, it looks for WAL, too.
    async fn replay_until(&self, session: &Session, end: Lsn) -> Result<Lsn, SalvageError> {
        self.reload().map_err(SalvageError::Wake)?;
        let (mut replayed, mut patience) = (Lsn::default(), Patience::new(REPLAY_STANDS, REPLAY_PAUSE));
        let reached = loop {
            let now = self.facts(session).await?.position;
            if now >= end {
                break now;
            }
            if now > replayed {
                patience = Patience::new(REPLAY_STANDS, REPLAY_PAUSE);
            } else if !patience.next().await {
                tracing::warn!(replayed = %now, until = %end, "the last of the old primary's WAL is not replayed");
                break now;
            }
            replayed = now;
        };
        self.shared.stirred.notify_one();
        Ok(reached)
    }
}

/// The file that is being written.
#[derive(Debug, Default)]
struct Current(Option<(PathBuf, File)>);

impl Current {
    fn is(&self, path: &Path) -> bool {
        self.0.as_ref().is_some_and(|(current, _)| current == path)
    }

    fn sync(&self) -> Result<(), FileError> {
        let Some((path, file)) = &self.0 else { return Ok(()) };
        file.sync_all().map_err(failed("sync", path))?;
        sync_parent(path)
    }
}

/// Where WAL goes.
#[derive(Debug, Clone)]
struct Target {
    data_dir: PathBuf,
    owner: OsUser,
    timeline: Timeline,
    segment: u64,
}

impl Target {
    fn path(&self, at: Lsn) -> PathBuf {
        left_wal::path_of(&self.data_dir, self.timeline, at.0, self.segment)
    }

    /// From where on WAL is needed: recovery reads whole pages, and the first page of every file.
    fn start(&self, received: Lsn) -> Lsn {
        let unit = if self.path(received).exists() { PAGE } else { self.segment };
        Lsn(received.0 - received.0 % unit)
    }

    /// Writes `bytes` at `at`; what lies before `known` must be there already, and the same.
    fn write(&self, current: &mut Current, at: Lsn, known: Lsn, bytes: &[u8]) -> Result<(), SalvageError> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let here = Lsn(at.0 + written as u64);
            let (path, offset) = (self.path(here), here.0 % self.segment);
            let length = rest.len().min(usize::try_from(self.segment - offset).unwrap_or(usize::MAX));
            let part = rest.get(..length).unwrap_or_default();
            if !current.is(&path) {
                current.sync()?;
                let (file, is_new) = self.open(&path).map_err(failed("open", &path))?;
                if !is_new {
                    let same = known.0.saturating_sub(here.0).min(length as u64);
                    let same = part.get(..usize::try_from(same).unwrap_or(0)).unwrap_or_default();
                    let mut present = vec![0; same.len()];
                    file.read_exact_at(&mut present, offset).map_err(failed("read", &path))?;
                    if present != same {
                        return Err(SalvageError::Differs(known));
                    }
                }
                current.0 = Some((path.clone(), file));
            }
            if let Some((_, file)) = &current.0 {
                file.write_all_at(part, offset).map_err(failed("write", &path))?;
            }
            written += length;
        }
        Ok(())
    }

    /// The file as it is, or a new one that is whole from its first moment on. Whether it is new.
    fn open(&self, path: &Path) -> io::Result<(File, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.open(path) {
            Ok(file) => return Ok((file, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // PostgreSQL removes files of this name when it starts.
        let temporary = path.with_file_name("xlogtemp.pgherd");
        let file = options.create(true).truncate(true).open(&temporary)?;
        if self.owner.switch {
            fchown(&file, Some(self.owner.uid), Some(self.owner.gid))?;
        }
        file.set_len(self.segment)?;
        std::fs::rename(&temporary, path)?;
        Ok((file, true))
    }
}
