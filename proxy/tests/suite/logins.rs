//! Who gets in, who does not, and what strangers are told.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

async fn refused(proxy: &Proxy, user: &str, password: &str, database: &str) -> (String, String) {
    let login = proxy.login(user, password, database);
    let error = soon(tokio_postgres::connect(&login, NoTls)).await.err().expect("let in");
    let error = error.as_db_error().unwrap_or_else(|| panic!("not an error of a server: {error}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_checked_against_the_clusters_own_verifiers() {
    let primary = Postgres::primary(Access::Scram);
    let direct = primary.direct().await;
    direct.batch_execute("CREATE ROLE ann LOGIN PASSWORD 'ännchen'; CREATE ROLE bob NOLOGIN").await.unwrap();
    let standby = primary.standby();
    standby.caught_up_with(&primary).await;
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Scram).await;

    let login = proxy.login("ann", "ännchen", "postgres");
    let (ann, connection) = soon(tokio_postgres::connect(&login, NoTls)).await.unwrap();
    let connection = tokio::spawn(connection);
    let read = "SELECT current_user::text, current_setting('pgherd.port')";
    let row = soon(ann.query_one(read, &[])).await.unwrap();
    let expected = ("ann".to_owned(), standby.port().to_string());
    assert_eq!((row.get(0), row.get(1)), expected, "the proof opens standbys too");
    drop(ann);
    soon(connection).await.unwrap().unwrap();

    let denied =
        |user: &str| ("28P01".to_owned(), format!("password authentication failed for user \"{user}\""));
    for user in ["ann", "bob", "nobody"] {
        assert_eq!(refused(&proxy, user, "wrong", "postgres").await, denied(user));
    }
    let (code, message) = refused(&proxy, "ann", "ännchen", "nowhere").await;
    assert_eq!((code.as_str(), message.as_str()), ("3D000", "database \"nowhere\" does not exist"));

    direct.batch_execute("ALTER ROLE ann PASSWORD 'changed'").await.unwrap();
    standby.caught_up_with(&primary).await;
    assert_eq!(
        refused(&proxy, "ann", "changed", "postgres").await,
        denied("ann"),
        "the old verifier is still believed"
    );
    let login = proxy.login("ann", "changed", "postgres");
    drop(soon(tokio_postgres::connect(&login, NoTls)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_why_and_do_no_harm() {
    let primary = Postgres::primary(Access::Trust);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let lines = "max_client_connections = 2\nreserve = 0\nstartup_timeout = '500ms'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    let say = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "C08P01"),
        (b"\x00\x10\x00\x00\x00\x03\x00\x00user\0", "C08P01"),
        (b"\xff\xff\xff\xff\0\x03\0\0", "C08P01"),
        (b"\0\0\0\x08\0\x02\0\0", "unsupported frontend protocol 2.0"),
        (b"\0\0\0\x0e\0\x03\0\0user\0\0", "C08P01"),
        (b"\0\0\0\x09\0\x03\0\0\0", "C28000"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "N"),
        (b"\0\0\0\x27\0\x03\0\0user\0postgres\0replication\0tr", "C08P01"),
    ] {
        let answer = say(bytes).await;
        assert!(answer.contains(expected), "{bytes:?}: {answer:?}");
    }
    let login = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";
    for garbage in
        [&b"Q\xff\xff\xff\xff"[..], b"Q\x7f\xff\xff\xff", b"?\0\0\0\x04", b"B\0\0\0\x05x", b"Q\0\0\0\x05x"]
    {
        let answer = say(&[login, garbage].concat()).await;
        assert!(answer.contains("C08P01"), "{garbage:?}: {answer:?}");
    }
    let newer = say(b"\0\0\0\x20\0\x03\0\x02user\0postgres\0_pq_.x\0y\0\0X\0\0\0\x04").await;
    assert!(newer.starts_with("v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x"), "{newer:?}");

    let (one, two) = (proxy.connect().await, proxy.connect().await);
    assert_eq!(refused(&proxy, "postgres", "", "postgres").await.0, "53300");
    drop(one);
    assert_eq!(soon(two.query_one("SELECT 1", &[])).await.unwrap().get::<_, i32>(0), 1, "the proxy lives on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_waits_for_a_server_and_then_says_so() {
    let mut agent = Agent::start(None).await;
    let lines = "hold_timeout = '300ms'\nconnect_timeout = '100ms'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
    let (code, message) = refused(&proxy, "postgres", "", "postgres").await;
    assert_eq!((code.as_str(), message.as_str()), ("57P03", "no server is available"));
}
