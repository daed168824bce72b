//! What people and their scripts are told, by real programs: a mail server, an HTTP listener, shell scripts, Pgpool-II.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pgherd_cluster_tests::cluster::CliAnswer;
use pgherd_cluster_tests::daemon::Daemon;
use pgherd_cluster_tests::desk::{Desk, configure};
use pgherd_cluster_tests::install::package;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::network::Place;
use pgherd_cluster_tests::postgres::{AUTH_PASSWORD, AUTH_USER};
use pgherd_cluster_tests::process::{Signal, run};
use pgherd_cluster_tests::receiver::Receiver;
use pgherd_cluster_tests::undertaker::Undertaker;
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(40);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, time: Duration) {
    println!("FIGURE {what}: {} ms", time.as_millis());
}

/// The machine's own address on the cluster's bridge.
fn gateway(cluster: &Cluster) -> String {
    let host = &cluster.node("server1").place.host;
    let (subnet, _) = host.rsplit_once('.').unwrap_or(("127.0.0", "1"));
    format!("{subnet}.1")
}

fn host(cluster: &Cluster, node: &str) -> String {
    cluster.node(node).place.host.clone()
}

async fn switch_over(cluster: &mut Cluster, to: &str) -> TestResult {
    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", to]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    Ok(cluster.until_healthy(SOON).await?)
}

