//! The proxy's configuration: read and checked as a whole. A reload puts another one in its place, but for
//! what only a restart can change.
//!
//! Names no backend: those come from the agents.

mod hba;
mod local;
mod own;
mod pool;
mod reload;
mod tls;
mod virtual_ip;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::config::{ByteSize, KnownKey, Millis, Problems, Reader, Secret, Section, Setting};
use pgherd_common::{ClusterName, HostPort, NodeName};

use crate::hba::Rule;
use crate::routing::Shares;
use crate::session::Consistency;

pub use local::LocalSocket;
pub use own::{Effective, Own};
pub use pool::{PoolMode, Pooling};
pub use reload::{Change, needs_restart};
pub use tls::{Pair, ServerTls, ServerTlsMode, Tls};
pub use virtual_ip::VirtualIp;

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// By SCRAM-SHA-256 against the cluster's own verifiers.
    ScramSha256,
    /// The same, or by MD5 where that is what the cluster keeps of a role's password.
    Md5,
    /// By the common name of a certificate; servers must trust the proxy.
    Cert,
    /// Not at all; servers must trust the proxy too.
    Trust,
    /// They are refused.
    Reject,
}

impl AuthMethod {
    /// Whether the cluster has to be asked for what it keeps of a password.
    fn needs_lookup(self) -> bool {
        matches!(self, Self::ScramSha256 | Self::Md5)
    }
}

/// The methods by which clients are let in, by their names.
const METHODS: [(&str, AuthMethod); 4] = [
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("md5", AuthMethod::Md5),
    ("cert", AuthMethod::Cert),
    ("trust", AuthMethod::Trust),
];

/// Where verifiers come from.
#[derive(Debug, Clone)]
pub struct Auth {
    /// How clients prove who they are.
    pub method: AuthMethod,
    /// Login that looks verifiers up; empty with [`AuthMethod::Trust`].
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Database it connects to.
    pub database: String,
    /// Takes a role's name, gives its verifier.
    pub query: String,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Topologies of other clusters are refused.
    pub cluster: ClusterName,
    /// This proxy's name, unique among proxies.
    pub name: String,
    /// Where clients are accepted.
    pub listen: Vec<HostPort>,
    /// Where clients of the same machine are accepted, too.
    pub unix_socket: Option<LocalSocket>,
    /// Where applications reach this proxy, for the agents to show.
    pub advertise: HostPort,
    /// How many threads serve clients.
    pub threads: usize,
    /// Clients above this are refused.
    pub max_client_connections: u32,
    /// So many more are let in if they are administrators.
    pub reserve: u32,
    /// Who may look at and act on the proxy itself.
    pub admins: Vec<String>,
    /// What holds where neither the database nor the user has something of its own.
    pub general: Effective,
    /// What databases have of their own.
    pub databases: BTreeMap<String, Own>,
    /// What users have of their own.
    pub users: BTreeMap<String, Own>,
    /// How long work is held while no server can take it.
    pub hold_timeout: Duration,
    /// How long a server may take to accept a connection, and again to log it in.
    pub connect_timeout: Duration,
    /// How long a client may take to log in.
    pub startup_timeout: Duration,
    /// The agents, each of which pushes the topology.
    pub agents: Vec<HostPort>,
    /// How clients prove who they are.
    pub auth: Auth,
    /// Who may connect from where, and how; empty: everybody, by the method of [`Self::auth`].
    pub hba: Vec<Rule>,
    /// TLS for clients; `None`: they are served in clear only.
    pub tls: Option<Tls>,
    /// TLS to servers.
    pub server_tls: ServerTls,
    /// How reads are shared out.
    pub shares: Shares,
    /// How long a standby that is behind is waited for before the primary serves.
    pub causal_wait: Duration,
    /// Who shares server connections, and how many there are.
    pub pool: Pooling,
    /// The address that one of several proxies has, if there is one.
    pub virtual_ip: Option<VirtualIp>,
    /// The file it was read from, if it was.
    pub file: Option<PathBuf>,
    /// Every key with what it came to.
    pub settings: Vec<Setting>,
}

