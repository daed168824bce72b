//! Parameters that the cluster sets, on real servers.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_agent::postgres::{AskError, Instance, Standing, StartError, Value, Wanted};
use pgherd_agent::reconcile::Commits;

use super::server::Server;

fn wanted(number: u64, values: &[(&str, &str)]) -> Wanted {
    let value =
        |(name, value): &(&str, &str)| ((*name).to_owned(), Value { value: (*value).to_owned(), number });
    Wanted { number, values: values.iter().map(value).collect() }
}

fn values(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn set(server: &Server, number: u64, values: &[(&str, &str)]) -> Vec<String> {
    server.instance.want(wanted(number, values)).await;
    server.instance.configure().await.unwrap().into_keys().collect()
}

async fn standing(server: &Server, name: &str) -> Standing {
    let (_, parameters) = server.instance.parameters_here().await;
    parameters[name].standing.clone()
}

async fn show(server: &Server, name: &str) -> String {
    server.text(&format!("SHOW {name}")).await
}

async fn stop(server: &Server) {
    server.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
}

/// Adds a line before the one that includes the agent's file.
fn configure(server: &Server, line: &str) {
    let path = &server.settings.config_file;
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text.replace("include_if_exists", &format!("{line}\ninclude_if_exists"))).unwrap();
}

#[tokio::test]
async fn postgresql_itself_says_which_values_it_takes() {
    let server = Server::primary("n1").await;
    let asked = values(&[
        ("work_mem", "8MB"),
        ("shared_buffers", "banana"),
        ("autovacuum_naptime", "99999d"),
        ("block_size", "4096"),
        ("no_such_thing", "1"),
        ("some.extension", "anything"),
        ("log_timezone", "Mars"),
    ]);
    let complaints = server.instance.complaints(&asked).await.unwrap();
    let names: Vec<&str> = complaints.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["autovacuum_naptime", "block_size", "log_timezone", "no_such_thing", "shared_buffers"]
    );
    assert_eq!(complaints["shared_buffers"], "invalid value for parameter \"shared_buffers\": \"banana\"");
    assert!(complaints["block_size"].contains("cannot be changed"), "{complaints:?}");

    let fine = values(&[("max_connections", "0x40"), ("shared_buffers", "32MB"), ("fsync", "no")]);
    assert!(server.instance.complaints(&fine).await.unwrap().is_empty());
    let normal = server.instance.normal(&fine).await.unwrap();
    assert_eq!(normal, values(&[("max_connections", "64"), ("shared_buffers", "4096"), ("fsync", "off")]));

    let named: Vec<String> = ["work_mem", "shared_buffers", "no_such_thing"].map(str::to_owned).into();
    let contexts = server.instance.contexts(&named.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(contexts, values(&[("work_mem", "user"), ("shared_buffers", "postmaster")]));
    server.instance.try_in_session("work_mem", "8MB").await.unwrap();
    server.instance.try_in_session("work_mem", "1").await.unwrap_err();
    assert_eq!(show(&server, "work_mem").await, "4MB");

    // Nobody's value is to blame for a file that is damaged anyway.
    configure(&server, "work_mem = banana");
    let error = server.instance.complaints(&asked).await.unwrap_err();
    assert!(matches!(error, AskError::Refused(_)), "{error}");
}

