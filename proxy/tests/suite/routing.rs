//! Statements end up on the right server, in both protocols, and sessions keep their state on all of them.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use tokio_postgres::{Client, SimpleQueryMessage};

struct World {
    primary: Postgres,
    standby: Postgres,
    _agent: Agent,
    proxy: Proxy,
}

async fn world() -> World {
    let primary = Postgres::primary(Access::Trust);
    primary
        .direct()
        .await
        .batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)")
        .await
        .unwrap();
    let standby = primary.standby();
    standby.caught_up_with(&primary).await;
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    proxy.knows_catalogs().await;
    World { primary, standby, _agent: agent, proxy }
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    texts(&soon(client.simple_query(sql)).await.unwrap())
}

/// The port of the server that runs a read.
const WHERE: &str = "SELECT current_setting('pgherd.port')";

/// The same on whichever server takes writes.
const WHERE_WRITES: &str = "SELECT current_setting('pgherd.port') FROM (SELECT random()) r";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_span_servers() {
    let world = world().await;
    reads_and_writes(&world).await;
    prepared_statements(&world).await;
    session_state(&world).await;
    copies(&world).await;
    cancels(&world).await;
    terminations(&world).await;
    refused_reads(&world).await;
    read_only_transactions(&world).await;
    catalog_facts(&world).await;
    pipelines(&world).await;
    own_answers(&world).await;
    large_messages(&world).await;
}

async fn reads_and_writes(world: &World) {
    let client = world.proxy.connect().await;
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    assert_eq!(simple(&client, WHERE_WRITES).await, std::slice::from_ref(&primary));
    let row = soon(client.query_one(WHERE, &[])).await.unwrap();
    assert_eq!(row.get::<_, String>(0), standby);
    assert_eq!(simple(&client, &format!("BEGIN; {WHERE}; COMMIT")).await, std::slice::from_ref(&primary));
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary));
    client.batch_execute("COMMIT").await.unwrap();
    client.batch_execute("CREATE TEMP TABLE x AS SELECT 1 AS a").await.unwrap();
    assert_eq!(simple(&client, "SELECT a FROM x").await, ["1"]);
    assert_eq!(simple(&client, &format!("{WHERE} FROM x")).await, [primary]);
    assert_eq!(simple(&client, WHERE).await, [standby]);
}

async fn prepared_statements(world: &World) {
    let client = world.proxy.connect().await;
    let read = client.prepare("SELECT a, current_setting('pgherd.port') FROM t WHERE a = $1").await.unwrap();
    let write = client.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
    let run = async |expected: u16| {
        let row = soon(client.query_one(&read, &[&2i32])).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, String>(1)), (2, expected.to_string()));
    };
    run(world.standby.port()).await;
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(client.execute(&write, &[&10i32]).await.unwrap(), 1);
    run(world.primary.port()).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    run(world.standby.port()).await;
    let error = client.prepare("SELECT nonsense FROM t").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42703");
    client.batch_execute("DEALLOCATE ALL").await.unwrap();
    let error = client.query(&read, &[&2i32]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "26000");
}

