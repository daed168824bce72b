//! Replication through the proxy, with the programs that people use.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::harness::{Access, Agent, Postgres, Proxy, Script, psql, soon};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

fn command(program: &str, proxy: &Proxy) -> Command {
    let mut command = Command::new(program);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", proxy.port().to_string());
    command.env("PGUSER", "postgres").env("PGPASSWORD", "secret").kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> Output {
    soon(command.output()).await.unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory that programs of the database's user may write to.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

async fn backup(proxy: &Proxy, to: &Path) -> Output {
    let mut backup = command("pg_basebackup", proxy);
    backup.arg("-D").arg(to).args(["-X", "stream", "-c", "fast", "--no-sync"]);
    run(&mut backup).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_cloned_and_wal_is_received() {
    let primary = Postgres::primary(Access::Scram);
    let hba = "host replication postgres all scram-sha-256\nhost all all all scram-sha-256";
    primary.configure("", hba);
    let standby = primary.standby();
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    // No pooled connection is left over for them.
    let proxy = Proxy::start_with(&mut agent, Access::Scram, "[pool]\nsize = 1").await;
    let client = proxy.connect().await;
    client.batch_execute("BEGIN; CREATE TABLE t AS SELECT generate_series(1, 100000) AS n").await.unwrap();
    let target = directory();
    let done = backup(&proxy, &target.path().join("copy")).await;
    assert!(done.status.success(), "{}", complaint(&done));
    client.batch_execute("COMMIT").await.unwrap();
    let verify = Command::new(crate::harness::binaries().join("pg_verifybackup"))
        .arg(target.path().join("copy"))
        .output()
        .await
        .unwrap();
    assert!(verify.status.success(), "{}", complaint(&verify));

    let told = psql(&proxy, "host=127.0.0.1 replication=true", "IDENTIFY_SYSTEM").await.unwrap();
    assert!(told.contains("|1|"), "{told}");
    let port = psql(&proxy, "host=127.0.0.1 replication=yes", "SHOW pgherd.port").await.unwrap();
    assert_eq!(port.trim(), primary.port().to_string(), "the primary, whatever it is asked");
    let both = "IDENTIFY_SYSTEM;\nSELECT current_setting('pgherd.port')";
    let told = psql(&proxy, "host=127.0.0.1 replication=database", both).await.unwrap();
    assert!(told.contains("|postgres\n") && told.contains(&primary.port().to_string()), "{told}");
    let error = psql(&proxy, "host=127.0.0.1 replication=maybe", "SELECT 1").await.unwrap_err();
    assert!(error.contains("invalid value for parameter \"replication\": \"maybe\""), "{error}");
    let plain = psql(&proxy, "host=127.0.0.1 replication=off", "SELECT 'plain'").await.unwrap();
    assert_eq!(plain.trim(), "plain");

    // Received as long as it goes, and shown to whoever asks.
    let wal = directory();
    let mut receiver = command("pg_receivewal", &proxy);
    let mut receiver = receiver.arg("-D").arg(wal.path()).args(["--no-sync", "-v"]).spawn().unwrap();
    let kept = async || {
        let rows = client.query("SHOW CLIENTS", &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>("kept_by")).filter(|why| why == "replication").count()
    };
    let direct = primary.direct().await;
    let streams = "SELECT count(*) FROM pg_stat_replication
                   WHERE application_name = 'pg_receivewal' AND state = 'streaming'";
    soon(async { while direct.query_one(streams, &[]).await.unwrap().get::<_, i64>(0) == 0 {} }).await;
    assert_eq!(kept().await, 1);
    client.batch_execute("CREATE TABLE u (); SELECT pg_switch_wal()").await.unwrap();
    let whole = || {
        let names = std::fs::read_dir(wal.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().ends_with(".partial")).count()
    };
    soon(async {
        while whole() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    interrupt(&receiver);
    assert!(soon(receiver.wait()).await.unwrap().success());
    soon(async { while kept().await > 0 {} }).await;
}

fn interrupt(child: &Child) {
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status();
    assert!(sent.unwrap().success());
}

struct Changes {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

/// pg_recvlogical, from now on.
fn follow(proxy: &Proxy) -> Changes {
    let mut command = command("pg_recvlogical", proxy);
    command.args(["-d", "postgres", "--slot", "s", "--start", "-f", "-", "--no-loop"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Changes { child, lines }
}

impl Changes {
    async fn until(&mut self, what: &str) {
        soon(async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(what) {
                    return;
                }
            }
            panic!("{what} never came");
        })
        .await;
    }

    async fn end(self) -> Output {
        soon(self.child.wait_with_output()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_followed_until_the_primary_changes() {
    let primary = Postgres::primary(Access::Trust);
    primary.configure("wal_level = logical", "host all all all trust\nhost replication all all trust");
    let standby = primary.standby();
    standby.configure("wal_level = logical", "host all all all trust\nhost replication all all trust");
    let mut script = Script::new(&[&primary, &standby]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let client = proxy.connect().await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let mut create = command("pg_recvlogical", &proxy);
    create.args(["-d", "postgres", "--slot", "s", "--create-slot", "-P", "test_decoding"]);
    let created = run(&mut create).await;
    assert!(created.status.success(), "{}", complaint(&created));

    let mut changes = follow(&proxy);
    client.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    changes.until("INSERT: n[integer]:11").await;
    // More than fits into buffers, one message of it large.
    client
        .batch_execute("CREATE TABLE large (a text); INSERT INTO large SELECT repeat('x', 500000)")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO large SELECT repeat('y', 1000) FROM generate_series(1, 2000)")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO t VALUES (12)").await.unwrap();
    changes.until("INSERT: n[integer]:12").await;
    interrupt(&changes.child);
    let ended = changes.end().await;
    assert!(ended.status.success(), "{}", complaint(&ended));

    let mut changes = follow(&proxy);
    client.batch_execute("INSERT INTO t VALUES (13)").await.unwrap();
    changes.until("INSERT: n[integer]:13").await;
    standby.caught_up_with(&primary).await;
    standby.promote();
    agent.push(script.promoted(2)).await;
    let ended = complaint(&changes.end().await);
    for part in ["the replication connection to server server1 has ended", "not the primary any more"] {
        assert!(ended.contains(part), "{part:?} not in {ended}");
    }
    let port = psql(&proxy, "host=127.0.0.1 replication=true", "SHOW pgherd.port").await.unwrap();
    assert_eq!(port.trim(), standby.port().to_string());

    // A server that crashes says nothing; the proxy does.
    let mut create = command("pg_recvlogical", &proxy);
    create.args(["-d", "postgres", "--slot", "s", "--create-slot", "-P", "test_decoding"]);
    assert!(run(&mut create).await.status.success());
    let mut changes = follow(&proxy);
    client.batch_execute("INSERT INTO t VALUES (14)").await.unwrap();
    changes.until("INSERT: n[integer]:14").await;
    standby.crash();
    let ended = complaint(&changes.end().await);
    assert!(ended.contains("terminating connection") || ended.contains("has ended"), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_tell_replication_from_databases() {
    let primary = Postgres::primary(Access::Trust);
    primary.configure("", "host all all all trust\nhost replication all all trust");
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let rules = "[[hba]]\nmethod = 'trust'\n[[hba]]\ndatabase = ['replication']\nuser = ['postgres']\n\
                 address = '127.0.0.2'\nmethod = 'trust'";
    let proxy = Proxy::start_with(&mut agent, Access::Trust, rules).await;
    let try_it = async |mode: &str| {
        let parameters = format!("host=127.0.0.1 replication={mode}");
        psql(&proxy, &parameters, "IDENTIFY_SYSTEM").await
    };
    let error = try_it("true").await.unwrap_err();
    let expected = "no hba entry for replication connection from host \"127.0.0.1\", user \"postgres\"";
    assert!(error.contains(expected), "{error}");
    try_it("database").await.unwrap();
    let lines = rules.replace("address = '127.0.0.2'\n", "");
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
    let parameters = "host=127.0.0.1 replication=true";
    psql(&proxy, parameters, "IDENTIFY_SYSTEM").await.unwrap();
    proxy.stop().await;
}