#[tokio::test]
async fn what_is_set_is_in_effect_or_waits_for_a_restart_or_something_wins_over_it() {
    let server = Server::primary("n1").await;
    let here = server.instance.parameters_here().await;
    assert_eq!((here.0, here.1.len()), (0, 0));
    let set_now = [("work_mem", "5MB"), ("max_connections", "30"), ("search_path", "it's, \"$user\"")];
    assert!(set(&server, 4, &set_now).await.is_empty());
    assert_eq!(
        (show(&server, "work_mem").await.as_str(), show(&server, "search_path").await.as_str()),
        ("5MB", "it's, \"$user\"")
    );
    assert_eq!(standing(&server, "work_mem").await, Standing::InEffect);
    assert_eq!(standing(&server, "max_connections").await, Standing::RestartPending);
    // As applications have it, whatever the agent's own sessions have.
    server.sql("ALTER ROLE postgres SET work_mem = '3MB'").await;
    let other = Instance::open(server.settings.clone()).await.unwrap();
    other.want(wanted(4, &set_now)).await;
    let (_, parameters) = other.parameters_here().await;
    let running = |name: &str| parameters[name].running.as_deref();
    assert_eq!(
        (running("work_mem"), running("max_connections"), running("search_path")),
        (Some("5MB"), Some("20"), Some("it's, \"$user\""))
    );
    server.sql("ALTER ROLE postgres RESET work_mem").await;
    let pending = server.instance.pending().await.unwrap();
    assert_eq!(
        (pending.settings.as_slice(), pending.lowered.len()),
        (["max_connections".to_owned()].as_slice(), 0)
    );
    assert_eq!(
        server.instance.configured_capacity().await.unwrap().iter().next(),
        Some(("max_connections", 30))
    );
    stop(&server).await;
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "max_connections").await, "30");
    assert_eq!(standing(&server, "max_connections").await, Standing::InEffect);

    // Lowered, which matters where it is a standby.
    set(&server, 5, &[("max_connections", "25"), ("work_mem", "5MB")]).await;
    let pending = server.instance.pending().await.unwrap();
    assert_eq!(
        (pending.settings, pending.lowered),
        (vec!["max_connections".to_owned()], vec!["max_connections".to_owned()])
    );
    server.sql("ALTER SYSTEM SET work_mem = '7MB'").await;
    server.sql("SELECT pg_reload_conf()").await;
    let overridden = standing(&server, "work_mem").await;
    assert!(
        matches!(&overridden, Standing::Overridden { by } if by.ends_with("auto.conf")),
        "{overridden:?}"
    );
    assert_eq!(server.instance.parameters_here().await.0, 5);

    // Another process of the agent, and a file that an earlier version has left: nothing is lost.
    let own = server.settings.data_dir.join("pgherd.conf");
    let text = std::fs::read_to_string(&own).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.contains("pgherd.parameters.conf"))
        .fold(String::new(), |text, line| text + line + "\n");
    std::fs::write(&own, without).unwrap();
    server.sql("ALTER SYSTEM RESET work_mem").await;
    let other = Instance::open(server.settings.clone()).await.unwrap();
    other.configure().await.unwrap();
    other.want(wanted(5, &[("max_connections", "25"), ("work_mem", "5MB")])).await;
    other.configure().await.unwrap();
    assert_eq!(show(&server, "work_mem").await, "5MB");
    // Taken back.
    set(&server, 6, &[]).await;
    assert_eq!(show(&server, "work_mem").await, "4MB");
}

#[tokio::test]
async fn a_value_that_postgresql_does_not_take_costs_nothing_but_the_value() {
    let server = Server::primary("n1").await;
    assert!(
        set(&server, 1, &[("work_mem", "5MB"), ("superuser_reserved_connections", "2")]).await.is_empty()
    );
    // What it does not even read keeps nothing else from being taken over.
    let refused =
        set(&server, 2, &[("work_mem", "6MB"), ("no_such_thing", "1"), ("maintenance_work_mem", "9MB")])
            .await;
    assert_eq!(refused, ["no_such_thing"]);
    assert_eq!(
        (show(&server, "work_mem").await.as_str(), show(&server, "maintenance_work_mem").await.as_str()),
        ("6MB", "9MB")
    );
    let why = standing(&server, "no_such_thing").await;
    assert!(matches!(&why, Standing::Refused { why } if why.contains("unrecognized")), "{why:?}");

    // What it reads, but cannot start with: as many connections are reserved as there are.
    assert!(
        set(&server, 3, &[("work_mem", "7MB"), ("superuser_reserved_connections", "20")]).await.is_empty()
    );
    assert_eq!(standing(&server, "superuser_reserved_connections").await, Standing::RestartPending);
    stop(&server).await;
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(
        (
            show(&server, "work_mem").await.as_str(),
            show(&server, "superuser_reserved_connections").await.as_str()
        ),
        ("7MB", "3")
    );
    let why = standing(&server, "superuser_reserved_connections").await;
    assert!(
        matches!(&why, Standing::Refused { why } if why.contains("must be less than max_connections")),
        "{why:?}"
    );
    let told = server.instance.configure().await.unwrap();
    assert_eq!(told.into_keys().collect::<Vec<_>>(), ["superuser_reserved_connections"]);
    assert!(server.instance.configure().await.unwrap().is_empty(), "told once");
    let pending = server.instance.pending().await.unwrap();
    assert!(pending.refused[0].starts_with("superuser_reserved_connections = '20': "), "{pending:?}");

    // A new process of the agent does not walk into it again; nor is it forgotten.
    stop(&server).await;
    let other = Instance::open(server.settings.clone()).await.unwrap();
    other.want(wanted(3, &[("work_mem", "7MB"), ("superuser_reserved_connections", "20")])).await;
    other.start_primary(&Commits::Free).await.unwrap();
    let (_, parameters) = other.parameters_here().await;
    assert!(matches!(parameters["superuser_reserved_connections"].standing, Standing::Refused { .. }));
    // Set again once there is room for it.
    other.want(wanted(4, &[("max_connections", "40"), ("superuser_reserved_connections", "20")])).await;
    other.configure().await.unwrap();
    other.stop_fast(Duration::from_secs(10)).await.unwrap();
    other.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "superuser_reserved_connections").await, "20");

    // What a reload takes and a start does not: there is no certificate.
    other
        .want(wanted(
            5,
            &[("max_connections", "40"), ("superuser_reserved_connections", "20"), ("ssl", "on")],
        ))
        .await;
    other.configure().await.unwrap();
    other.stop_fast(Duration::from_secs(10)).await.unwrap();
    other.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "ssl").await, "off");
    let (_, parameters) = other.parameters_here().await;
    let why = &parameters["ssl"].standing;
    assert!(matches!(why, Standing::Refused { why } if why.contains("server.crt")), "{why:?}");
    assert_eq!(show(&server, "superuser_reserved_connections").await, "20");

    // Where the values are not to blame, they stay.
    other.want(wanted(6, &[("max_connections", "41"), ("superuser_reserved_connections", "20")])).await;
    other.configure().await.unwrap();
    other.stop_fast(Duration::from_secs(10)).await.unwrap();
    configure(&server, "no_such_thing_either = 1");
    let error = other.start_primary(&Commits::Free).await.unwrap_err();
    assert!(matches!(&error, StartError::Ended { .. }), "{error}");
    let text = std::fs::read_to_string(&server.settings.config_file).unwrap();
    std::fs::write(&server.settings.config_file, text.replace("no_such_thing_either = 1\n", "")).unwrap();
    other.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "max_connections").await, "41");
}

