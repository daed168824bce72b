//! The real `pgherd` binary, against agents that answer from a script and against none.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;

const PGHERD: &str = env!("CARGO_BIN_EXE_pgherd");

fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_remove("PGHERD_AGENT").stdin(Stdio::null());
    command
}

async fn pgherd(args: &[&str]) -> Output {
    command(Path::new(PGHERD), args).output().await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn agent_toml(listen: &str) -> String {
    format!(
        "[cluster]\nname = 'demo'\n[node]\nid = 1\nname = 'server1'\nlisten = '{listen}'\n\
         [[members]]\nid = 1\nname = 'server1'\nagent = '{listen}'\n\
         [[members]]\nid = 2\nname = 'server2'\nagent = '10.0.0.2:7800'\n\
         [postgres]\ndata_dir = '/data'\naddress = '10.0.0.1:5432'\n"
    )
}

/// An address at which nobody listens.
async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// What a scripted agent says: for each look at the cluster the next step, the last one for ever.
#[derive(Debug, Default)]
struct Script {
    steps: Vec<Step>,
    looked: usize,
    ordered: Vec<(String, Value)>,
    refuse: Option<(u16, Value)>,
}

#[derive(Debug, Clone)]
struct Step {
    status: Value,
    history: Value,
}

type Shared = Arc<Mutex<Script>>;

async fn play(script: Shared) -> String {
    async fn order(path: &'static str, script: Shared, body: Value) -> (StatusCode, Json<Value>) {
        let mut script = script.lock().unwrap();
        script.ordered.push((path.to_owned(), body));
        match &script.refuse {
            Some((status, refusal)) => (StatusCode::from_u16(*status).unwrap(), Json(refusal.clone())),
            None => (StatusCode::OK, Json(json!({"message": "the order was taken", "generation": 2}))),
        }
    }
    async fn status(State(script): State<Shared>) -> Json<Value> {
        let mut script = script.lock().unwrap();
        // The first look comes before the order; steps begin with it.
        let step = script.steps[script.looked.min(script.steps.len() - 1)].clone();
        script.looked += 1;
        Json(step.status)
    }
    async fn history(State(script): State<Shared>) -> Json<Value> {
        let script = script.lock().unwrap();
        let last = script.steps.len() - 1;
        Json(script.steps[script.looked.saturating_sub(1).min(last)].history.clone())
    }
    let mut router = Router::new().route("/v1/status", get(status)).route("/v1/history", get(history));
    for path in [
        "/v1/promote",
        "/v1/cancel-scheduled",
        "/v1/resume",
        "/v1/attach",
        "/v1/detach",
        "/v1/allow-node",
        "/v1/disallow-node",
        "/v1/set-priority",
        "/v1/pause",
        "/v1/restart",
        "/v1/unpause",
        "/v1/stop-cluster",
    ] {
        let take = move |State(script): State<Shared>, Json(body): Json<Value>| order(path, script, body);
        router = router.route(path, post(take));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router.with_state(script)).await.unwrap() });
    address
}

fn status(generation: u64, change: &Value, healthy: bool, second_agent: &str) -> Value {
    let node = |id: u64, kind: &str, agent: &str| {
        json!({
            "id": id, "name": format!("server{id}"), "kind": "database", "type": kind, "agent": agent,
            "postgres": format!("10.0.0.{id}:5432"), "db": "UP", "vip": null, "vip_active": false, "priority": 100,
            "tags": { "promotable": true, "balance": true, "sync": true, "clone_from": false },
            "weight": 1, "streams_from": null, "attached": true, "allowed": true, "timeline": 1, "received": null, "replayed": "0/3000060",
            "lag_bytes": null, "in_service": true, "pid": 100, "pending_restart": [], "pending_lowered": [], "refused": [], "invited": false, "leaving": false, "info": ""
        })
    };
    json!({
        "cluster": "demo", "answered_by": "server1", "formed": true, "system_identifier": 7, "auto_failover": true, "generation": generation,
        "durability": {"asked": 0, "standbys": 0, "of": [], "settled": true},
        "leader": "server2", "term": 1, "voters": 2, "voters_heard": 2,
        "voting": ["server1", "server2"], "without_vote": [],
        "lease": {"holder": "server1", "left_ms": 1900}, "change": change, "scheduled": null, "paused": [],
        "nodes": [node(1, "Primary", "127.0.0.1:1"), node(2, "Standby", second_agent)],
        "allowed": ["server1", "server2"], "priority": ["server2"], "proxies": [], "healthy": healthy,
        "verdict": ["All standbys are in sync with the primary."], "report": []
    })
}

