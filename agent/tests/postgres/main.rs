//! The PostgreSQL adapter against real servers. Runs as root or as `postgres`, with the programs in
//! `PGHERD_TEST_BIN_DIR` (default: Debian's PostgreSQL 15).

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod clone;
mod cover;
mod health;
mod open;
mod parameters;
mod recruit;
mod salvage;
mod server;
mod sessions;
mod slots;

use std::process::Command;
use std::time::Duration;

use pgherd_agent::observation::{PostgresState, RemoteDatabase};
use pgherd_agent::postgres::{
    FollowError, Instance, PromoteError, RejoinError, Rejoined, RewindError, StartError, StopError, Upstream,
};
use pgherd_agent::reconcile::Commits;
use pgherd_common::Timeline;
use rustix::process::{Pid, Signal, kill_process};
use server::{Server, now, pg};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// A process that has ended is a zombie until it is reaped, and dead while it is.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

async fn pid(server: &Server) -> u32 {
    server.instance.observe().await.pid.unwrap()
}

/// Prints how long something took: the figures in `docs/` come from here.
fn took(what: &str, since: pgherd_common::MonoTime) -> Duration {
    let time = now().since(since);
    println!("TIMING {what}: {:.1} ms", time.as_secs_f64() * 1000.0);
    time
}

#[tokio::test]
async fn a_primary_starts_is_adopted_and_stops() {
    let server = Server::initialised("n1").await;
    let down = server.instance.observe().await;
    let stopped = down.stopped().unwrap();
    assert!(stopped.clean && !stopped.standby && stopped.found_down, "{down:?}");

    let begun = now();
    server.instance.start_primary(&Commits::Free).await.unwrap();
    took("start of a primary", begun);
    server.instance.start_primary(&Commits::Free).await.unwrap();
    let running = server.running().await;
    assert!(!running.in_recovery && running.position.0 > 0 && running.received == running.position);
    assert_eq!((running.timeline, running.checkpoint_timeline), (Timeline(1), Timeline(1)));
    let begun = now();
    server.instance.observe().await;
    took("a look", begun);

    // Another agent process finds the same server.
    let other = Instance::open(server.settings.clone()).await.unwrap();
    assert_eq!(other.observe().await.pid, server.instance.observe().await.pid);
    assert_eq!(other.identity(), server.instance.identity());
    let error = other.start_standby(None).await.unwrap_err();
    assert!(matches!(error, StartError::OtherRole { .. }), "{error}");

    let begun = now();
    server.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
    took("fast stop", begun);
    let down = server.instance.observe().await;
    assert!(down.stopped().is_some_and(|stopped| stopped.clean && !stopped.found_down), "{down:?}");

    // And one that somebody else started.
    let (data, log) = (server.settings.data_dir.to_str().unwrap(), server.root().join("pg_ctl.log"));
    pg("pg_ctl", &["start", "-w", "-D", data, "-l", log.to_str().unwrap()]);
    let observation = server.instance.observe().await;
    let pid_file = std::fs::read_to_string(server.settings.data_dir.join("postmaster.pid")).unwrap();
    assert_eq!(observation.pid.unwrap().to_string(), pid_file.lines().next().unwrap());
    assert!(observation.running().is_some(), "{observation:?}");
    // Its pid file may go missing under it.
    std::fs::rename(server.settings.data_dir.join("postmaster.pid"), server.root().join("gone")).unwrap();
    let other = Instance::open(server.settings.clone()).await.unwrap();
    assert_eq!(other.observe().await.pid, observation.pid);
}

#[tokio::test]
async fn a_server_is_reached_by_name_where_there_is_no_socket_directory() {
    let mut server = Server::primary("n1").await;
    server.settings.socket_dir = None;
    server.settings.address.host = "localhost".to_owned();
    server.instance = Instance::open(server.settings.clone()).await.unwrap();
    assert!(!server.running().await.in_recovery);
}

