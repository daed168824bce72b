//! Encryption between clients and the proxy.

use crate::harness::{
    Access, Agent, Authority, Files, Postgres, Process, Proxy, Script, psql, psql_at, soon,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
const LOGIN: &[u8] = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";

fn section(clients: &str, files: &Files, more: &str) -> String {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    format!("[tls]\nclients = '{clients}'\ncertificate = '{certificate}'\nkey = '{key}'\n{more}\n")
}

/// All that the proxy answers.
async fn say(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_check_everything_are_served_encrypted() {
    let primary = Postgres::primary(Access::Scram);
    let authority = Authority::new();
    let files = authority.sign("proxy", &["localhost"]);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Scram, &section("required", &files, "")).await;
    let root = format!("sslmode=verify-full sslrootcert={}", authority.root().display());

    let login = proxy.login("postgres", "secret", "postgres");
    let parameters = format!("host=localhost hostaddr=127.0.0.1 sslmode=require {login}");
    let parameters = parameters.replace(" host=127.0.0.1", "");
    let tls = authority.client(None, true);
    let (client, connection) = soon(tokio_postgres::connect(&parameters, tls.clone())).await.unwrap();
    tokio::spawn(connection);
    // More than one TLS record, and more than the socket takes at once, both ways.
    let text = "x".repeat(3 << 20);
    let row = soon(client.query_one("SELECT $1::text || $1::text", &[&text])).await.unwrap();
    assert_eq!(row.get::<_, String>(0).len(), 6 << 20);

    let sql = "\\conninfo\nSELECT sum(length(repeat('y', 20000))) FROM generate_series(1, 300)";
    let told = psql(&proxy, &format!("host=localhost {root}"), sql).await.unwrap();
    assert!(told.contains("SSL connection (protocol: TLSv1.3"), "{told}");
    assert!(told.contains("6000000"), "{told}");
    let wrong_name = psql(&proxy, &format!("host=127.0.0.1 {root}"), "SELECT 1").await.unwrap_err();
    assert!(wrong_name.contains("does not match host name"), "{wrong_name}");
    let in_clear = psql(&proxy, "host=localhost sslmode=disable", "SELECT 1").await.unwrap_err();
    assert!(in_clear.contains("the connection must use TLS"), "{in_clear}");
    let other = Authority::new();
    let stranger = format!("host=localhost sslmode=verify-full sslrootcert={}", other.root().display());
    assert!(psql(&proxy, &stranger, "SELECT 1").await.unwrap_err().contains("SSL error"));

    let cancelled = client.cancel_token();
    let (endless, ()) = soon(async {
        tokio::join!(client.query_one("SELECT pg_sleep(60)", &[]), async {
            primary.until_it_runs("SELECT pg_sleep(60)").await;
            cancelled.cancel_query(tls.clone()).await.unwrap();
        })
    })
    .await;
    assert_eq!(endless.unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_before_encryption_is_watched() {
    let primary = Postgres::primary(Access::Trust);
    let authority = Authority::new();
    let files = authority.sign("proxy", &["localhost"]);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, &section("allowed", &files, "")).await;

    for behind in [LOGIN, b"\0", b"\x16\x03\x01"] {
        let answer = say(proxy.port(), &[SSL_REQUEST, behind].concat()).await;
        assert!(answer.starts_with('E') && answer.contains("received unencrypted data"), "{answer:?}");
    }
    assert!(say(proxy.port(), &[LOGIN, b"X\0\0\0\x04"].concat()).await.starts_with('R'), "clear is allowed");

    let mut direct = soon(authority.client(None, true).direct(proxy.port())).await.unwrap();
    direct.write_all(&[LOGIN, b"X\0\0\0\x04"].concat()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever says goodbye gets none.
    drop(soon(direct.read_to_end(&mut answer)).await);
    assert_eq!(answer.first(), Some(&b'R'), "TLS at once: {answer:?}");

    // Without ALPN it could be any protocol that somebody was led to speak to this port.
    let unnamed = async {
        let mut direct = authority.client(None, false).direct(proxy.port()).await?;
        direct.write_all(LOGIN).await?;
        let mut answer = Vec::new();
        direct.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    assert!(!soon(unnamed).await.is_ok_and(|answer| !answer.is_empty()));

    let mut twice = SSL_REQUEST.to_vec();
    twice.extend_from_slice(SSL_REQUEST);
    assert!(say(proxy.port(), &twice).await.contains("received unencrypted data"));
    proxy.connect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_while_clients_stay() {
    let primary = Postgres::primary(Access::Scram);
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.sign("proxy", &["localhost"]);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let mut proxy = Process::start(&mut agent, Access::Scram, &section("allowed", &files, "")).await;
    let port = proxy.port;
    let visit = async |authority: &Authority| {
        let root = authority.root();
        let parameters = format!("host=localhost sslmode=verify-full sslrootcert={}", root.display());
        psql_at(port, &parameters, "SELECT 1").await
    };
    let stays = old.client(None, true);
    let login = format!("host=localhost port={port} user=postgres password=secret dbname=postgres");
    let (client, connection) = soon(tokio_postgres::connect(&login, stays)).await.unwrap();
    tokio::spawn(connection);

    // Half of a pair is not used, and neither is garbage: the old ones stay.
    let replacement = new.sign("proxy", &["localhost"]);
    std::fs::write(&files.key, "garbage").unwrap();
    proxy.until_it_logs("certificates cannot be used").await;
    visit(&old).await.unwrap();
    std::fs::copy(&replacement.key, &files.key).unwrap();
    proxy.hang_up();
    proxy.until_it_logs("certificates cannot be used").await;
    visit(&old).await.unwrap();
    std::fs::copy(&replacement.certificate, &files.certificate).unwrap();
    proxy.until_it_logs("certificates read again").await;
    visit(&new).await.unwrap();
    assert!(visit(&old).await.is_err());
    soon(client.query_one("SELECT 1", &[])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_usable_certificates_does_not_start() {
    let authority = Authority::new();
    let files = authority.sign("proxy", &["localhost"]);
    let other = authority.sign("other", &["localhost"]);
    for (certificate, key) in
        [(&files.certificate, &other.key), (&files.key, &files.key), (&files.certificate, &files.certificate)]
    {
        let files = Files { certificate: certificate.clone(), key: key.clone() };
        let chain = why_it_does_not_start(&files).await;
        assert!(chain.contains("certificates of the configuration: /"), "{chain}");
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&files.key, readable).unwrap();
    let chain = why_it_does_not_start(&files).await;
    assert!(
        chain.contains("proxy.key: a private key that others may read (mode 0644); chmod 0600"),
        "{chain}"
    );
}

async fn why_it_does_not_start(files: &Files) -> String {
    let text = format!(
        "{}[cluster]\nname = 'demo'\n[proxy]\nname = 'p'\nlisten = ['127.0.0.1:{}']\n[agents]\n\
         addresses = ['127.0.0.1:1']\n[auth]\nmethod = 'trust'\n",
        section("allowed", files, ""),
        crate::harness::free_port()
    );
    let config = pgherd_proxy::Config::parse(&text).unwrap();
    let error = soon(pgherd_proxy::serve(config, std::future::pending())).await.unwrap_err();
    pgherd_common::errors::Chain(&error).to_string()
}
