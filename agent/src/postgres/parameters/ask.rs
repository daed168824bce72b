//! What PostgreSQL itself says of values, without running with them: `postgres -C`, which reads the configuration, checks
//! what it is given besides, and tells one value.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::postgres::instance::Instance;

/// It reads a few files.
const PATIENCE: Duration = Duration::from_secs(5);

/// PostgreSQL did not tell.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The program did not start.
    #[error("cannot run {program:?}; check postgres.bin_dir")]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It hangs.
    #[error("`postgres -C` does not answer within {} s; check the storage", PATIENCE.as_secs())]
    Hangs,
    /// Somebody ended it.
    #[error("`postgres -C` was killed")]
    Killed,
    /// It refused.
    #[error("`postgres -C` says: {0}")]
    Refused(String),
}

impl Instance {
    /// The value of a parameter after a start with this configuration and these values besides.
    pub(super) async fn configured(
        &self,
        name: &str,
        besides: &BTreeMap<String, String>,
    ) -> Result<String, AskError> {
        let mut command = self.server_command();
        command.env("LC_ALL", "C").args(["-C", name]).kill_on_drop(true);
        for (name, value) in besides {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let program = self.settings().bin_dir.join("postgres");
        let output = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| AskError::Hangs)?;
        let output = output.map_err(|source| AskError::Run { program, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        // A fence kills it with all that works in the data directory: that says nothing about values.
        if output.status.code().is_none() {
            return Err(AskError::Killed);
        }
        Err(AskError::Refused(complaint(&String::from_utf8_lossy(&output.stderr))))
    }

    /// What PostgreSQL has against each of these values. Names with a dot are checked by the extension only once it is
    /// loaded.
    pub async fn complaints(
        &self,
        values: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, AskError> {
        /// Any that there is.
        const SOME: &str = "max_connections";
        match self.configured(SOME, values).await {
            Err(AskError::Refused(_)) => {}
            other => return other.map(|_| BTreeMap::new()),
        }
        // Whose fault it is: not that of a file which is damaged anyway.
        self.configured(SOME, &BTreeMap::new()).await?;
        let mut complaints = BTreeMap::new();
        for (name, value) in values {
            let one = BTreeMap::from([(name.clone(), value.clone())]);
            if let Err(error) = self.configured(SOME, &one).await {
                let AskError::Refused(why) = error else { return Err(error) };
                complaints.insert(name.clone(), why);
            }
        }
        Ok(complaints)
    }

    /// Values as PostgreSQL itself has them: in its own unit, and by their full names.
    pub async fn normal(
        &self,
        values: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, AskError> {
        let mut normal = BTreeMap::new();
        for name in values.keys() {
            normal.insert(name.clone(), self.configured(name, values).await?);
        }
        Ok(normal)
    }
}

/// What matters of it: without times and pids, and without its level.
pub(in crate::postgres) fn complaint(stderr: &str) -> String {
    let lines = stderr.lines().filter_map(|line| {
        ["FATAL:", "ERROR:", "LOG:", "DETAIL:", "HINT:"]
            .iter()
            .find_map(|level| line.split_once(level))
            .map(|(_, text)| text.trim())
    });
    let told = lines.collect::<Vec<_>>().join("; ");
    if told.is_empty() { stderr.trim().to_owned() } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_told_without_what_surrounds_it() {
        let said = "2026-11-30 17:31:20.743 GMT [1913] FATAL:  invalid value for parameter \"a\": \"9\"\n\
                    2026-11-30 17:31:20.743 GMT [1913] HINT:  Value exceeds integer range.\n";
        assert_eq!(complaint(said), "invalid value for parameter \"a\": \"9\"; Value exceeds integer range.");
        assert_eq!(complaint(" no such file\n"), "no such file");
    }
}