#[tokio::test]
async fn the_death_of_a_postmaster_is_told_at_once() {
    let mut server = Server::primary("n1").await;
    // Looks are rare here, so what is told early was told by the kernel.
    server.settings.probe_interval = Duration::from_secs(30);
    server.instance = Instance::open(server.settings.clone()).await.unwrap();
    server.running().await;
    let mut times = Vec::new();
    for restart in 0..3 {
        let postmaster = pid(&server).await;
        if restart > 0 {
            // The start asked for one more look.
            server.instance.changed().await;
        }
        let killer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            signal(postmaster, Signal::KILL);
            now()
        });
        server.instance.changed().await;
        let state = server.instance.observe().await.state;
        let begun = killer.await.unwrap();
        times.push(took("postmaster death until told", begun));
        assert!(
            matches!(&state, PostgresState::Down(stopped) if !stopped.clean && !stopped.found_down),
            "{state:?}"
        );
        let begun = now();
        server.instance.start_primary(&Commits::Free).await.unwrap();
        took("restart after a crash", begun);
        server.instance.observe().await;
    }
    // The machine may be busy, but not all the time.
    assert!(times.iter().any(|time| *time < Duration::from_millis(50)), "{times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_secs(1)), "{times:?}");
}

#[tokio::test]
async fn fencing_ends_a_stopped_postmaster_and_its_backends() {
    let server = Server::primary("n1").await;
    let clients = [server.connect().await, server.connect().await];
    let backend = clients[0].query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    let postmaster = pid(&server).await;
    signal(postmaster, Signal::STOP);
    let begun = now();
    server.instance.fence().await.unwrap();
    took("fence, postmaster stopped", begun);
    assert!(!alive(postmaster) && !alive(u32::try_from(backend).unwrap()));

    server.instance.start_primary(&Commits::Free).await.unwrap();
    let begun = now();
    server.instance.fence().await.unwrap();
    took("fence", begun);
    let begun = now();
    server.instance.fence().await.unwrap();
    took("fence, nothing to kill", begun);

    // Orphans of a dead postmaster do not block a start.
    server.instance.start_primary(&Commits::Free).await.unwrap();
    let client = server.connect().await;
    let backend = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    signal(u32::try_from(backend).unwrap(), Signal::STOP);
    signal(pid(&server).await, Signal::KILL);
    server.until("down", |state| matches!(state, PostgresState::Down(_))).await;
    assert!(alive(u32::try_from(backend).unwrap()));
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert!(!alive(u32::try_from(backend).unwrap()));
}

#[tokio::test]
async fn a_hanging_postmaster_is_unresponsive_and_a_stop_of_it_ends() {
    let server = Server::primary("n1").await;
    server.running().await;
    let postmaster = pid(&server).await;
    signal(postmaster, Signal::STOP);
    server
        .until(
            "unresponsive",
            |state| matches!(state, PostgresState::Unresponsive { for_ms, .. } if *for_ms > 0),
        )
        .await;
    let error = server.instance.stop_fast(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, StopError::Killed { .. }), "{error}");
    assert!(!alive(postmaster));
}

#[tokio::test]
async fn too_many_connections_is_alive() {
    let server = Server::primary("n1").await;
    server.sql("ALTER ROLE postgres CONNECTION LIMIT -1").await;
    server.running().await;
    let mut taken = Vec::new();
    let refusal = loop {
        match server.try_connect().await {
            Ok(client) => taken.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal.code().map(|code| code.code()), Some("53300"));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let state = server.instance.observe().await.state;
        assert!(matches!(state, PostgresState::Running(_)), "{state:?}");
    }
    // An agent that has no connection yet sees an answer, however unwelcome.
    let late = Instance::open(server.settings.clone()).await.unwrap();
    let state = late.observe().await.state;
    assert!(
        matches!(&state, PostgresState::Unresponsive { for_ms: 0, reason } if reason.contains("too many")),
        "{state:?}"
    );
    assert_eq!(late.knock(&server.settings.address).await, RemoteDatabase::Answering);
}