const DEFAULT_QUERY: &str = "SELECT rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin";

impl Config {
    /// Reads and checks a configuration file's text.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let (mut reader, root) = Reader::parse(text);
        let config = read(&mut reader, root);
        let settings = reader.settings().to_vec();
        reader.finish(config.map(|config| Self { settings, ..config }))
    }
}

/// Every key that a configuration can hold.
pub fn known_keys() -> Vec<KnownKey> {
    let (mut reader, root) = Reader::parse("");
    // The empty configuration is refused; reading it is what makes the keys known.
    let mut rule = root.blank_entry("hba");
    let mut named = [root.blank_named("databases"), root.blank_named("users")];
    drop(read(&mut reader, root));
    drop(hba::read_rule(&mut reader, &mut rule));
    for section in &mut named {
        own::read_own(&mut reader, section);
    }
    reader.known_keys().to_vec()
}

/// A text that must be one of these words, the first of which is the default; what it stands for.
fn one_of<T: Copy>(r: &mut Reader, section: &mut Section, key: &str, words: &[(&str, T)]) -> Option<T> {
    let default = words.first().map_or("", |(word, _)| word);
    let text: String = section.or(r, key, &format!("\"{default}\""))?;
    meaning(r, section, key, &text, words)
}

/// What a text stands for that must be one of these words.
fn meaning<T: Copy>(
    r: &mut Reader,
    section: &Section,
    key: &str,
    text: &str,
    words: &[(&str, T)],
) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    if found.is_none() {
        let known: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let path = section.path_of(key);
        r.problem(&path, format!("unknown word {text:?}; expected one of {}", known.join(", ")));
    }
    found
}

/// The `[proxy]` table.
struct Front {
    name: Option<String>,
    listen: Option<Vec<HostPort>>,
    unix_socket: Option<Option<LocalSocket>>,
    advertise: Option<HostPort>,
    threads: Option<u32>,
    max_client_connections: Option<u32>,
    reserve: Option<u32>,
    admins: Option<Vec<String>>,
    idle_timeout: Option<Millis>,
    idle_in_transaction_timeout: Option<Millis>,
    hold_timeout: Option<Millis>,
    connect_timeout: Option<Millis>,
    startup_timeout: Option<Millis>,
}

fn read(r: &mut Reader, mut root: Section) -> Option<Config> {
    let mut section = root.table(r, "cluster");
    let cluster = section.required(r, "name");
    section.finish(r);
    let front = read_front(r, &mut root);
    let mut section = root.table(r, "agents");
    let agents: Option<Vec<HostPort>> = section.required(r, "addresses");
    section.finish(r);
    let hba = hba::read(r, &mut root);
    let auth = read_auth(r, &mut root, &hba);
    let tls = tls::read_clients(r, &mut root);
    let server_tls = tls::read_servers(r, &mut root);
    let routing = read_routing(r, &mut root);
    let pool = pool::read(r, &mut root);
    let databases = own::read(r, &mut root, "databases");
    let users = own::read(r, &mut root, "users");
    let virtual_ip = virtual_ip::read(r, &mut root);
    root.finish(r);
    check(r, &front, agents.as_deref());
    let by_certificate = match (&auth, hba.is_empty()) {
        (Some(auth), true) => auth.method == AuthMethod::Cert,
        _ => hba.iter().any(|rule| rule.method == AuthMethod::Cert),
    };
    if by_certificate && tls.as_ref().is_some_and(|tls| tls.as_ref().is_none_or(|tls| tls.ca.is_none())) {
        r.problem("tls.ca", "missing; method \"cert\" needs TLS and the authorities of clients");
    }

    let (listen, pool) = (front.listen?, pool?);
    let general = Effective {
        read_consistency: routing.read_consistency?,
        pool_mode: pool.mode,
        pool_size: pool.size,
        idle_timeout: own::limit(front.idle_timeout?),
        idle_in_transaction_timeout: own::limit(front.idle_in_transaction_timeout?),
    };
    Some(Config {
        cluster: cluster?,
        name: front.name?,
        advertise: front.advertise.or_else(|| listen.first().cloned())?,
        listen,
        unix_socket: front.unix_socket?,
        threads: match front.threads? {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => usize::try_from(threads).unwrap_or(usize::MAX),
        },
        max_client_connections: front.max_client_connections?,
        reserve: front.reserve?,
        admins: front.admins?,
        general,
        databases,
        users,
        hold_timeout: front.hold_timeout?.0,
        connect_timeout: front.connect_timeout?.0,
        startup_timeout: front.startup_timeout?.0,
        agents: agents?,
        auth: auth?,
        hba,
        tls: tls?,
        server_tls: server_tls?,
        shares: routing.shares?,
        causal_wait: routing.causal_wait?.0,
        pool,
        virtual_ip,
        file: None,
        settings: Vec::new(),
    })
}

