//! The configuration files of the other proxies. Each gets what its own documentation advises for this
//! use, and no log line for each connection, since not all of them write one.

use std::fmt::Write;
use std::path::Path;

use crate::postgres::{APP, AUTH_PASSWORD, AUTH_USER};

/// As many server connections as ours opens for reads: two standbys, `pool.size` of 20 each.
pub(super) const SERVER_CONNECTIONS: usize = 40;
/// More than any workload has clients. With Pgpool-II each is a process.
pub(super) const CLIENTS_MAX: usize = 220;
/// Connections that nobody uses are closed soon, so that they do not weigh on what is measured next.
const IDLE_SECONDS: u32 = 10;

/// Addresses of the three servers, the primary first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Servers {
    /// All of them have it.
    pub(super) host: String,
    /// One each.
    pub(super) ports: Vec<u16>,
}

impl Servers {
    /// Where the primary is.
    pub(super) fn primary_port(&self) -> u16 {
        self.ports.first().copied().unwrap_or_default()
    }
}

/// What differs from one PgBouncer to the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct PgBouncer {
    /// Every client keeps a server connection for itself.
    pub(super) session: bool,
    /// It carries prepared statements in transaction mode.
    pub(super) plans: bool,
    /// How many clients it lets in.
    pub(super) clients_max: usize,
}

/// `pgbouncer.ini`.
pub(super) fn pgbouncer(servers: &Servers, port: u16, dir: &Path, kind: PgBouncer) -> String {
    let PgBouncer { session, plans, clients_max } = kind;
    let (mode, pool) = if session { ("session", CLIENTS_MAX) } else { ("transaction", SERVER_CONNECTIONS) };
    // From 1.21 on; before, it is no setting.
    let plans = if plans { "max_prepared_statements = 200\n" } else { "" };
    format!(
        "[databases]\n{APP} = host={host} port={primary} dbname={APP}\n\n[pgbouncer]\nlisten_addr = {host}\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\n\
         max_client_conn = {clients_max}\ndefault_pool_size = {pool}\nserver_idle_timeout = {IDLE_SECONDS}\n\
         log_connections = 0\nlog_disconnections = 0\n{plans}",
        host = servers.host,
        primary = servers.primary_port(),
        users = dir.join("users.txt").display(),
    )
}

/// PgBouncer's users. With the servers' own verifier it can log in as whoever has logged in to it, and need
/// not derive keys for each login.
pub(super) fn pgbouncer_users(verifier: &str) -> String {
    format!("\"{APP}\" \"{verifier}\"\n")
}

/// `haproxy.cfg`.
pub(super) fn haproxy(servers: &Servers, port: u16) -> String {
    format!(
        "global\n  maxconn 1000\n\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\n\
         listen postgres\n  bind {host}:{port}\n  server primary {host}:{primary}\n",
        host = servers.host,
        primary = servers.primary_port(),
    )
}

/// `pgpool.conf`.
pub(super) fn pgpool(servers: &Servers, port: u16, control_port: u16, dir: &Path) -> String {
    let (host, dir) = (&servers.host, dir.display());
    let mut text = format!(
        "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '{host}'\nport = {port}\n\
         socket_dir = '{dir}'\npcp_listen_addresses = '{host}'\npcp_port = {control_port}\npcp_socket_dir = '{dir}'\n\
         pid_file_name = '{dir}/pgpool.pid'\nlogdir = '{dir}'\nlog_destination = 'stderr'\n\
         enable_pool_hba = on\npool_passwd = '{dir}/pool_passwd'\n\
         num_init_children = {CLIENTS_MAX}\nmax_pool = 1\nconnection_cache = on\nconnection_life_time = {IDLE_SECONDS}\n\
         load_balance_mode = on\nstatement_level_load_balance = on\n\
         sr_check_user = '{AUTH_USER}'\nsr_check_password = '{AUTH_PASSWORD}'\nsr_check_database = 'postgres'\n\
         health_check_period = 0\nfailover_on_backend_error = off\nuse_watchdog = off\n"
    );
    for (number, server) in servers.ports.iter().enumerate() {
        let weight = u8::from(number > 0);
        let _infallible = write!(
            text,
            "backend_hostname{number} = '{host}'\nbackend_port{number} = {server}\nbackend_weight{number} = {weight}\n\
             backend_flag{number} = 'DISALLOW_TO_FAILOVER'\n"
        );
    }
    text
}

/// Pgpool-II's `pool_hba.conf`.
pub(super) fn pgpool_hba() -> &'static str {
    "host all all all scram-sha-256\n"
}

/// Pgpool-II's users: it must know the passwords to log in to servers.
pub(super) fn pgpool_users() -> String {
    format!("{APP}:TEXT{APP}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_to_standbys_only() {
        let servers = Servers { host: "127.0.0.1".to_owned(), ports: vec![5601, 5602, 5603] };
        let text = pgpool(&servers, 9999, 9898, Path::new("/d"));
        for line in ["backend_weight0 = 0", "backend_weight1 = 1", "backend_port2 = 5603"] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
    }

    #[test]
    fn an_old_pgbouncer_gets_no_setting_that_it_does_not_know() {
        let servers = Servers { host: "127.0.0.1".to_owned(), ports: vec![5601] };
        let text = |session, plans| {
            let kind = PgBouncer { session, plans, clients_max: 1000 };
            pgbouncer(&servers, 6500, Path::new("/d"), kind)
        };
        assert!(!text(false, false).contains("max_prepared_statements"));
        assert!(text(false, true).contains("max_prepared_statements"));
        assert!(text(true, false).contains("pool_mode = session"));
    }
}
