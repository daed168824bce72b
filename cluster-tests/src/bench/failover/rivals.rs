//! The configuration files of the peers.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::ground::Ground;
use super::system::System;
use crate::failure::Failure;
use crate::postgres::{AUTH_PASSWORD, AUTH_USER, PostgresServer, REPLICATION_PASSWORD, REPLICATION_USER};

/// Patroni's REST API.
pub(super) const REST_PORT: u16 = 8008;
/// What etcd answers on.
pub(super) const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
/// What applications connect to.
pub(super) const FRONT_PORT: u16 = 6432;
/// Pgpool-II's control.
pub(super) const PCP_PORT: u16 = 9898;
/// Who may use it.
pub(super) const PCP_USER: &str = "operator";
const PCP_PASSWORD: &str = "postgres";
/// The password's MD5 sum.
const PCP_SUM: &str = "e8a48653851e28c69d0506508fb27fc5";
/// The user Patroni's standbys replicate as: made by Patroni itself, while the others' is made by us.
const PATRONI_REPLICATION_USER: &str = "patroni_standby";

/// What differs from one Patroni to the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct PatroniKind {
    pub(super) system: System,
    pub(super) synchronous: bool,
    /// Its major version: 3 renamed a setting.
    pub(super) major: u32,
}

/// Patroni's configuration: YAML, of which JSON is a part. PostgreSQL's settings are those that
/// [`PostgresServer::config`] has for everybody else.
pub(super) fn patroni(
    name: &str,
    postgres: &PostgresServer,
    dir: &Path,
    etcd: &str,
    kind: PatroniKind,
) -> String {
    let rest = format!("{}:{REST_PORT}", postgres.place.host);
    let hba: Vec<String> = postgres.hba().lines().map(str::to_owned).collect();
    json!({
        "scope": "bench",
        "name": name,
        "restapi": { "listen": rest, "connect_address": rest },
        "etcd3": { "hosts": etcd },
        "bootstrap": {
            "dcs": dcs(kind),
            "initdb": ["data-checksums", "no-sync", { "encoding": "UTF8" }, { "locale": "C.UTF-8" }],
        },
        "postgresql": {
            "listen": postgres.address(),
            "connect_address": postgres.address(),
            "data_dir": postgres.data_dir,
            "bin_dir": postgres.bin_dir,
            "pgpass": dir.join("pgpass"),
            "authentication": {
                "superuser": { "username": "postgres", "password": AUTH_PASSWORD },
                "replication": { "username": PATRONI_REPLICATION_USER, "password": REPLICATION_PASSWORD },
            },
            "pg_hba": hba,
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
            "parameters": {
                "unix_socket_directories": postgres.socket_dir,
                "shared_buffers": "64MB",
                "max_wal_size": "256MB",
                "dynamic_shared_memory_type": "mmap",
                "password_encryption": "scram-sha-256",
                "shared_preload_libraries": "pg_stat_statements",
                "logging_collector": "off",
                "timezone": "UTC",
                "log_timezone": "UTC",
            },
        },
    })
    .to_string()
}

/// What Patroni keeps in etcd: its defaults, or the least that it allows. The documentation's least `ttl` is 20, and
/// newer versions insist on it.
fn dcs(kind: PatroniKind) -> Value {
    let tuned = kind.system == System::PatroniTuned;
    let (ttl, loop_wait, retry_timeout) = if tuned { (20, 1, 3) } else { (30, 10, 10) };
    let mut dcs = json!({
        "ttl": ttl,
        "loop_wait": loop_wait,
        "retry_timeout": retry_timeout,
        "maximum_lag_on_failover": 1_048_576,
        "synchronous_mode": kind.synchronous,
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "parameters": { "wal_level": "replica", "wal_log_hints": "on", "wal_keep_size": "128MB", "max_connections": 100 },
        },
    });
    if tuned && let Some(settings) = dcs.as_object_mut() {
        let name = if kind.major < 3 { "master_start_timeout" } else { "primary_start_timeout" };
        settings.insert(name.to_owned(), json!(0));
    }
    dcs
}

/// etcd's arguments.
pub(super) fn etcd(host: &str, dir: &Path) -> Vec<String> {
    let (client, peer) = (format!("http://{host}:{ETCD_PORT}"), format!("http://{host}:{ETCD_PEER_PORT}"));
    let pairs = [
        ("--name", "only".to_owned()),
        ("--data-dir", dir.join("etcd").display().to_string()),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer.clone()),
        ("--initial-cluster", format!("only={peer}")),
    ];
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

/// `haproxy.cfg`.
pub(super) fn haproxy(ground: &Ground, system: System) -> String {
    // HAProxy waits a second before it tries a server again; whoever is tuned leaves that to applications.
    let (checks, retries) = match system {
        System::PatroniTuned => ("inter 200ms fall 2 rise 1", 0),
        System::Pgherd | System::Patroni | System::Pgpool => ("inter 1s fall 3 rise 2", 2),
    };
    let mut text = format!(
        "global\n  maxconn 1000\n\ndefaults\n  mode tcp\n  retries {retries}\n  timeout connect 1s\n  timeout client 1h\n  \
         timeout server 1h\n  timeout check 1s\n\n\
         listen postgres\n  bind {host}:{FRONT_PORT}\n  option httpchk OPTIONS /primary\n  http-check expect status 200\n  \
         default-server {checks} on-marked-down shutdown-sessions\n",
        host = ground.front.host,
    );
    for machine in &ground.machines {
        let (name, address) = (&machine.name, machine.postgres.address());
        let _infallible = writeln!(text, "  server {name} {address} check port {REST_PORT}");
    }
    text
}

