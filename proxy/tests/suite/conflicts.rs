//! A standby that cancels a read because recovery needs the way free: the primary answers instead, and the
//! client cannot tell, unless it has rows already.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use futures_util::StreamExt;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

struct World {
    primary: Postgres,
    standby: Postgres,
    _agent: Agent,
    proxy: Proxy,
}

async fn world() -> World {
    let primary = Postgres::primary(Access::Trust);
    let setup = "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)";
    primary.direct().await.batch_execute(setup).await.unwrap();
    let standby = primary.standby();
    let trust = "host all all 127.0.0.1/32 trust";
    standby.configure("max_standby_streaming_delay = 0\nmax_standby_archive_delay = 0", trust);
    standby.caught_up_with(&primary).await;
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    // Longer than WAL that nothing was committed in may lie about on the primary before it is written.
    let lines = "[routing]\ncausal_wait = '5s'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    proxy.knows_catalogs().await;
    World { primary, standby, _agent: agent, proxy }
}

impl World {
    /// A read that takes forever on the standby and no time on the primary, and tells its server.
    fn slow_read(&self) -> String {
        let rows = format!(
            "generate_series(1, CASE current_setting('pgherd.port') WHEN '{}' THEN 2000000000 ELSE 1 END)",
            self.standby.port()
        );
        format!(
            "SELECT current_setting('pgherd.port'), (SELECT count(*) FROM (SELECT {rows}) g), (SELECT count(*) FROM t)"
        )
    }

    /// Returns when a session is in that state on the standby, with a read of ours.
    async fn until_there_is(&self, state: &str) {
        let own = self.standby.direct().await;
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE state = '{state}' AND query LIKE '%t%' \
             AND pid <> pg_backend_pid() \
             AND pid IN (SELECT pid FROM pg_locks WHERE relation = 't'::regclass)"
        );
        soon(async {
            while own.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Recovery on the standby has to take away what a read there holds.
    async fn conflict(&self, sql: &str) {
        self.primary.direct().await.batch_execute(sql).await.unwrap();
    }
}

/// By a lock, and by rows that go.
const CONFLICTS: [&str; 2] = [
    "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; COMMIT",
    // VACUUM must not be part of a transaction.
    "DELETE FROM t WHERE a = 2",
];

async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    Ok(soon(client.simple_query(sql)).await?.iter().filter_map(row).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_recovery_cancels_are_answered_by_the_primary() {
    let world = world().await;
    let client = world.proxy.connect().await;
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    let read = world.slow_read();
    // In either protocol, by a lock and by a snapshot.
    for conflict in CONFLICTS {
        let run = rows(&client, &read);
        let disturb = async {
            world.until_there_is("active").await;
            world.conflict(conflict).await;
            world.conflict("VACUUM t").await;
        };
        let (answer, ()) = tokio::join!(run, disturb);
        assert_eq!(answer.unwrap(), std::slice::from_ref(&primary), "{conflict}");
        let statement = client.prepare(&read).await.unwrap();
        let run = soon(client.query_one(&statement, &[]));
        let disturb = async {
            world.until_there_is("active").await;
            world.conflict(CONFLICTS[0]).await;
        };
        let (answer, ()) = tokio::join!(run, disturb);
        assert_eq!(answer.unwrap().get::<_, String>(0), primary);
    }
    // It was no fault of the text: the standby still gets it.
    let short = "SELECT current_setting('pgherd.port') FROM t";
    assert_eq!(rows(&client, short).await.unwrap(), [standby]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_transactions_outlive_what_recovery_ends() {
    let world = world().await;
    let client = world.proxy.connect().await;
    let (primary, standby) = (world.primary.port().to_string(), world.standby.port().to_string());
    let short = "SELECT current_setting('pgherd.port') FROM t LIMIT 1";
    // In the middle of a statement.
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(rows(&client, short).await.unwrap(), std::slice::from_ref(&standby));
    let read = world.slow_read();
    let run = rows(&client, &read);
    let disturb = async {
        world.until_there_is("active").await;
        world.conflict(CONFLICTS[0]).await;
    };
    let (answer, ()) = tokio::join!(run, disturb);
    assert_eq!(answer.unwrap(), std::slice::from_ref(&primary));
    assert_eq!(rows(&client, short).await.unwrap(), std::slice::from_ref(&primary));
    client.batch_execute("COMMIT").await.unwrap();
    // Between two: its connection is ended.
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(rows(&client, short).await.unwrap(), std::slice::from_ref(&standby));
    world.until_there_is("idle in transaction").await;
    world.conflict(CONFLICTS[0]).await;
    world.standby.caught_up_with(&world.primary).await;
    assert_eq!(rows(&client, short).await.unwrap(), std::slice::from_ref(&primary));
    assert_eq!(rows(&client, "SHOW transaction_read_only").await.unwrap(), ["on"]);
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(rows(&client, short).await.unwrap(), [standby]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_has_begun_is_not_given_again() {
    let world = world().await;
    let client = world.proxy.connect().await;
    let answer = client.query_raw("SELECT generate_series(1, 2000000000) FROM t", &[] as &[i32]);
    let mut answer = std::pin::pin!(soon(answer).await.unwrap());
    assert_eq!(soon(answer.next()).await.unwrap().unwrap().get::<_, i32>(0), 1);
    world.conflict(CONFLICTS[0]).await;
    let mut last = 1;
    let error = soon(async {
        loop {
            match answer.next().await.unwrap() {
                Ok(row) => {
                    assert!(row.get::<_, i32>(0) > last, "an answer began anew");
                    last = row.get(0);
                }
                Err(error) => break error,
            }
        }
    })
    .await;
    assert_eq!(error.code().unwrap().code(), "40001");
    assert_eq!(rows(&client, "SELECT 1").await.unwrap(), ["1"], "the session goes on");
}