#[tokio::test]
async fn a_standby_has_as_much_as_its_wal_and_its_primary_say_whatever_its_files_do() {
    let (not_paused, state) = ("not paused", "SELECT pg_get_wal_replay_pause_state()");
    let primary = Server::primary("n1").await;
    let standby = Server::standby(&primary, "n2").await;
    stop(&standby).await;
    stop(&primary).await;
    configure(&primary, "max_connections = 40\nmax_locks_per_transaction = 70");
    primary.instance.start_primary(&Commits::Free).await.unwrap();
    // Its WAL knows nothing of it yet, its primary does.
    standby.instance.rejoin(&primary.upstream(), &primary.running().await).await.unwrap();
    standby.streams().await;
    primary.sql("CREATE TABLE t (a int)").await;
    let written = primary.running().await.position;
    standby.until("replay", |state| matches!(state, pgherd_agent::observation::PostgresState::Running(r) if r.position >= written)).await;
    assert_eq!(
        (show(&standby, "max_connections").await.as_str(), standby.text(state).await.as_str()),
        ("40", not_paused)
    );
    assert_eq!(standby.running().await.capacity, primary.running().await.capacity);
    // It would have less: that is told, and waits for the primary.
    standby.until_pending_lowered(&["max_connections", "max_locks_per_transaction"]).await;

    // From now on its WAL knows.
    stop(&standby).await;
    standby.instance.start_standby(None).await.unwrap();
    assert_eq!(show(&standby, "max_connections").await, "40");
    standby.instance.follow(&primary.upstream()).await.unwrap();

    // Lowered on the primary first, the standby follows as soon as it has replayed that.
    stop(&primary).await;
    configure(&primary, "max_connections = 22\nmax_locks_per_transaction = 64");
    primary.instance.start_primary(&Commits::Free).await.unwrap();
    primary.sql("CREATE TABLE u (a int)").await;
    standby.streams().await;
    let written = primary.running().await.position;
    standby.until("replay", |state| matches!(state, pgherd_agent::observation::PostgresState::Running(r) if r.position >= written)).await;
    stop(&standby).await;
    standby.instance.start_standby(Some(&primary.upstream())).await.unwrap();
    assert_eq!(
        (show(&standby, "max_connections").await.as_str(), standby.text(state).await.as_str()),
        ("22", not_paused)
    );
    standby.streams().await;
}

#[tokio::test]
async fn a_primary_that_crashed_comes_up_with_what_its_standbys_have_at_most() {
    let server = Server::primary("n1").await;
    set(&server, 1, &[("max_connections", "30"), ("max_locks_per_transaction", "60")]).await;
    server.instance.fence().await.unwrap();
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "max_connections").await, "20");
    assert_eq!(show(&server, "max_locks_per_transaction").await, "60");
    let (_, parameters) = server.instance.parameters_here().await;
    let waits = Standing::RestartPending;
    assert_eq!((&parameters["max_connections"].standing, parameters.len()), (&waits, 2));
    // In order, it has what it is to have.
    stop(&server).await;
    server.instance.start_primary(&Commits::Free).await.unwrap();
    assert_eq!(show(&server, "max_connections").await, "30");
}