fn read_front(r: &mut Reader, root: &mut Section) -> Front {
    let mut section = root.table(r, "proxy");
    let front = Front {
        name: section.required(r, "name"),
        listen: section.or(r, "listen", "[\"0.0.0.0:6432\"]"),
        unix_socket: local::read(r, &mut section),
        advertise: section.optional(r, "advertise"),
        threads: section.or(r, "threads", "0"),
        max_client_connections: section.or(r, "max_client_connections", "1000"),
        reserve: section.or(r, "reserve", "3"),
        admins: section.or(r, "admins", "[]"),
        idle_timeout: section.or(r, "idle_timeout", "\"0s\""),
        idle_in_transaction_timeout: section.or(r, "idle_in_transaction_timeout", "\"0s\""),
        hold_timeout: section.or(r, "hold_timeout", "\"10s\""),
        connect_timeout: section.or(r, "connect_timeout", "\"2s\""),
        startup_timeout: section.or(r, "startup_timeout", "\"10s\""),
    };
    section.finish(r);
    front
}

fn read_auth(r: &mut Reader, root: &mut Section, hba: &[Rule]) -> Option<Auth> {
    let mut section = root.table(r, "auth");
    let method = one_of(r, &mut section, "method", &METHODS);
    let user: Option<String> = section.or(r, "user", "\"\"");
    let password = section.or(r, "password", "\"\"");
    let database = section.or(r, "database", "\"postgres\"");
    let query: Option<String> = section.or(r, "query", &format!("\"{DEFAULT_QUERY}\""));
    let needs_lookup = match method {
        Some(method) if hba.is_empty() => method.needs_lookup(),
        _ => hba.iter().any(|rule| rule.method.needs_lookup()),
    };
    if needs_lookup && user.as_ref().is_some_and(String::is_empty) {
        let path = section.path_of("user");
        r.problem(&path, "missing; to check passwords a login is needed that may read verifiers");
    }
    if query.as_ref().is_some_and(|query| !query.contains("$1")) {
        let path = section.path_of("query");
        r.problem(&path, "must take the role's name as $1");
    }
    section.finish(r);
    Some(Auth { method: method?, user: user?, password: password?, database: database?, query: query? })
}

/// The `[routing]` table.
struct Routing {
    shares: Option<Shares>,
    read_consistency: Option<Consistency>,
    causal_wait: Option<Millis>,
}

fn read_routing(r: &mut Reader, root: &mut Section) -> Routing {
    let mut section = root.table(r, "routing");
    let read_consistency = one_of(r, &mut section, "read_consistency", own::CONSISTENCIES);
    let causal_wait = section.or(r, "causal_wait", "\"100ms\"");
    let shares = read_shares(r, section);
    Routing { shares, read_consistency, causal_wait }
}

