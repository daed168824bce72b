//! The guardian: the parent of the worker, which is all the rest of the agent.
//!
//! It obeys [`pgherd_core::guardian`]: it keeps a worker running, and kills PostgreSQL at the time the
//! worker named, whatever has become of the worker. It is small so that nothing can hold it up: one
//! thread, no async runtime, no database driver, no network, and a log that it never waits for.
//!
//! The two are tied by a socket (`channel`), over which the worker says what there is to guard, and by
//! the kernel, which kills the worker with its guardian: a worker never runs without one.

mod channel;
mod charge;
mod lossy;
mod privileges;
mod releaser;
mod timer;
mod watchdog;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::{Clock, time::RealClock};
use pgherd_core::guardian::{End, Fenced, Guardian, Rules, Step};
use pgherd_core::reconcile::lease::Terms;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};

pub(crate) use channel::{Channel, GuardianLost, HandOver};
pub(crate) use lossy::{Flush, start_log};
pub(crate) use privileges::{protect_worker, release};

use crate::config::{Config, load_text};
use crate::postgres::kill_instance;
use channel::Word;
use charge::{Charge, Fate};
use releaser::Releaser;
use timer::Timer;
use watchdog::{Required, Watchdog};

/// The exit code of a worker that cannot work here and has said why.
pub(crate) const REFUSED: u8 = 3;
/// How long one attempt to kill PostgreSQL may take. What survives is tried again.
const FENCE_ATTEMPT: Duration = Duration::from_millis(500);