fn entry(generation: u64, to: &str, outcome: &str) -> Value {
    json!({
        "kind": "switchover", "generation": generation, "from": "server1", "to": to,
        "reason": "an operator asked for it", "begun": 1000, "granted": 1300, "serving": 1412, "timeline": 2,
        "received": "0/3000060", "outcome": outcome
    })
}

fn stopping() -> Value {
    json!({"kind": "switchover", "from": "server1", "to": "server2", "phase": "stopping", "reason": "asked"})
}

/// A switchover from its beginning to this entry.
fn switchover(end: &Value) -> Vec<Step> {
    let before = json!([entry(1, "server1", "completed")]);
    let after = json!([entry(1, "server1", "completed"), end]);
    let step = |change: &Value, history: &Value| Step {
        status: status(1, change, true, "127.0.0.1:1"),
        history: history.clone(),
    };
    vec![step(&Value::Null, &before), step(&stopping(), &before), step(&Value::Null, &after)]
}

fn scripted(steps: Vec<Step>) -> Shared {
    Arc::new(Mutex::new(Script { steps, ..Script::default() }))
}

#[tokio::test]
async fn every_command_explains_itself_with_examples() {
    for command in [
        "cluster-status",
        "node-status",
        "promote",
        "resume",
        "set-priority",
        "allow-node",
        "disallow-node",
        "detach",
        "attach",
        "stop-cluster",
        "history",
        "check-config",
    ] {
        let output = pgherd(&[command, "--help"]).await;
        let text = stdout(&output);
        assert!(output.status.success(), "{command}");
        assert!(text.contains(&format!("Examples:\n  pgherd {command}")), "{command}: {text}");
        assert!(text.contains("--agent <URL>"), "{command}: {text}");
    }
    let text = stdout(&pgherd(&["--help"]).await);
    assert!(text.contains("Examples:\n") && text.contains("cluster-status"), "{text}");
}

#[tokio::test]
async fn a_command_line_that_is_not_understood_exits_with_2() {
    for args in
        [&["frobnicate"][..], &["resume"], &["resume", "Not A Name"], &["set-priority", "server1", "-1"], &[]]
    {
        assert_eq!(pgherd(args).await.status.code(), Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn where_no_agent_answers_the_operator_is_told_what_to_try() {
    let address = nobody().await;
    let output = pgherd(&["--agent", &address, "cluster-status"]).await;
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.starts_with(&format!("error: no agent answers at http://{address}: Connection refused")),
        "{text}"
    );
    assert!(
        text.contains("hint: is pgherd-agent running there? Try `systemctl status pgherd-agent`"),
        "{text}"
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), agent_toml(&address)).unwrap();
    let text = stderr(&pgherd(&["--config", file.path().to_str().unwrap(), "node-status"]).await);
    assert!(text.contains(&format!("no agent answers at http://{address} (server1): ")), "{text}");
    assert!(text.contains("--agent http://10.0.0.2:7800 (server2)"), "{text}");

    let output =
        command(Path::new(PGHERD), &["history"]).env("PGHERD_AGENT", &address).output().await.unwrap();
    assert!(stderr(&output).contains(&address), "{output:?}");
}

#[tokio::test]
async fn a_configuration_is_checked_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    let path = file.to_str().unwrap();

    std::fs::write(&file, agent_toml("10.0.0.1:7800")).unwrap();
    let output = pgherd(&["check-config", path]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        stdout(&output),
        format!(
            "{path} is valid: database node server1 (id 1) of cluster demo, whose 2 members are: server1, server2\n"
        )
    );

    std::fs::write(&file, "[cluster]\nname = 'Demo'\n[nod]\n[timings]\nlease = '1s'\n").unwrap();
    let output = pgherd(&["check-config", path]).await;
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        &format!("error: {path} is not valid: ") as &str,
        "\n  cluster.name: ",
        "\n  node.id: missing",
        "\n  members: missing",
        "\n  nod: unknown key; did you mean `node`?",
        "\n  timings: election_timeout_max < lease does not hold: 1.2s is not below 1s",
        "\nhint: ",
    ] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }

    let output = pgherd(&["check-config", "/nowhere/agent.toml"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: cannot read /nowhere/agent.toml: No such file"),
        "{output:?}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn a_proxys_configuration_is_checked_by_the_proxy() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let (program, file) = (directory.path().join("pgherd"), directory.path().join("proxy.toml"));
    std::fs::copy(PGHERD, &program).unwrap();
    std::fs::write(&file, "[cluster]\nname = 'demo'\n[proxy]\nname = 'proxy1'\n").unwrap();
    let args = ["check-config", file.to_str().unwrap()];

    let output = command(&program, &args).output().await.unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("is the configuration of a proxy") && text.contains("No such file"), "{text}");
    assert!(text.contains("hint: run `pgherd-proxy --check-config "), "{text}");

    let proxy = directory.path().join("pgherd-proxy");
    std::fs::write(&proxy, "#!/bin/sh\necho \"$1 ${2##*/}\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&proxy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = command(&program, &args).output().await.unwrap();
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("--check-config proxy.toml\n", Some(7)));
}

