use std::time::Duration;

use super::*;

const WITNESS: &str = r#"
[cluster]
name = "demo"
[node]
id = 4
name = "server4"
kind = "witness"
listen = "0.0.0.0:7800"
[[members]]
id = 4
name = "server4"
agent = "10.0.0.4:7800"
[[members]]
id = 1
name = "server1"
agent = "10.0.0.1:7800"
"#;

const DATABASE: &str = r#"
[cluster]
name = "demo"
[node]
id = 1
name = "server1"
listen = "10.0.0.1:7800"
[[members]]
id = 1
name = "server1"
agent = "10.0.0.1:7800"
[postgres]
data_dir = "/data/main"
address = "10.0.0.1:5432"
password = "hunter2"
"#;

fn problems(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn a_database_node_needs_little() {
    let config = Config::parse(DATABASE).unwrap();
    let postgres = config.postgres.as_ref().unwrap();
    assert_eq!(postgres.config_file.to_str().unwrap(), "/data/main/postgresql.conf");
    assert_eq!(postgres.stop_timeout, Duration::from_secs(10));
    assert_eq!(config.node.kind, NodeKind::Database);
    assert_eq!(config.timings, Timings::default());
    assert_eq!(
        config.failover,
        Failover {
            auto: true,
            max_lag: ByteSize(16 << 20),
            salvage_wait: Duration::from_secs(5),
            minimum_standbys: 0,
            durability: Durability::default(),
            rejoin: Rejoin { auto: true, clone: true, keep_old_data: Duration::from_secs(72 * 3600) },
        }
    );
    assert_eq!(config.switchover.unmovable, Unmovable::Wait);
    assert_eq!(config.descriptor().postgres.unwrap().to_string(), "10.0.0.1:5432");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_witness_is_reached_where_the_members_say() {
    let config = Config::parse(WITNESS).unwrap();
    assert_eq!(config.node.advertise.to_string(), "10.0.0.4:7800");
    assert_eq!(config.members.iter().map(|member| member.id.0).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(config.postgres, None);
    assert_eq!(config.descriptor().kind, NodeKind::Witness);
}

#[test]
fn postgres_belongs_to_database_nodes() {
    let text = problems(&WITNESS.replace("kind = \"witness\"\n", ""));
    assert!(text.contains("postgres: missing; a database node needs"), "{text}");
    let text = problems(&format!("{WITNESS}[postgres]\nnonsense = 1\n"));
    assert!(text.starts_with("1 problem\n  postgres: a witness runs no PostgreSQL"), "{text}");
}

#[test]
fn a_node_is_who_the_members_say_it_is() {
    let text = problems(&DATABASE.replacen("server1", "server9", 1));
    assert!(text.contains("node.name: node 1 is \"server9\" here, but \"server1\" in [[members]]"), "{text}");
    let text = problems(&DATABASE.replacen("id = 1", "id = 7", 1));
    assert!(text.contains("node.id: \"server1\" has id 7 here, but id 1 in [[members]]"), "{text}");
    let text = problems(&WITNESS.replacen("id = 4", "id = 7", 1).replacen("server4", "server7", 1));
    assert!(text.contains("members: this node (id 7, \"server7\") is not listed"), "{text}");
    let text = problems(DATABASE.split_once("[[members]]").unwrap().0);
    assert!(text.contains("members: missing; list every node"), "{text}");
}

#[test]
fn members_share_nothing() {
    let text = problems(&WITNESS.replace("id = 1\n", "id = 4\n").replace("10.0.0.1", "10.0.0.4"));
    assert!(text.contains("members: id 4 is listed 2 times"), "{text}");
    assert!(text.contains("members: agent 10.0.0.4:7800 is listed 2 times"), "{text}");
    let text = problems(&WITNESS.replace("server1", "east-1").replace("server4", "east_1"));
    assert!(
        text.contains("\"east-1\" and \"east_1\" would share the replication slot pgherd_east_1"),
        "{text}"
    );
}

#[test]
fn a_cluster_has_fifteen_voters_at_most() {
    let mut text = WITNESS.to_owned();
    for id in 5..=18 {
        text += &format!("[[members]]\nid = {id}\nname = \"server{id}\"\nagent = \"10.0.0.{id}:7800\"\n");
    }
    assert!(problems(&text).contains("members: 16 nodes are listed; a cluster has at most 15"));
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = problems(
        "[cluster]\nnmae = 'demo'\n[node]\nid = 0\nname = 'server1'\nlisten = '10.0.0.1'\nkind = 'arbiter'\n\
         [timings]\nlease = '0s'\nbeat_intreval = '1s'\n[failover]\nmax_lag = '16 apples'\n",
    );
    for part in [
        "cluster.name: missing",
        "cluster.nmae: unknown key; did you mean `name`?",
        "node.id: found 0",
        "node.listen: ",
        "node.kind: ",
        "members: missing",
        "timings.lease: must be longer than 0",
        "timings.beat_intreval: unknown key; did you mean `beat_interval`?",
        "failover.max_lag: ",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn broken_relations_are_reported_with_both_numbers() {
    let text = problems(&format!("{DATABASE}stop_timeout = \"20s\"\n[timings]\nlease = \"1s\"\n"));
    assert!(
        text.contains("timings: election_timeout_max < lease does not hold: 1.2s is not below 1s"),
        "{text}"
    );
    assert!(
        text.contains(
            "drain_timeout + postgres.stop_timeout < switchover_timeout does not hold: 25s is not below 20s"
        ),
        "{text}"
    );
}

#[test]
fn a_standby_may_be_left_alone() {
    let config = Config::parse(&format!("{WITNESS}[timings]\nrestart_standby_after = \"0s\"\n")).unwrap();
    assert!(config.timings.restart_standby_after.is_zero());
}

#[test]
fn every_key_is_known() {
    let keys = known_keys();
    let defaults = |path: &str| keys.iter().find(|key| key.path == path).map(|key| key.default.as_deref());
    assert_eq!(defaults("cluster.name"), Some(None));
    assert_eq!(defaults("members[].agent"), Some(None));
    assert_eq!(defaults("postgres.socket_dir"), Some(Some("")));
    assert_eq!(defaults("timings.lease"), Some(Some("\"2s\"")));
    assert_eq!(keys.len(), 13 + 1 + 3 + 14 + 15 + 7 + 3 + 1 + 3 + 16 + 18 + 5);
}

#[test]
fn scripts_are_parsed_and_their_placeholders_known() {
    let text = format!(
        "{DATABASE}[scripts]\nfence = \"/etc/f.sh '%p x' %f\"\ncustom_monitor = '/m'\ntimeout = '3s'\n"
    );
    let scripts = Config::parse(&text).unwrap().scripts;
    assert_eq!(scripts.fence.unwrap().fill(|name| name.to_string()), ["/etc/f.sh", "p x", "f"]);
    assert_eq!(scripts.timeout, Duration::from_secs(3));
    assert!(scripts.monitor.is_some_and(|monitor| !monitor.safe_mode));
    assert_eq!(scripts.resumed, None);
    let text = problems(&format!(
        "{DATABASE}[scripts]\nresumed = '/x %p'\nfence = 'x.sh'\nload_balancer_attach = '/x %h %d'\n"
    ));
    for part in [
        "scripts.resumed: %p is not known: this script knows no placeholders; %% is a percent sign",
        "scripts.fence: found \"x.sh\": \"x.sh\" is no absolute path",
        "scripts.load_balancer_attach: %d is not known: this script knows %h and %t",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn notifications_need_an_addressee() {
    let text = format!(
        "{DATABASE}[notifications]\nlevel = 'warning'\n[notifications.smtp]\nhost = 'localhost'\nfrom = 'a@b.c'\nto = ['DBA <d@b.c>']\n\
         user = 'u'\npassword = 'hunter3'\n[notifications.webhook]\nurl = 'https://x.y/z'\nheaders.X-Key = 'hunter4'\n"
    );
    let config = Config::parse(&text).unwrap();
    assert_eq!(config.notifications.level, pgherd_core::events::Severity::Warning);
    assert_eq!(
        config.notifications.smtp.as_ref().map(|smtp| (smtp.port, smtp.tls)),
        Some((25, SmtpTls::None))
    );
    assert!(!format!("{config:?}").contains("hunter"), "{config:?}");
    let text = problems(&format!(
        "{DATABASE}[notifications]\nlevel = 'loud'\n[notifications.smtp]\nfrom = 'nobody'\nto = []\nuser = 'u'\n\
         [notifications.webhook]\nurl = 'ftp://x'\nheaders.'a b' = 'c'\n"
    ));
    let clear = problems(&format!(
        "{DATABASE}[notifications.smtp]\nhost = 'mx'\nfrom = 'a@b.c'\nto = ['d@b.c']\nuser = 'u'\npassword = 'p'\n\
         [notifications.webhook]\nurl = 'http://x.y/z'\ntoken_file = '/t'\n"
    ));
    for part in [
        "notifications.smtp.tls: the password would cross the network in the clear",
        "notifications.webhook.token_file: the token would cross the network in the clear",
    ] {
        assert!(clear.contains(part), "{part} not in {clear}");
    }
    for part in [
        "notifications.level: ",
        "notifications.smtp.host: missing",
        "notifications.smtp.from: \"nobody\" is no mail address",
        "notifications.smtp.to: nobody is listed",
        "notifications.smtp.user: a login is a user and a password",
        "notifications.webhook.url: found \"ftp://x\": it begins with neither http:// nor https://",
        "notifications.webhook.headers: \"a b\" or its value cannot be a header",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn tags_and_the_upstream_are_told_to_the_others() {
    let tagged = |lines: &str| DATABASE.replacen("listen =", &format!("{lines}\nlisten ="), 1);
    let descriptor = Config::parse(DATABASE).unwrap().descriptor();
    assert_eq!((descriptor.tags, descriptor.upstream), (Tags::default(), None));
    let text = tagged(
        "upstream = 'server2'\ntags = { promotable = false, balance = false, sync = false, clone_from = true }",
    );
    let descriptor = Config::parse(&text).unwrap().descriptor();
    assert_eq!(descriptor.upstream.unwrap().as_str(), "server2");
    assert_eq!(descriptor.tags, Tags { promotable: false, balance: false, sync: false, clone_from: true });
    assert!(Config::parse(&tagged("priority = 0\ntags.promotable = false")).is_ok());
    assert!(Config::parse(&tagged("priority = 0")).unwrap().node.tags.promotable, "its priority says it");

    let text = problems(&tagged("priority = 0\ntags.promotable = true"));
    assert!(text.contains("node.tags.promotable: contradicts node.priority = 0"), "{text}");
    let text = problems(&tagged("upstream = 'server1'"));
    assert!(text.contains("node.upstream: names this node itself"), "{text}");
    let text = problems(&tagged("tags.promoteable = false"));
    assert!(text.contains("did you mean `promotable`?"), "{text}");
    let text = problems(&WITNESS.replacen("listen =", "upstream = 'server1'\nlisten =", 1));
    assert!(text.contains("node.upstream: a witness streams from nobody"), "{text}");
}
