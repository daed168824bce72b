//! The handle to one PostgreSQL instance.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgherd_common::{Clock, HostPort, MonoTime, time::RealClock};
use tokio::sync::Notify;

use super::clone;
use super::command::OsUser;
use super::controldata::{ControlData, ControlDataError};
use super::fence::{FenceError, kill_instance};
use super::open::{self, OpenError};
use super::own_address::OwnAddress;
use super::parameters::Parameters;
use super::probe::Memory;
use super::process::Postmaster;
use super::remote;
use super::session::{Session, SessionError};
use super::settings::Settings;
use crate::observation::RemoteDatabase;

/// How long the kernel may take to end killed processes. Only a process stuck in a disk operation
/// takes longer than a fraction of a second.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A handle to the local PostgreSQL; clones share it. All methods may run at any time, but two
/// actions do not run at once: the second waits.
#[derive(Debug, Clone)]
pub struct Instance {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) owner: OsUser,
    pub(super) system_identifier: u64,
    pub(super) major: u32,
    /// Held by the action in progress.
    pub(super) acting: tokio::sync::Mutex<()>,
    /// Rung when an action may have changed what there is to see.
    pub(super) stirred: Notify,
    births: Mutex<u64>,
    own_address: OwnAddress,
    /// Never held while PostgreSQL starts.
    pub(super) parameters: tokio::sync::Mutex<Parameters>,
    /// Held while WAL is copied, which goes on when the action that asked for it is dropped.
    pub(super) copying: Mutex<()>,
    /// Never held across an await.
    memory: Mutex<Memory>,
}

impl Instance {
    /// Checks that this PostgreSQL can be taken care of. Touches nothing, and does not mind whether a
    /// server runs.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        // Before anybody looks: what was to take its place is complete, and what it replaces may be gone from there.
        clone::settle(&settings)?;
        let opened = open::check(&settings).await?;
        let parameters = tokio::sync::Mutex::new(Parameters::load(&settings.state_dir));
        let shared = Shared {
            settings,
            parameters,
            owner: opened.owner,
            system_identifier: opened.control.system_identifier,
            major: opened.major,
            acting: tokio::sync::Mutex::new(()),
            stirred: Notify::new(),
            births: Mutex::new(0),
            own_address: OwnAddress::default(),
            copying: Mutex::new(()),
            memory: Mutex::new(Memory::default()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A predecessor of this process has seen this PostgreSQL run: if it is down, it has failed.
    pub fn ran_before(&self) {
        self.memory().inherit();
    }

    /// The system identifier and the major version of the data directory.
    pub fn identity(&self) -> (u64, u32) {
        (self.shared.system_identifier, self.shared.major)
    }

    /// What this node sees of another node's PostgreSQL, with the agents' login. Takes at most
    /// `connect_timeout`.
    pub async fn knock(&self, other: &HostPort) -> RemoteDatabase {
        remote::knock(&self.shared.settings, other).await
    }

    /// Kills every process of the instance and returns when none is left. A start that is in progress
    /// fails, and starts nothing afterwards.
    pub async fn fence(&self) -> Result<(), FenceError> {
        *self.births() += 1;
        let killed = self.clear().await;
        self.shared.stirred.notify_one();
        killed
    }

    /// Kills what is left of an instance.
    pub(super) async fn clear(&self) -> Result<(), FenceError> {
        let instance = self.clone();
        let killed = tokio::task::spawn_blocking(move || {
            let _no_births = instance.births();
            kill_instance(instance.data_dir(), KILL_PATIENCE)
        });
        let killed = match killed.await {
            Ok(killed) => killed?,
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(FenceError::Interrupted { data_dir: self.data_dir().to_owned() }),
            },
        };
        if killed > 0 {
            tracing::warn!(processes = killed, "killed every process of PostgreSQL");
        }
        Ok(())
    }

    /// How often this instance was fenced. While it is held, no postmaster is born.
    pub(super) fn births(&self) -> MutexGuard<'_, u64> {
        self.shared.births.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.shared.settings.data_dir
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every critical section leaves it whole.
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn control(&self) -> Result<ControlData, ControlDataError> {
        ControlData::read(&self.settings().bin_dir, self.data_dir()).await
    }

    /// The running postmaster, remembered while it lives.
    pub(super) fn postmaster(&self) -> std::io::Result<Option<Arc<Postmaster>>> {
        if let Some(known) = self.memory().postmaster.clone().filter(|known| known.is_alive()) {
            return Ok(Some(known));
        }
        let found = Postmaster::find(self.data_dir())?.map(Arc::new);
        self.memory().meet(found.clone());
        Ok(found)
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Session, SessionError> {
        Session::local(self.settings(), &self.shared.own_address).await
    }

    /// The lasting connection, made anew when it broke.
    pub(super) async fn session(&self) -> Result<Arc<Session>, SessionError> {
        if let Some(session) = self.memory().session.clone().filter(|session| !session.is_closed()) {
            return Ok(session);
        }
        let session = Arc::new(self.connect().await?);
        self.memory().session = Some(Arc::clone(&session));
        Ok(session)
    }
}

/// Waits for something that PostgreSQL announces to nobody: asks every `pause` until `deadline`.
pub(super) struct Patience {
    until: MonoTime,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(deadline: Duration, pause: Duration) -> Self {
        Self { until: RealClock.now() + deadline, pause }
    }

    /// Waits for the next try; false when there is no time for one.
    pub(super) async fn next(&self) -> bool {
        if RealClock.now() >= self.until {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        true
    }
}
