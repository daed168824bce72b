//! What the kernel is asked for, so that guardian and worker get to run when the machine is short of
//! everything. All of it is a request: without the right to it things go on as they are.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    Pid, Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit,
};

/// Before PostgreSQL and most else, behind what the system itself needs.
const NICE: i32 = -10;
/// The guardian is never chosen when memory runs out, a worker only when nothing else is left.
const OOM_GUARDIAN: i32 = -1000;
const OOM_WORKER: i32 = -900;

/// For this process, which is the guardian.
pub(super) fn protect_guardian() {
    protect(OOM_GUARDIAN);
    allow_all_descriptors();
    // Pages that it has touched stay. To be asked for only after the rest: a refusal costs nothing.
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        tracing::debug!("the guardian's memory is not locked: {error}");
    }
}

/// For this process, which is a worker, and its threads to come.
pub(crate) fn protect_worker() {
    protect(OOM_WORKER);
}

/// For a process that was started here and is not the agent: it gets what everybody gets.
pub(crate) fn release(pid: u32) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
        tracing::debug!(pid, "its out-of-memory score is the agent's: {error}");
    }
    if let Err(error) = setpriority_process(Some(process), 0) {
        tracing::debug!(pid, "its priority is the agent's: {error}");
    }
}

/// As many as the system allows this process and its children, not as few as are usual: every process of
/// PostgreSQL is held by one while it is killed, every connection needs one.
fn allow_all_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

fn protect(oom_score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", oom_score.to_string()) {
        tracing::debug!(oom_score, "the out-of-memory score stays as it is: {error}");
    }
    let nice = getpriority_process(None).unwrap_or(0);
    if nice > NICE
        && let Err(error) = setpriority_process(None, NICE)
    {
        tracing::debug!("the priority stays as it is: {error}");
    }
}
