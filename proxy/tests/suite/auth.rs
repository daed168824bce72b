//! Rules for clients, MD5 hashes, client certificates, channel binding.

use crate::harness::{Access, Agent, Authority, Postgres, Proxy, Script, psql, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WHO: &str = "SELECT current_user";

/// `[tls]` with a certificate for `localhost`, believing the clients of the same authority.
fn tls(authority: &Authority) -> String {
    let files = authority.sign("proxy", &["localhost"]);
    let (certificate, key, ca) = (files.certificate.display(), files.key.display(), authority.root());
    format!(
        "[tls]\nclients = 'allowed'\ncertificate = '{certificate}'\nkey = '{key}'\nca = '{}'\n",
        ca.display()
    )
}

/// Parameters of a client that checks the proxy's certificate.
fn checking(authority: &Authority, more: &str) -> String {
    format!("host=localhost sslmode=verify-full sslrootcert={} {more}", authority.root().display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_with_md5_hashes_log_in_where_that_is_allowed() {
    let primary = Postgres::primary(Access::Scram);
    let direct = primary.direct().await;
    let roles = "SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'secret'; RESET password_encryption; CREATE ROLE new LOGIN PASSWORD 'secret'";
    direct.batch_execute(roles).await.unwrap();
    drop(direct);
    primary.configure("", "host all all all md5");
    let standby = primary.standby();
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let rules =
        "[[hba]]\nuser = ['old', 'new', 'nobody']\ndatabase = ['postgres']\nmethod = 'md5'\n[[hba]]\n";
    let proxy = Proxy::start_with(&mut agent, Access::Scram, rules).await;
    for user in ["old", "new"] {
        let login = format!("host=127.0.0.1 user={user}");
        assert_eq!(psql(&proxy, &login, WHO).await.unwrap(), format!("{user}\n"));
        let written = "SELECT txid_current() IS NOT NULL";
        assert_eq!(psql(&proxy, &login, written).await.unwrap(), "t\n", "on the primary too");
    }
    for user in ["old", "new", "nobody"] {
        let login = format!("host=127.0.0.1 user={user} password=wrong");
        let refused = psql(&proxy, &login, WHO).await.unwrap_err();
        let denied = format!("FATAL:  password authentication failed for user \"{user}\"\n");
        assert!(refused.ends_with(&denied), "{refused}");
        assert!(!refused.contains("DETAIL") && !refused.contains("HINT"), "{refused}");
    }
    // The next rule asks for SCRAM, which an MD5 hash does not do: it fails like a wrong password.
    let refused = psql(&proxy, "host=127.0.0.1 user=old dbname=template1", WHO).await.unwrap_err();
    assert!(refused.ends_with("password authentication failed for user \"old\"\n"), "{refused}");
    assert_eq!(psql(&proxy, "host=127.0.0.1 user=new dbname=template1", WHO).await.unwrap(), "new\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_rule_that_fits_decides() {
    let primary = Postgres::primary(Access::Trust);
    let direct = primary.direct().await;
    direct.batch_execute("CREATE ROLE mallory LOGIN; CREATE ROLE ann LOGIN").await.unwrap();
    let authority = Authority::new();
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let rules = "
        [[hba]]
        user = ['mallory']
        method = 'reject'
        [[hba]]
        address = '10.0.0.0/8'
        method = 'trust'
        [[hba]]
        type = 'hostssl'
        database = ['postgres']
        method = 'trust'
        [[hba]]
        type = 'local'
        method = 'trust'
    ";
    let lines = format!("{}{rules}", tls(&authority));
    let proxy = Proxy::start_with(&mut agent, Access::Scram, &lines).await;
    let encrypted = checking(&authority, "");
    assert_eq!(psql(&proxy, &checking(&authority, "user=ann"), WHO).await.unwrap(), "ann\n");
    for (parameters, expected) in [
        (
            "host=127.0.0.1 sslmode=disable user=ann".to_owned(),
            "no hba entry for host \"127.0.0.1\", user \"ann\", database \"postgres\", no encryption",
        ),
        (
            format!("{encrypted} user=ann dbname=template1"),
            "no hba entry for host \"127.0.0.1\", user \"ann\", database \"template1\", SSL encryption",
        ),
        (
            format!("{encrypted} user=mallory"),
            "hba rejects connection for host \"127.0.0.1\", user \"mallory\", database \"postgres\", SSL encryption",
        ),
    ] {
        let refused = psql(&proxy, &parameters, WHO).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_name_their_users() {
    let primary = Postgres::primary(Access::Trust);
    let direct = primary.direct().await;
    direct.batch_execute("CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN").await.unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let lines = format!("{}[[hba]]\ntype = 'hostssl'\nmethod = 'cert'\n", tls(&authority));
    let proxy = Proxy::start_with(&mut agent, Access::Scram, &lines).await;
    let by = |authority: &Authority, user: &str| {
        let files = authority.sign("ann", &[]);
        let (certificate, key) = (files.certificate.display(), files.key.display());
        format!("user={user} sslcert={certificate} sslkey={key}")
    };
    let login = |more: &str| checking(&authority, more);
    assert_eq!(psql(&proxy, &login(&by(&authority, "ann")), WHO).await.unwrap(), "ann\n");
    let refused = psql(&proxy, &login(&by(&authority, "bob")), WHO).await.unwrap_err();
    assert!(refused.contains("certificate authentication failed for user \"bob\""), "{refused}");
    let refused = psql(&proxy, &login("user=ann"), WHO).await.unwrap_err();
    assert!(refused.contains("connection requires a valid client certificate"), "{refused}");
    let refused = psql(&proxy, &login(&by(&other, "ann")), WHO).await.unwrap_err();
    assert!(refused.contains("SSL"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_bound_to_the_certificate_on_each_side() {
    let primary = Postgres::primary(Access::Scram);
    let authority = Authority::new();
    primary.encrypt(&authority.sign("server", &["127.0.0.1"]), "hostssl all all all scram-sha-256");
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let lines = format!(
        "{}[server_tls]\nmode = 'verify-full'\nroot = '{}'\n",
        tls(&authority),
        authority.root().display()
    );
    let proxy = Proxy::start_with(&mut agent, Access::Scram, &lines).await;
    let bound = checking(&authority, "channel_binding=require");
    assert_eq!(psql(&proxy, &bound, WHO).await.unwrap(), "postgres\n");
    let unbound = checking(&authority, "channel_binding=disable");
    assert_eq!(psql(&proxy, &unbound, WHO).await.unwrap(), "postgres\n");
    let in_clear = "host=localhost sslmode=disable";
    assert_eq!(psql(&proxy, in_clear, WHO).await.unwrap(), "postgres\n");
    let deceived = said_to_know_no_binding(&authority, &proxy).await;
    assert!(
        deceived.contains("C28000") && deceived.contains("channel binding negotiation error"),
        "{deceived}"
    );
    let wrong = format!("{bound} password=wrong");
    let refused = psql(&proxy, &wrong, WHO).await.unwrap_err();
    assert!(refused.contains("password authentication failed for user \"postgres\""), "{refused}");

    let mut named = tokio_postgres::Config::new();
    named.host("localhost").port(proxy.port()).user("postgres").password("secret").dbname("postgres");
    named.ssl_mode(tokio_postgres::config::SslMode::Require);
    named.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    let (client, connection) = soon(named.connect(authority.client(None, true))).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(soon(client.query_one(WHO, &[])).await.unwrap().get::<_, String>(0), "postgres");
}

/// What a client is told that could bind its login and believes that the proxy cannot: somebody in between
/// took the offer away.
async fn said_to_know_no_binding(authority: &Authority, proxy: &Proxy) -> String {
    let mut stream = soon(authority.client(None, true).direct(proxy.port())).await.unwrap();
    stream.write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0").await.unwrap();
    stream.write_all(b"p\0\0\0\x21SCRAM-SHA-256\0\0\0\0\x0by,,n=,r=abc").await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_trusted_here_must_be_trusted_by_servers() {
    // Of a client that showed no password the proxy has nothing that a server would take for a password.
    let primary = Postgres::primary(Access::Scram);
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Scram, "[[hba]]\nmethod = 'trust'\n").await;
    let refused = psql(&proxy, "host=127.0.0.1", WHO).await.unwrap_err();
    assert!(refused.contains("the server asks for scram-sha-256"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_exist_is_the_same_stranger_to_every_proxy() {
    let primary = Postgres::primary(Access::Scram);
    let mut salts = Vec::new();
    for _ in 0..2 {
        let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
        let proxy = Proxy::start(&mut agent, Access::Scram).await;
        salts.push([
            salt(&proxy, "nobody").await,
            salt(&proxy, "postgres").await,
            salt(&proxy, "noone").await,
        ]);
        proxy.stop().await;
    }
    assert_eq!(salts[0], salts[1]);
    let [nobody, postgres, noone] = &salts[0];
    assert!(nobody != noone && nobody.len() == postgres.len(), "{salts:?}");
}

/// The salt and the number of rounds that somebody is told who wants to log in as `user`.
async fn salt(proxy: &Proxy, user: &str) -> String {
    let mut stream = soon(tokio::net::TcpStream::connect(("127.0.0.1", proxy.port()))).await.unwrap();
    let startup = format!("\0\x03\0\0user\0{user}\0\0");
    let length = u32::try_from(startup.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], startup.as_bytes()].concat()).await.unwrap();
    stream.write_all(b"p\0\0\0\x21SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc").await.unwrap();
    let mut answer = String::new();
    let mut buffer = [0; 256];
    while !answer.contains(",i=") {
        let count = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "{answer:?}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    answer.split_once(",s=").unwrap().1.to_owned()
}
