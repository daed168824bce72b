//! The one table from what goes wrong inside the proxy to what a client is told.
//!
//! Texts are safe for clients: no addresses of backends, no paths, no secrets.

use pgherd_common::NodeName;

use crate::sql::Why;
use crate::wire::backend::{ServerError, Severity};
use crate::wire::startup::StartupError;

/// Everything that the proxy itself tells a client, besides answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The client broke the protocol.
    Protocol(String),
    /// The first packet cannot be served.
    Startup(StartupError),
    /// The connection was for replication, and its server serves it no more.
    ReplicationEnded {
        /// Which.
        server: NodeName,
        /// Why.
        why: String,
    },
    /// Something of the protocol that is not offered.
    NotOffered(&'static str),
    /// Something that needs a server connection of the client's own, in a pool mode without such.
    NeedsConnection(Why),
    /// Bytes in clear came behind a request for encryption.
    ClearBehindRequest,
    /// The client connected without TLS, which it must use.
    TlsRequired,
    /// Too many clients.
    TooManyClients(ClientLimit),
    /// Too many others wait for a server connection.
    QueueFull {
        /// To which server.
        server: NodeName,
        /// As whom.
        user: String,
        /// To which database.
        database: String,
        /// So many connections there may be.
        size: u32,
        /// So many clients may wait for one.
        queue: u32,
    },
    /// The client has said nothing for too long.
    IdleSession,
    /// The same, with a transaction open.
    IdleInTransaction,
    /// An administrator sends the client away.
    Killed,
    /// Something about the proxy that only administrators may see or do.
    AdminsOnly {
        /// What.
        what: String,
    },
    /// What an administrator said has no meaning.
    NotUnderstood(String),
    /// What an administrator wants cannot be done as things are.
    NotNow(String),
    /// The configuration file could not be read again.
    NotReloaded(String),
    /// All server connections that there may be were in use.
    PoolExhausted {
        /// To which server.
        server: NodeName,
        /// As whom.
        user: String,
        /// To which database.
        database: String,
        /// So many there may be.
        size: u32,
        /// How long it was waited for one.
        waited_ms: u128,
    },
    /// The login took too long.
    LoginTimeout,
    /// Wrong password, or no such role.
    WrongPassword {
        /// As given.
        user: String,
    },
    /// Refused for what it is, or for what it showed.
    Unauthorized(String),
    /// Roles could not be looked up.
    NoVerifiers,
    /// Nothing in the cluster took the work in time.
    NoServer {
        /// A primary was needed.
        primary: bool,
        /// How long the work was held.
        held_ms: u128,
    },
    /// The connection broke while a statement ran that may have taken effect.
    OutcomeUnknown {
        /// Where it ran.
        server: NodeName,
        /// What became of the connection.
        why: String,
    },
    /// The connection broke, and what ran on it certainly took no effect.
    RolledBack {
        /// Where it ran.
        server: NodeName,
        /// What became of the connection.
        why: String,
        /// It was a transaction block and not a single read.
        transaction: bool,
    },
    /// A server ended the connection for a reason of its own.
    ServerEnded(Box<ServerError>),
    /// A new connection to a server was refused.
    ConnectionRefused(Box<ServerError>),
    /// The server wants something for a login that the proxy does not have.
    ServerLogin {
        /// Which.
        server: NodeName,
        /// For people.
        why: String,
    },
    /// The server broke the protocol.
    ServerProtocol {
        /// Which.
        server: NodeName,
    },
    /// The connection is gone, and with it what only that one had.
    StateLost {
        /// Where it was.
        server: NodeName,
        /// What.
        what: Why,
        /// What became of the connection.
        why: String,
    },
    /// The client asked to cancel what was waiting for a server.
    Cancelled,
    /// The proxy is being stopped.
    ShuttingDown,
}