/// Why a guardian does not run.
#[derive(Debug, thiserror::Error)]
enum GuardError {
    /// The watchdog.
    #[error(transparent)]
    Watchdog(#[from] Required),
    /// The system.
    #[error("the guardian cannot set itself up")]
    System(#[from] std::io::Error),
    /// It would not wake up.
    #[error("the guardian cannot wait; its worker ends with it and PostgreSQL is left as it is")]
    Wait(#[from] rustix::io::Errno),
}

/// Runs an agent: this process becomes its guardian.
pub fn run(config: &Path) -> ExitCode {
    let flush = start_log();
    let code = match load_text(config) {
        Ok((config, text)) => match watch_over(&config, &text) {
            Ok(End::Stopped) => ExitCode::SUCCESS,
            // The worker has said why.
            Ok(End::Refused) => ExitCode::FAILURE,
            Err(error) => refuse(&error),
        },
        Err(error) => refuse(&error),
    };
    flush.wait();
    code
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("{}", Chain(error));
    ExitCode::FAILURE
}

fn watch_over(config: &Config, text: &str) -> Result<End, GuardError> {
    privileges::protect_guardian();
    // What a worker leaves behind becomes this process's child, so that no zombie is left.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(std::io::Error::from)?;
    let (stop, children) = (signals(&[SIGTERM, SIGINT])?, signals(&[SIGCHLD])?);
    let watchdog = Watchdog::open(&config.watchdog)?;
    let timeout = watchdog.as_ref().map(|_| config.watchdog.timeout);
    let rules = Rules { terms: Terms::new(config.timings.lease), watchdog: timeout };
    let mut post = Post {
        config,
        text,
        guardian: Guardian::new(rules, RealClock.now()),
        charge: None,
        watchdog,
        releaser: config.virtual_ip.as_ref().map(|ip| Releaser::start(ip.vip())).transpose()?,
        timer: Timer::new()?,
    };
    loop {
        let step = post.guardian.step(RealClock.now());
        if post.obey(&step) {
            continue;
        }
        if let Some(end) = step.end {
            if let Some(watchdog) = post.watchdog.take() {
                watchdog.disarm();
            }
            post.bid_farewell(end);
            return Ok(end);
        }
        post.timer.set(step.wake_at)?;
        post.wait(&[stop.as_fd(), children.as_fd()])?;
        post.listen();
        drain(&children);
        post.bury();
        if drain(&stop) {
            post.guardian.asked_to_stop(RealClock.now());
        }
    }
}

/// A descriptor that can be read once one of these signals has come.
fn signals(signals: &[i32]) -> std::io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

/// Whether any signal has come.
fn drain(mut signals: &UnixStream) -> bool {
    std::iter::repeat_with(|| signals.read(&mut [0; 8])).take_while(|read| read.is_ok()).count() > 0
}

/// What a guardian holds.
struct Post<'a> {
    config: &'a Config,
    text: &'a str,
    guardian: Guardian,
    charge: Option<Charge>,
    watchdog: Option<Watchdog>,
    releaser: Option<Releaser>,
    timer: Timer,
}

impl Post<'_> {
    /// Does what was decided. Whether there is something new to decide at once. What kills comes before
    /// what talks.
    fn obey(&mut self, step: &Step) -> bool {
        if let Some(charge) = self.charge.as_ref().filter(|_| step.kill_worker) {
            charge.kill();
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|_| step.pet) {
            watchdog.pet();
        }
        if let Some(releaser) = self.releaser.as_ref().filter(|_| step.fence.is_some()) {
            releaser.release();
        }
        let fenced = step.fence.as_ref().map(|reason| self.fence(reason));
        for note in &step.notes {
            tracing::warn!("{note}");
        }
        if let Some(charge) = self.charge.as_ref().filter(|_| step.stop_worker) {
            charge.ask_to_stop();
        }
        if let Some(adopted_until) = step.start_worker {
            let hand_over = HandOver::new(adopted_until, self.guardian.ran_before(), self.text);
            match Charge::start(&hand_over) {
                Ok(charge) => {
                    tracing::info!(pid = charge.pid().as_raw_nonzero().get(), "worker started");
                    self.charge = Some(charge);
                    self.guardian.worker_started(RealClock.now());
                }
                Err(error) => {
                    let how = format!("it could not be started: {}", Chain(&error));
                    self.guardian.worker_ended(pgherd_core::guardian::Ended::Crashed(how), RealClock.now());
                }
            }
        }
        if let Some(result) = &fenced {
            self.guardian.fenced(result, RealClock.now());
        }
        fenced.is_some() || step.start_worker.is_some()
    }

    fn fence(&self, reason: &str) -> Fenced {
        let Some(postgres) = &self.config.postgres else { return Fenced::Gone };
        match kill_instance(&postgres.data_dir, FENCE_ATTEMPT) {
            Ok(killed) => {
                tracing::warn!(killed, "fenced PostgreSQL: {reason}");
                Fenced::Gone
            }
            Err(error) => {
                tracing::error!("could not fence PostgreSQL ({reason}): {}", Chain(&error));
                Fenced::Survives
            }
        }
    }

    fn wait(&self, signals: &[BorrowedFd<'_>]) -> Result<(), rustix::io::Errno> {
        let mut fds: Vec<PollFd<'_>> =
            signals.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        let socket = self.charge.as_ref().and_then(Charge::socket);
        fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Everything the worker has said.
    fn listen(&mut self) {
        let Some(charge) = &mut self.charge else { return };
        while let Some(word) = charge.hear() {
            let now = RealClock.now();
            match word {
                Word::Guard(guard) => self.guardian.told(guard, now),
                Word::Alive(begun) => self.guardian.alive(begun, now),
                Word::Leaving => self.guardian.asked_to_stop(now),
            }
        }
    }

    /// Takes the exit status of every child that has ended.
    fn bury(&mut self) {
        let Some(status) = charge::reap(self.charge.as_ref().map(Charge::pid)) else { return };
        // What it said before it ended counts.
        self.listen();
        self.charge = None;
        let Fate(how) = status;
        self.guardian.worker_ended(how, RealClock.now());
    }

    fn bid_farewell(&self, end: End) {
        match (end, &self.config.postgres) {
            (End::Stopped, Some(_)) => tracing::info!(
                "agent stopped; PostgreSQL is left as it is and nobody watches it until an agent is back"
            ),
            (End::Stopped, None) => tracing::info!("agent stopped"),
            (End::Refused, _) => tracing::debug!("the worker cannot work here: the agent ends"),
        }
    }
}
