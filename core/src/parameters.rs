//! Which of PostgreSQL's parameters the cluster may set, and which values of them need a second thought. Pure.
//!
//! What a value has to look like is PostgreSQL's to say; here stands what it would do to the cluster. Whoever reaches an
//! agent can ask for this, so nothing is set that names a program or a file.

/// What a value would meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Database nodes of the cluster.
    pub databases: u32,
    /// Whether pages have checksums; `None` if that is not known.
    pub checksums: Option<bool>,
    /// Whether commits are to wait for standbys.
    pub synchronous: bool,
}

/// What becomes of the wish to set a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is against it.
    Fine,
    /// Only for who insists; why.
    Confirm(String),
    /// Not at all; why, and what to do instead.
    Refused {
        /// A sentence about the parameter.
        why: String,
        /// For who wants it all the same.
        instead: &'static str,
    },
}

const OWN_FILE: &str = "it is each server's own: set it in postgresql.conf there";
const BY_HAND: &str =
    "it names a program, a library or a file: set it in postgresql.conf or with ALTER SYSTEM";

/// Parameters that pgherd sets itself, and what to use instead.
const OWNED: &[(&str, &str)] = &[
    (
        "primary_conninfo",
        "pgherd sets it itself: `pgherd promote` and `pgherd rebuild` change whom a standby follows",
    ),
    ("primary_slot_name", "pgherd sets it itself, and keeps a slot for every member"),
    (
        "synchronous_standby_names",
        "pgherd sets it itself: use failover.durability and failover.sync_standbys in agent.toml",
    ),
    ("recovery_target_timeline", "pgherd sets it itself: standbys follow the newest timeline"),
    ("hot_standby", "pgherd sets it itself: agents and readers need it on"),
    ("wal_retrieve_retry_interval", "pgherd sets it itself: standbys are to find a new primary at once"),
    ("recovery_target", "a node of a cluster replays all there is"),
    ("recovery_target_name", "a node of a cluster replays all there is"),
    ("recovery_target_time", "a node of a cluster replays all there is"),
    ("recovery_target_xid", "a node of a cluster replays all there is"),
    ("recovery_target_lsn", "a node of a cluster replays all there is"),
    ("recovery_target_inclusive", "a node of a cluster replays all there is"),
    ("recovery_target_action", "a node of a cluster replays all there is"),
    ("promote_trigger_file", "only the agents promote: use `pgherd promote`"),
    ("listen_addresses", OWN_FILE),
    ("port", OWN_FILE),
    ("unix_socket_directories", OWN_FILE),
    ("data_directory", OWN_FILE),
    ("config_file", OWN_FILE),
    ("hba_file", OWN_FILE),
    ("ident_file", OWN_FILE),
    ("external_pid_file", OWN_FILE),
    ("unix_socket_permissions", OWN_FILE),
    (
        "synchronized_standby_slots",
        "pgherd sets it itself where there are logical slots that are to survive a failover",
    ),
    (
        "sync_replication_slots",
        "pgherd sets it itself where there are logical slots that are to survive a failover",
    ),
    ("pre_auth_delay", "it is for developers, and keeps the agents out"),
    ("post_auth_delay", "it is for developers, and keeps the agents out"),
    ("db_user_namespace", "the agents' own users would be others then: set it in postgresql.conf"),
    ("bonjour", OWN_FILE),
    ("bonjour_name", OWN_FILE),
    ("allow_alter_system", OWN_FILE),
    (
        "restart_after_crash",
        "the agents reckon with a server that comes back from the crash of a backend: set it by hand",
    ),
];

/// Parameters by which PostgreSQL runs programs or reads and writes files of somebody's choice.
const NAMES_FILES: &[&str] = &[
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "restore_command",
    "recovery_end_command",
    "ssl_passphrase_command",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "dynamic_library_path",
    "extension_control_path",
    "local_preload_libraries",
    "session_preload_libraries",
    "jit_provider",
    "oauth_validator_libraries",
    "log_directory",
    "log_filename",
    "stats_temp_directory",
    "unix_socket_group",
];