fn read_shares(r: &mut Reader, mut section: Section) -> Option<Shares> {
    let primary_weight = section.or(r, "primary_weight", "0");
    let named: BTreeMap<String, u32> = section.map(r, "weights");
    let max_lag: Option<ByteSize> = section.or(r, "max_lag", "0");
    let max_lag_time: Option<Millis> = section.or(r, "max_lag_time", "\"0s\"");
    let path = section.path_of("weights");
    section.finish(r);
    let mut weights = BTreeMap::new();
    for (name, weight) in named {
        match name.parse::<NodeName>() {
            Ok(name) => drop(weights.insert(name, weight)),
            Err(error) => r.problem(&path, error),
        }
    }
    let lag_bytes_max = Some(max_lag?.0).filter(|bytes| *bytes > 0);
    let lag_time_max = Some(max_lag_time?.0).filter(|time| !time.is_zero());
    Some(Shares { primary_weight: primary_weight?, weights, lag_bytes_max, lag_time_max })
}

/// Beyond this it is a slip of the finger.
const THREADS_MAX: u32 = 1024;

/// Relations between values that were each fine.
fn check(r: &mut Reader, front: &Front, agents: Option<&[HostPort]>) {
    if front.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 63) {
        r.problem("proxy.name", "expected 1 to 63 characters");
    }
    if front.listen.as_ref().is_some_and(Vec::is_empty) {
        r.problem("proxy.listen", "empty; at least one address is needed");
    }
    if front.admins.as_ref().is_some_and(|admins| admins.iter().any(String::is_empty)) {
        r.problem("proxy.admins", "an empty name");
    }
    if front.max_client_connections == Some(0) {
        r.problem("proxy.max_client_connections", "0 would refuse every client");
    }
    if front.threads.is_some_and(|threads| threads > THREADS_MAX) {
        r.problem("proxy.threads", format!("more than {THREADS_MAX}; one for each processor is enough"));
    }
    if agents.is_some_and(<[HostPort]>::is_empty) {
        r.problem("agents.addresses", "empty; without an agent no backend is ever known");
    }
    let timeouts = [
        ("proxy.hold_timeout", &front.hold_timeout),
        ("proxy.connect_timeout", &front.connect_timeout),
        ("proxy.startup_timeout", &front.startup_timeout),
    ];
    for (path, value) in timeouts {
        if value.is_some_and(|value| value.0.is_zero()) {
            r.problem(path, "must be longer than 0");
        }
    }
    if let (Some(connect), Some(hold)) = (front.connect_timeout, front.hold_timeout)
        && connect.0 > hold.0
    {
        let (connect, hold) = (connect.0, hold.0);
        let why = "held work would be given up before one attempt to connect is over";
        r.problem(
            "proxy.connect_timeout",
            format!("{connect:?} is longer than hold_timeout, {hold:?}: {why}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
        [cluster]
        name = 'demo'
        [proxy]
        name = 'proxy1'
        [agents]
        addresses = ['10.0.0.1:7800']
        [auth]
        user = 'pgherd_auth'
    ";

    #[test]
    fn defaults_fill_a_minimal_configuration() {
        let config = Config::parse(MINIMAL).unwrap();
        assert_eq!(config.listen, ["0.0.0.0:6432".parse().unwrap()]);
        assert_eq!(config.advertise, config.listen[0]);
        assert_eq!(config.hold_timeout, Duration::from_secs(10));
        assert_eq!(
            (config.auth.method, config.auth.query.as_str()),
            (AuthMethod::ScramSha256, DEFAULT_QUERY)
        );
        assert_eq!(config.shares, Shares::default());
    }

    #[test]
    fn every_mistake_is_reported_with_its_path() {
        let text = "
            [cluster]
            name = 'Demo!'
            [proxy]
            name = ''
            listen = []
            threads = 2000
            max_client_connections = 0
            hold_timeout = '1s'
            connect_timeout = '2s'
            startup_timeout = '0s'
            holdtimeout = '1s'
            [agents]
            addresses = []
            [auth]
            method = 'password'
            query = 'SELECT 1'
            [routing]
            weights.Server1 = 2
            max_lag = '3 parsecs'
        ";
        let problems = Config::parse(text).unwrap_err().to_string();
        for part in [
            "cluster.name: ",
            "proxy.name: ",
            "proxy.listen: empty",
            "proxy.threads: ",
            "proxy.max_client_connections: ",
            "proxy.connect_timeout: 2s is longer than hold_timeout, 1s",
            "proxy.startup_timeout: ",
            "proxy.holdtimeout: unknown key; did you mean `hold_timeout`",
            "agents.addresses: empty",
            "auth.method: unknown word",
            "auth.query: ",
            "routing.weights: ",
            "routing.max_lag: ",
        ] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
        let needs_login = MINIMAL.replace("user = 'pgherd_auth'", "");
        assert!(Config::parse(&needs_login).unwrap_err().to_string().contains("auth.user: missing"));
    }

    #[test]
    fn rules_are_read_in_their_order() {
        let text = format!(
            "{MINIMAL}
            [[hba]]
            type = 'hostssl'
            database = ['shop', 'sameuser']
            address = '10.0.0.0/8'
            [[hba]]
            user = ['mallory']
            method = 'reject'"
        );
        let rules = Config::parse(&text).unwrap().hba;
        assert_eq!(rules.len(), 2);
        assert_eq!((rules[0].databases.len(), rules[0].method), (2, AuthMethod::ScramSha256));
        assert_eq!(rules[1].method, AuthMethod::Reject);
        let bad = format!("{text}\n[[hba]]\nuser = ['+admins']\naddress = 'samenet'\nmethod = 'cert'");
        let problems = Config::parse(&bad).unwrap_err().to_string();
        for part in ["hba[3].user: \"+admins\"", "hba[3].address: \"samenet\""] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
        let bad = format!("{text}\n[[hba]]\nmethod = 'cert'");
        let problems = Config::parse(&bad).unwrap_err().to_string();
        for part in ["hba[3].method: \"cert\" needs", "tls.ca: missing"] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
    }

    #[test]
    fn unix_sockets_are_named_after_the_ports() {
        let lines =
            "listen = ['127.0.0.1:6432', '[::1]:6432', '10.0.0.1:5432']\nunix_socket_dir = '/run/pgherd'";
        let text = MINIMAL.replace("[proxy]", &format!("[proxy]\n{lines}"));
        let config = Config::parse(&text).unwrap();
        let paths: Vec<_> = config.unix_sockets().iter().map(|path| path.display().to_string()).collect();
        assert_eq!(paths, ["/run/pgherd/.s.PGSQL.5432", "/run/pgherd/.s.PGSQL.6432"]);
        assert_eq!(config.unix_socket.unwrap().mode, 0o777);
        assert_eq!(Config::parse(MINIMAL).unwrap().unix_sockets().len(), 0);
        for mode in ["", "0888", "+77", "1777", "rwx"] {
            let text = text.replace("[proxy]", &format!("[proxy]\nunix_socket_mode = '{mode}'"));
            let problems = Config::parse(&text).unwrap_err().to_string();
            assert!(problems.contains("proxy.unix_socket_mode: "), "{mode}: {problems}");
        }
        let local = format!("{MINIMAL}\n[[hba]]\ntype = 'local'\naddress = '10.0.0.0/8'");
        let problems = Config::parse(&local).unwrap_err().to_string();
        assert!(problems.contains("hba[1].address: a Unix socket has no addresses"), "{problems}");
    }

    #[test]
    fn no_password_is_printed() {
        let config = Config::parse(&format!("{MINIMAL}\npassword = 'hunter2'")).unwrap();
        assert_eq!(config.auth.password.0, "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn all_keys_are_known() {
        let keys: Vec<String> = known_keys().into_iter().map(|key| key.path).collect();
        for key in ["cluster.name", "proxy.listen", "agents.addresses", "auth.query", "routing.weights.NAME"]
        {
            assert!(keys.iter().any(|known| known == key), "{key} not in {keys:?}");
        }
    }
}