impl Trouble {
    /// What the client is told. During a login everything is fatal.
    pub fn response(&self, severity: Severity) -> ServerError {
        match self {
            Self::ServerEnded(error) | Self::ConnectionRefused(error) => {
                ServerError { severity, ..ServerError::clone(error) }
            }
            own => ServerError {
                severity,
                code: own.code().to_owned(),
                message: own.message(),
                detail: own.detail(),
                hint: own.hint().map(str::to_owned),
                others: Box::default(),
            },
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::Protocol(_)
            | Self::ClearBehindRequest
            | Self::LoginTimeout
            | Self::ServerProtocol { .. } => "08P01",
            Self::Startup(error) => match error {
                StartupError::Length(_) | StartupError::Layout(_) => "08P01",
                StartupError::Version { .. } => "0A000",
                StartupError::NoUser => "28000",
                StartupError::Replication(_) => "22023",
            },
            Self::TlsRequired | Self::Unauthorized(_) => "28000",
            Self::NotOffered(_) | Self::NeedsConnection(_) => "0A000",
            Self::TooManyClients(_) | Self::PoolExhausted { .. } | Self::QueueFull { .. } => "53300",
            Self::IdleSession => "57P05",
            Self::IdleInTransaction => "25P03",
            Self::AdminsOnly { .. } => "42501",
            Self::NotUnderstood(_) => "42601",
            Self::NotNow(_) => "55000",
            Self::NotReloaded(_) => "F0000",
            Self::WrongPassword { .. } => "28P01",
            Self::NoVerifiers | Self::NoServer { .. } => "57P03",
            Self::OutcomeUnknown { .. } => "08007",
            Self::RolledBack { .. } => "40001",
            Self::ServerLogin { .. } => "08001",
            Self::Cancelled => "57014",
            Self::ShuttingDown | Self::Killed | Self::StateLost { .. } | Self::ReplicationEnded { .. } => {
                "57P01"
            }
            Self::ServerEnded(error) | Self::ConnectionRefused(error) => &error.code,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Protocol(what)
            | Self::Unauthorized(what)
            | Self::NotUnderstood(what)
            | Self::NotNow(what)
            | Self::NotReloaded(what) => what.clone(),
            Self::Startup(error) => error.to_string(),
            Self::ReplicationEnded { server, .. } => {
                format!("the replication connection to server {server} has ended")
            }
            Self::NotOffered(what) => (*what).to_owned(),
            Self::NeedsConnection(why) => {
                format!("pool mode \"transaction\" does not allow this: {why}")
            }
            Self::ClearBehindRequest => "received unencrypted data after a request for encryption".to_owned(),
            Self::TlsRequired => "the connection must use TLS".to_owned(),
            Self::TooManyClients(limit) => limit.message(),
            Self::QueueFull { .. } => "too many clients wait for a server connection".to_owned(),
            Self::IdleSession => "terminating connection due to idle-session timeout".to_owned(),
            Self::IdleInTransaction => "terminating connection due to idle-in-transaction timeout".to_owned(),
            Self::AdminsOnly { what } => format!("permission denied for {what}"),
            Self::PoolExhausted { .. } => "no server connection became free in time".to_owned(),
            Self::LoginTimeout => "the login was not completed in time".to_owned(),
            Self::WrongPassword { user } => format!("password authentication failed for user \"{user}\""),
            Self::NoVerifiers => "the password cannot be checked: no server answered".to_owned(),
            Self::NoServer { primary: true, .. } => "no primary is available".to_owned(),
            Self::NoServer { primary: false, .. } => "no server is available".to_owned(),
            Self::OutcomeUnknown { server, .. } => format!(
                "the connection to server {server} was lost while the statement ran; whether it took effect is unknown"
            ),
            Self::RolledBack { server, transaction: true, .. } => {
                format!("the transaction was rolled back: the connection to server {server} was lost")
            }
            Self::RolledBack { server, transaction: false, .. } => {
                format!("the connection to server {server} was lost while it answered")
            }
            Self::StateLost { server, what, .. } => {
                format!(
                    "terminating connection: it is kept on server {server} for its {what}, and that is gone"
                )
            }
            Self::ServerLogin { server, why } => format!("cannot log in to server {server}: {why}"),
            Self::ServerProtocol { server } => format!("server {server} broke the protocol"),
            Self::Cancelled => "canceling statement due to user request".to_owned(),
            Self::ShuttingDown | Self::Killed => {
                "terminating connection due to administrator command".to_owned()
            }
            Self::ServerEnded(error) | Self::ConnectionRefused(error) => error.message.clone(),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::OutcomeUnknown { why, .. }
            | Self::RolledBack { why, .. }
            | Self::StateLost { why, .. }
            | Self::ReplicationEnded { why, .. } => Some(why.clone()),
            Self::NoServer { held_ms, .. } => {
                Some(format!("The work was held for {held_ms} ms and was not run."))
            }
            Self::PoolExhausted { server, user, database, size, waited_ms } => Some(format!(
                "All {size} connections to server {server} as user \"{user}\" to database \"{database}\" were in use for {waited_ms} ms."
            )),
            Self::QueueFull { server, user, database, size, queue } => Some(format!(
                "All {size} connections to server {server} as user \"{user}\" to database \"{database}\" are in use, and {queue} clients wait for one, as many as pool.queue_size lets."
            )),
            Self::TooManyClients(limit) => Some(limit.detail()),
            Self::Killed => Some("The session was ended at the proxy by KILL.".to_owned()),
            Self::AdminsOnly { .. } => Some("It shows or changes what is other people's.".to_owned()),
            Self::ServerEnded(error) | Self::ConnectionRefused(error) => error.detail.clone(),
            Self::ClearBehindRequest => Some(
                "This is a defect of the client, or somebody in between put something into the connection."
                    .to_owned(),
            ),
            Self::NeedsConnection(_) => Some(
                "It would have to stay on the server connection, which other clients get after each transaction.".to_owned(),
            ),
            Self::Protocol(_)
            | Self::Startup(_)
            | Self::NotOffered(_)
            | Self::TlsRequired
            | Self::Unauthorized(_)
            | Self::IdleSession
            | Self::IdleInTransaction
            | Self::NotUnderstood(_)
            | Self::NotNow(_)
            | Self::NotReloaded(_)
            | Self::LoginTimeout
            | Self::WrongPassword { .. }
            | Self::NoVerifiers
            | Self::ServerLogin { .. }
            | Self::ServerProtocol { .. }
            | Self::Cancelled
            | Self::ShuttingDown => None,
        }
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Self::TooManyClients(limit) => Some(limit.hint()),
            Self::PoolExhausted { .. } | Self::QueueFull { .. } => Some(
                "Raise pool.size (pool_size of the database or of the user) in the proxy's configuration, or end transactions and sessions that hold connections.",
            ),
            Self::IdleInTransaction => Some(
                "The transaction was rolled back. The limit is idle_in_transaction_timeout in the proxy's configuration.",
            ),
            Self::NotUnderstood(_) => Some("SHOW HELP lists what is understood here."),
            Self::NotNow(_) => Some("SHOW TOPOLOGY and SHOW DATABASES tell what is paused."),
            Self::NotReloaded(_) => Some("Nothing was changed: what was in effect still is."),
            Self::IdleSession => Some("The limit is idle_timeout in the proxy's configuration."),
            Self::AdminsOnly { .. } => Some(
                "Connect as one of the users in proxy.admins of the proxy's configuration, best to database \"pgherd\".",
            ),
            Self::NoVerifiers => Some(
                "Try again in a moment. If it persists, check [auth] in the proxy's configuration, and its log.",
            ),
            Self::NoServer { .. } => Some(
                "It is safe to try again. `pgherd cluster-status` tells an operator why no node is in service.",
            ),
            Self::OutcomeUnknown { .. } => {
                Some("Check whether the change is there before running it again. No transaction is open now.")
            }
            Self::RolledBack { transaction: true, .. } => {
                Some("Nothing of it took effect: it is safe to run the whole transaction again.")
            }
            Self::StateLost { .. } => Some(
                "Connect again, and make anew what is needed. Transactions that were committed are kept.",
            ),
            Self::RolledBack { transaction: false, .. } => Some("It only read: it is safe to run it again."),
            Self::TlsRequired => Some("Use sslmode=require or better."),
            Self::ServerLogin { .. } => Some(
                "Servers must ask for the kind of password that the client logged in with, or trust the proxy.",
            ),
            Self::NeedsConnection(why) => Some(without_connection(*why)),
            Self::ServerEnded(error) | Self::ConnectionRefused(error) => error.hint.as_deref(),
            Self::Startup(StartupError::Replication(_)) => {
                Some("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
            }
            Self::ReplicationEnded { .. } => Some(
                "Connect again: the proxy leads to the current primary. Replication slots do not move with that role.",
            ),
            Self::Startup(_)
            | Self::Protocol(_)
            | Self::NotOffered(_)
            | Self::ClearBehindRequest
            | Self::Unauthorized(_)
            | Self::LoginTimeout
            | Self::WrongPassword { .. }
            | Self::ServerProtocol { .. }
            | Self::Cancelled
            | Self::ShuttingDown
            | Self::Killed => None,
        }
    }
}