#[tokio::test]
async fn a_failover_runs_every_script_once_and_is_told_by_mail_webhook_and_script() -> TestResult {
    let mut cluster = Cluster::for_test("notify").netns(true).start().await?;
    let desk = Desk::of(&cluster)?;
    let receiver = Receiver::start(&gateway(&cluster), None).await?;
    let told = desk.script(
        "told",
        "printf '%s|%s|%s|%s\\n' \"$PGHERD_NODE\" \"$PGHERD_EVENT\" \"$1\" \"$2\" >> told.txt",
    )?;
    let (smtp, http) = (receiver.port("mail"), receiver.port("http"));
    let settings = format!(
        "[scripts]\n{}notification = \"{told}\"\n[notifications]\nprefix = \"Of the test.\"\n\
         [notifications.smtp]\nhost = \"{host}\"\nport = {smtp}\nfrom = \"pgherd@example.com\"\nto = [\"dba@example.com\", \"ops@example.com\"]\n\
         [notifications.webhook]\nurl = \"http://{host}:{http}/hook?x=1\"\nheaders.X-Team = \"dba\"\n",
        desk.hooks(),
        host = receiver.host()
    );
    configure(&mut cluster, &settings).await?;
    desk.forget()?;

    let [one, two, three] = ["server1", "server2", "server3"].map(|node| host(&cluster, node));
    let begun = Instant::now();
    let old = cluster.kill_postmaster("server1");
    assert!(old.is_some());
    cluster.until("server2 is primary", SOON, |s| (s.primary() == Some("server2")).then_some(())).await?;
    figure("crash until another primary, with a fence script", begun.elapsed());
    cluster.until_healthy(SOON).await?;
    let mut expected = vec![
        format!("server2 fence [{two}] [{one}]"),
        format!("server2 post_promotion [{two}] [{one}]"),
        "server1 db_failure".to_owned(),
        "server1 resumed".to_owned(),
        format!("load_balancer_detach [{one}] [p]"),
        format!("load_balancer_attach [{two}] [p]"),
        format!("load_balancer_attach [{one}] [s]"),
    ];
    for node in ["server1", "server3", "server4"] {
        expected.push(format!("{node} remote_pre_promotion [{two}]"));
        expected.push(format!("{node} remote_post_promotion [{two}]"));
    }
    desk.until("a failover's scripts", &expected).await?;

    let done = |text: &str| text.contains("failover from server1 to server2 is done");
    let mail = receiver.until("the mail", SOON, |one| one.kind == "mail" && done(&one.subject)).await?;
    assert_eq!(
        (mail.sender.as_str(), mail.to.join(" ")),
        ("pgherd@example.com", "dba@example.com ops@example.com".to_owned())
    );
    assert_eq!(mail.subject, "WARNING notify: failover from server1 to server2 is done: server2 is primary");
    assert!(
        mail.text.starts_with("Of the test.\n\nfailover from server1 to server2 is done"),
        "{}",
        mail.text
    );
    assert!(
        mail.text.contains("\nEvent:       failover_completed (WARNING)\nCluster:     notify\n"),
        "{}",
        mail.text
    );
    let post = receiver.until("the request", SOON, |one| one.json["event"] == "failover_completed").await?;
    assert_eq!(post.path, "/hook?x=1");
    assert_eq!(
        post.headers.get("X-Team").or(post.headers.get("x-team")).map(String::as_str),
        Some("dba"),
        "{post:?}"
    );
    assert_eq!(
        (&post.json["node"], &post.json["severity"]),
        (&"server2".into(), &"WARNING".into()),
        "{post:?}"
    );
    let told = std::fs::read_to_string(desk.path("told.txt"))?;
    assert!(
        told.contains("|failover_completed|WARNING notify: failover from server1 to server2 is done"),
        "{told}"
    );
    // Each by one agent, and once.
    for event in ["failover_begun", "failover_completed", "database_down"] {
        let mails = receiver
            .received()
            .iter()
            .filter(|one| one.kind == "mail" && one.text.contains(&format!("Event:       {event} ")))
            .count();
        let posts = receiver.received().iter().filter(|one| one.json["event"] == event).count();
        assert_eq!((mails, posts), (1, 1), "{event}: {:?}", receiver.received());
    }
    let ran = |one: &pgherd_cluster_tests::receiver::Received| {
        one.json["event"] == "script_ran" && one.json["node"] == "server2"
    };
    receiver.until("the word that a script ran", SOON, ran).await?;

    // A switchover runs the same, but nothing has failed.
    desk.forget()?;
    switch_over(&mut cluster, "server3").await?;
    let mut expected = vec![
        format!("server3 fence [{three}] [{two}]"),
        format!("server3 post_promotion [{three}] [{two}]"),
        format!("load_balancer_detach [{two}] [p]"),
        format!("load_balancer_attach [{three}] [p]"),
        format!("load_balancer_attach [{two}] [s]"),
    ];
    for node in ["server1", "server2", "server4"] {
        expected.push(format!("{node} remote_pre_promotion [{three}]"));
        expected.push(format!("{node} remote_post_promotion [{three}]"));
    }
    desk.until("a switchover's scripts", &expected).await?;

    // A primary that is cut off is fenced and says so itself, once it is heard again.
    desk.forget()?;
    cluster.cut("server3").await?;
    wait_until("server3 runs its script", SOON, async || {
        let calls = desk.calls();
        if calls.contains(&"server3 primary_isolated".to_owned()) { Ok(()) } else { Err(calls.join("\n")) }
    })
    .await?;
    cluster.heal("server3").await?;
    cluster.until_healthy(SOON).await?;
    receiver.until("server3 tells", SOON, |one| one.json["event"] == "primary_isolated").await?;
    assert!(!desk.calls().contains(&"server3 db_failure".to_owned()), "{:?}", desk.calls());

    let answer = cluster.cli("server4", &["notify-test"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.out.lines().filter(|line| line.ends_with(": sent")).count(), 3, "{answer:?}");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_fence_script_that_fails_stops_the_promotion_until_it_succeeds() -> TestResult {
    let mut cluster = Cluster::for_test("notify-fence").start().await?;
    let desk = Desk::of(&cluster)?;
    let receiver = Receiver::start("127.0.0.1", None).await?;
    let fence = desk
        .script("fence", "echo \"$PGHERD_NODE\" >> tried; echo 'the power switch does not answer'; exit 7")?;
    let http = receiver.port("http");
    let settings = format!(
        "[scripts]\nfence = \"{fence} %p %f\"\n[notifications]\nlevel = \"severe\"\n[notifications.webhook]\nurl = \"http://127.0.0.1:{http}/\"\n"
    );
    configure(&mut cluster, &settings).await?;

    cluster.kill_postmaster("server1");
    let failed =
        receiver.until("the failure is told", SOON, |one| one.json["event"] == "script_failed").await?;
    let text = failed.json["text"].as_str().unwrap_or_default();
    assert!(text.contains("failed (exit status: 7). It said:\nthe power switch does not answer"), "{text}");
    assert_eq!(failed.json["severity"], "SEVERE");
    wait_until("it is tried again", SOON, async || {
        let tried = std::fs::read_to_string(desk.path("tried")).unwrap_or_default();
        if tried.lines().count() >= 3 { Ok(()) } else { Err(tried) }
    })
    .await?;
    assert_eq!(cluster.writable().await, Vec::<&str>::new(), "no promotion");
    let status = cluster.cli("server4", &["cluster-status"]).await?;
    assert!(status.out.contains("There is no promotion before it succeeds"), "{status:?}");

    desk.script("fence", "exit 0")?;
    let begun = Instant::now();
    cluster.until("there is a primary", SOON, |status| status.primary().map(|_| ())).await?;
    figure("fence script succeeds until there is a primary", begun.elapsed());
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&["script fence", "fence script", CLIENT_LOST])?)
}