#[tokio::test]
async fn the_exit_status_of_cluster_status_is_the_clusters_health() {
    for healthy in [true, false] {
        let step = Step { status: status(1, &Value::Null, healthy, "127.0.0.1:1"), history: json!([]) };
        let address = play(scripted(vec![step.clone()])).await;
        let output = pgherd(&["--agent", &address, "cluster-status"]).await;
        assert_eq!(output.status.success(), healthy);
        assert!(stdout(&output).contains("\nAll standbys are in sync with the primary.\n"), "{output:?}");

        let output = pgherd(&["--agent", &address, "cluster-status", "--json"]).await;
        assert_eq!(output.status.success(), healthy);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), step.status);
    }
}

#[tokio::test]
async fn orders_reach_the_agent_as_they_were_typed() {
    let script = scripted(vec![]);
    let address = play(script.clone()).await;
    for args in [
        &["resume", "server2"][..],
        &["attach", "server2"],
        &["detach", "server2"],
        &["allow-node", "server2"],
        &["disallow-node", "server2"],
        &["set-priority", "server2", "3"],
        &["stop-cluster", "--yes"],
    ] {
        let output = pgherd(&[args, &["--agent", &address]].concat()).await;
        assert_eq!(stdout(&output), "the order was taken\n", "{output:?}");
    }
    let node = json!({"node": "server2"});
    let expected = [
        ("/v1/resume", node.clone()),
        ("/v1/attach", node.clone()),
        ("/v1/detach", node.clone()),
        ("/v1/allow-node", node.clone()),
        ("/v1/disallow-node", node),
        ("/v1/set-priority", json!({"node": "server2", "priority": 3})),
        ("/v1/stop-cluster", Value::Null),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(path, body)| (path.to_owned(), body)).collect();
    assert_eq!(script.lock().unwrap().ordered, expected);
}