/// Extensions whose parameters and libraries neither run programs nor name files.
const EXTENSIONS: &[&str] = &[
    "auto_explain",
    "hnsw",
    "ivfflat",
    "pg_hint_plan",
    "pg_prewarm",
    "pg_qualstats",
    "pg_stat_kcache",
    "pg_stat_monitor",
    "pg_stat_statements",
    "pg_trgm",
    "pg_wait_sampling",
    "pgaudit",
    "plpgsql",
    "postgres_fdw",
];

/// Libraries besides those of [`EXTENSIONS`] that do no harm by being loaded.
const LIBRARIES: &[&str] = &[
    "auth_delay",
    "citus",
    "passwordcheck",
    "pg_cron",
    "pg_partman_bgw",
    "pg_squeeze",
    "pglogical",
    "timescaledb",
];

/// Whether the cluster may set this at all. Also asked where a value is put to use: it may have come into the log by an
/// agent that knew less.
pub fn is_settable(name: &str, value: &str) -> bool {
    is_name(name) && forbidden(name, value).is_none()
}

/// Why a parameter, or a value of it, is not set by the cluster, whatever the cluster is like; and what to do instead.
pub fn forbidden(name: &str, value: &str) -> Option<(String, &'static str)> {
    if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| *owned == name) {
        return Some((format!("{name} is not set cluster-wide"), *instead));
    }
    if NAMES_FILES.contains(&name) {
        return Some((format!("{name} is not set over the network"), BY_HAND));
    }
    if let Some((extension, _)) = name.split_once('.').filter(|(prefix, _)| !EXTENSIONS.contains(prefix)) {
        let why = format!("{name} is not set over the network: what {extension} does with it is not known");
        return Some((why, "set it in postgresql.conf or with ALTER SYSTEM"));
    }
    let known = |library: &str| EXTENSIONS.contains(&library) || LIBRARIES.contains(&library);
    let unknown = |library: &&str| !library.is_empty() && !known(library);
    let mut libraries = value.split(',').map(|library| library.trim().trim_matches('"'));
    if name == "shared_preload_libraries"
        && let Some(unknown) = libraries.find(unknown)
    {
        let why =
            format!("{name} is not set to {unknown} over the network: what that library does is not known");
        return Some((why, "libraries other than the usual ones are set in postgresql.conf"));
    }
    None
}

