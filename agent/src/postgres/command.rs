//! Running programs as the operating system user of PostgreSQL.

use std::path::Path;

use tokio::process::Command;

/// The user PostgreSQL runs as.
#[derive(Debug, Clone)]
pub(super) struct OsUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether the agent is somebody else (root) and must change to it.
    pub(super) switch: bool,
}

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