#[tokio::test]
async fn a_refusal_comes_with_its_hint() {
    let script = scripted(vec![]);
    script.lock().unwrap().refuse =
        Some((409, json!({"error": "server9 is not a member", "hint": "pgherd cluster-status lists them"})));
    let address = play(script).await;
    let output = pgherd(&["--agent", &address, "resume", "server9"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: server9 is not a member\nhint: pgherd cluster-status lists them\n");
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_not_done_unasked() {
    let script = scripted(switchover(&entry(2, "server2", "completed")));
    let address = play(script.clone()).await;
    for args in [&["promote"][..], &["stop-cluster"]] {
        let output = pgherd(&[args, &["--agent", &address]].concat()).await;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            stderr(&output),
            "error: this asks for confirmation, and there is no terminal to ask on\nhint: --yes confirms in advance\n"
        );
    }
    assert!(script.lock().unwrap().ordered.is_empty());
}

#[tokio::test]
async fn a_promotion_is_followed_to_its_end() {
    let script = scripted(switchover(&entry(2, "server2", "completed")));
    let address = play(script.clone()).await;
    let output = pgherd(&["--agent", &address, "promote", "--switchover", "--to", "server2"]).await;
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.starts_with("the order was taken\n") && text.contains("stopping, new primary server2\n"),
        "{text}"
    );
    let end = "server2 is the primary (generation 2, timeline 2).\n\
               It took 412 ms: 300 ms to choose it, 112 ms until it accepted writes.\n";
    assert!(text.ends_with(end), "{text}");
    let body = json!({"switchover": true, "to": "server2", "at": null, "explain": false,
        "end_transactions": false, "allow_data_loss": false});
    let order = ("/v1/promote".to_owned(), body);
    assert_eq!(script.lock().unwrap().ordered, [order]);

    let address = play(scripted(switchover(&entry(1, "server2", "rolled_back")))).await;
    let output = pgherd(&["--agent", &address, "promote", "--yes"]).await;
    assert_eq!(output.status.code(), Some(1));
    let end = "Rolled back: server1 is still the primary.\nan operator asked for it\n";
    assert!(stdout(&output).ends_with(end), "{output:?}");

    let script = scripted(switchover(&entry(2, "server2", "completed")));
    let address = play(script.clone()).await;
    let output = pgherd(&["--agent", &address, "promote", "--switchover", "--no-wait"]).await;
    assert_eq!(stdout(&output), "the order was taken\n");
    assert_eq!(script.lock().unwrap().looked, 1);
}

#[tokio::test]
async fn a_switchover_is_scheduled_and_taken_back() {
    let script = scripted(switchover(&entry(2, "server2", "completed")));
    let address = play(script.clone()).await;
    let at = |time: &'static str| {
        let address = address.clone();
        async move { pgherd(&["--agent", &address, "promote", "--switchover", "--at", time]).await }
    };
    let past = at("2000-02-29 03:00").await;
    assert_eq!(past.status.code(), Some(1), "{past:?}");
    let told = "error: 2000-02-29 03:00 means 2000-02-29 03:00:00 +";
    assert!(stderr(&past).starts_with(told) && stderr(&past).contains(", which is past\n"), "{past:?}");
    let nonsense = at("soon").await;
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");
    assert!(stderr(&nonsense).contains("give a time such as 2026-12-01T03:00:00+01:00"), "{nonsense:?}");
    let unplanned = pgherd(&["--agent", &address, "promote", "--yes", "--at", "+1h"]).await;
    assert_eq!(unplanned.status.code(), Some(2), "only what is planned is scheduled");
    assert!(script.lock().unwrap().ordered.is_empty());

    let scheduled = at("+1h").await;
    assert!(scheduled.status.success(), "{scheduled:?}");
    assert!(stdout(&scheduled).starts_with("+1h means 2"), "{scheduled:?}");
    let cancelled = pgherd(&["--agent", &address, "promote", "--cancel-scheduled"]).await;
    assert!(cancelled.status.success(), "{cancelled:?}");
    let ordered = script.lock().unwrap().ordered.clone();
    let paths: Vec<&str> = ordered.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/v1/promote", "/v1/cancel-scheduled"]);
    assert!(ordered[0].1["at"].as_u64().unwrap() > 1_700_000_000_000, "{ordered:?}");
}

#[tokio::test]
async fn a_pause_has_an_end_that_is_understood_before_anybody_is_asked() {
    let script = scripted(switchover(&entry(2, "server2", "completed")));
    let address = play(script.clone()).await;
    let nonsense = pgherd(&["--agent", &address, "pause", "--for", "a while"]).await;
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");
    assert!(stderr(&nonsense).contains("give a duration such as 30m"), "{nonsense:?}");
    for arguments in [&["pause"][..], &["pause", "--node", "server2", "--for", "90m"], &["unpause"]] {
        let output = pgherd(&[&["--agent", &address], arguments].concat()).await;
        assert!(output.status.success(), "{output:?}");
    }
    let ordered = script.lock().unwrap().ordered.clone();
    assert_eq!(
        ordered,
        [
            ("/v1/pause".to_owned(), json!({"node": null, "for_ms": 3_600_000})),
            ("/v1/pause".to_owned(), json!({"node": "server2", "for_ms": 5_400_000})),
            ("/v1/unpause".to_owned(), json!({"node": null})),
        ]
    );
}

#[tokio::test]
async fn when_the_agent_falls_silent_another_one_is_asked() {
    let end = entry(2, "server2", "completed");
    let second = scripted(switchover(&end).split_off(1));
    let second_address = play(second.clone()).await;
    let before = Step {
        status: status(1, &Value::Null, true, &second_address),
        history: json!([entry(1, "server1", "completed")]),
    };
    let nonsense = Step { status: json!("I am not myself"), history: Value::Null };
    let address = play(scripted(vec![before, nonsense])).await;
    let output = pgherd(&["--agent", &address, "promote", "--switchover"]).await;
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains(&format!("no answer from http://{address}; asking another agent\n")), "{text}");
    assert!(text.contains("server2 is the primary (generation 2, timeline 2).\n"), "{text}");
    assert!(second.lock().unwrap().ordered.is_empty());
}
