//! The worker: everything an agent does besides guarding. Its guardian has started it.

use std::process::ExitCode;

use pgherd_common::errors::Chain;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::app::{self, RunError};
use crate::config::Config;
use crate::guardian::{Channel, Flush, HandOver, REFUSED, protect_worker, start_log};

/// Why a worker does not even begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// Somebody typed the argument in.
    #[error("a worker is started by its guardian only: run `pgherd-agent --config FILE`")]
    Alone(#[source] std::io::Error),
    /// It has died meanwhile.
    #[error("the guardian is gone already")]
    Orphaned,
    /// The configuration, which the guardian has read already.
    #[error("the configuration is not valid")]
    Config(#[from] pgherd_common::config::Problems),
    /// The system.
    #[error("cannot set up the process")]
    System(#[from] std::io::Error),
}

/// Runs until it is told to stop.
pub fn run() -> ExitCode {
    let flush = start_log();
    let code = match start(&flush) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Start(error)) => fail(&error, ExitCode::FAILURE),
        Err(Failure::Run(error)) if error.is_a_crash() => fail(&error, ExitCode::FAILURE),
        Err(Failure::Run(error)) => fail(&error, ExitCode::from(REFUSED)),
    };
    flush.wait();
    code
}

enum Failure {
    Start(StartError),
    Run(RunError),
}

fn fail(error: &dyn std::error::Error, code: ExitCode) -> ExitCode {
    tracing::error!("{}", Chain(error));
    code
}

fn start(flush: &Flush) -> Result<(), Failure> {
    let (channel, hand_over) = bind_to_guardian().map_err(Failure::Start)?;
    let config = Config::parse(&hand_over.config).map_err(|problems| Failure::Start(problems.into()))?;
    protect_worker();
    // Before there are other threads, which would keep them.
    pgherd_vip::keep_to_this_process().map_err(|error| Failure::Start(error.into()))?;
    die_of_any_panic(flush.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Start(error.into()))?;
    runtime.block_on(app::run(config, channel, &hand_over)).map_err(Failure::Run)
}

/// From here on this process does not outlive its guardian.
fn bind_to_guardian() -> Result<(Channel, HandOver), StartError> {
    // The name that `ps` and the out-of-memory killer show.
    let _cosmetic = std::fs::write("/proc/self/comm", "pgherd-worker");
    let (channel, hand_over) = Channel::take_over().map_err(StartError::Alone)?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
    // It may have died before the kernel was asked.
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent == Some(hand_over.guardian) { Ok((channel, hand_over)) } else { Err(StartError::Orphaned) }
}

/// A task that panics would leave an agent that lacks something and does not know it. A new worker
/// is there in a moment.
fn die_of_any_panic(flush: Flush) {
    let say_where = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        flush.clone().wait();
        say_where(panic);
        std::process::abort();
    }));
}
