//! Commits that wait for standbys.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_agent::observation::{PostgresState, Running};
use pgherd_agent::postgres::{CoverError, GateError, Instance, Rejoined, Settings, Upstream};
use pgherd_agent::reconcile::{Commits, Wait};
use pgherd_common::config::Secret;
use pgherd_common::{Generation, NodeName};
use pgherd_core::cover::CoverSeen;
use rustix::process::Signal;

use super::server::Server;
use super::{now, signal, took};

fn names(of: &[&str]) -> BTreeSet<NodeName> {
    of.iter().map(|name| name.parse().unwrap()).collect()
}

fn wait(generation: Generation, number: u64, standbys: u32, of: &BTreeSet<NodeName>) -> Wait {
    Wait { generation, number, standbys, of: of.clone() }
}

fn first() -> Generation {
    Generation::ZERO.next()
}

/// As a standby of a generation's primary, by a name that belongs to it.
async fn follow(standby: &Server, primary: &Server, generation: Generation) {
    let upstream = Upstream { generation: Some(generation), ..primary.upstream() };
    standby.instance.follow(&upstream).await.unwrap();
    standby
        .until("its new name", |state| match state {
            PostgresState::Running(running) => {
                running.follows_in == Some(generation) && running.is_streaming()
            }
            _ => false,
        })
        .await;
}

async fn until_met(primary: &Server, number: u64) {
    let met = |state: &PostgresState| match state {
        PostgresState::Running(running) => running.cover == Some(CoverSeen { number, met: true }),
        _ => false,
    };
    primary.until("all of it is where commits wait for it", met).await;
}

#[tokio::test]
async fn commits_wait_for_standbys_that_go_by_the_generation_and_for_no_others() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    n1.instance.align_slots(&names(&["n2", "n3"]), false).await.unwrap();
    follow(&n2, &n1, first()).await;
    n1.sql("CREATE TABLE t (i int)").await;

    // n3 streams, too, but under a name that anybody could give himself.
    let both = names(&["n2", "n3"]);
    let begun = now();
    n1.instance.cover(&wait(first(), 5, 2, &both)).await.unwrap();
    took("commits are to wait", begun);
    assert_eq!(n1.running().await.cover, Some(CoverSeen { number: 5, met: false }));
    let waits = "SELECT count(*)::text FROM pg_stat_replication WHERE sync_state = 'quorum'";
    assert_eq!(n1.text(waits).await, "1");
    follow(&n3, &n1, first()).await;
    until_met(&n1, 5).await;
    took("until all of it is on both", begun);
    n1.sql("INSERT INTO t VALUES (1)").await;
    let told = n1.running().await.standbys;
    assert!(told.iter().all(|standby| both.iter().any(|name| name.as_str() == standby.name)), "{told:?}");

    // Fewer, one of them, and none: the walsender of the one that counts no more has to know it.
    n1.instance.cover(&wait(first(), 6, 1, &names(&["n2"]))).await.unwrap();
    until_met(&n1, 6).await;
    assert_eq!(n1.text(waits).await, "1");
    n1.instance.cover(&wait(first(), 7, 0, &names(&[]))).await.unwrap();
    assert_eq!(n1.running().await.cover, Some(CoverSeen { number: 7, met: true }));
    assert_eq!(n1.text("SHOW synchronous_standby_names").await, "");

    // What one generation's followers are called means nothing in the next.
    n1.instance.cover(&wait(first().next(), 8, 1, &both)).await.unwrap();
    assert_eq!(n1.text(waits).await, "0");
    follow(&n2, &n1, first().next()).await;
    let half = n1.running().await.cover;
    assert!(half.is_some_and(|seen| seen.number == 8), "{half:?}");
    until_met(&n1, 8).await;

    // Where nobody is left to wait for, commits wait, and the server can be started anew.
    n1.instance.cover(&wait(first(), 9, 1, &names(&[]))).await.unwrap();
    let nobody = n1.text("SHOW synchronous_standby_names").await;
    assert!(nobody.starts_with("ANY 1 (\"nobody/0/"), "{nobody}");
    n1.instance.stop_fast(n1.settings.stop_timeout).await.unwrap();
    n1.instance.start_primary(&Commits::WaitFor(wait(first(), 10, 1, &names(&[])))).await.unwrap();
    assert_eq!(n1.text("SHOW synchronous_standby_names").await, nobody);
}