async fn session_state(world: &World) {
    let client = world.proxy.connect().await;
    simple(&client, WHERE).await;
    client.batch_execute("SET my.flag = 'up'").await.unwrap();
    assert_eq!(simple(&client, "SHOW my.flag").await, ["up"]);
    client.batch_execute("BEGIN; SET my.flag = 'down'; ROLLBACK").await.unwrap();
    assert_eq!(simple(&client, "SHOW my.flag").await, ["up"]);
    assert_eq!(simple(&client, "SELECT set_config('my.flag', 'left', false)").await, ["left"]);
    assert_eq!(simple(&client, "SELECT current_setting('my.flag')").await, ["left"]);
    assert_eq!(simple(&client, WHERE).await, [world.standby.port().to_string()]);
    client.batch_execute("SET search_path TO nowhere").await.unwrap();
    let error = client.simple_query("SELECT a FROM t").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42P01");
    client.batch_execute("DISCARD ALL").await.unwrap();
    assert!(!simple(&client, "SELECT a FROM t").await.is_empty());
    let (other, mut connection) = {
        let login = world.proxy.login("postgres", "secret", "postgres");
        tokio_postgres::connect(&login, tokio_postgres::NoTls).await.unwrap()
    };
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::spawn(async move {
        while let Some(Ok(message)) = future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                tell.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    other.batch_execute("LISTEN news").await.unwrap();
    client.batch_execute("NOTIFY news, 'hello'").await.unwrap();
    assert_eq!(soon(told.recv()).await.unwrap(), "hello", "notifications reach an idle session");
    listener.abort();
}

async fn copies(world: &World) {
    let client = world.proxy.connect().await;
    client.batch_execute("CREATE TABLE c (a int, b text)").await.unwrap();
    let sink = client.copy_in::<_, Bytes>("COPY c FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    for chunk in 0..200 {
        let lines: String = (0..100).map(|n| format!("{}\t{}\n", chunk * 100 + n, "x".repeat(100))).collect();
        sink.send(Bytes::from(lines)).await.unwrap();
    }
    assert_eq!(soon(sink.finish()).await.unwrap(), 20_000);
    world.standby.caught_up_with(&world.primary).await;
    let out = client.copy_out("COPY c TO STDOUT").await.unwrap();
    let bytes: usize =
        soon(out.map_ok(|chunk| chunk.len()).try_fold(0, async |sum, len| Ok(sum + len))).await.unwrap();
    assert!(bytes > 2_000_000);
    let sink = client.copy_in::<_, Bytes>("COPY c FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from("not a number\tx\n")).await.unwrap();
    let error = soon(sink.finish()).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22P02");
    assert_eq!(simple(&client, "SELECT count(*) FROM c").await, ["20000"], "the session goes on");
}

async fn cancels(world: &World) {
    let client = world.proxy.connect().await;
    let token = client.cancel_token();
    let query = client.batch_execute("SELECT pg_sleep(60)");
    let cancel = async {
        // The query has to be there before it can be cancelled.
        let watcher = world.primary.direct().await;
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()";
        while watcher.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (result, ()) = soon(future::join(query, cancel)).await;
    assert_eq!(result.unwrap_err().code().unwrap().code(), "57014");
    assert_eq!(simple(&client, "SELECT 1").await, ["1"]);
}

/// Whoever ends its own server process gets what it asked for; whoever lost it to another goes on.
async fn terminations(world: &World) {
    let (one, other) = (world.proxy.connect().await, world.proxy.connect().await);
    let pid = &simple(&other, "SELECT pg_backend_pid()").await[0];
    simple(&one, &format!("SELECT pg_terminate_backend({pid}, 5000)")).await;
    assert_eq!(simple(&other, "SELECT 1").await, ["1"]);
    assert_ne!(&simple(&other, "SELECT pg_backend_pid()").await[0], pid);
    let error = soon(one.simple_query("SELECT pg_terminate_backend(pg_backend_pid())")).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57P01");
    let error = soon(one.simple_query("SELECT 1")).await.unwrap_err();
    assert!(error.is_closed(), "{error:?}");
}

/// What looks like a read and is none is run on the primary, and remembered.
async fn refused_reads(world: &World) {
    let client = world.proxy.connect().await;
    let setup = "CREATE SEQUENCE q; CREATE VIEW hidden AS SELECT nextval('q') AS n";
    client.batch_execute(setup).await.unwrap();
    world.standby.caught_up_with(&world.primary).await;
    assert_eq!(simple(&client, "SELECT n FROM hidden").await, ["1"]);
    assert_eq!(simple(&client, "SELECT n FROM hidden").await, ["2"]);
    let row = soon(client.query_one("SELECT n + 0 FROM hidden", &[])).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 3);
    let error = client.simple_query("SELECT nothing FROM nowhere").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42P01");
}

/// They run on a standby for as long as it can serve them, and the client cannot tell.
async fn read_only_transactions(world: &World) {
    let client = world.proxy.connect().await;
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    for _ in 0..2 {
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
        let row = soon(client.query_one(WHERE, &[])).await.unwrap();
        assert_eq!(row.get::<_, String>(0), standby);
    }
    client.batch_execute("COMMIT").await.unwrap();
    // What only the primary can do takes the transaction there.
    for other in [
        "SELECT pg_advisory_xact_lock(1)",
        "SET LOCAL work_mem = '1MB'",
        "SET LOCAL work_mem = '1MB'; SELECT 1",
        "SELECT txid_current()",
        "SAVEPOINT a",
        "LISTEN a",
    ] {
        client.batch_execute("START TRANSACTION READ ONLY").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
        client.batch_execute(other).await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary), "{other}");
        assert_eq!(simple(&client, "SHOW transaction_read_only").await, ["on"]);
        let error = client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25006");
        let error = client.simple_query(WHERE).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25P02");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    }
    // A standby does not have the last word on what fails.
    client.batch_execute("CREATE UNLOGGED TABLE IF NOT EXISTS unlogged (a int)").await.unwrap();
    world.standby.caught_up_with(&world.primary).await;
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert!(simple(&client, "SELECT a FROM unlogged").await.is_empty());
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&primary));
    client.batch_execute("COMMIT").await.unwrap();
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    let row = soon(client.query_one("SELECT count(*) FROM unlogged", &[])).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
    let error = client.simple_query("SELECT 1 / 0").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    client.batch_execute("ROLLBACK").await.unwrap();
    // Those that keep a snapshot cannot go on elsewhere.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.unwrap();
    assert_eq!(simple(&client, WHERE).await, [primary]);
    client.batch_execute("COMMIT").await.unwrap();
    // What the session wrote is there.
    client.batch_execute("CREATE TABLE own (a int); INSERT INTO own VALUES (1)").await.unwrap();
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(simple(&client, "SELECT a FROM own").await, ["1"]);
    client.batch_execute("COMMIT").await.unwrap();
}

