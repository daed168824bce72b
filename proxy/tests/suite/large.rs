//! Messages of hundreds of MB, and peers that do not read: the proxy's memory stays as it is.

#![allow(clippy::print_stdout, reason = "figures")]

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Process, Raw, Script, message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Servers take their time for so much.
const LONG: Duration = Duration::from_secs(120);

/// What the proxy may need more than before.
const GROWTH_MB: u64 = 8;

struct World {
    primary: Postgres,
    proxy: Process,
    _agent: Agent,
}

impl World {
    async fn start() -> Self {
        let primary = Postgres::primary(Access::Trust);
        let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
        let proxy = Process::start(&mut agent, Access::Trust, "").await;
        Self { primary, proxy, _agent: agent }
    }

    /// A client, and what the proxy needed until it came.
    async fn client(&self) -> (Raw, u64) {
        let mut raw = Raw::log_in(self.proxy.port).await;
        raw.say(&query("SELECT 1")).await;
        raw.until("Z").await;
        (raw, self.proxy.memory_peak_mb())
    }

    fn assert_small(&self, before: u64, what: &str) {
        let after = self.proxy.memory_peak_mb();
        println!("{what}: {before} MB before, {after} MB at most");
        assert!(after <= before + GROWTH_MB, "{what}: {before} MB before, {after} MB at most");
    }
}

fn query(sql: &str) -> Vec<u8> {
    message('Q', &[sql.as_bytes(), b"\0"].concat())
}

/// Says a message of so many bytes between these two parts.
async fn say_large(raw: &mut Raw, tag: u8, before: &[u8], middle: usize, after: &[u8]) {
    let length = u32::try_from(4 + before.len() + middle + after.len()).unwrap().to_be_bytes();
    raw.say(&[&[tag][..], &length, before].concat()).await;
    let chunk = vec![b'x'; 1 << 20];
    let mut left = middle;
    while left > 0 {
        let now = left.min(chunk.len());
        timeout(LONG, raw.stream.write_all(&chunk[..now])).await.unwrap().unwrap();
        left -= now;
    }
    raw.say(after).await;
}

/// Reads so many bytes and forgets them.
async fn swallow(raw: &mut Raw, mut bytes: usize) {
    let mut buffer = vec![0; 1 << 20];
    while bytes > 0 {
        let room = bytes.min(buffer.len());
        let read = timeout(LONG, raw.stream.read(&mut buffer[..room])).await.unwrap().unwrap();
        assert!(read > 0);
        bytes -= read;
    }
}