#[tokio::test]
async fn commits_of_a_promoted_standby_wait_from_the_first_one_on() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    n3.instance.recruit().await.unwrap();
    let wait = wait(first(), 3, 1, &names(&["n3"]));
    let commits = Commits::WaitFor(wait.clone());
    n2.instance.cut(&commits).await.unwrap();
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.align_slots(&names(&["n1", "n3"]), false).await.unwrap();
    let waits = n2.text("SHOW synchronous_standby_names").await;
    assert!(waits.starts_with("ANY 1 (\"n3/1/"), "{waits}");
    assert_eq!(n2.running().await.cover, None);

    let begun = now();
    n2.instance.cover(&wait).await.unwrap();
    took("commits are known to wait after a promotion", begun);
    assert_eq!(n2.running().await.cover, Some(CoverSeen { number: 3, met: false }));
    follow(&n3, &n2, first()).await;
    until_met(&n2, 3).await;
    n2.sql("INSERT INTO t VALUES (1)").await;

    // A postmaster that is started anew knows it from its configuration, this agent not yet.
    n2.instance.stop_fast(n2.settings.stop_timeout).await.unwrap();
    n2.instance.start_primary(&commits).await.unwrap();
    assert_eq!(n2.text("SHOW synchronous_standby_names").await, waits);
    assert_eq!(n2.running().await.cover, None);
    // A standby that is quicker than anybody who watches is no proof: commits are made to wait once.
    n3.streams().await;
    n2.instance.cover(&wait).await.unwrap();
    until_met(&n2, 3).await;
    assert_eq!(n2.text("SHOW synchronous_standby_names").await, waits);
}

#[tokio::test]
async fn a_wait_in_name_only_is_refused() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    let of = names(&["n2"]);
    let error = n2.instance.cover(&wait(first(), 1, 1, &of)).await.unwrap_err();
    assert!(matches!(error, CoverError::NotAPrimary), "{error}");
    n1.instance.stop_fast(n1.settings.stop_timeout).await.unwrap();
    let text = std::fs::read_to_string(&n1.settings.config_file).unwrap();
    std::fs::write(&n1.settings.config_file, format!("synchronous_commit = local\n{text}")).unwrap();
    n1.instance.start_primary(&Commits::Free).await.unwrap();
    let error = n1.instance.cover(&wait(first(), 1, 1, &of)).await.unwrap_err();
    assert!(matches!(&error, CoverError::NotSynchronous(level) if level == "local"), "{error}");
    // What the agent's own login has says nothing of anybody else's commits.
    n1.sql("ALTER ROLE postgres SET synchronous_commit = on").await;
    let other = Instance::open(n1.settings.clone()).await.unwrap();
    let error = other.cover(&wait(first(), 1, 1, &of)).await.unwrap_err();
    assert!(matches!(&error, CoverError::NotSynchronous(level) if level == "local"), "{error}");
    assert_eq!(n1.text("SHOW synchronous_standby_names").await, "");
}