/// Which limit of clients is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientLimit {
    /// Of all clients.
    All {
        /// As configured.
        max: u32,
    },
    /// Of one database.
    Database {
        /// Which.
        name: String,
        /// As configured.
        max: u32,
    },
    /// Of one user.
    User {
        /// Which.
        name: String,
        /// As configured.
        max: u32,
    },
    /// Of those that are being logged in.
    Logins {
        /// As many as there may be clients, administrators included.
        max: u32,
    },
}

impl ClientLimit {
    fn message(&self) -> String {
        match self {
            Self::All { .. } | Self::Logins { .. } => "sorry, too many clients already".to_owned(),
            Self::Database { name, .. } => format!("too many connections for database \"{name}\""),
            Self::User { name, .. } => format!("too many connections for role \"{name}\""),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::All { max } => {
                format!("The proxy's limit proxy.max_client_connections, {max}, is reached.")
            }
            Self::Database { name, max } => {
                format!(
                    "The proxy's limit max_client_connections of [databases.{name:?}], {max}, is reached."
                )
            }
            Self::User { name, max } => {
                format!("The proxy's limit max_client_connections of [users.{name:?}], {max}, is reached.")
            }
            Self::Logins { max } => format!(
                "{max} clients are being logged in, as many as proxy.max_client_connections and proxy.reserve let in."
            ),
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Logins { .. } => "Try again in a moment.",
            Self::All { .. } | Self::Database { .. } | Self::User { .. } => {
                "Close connections that nobody uses, or raise the limit and have the proxy RELOAD its configuration."
            }
        }
    }
}

