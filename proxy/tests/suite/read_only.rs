//! Sessions and transactions that only read, and temporary tables beside reads, on a real primary and a real
//! standby.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio_postgres::{Client, SimpleQueryMessage};

struct World {
    primary: Postgres,
    standby: Postgres,
    _agent: Agent,
    proxy: Proxy,
}

async fn world() -> World {
    let primary = Postgres::primary(Access::Trust);
    let setup = "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); CREATE TABLE hidden (a int);
        CREATE FUNCTION counts() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM hidden'";
    primary.direct().await.batch_execute(setup).await.unwrap();
    let standby = primary.standby();
    standby.caught_up_with(&primary).await;
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    // WAL of what was rolled back is written late, and a session that begins meanwhile waits for it.
    let patient = "[routing]\ncausal_wait = '5s'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, patient).await;
    proxy.knows_catalogs().await;
    World { primary, standby, _agent: agent, proxy }
}

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    soon(client.simple_query(sql)).await.unwrap().iter().filter_map(row).collect()
}

async fn code(client: &Client, sql: &str) -> String {
    soon(client.simple_query(sql)).await.unwrap_err().code().unwrap().code().to_owned()
}

/// The port of the server that runs a read.
const WHERE: &str = "SELECT current_setting('pgherd.port')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_only_reads_may_run_on_a_standby() {
    let world = world().await;
    sessions_that_only_read(&world).await;
    transactions_that_turn_read_only(&world).await;
    serializable_by_default(&world).await;
    writes_pin_their_transaction(&world).await;
    prepared_by_sql(&world).await;
    temporary_tables(&world).await;
}

async fn sessions_that_only_read(world: &World) {
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    for (set, reset) in [
        ("SET default_transaction_read_only = on", "SET default_transaction_read_only = off"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        ),
    ] {
        let client = world.proxy.connect().await;
        client.batch_execute(set).await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby), "{set}");
        assert_eq!(code(&client, "INSERT INTO t VALUES (9)").await, "25006");
        client.batch_execute("ROLLBACK").await.unwrap();
        // It may change its mind as long as nothing ran.
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute("SET TRANSACTION READ WRITE").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (9)").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary));
        client.batch_execute("ROLLBACK").await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        simple(&client, WHERE).await;
        assert_eq!(code(&client, "SET TRANSACTION READ WRITE").await, "25001");
        client.batch_execute("ROLLBACK").await.unwrap();
        client.batch_execute(reset).await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary), "{reset}");
        client.batch_execute("COMMIT").await.unwrap();
    }
}

async fn transactions_that_turn_read_only(world: &World) {
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    let client = world.proxy.connect().await;
    // It may change its mind as long as nothing ran, and is held to what it said last.
    client.batch_execute("BEGIN -- for now").await.unwrap();
    client.batch_execute("SET TRANSACTION READ ONLY").await.unwrap();
    client.batch_execute("SET TRANSACTION READ WRITE").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (9)").await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute("BEGIN -- for now").await.unwrap();
    client.batch_execute("SET TRANSACTION READ ONLY").await.unwrap();
    assert_eq!(code(&client, "INSERT INTO t VALUES (9)").await, "25006");
    client.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("SET TRANSACTION READ ONLY").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    assert_eq!(simple(&client, "SELECT count(*) FROM t").await, ["2"]);
    client.batch_execute("SAVEPOINT a").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary));
    assert_eq!(code(&client, "INSERT INTO t VALUES (9)").await, "25006");
    client.batch_execute("ROLLBACK").await.unwrap();
    // Something ran already, or it keeps its snapshot.
    for begin in ["BEGIN; SELECT 1", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        client.batch_execute(begin).await.unwrap();
        client.batch_execute("SET TRANSACTION READ ONLY").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary), "{begin}");
        client.batch_execute("COMMIT").await.unwrap();
    }
    assert_eq!(simple(&client, WHERE).await, [standby]);
}