#[tokio::test]
async fn a_standby_that_stands_still_keeps_the_word_of_another_from_counting_for_a_second_only() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    follow(&n2, &n1, first()).await;
    follow(&n3, &n1, first()).await;
    let both = names(&["n2", "n3"]);
    n1.instance.cover(&wait(first(), 1, 1, &both)).await.unwrap();
    until_met(&n1, 1).await;

    let receiver: i32 =
        n3.connect().await.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]).await.unwrap().get(0);
    let receiver = u32::try_from(receiver).unwrap();
    signal(receiver, Signal::STOP);
    let sender = "SELECT pid::text FROM pg_stat_replication WHERE application_name LIKE 'n3/%'";
    let before = n1.text(sender).await;
    let begun = now();
    n1.instance.cover(&wait(first(), 2, 1, &both)).await.unwrap();
    // Its walsender may still go by the old setting, and nobody can tell.
    assert_eq!(n1.running().await.cover, Some(CoverSeen { number: 2, met: false }));
    until_met(&n1, 2).await;
    let spent = now().since(begun);
    assert!(spent >= Duration::from_secs(1), "{spent:?}");
    took("a standby that stands still was waited for", begun);
    let left = n1.connect().await.query(sender, &[]).await.unwrap();
    assert!(left.iter().all(|row| row.get::<_, &str>(0) != before), "walsender {before} is still there");

    // It comes back by itself, and one that is younger than the setting keeps nobody waiting.
    signal(receiver, Signal::CONT);
    n3.sql("SELECT 1").await;
    n1.until(
        "both again",
        |state| matches!(state, PostgresState::Running(running) if running.standbys.len() == 2),
    )
    .await;
    n1.sql("INSERT INTO t VALUES (1)").await;
}

#[tokio::test]
async fn a_name_by_another_password_is_not_known_as_ones_own() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    follow(&n2, &n1, first()).await;
    let password = Some(Secret("another".to_owned()));
    let changed = Instance::open(Settings { password, ..n2.settings.clone() }).await.unwrap();
    let seen = changed.observe().await;
    assert_eq!(seen.running().unwrap().follows_in, None, "{seen:?}");
    // It is told to follow as if it had not before.
    changed.follow(&Upstream { generation: Some(first()), ..n1.upstream() }).await.unwrap();
    let seen = changed.observe().await;
    assert_eq!(seen.running().unwrap().follows_in, Some(first()), "{seen:?}");
    assert_eq!(n2.running().await.follows_in, None);
}

/// Whether a role that is no agent's gets in over TCP, and PostgreSQL's words if not.
async fn comes_in(server: &Server) -> Result<(), String> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.settings.address.port).user("app").dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|error| {
        error.as_db_error().map_or(error.to_string(), |db| format!("{} {}", db.code().code(), db.message()))
    })?;
    let connection = tokio::spawn(connection);
    client.simple_query("SELECT 1").await.map_err(|error| error.to_string())?;
    connection.abort();
    Ok(())
}

fn gated(server: &Running) -> (bool, Option<bool>) {
    (server.gated, server.cover.map(|seen| seen.met))
}