/// What to do where a session may keep no connection.
fn without_connection(why: Why) -> &'static str {
    match why {
        Why::Temporary => {
            "Say ON COMMIT DROP, or set pool.mode to \"auto\" or \"session\" in the proxy's configuration."
        }
        Why::AdvisoryLock => {
            "Use pg_advisory_xact_lock, or set pool.mode to \"auto\" or \"session\" in the proxy's configuration."
        }
        Why::Sequence => {
            "Use RETURNING, ask within the same transaction, or set pool.mode to \"auto\" or \"session\" in the proxy's configuration."
        }
        Why::Listen | Why::Prepare | Why::HeldCursor | Why::Statistics | Why::Replication | Why::Unknown => {
            "Set pool.mode to \"auto\" or \"session\" in the proxy's configuration."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_trouble() -> Vec<Trouble> {
        let server: NodeName = "server1".parse().unwrap();
        let error = ServerError {
            severity: Severity::Fatal,
            code: "3D000".into(),
            message: "database \"x\" does not exist".into(),
            detail: None,
            hint: None,
            others: Box::default(),
        };
        vec![
            Trouble::Protocol("bad".into()),
            Trouble::NotOffered("that"),
            Trouble::NeedsConnection(Why::Listen),
            Trouble::Startup(StartupError::NoUser),
            Trouble::Startup(StartupError::Length(-1)),
            Trouble::Startup(StartupError::Version { major: 2, minor: 0 }),
            Trouble::Startup(StartupError::Replication("maybe".into())),
            Trouble::ReplicationEnded { server: server.clone(), why: "gone".into() },
            Trouble::ClearBehindRequest,
            Trouble::TlsRequired,
            Trouble::Unauthorized("no".into()),
            Trouble::TooManyClients(ClientLimit::All { max: 7 }),
            Trouble::TooManyClients(ClientLimit::Database { name: "shop".into(), max: 7 }),
            Trouble::TooManyClients(ClientLimit::User { name: "ann".into(), max: 7 }),
            Trouble::TooManyClients(ClientLimit::Logins { max: 7 }),
            Trouble::QueueFull {
                server: server.clone(),
                user: "ann".into(),
                database: "shop".into(),
                size: 20,
                queue: 7,
            },
            Trouble::IdleSession,
            Trouble::IdleInTransaction,
            Trouble::StateLost {
                server: server.clone(),
                what: Why::AdvisoryLock,
                why: "the server left its role".into(),
            },
            Trouble::Killed,
            Trouble::AdminsOnly { what: "SHOW CLIENTS".into() },
            Trouble::NotUnderstood("x".into()),
            Trouble::NotNow("x".into()),
            Trouble::NotReloaded("x".into()),
            Trouble::PoolExhausted {
                server: server.clone(),
                user: "ann".into(),
                database: "shop".into(),
                size: 20,
                waited_ms: 7,
            },
            Trouble::LoginTimeout,
            Trouble::WrongPassword { user: "ann".into() },
            Trouble::NoVerifiers,
            Trouble::NoServer { primary: true, held_ms: 7 },
            Trouble::NoServer { primary: false, held_ms: 7 },
            Trouble::OutcomeUnknown { server: server.clone(), why: "gone".into() },
            Trouble::RolledBack { server: server.clone(), why: "gone".into(), transaction: true },
            Trouble::RolledBack { server: server.clone(), why: "gone".into(), transaction: false },
            Trouble::ServerEnded(Box::new(error.clone())),
            Trouble::ConnectionRefused(Box::new(error)),
            Trouble::ServerLogin { server: server.clone(), why: "md5".into() },
            Trouble::ServerProtocol { server },
            Trouble::Cancelled,
            Trouble::ShuttingDown,
        ]
    }

    #[test]
    fn every_trouble_has_a_code_and_a_text() {
        for trouble in every_trouble() {
            let told = trouble.response(Severity::Error);
            assert_eq!(told.severity, Severity::Error);
            assert_eq!(told.code.len(), 5, "{trouble:?}");
            assert!(told.code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{trouble:?}");
            assert!(!told.message.is_empty() && !told.message.ends_with('.'), "{trouble:?}");
        }
    }

    #[test]
    fn only_what_certainly_took_no_effect_is_called_safe_to_repeat() {
        for trouble in every_trouble() {
            let told = trouble.response(Severity::Error);
            let safe = told.hint.as_deref().is_some_and(|hint| hint.contains("safe"));
            let certain = matches!(trouble, Trouble::RolledBack { .. } | Trouble::NoServer { .. });
            assert_eq!(safe, certain, "{trouble:?}");
        }
    }
}