#[tokio::test]
async fn a_pid_file_that_names_a_stranger_harms_nobody() {
    let server = Server::primary("n1").await;
    signal(pid(&server).await, Signal::KILL);
    server.instance.fence().await.unwrap();
    // The kernel gave the dead postmaster's pid to another program of the same user.
    let mut stranger = Command::new("setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sleep", "60"])
        .spawn()
        .unwrap();
    let pid_file = server.settings.data_dir.join("postmaster.pid");
    let text = std::fs::read_to_string(&pid_file).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    std::fs::write(&pid_file, format!("{}\n{rest}", stranger.id())).unwrap();

    let observation = server.instance.observe().await;
    assert_eq!(observation.pid, None);
    server.instance.fence().await.unwrap();
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert!(server.running().await.position.0 > 0);
    assert!(alive(stranger.id()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_failed_start_tells_what_postgresql_said() {
    let server = Server::initialised("n1").await;
    let mut text = std::fs::read_to_string(&server.settings.config_file).unwrap();
    text.push_str("shared_buffers = 'plenty'\n");
    std::fs::write(&server.settings.config_file, text).unwrap();
    let error = server.instance.start_primary(&Commits::Free).await.unwrap_err();
    let StartError::Ended { tail, .. } = &error else { panic!("{error:?}") };
    assert!(tail.contains("shared_buffers"), "{error}");
}

#[tokio::test]
async fn a_failover_and_all_ways_back() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    n1.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    let sent = n1.running().await;
    assert_eq!(sent.standbys.len(), 2, "{sent:?}");
    n2.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= sent.position))
        .await;
    n3.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= sent.position))
        .await;
    assert_eq!(n2.running().await.follows, Some(n1.settings.address.clone()));

    // The primary fails over: recruit, promote, repoint.
    let error = n2.instance.promote().await.unwrap_err();
    assert!(matches!(error, PromoteError::NotRecruited(_)), "{error}");
    // n3 first: a primary writes WAL of its own accord, and n3 is to have none that n2 has not.
    for standby in [&n3, &n2] {
        let begun = now();
        standby.instance.recruit().await.unwrap();
        took("recruit", begun);
        let running = standby.running().await;
        assert_eq!((running.follows, running.receiver), (None, None));
    }
    // WAL that no standby will ever have.
    n1.sql("INSERT INTO t SELECT generate_series(1, 50000); CHECKPOINT; UPDATE t SET i = -i").await;
    n1.instance.fence().await.unwrap();
    let begun = now();
    let timeline = n2.instance.promote().await.unwrap();
    took("promote", begun);
    assert_eq!((timeline, n2.instance.promote().await.unwrap()), (Timeline(2), Timeline(2)));
    n2.sql("INSERT INTO t VALUES (2000)").await;
    n2.instance.align_slots(&["n1".parse().unwrap(), "n3".parse().unwrap()].into(), false).await.unwrap();
    let n3_pid = pid(&n3).await;
    let begun = now();
    n3.instance.follow(&n2.upstream()).await.unwrap();
    took("follow", begun);
    n3.streams().await;
    took("follow until streaming", begun);
    assert_eq!(pid(&n3).await, n3_pid);
    let followed = |state: &PostgresState| matches!(state, PostgresState::Running(r) if r.timeline == Timeline(2) && r.history.0.len() == 1);
    n3.until("the new timeline", followed).await;

    comes_back_rewound(&n1, &n2).await;
    assert_eq!(n1.text("SELECT count(*)::text FROM t").await, "1001");
    comes_back_as_it_was(&n2, &n3).await;
    n1.instance.follow(&n3.upstream()).await.unwrap();
    n1.streams().await;
}

/// The old primary crashed with WAL of its own; `upstream` was promoted.
async fn comes_back_rewound(node: &Server, upstream: &Server) {
    // Keep the checkpoint that follows a promotion from coming in between.
    let mut early = upstream.running().await;
    early.checkpoint_timeline = Timeline(1);
    let error = node.instance.rejoin(&upstream.upstream(), &early).await.unwrap_err();
    assert!(matches!(error, RejoinError::NotYet { .. }), "{error}");
    upstream.instance.checkpoint().await.unwrap();
    let running = upstream.running().await;
    assert_eq!(running.checkpoint_timeline, Timeline(2));
    let begun = now();
    let rejoined = node.instance.rejoin(&upstream.upstream(), &running).await.unwrap();
    took("rejoin by rewind", begun);
    assert!(matches!(rejoined, Rejoined::Rewound { from: Timeline(1), .. }), "{rejoined:?}");
    node.streams().await;
    assert_eq!(node.text("SHOW port").await, node.settings.address.port.to_string());
    assert_eq!(node.text("SHOW cluster_name").await, "n1");
    let standbys = upstream.running().await.standbys;
    assert!(standbys.iter().any(|standby| standby.name == "n1"), "{standbys:?}");
    let position = upstream.running().await.position;
    node.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= position)).await;
}