#[tokio::test]
async fn what_hangs_holds_nothing_up() -> TestResult {
    let mut cluster = Cluster::for_test("notify-hang").start().await?;
    let desk = Desk::of(&cluster)?;
    let hang = desk.script("hang", "echo $$ >> hanging; exec sleep 1000")?;
    // Nobody ever answers there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = silent.local_addr()?.port();
    let keys = [
        "post_promotion",
        "remote_pre_promotion",
        "remote_post_promotion",
        "db_failure",
        "load_balancer_attach",
        "load_balancer_detach",
        "notification",
    ];
    let scripts: String = keys.map(|key| format!("{key} = \"{hang}\"\n")).concat();
    let settings = format!(
        "[scripts]\ntimeout = \"3s\"\n{scripts}[notifications.smtp]\nhost = \"127.0.0.1\"\nport = {port}\nfrom = \"a@b.c\"\nto = [\"a@b.c\"]\n\
         [notifications.webhook]\nurl = \"http://127.0.0.1:{port}/\"\n"
    );
    configure(&mut cluster, &settings).await?;
    let writer = Writer::start(&cluster, "hang").await?;
    writer.until_written(50, SOON).await?;
    cluster.kill_postmaster("server1");
    cluster.until("server2 is primary", SOON, |s| (s.primary() == Some("server2")).then_some(())).await?;
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    figure("longest gap of a writer while every script hangs", outcome.longest_gap);
    assert!(outcome.longest_gap < Duration::from_secs(2), "{outcome:?}");
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    // Each is killed in its time.
    wait_until("no script hangs any more", SOON, async || {
        let text = std::fs::read_to_string(desk.path("hanging")).unwrap_or_default();
        let left: Vec<&str> = text.lines().filter(|pid| Path::new("/proc").join(pid).exists()).collect();
        if !text.is_empty() && left.is_empty() { Ok(()) } else { Err(format!("{left:?} of {text}")) }
    })
    .await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_custom_monitor_has_the_last_word_on_a_database() -> TestResult {
    let mut cluster = Cluster::for_test("notify-monitor").start().await?;
    let desk = Desk::of(&cluster)?;
    let monitor = desk.script("monitor", "echo \"$PGHERD_NODE is checked\" >> checked; [ ! -e \"bad-$PGHERD_NODE\" ] || { echo 'the tablespace is gone'; exit 1; }")?;
    let settings = format!(
        "[scripts]\ncustom_monitor = \"{monitor}\"\ncustom_monitor_interval = \"200ms\"\ncustom_monitor_timeout = \"5s\"\n"
    );
    configure(&mut cluster, &settings).await?;

    // A standby leaves the rotation, and comes back.
    std::fs::write(desk.path("bad-server3"), "")?;
    cluster
        .until("server3 is out", SOON, |s| {
            s.node("server3").filter(|n| n.info.contains("the tablespace is gone")).map(|_| ())
        })
        .await?;
    assert_eq!(cluster.primary().await?, "server1");
    std::fs::remove_file(desk.path("bad-server3"))?;
    cluster.until_healthy(SOON).await?;

    // The primary is replaced, and by the one whose monitor is content.
    std::fs::write(desk.path("bad-server2"), "")?;
    cluster
        .until("server2 is out", SOON, |s| {
            s.node("server2").filter(|n| n.info.contains("the tablespace is gone")).map(|_| ())
        })
        .await?;
    let begun = Instant::now();
    std::fs::write(desk.path("bad-server1"), "")?;
    cluster.until("server3 is primary", SOON, |s| (s.primary() == Some("server3")).then_some(())).await?;
    figure("custom monitor fails until another primary", begun.elapsed());
    let history = cluster.cli("server4", &["history"]).await?;
    assert!(
        history.out.contains("has failed its custom monitor (it failed (exit status: 1)"),
        "{}",
        history.out
    );
    std::fs::remove_file(desk.path("bad-server1"))?;
    std::fs::remove_file(desk.path("bad-server2"))?;
    cluster.until_healthy(SOON).await?;

    // In safe mode it is told, and nothing is done.
    configure(&mut cluster, &format!("{settings}custom_monitor_safe_mode = true\n")).await?;
    let generation = cluster.status().await?.generation;
    std::fs::write(desk.path("bad-server3"), "")?;
    wait_until("server3 complains", SOON, async || {
        let log = std::fs::read_to_string(cluster.node("server3").agent.log()).unwrap_or_default();
        if log.contains("event=\"monitor_complains\"") { Ok(()) } else { Err("it does not") }
    })
    .await?;
    let same = never("anything is done", Duration::from_secs(2), async || match cluster.status().await {
        Ok(status) if status.healthy && status.generation == generation => None,
        Ok(status) => Some(status.summary()),
        Err(error) => Some(error.to_string()),
    });
    same.await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

/// Restarts the witness's agent with these settings, and has it try its channels.
async fn tried(cluster: &mut Cluster, settings: &str) -> Result<CliAnswer, Failure> {
    let file = cluster.node("server4").dir.join("agent.toml");
    let text = std::fs::read_to_string(&file)?;
    let before = text.split("\n# of the test\n").next().unwrap_or_default();
    std::fs::write(&file, format!("{before}\n# of the test\n{settings}"))?;
    let agent = &mut cluster.node_mut("server4").agent;
    agent.stop(Signal::TERM, SOON).await?;
    agent.start()?;
    let answered = wait_until("the agent answers", SOON, async || {
        match cluster.cli("server4", &["notify-test"]).await {
            Ok(answer) if answer.err.is_empty() => Ok(answer),
            Ok(answer) => Err(answer.err),
            Err(error) => Err(error.to_string()),
        }
    });
    Ok(answered.await?)
}

#[tokio::test]
async fn mail_and_webhook_are_encrypted_and_log_in_where_that_is_asked_for() -> TestResult {
    let mut cluster = Cluster::for_test("notify-tls").start().await?;
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
        .map_err(|error| Failure::new(error.to_string()))?;
    let (chain, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let receiver = Receiver::start("127.0.0.1", Some((&chain, &key))).await?;
    let ca = receiver.dir().join("chain.pem").display().to_string();
    let secret = receiver.dir().join("secret");
    std::fs::write(&secret, "secret\n")?;
    let secret = secret.display();
    let mail = |kind: &str, tls: &str, more: &str| {
        let port = receiver.port(kind);
        format!(
            "[notifications]\nlevel = \"severe\"\n[notifications.smtp]\nhost = \"localhost\"\nport = {port}\ntls = \"{tls}\"\n\
             from = \"pgherd@example.com\"\nto = [\"dba@example.com\"]\n{more}"
        )
    };
    let (trust, login) =
        (format!("ca_file = \"{ca}\"\n"), format!("user = \"notify\"\npassword_file = \"{secret}\"\n"));

    for kind in ["starttls", "tls"] {
        let answer = tried(&mut cluster, &mail(kind, kind, &format!("{trust}{login}"))).await?;
        assert_eq!(answer.code, 0, "{kind}: {answer:?}");
        let mail = receiver.until("the mail", SOON, |one| one.kind == kind).await?;
        assert!(mail.encrypted && mail.login, "{mail:?}");
        assert!(mail.text.starts_with("server4: a test of notifications"), "{mail:?}");
    }
    let arrived = receiver.received().len();
    for (what, settings, error) in [
        ("a stranger's certificate", mail("starttls", "starttls", &login), "certificate"),
        (
            "a wrong password",
            mail("starttls", "starttls", &format!("{trust}user = \"notify\"\npassword = \"guess\"\n")),
            "535",
        ),
        ("no login", mail("tls", "tls", &trust), "530"),
        ("a server in the clear", mail("mail", "starttls", &trust), "STARTTLS"),
    ] {
        let answer = tried(&mut cluster, &settings).await?;
        assert_eq!(answer.code, 1, "{what}: {answer:?}");
        let port = if what.contains("clear") {
            receiver.port("mail")
        } else if what == "no login" {
            receiver.port("tls")
        } else {
            receiver.port("starttls")
        };
        assert!(
            answer.out.starts_with(&format!("mail through localhost:{port}: failed: ")),
            "{what}: {answer:?}"
        );
        assert!(answer.out.contains(error), "{what}: {answer:?}");
    }
    assert_eq!(receiver.received().len(), arrived);

    let hook = |kind: &str, path: &str, more: &str| {
        let scheme = if kind == "https" { "https" } else { "http" };
        format!(
            "[notifications.webhook]\nurl = \"{scheme}://localhost:{}{path}\"\n{more}",
            receiver.port(kind)
        )
    };
    let answer =
        tried(&mut cluster, &hook("https", "/in", &format!("{trust}token_file = \"{secret}\"\n"))).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    let post =
        receiver.until("the request", SOON, |one| one.path == "/in" && one.json["event"] == "test").await?;
    let token = post.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    assert_eq!(token.map(|(_, value)| value.as_str()), Some("Bearer secret"), "{post:?}");
    for (settings, error) in [
        (hook("https", "/in", ""), "no TLS with localhost"),
        (hook("http", "/refuse", ""), "the server answered 503"),
    ] {
        let answer = tried(&mut cluster, &settings).await?;
        assert_eq!(answer.code, 1, "{answer:?}");
        assert!(answer.out.contains(error), "{error}: {answer:?}");
    }
    let answer = tried(&mut cluster, "").await?;
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(answer.out.contains("go to its log only"), "{answer:?}");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

/// The scripts of an EFM installation that attach nodes to a Pgpool and detach them, as its architecture guide prints them. The
/// paths in them are theirs.
const EFM_DIR: &str = "/tmp/efm-scripts";

fn efm_script(verb: &str) -> String {
    format!(
        "#!/bin/bash\n#%h host name\noutput_file=/tmp/efm-scripts/pp_log\npool_backend=/tmp/efm-scripts/pgpool/pgpool_backend.sh\n\
         node_address=$1\ncurrent_date_time=`date +\"%Y-%m-%d %H:%M:%S\"`;\necho $current_date_time >>$output_file\n\
         echo \"node address to {verb} = $node_address\". >>$output_file\n$pool_backend {verb} $node_address >>$output_file\n\
         echo \"-----\".>>$output_file\nexit 0\n"
    )
}

/// What they call with `attach` or `detach` and a host: it asks Pgpool for the number of that host, and changes its state.
fn pool_backend(host: &str, pass: &str) -> String {
    format!(
        "#!/bin/bash\nexport PCPPASSFILE={pass}\npcp() {{ local what=$1; shift; /usr/sbin/pcp_$what -U dba -h {host} -p 9898 -w \"$@\"; }}\n\
         for ((i = 0; i < $(pcp node_count); i++)); do\n  \
         if [ \"$(pcp node_info $i | awk '{{print $1}}')\" == \"$2\" ]; then pcp ${{1}}_node $i; exit; fi\ndone\nexit 255\n"
    )
}

/// An executable that every user can run.
fn executable(path: &Path, text: &str) -> TestResult {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?)
}

/// The servers that a Pgpool takes for attached.
async fn attached(host: &str, pass: &Path) -> Result<Vec<String>, Failure> {
    let mut attached = Vec::new();
    for node in 0..3 {
        let mut command = tokio::process::Command::new("/usr/sbin/pcp_node_info");
        command.env("PCPPASSFILE", pass).args([
            "-U",
            "dba",
            "-h",
            host,
            "-p",
            "9898",
            "-w",
            &node.to_string(),
        ]);
        let row = run(command, SOON).await?;
        let mut fields = row.split_whitespace();
        let (host, status) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        // 1: up, no connections yet; 2: up; 3: down.
        if status == "1" || status == "2" {
            attached.push(host.to_owned());
        }
    }
    Ok(attached)
}

#[tokio::test]
async fn the_scripts_that_tell_a_pgpool_run_as_they_are() -> TestResult {
    package(Path::new("/usr/sbin/pgpool"), "pgpool2", &|_| ()).await?;
    let mut cluster = Cluster::for_test("notify-pgpool").netns(true).start().await?;
    let efm = Path::new(EFM_DIR);
    let mut undertaker = Undertaker::start()?;
    std::fs::create_dir(efm).map_err(|error| Failure::new(format!("{EFM_DIR} is in the way: {error}")))?;
    undertaker.will_remove(efm)?;
    let gateway = gateway(&cluster);
    let front = cluster.dir().join("pgpool");
    std::fs::create_dir_all(&front)?;
    let dir = front.display();
    let pass = front.join("pcppass");
    std::fs::write(&pass, format!("{gateway}:9898:dba:secret\n"))?;
    std::fs::set_permissions(&pass, PermissionsExt::from_mode(0o600))?;
    // The MD5 of "secret", as pcp.conf has it.
    std::fs::write(front.join("pcp.conf"), "dba:5ebe2294ecd0e0f08eab7690d2a6ee69\n")?;
    let hosts = ["server1", "server2", "server3"].map(|node| host(&cluster, node));
    let mut conf = format!(
        "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '{gateway}'\nport = 9999\nsocket_dir = '{dir}'\n\
         pcp_listen_addresses = '{gateway}'\npcp_port = 9898\npcp_socket_dir = '{dir}'\npid_file_name = '{dir}/pgpool.pid'\n\
         logdir = '{dir}'\nlog_destination = 'stderr'\nnum_init_children = 2\nsr_check_period = 0\nsr_check_user = '{AUTH_USER}'\nsr_check_password = '{AUTH_PASSWORD}'\nsr_check_database = 'postgres'\nsearch_primary_node_timeout = 5\nhealth_check_period = 0\n\
         failover_on_backend_error = off\nfailover_on_backend_shutdown = off\nfailover_command = ''\nuse_watchdog = off\n"
    );
    for (number, host) in hosts.iter().enumerate() {
        conf += &format!(
            "backend_hostname{number} = '{host}'\nbackend_port{number} = 5432\nbackend_flag{number} = 'ALLOW_TO_FAILOVER'\n"
        );
    }
    std::fs::write(front.join("pgpool.conf"), conf)?;
    let place = Place { host: gateway.clone(), netns: None, host_if: None };
    let arguments = ["-n", "-D", "-f", &format!("{dir}/pgpool.conf"), "-F", &format!("{dir}/pcp.conf")]
        .map(str::to_owned);
    let mut pgpool = Daemon::new("pgpool", Path::new("/usr/sbin/pgpool"), arguments.to_vec(), place, &front);
    pgpool.start()?;

    std::fs::create_dir(efm.join("pgpool"))?;
    executable(&efm.join("pgpool/pgpool_backend.sh"), &pool_backend(&gateway, &pass.display().to_string()))?;
    for verb in ["attach", "detach"] {
        executable(&efm.join(format!("load_balancer_{verb}.sh")), &efm_script(verb))?;
    }
    let settings = format!(
        "[scripts]\nload_balancer_attach = \"{EFM_DIR}/load_balancer_attach.sh %h\"\nload_balancer_detach = \"{EFM_DIR}/load_balancer_detach.sh %h\"\n"
    );
    configure(&mut cluster, &settings).await?;
    let until = async |what: &str, expected: &[&String]| {
        wait_until(what, SOON, async || {
            let seen = attached(&gateway, &pass).await.map_err(|error| format!("{error:?}"))?;
            let log = || std::fs::read_to_string(efm.join("pp_log")).unwrap_or_default();
            let same = seen.iter().eq(expected.iter().copied());
            if same { Ok(()) } else { Err(format!("attached: {seen:?}\n{}", log())) }
        })
        .await
    };
    let [one, two, three] = &hosts;
    until("all are attached", &[one, two, three]).await?;
    let answer = cluster.cli("server4", &["disallow-node", "server3"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until("a standby is detached", &[one, two]).await?;
    let answer = cluster.cli("server4", &["allow-node", "server3"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    cluster.until_healthy(SOON).await?;
    until("the standby is attached", &[one, two, three]).await?;

    // server1 stays out until somebody brings it back.
    cluster.kill_agent("server1").await?;
    assert!(cluster.kill_postmaster("server1").is_some());
    cluster.until("server2 is primary", SOON, |s| (s.primary() == Some("server2")).then_some(())).await?;
    until("the old primary is detached", &[two, three]).await?;
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    until("it is attached as a standby", &[one, two, three]).await?;
    let log = std::fs::read_to_string(efm.join("pp_log"))?;
    for line in [
        format!("node address to detach = {one}."),
        format!("node address to attach = {two}."),
        format!("node address to attach = {one}."),
    ] {
        assert_eq!(log.matches(&line).count(), 1, "{line}\n{log}");
    }
    pgpool.stop(Signal::INT, SOON).await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
