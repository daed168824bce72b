//! Clients of the same machine, over a Unix socket.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, psql, soon};
use tempfile::TempDir;

struct World {
    primary: Postgres,
    agents: Vec<Agent>,
    directory: TempDir,
}

impl World {
    async fn start(access: Access) -> Self {
        let primary = Postgres::primary(access);
        Self { primary, agents: vec![], directory: tempfile::tempdir().unwrap() }
    }

    async fn agent(&mut self) -> &mut Agent {
        let agent = Agent::start(Some(Script::new(&[&self.primary]).steady())).await;
        self.agents.push(agent);
        self.agents.last_mut().unwrap()
    }

    async fn proxy(&mut self, access: Access, lines: &str) -> Proxy {
        let lines = format!("unix_socket_dir = '{}'\n{lines}", self.directory.path().display());
        Proxy::start_with(self.agent().await, access, &lines).await
    }

    fn host(&self) -> String {
        format!("host={}", self.directory.path().display())
    }

    fn path(&self, port: u16) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{port}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_comes_in_over_the_socket() {
    let mut world = World::start(Access::Scram).await;
    let proxy = world.proxy(Access::Scram, "").await;
    let (host, path) = (world.host(), world.path(proxy.port()));
    let told = psql(&proxy, &host, "\\conninfo\nSELECT 6 * 7").await.unwrap();
    assert!(told.contains("via socket in") && told.contains("42"), "{told}");
    let error = psql(&proxy, &format!("{host} password=wrong"), "SELECT 1").await.unwrap_err();
    assert!(error.contains("password authentication failed"), "{error}");
    // More than the socket takes at once, both ways.
    let much = format!("SELECT length('{}'), repeat('y', 3000000)", "x".repeat(3_000_000));
    assert_eq!(psql(&proxy, &host, &much).await.unwrap().len(), "3000000|".len() + 3_000_000 + 1);
    let encrypted = psql(&proxy, &format!("{host} sslmode=prefer"), "SELECT 1").await.unwrap();
    assert_eq!(encrypted, "1\n", "asking for TLS does no harm");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
    proxy.stop().await;
    assert!(!path.exists(), "removed at the end");

    let proxy = world.proxy(Access::Scram, "unix_socket_mode = '0700'").await;
    let mode = std::fs::metadata(world.path(proxy.port())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_and_tls_know_it() {
    let mut world = World::start(Access::Trust).await;
    let rules = "[[hba]]\ntype = 'local'\nuser = ['postgres']\nmethod = 'trust'";
    let proxy = world.proxy(Access::Trust, rules).await;
    let host = world.host();
    assert_eq!(psql(&proxy, &host, "SELECT 1").await.unwrap(), "1\n");
    let error = psql(&proxy, "host=127.0.0.1", "SELECT 1").await.unwrap_err();
    assert!(error.contains("no hba entry for host \"127.0.0.1\""), "{error}");
    let error = psql(&proxy, &format!("{host} user=ann"), "SELECT 1").await.unwrap_err();
    assert!(error.contains("no hba entry for host \"[local]\", user \"ann\""), "{error}");
    proxy.stop().await;

    let rules = "[[hba]]\ntype = 'host'\nmethod = 'trust'";
    let proxy = world.proxy(Access::Trust, rules).await;
    assert!(psql(&proxy, &host, "SELECT 1").await.unwrap_err().contains("no hba entry"));
    proxy.stop().await;

    // Nothing leaves the machine: there is nothing to encrypt.
    let authority = crate::harness::Authority::new();
    let files = authority.sign("proxy", &["localhost"]);
    let tls = format!(
        "[tls]\nclients = 'required'\ncertificate = '{}'\nkey = '{}'",
        files.certificate.display(),
        files.key.display()
    );
    let proxy = world.proxy(Access::Trust, &tls).await;
    assert_eq!(psql(&proxy, &host, "SELECT 1").await.unwrap(), "1\n");
    let refused = psql(&proxy, "host=127.0.0.1 sslmode=disable", "SELECT 1").await.unwrap_err();
    assert!(refused.contains("must use TLS"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_come_in_over_it_too() {
    let mut world = World::start(Access::Trust).await;
    let proxy = world.proxy(Access::Trust, "").await;
    let login = format!("{} port={} user=postgres dbname=postgres", world.host(), proxy.port());
    let (client, connection) = soon(tokio_postgres::connect(&login, tokio_postgres::NoTls)).await.unwrap();
    tokio::spawn(connection);
    let cancel = client.cancel_token();
    let (endless, ()) = soon(async {
        tokio::join!(client.batch_execute("SELECT pg_sleep(60)"), async {
            world.primary.until_it_runs("SELECT pg_sleep(60)").await;
            cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        })
    })
    .await;
    assert_eq!(endless.unwrap_err().code().unwrap().code(), "57014");
}

/// Why a proxy with its socket there does not start.
async fn refusal(world: &World, port: u16) -> String {
    let text = format!(
        "[cluster]\nname = 'demo'\n[proxy]\nname = 'p'\nlisten = ['127.0.0.2:{port}']\n\
         unix_socket_dir = '{}'\n[agents]\naddresses = ['127.0.0.1:1']\n[auth]\nmethod = 'trust'\n",
        world.directory.path().display()
    );
    let config = pgherd_proxy::Config::parse(&text).unwrap();
    let error = soon(pgherd_proxy::serve(config, std::future::pending())).await.unwrap_err();
    pgherd_common::errors::Chain(&error).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let mut world = World::start(Access::Trust).await;
    let proxy = world.proxy(Access::Trust, "").await;
    let path = world.path(proxy.port());
    let error = refusal(&world, proxy.port()).await;
    assert!(error.contains("another process accepts clients there"), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(psql(&proxy, &world.host(), "SELECT 1").await.unwrap(), "1\n", "untouched");
    let port = proxy.port();
    proxy.stop().await;

    std::fs::write(&path, "precious").unwrap();
    let error = refusal(&world, port).await;
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    // As after a crash: the file is there, and nobody listens.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let lines =
        format!("listen = ['127.0.0.1:{port}']\nunix_socket_dir = '{}'", world.directory.path().display());
    let text = format!(
        "[cluster]\nname = 'demo'\n[proxy]\nname = 'proxy1'\n{lines}\n[agents]\naddresses = ['{}']\n\
         [auth]\nmethod = 'trust'\n",
        world.agent().await.address()
    );
    let config = pgherd_proxy::Config::parse(&text).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(pgherd_proxy::serve(config, async { drop(stopped.await) }));
    let login = format!("{} port={port} user=postgres dbname=postgres", world.host());
    soon(async {
        while tokio_postgres::connect(&login, tokio_postgres::NoTls).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    // Whoever took the place meanwhile keeps it.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(stop);
    soon(task).await.unwrap().unwrap();
    assert!(path.exists());
}
