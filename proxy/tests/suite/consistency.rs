//! Reads see what their session wrote, however far the standby is behind.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio_postgres::{Client, SimpleQueryMessage};

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    soon(client.simple_query(sql)).await.unwrap().iter().filter_map(row).collect()
}

struct World {
    primary: Postgres,
    standby: Postgres,
}

impl World {
    async fn start() -> Self {
        let primary = Postgres::primary(Access::Trust);
        primary.direct().await.batch_execute("CREATE TABLE t (a int)").await.unwrap();
        let standby = primary.standby();
        Self { primary, standby }
    }

    async fn proxy(&self, consistency: &str) -> (Agent, Proxy) {
        let mut agent = Agent::start(Some(Script::new(&[&self.primary, &self.standby]).steady())).await;
        let lines = format!("[routing]\nread_consistency = '{consistency}'\ncausal_wait = '50ms'");
        let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
        proxy.knows_catalogs().await;
        (agent, proxy)
    }

    async fn replay(&self, what: &str) {
        let sql = format!("SELECT pg_wal_replay_{what}()");
        self.standby.direct().await.batch_execute(&sql).await.unwrap();
    }

    async fn empty(&self) {
        self.primary.direct().await.batch_execute("TRUNCATE t").await.unwrap();
        self.standby.caught_up_with(&self.primary).await;
    }
}

const COUNT: &str = "SELECT count(*) FROM t";
const WHERE: &str = "SELECT current_setting('pgherd.port')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_sees_what_it_wrote() {
    let world = World::start().await;
    eventual_reads_may_be_old(&world).await;
    own_writes_are_seen(&world).await;
    writes_of_others_are_seen(&world).await;
}

/// The counter-check: the standby is really behind.
async fn eventual_reads_may_be_old(world: &World) {
    let (_agent, proxy) = world.proxy("eventual").await;
    world.empty().await;
    let client = proxy.connect().await;
    world.replay("pause").await;
    simple(&client, "INSERT INTO t VALUES (1)").await;
    assert_eq!(simple(&client, COUNT).await, ["0"]);
    simple(&client, "SET pgherd.read_consistency = 'session'").await;
    assert_eq!(simple(&client, COUNT).await, ["1"]);
    world.replay("resume").await;
}

async fn own_writes_are_seen(world: &World) {
    let (_agent, proxy) = world.proxy("session").await;
    world.empty().await;
    let client = proxy.connect().await;
    let standby = world.standby.port().to_string();
    world.replay("pause").await;
    for n in 1..20 {
        simple(&client, "INSERT INTO t VALUES (1)").await;
        assert_eq!(simple(&client, COUNT).await, [n.to_string()]);
    }
    simple(&client, "BEGIN; INSERT INTO t VALUES (1)").await;
    simple(&client, "COMMIT").await;
    let row = soon(client.query_one(COUNT, &[])).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 20);
    // A script opens one connection after the other.
    assert_eq!(simple(&proxy.connect().await, COUNT).await, ["20"]);
    world.replay("resume").await;
    world.standby.caught_up_with(&world.primary).await;
    assert_eq!(simple(&client, WHERE).await, [standby.as_str()], "it has caught up");
    for n in 21..200 {
        simple(&client, "INSERT INTO t VALUES (1)").await;
        assert_eq!(simple(&client, COUNT).await, [n.to_string()]);
    }
    assert_eq!(simple(&client, WHERE).await, [standby], "it is waited for");
    for n in 200..230 {
        let lazy = "BEGIN; SET LOCAL synchronous_commit = off; INSERT INTO t VALUES (1); COMMIT";
        simple(&client, lazy).await;
        assert_eq!(simple(&client, COUNT).await, [n.to_string()]);
    }
}

async fn writes_of_others_are_seen(world: &World) {
    let (_agent, proxy) = world.proxy("global").await;
    world.empty().await;
    let (one, other) = (proxy.connect().await, proxy.connect().await);
    for n in 1..50 {
        simple(&one, "INSERT INTO t VALUES (1)").await;
        assert_eq!(simple(&other, COUNT).await, [n.to_string()]);
    }
    assert_eq!(simple(&other, WHERE).await, [world.standby.port().to_string()]);
}