/// `pgpool.conf`.
pub(super) fn pgpool(ground: &Ground) -> String {
    let (host, dir) = (&ground.front.host, ground.front_dir.display());
    let mut text = format!(
        "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '{host}'\nport = {FRONT_PORT}\n\
         socket_dir = '{dir}'\npcp_listen_addresses = '{host}'\npcp_port = {PCP_PORT}\npcp_socket_dir = '{dir}'\n\
         pid_file_name = '{dir}/pgpool.pid'\nlogdir = '{dir}'\nlog_destination = 'stderr'\n\
         enable_pool_hba = on\npool_passwd = '{dir}/pool_passwd'\n\
         num_init_children = 32\nmax_pool = 1\nload_balance_mode = off\n\
         sr_check_period = 1\nsr_check_user = '{AUTH_USER}'\nsr_check_password = '{AUTH_PASSWORD}'\n\
         sr_check_database = 'postgres'\n\
         health_check_period = 1\nhealth_check_timeout = 2\nhealth_check_max_retries = 0\nconnect_timeout = 1000\n\
         health_check_user = '{AUTH_USER}'\nhealth_check_password = '{AUTH_PASSWORD}'\n\
         health_check_database = 'postgres'\n\
         failover_on_backend_error = on\nfailover_on_backend_shutdown = on\n\
         failover_command = '/bin/sh {dir}/failover.sh %d %P %H'\nuse_watchdog = off\n"
    );
    for (number, machine) in ground.machines.iter().enumerate() {
        let _infallible = write!(
            text,
            "backend_hostname{number} = '{host}'\nbackend_port{number} = {port}\nbackend_weight{number} = 1\n\
             backend_flag{number} = 'ALLOW_TO_FAILOVER'\n",
            host = machine.postgres.place.host,
            port = machine.postgres.port,
        );
    }
    text
}

/// What Pgpool-II runs when a server is gone. It gets the numbers of that server and of the primary, and the host of
/// the server that is to be the next primary.
pub(super) fn failover_script(ground: &Ground) -> Result<String, Failure> {
    let first = ground.machines.first().ok_or_else(|| Failure::new("there are no machines"))?;
    let hosts: Vec<&str> =
        ground.machines.iter().map(|machine| machine.postgres.place.host.as_str()).collect();
    Ok(format!(
        "gone=$1 primary=$2 next=$3\n\
         [ \"$gone\" = \"$primary\" ] || exit 0\n\
         export PGPASSWORD={AUTH_PASSWORD} PGCONNECT_TIMEOUT=2\n\
         ask() {{ {psql} -X -q -h \"$1\" -p {port} -U {AUTH_USER} -d postgres -c \"$2\"; }}\n\
         ask \"$next\" 'SELECT pg_promote(true, 30)'\n\
         number=0\n\
         for host in {hosts}; do\n    \
             if [ $number != \"$gone\" ] && [ $host != \"$next\" ]; then\n        \
                 ask $host \"ALTER SYSTEM SET primary_conninfo = '{conninfo}'\"\n        \
                 ask $host 'SELECT pg_reload_conf()'\n    \
             fi\n    \
             number=$((number + 1))\n\
         done\n",
        psql = first.postgres.bin_dir.join("psql").display(),
        port = first.postgres.port,
        hosts = hosts.join(" "),
        conninfo = conninfo("$next", first.postgres.port),
    ))
}

/// How a standby reaches its primary.
pub(super) fn conninfo(host: &str, port: u16) -> String {
    format!("host={host} port={port} user={REPLICATION_USER} password={REPLICATION_PASSWORD}")
}

/// `pcp.conf`.
pub(super) fn pcp_users() -> String {
    format!("{PCP_USER}:{PCP_SUM}\n")
}

/// What the control's programs read the password from.
pub(super) fn pcp_password(host: &str) -> String {
    format!("{host}:{PCP_PORT}:{PCP_USER}:{PCP_PASSWORD}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    fn server() -> PostgresServer {
        let place = Network::loopback(1).places()[0].clone();
        PostgresServer::within(Path::new("/d"), Path::new("/bin"), place, 5432)
    }

    #[test]
    fn patroni_is_tuned_to_its_limits_or_left_as_it_is() {
        let text = |system, major| {
            let kind = PatroniKind { system, synchronous: false, major };
            patroni("server1", &server(), Path::new("/d"), "10.0.0.4:2379", kind)
        };
        let parsed: Value = serde_json::from_str(&text(System::PatroniTuned, 3)).unwrap();
        let dcs = &parsed["bootstrap"]["dcs"];
        assert_eq!((&dcs["ttl"], &dcs["primary_start_timeout"]), (&json!(20), &json!(0)));
        assert!(text(System::PatroniTuned, 2).contains("\"master_start_timeout\":0"));
        assert!(text(System::Patroni, 3).contains("\"ttl\":30"));
        assert!(!text(System::Patroni, 3).contains("start_timeout"));
        assert_eq!(parsed["postgresql"]["pg_hba"][0], json!("local all all trust"));
    }

    #[test]
    fn etcd_listens_where_patroni_asks() {
        let arguments = etcd("10.0.0.4", Path::new("/d"));
        assert!(arguments.contains(&"http://10.0.0.4:2379".to_owned()), "{arguments:?}");
    }
}
