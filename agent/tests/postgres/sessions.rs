//! What a cluster, a database or a role sets for sessions is not meant for an agent's.

use std::time::Duration;

use pgherd_agent::observation::{PostgresState, RemoteDatabase};
use pgherd_agent::postgres::Instance;
use tokio_postgres::{Client, Config, NoTls};

use super::server::Server;

/// Settings that would have an agent see nothing, or something else than there is; and what the test itself has instead.
const HOSTILE: [(&str, &str, &str); 10] = [
    ("default_transaction_isolation", "serializable", "read\\ committed"),
    ("default_transaction_read_only", "on", "off"),
    ("default_transaction_deferrable", "on", "off"),
    ("search_path", "hostile, pg_catalog", "pg_catalog"),
    ("statement_timeout", "1", "0"),
    ("lock_timeout", "1", "0"),
    ("idle_in_transaction_session_timeout", "1", "0"),
    ("idle_session_timeout", "200", "0"),
    // A time of India as this prints it is read as one of Israel.
    ("datestyle", "'SQL, DMY'", "ISO"),
    ("timezone", "'Asia/Kolkata'", "UTC"),
];

const SYSTEM: &str = "SYSTEM";

/// Whose settings they are, the strongest last.
const OF: [&str; 4] = [SYSTEM, "DATABASE postgres", "ROLE postgres", "ROLE postgres IN DATABASE postgres"];

/// A look-alike of what agents ask, found first where `hostile` is searched first.
const LIES: &str = "CREATE SCHEMA hostile; \
    CREATE FUNCTION hostile.pg_is_in_recovery() RETURNS bool LANGUAGE sql \
        AS 'SELECT NOT pg_catalog.pg_is_in_recovery()'; \
    CREATE VIEW hostile.pg_stat_replication AS SELECT * FROM pg_catalog.pg_stat_replication WHERE false; \
    CREATE VIEW hostile.pg_replication_slots AS SELECT * FROM pg_catalog.pg_replication_slots WHERE false";

/// A session for which none of it counts.
async fn calm(server: &Server) -> Client {
    let own = HOSTILE.map(|(name, _, calm)| format!("-c {name}={calm}")).join(" ");
    let mut config = Config::new();
    config.host_path(server.root()).port(server.settings.address.port).user("postgres").options(own);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Has the settings of the cluster, the database or the role be hostile, or as they were.
async fn set(server: &Server, of: &str, hostile: bool) {
    let client = calm(server).await;
    for (name, value, _) in HOSTILE {
        let change = if hostile { format!("SET {name} = {value}") } else { format!("RESET {name}") };
        client.batch_execute(&format!("ALTER {of} {change}")).await.unwrap();
    }
    if of == SYSTEM {
        reload(server, &client).await;
    }
}

/// Returns when new sessions have what the files say now.
async fn reload(server: &Server, client: &Client) {
    let asked: String = client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0);
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let known = format!("SELECT pg_conf_load_time() >= '{asked}'");
    while !calm(server).await.query_one(&known, &[]).await.unwrap().get::<_, bool>(0) {}
}

/// What a standby has replayed knows of all that the primary's roles and databases set.
async fn caught_up(standby: &Server, primary: &Server) {
    let sql = "SELECT pg_current_wal_flush_lsn()::text";
    let end: String = calm(primary).await.query_one(sql, &[]).await.unwrap().get(0);
    let client = calm(standby).await;
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    while !client.query_one(&reached, &[]).await.unwrap().get::<_, bool>(0) {}
}

/// An agent that starts now sees both servers as they are, and can act.
async fn sees_what_there_is(of: &str, n1: &Server, n2: &Server) {
    let primary = Instance::open(n1.settings.clone()).await.unwrap();
    let standby = Instance::open(n2.settings.clone()).await.unwrap();
    for _ in 0..2 {
        let seen = primary.observe().await;
        let PostgresState::Running(running) = &seen.state else { panic!("{of}: {seen:?}") };
        assert!(!running.in_recovery, "{of}: {running:?}");
        let standbys: Vec<_> =
            running.standbys.iter().map(|up| (up.name.as_str(), up.state.as_str())).collect();
        assert_eq!(standbys, [("n2", "streaming")], "{of}");
        assert_eq!(running.slots.len(), 1, "{of}: {running:?}");
        let seen = standby.observe().await;
        let PostgresState::Running(running) = &seen.state else { panic!("{of}: {seen:?}") };
        assert!(running.in_recovery && running.is_streaming(), "{of}: {running:?}");
        // Longer than a session may be idle.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(primary.knock(&n2.settings.address).await, RemoteDatabase::InRecovery, "{of}");
    assert_eq!(standby.knock(&n1.settings.address).await, RemoteDatabase::Writable, "{of}");
    primary.align_slots(&["n2".parse().unwrap()].into(), false).await.unwrap();
    primary.checkpoint().await.unwrap();
    primary.let_in().await.unwrap();
}

#[tokio::test]
async fn nothing_that_a_cluster_a_database_or_a_role_sets_changes_what_an_agent_sees() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    n1.sql(LIES).await;
    for of in OF {
        set(&n1, of, true).await;
        if of == SYSTEM {
            set(&n2, of, true).await;
        }
        caught_up(&n2, &n1).await;
        sees_what_there_is(of, &n1, &n2).await;
        set(&n1, of, false).await;
        if of == SYSTEM {
            set(&n2, of, false).await;
        }
    }
    for server in [&n1, &n2] {
        let log = std::fs::read_to_string(&server.settings.log_file).unwrap();
        let ended: Vec<_> =
            log.lines().filter(|line| line.contains("due to") && line.contains("timeout")).collect();
        assert!(ended.is_empty(), "no session of an agent's may be cut short: {ended:?}");
    }
}