/// A planned change: the primary stops in order, its standby has all of it.
async fn comes_back_as_it_was(old: &Server, new: &Server) {
    old.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
    let end = old.instance.observe().await.stopped().unwrap().checkpoint;
    new.until(
        "the shutdown checkpoint",
        |state| matches!(state, PostgresState::Running(r) if r.position > end),
    )
    .await;
    new.instance.recruit().await.unwrap();
    assert_eq!(new.instance.promote().await.unwrap(), Timeline(3));
    new.sql("INSERT INTO t VALUES (3000)").await;
    new.instance.align_slots(&["n1".parse().unwrap(), "n2".parse().unwrap()].into(), false).await.unwrap();
    // No wait for a checkpoint: nothing is rewound.
    let begun = now();
    let rejoined = old.instance.rejoin(&new.upstream(), &new.running().await).await.unwrap();
    took("rejoin as it was", begun);
    assert_eq!(rejoined, Rejoined::AsWas);
    old.streams().await;
}

#[tokio::test]
async fn an_interrupted_rewind_bars_the_start_until_it_is_repeated() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    n2.instance.recruit().await.unwrap();
    n1.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    n1.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t VALUES (1)").await;
    n2.instance.checkpoint().await.unwrap();
    let running = n2.running().await;

    let nowhere = Upstream {
        address: "127.0.0.1:1".parse().unwrap(),
        node: "n2".parse().unwrap(),
        generation: None,
        copy_slots: false,
    };
    let error = n1.instance.rejoin(&nowhere, &running).await.unwrap_err();
    assert!(matches!(error, RejoinError::Rewind(RewindError::Failed { .. })), "{error}");
    // What an interrupted pg_rewind may have done to the configuration.
    std::fs::write(&n1.settings.config_file, "port = 1\n").unwrap();
    let observation = n1.instance.observe().await;
    assert!(observation.stopped().is_some_and(|s| !s.clean && !s.standby), "{observation:?}");
    for error in [n1.instance.start_primary(&Commits::Free).await, n1.instance.start_standby(None).await] {
        let error = error.unwrap_err();
        assert!(matches!(error, StartError::RewindPending(_)), "{error}");
    }
    let rejoined = n1.instance.rejoin(&n2.upstream(), &running).await.unwrap();
    assert!(matches!(rejoined, Rejoined::Rewound { .. }), "{rejoined:?}");
    n1.streams().await;
    assert_eq!(n1.text("SHOW port").await, n1.settings.address.port.to_string());
    let position = n2.running().await.position;
    n1.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= position)).await;
    assert_eq!(n1.text("SELECT count(*)::text FROM t").await, "1");
}

#[tokio::test]
async fn a_rewound_node_keeps_nothing_of_the_timeline_that_was_undone() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    // Somebody promotes n2; its agent ends that. Its timeline 2 and that of n3 will be two.
    n2.instance.recruit().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    n2.instance.fence().await.unwrap();
    n1.sql("INSERT INTO t VALUES (1)").await;
    let rejoined = n2.instance.rejoin(&n1.upstream(), &n1.running().await).await.unwrap();
    assert!(matches!(rejoined, Rejoined::Rewound { from: Timeline(2), .. }), "{rejoined:?}");
    n2.streams().await;
    let files = std::fs::read_dir(n2.settings.data_dir.join("pg_wal")).unwrap();
    let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.starts_with("00000002")).collect();
    assert_eq!(left, Vec::<String>::new());

    for standby in [&n2, &n3] {
        standby.instance.recruit().await.unwrap();
    }
    n1.instance.fence().await.unwrap();
    n3.instance.promote().await.unwrap();
    n3.instance.align_slots(&["n1".parse().unwrap(), "n2".parse().unwrap()].into(), false).await.unwrap();
    n3.sql("INSERT INTO t VALUES (2)").await;
    n2.instance.follow(&n3.upstream()).await.unwrap();
    let position = n3.running().await.position;
    n2.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= position)).await;
    assert_eq!(n2.text("SELECT count(*)::text FROM t").await, "2");
}