/// No standby runs such transactions.
async fn serializable_by_default(world: &World) {
    let client = world.proxy.connect().await;
    client.batch_execute("SET default_transaction_isolation = 'serializable'").await.unwrap();
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(simple(&client, "SELECT count(*) FROM t").await, ["2"]);
    assert_eq!(simple(&client, "SHOW transaction_isolation").await, ["serializable"]);
    client.batch_execute("COMMIT").await.unwrap();
}

async fn writes_pin_their_transaction(world: &World) {
    let client = world.proxy.connect().await;
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    client.batch_execute("SAVEPOINT a").await.unwrap();
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    assert_eq!(simple(&client, "SELECT count(*) FROM t").await, ["3"]);
    assert_eq!(simple(&client, WHERE).await, [world.primary.port().to_string()]);
    client.batch_execute("ROLLBACK").await.unwrap();
}

async fn prepared_by_sql(world: &World) {
    let client = world.proxy.connect().await;
    client.batch_execute("PREPARE p (int) AS SELECT a FROM t WHERE a = $1").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, [world.standby.port().to_string()]);
    assert_eq!(simple(&client, "EXECUTE p (2)").await, ["2"]);
    assert_eq!(simple(&client, "EXPLAIN EXECUTE p (2)").await.len(), 2);
    client.batch_execute("DEALLOCATE p").await.unwrap();
    assert_eq!(code(&client, "EXECUTE p (2)").await, "26000");
}

/// Reads beside a temporary table run on standbys, but for what may mean it.
async fn temporary_tables(world: &World) {
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    let client = world.proxy.connect().await;
    client.batch_execute("CREATE TEMP TABLE hidden (a int, b text)").await.unwrap();
    client.batch_execute("INSERT INTO hidden VALUES (7, 'x')").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    let there = format!("{WHERE} FROM t LIMIT 1");
    assert_eq!(simple(&client, &there).await, std::slice::from_ref(&standby));
    assert_eq!(simple(&client, "SELECT a FROM hidden").await, ["7"]);
    assert_eq!(simple(&client, "TABLE hidden").await, ["7"]);
    assert_eq!(simple(&client, "SELECT (row(1, 'y')::hidden).b").await, ["y"]);
    assert_eq!(simple(&client, "SELECT 'hidden'::regclass").await, ["hidden"]);
    // It is seen by what looks for names by itself.
    assert_eq!(simple(&client, "SELECT counts()").await, ["1"]);
    let visible = "SELECT count(*) FROM pg_class WHERE relname LIKE 'hidde_' AND pg_table_is_visible(oid)
        AND relnamespace <> 'public'::regnamespace";
    assert_eq!(simple(&client, visible).await, ["1"]);
    let row =
        soon(client.query_one("SELECT a, current_setting('pgherd.port') FROM hidden", &[])).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, String>(1)), (7, primary.clone()));
    // In a transaction on a standby, too.
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(simple(&client, &there).await, std::slice::from_ref(&standby));
    assert_eq!(simple(&client, "SELECT a FROM hidden").await, ["7"]);
    assert_eq!(simple(&client, &there).await, std::slice::from_ref(&primary));
    client.batch_execute("COMMIT").await.unwrap();
    // Other names for it, and what rests on it.
    client.batch_execute("ALTER TABLE hidden RENAME TO renamed").await.unwrap();
    client.batch_execute("CREATE VIEW over_it AS SELECT a + 1 AS a FROM renamed").await.unwrap();
    assert_eq!(simple(&client, "SELECT a FROM renamed").await, ["7"]);
    assert_eq!(simple(&client, "SELECT a FROM over_it").await, ["8"]);
    assert_eq!(simple(&client, &there).await, std::slice::from_ref(&standby));
    // A child of a table is in all that is read from it.
    client.batch_execute("CREATE TEMP TABLE child () INHERITS (t)").await.unwrap();
    client.batch_execute("INSERT INTO child VALUES (8)").await.unwrap();
    assert_eq!(simple(&client, "SELECT count(*) FROM t").await, ["3"]);
    client.batch_execute("DISCARD ALL").await.unwrap();
    assert_eq!(simple(&client, &there).await, [standby]);
    assert_eq!(simple(&client, "SELECT counts()").await, ["0"]);
}
