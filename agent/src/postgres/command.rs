//! Running programs as the operating system user of PostgreSQL.

use std::path::Path;

use rustix::process::{Pid, getpriority_process, setpriority_process};
use tokio::process::Command;

/// The user PostgreSQL runs as.
#[derive(Debug, Clone)]
pub(super) struct OsUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether the agent is somebody else (root) and must change to it.
    pub(super) switch: bool,
}

const OOM_ADJUST: [(&str, &str); 2] =
    [("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj"), ("PG_OOM_ADJUST_VALUE", "0")];

const SETPRIV: &str = "/usr/bin/setpriv";

impl OsUser {
    /// A command that runs as this user, on its own: neither the agent's signals nor its libpq
    /// environment reach it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = self.switched(program);
        command.process_group(0).stdin(std::process::Stdio::null());
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE"] {
            command.env_remove(name);
        }
        // When memory runs out a backend goes before the agent and the postmaster, which resets the score
        // of its children if it is told where.
        for (name, value) in OOM_ADJUST {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        command
    }

    fn switched(&self, program: &Path) -> Command {
        if !self.switch {
            return Command::new(program);
        }
        // Debian lets PostgreSQL read TLS keys through a supplementary group (ssl-cert). The standard
        // library drops those groups, setpriv keeps them; it becomes the program, with the same pid.
        if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
            command.args(["--init-groups", "--"]).arg(program);
            return command;
        }
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.gid);
        command
    }
}

/// A server runs with the priority of everybody else, whatever the agent's own is.
pub(super) fn release_priority(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if getpriority_process(Some(pid)).is_ok_and(|nice| nice < 0)
        && let Err(error) = setpriority_process(Some(pid), 0)
    {
        tracing::debug!("PostgreSQL keeps the agent's priority: {error}");
    }
}