/// Reads messages up to `ReadyForQuery`, and counts their bytes.
async fn swallow_answer(raw: &mut Raw) -> usize {
    let mut bytes = 0;
    loop {
        let mut head = [0; 5];
        timeout(LONG, raw.stream.read_exact(&mut head)).await.unwrap().unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        swallow(raw, length - 4).await;
        bytes += length + 1;
        if head[0] == b'Z' {
            return bytes;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_row_passes_through() {
    const ROW: usize = 520_000_000;
    let world = World::start().await;
    let (mut raw, before) = world.client().await;
    raw.say(&query(&format!("SELECT repeat('x', {ROW}), 'behind'"))).await;
    // RowDescription, then the row's head: all but the last columns' bytes are forgotten.
    let mut head = [0; 5];
    for expected in [b'T', b'D'] {
        timeout(LONG, raw.stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(head[0], expected);
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if expected == b'D' {
            assert_eq!(length, 4 + 2 + 4 + ROW + 4 + 6);
        }
        swallow(&mut raw, length - 4).await;
    }
    let told = raw.until("Z").await;
    assert_eq!(told[0], "C \"SELECT 1\\0\"", "{told:?}");
    world.assert_small(before, "a row of 520 MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_queries_parameters_and_copies_pass_through() {
    const MANY: usize = 256 << 20;
    let world = World::start().await;
    world.primary.direct().await.batch_execute("CREATE TABLE t (s text)").await.unwrap();
    let (mut raw, before) = world.client().await;
    let is = |told: &[String], what: &str| assert!(told.iter().any(|line| line.contains(what)), "{told:?}");

    say_large(&mut raw, b'Q', b"SELECT length('", MANY, b"')\0").await;
    is(&patient(&mut raw, "Z").await, &MANY.to_string());
    world.assert_small(before, "a query of 256 MB");

    let parse = message('P', b"\0SELECT length($1::text)\0\0\0");
    raw.say(&parse).await;
    let size = u32::try_from(MANY).unwrap().to_be_bytes();
    say_large(&mut raw, b'B', &[&b"\0\0\0\0\0\x01"[..], &size].concat(), MANY, b"\0\0").await;
    raw.say(&[message('E', b"\0\0\0\0\0"), message('S', b"")].concat()).await;
    is(&patient(&mut raw, "Z").await, &MANY.to_string());
    world.assert_small(before, "a parameter of 256 MB");

    raw.say(&query("COPY t FROM STDIN")).await;
    raw.until("G").await;
    say_large(&mut raw, b'd', b"", MANY, b"\n").await;
    raw.say(&message('c', b"")).await;
    is(&patient(&mut raw, "Z").await, "COPY 1");
    raw.say(&query("SELECT length(s) FROM t")).await;
    is(&patient(&mut raw, "Z").await, &MANY.to_string());
    world.assert_small(before, "a line of 256 MB copied in");

    // The longest that a server takes is taken, though not understood.
    let longest = (1 << 30) - 2 - 4 - 1;
    say_large(&mut raw, b'Q', b"", longest, b"\0").await;
    let told = patient(&mut raw, "Z").await;
    is(&told, "E SERROR");
    world.assert_small(before, "a query of 1 GB");
}

/// Like [`Raw::until`], for servers that have much to do.
async fn patient(raw: &mut Raw, tags: &str) -> Vec<String> {
    timeout(LONG, raw.stream.readable()).await.unwrap().unwrap();
    raw.until(tags).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_up_nobody_but_itself() {
    let world = World::start().await;
    let direct = world.primary.direct().await;
    let waits = async |event: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'");
        timeout(LONG, async { while direct.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {} })
            .await
            .unwrap();
    };
    let rows = 400;
    for sql in [
        format!("SELECT repeat('x', 1000000) FROM generate_series(1, {rows})"),
        format!("COPY (SELECT repeat('x', 1000000) FROM generate_series(1, {rows})) TO STDOUT"),
        format!(
            "SELECT repeat(repeat('x', 100), 10000) FROM (SELECT random()) r, generate_series(1, {rows})"
        ),
    ] {
        let (mut raw, before) = world.client().await;
        raw.say(&query(&sql)).await;
        waits("ClientWrite").await;
        world.assert_small(before, "a client that does not read");
        assert!(swallow_answer(&mut raw).await > rows * 1_000_000);
        world.assert_small(before, "a client that reads in the end");
    }

    // A server that does not read, in the middle of a COPY and between queries.
    direct
        .batch_execute(
            "CREATE TABLE t (s text);
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock_shared(5); RETURN new; END $$;
         CREATE TRIGGER wait BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION wait();
         SELECT pg_advisory_lock(5);",
        )
        .await
        .unwrap();
    for copying in [true, false] {
        let (mut raw, before) = world.client().await;
        if copying {
            raw.say(&query("COPY t FROM STDIN")).await;
            raw.until("G").await;
            raw.say(&message('d', b"x\n")).await;
        } else {
            raw.say(&query("SELECT pg_advisory_xact_lock_shared(5)")).await;
        }
        let line = [vec![b'y'; 99_999], vec![b'\n']].concat();
        let one =
            if copying { message('d', &line) } else { query(&format!("SELECT '{}'", "y".repeat(100_000))) };
        let sent = full(&mut raw, &one).await;
        waits("advisory").await;
        println!("a server that does not read: {} kB are on their way", sent / 1000);
        assert!(sent < 64_000_000, "{sent}");
        world.assert_small(before, "a server that does not read");
    }
}

/// Writes the same until nothing goes any more; how many bytes went.
async fn full(raw: &mut Raw, one: &[u8]) -> usize {
    let mut sent = 0;
    while sent < 128_000_000 {
        match timeout(Duration::from_millis(500), raw.stream.write(&one[sent % one.len()..])).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    sent
}