#[tokio::test]
async fn without_checksums_a_diverged_node_is_not_rewound() {
    let n1 = Server::initialised_with("n1", &[]).await;
    n1.instance.start_primary(&Commits::Free).await.unwrap();
    let n2 = Server::standby(&n1, "n2").await;
    n2.instance.recruit().await.unwrap();
    n1.sql("CREATE TABLE t (i int)").await;
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.checkpoint().await.unwrap();
    let error = n1.instance.rejoin(&n2.upstream(), &n2.running().await).await.unwrap_err();
    assert!(matches!(error, RejoinError::NotRewindable(_)), "{error}");
    assert!(error.to_string().contains("pgherd rebuild NODE --clone"));
}

#[tokio::test]
async fn what_an_unfinished_promotion_left_is_not_followed() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let position = n1.running().await.position;
    // A primary writes WAL of its own accord. n3 is cut off first, so that it has none that n2 has not.
    for standby in [&n3, &n2] {
        standby.until("replay", |s| matches!(s, PostgresState::Running(r) if r.position >= position)).await;
        standby.instance.recruit().await.unwrap();
    }
    n1.instance.fence().await.unwrap();
    n3.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.align_slots(&["n3".parse().unwrap()].into(), false).await.unwrap();
    // n3 was being promoted, to the same number, and died before it was a primary.
    let left = n3.settings.data_dir.join("pg_wal/00000002.history");
    std::fs::write(&left, "1\t0/1000028\tno recovery target specified\n").unwrap();
    server::chown(&left);
    n3.instance.rejoin(&n2.upstream(), &n2.running().await).await.unwrap();
    let arrived = |state: &PostgresState| matches!(state, PostgresState::Running(r) if r.timeline == Timeline(2) && r.is_streaming());
    n3.until("the new timeline", arrived).await;
    let ours = std::fs::read_to_string(&left).unwrap();
    let theirs = std::fs::read_to_string(n2.settings.data_dir.join("pg_wal/00000002.history")).unwrap();
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_setting_of_alter_system_does_not_win_over_ours() {
    let n1 = Server::primary("n1").await;
    n1.instance.align_slots(&["n2".parse().unwrap()].into(), false).await.unwrap();
    // -R writes primary_conninfo, without our name, into postgresql.auto.conf.
    let n2 = Server::clone_of(&n1, "n2", &["-R"]).await;
    n2.instance.start_standby(Some(&n1.upstream())).await.unwrap();
    n2.streams().await;
    let standbys = n1.running().await.standbys;
    assert!(standbys.iter().any(|standby| standby.name == "n2"), "{standbys:?}");
    assert_eq!(n1.instance.knock(&n2.settings.address).await, RemoteDatabase::InRecovery);
    assert_eq!(n2.instance.knock(&n1.settings.address).await, RemoteDatabase::Writable);
    assert_eq!(n2.instance.knock(&"127.0.0.1:1".parse().unwrap()).await, RemoteDatabase::Refused);

    // What comes after our include line wins, and is not ours to change.
    let mut text = std::fs::read_to_string(&n2.settings.config_file).unwrap();
    text.push_str("primary_slot_name = 'other'\n");
    std::fs::write(&n2.settings.config_file, text).unwrap();
    let elsewhere = Upstream {
        address: "127.0.0.1:2".parse().unwrap(),
        node: "n9".parse().unwrap(),
        generation: None,
        copy_slots: false,
    };
    let error = n2.instance.follow(&elsewhere).await.unwrap_err();
    assert!(
        matches!(&error, FollowError::Overridden { setting, .. } if setting == "primary_slot_name"),
        "{error}"
    );
}

#[tokio::test]
async fn paused_replay_does_not_stop_a_promotion() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    n2.sql("SELECT pg_wal_replay_pause()").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let position = n1.running().await.position;
    n2.until("receive", |state| matches!(state, PostgresState::Running(r) if r.received >= position)).await;
    n2.instance.recruit().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t VALUES (1)").await;
}

