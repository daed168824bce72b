//! The protocol byte by byte: what a server says to a client, the proxy says too.

use crate::harness::{Access, Agent, Postgres, Proxy, Raw, Script, message, soon};

struct World {
    primary: Postgres,
    standby: Postgres,
    proxy: Proxy,
    _agent: Agent,
}

const SCHEMA: &str = "
    CREATE TABLE t (n int PRIMARY KEY, s text);
    CREATE FUNCTION add(int) RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES ($1, $$called$$) RETURNING n';";

impl World {
    async fn start() -> Self {
        let primary = Postgres::primary(Access::Trust);
        primary.direct().await.batch_execute(SCHEMA).await.unwrap();
        let standby = primary.standby();
        let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
        let proxy = Proxy::start(&mut agent, Access::Trust).await;
        Self { primary, standby, proxy, _agent: agent }
    }

    /// Runs `script` past the proxy and through it: what was said, and what is in the table then.
    async fn compare(&self, what: &str, script: &[(Vec<u8>, &str)]) -> Vec<String> {
        let direct = self.run(self.primary.port(), script).await;
        let proxied = self.run(self.proxy.port(), script).await;
        assert_eq!(proxied, direct, "{what}");
        proxied.0
    }

    async fn run(&self, port: u16, script: &[(Vec<u8>, &str)]) -> (Vec<String>, String) {
        let admin = self.primary.direct().await;
        admin.batch_execute("TRUNCATE t; INSERT INTO t VALUES (100, 'old')").await.unwrap();
        let mut raw = Raw::log_in(port).await;
        let mut heard = Vec::new();
        for (bytes, tags) in script {
            raw.say(bytes).await;
            heard.extend(raw.until(tags).await);
            if heard.last().is_some_and(|last| last == "end") {
                break;
            }
        }
        // It is in a state to go on, and says nothing more of its own.
        raw.say(&query("SELECT 'still here'")).await;
        heard.extend(raw.until("Z").await);
        let rows = "SELECT coalesce(string_agg(n || left(s, 9) || length(s), ',' ORDER BY n), '') FROM t";
        (heard, admin.query_one(rows, &[]).await.unwrap().get(0))
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn query(sql: &str) -> Vec<u8> {
    message('Q', &text(sql))
}

fn parse(sql: &str) -> Vec<u8> {
    message('P', &[&text("")[..], &text(sql), b"\0\0"].concat())
}

fn bind() -> Vec<u8> {
    message('B', b"\0\0\0\0\0\0\0\0")
}

fn describe() -> Vec<u8> {
    message('D', b"P\0")
}

fn execute(rows: i32) -> Vec<u8> {
    message('E', &[&b"\0"[..], &rows.to_be_bytes()].concat())
}

/// Parse, Bind, Execute.
fn extended(sql: &str) -> Vec<u8> {
    [parse(sql), bind(), execute(0)].concat()
}

fn sync() -> Vec<u8> {
    message('S', b"")
}

fn flush() -> Vec<u8> {
    message('H', b"")
}

fn data(rows: &str) -> Vec<u8> {
    message('d', rows.as_bytes())
}

fn done() -> Vec<u8> {
    message('c', b"")
}

fn fail() -> Vec<u8> {
    message('f', &text("enough"))
}

/// A function call with texts for arguments.
fn call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut payload = [&oid.to_be_bytes()[..], b"\0\0"].concat();
    payload.extend(u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        payload.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        payload.extend(argument.as_bytes());
    }
    payload.extend(b"\0\0");
    message('F', &payload)
}

fn all(messages: &[Vec<u8>]) -> Vec<u8> {
    messages.concat()
}

const COPY: &str = "COPY t FROM STDIN";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_in_by_simple_queries() {
    let world = World::start().await;
    let long = format!("7\t{}\n", "x".repeat(300_000));
    let two = "INSERT INTO t VALUES (1, 'a'); COPY t FROM STDIN; SELECT 'between'; COPY t FROM STDIN; SELECT 'last'";
    for (what, script) in [
        ("success", vec![(query(COPY), "G"), (all(&[data("1\ta\n2"), data("\tb\n"), done()]), "Z")]),
        ("at once", vec![(all(&[query(COPY), data("1\ta\n"), done(), query("SELECT 2")]), "ZZ")]),
        ("fail", vec![(query(COPY), "G"), (all(&[data("1\ta\n"), fail()]), "Z")]),
        ("bad data", vec![(query(COPY), "G"), (all(&[data("no\n"), data("1\ta\n"), done()]), "Z")]),
        ("bad data, then silence", vec![(query(COPY), "G"), (data("no\n"), "Z")]),
        (
            "bad data, more of it, a query",
            vec![
                (query(COPY), "G"),
                (data("no\n"), "Z"),
                (all(&[data("2\tb\n"), done(), query("SELECT 3")]), "Z"),
            ],
        ),
        (
            "sync and flush inside",
            vec![(query(COPY), "G"), (all(&[sync(), data("1\ta\n"), flush(), sync(), done()]), "Z")],
        ),
        ("large", vec![(query(COPY), "G"), (all(&[data(&long), done()]), "Z")]),
        ("conflict at the end", vec![(query(COPY), "G"), (all(&[data("100\ta\n"), done()]), "Z")]),
        (
            "among others",
            vec![
                (query(two), "G"),
                (all(&[data("2\tb\n"), done()]), "G"),
                (all(&[data("3\tc\n"), done()]), "Z"),
            ],
        ),
        (
            "among others, at once",
            vec![(all(&[query(two), data("2\tb\n"), done(), data("3\tc\n"), done()]), "GGZ")],
        ),
        ("among others, the first fails", vec![(query(two), "G"), (all(&[data("2\tb\n"), fail()]), "Z")]),
        (
            "in a transaction",
            vec![
                (query("BEGIN; INSERT INTO t VALUES (1, 'a')"), "Z"),
                (query(COPY), "G"),
                (all(&[data("no\n"), done()]), "Z"),
                (query("SELECT 1"), "Z"),
                (query("ROLLBACK"), "Z"),
            ],
        ),
        ("a query inside", vec![(query(COPY), "G"), (query("SELECT 1"), "Z")]),
        ("a call inside", vec![(query(COPY), "G"), (all(&[data("1\ta\n"), call(154, &["1", "1"])]), "Z")]),
        ("a parse inside", vec![(query(COPY), "G"), (parse("SELECT 1"), "Z"), (sync(), "Z")]),
        ("outside", vec![(all(&[data("1\ta\n"), done(), fail(), query("SELECT 1")]), "Z")]),
        (
            "binary",
            vec![
                (query("COPY t (n) FROM STDIN (FORMAT binary)"), "G"),
                (message('d', b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\x09\xff\xff"), ""),
                (done(), "Z"),
            ],
        ),
    ] {
        world.compare(what, &script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_in_by_the_extended_protocol() {
    let world = World::start().await;
    let copy = || extended(COPY);
    let long = data(&format!("7\t{}\n", "x".repeat(300_000)));
    let bad = "no\n";
    for (what, script) in [
        (
            "as libpq does",
            vec![
                (all(&[parse(COPY), bind(), describe(), execute(0), sync()]), "G"),
                (all(&[data("1\ta\n"), done(), sync()]), "Z"),
            ],
        ),
        ("with a flush", vec![(all(&[copy(), flush()]), "G"), (all(&[data("1\ta\n"), done(), sync()]), "Z")]),
        ("at once", vec![(all(&[copy(), data("1\ta\n"), done(), sync(), query("SELECT 2")]), "ZZ")]),
        (
            "at once, behind a flush",
            vec![(
                all(&[copy(), flush(), data("1\ta\n"), data("2\tb\n"), done(), sync(), query("SELECT 2")]),
                "ZZ",
            )],
        ),
        (
            "at once, large",
            vec![(
                all(&[copy(), flush(), data("1\ta\n"), long.clone(), data("2\tb\n"), long, done(), sync()]),
                "Z",
            )],
        ),
        (
            "at once, syncs in vain",
            vec![(
                all(&[copy(), sync(), data("1\ta\n"), sync(), done(), sync(), extended("SELECT 2"), sync()]),
                "ZZ",
            )],
        ),
        ("fail", vec![(all(&[copy(), sync()]), "G"), (all(&[data("1\ta\n"), fail(), sync()]), "Z")]),
        (
            "bad data",
            vec![(all(&[copy(), sync()]), "G"), (all(&[data(bad), data(bad), done(), sync()]), "Z")],
        ),
        (
            "bad data, no end",
            vec![(all(&[copy(), flush()]), "G"), (data(bad), "E"), (all(&[sync(), query("SELECT 1")]), "ZZ")],
        ),
        (
            "bad data, an end, more",
            vec![
                (all(&[copy(), flush()]), "G"),
                (all(&[data(bad), done(), extended("SELECT 1"), sync(), extended("SELECT 2"), sync()]), "ZZ"),
            ],
        ),
        (
            "followed by more",
            vec![
                (all(&[copy(), flush()]), "G"),
                (all(&[data("1\ta\n"), done(), extended("SELECT count(*) FROM t"), sync()]), "Z"),
            ],
        ),
        (
            "two of them",
            vec![
                (all(&[copy(), flush()]), "G"),
                (all(&[data("1\ta\n"), done(), copy(), flush()]), "G"),
                (all(&[data("2\tb\n"), done(), extended("SELECT 2"), sync()]), "Z"),
            ],
        ),
        (
            "two of them at once",
            vec![(all(&[copy(), data("1\ta\n"), done(), copy(), data("2\tb\n"), done(), sync()]), "Z")],
        ),
        (
            "a second one that fails",
            vec![(all(&[copy(), data("1\ta\n"), done(), copy(), data(bad), done(), sync()]), "Z")],
        ),
        (
            "a parse inside",
            vec![
                (all(&[copy(), flush()]), "G"),
                (all(&[extended("SELECT 1"), sync(), query("SELECT 2")]), "ZZ"),
            ],
        ),
        ("a query inside", vec![(all(&[copy(), flush()]), "G"), (all(&[query("SELECT 1"), sync()]), "Z")]),
        ("outside", vec![(all(&[extended("SELECT 1"), data("1\ta\n"), done(), sync()]), "Z")]),
        (
            "behind an error",
            vec![(all(&[extended("SELECT nonsense"), copy(), data("1\ta\n"), done(), sync()]), "Z")],
        ),
    ] {
        world.compare(what, &script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_out() {
    let world = World::start().await;
    let fails = "COPY (SELECT 10 / (5 - n) FROM generate_series(1, 9) n) TO STDOUT";
    let large = "COPY (SELECT repeat('x', 200000) FROM generate_series(1, 3)) TO STDOUT";
    for (what, script) in [
        ("simple", vec![(query("COPY t TO STDOUT"), "Z")]),
        ("binary", vec![(query("COPY t TO STDOUT (FORMAT binary)"), "Z")]),
        ("large", vec![(query(large), "Z")]),
        ("an error within", vec![(query(fails), "Z")]),
        ("among others", vec![(query("SELECT 1; COPY t TO STDOUT; SELECT 2; COPY t TO STDOUT"), "Z")]),
        ("extended", vec![(all(&[extended("COPY t TO STDOUT"), sync()]), "Z")]),
        (
            "with a limit on rows",
            vec![(all(&[parse(large), bind(), describe(), execute(1), extended("SELECT 1"), sync()]), "Z")],
        ),
        ("extended, an error within", vec![(all(&[extended(fails), extended("SELECT 1"), sync()]), "Z")]),
        (
            "out and in",
            vec![
                (query("COPY t TO STDOUT; COPY t FROM STDIN; COPY t TO STDOUT"), "G"),
                (all(&[data("1\ta\n"), done()]), "Z"),
            ],
        ),
    ] {
        world.compare(what, &script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_are_used_behind_their_sync() {
    let world = World::start().await;
    let read = || all(&[extended("SELECT n FROM t"), sync()]);
    let again = |more: &[Vec<u8>]| all(&[execute(0), all(more), sync()]);
    for begin in ["BEGIN READ ONLY", "BEGIN"] {
        for (what, last) in [
            ("alone", again(&[])),
            ("described", all(&[describe(), execute(0), sync()])),
            ("before a read", again(&[extended("SELECT count(*) FROM t")])),
            ("before a write", again(&[extended("INSERT INTO t VALUES (1, 'a')")])),
            ("before one that is there for a part", again(&[parse("SELECT n FROM t"), bind(), execute(1)])),
        ] {
            let script = [(query(begin), "Z"), (read(), "Z"), (last, "Z"), (query("END"), "Z")];
            world.compare(&format!("{what}, behind {begin}"), &script).await;
        }
    }
    // What failed may have failed on a standby; what comes behind its end may not run there.
    for last in ["END; INSERT INTO t VALUES (1, 'a'); SELECT n FROM t", "ABORT; TRUNCATE t; TABLE t"] {
        let failed = [(query("BEGIN READ ONLY"), "Z"), (query("SELECT 1/0"), "Z"), (query(last), "Z")];
        world.compare("a write behind the end of a failed transaction", &failed).await;
    }
    // A transaction that follows another one in a chain only reads, even if that one failed.
    let write = "INSERT INTO t VALUES (1, 'a')";
    let chain = format!("ROLLBACK AND CHAIN; {write}");
    for begin in ["BEGIN READ ONLY", "BEGIN READ ONLY; SELECT 1"] {
        let chained = [begin, "COMMIT AND CHAIN", write, &chain, "END"].map(|sql| (query(sql), "Z"));
        world.compare(&format!("a chain behind {begin}"), &chained).await;
    }
    world.compare("outside of a transaction", &[(read(), "Z"), (again(&[]), "Z")]).await;
    let rebound =
        [all(&[message('C', b"S\0"), sync()]), all(&[bind(), execute(0), sync()])].map(|batch| (batch, "Z"));
    let rebound = [&[(query("BEGIN READ ONLY"), "Z"), (read(), "Z")][..], &rebound].concat();
    world.compare("a portal is there without its statement", &rebound).await;
    let named = |sql: &str| all(&[parse(sql), message('B', b"b\0\0\0\0\0\0\0\0"), sync()]);
    let begin = all(&[parse("BEGIN READ ONLY"), flush(), bind(), execute(0), named("SELECT n FROM t")]);
    let twice = [(begin, "Z"), (named("UPDATE t SET n = 1"), "Z"), (query("END"), "Z")];
    world.compare("a named portal behind a beginning that was flushed", &twice).await;
    let back =
        [extended("TABLE t"), flush(), message('B', b"b\0\0\0\0\0\0\0\0"), describe(), flush(), sync()]
            .concat();
    world.compare("a portal behind a flush", &[(back, "Z")]).await;
    let late = all(&[parse("SELECT 1"), flush(), query("BEGIN ISOLATION LEVEL SERIALIZABLE"), sync()]);
    world.compare("an isolation behind a read", &[(late, "ZZ"), (query("END"), "Z")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_prepared_twice_is_found_by_sql() {
    let world = World::start().await;
    let parse = |sql: &str| message('P', &[&text("p0")[..], &text(sql), b"\0\0"].concat());
    let bind = || message('B', b"\0p0\0\0\0\0\x01\0\0\0\x01x\0\0");
    let say = "SELECT $1::text || '!' AS t, length($1)";
    let script = [
        (all(&[message('C', b"Sp0\0"), parse(say), parse(say), sync()]), "Z"),
        (all(&[bind(), execute(0), sync()]), "Z"),
        (all(&[bind(), describe(), execute(0), extended("UPDATE t SET n = 1"), sync()]), "Z"),
        (query("ABORT; SELECT n FROM t; EXECUTE p0 (16)"), "Z"),
    ];
    world.compare("a name that was prepared twice", &script).await;
    let [notify, last] =
        ["DELETE FROM t WHERE n = 8; SELECT pg_notify('c', 'x')", "ABORT; SELECT n FROM t; EXECUTE p0 (16)"];
    let kept = [&[(query(notify), "Z")], &script[..]].concat();
    world.compare("the same in a session that keeps its connection", &kept).await;
    let aborted = [&[(query("SELECT 1; BEGIN READ ONLY"), "Z")], &script[..]].concat();
    world.compare("the same in a transaction that fails", &aborted).await;
    let freed = [
        (all(&[parse(say), sync()]), "Z"),
        (all(&[extended("DEALLOCATE ALL"), parse(say), bind(), execute(0), sync()]), "Z"),
        (all(&[parse(say), sync()]), "Z"),
        (all(&[bind(), execute(0), sync()]), "Z"),
        (query(last), "Z"),
    ];
    world.compare("a name that was freed and is taken again", &freed).await;
    let unfound = [
        (all(&[message('P', &[&text("p0")[..], &text("SELECT n FROM t"), b"\0\0"].concat()), sync()]), "Z"),
        (query("SET search_path = pg_catalog"), "Z"),
        (query("BEGIN"), "Z"),
        (query("INSERT INTO public.t VALUES (1, 'execute')"), "Z"),
        (query("END; EXECUTE p0"), "Z"),
    ];
    world
        .compare("a name that cannot be prepared any more, and may be used in a transaction", &unfound)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_are_called() {
    let world = World::start().await;
    let direct = world.primary.direct().await;
    let add: u32 = direct.query_one("SELECT 'add'::regproc::oid", &[]).await.unwrap().get(0);
    let divide = |by: &str| call(154, &["12", by]);
    for (what, script) in [
        ("success", vec![(divide("4"), "Z")]),
        ("an error", vec![(divide("0"), "Z"), (divide("3"), "Z")]),
        ("no such function", vec![(call(4_000_000_000, &[]), "Z")]),
        ("too few arguments", vec![(call(154, &["1"]), "Z")]),
        ("a write", vec![(call(add, &["1"]), "Z"), (query("SELECT count(*) FROM t"), "Z")]),
        ("one that conflicts", vec![(call(add, &["100"]), "Z"), (call(add, &["101"]), "Z")]),
        (
            "in a transaction",
            vec![
                (query("BEGIN"), "Z"),
                (call(add, &["1"]), "Z"),
                (call(add, &["2"]), "Z"),
                (query("COMMIT"), "Z"),
            ],
        ),
        ("rolled back", vec![(query("BEGIN"), "Z"), (call(add, &["1"]), "Z"), (query("ROLLBACK"), "Z")]),
        (
            "an error in a transaction",
            vec![
                (query("BEGIN"), "Z"),
                (call(add, &["1"]), "Z"),
                (divide("0"), "Z"),
                (call(add, &["2"]), "Z"),
                (query("COMMIT"), "Z"),
            ],
        ),
        (
            "in a reading transaction",
            vec![
                (query("BEGIN READ ONLY"), "Z"),
                (query("SELECT 1"), "Z"),
                (call(add, &["1"]), "Z"),
                (query("END"), "Z"),
            ],
        ),
        (
            "in a pipeline",
            vec![(all(&[extended("SELECT 1"), call(add, &["1"]), extended("SELECT 2"), sync()]), "ZZ")],
        ),
        (
            "behind an error in a pipeline",
            vec![(all(&[extended("SELECT nonsense"), call(add, &["1"]), call(add, &["2"]), sync()]), "Z")],
        ),
        (
            "one after the other",
            vec![(all(&[call(add, &["1"]), divide("0"), call(add, &["2"]), query("SELECT 3")]), "ZZZZ")],
        ),
        ("cut short", vec![(message('F', b"\0\0"), "Z")]),
    ] {
        world.compare(what, &script).await;
    }
    // It counts as a write, and what it wrote is seen on the standby.
    let mut raw = Raw::log_in(world.proxy.port()).await;
    let client = world.proxy.connect().await;
    let writes = async || {
        let nodes = client.query("SHOW NODES", &[]).await.unwrap();
        let count = |row: usize| nodes[row].get::<_, String>("write_cnt").parse::<u64>().unwrap();
        (count(0), count(1))
    };
    let before = writes().await;
    for n in 200..220 {
        raw.say(&call(add, &[&n.to_string()])).await;
        raw.until("Z").await;
        raw.say(&query(&format!("SELECT current_setting('pgherd.port'), count(*) FROM t WHERE n = {n}")))
            .await;
        let told = raw.until("Z").await;
        assert!(told[1].contains(r"\u{1}1"), "{told:?}");
    }
    assert_eq!(writes().await, (before.0 + 20, before.1));
    assert!(world.standby.port() > 0);
}

/// What is said to a first packet, up to the question for a password or the end.
async fn greeting(port: u16, packet: &[u8]) -> Vec<String> {
    let mut raw = Raw::connect(port).await;
    raw.say(packet).await;
    raw.until("R").await
}

fn start(version: (u16, u16), parameters: &[&str]) -> Vec<u8> {
    let mut payload = [version.0.to_be_bytes(), version.1.to_be_bytes()].concat();
    parameters.iter().for_each(|parameter| payload.extend(text(parameter)));
    payload.push(0);
    [&u32::try_from(payload.len() + 4).unwrap().to_be_bytes()[..], &payload].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_options_are_negotiated() {
    let world = World::start().await;
    let ann = &["user", "postgres", "database", "postgres"];
    let with = |more: &[&'static str]| [&ann[..], more].concat();
    for (what, packet, expected) in [
        ("3.0", start((3, 0), ann), "R "),
        ("3.2", start((3, 2), ann), "v "),
        ("3.1", start((3, 1), ann), "v "),
        ("3.9999", start((3, 9999), ann), "v "),
        ("an option", start((3, 0), &with(&["_pq_.command_tag", "1"])), "v "),
        ("3.2 and options", start((3, 2), &with(&["_pq_.a", "1", "_pq_.b", "", "work_mem", "9MB"])), "v "),
        ("4.0", start((4, 0), ann), "E "),
        ("0.0", start((0, 0), ann), "E "),
        ("unknown request", start((1234, 5700), &[]), "E "),
        ("replication", start((3, 0), &with(&["replication", "perhaps"])), "E "),
        ("nobody", start((3, 0), &["database", "postgres"]), "E "),
    ] {
        let direct = greeting(world.primary.port(), &packet).await;
        assert_eq!(greeting(world.proxy.port(), &packet).await, direct, "{what}");
        assert!(direct[0].starts_with(expected), "{what}: {direct:?}");
    }
    for version in [(2, 0), (2, 1), (1, 0)] {
        let old = start(version, &["user", "postgres"]);
        let mut answers = Vec::new();
        for port in [world.primary.port(), world.proxy.port()] {
            let mut raw = Raw::connect(port).await;
            raw.say(&old).await;
            answers.push(String::from_utf8(raw.read_out().await).unwrap());
        }
        assert_eq!(answers[1], answers[0]);
        assert!(answers[0].starts_with("EFATAL:  unsupported frontend protocol"), "{answers:?}");
    }

    // The session is one like any other.
    let mut raw = Raw::connect(world.proxy.port()).await;
    raw.say(&start((3, 2), &with(&["_pq_.a", "1", "work_mem", "9MB"]))).await;
    raw.until("Z").await;
    raw.say(&query("SHOW work_mem")).await;
    assert!(raw.until("Z").await[1].contains("9MB"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_long_end_the_connection() {
    let world = World::start().await;
    for (tag, counted) in
        [('Q', 0x3fff_ffff_u32), ('Q', 3), ('S', 10_001), ('d', 0x7fff_ffff), ('B', 0xffff_ffff)]
    {
        for copying in [false, true] {
            let mut raw = Raw::log_in(world.proxy.port()).await;
            if copying {
                raw.say(&query(COPY)).await;
                raw.until("G").await;
            }
            raw.say(&[&[tag as u8][..], &counted.to_be_bytes(), b"SELECT 1"].concat()).await;
            let told = raw.until("Z").await;
            let last = told.iter().rev().nth(1).unwrap();
            assert_eq!(last, "E SFATAL|VFATAL|C08P01|Minvalid message length", "{tag} {counted}");
            // The server itself says so to nobody but its log.
            let mut direct = Raw::log_in(world.primary.port()).await;
            direct.say(&[&[tag as u8][..], &counted.to_be_bytes(), b"SELECT 1"].concat()).await;
            assert_eq!(direct.until("Z").await, ["end"], "{tag} {counted}");
        }
    }
    assert!(world.primary.log().contains("invalid message length"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_and_leaves_has_written() {
    let world = World::start().await;
    let goodbye = message('X', b"");
    let direct = world.primary.direct().await;
    direct
        .batch_execute("CREATE FUNCTION own() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'")
        .await
        .unwrap();
    let insert = |n: usize| format!("INSERT INTO t VALUES ({n}, repeat('x', 100000)) RETURNING s");
    let mut written = 0;
    for round in 0..40 {
        let n = 1000 + 10 * round;
        let scripts = [
            query(&insert(n)),
            [extended(&insert(n)), sync()].concat(),
            // Its connection is closed, not passed on.
            query(&format!("SET my.own = '1'; CREATE TEMP TABLE own (); {}", insert(n))),
            [query(&format!("SELECT own(); {}", insert(n))), query("SELECT 1")].concat(),
            [query("CREATE TEMP TABLE own ()"), extended(&insert(n)), flush(), sync()].concat(),
        ];
        for script in &scripts[round % 5..=round % 5] {
            let mut raw = Raw::log_in(world.proxy.port()).await;
            raw.say(&[script.clone(), goodbye.clone()].concat()).await;
            let heard = raw.read_out().await;
            let heard = String::from_utf8_lossy(&heard);
            assert!(heard.contains("INSERT 0 1"), "round {round}: {heard}");
            written += 1;
        }
    }
    // Nothing of this was ended by a Sync.
    for unfinished in [extended(&insert(9000)), [extended(&insert(9001)), flush()].concat()] {
        let mut raw = Raw::log_in(world.proxy.port()).await;
        raw.say(&[unfinished, goodbye.clone()].concat()).await;
        raw.read_out().await;
    }
    // Connections that are on their way out are gone for the server, too.
    let left = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
                AND application_name = '' AND pid <> pg_backend_pid() AND query LIKE '%own%'";
    soon(async { while direct.query_one(left, &[]).await.unwrap().get::<_, i64>(0) > 0 {} }).await;
    let rows = "SELECT count(*) FROM t WHERE n >= 1000";
    assert_eq!(direct.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), written);
    let log = world.primary.log();
    for trouble in ["Broken pipe", "connection to client lost", "unexpected EOF", "reset by peer"] {
        assert!(!log.contains(trouble), "{log}");
    }
}
