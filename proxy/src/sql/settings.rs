//! Settings whose value belongs to a server and not to the session: asking for them is not a read that
//! any node can answer.

/// Whether `SHOW name` and `current_setting('name')` give the same on every node.
pub(super) fn same_everywhere(name: &str) -> bool {
    const SERVER_LOCAL: &[&str] = &[
        "all",
        "transaction_read_only",
        "transaction_isolation",
        "in_hot_standby",
        "data_directory",
        "config_file",
        "hba_file",
        "ident_file",
        "external_pid_file",
        "listen_addresses",
        "port",
        "cluster_name",
        "restore_command",
        "promote_trigger_file",
        "full_page_writes",
        "server_version_num",
    ];
    const SERVER_LOCAL_PREFIXES: &[&str] = &[
        "primary_",
        "recovery_",
        "hot_standby",
        "wal_",
        "max_wal_",
        "min_wal_",
        "synchronous_standby",
        "archive_",
        "unix_socket_",
        "log_",
        "logging_",
        "ssl",
        "max_standby_",
        "max_slot_",
        "max_replication_",
        "shared_",
    ];
    let name = name.to_ascii_lowercase();
    !SERVER_LOCAL.contains(&name.as_str())
        && !SERVER_LOCAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether setting it tells of the open transaction alone, in lower case. There are others of such names.
pub fn is_of_the_transaction(name: &str) -> bool {
    matches!(name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable")
}