#[tokio::test]
async fn a_primary_started_in_place_keeps_direct_clients_out_until_it_is_told_to_let_them_in() {
    for elsewhere in [false, true] {
        let mut n1 = Server::initialised("n1").await;
        if elsewhere {
            n1.move_configuration().await;
        }
        n1.instance.start_primary(&Commits::Free).await.unwrap();
        let n2 = Server::standby(&n1, "n2").await;
        n1.sql("CREATE ROLE app LOGIN").await;
        let commits = Commits::WaitFor(wait(first(), 4, 1, &names(&["n2"])));
        let Commits::WaitFor(wait) = &commits else { unreachable!() };
        assert_eq!((comes_in(&n1).await, gated(&n1.running().await)), (Ok(()), (false, None)));
        n1.instance.fence().await.unwrap();

        let begun = now();
        n1.instance.start_primary(&commits).await.unwrap();
        took("a start with the gate closed", begun);
        let refused = comes_in(&n1).await.unwrap_err();
        assert!(refused.starts_with("28000 pg_hba.conf rejects connection for host"), "{refused}");
        // Standbys and agents come in, and another agent than the one that closed the gate knows of it.
        n1.instance.cover(wait).await.unwrap();
        follow(&n2, &n1, first()).await;
        until_met(&n1, 4).await;
        let successor = Instance::open(n1.settings.clone()).await.unwrap();
        assert!(successor.observe().await.running().is_some_and(|running| running.gated));
        assert_eq!(comes_in(&n1).await.unwrap_err(), refused);

        // Rules that PostgreSQL would not take over are told, not waited for.
        let rules = n1
            .text("SELECT min(current_setting('config_file'))")
            .await
            .replace("postgresql.conf", "pg_hba.conf");
        let good = std::fs::read_to_string(&rules).unwrap();
        std::fs::write(&rules, format!("{good}host all all nonsense\n")).unwrap();
        let error = n1.instance.let_in().await.unwrap_err();
        assert!(matches!(&error, GateError::Rules { line: Some(4), .. }), "{error}");
        assert_eq!(gated(&n1.running().await), (true, Some(true)));
        std::fs::write(&rules, &good).unwrap();

        let begun = now();
        n1.instance.let_in().await.unwrap();
        took("clients are let in", begun);
        assert_eq!((comes_in(&n1).await, gated(&n1.running().await)), (Ok(()), (false, Some(true))));
        n1.instance.let_in().await.unwrap();

        // The DBA's file is in force as ever.
        std::fs::write(&rules, format!("host all app all reject\n{good}")).unwrap();
        n1.sql("SELECT pg_reload_conf()").await;
        n1.until_rejected().await;
        std::fs::write(&rules, &good).unwrap();
        n1.instance.fence().await.unwrap();
        n1.instance.start_primary(&Commits::Free).await.unwrap();
        assert_eq!((comes_in(&n1).await, n1.text("SHOW hba_file").await), (Ok(()), rules));
    }
}

impl Server {
    async fn until_rejected(&self) {
        let begun = now();
        while comes_in(self).await.is_ok() {
            assert!(now().since(begun) < Duration::from_secs(10), "the rule is not in force");
        }
    }
}

#[tokio::test]
async fn a_primary_that_cannot_have_a_gate_is_started_all_the_same() {
    let mut n1 = Server::initialised("n1").await;
    n1.move_configuration().await;
    n1.instance.start_primary(&Commits::Free).await.unwrap();
    n1.sql("CREATE ROLE app LOGIN").await;
    let rules = n1.text("SHOW hba_file").await;
    let good = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(std::path::Path::new(&rules).with_file_name("names"), "app\n").unwrap();
    std::fs::write(&rules, format!("host all @names all trust\n{good}")).unwrap();
    n1.instance.fence().await.unwrap();
    let wait = wait(first(), 1, 1, &names(&[]));
    n1.instance.start_primary(&Commits::WaitFor(wait)).await.unwrap();
    assert_eq!((comes_in(&n1).await, n1.running().await.gated), (Ok(()), false));
}

/// The link of one and the file of the other would be of different types to pg_rewind.
#[tokio::test]
async fn a_server_that_had_a_gate_can_be_rewound_to_one_that_had_one() {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    n1.instance.fence().await.unwrap();
    // What n1 writes from here on n2 is to lack.
    n2.instance.recruit().await.unwrap();
    let commits = |number| Commits::WaitFor(wait(first(), number, 1, &names(&[])));
    n1.instance.start_primary(&commits(1)).await.unwrap();
    n1.instance.let_in().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.fence().await.unwrap();
    n2.instance.start_primary(&commits(2)).await.unwrap();
    n2.instance.let_in().await.unwrap();
    n2.instance.checkpoint().await.unwrap();
    n1.instance.fence().await.unwrap();
    let running = n2.running().await;
    let rejoined = n1.instance.rejoin(&n2.upstream(), &running).await.unwrap();
    assert!(matches!(rejoined, Rejoined::Rewound { .. }), "{rejoined:?}");
    assert!(!n1.settings.data_dir.join("pgherd_hba.conf").exists());
}
