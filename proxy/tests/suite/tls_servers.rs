//! Encryption between the proxy and servers.

use crate::harness::{Access, Agent, Authority, Postgres, Proxy, Script, psql, soon};

const IS_ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// What a session through a proxy with this `[server_tls]` finds: `t` or `f`, or why there is none.
async fn encrypted(server: &Postgres, lines: &str) -> Result<String, String> {
    let lines = format!("hold_timeout = '2s'\n[server_tls]\n{lines}");
    let mut agent = Agent::start(Some(Script::new(&[server]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
    let told = psql(&proxy, "host=127.0.0.1", IS_ENCRYPTED).await;
    proxy.stop().await;
    told.map(|text| text.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_prove_as_much_as_the_mode_demands() {
    let primary = Postgres::primary(Access::Trust);
    let (authority, other) = (Authority::new(), Authority::new());
    let root = |authority: &Authority| format!("root = '{}'", authority.root().display());
    let yes = Ok("t".to_owned());
    let no = Ok("f".to_owned());

    assert_eq!(encrypted(&primary, "mode = 'prefer'").await, no, "a server without TLS");
    let refused = encrypted(&primary, "mode = 'require'").await.unwrap_err();
    assert!(refused.contains("the server does not offer TLS"), "{refused}");

    let files = authority.sign("elsewhere", &["elsewhere"]);
    primary.encrypt(&files, "hostssl all all all trust");
    for mode in ["prefer", "require"] {
        assert_eq!(encrypted(&primary, &format!("mode = '{mode}'")).await, yes, "{mode}");
    }
    let refused = encrypted(&primary, "mode = 'disable'").await.unwrap_err();
    assert!(refused.contains("no pg_hba.conf entry"), "the server's own words: {refused}");
    for (mode, authority, expected) in [
        ("prefer", &other, true),
        ("require", &authority, true),
        ("require", &other, false),
        ("verify-ca", &authority, true),
        ("verify-ca", &other, false),
        ("verify-full", &authority, false),
    ] {
        let told = encrypted(&primary, &format!("mode = '{mode}'\n{}", root(authority))).await;
        match &told {
            Ok(told) => assert!(expected && told == "t", "{mode}"),
            Err(error) => {
                assert!(!expected && error.contains("no encrypted connection"), "{mode}: {error}");
                assert!(!error.contains("elsewhere") && !error.contains("root.crt"), "{mode}: {error}");
            }
        }
    }

    primary.encrypt(&authority.sign("server", &["127.0.0.1"]), "hostssl all all all trust");
    let full = format!("mode = 'verify-full'\n{}", root(&authority));
    assert_eq!(encrypted(&primary, &full).await, yes);
    // Without alternative names the common name counts, as with libpq.
    primary.encrypt(&authority.sign("127.0.0.1", &[]), "hostssl all all all trust");
    assert_eq!(encrypted(&primary, &full).await, yes);

    primary.encrypt(&files, "hostnossl all all all trust");
    assert_eq!(encrypted(&primary, "mode = 'prefer'").await, no, "a server that wants it in clear");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_reads_and_cancels_are_encrypted_too() {
    let primary = Postgres::primary(Access::Scram);
    let standby = primary.standby();
    let authority = Authority::new();
    let rules = "hostssl all all all scram-sha-256";
    for server in [&primary, &standby] {
        server.encrypt(&authority.sign("server", &["127.0.0.1"]), rules);
    }
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let root = authority.root();
    let lines = format!("[server_tls]\nmode = 'verify-full'\nroot = '{}'", root.display());
    let proxy = Proxy::start_with(&mut agent, Access::Scram, &lines).await;
    let client = proxy.connect().await;
    let is_encrypted = async |sql: &str| soon(client.query_one(sql, &[])).await.unwrap().get::<_, bool>(0);
    assert!(is_encrypted(IS_ENCRYPTED).await);
    client.batch_execute("BEGIN; CREATE TABLE written()").await.unwrap();
    assert!(is_encrypted(IS_ENCRYPTED).await, "on the primary");
    client.batch_execute("COMMIT").await.unwrap();
    let text = "x".repeat(3 << 20);
    let row = soon(client.query_one("SELECT $1::text || $1::text", &[&text])).await.unwrap();
    assert_eq!(row.get::<_, String>(0).len(), 6 << 20);
    let cancel = client.cancel_token();
    let (endless, ()) = soon(async {
        tokio::join!(client.query_one("SELECT pg_sleep(60)", &[]), async {
            primary.until_it_runs("SELECT pg_sleep(60)").await;
            cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        })
    })
    .await;
    assert_eq!(endless.unwrap_err().code().unwrap().code(), "57014");
    let login = proxy.login("postgres", "wrong", "postgres");
    let error = soon(tokio_postgres::connect(&login, tokio_postgres::NoTls)).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "28P01");
    proxy.stop().await;

    // Who only prefers encryption goes by what the server's own rules want.
    primary.encrypt(&authority.sign("server", &["127.0.0.1"]), "hostnossl all all all scram-sha-256");
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Scram).await;
    assert_eq!(psql(&proxy, "host=127.0.0.1", IS_ENCRYPTED).await.unwrap(), "f\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_certificate_is_believed_and_a_new_list_takes_effect() {
    let primary = Postgres::primary(Access::Trust);
    let (authority, other) = (Authority::new(), Authority::new());
    let files = authority.sign("server", &["127.0.0.1"]);
    primary.encrypt(&files, "hostssl all all all trust");
    let own = format!("root = '{}'", files.certificate.display());
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(
            encrypted(&primary, &format!("mode = '{mode}'\n{own}")).await,
            Ok("t".to_owned()),
            "{mode}"
        );
    }
    let another = authority.sign("another", &["127.0.0.1"]);
    let listed = format!("mode = 'verify-ca'\nroot = '{}'", another.certificate.display());
    let refused = encrypted(&primary, &listed).await.unwrap_err();
    assert!(refused.contains("no encrypted connection"), "of the same authority, but not listed: {refused}");

    let root = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(other.root(), root.path()).unwrap();
    let lines =
        format!("hold_timeout = '2s'\n[server_tls]\nmode = 'verify-ca'\nroot = '{}'", root.path().display());
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
    assert!(psql(&proxy, "host=127.0.0.1", IS_ENCRYPTED).await.is_err());
    std::fs::copy(authority.root(), root.path()).unwrap();
    soon(async { while psql(&proxy, "host=127.0.0.1", IS_ENCRYPTED).await.is_err() {} }).await;
    assert_eq!(psql(&proxy, "host=127.0.0.1", IS_ENCRYPTED).await.unwrap(), "t\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_handshake_fails_who_only_prefers_encryption_goes_on_in_clear() {
    let primary = Postgres::primary(Access::Trust);
    let authority = Authority::new();
    primary.encrypt(&authority.sign("server", &["127.0.0.1"]), "host all all all trust");
    // Older than anything the proxy speaks.
    primary.configure(
        "ssl_min_protocol_version = 'TLSv1'\nssl_max_protocol_version = 'TLSv1.1'",
        "host all all all trust",
    );
    assert_eq!(encrypted(&primary, "mode = 'prefer'").await, Ok("f".to_owned()));
    let refused = encrypted(&primary, "mode = 'require'").await.unwrap_err();
    assert!(refused.contains("no encrypted connection"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_ask_for_a_certificate_are_shown_one() {
    let primary = Postgres::primary(Access::Trust);
    let (authority, other) = (Authority::new(), Authority::new());
    primary.keep(&authority.root(), "root.crt");
    let map = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(map.path(), "proxies proxy1 postgres\n").unwrap();
    primary.keep(map.path(), "pg_ident.conf");
    primary.encrypt(&authority.sign("server", &["127.0.0.1"]), "");
    primary.configure("ssl_ca_file = 'root.crt'", "hostssl all all all cert map=proxies");
    let shown = |authority: &Authority, name: &str| {
        let files = authority.sign(name, &[]);
        format!(
            "mode = 'require'\ncertificate = '{}'\nkey = '{}'",
            files.certificate.display(),
            files.key.display()
        )
    };
    assert_eq!(encrypted(&primary, &shown(&authority, "proxy1")).await, Ok("t".to_owned()));
    let refused = encrypted(&primary, &shown(&authority, "proxy2")).await.unwrap_err();
    assert!(
        refused.contains("certificate authentication failed for user"),
        "the server's own words: {refused}"
    );
    assert!(
        encrypted(&primary, &shown(&other, "proxy1")).await.is_err(),
        "of an authority that the server does not know"
    );
    let refused = encrypted(&primary, "mode = 'require'").await.unwrap_err();
    assert!(refused.contains("connection requires a valid client certificate"), "{refused}");
}
