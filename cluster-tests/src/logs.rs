//! Reading the logs of a whole cluster for what a person would have to look at.

use std::path::Path;

/// What PostgreSQL may say when it answers an agent or a proxy that is killed, or, on a busy machine, has given up waiting.
pub const CLIENT_LOST: &str = "connection to client lost";

/// What PostgreSQL says when servers are stopped, cut off and promoted on purpose.
const POSTGRES_EXPECTED: &[&str] = &[
    "terminating connection due to administrator command",
    "terminating connection because of crash of another server process",
    "terminating connection due to unexpected postmaster exit",
    // Of a session that was still logging in when the server was stopped.
    "canceling authentication due to timeout",
    "terminating walreceiver process due to administrator command",
    "terminating background worker",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is not yet accepting connections",
    "the database system is in recovery mode",
    "could not connect to the primary server",
    "could not receive data from WAL stream",
    "could not send data to WAL stream",
    "could not send end-of-streaming message to primary",
    "terminating walreceiver due to timeout",
    // A standby that asks before the new primary serves, or before its slot was made.
    "highest timeline",
    "could not start WAL streaming",
    "pg_rewind",
];

/// Lines of an agent's or a proxy's log that say ERROR, and panics.
pub fn program_alarms(log: &Path, expected: &[&str]) -> Vec<String> {
    alarms(log, &[" ERROR ", "panicked at", "RUST_BACKTRACE"], &[], expected)
}

/// Lines of a server's log that say PANIC or FATAL, but for those any stop or role change brings.
pub fn postgres_alarms(log: &Path, expected: &[&str]) -> Vec<String> {
    alarms(log, &["PANIC:", "FATAL:"], POSTGRES_EXPECTED, expected)
}

fn alarms(log: &Path, marks: &[&str], always: &[&str], expected: &[&str]) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let alarming = |line: &&str| marks.iter().any(|mark| line.contains(mark));
    let unexpected = |line: &&str| !always.iter().chain(expected).any(|known| line.contains(known));
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    text.lines().filter(alarming).filter(unexpected).map(|line| format!("{name}: {line}")).collect()
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let last: Vec<&str> = all.into_iter().rev().take(lines).collect();
    last.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_unexpected_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("postgres.log");
        std::fs::write(&log, "LOG: fine\nFATAL:  the database system is starting up\nPANIC:  disk gone\n")
            .unwrap();
        assert_eq!(postgres_alarms(&log, &[]), ["postgres.log: PANIC:  disk gone"]);
        assert!(postgres_alarms(&log, &["disk gone"]).is_empty());
        assert_eq!(tail(&log, 1), "PANIC:  disk gone");
    }
}