/// Functions and views go where the catalogs say, soon after they come to be.
async fn catalog_facts(world: &World) {
    let client = world.proxy.connect().await;
    let setup = "
        CREATE VIEW ports AS SELECT current_setting('pgherd.port') AS setting;
        CREATE FUNCTION here() RETURNS text STABLE LANGUAGE sql AS $$ SELECT version() $$;
        CREATE FUNCTION adds() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (77); RETURN 1; END $$;
        CREATE FUNCTION keeps() RETURNS int LANGUAGE sql AS $$ SET my.flag = 'kept'; SELECT 1 $$;
        CREATE UNLOGGED TABLE loose (a int);
        CREATE VIEW over_loose AS SELECT a FROM loose;
        CREATE VIEW plain AS SELECT a, lower('X') FROM t;
        CREATE VIEW drawn AS SELECT a, random() FROM t";
    client.batch_execute(setup).await.unwrap();
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    let from = |relation: &str| format!("SELECT current_setting('pgherd.port') FROM {relation} LIMIT 1");
    // Until they are known the session stays with the primary, but not for good.
    let with = |function: &str| format!("SELECT current_setting('pgherd.port'), {function}()");
    assert_eq!(simple(&client, &with("adds")).await, std::slice::from_ref(&primary));
    soon(async {
        while simple(&client, &with("here")).await != [standby.as_str()] {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(simple(&client, &from("plain")).await, std::slice::from_ref(&standby));
    assert_eq!(simple(&client, &with("adds")).await, std::slice::from_ref(&primary));
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    for relation in ["drawn", "ports"] {
        assert_eq!(simple(&client, &from(relation)).await, std::slice::from_ref(&primary), "{relation}");
    }
    client.batch_execute("INSERT INTO loose VALUES (1)").await.unwrap();
    assert_eq!(simple(&client, &from("over_loose")).await, std::slice::from_ref(&primary));
    client
        .batch_execute("CREATE OR REPLACE VIEW plain AS SELECT a, lower('X') FROM t WHERE random() < 2")
        .await
        .unwrap();
    assert_eq!(simple(&client, &from("plain")).await, std::slice::from_ref(&primary));
    assert_eq!(simple(&client, WHERE).await, std::slice::from_ref(&standby));
    simple(&client, &with("keeps")).await;
    assert_eq!(simple(&client, WHERE).await, [primary]);
    assert_eq!(simple(&client, "SHOW my.flag").await, ["kept"]);
}

async fn pipelines(world: &World) {
    let client = world.proxy.connect().await;
    let read = client.prepare("SELECT a FROM t WHERE a = $1").await.unwrap();
    let write = client.prepare("INSERT INTO t SELECT $1 WHERE false").await.unwrap();
    let one = |a: i32| {
        let (client, read, write) = (&client, &read, &write);
        async move {
            let read = client.query(read, &[&1i32]);
            let failing = client.query("SELECT 1 / (a - 1) FROM t WHERE a = 1", &[]);
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&a];
            let write = client.execute(write, &parameters);
            let (read, failing, write) = future::join3(read, failing, write).await;
            assert_eq!(read.unwrap().len(), 1);
            assert_eq!(failing.unwrap_err().code().unwrap().code(), "22012");
            assert_eq!(write.unwrap(), 0);
        }
    };
    soon(future::join_all((0..50).map(one))).await;
}

async fn own_answers(world: &World) {
    let client = world.proxy.connect().await;
    simple(&client, "SELECT 1").await;
    let rows = soon(client.query("SHOW POOL_NODES", &[])).await.unwrap();
    assert_eq!((rows.len(), rows[0].columns().len()), (2, 14));
    assert_eq!(rows[1].get::<_, String>("role"), "standby");
    assert_eq!(rows[1].get::<_, String>("load_balance_node"), "true");
    assert_eq!(simple(&client, "show nodes;").await, ["1", "2"]);
    assert_eq!(simple(&client, "SHOW TOPOLOGY").await[..3], ["version", "primary", "change"]);
    assert_eq!(simple(&client, "SHOW POOL_VERSION").await.len(), 1);
}

async fn large_messages(world: &World) {
    let client = world.proxy.connect().await;
    let megabytes = "x".repeat(3 << 20);
    let row = soon(client.query_one("SELECT $1::text", &[&megabytes])).await.unwrap();
    assert!(row.get::<_, &str>(0) == megabytes);
    let sql = format!("SELECT length('{megabytes}')");
    assert_eq!(simple(&client, &sql).await, [megabytes.len().to_string()]);
    let row = soon(client.query_one(&sql, &[])).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 3 << 20);
    let rows = client
        .query_raw("SELECT repeat('y', 1000) FROM generate_series(1, 20000)", &[] as &[i32])
        .await
        .unwrap();
    let mut rows = std::pin::pin!(rows);
    let mut count = 0;
    while let Some(row) = soon(rows.next()).await {
        assert_eq!(row.unwrap().get::<_, &str>(0).len(), 1000);
        count += 1;
    }
    assert_eq!(count, 20_000);
}