/// Judges one value. `normal`: as PostgreSQL itself has it, where that is known, else as it was given.
pub fn judge(name: &str, normal: &str, facts: &Facts) -> Verdict {
    if let Some(refused) = refused(name, normal, facts) {
        return refused;
    }
    let off = matches!(normal.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0" | "f" | "n");
    let confirm = |why: &str| Verdict::Confirm(format!("{name} = {normal}: {why}"));
    match name {
        "fsync" if off => {
            confirm("after a crash of the machine its data may be damaged, and what was committed lost")
        }
        "full_page_writes" if off => {
            confirm("after a crash of the machine pages may be torn, and no WAL repairs them")
        }
        "wal_log_hints" if off && facts.checksums != Some(true) => confirm(
            "without data checksums a failed primary cannot be rewound any more, and is copied as a whole",
        ),
        "synchronous_commit" if facts.synchronous && (off || normal == "local") => confirm(
            "commits wait for no standby then, and a failover may lose some, whatever failover.durability says",
        ),
        "autovacuum" | "track_counts" if off => confirm("tables bloat, until transaction numbers run out"),
        "zero_damaged_pages" | "ignore_checksum_failure" | "ignore_invalid_pages" if !off => {
            confirm("damaged data is passed over in silence")
        }
        "ssl" if !off => confirm(
            "every node needs its certificate and key (ssl_cert_file, ssl_key_file), or PostgreSQL does not start there with it",
        ),
        "archive_mode" if !off => confirm(
            "archive_command or archive_library has to be set on every node by hand, or WAL is kept until the disk is full",
        ),
        "debug_discard_caches" if !off => confirm("it is for developers, and very slow"),
        _ => Verdict::Fine,
    }
}

fn refused(name: &str, normal: &str, facts: &Facts) -> Option<Verdict> {
    let refuse = |why: String, instead: &'static str| Some(Verdict::Refused { why, instead });
    if let Some((why, instead)) = forbidden(name, normal) {
        return refuse(why, instead);
    }
    if name == "wal_level" && normal == "minimal" {
        return refuse(format!("{name} = minimal"), "standbys need at least replica");
    }
    // One sender for each other node, one for a copy, and one in reserve for a standby that reconnects.
    let least = match name {
        "max_wal_senders" => facts.databases + 1,
        "max_replication_slots" => facts.databases.saturating_sub(1),
        _ => return None,
    };
    let given: u32 = normal.parse().ok()?;
    (given < least).then(|| Verdict::Refused {
        why: format!(
            "{name} = {given} is too low for {} database nodes: at least {least} are needed",
            facts.databases
        ),
        instead: "choose a higher value",
    })
}

/// Whether this can be the name of a parameter at all; those of extensions have a dot.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.len() <= 63 && !name.is_empty() && name.split('.').count() <= 2 && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { databases: 3, checksums: Some(true), synchronous: false };

    fn is_refused(name: &str, value: &str) -> bool {
        matches!(judge(name, value, &FACTS), Verdict::Refused { .. })
    }

    fn needs_a_word(name: &str, value: &str, facts: &Facts) -> bool {
        matches!(judge(name, value, facts), Verdict::Confirm(_))
    }

    #[test]
    fn what_pgherd_sets_itself_and_what_names_programs_is_refused() {
        for name in
            ["primary_conninfo", "synchronous_standby_names", "port", "hot_standby", "recovery_target_time"]
        {
            assert!(is_refused(name, "x"), "{name}");
        }
        for name in ["archive_command", "restore_command", "session_preload_libraries", "log_directory"] {
            assert!(is_refused(name, "x"), "{name}");
        }
        assert!(is_refused("shared_preload_libraries", "pg_stat_statements, /tmp/evil"));
        assert!(is_refused("shared_preload_libraries", "basebackup_to_shell"));
        assert!(!is_refused("shared_preload_libraries", "pg_stat_statements,\"auto_explain\""));
        assert!(!is_refused("shared_preload_libraries", ""));
        for name in ["plperl.on_init", "basebackup_to_shell.command", "myapp.tenant"] {
            assert!(is_refused(name, "x"), "{name}");
        }
        assert!(is_settable("pg_stat_statements.max", "10000") && is_settable("work_mem", "4MB"));
        assert!(!is_settable("work_mem\nport", "1") && !is_settable("archive_command", "rm"));
        assert_eq!(judge("work_mem", "4096", &FACTS), Verdict::Fine);
    }

    #[test]
    fn what_replication_could_not_live_with_is_refused() {
        assert!(is_refused("wal_level", "minimal") && !is_refused("wal_level", "logical"));
        assert!(is_refused("max_wal_senders", "3") && !is_refused("max_wal_senders", "4"));
        assert!(is_refused("max_replication_slots", "1") && !is_refused("max_replication_slots", "2"));
    }

    #[test]
    fn what_is_dangerous_needs_a_word() {
        for name in ["fsync", "full_page_writes", "autovacuum"] {
            assert!(needs_a_word(name, "off", &FACTS) && !needs_a_word(name, "on", &FACTS), "{name}");
        }
        assert!(!needs_a_word("wal_log_hints", "off", &FACTS));
        assert!(needs_a_word("wal_log_hints", "off", &Facts { checksums: None, ..FACTS }));
        assert!(!needs_a_word("synchronous_commit", "local", &FACTS));
        assert!(needs_a_word("synchronous_commit", "local", &Facts { synchronous: true, ..FACTS }));
        assert!(needs_a_word("zero_damaged_pages", "on", &FACTS));
    }

    #[test]
    fn names_are_names() {
        for name in ["work_mem", "pg_stat_statements.max", "_x.y1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "1a", "a b", "a=b", "a.b.c", "a.", ".a", "a\nb", "a'"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
