//! What an agent finds out about a server that answers: whether its commits last, and its disk.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pgherd_agent::observation::{Disk, Health, PostgresState, WriteProbe};
use pgherd_agent::reconcile::Commits;
use rustix::process::Signal;

use crate::server::{Server, now};
use crate::{alive, pid, signal, took};

/// Looks until the health is as wanted; panics after ten seconds.
async fn until(server: &Server, what: &str, holds: impl Fn(&Health) -> bool) -> Health {
    let begun = now();
    loop {
        let health = server.instance.observe().await.health;
        if holds(&health) {
            return health;
        }
        assert!(now().since(begun) < Duration::from_secs(10), "waited in vain for {what}: {health:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn good(health: &Health) -> bool {
    health.writes == WriteProbe::Good && health.disk == Disk::Room
}

/// The agent's own sessions: the lasting one and the one of the write probe.
async fn agents_sessions(server: &Server) -> usize {
    let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'pgherd-agent'";
    server.text(sql).await.parse().unwrap()
}

async fn backend(server: &Server, condition: &str) -> u32 {
    let sql = format!("SELECT pid::text FROM pg_stat_activity WHERE {condition}");
    server.text(&sql).await.parse().unwrap()
}

#[tokio::test]
async fn a_primary_proves_its_commits_and_a_standby_does_not() {
    let n1 = Server::primary("n1").await;
    until(&n1, "a commit", good).await;
    let before = n1.running().await.position;
    let begun = now();
    let mut looks = 0;
    while now().since(begun) < Duration::from_secs(3) {
        assert!(good(&n1.instance.observe().await.health));
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Looks are many, commits are few, and cost little.
    let written = n1.running().await.position.bytes_since(before);
    println!("{looks} looks and the commits of 3 s wrote {written} bytes of WAL");
    assert!((1..4096).contains(&written), "{written}");
    assert_eq!(agents_sessions(&n1).await, 2);

    let n2 = Server::standby(&n1, "n2").await;
    let health = until(&n2, "the disk", |health| health.disk == Disk::Room).await;
    assert_eq!(health.writes, WriteProbe::Untried);

    // No standby is waited for, and a database that is read-only by default is not meant.
    n1.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    n1.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
    n1.sql("SELECT pg_reload_conf()").await;
    let refused = n1.connect().await.batch_execute("CREATE TABLE t (i int)").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("25006"));
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(good(&n1.instance.observe().await.health));
    }
}

#[tokio::test]
async fn a_commit_that_hangs_is_told_and_delays_no_look() {
    let server = Server::primary("n1").await;
    until(&server, "a commit", good).await;
    let probe =
        backend(&server, "query LIKE '%pg_logical_emit_message(true%' AND pid <> pg_backend_pid()").await;
    signal(probe, Signal::STOP);
    let begun = now();
    let hanging = |for_ms| move |health: &Health| matches!(health.writes, WriteProbe::Hanging { for_ms: ms } if ms >= for_ms);
    until(&server, "a hanging commit", hanging(1)).await;
    took("write probe: hang until told", begun);
    let mut slowest = Duration::ZERO;
    while now().since(begun) < Duration::from_millis(3500) {
        let look = now();
        let observation = server.instance.observe().await;
        slowest = slowest.max(now().since(look));
        assert!(observation.running().is_some(), "{observation:?}");
        assert_eq!(agents_sessions(&server).await, 2, "a hanging probe is not begun again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("the slowest look beside a hanging commit took {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    until(&server, "its age", hanging(2000)).await;
    signal(probe, Signal::CONT);
    until(&server, "a commit", good).await;
}

#[tokio::test]
async fn a_single_crash_is_counted_and_passes() {
    let server = Server::primary("n1").await;
    until(&server, "a commit", good).await;
    let postmaster = pid(&server).await;
    for crashes in 1..=3 {
        let client = server.connect().await;
        let victim = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
        signal(u32::try_from(victim).unwrap(), Signal::KILL);
        let health = until(&server, "the crash", |health| health.crashes == crashes).await;
        assert_eq!(health.failure(Duration::from_secs(10)).is_some(), crashes == 3, "{health:?}");
        until(&server, "a commit", good).await;
    }
    assert_eq!(pid(&server).await, postmaster);
}

#[tokio::test]
async fn a_stopped_helper_process_does_not_look_like_a_failure() {
    let server = Server::primary("n1").await;
    until(&server, "a commit", good).await;
    server.sql("CREATE TABLE t (i int)").await;
    for helper in ["walwriter", "checkpointer", "client backend"] {
        let client = server.connect().await;
        let mine = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
        let condition = match helper {
            "client backend" => format!("pid = {mine}"),
            other => format!("backend_type = '{other}'"),
        };
        let stopped = backend(&server, &condition).await;
        signal(stopped, Signal::STOP);
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let observation = server.instance.observe().await;
            assert!(
                observation.running().is_some() && good(&observation.health),
                "{helper}: {observation:?}"
            );
        }
        server.sql("INSERT INTO t VALUES (1)").await;
        signal(stopped, Signal::CONT);
        assert!(alive(stopped));
    }
}

/// A small file system for one server's data; gone with it.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn under(server: &mut Server, megabytes: u32) -> Self {
        let at = server.settings.data_dir.clone();
        let aside = server.root().join("aside");
        std::fs::rename(&at, &aside).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=700"), "tmpfs", at.to_str().unwrap()],
        );
        let disk = Self { at };
        run("cp", &["-a", &format!("{}/.", aside.display()), disk.at.to_str().unwrap()]);
        crate::server::chown(&disk.at);
        disk
    }

    fn fill(&self) -> PathBuf {
        let ballast = self.at.join("ballast");
        // Ends with "no space left", which is what is wanted.
        let _full = Command::new("dd")
            .args(["if=/dev/zero", "bs=64k", &format!("of={}", ballast.display())])
            .output()
            .unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Processes of the server may still have files open: detached, it goes with the last of them.
        run("umount", &["--lazy", self.at.to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[tokio::test]
async fn a_full_disk_is_told_before_and_after_postgresql_gives_up() {
    let mut server = Server::initialised("n1").await;
    let disk = SmallDisk::under(&mut server, 80);
    server.instance.start_primary(&Commits::Free).await.unwrap();
    until(&server, "a commit", good).await;
    server.sql("CREATE TABLE t (i int, filler text)").await;
    let ballast = disk.fill();
    let begun = now();
    let full = |health: &Health| matches!(health.disk, Disk::Full { .. });
    let health = until(&server, "a full disk", full).await;
    took("disk full until told", begun);
    // The WAL still has room: commits go on for now, and tables cannot grow.
    println!("right after: {health:?}");
    assert!(health.failure(Duration::ZERO).is_some());
    let client = server.connect().await;
    let filling = "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 100000) i";
    let refused = client.batch_execute(filling).await.unwrap_err();
    println!("a client is told: {refused}");
    std::fs::remove_file(ballast).unwrap();
    until(&server, "room", |health| health.disk == Disk::Room).await;
    if server.instance.observe().await.pid.is_none() {
        server.instance.start_primary(&Commits::Free).await.unwrap();
    }
    until(&server, "a commit", good).await;
    server.sql("INSERT INTO t VALUES (1)").await;
    server.instance.fence().await.unwrap();
    drop(disk);
}

#[tokio::test]
async fn what_the_server_says_of_a_failing_commit_is_passed_on() {
    let server = Server::primary("n1").await;
    until(&server, "a commit", good).await;
    // The probe's session is ended: nothing is wrong, and the next one shows it.
    let sql = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE query LIKE '%emit_message(true%' AND pid <> pg_backend_pid()";
    server.text(sql).await;
    let begun = now();
    while now().since(begun) < Duration::from_secs(3) {
        let observation = server.instance.observe().await;
        assert!(matches!(observation.state, PostgresState::Running(_)));
        assert_eq!(observation.health.failure(Duration::from_secs(2)), None);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(good(&server.instance.observe().await.health));
}