#[tokio::test]
async fn a_configuration_outside_the_data_directory_is_used_throughout() {
    let mut n1 = Server::initialised("n1").await;
    n1.move_configuration().await;
    n1.instance.start_primary(&Commits::Free).await.unwrap();
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    n2.instance.recruit().await.unwrap();
    n1.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.checkpoint().await.unwrap();
    let rejoined = n1.instance.rejoin(&n2.upstream(), &n2.running().await).await.unwrap();
    assert!(matches!(rejoined, Rejoined::Rewound { .. }), "{rejoined:?}");
    n1.streams().await;
    assert_eq!(n1.text("SHOW config_file").await, n1.settings.config_file.to_str().unwrap());
}

#[tokio::test]
async fn a_fence_ends_a_start_in_progress() {
    let server = Server::initialised("n1").await;
    for delay_ms in [0, 1, 3, 6, 10, 20] {
        let instance = server.instance.clone();
        let start = tokio::spawn(async move { instance.start_primary(&Commits::Free).await });
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        server.instance.fence().await.unwrap();
        let started = start.await.unwrap();
        let observation = server.instance.observe().await;
        // A start that had not begun when the fence came is a start like any other.
        assert_eq!(observation.pid.is_some(), started.is_ok(), "{delay_ms} ms: {started:?} {observation:?}");
        server.instance.fence().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_whose_directory_was_moved_away_is_still_fenced() {
    let server = Server::primary("n1").await;
    let postmaster = pid(&server).await;
    std::fs::remove_dir_all(&server.settings.data_dir).unwrap();
    assert!(alive(postmaster));
    server.instance.fence().await.unwrap();
    assert!(!alive(postmaster));
}

#[tokio::test]
async fn a_rewind_killed_at_any_moment_is_repeated_or_refused() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    n2.instance.recruit().await.unwrap();
    n1.sql("INSERT INTO t SELECT generate_series(1, 100000)").await;
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t VALUES (1)").await;
    n2.instance.align_slots(&["n1".parse().unwrap()].into(), false).await.unwrap();
    n2.instance.checkpoint().await.unwrap();
    let running = n2.running().await;
    let mut patience_ms = 60;
    let rejoined = loop {
        // The future is dropped, as when the agent shuts down; its programs end with it.
        let upstream = n2.upstream();
        let attempt = n1.instance.rejoin(&upstream, &running);
        match tokio::time::timeout(Duration::from_millis(patience_ms), attempt).await {
            Ok(rejoined) => break rejoined.unwrap(),
            Err(_) => patience_ms += 90,
        }
        if n1.instance.observe().await.pid.is_some() {
            break Rejoined::AsWas;
        }
    };
    println!("came back after {patience_ms} ms: {rejoined:?}");
    n1.streams().await;
    let position = n2.running().await.position;
    n1.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= position)).await;
    assert_eq!(n1.text("SELECT count(*)::text FROM t").await, "1");
}

#[tokio::test]
async fn a_promoted_server_tells_its_transactions_from_those_before_it() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    let number = "SELECT pg_current_xact_id()::text";
    let last: u64 = n1.text(number).await.parse().unwrap();
    assert_eq!(n1.running().await.first_xid, None, "it was not promoted");
    n2.streams().await;
    let upto = n1.text("SELECT pg_current_wal_lsn()::text").await;
    let caught_up = format!("SELECT (pg_last_wal_replay_lsn() >= '{upto}')::text");
    while n2.text(&caught_up).await != "true" {}
    n2.instance.recruit().await.unwrap();
    n2.instance.cut(&Commits::Free).await.unwrap();
    n2.instance.promote().await.unwrap();
    let first = n2.running().await.first_xid.expect("nothing was replayed behind the question");
    let own: u64 = n2.text(number).await.parse().unwrap();
    assert!(last < first && first <= own, "{last} {first} {own}");
    // It is as true after a restart.
    n2.instance.stop_fast(n2.settings.stop_timeout).await.unwrap();
    n2.instance.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(n2.running().await.first_xid, Some(first));
}
