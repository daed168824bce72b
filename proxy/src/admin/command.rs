//! What administrators say at the proxy's own database, and what drivers say there unasked.

use crate::sql::Show;

use super::{columns, reload};

/// The database at which the proxy itself is looked at.
pub(crate) const DATABASE: &str = "pgherd";

/// The settings that clients are told of and may ask for. Drivers go by the version; this one is the oldest
/// that servers behind the proxy may have.
pub(crate) const PARAMETERS: &[(&str, &str)] = &[
    ("server_version", concat!("14.0 (pgherd-proxy ", env!("CARGO_PKG_VERSION"), ")")),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "off"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Nothing at all.
    Empty,
    Show(Show),
    Pause(Option<String>),
    Resume(Option<String>),
    Reload,
    Kill(u64),
    /// A transaction begins: drivers do that before the first statement.
    Begin,
    /// It ends, with this tag.
    End(&'static str),
    /// Done with saying so.
    Ignored(&'static str),
    /// One row with one column.
    Value(&'static str, String),
}

/// What is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadCommand {
    #[error("this is not understood here: {0}")]
    Unknown(String),
    #[error("KILL takes the number of a client, as SHOW CLIENTS tells it, not {0:?}")]
    Client(String),
    #[error("PAUSE and RESUME take the name of one database, or none")]
    Database,
}

impl Command {
    /// The columns of its answer, if it has any.
    pub(crate) fn columns(&self) -> Option<Vec<&str>> {
        match self {
            Self::Show(show) => Some(columns(*show).to_vec()),
            Self::Reload => Some(reload::COLUMNS.to_vec()),
            Self::Value(name, _) => Some(vec![*name]),
            Self::Empty
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Kill(_)
            | Self::Begin
            | Self::End(_)
            | Self::Ignored(_) => None,
        }
    }

    /// Understands one statement of `user`'s.
    pub(crate) fn parse(sql: &str, user: &str) -> Result<Self, BadCommand> {
        let text = sql.trim().trim_end_matches(';').trim();
        let (first, rest) = text.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((text, ""));
        let rest = rest.trim();
        if let Some(show) = Show::parse(text) {
            return Ok(Self::Show(show));
        }
        Ok(match first.to_ascii_lowercase().as_str() {
            "" => Self::Empty,
            "pause" => Self::Pause(database(rest)?),
            "resume" => Self::Resume(database(rest)?),
            "reload" if rest.is_empty() => Self::Reload,
            "kill" => Self::Kill(rest.parse().map_err(|_| BadCommand::Client(rest.to_owned()))?),
            "begin" | "start" => Self::Begin,
            "commit" | "end" => Self::End("COMMIT"),
            "rollback" | "abort" => Self::End("ROLLBACK"),
            "set" => Self::Ignored("SET"),
            "reset" => Self::Ignored("RESET"),
            "discard" => Self::Ignored("DISCARD ALL"),
            "deallocate" => Self::Ignored("DEALLOCATE"),
            "close" => Self::Ignored("CLOSE CURSOR"),
            "unlisten" => Self::Ignored("UNLISTEN"),
            "show" => parameter(rest).ok_or_else(|| BadCommand::Unknown(text.to_owned()))?,
            "select" => value(rest, user).ok_or_else(|| BadCommand::Unknown(text.to_owned()))?,
            _ => return Err(BadCommand::Unknown(text.to_owned())),
        })
    }
}

/// The statements of one text. Semicolons in quotes part nothing.
pub(crate) fn statements(sql: &str) -> Vec<&str> {
    let mut quote = None;
    let parts = sql.split(|c: char| {
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
        c == ';' && quote.is_none()
    });
    let mut found: Vec<&str> = parts.map(str::trim).filter(|part| !part.is_empty()).collect();
    if found.is_empty() {
        found.push("");
    }
    found
}

/// A name as in SQL: folded to lower case unless it is quoted.
fn database(text: &str) -> Result<Option<String>, BadCommand> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Ok(Some(inner.replace("\"\"", "\"")));
    }
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '-' | '.');
    if text.chars().all(plain) { Ok(Some(text.to_lowercase())) } else { Err(BadCommand::Database) }
}

fn parameter(name: &str) -> Option<Command> {
    let known = PARAMETERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    if let Some((name, value)) = known {
        return Some(Command::Value(name, (*value).to_owned()));
    }
    let isolation = name.eq_ignore_ascii_case("transaction isolation level")
        || name.eq_ignore_ascii_case("transaction_isolation");
    isolation.then(|| Command::Value("transaction_isolation", "read committed".to_owned()))
}

/// What drivers and monitors select to see that somebody is there.
fn value(expression: &str, user: &str) -> Option<Command> {
    let plain: String = expression.to_ascii_lowercase().replace("pg_catalog.", "");
    let (name, value) = match plain.trim() {
        "version()" => ("version", format!("pgherd-proxy {}", env!("CARGO_PKG_VERSION"))),
        "current_user" | "current_user()" => ("current_user", user.to_owned()),
        "session_user" => ("session_user", user.to_owned()),
        "current_database()" => ("current_database", DATABASE.to_owned()),
        "current_schema()" | "current_schema" => ("current_schema", "public".to_owned()),
        "pg_advisory_unlock_all()" => ("pg_advisory_unlock_all", String::new()),
        number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            ("?column?", number.to_owned())
        }
        _ => return None,
    };
    Some(Command::Value(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_as_people_type_them() {
        let parse = |sql: &str| Command::parse(sql, "ann");
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(parse("show Clients;"), Ok(Command::Show(Show::Clients)));
        assert_eq!(parse("PAUSE"), Ok(Command::Pause(None)));
        assert_eq!(parse("pause  App ;"), Ok(Command::Pause(name("app"))));
        assert_eq!(parse("RESUME \"My \"\"shop\"\"; x\""), Ok(Command::Resume(name("My \"shop\"; x"))));
        assert_eq!(parse("PAUSE a b"), Err(BadCommand::Database));
        assert_eq!(parse("kill 17"), Ok(Command::Kill(17)));
        assert_eq!(parse("KILL app"), Err(BadCommand::Client("app".to_owned())));
        assert_eq!(parse("RELOAD;"), Ok(Command::Reload));
        assert!(parse("RELOAD now").is_err() && parse("SELECT * FROM t").is_err());
        assert_eq!(parse(" "), Ok(Command::Empty));
    }

    #[test]
    fn what_drivers_say_unasked_does_no_harm() {
        let parse = |sql: &str| Command::parse(sql, "ann").unwrap();
        assert_eq!(parse("SET extra_float_digits = 3"), Command::Ignored("SET"));
        assert_eq!(parse("BEGIN"), Command::Begin);
        assert_eq!(parse("select pg_catalog.version()").columns(), Some(vec!["version"]));
        assert_eq!(parse("SELECT 1"), Command::Value("?column?", "1".to_owned()));
        assert_eq!(parse("select current_user"), Command::Value("current_user", "ann".to_owned()));
        assert_eq!(parse("SHOW client_encoding"), Command::Value("client_encoding", "UTF8".to_owned()));
        let release = "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;";
        assert!(statements(release).iter().all(|part| Command::parse(part, "ann").is_ok()));
        assert_eq!(statements("SET a = 'x;y'; SHOW POOLS"), ["SET a = 'x;y'", "SHOW POOLS"]);
        assert_eq!(statements(" ; "), [""]);
    }
}
