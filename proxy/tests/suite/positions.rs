//! The position of a commit is asked for in one go with what commits: no client can tell.

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{NoTls, SimpleQueryMessage};

const LOGIN: &[u8] = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";

/// A client that says bytes, and hears messages.
struct Raw {
    stream: TcpStream,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// `Parse` of the unnamed statement.
fn parse(sql: &str) -> Vec<u8> {
    message(b'P', format!("\0{sql}\0\0\0").as_bytes())
}

/// `Bind` without parameters, `Execute`, `Sync`.
fn run() -> Vec<u8> {
    [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', b"")].concat()
}

impl Raw {
    async fn log_in(port: u16) -> Self {
        let mut raw = Self { stream: TcpStream::connect(("127.0.0.1", port)).await.unwrap() };
        raw.stream.write_all(LOGIN).await.unwrap();
        raw.hear().await;
        raw
    }

    /// Says this; the tags of the answer, with the status behind `Z`.
    async fn say(&mut self, bytes: &[u8]) -> String {
        self.stream.write_all(bytes).await.unwrap();
        self.hear().await
    }

    async fn hear(&mut self) -> String {
        let mut heard = String::new();
        loop {
            let (tag, body) = self.next().await;
            heard.push(char::from(tag));
            if tag == b'Z' || tag == b'G' {
                heard.extend(body.iter().take(1).map(|byte| char::from(*byte)).filter(|_| tag == b'Z'));
                return heard;
            }
        }
    }

    async fn next(&mut self) -> (u8, Vec<u8>) {
        let tag = soon(self.stream.read_u8()).await.unwrap();
        let length = soon(self.stream.read_u32()).await.unwrap();
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        soon(self.stream.read_exact(&mut body)).await.unwrap();
        (tag, body)
    }
}

struct World {
    primary: Postgres,
    standby: Postgres,
    agent: Agent,
    script: Script,
    proxy: Proxy,
}

async fn world(lines: &str) -> World {
    let primary = Postgres::primary(Access::Trust);
    let tables = "CREATE TABLE t (a int); CREATE TABLE d (a int REFERENCES e DEFERRABLE INITIALLY DEFERRED)";
    let tables = format!("CREATE TABLE e (a int PRIMARY KEY); {tables}");
    primary.direct().await.batch_execute(&tables).await.unwrap();
    let standby = primary.standby();
    let mut script = Script::new(&[&primary, &standby]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    proxy.knows_catalogs().await;
    World { primary, standby, agent, script, proxy }
}

async fn count(raw: &mut Raw) -> String {
    raw.stream.write_all(&query("SELECT count(*) FROM t")).await.unwrap();
    let mut row = String::new();
    loop {
        let (tag, body) = raw.next().await;
        match tag {
            b'D' => row = String::from_utf8(body[6..].to_vec()).unwrap(),
            b'Z' => return row,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_can_tell() {
    let world = world("").await;
    let mut raw = Raw::log_in(world.proxy.port()).await;
    let insert = "INSERT INTO t VALUES (1)";
    assert_eq!(raw.say(&query(insert)).await, "CZI");
    // The unnamed statement outlives the question.
    assert_eq!(raw.say(&[parse(insert), run()].concat()).await, "12CZI");
    assert_eq!(raw.say(&run()).await, "2CZI");
    assert_eq!(raw.say(&[run(), run(), query(insert)].concat()).await, "2CZI");
    assert_eq!((raw.hear().await, raw.hear().await), ("2CZI".to_owned(), "CZI".to_owned()));
    assert_eq!(count(&mut raw).await, "6");
    in_blocks(&mut raw, insert).await;
    assert_eq!(count(&mut raw).await, "8");
    // Data comes in, whatever the text looks like.
    for copy in
        ["COPY t FROM STDIN", "INSERT INTO t VALUES (1); COPY t FROM STDIN", "/* INSERT */ COPY t FROM STDIN"]
    {
        assert!(raw.say(&query(copy)).await.ends_with('G'), "{copy}");
        assert_eq!(raw.say(&[message(b'd', b"2\n"), message(b'c', b"")].concat()).await, "CZI", "{copy}");
    }
    assert_eq!(raw.say(&[parse("COPY t FROM STDIN"), run()].concat()).await, "12G");
    let data = [message(b'd', b"2\n"), message(b'c', b""), message(b'S', b"")].concat();
    assert_eq!(raw.say(&data).await, "CZI");
    assert_eq!(count(&mut raw).await, "13");
    // What the server shows of the session is what the session said.
    assert_eq!(raw.say(&query("INSERT INTO t SELECT 77")).await, "CZI");
    let direct = world.primary.direct().await;
    let shown =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'INSERT INTO t SELECT 77' AND state = 'idle'";
    soon(async { while direct.query_one(shown, &[]).await.unwrap().get::<_, i64>(0) == 0 {} }).await;
}

async fn in_blocks(raw: &mut Raw, insert: &str) {
    assert_eq!(raw.say(&query("BEGIN ISOLATION LEVEL REPEATABLE READ")).await, "CZT");
    // No snapshot was taken for a question.
    assert_eq!(raw.say(&query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")).await, "CZT");
    assert_eq!(raw.say(&query(insert)).await, "CZT");
    assert_eq!(raw.say(&query("COMMIT AND CHAIN")).await, "CZT");
    assert_eq!(raw.say(&query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")).await, "CZT");
    assert_eq!(raw.say(&query(insert)).await, "CZT");
    assert_eq!(raw.say(&[parse("COMMIT"), run()].concat()).await, "12CZI");
    // Failed blocks, and commits that fail.
    assert_eq!(raw.say(&query("BEGIN")).await, "CZT");
    assert_eq!(raw.say(&query("INSERT INTO nothing VALUES (1)")).await, "EZE");
    assert_eq!(raw.say(&query("COMMIT")).await, "CZI");
    assert_eq!(raw.say(&query("BEGIN")).await, "CZT");
    assert_eq!(raw.say(&[parse("INSERT INTO d VALUES (7)"), run()].concat()).await, "12CZT");
    assert_eq!(raw.say(&query("COMMIT")).await, "EZI");
    assert_eq!(raw.say(&query("BEGIN")).await, "CZT");
    let broken =
        [parse("INSERT INTO t VALUES (1/0)"), message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat();
    assert_eq!(raw.say(&[broken, parse("COMMIT"), run()].concat()).await, "1EZE");
    assert_eq!(raw.say(&query(insert)).await, "EZE");
    assert_eq!(raw.say(&query("ROLLBACK")).await, "CZI");
    assert_eq!(raw.say(&query("INSERT INTO d VALUES (7)")).await, "EZI");
    assert_eq!(raw.say(&query("DO 'BEGIN COMMIT; END'")).await, "CZI");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sent_before_it_left_is_run() {
    let world = world("").await;
    let direct = world.primary.direct().await;
    for n in 1..=20_i64 {
        let mut raw = Raw::log_in(world.proxy.port()).await;
        let insert = query("INSERT INTO t VALUES (1)");
        raw.stream.write_all(&insert.repeat(10)).await.unwrap();
        raw.stream.write_all(&message(b'X', b"")).await.unwrap();
        raw.stream.shutdown().await.unwrap();
        let all = async || direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0);
        soon(async { while all().await < n * 10 {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_one_after_the_other_and_cancels_between_them() {
    let world = world("").await;
    let client = world.proxy.connect().await;
    let token = client.cancel_token();
    let mut done = 0;
    for _ in 0..150 {
        let (insert, cancel) =
            tokio::join!(soon(client.simple_query("INSERT INTO t VALUES (1)")), token.cancel_query(NoTls));
        cancel.unwrap();
        match insert {
            Ok(_) => done += 1,
            Err(error) => assert_eq!(error.code().unwrap().code(), "57014"),
        }
        // Neither here nor later, whatever it hit.
        let seen = soon(client.query_one("SELECT count(*) FROM t", &[])).await;
        if let Ok(row) = seen {
            assert_eq!(row.get::<_, i64>(0), done);
        }
    }
    for _ in 0..300 {
        soon(client.simple_query("INSERT INTO t VALUES (1)")).await.unwrap();
    }
    let row = soon(client.query_one("SELECT count(*) FROM t", &[])).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), done + 300);
}

/// Stops the process that serves the session on the primary, or lets it go on.
fn signal(pid: &str, signal: &str) {
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args([signal, pid]).status().unwrap().success());
}

async fn process(client: &tokio_postgres::Client) -> String {
    let messages = soon(client.simple_query("SELECT pg_backend_pid()")).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_position_ends_when_something_happens() {
    let lines = "hold_timeout = '60s'\nconnect_timeout = '30s'\n[routing]\nread_consistency = 'global'";
    let mut world = world(lines).await;
    let client = world.proxy.connect().await;
    soon(client.simple_query("INSERT INTO t VALUES (1)")).await.unwrap();
    let (pid, token) = (process(&client).await, client.cancel_token());
    signal(&pid, "-STOP");
    let reading =
        tokio::spawn(async move { (client.query_one("SELECT count(*) FROM t", &[]).await, client) });
    let (cancelled, client) = soon(async {
        // The first may come before it waits.
        while !reading.is_finished() {
            token.cancel_query(NoTls).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reading.await.unwrap()
    })
    .await;
    assert_eq!(cancelled.unwrap_err().code().unwrap().code(), "57014");

    let mut reading = tokio::spawn(async move { client.query_one("SELECT count(*) FROM t", &[]).await });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut reading).await.is_err(), "it is frozen");
    world.standby.caught_up_with(&world.primary).await;
    world.standby.promote();
    let promoted = world.script.set_up(1, false).promoted(2);
    world.agent.push(promoted).await;
    assert_eq!(soon(reading).await.unwrap().unwrap().get::<_, i64>(0), 1);
    signal(&pid, "-CONT");
}
