//! Which agent is asked.

use std::fmt;
use std::path::Path;

use pgherd_common::{HostPort, NodeName};

use super::args::{AgentArgs, CONFIG_DEFAULT};
use super::error::CliError;
use crate::config::{self, Config, LoadError, MemberEntry};

/// An agent, and what is known of it before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// `http://host:port`, without a slash at the end.
    pub(super) url: String,
    /// The node's name, when a configuration told it.
    pub(super) name: Option<NodeName>,
    /// The other agents, when a configuration told them.
    pub(super) others: Vec<MemberEntry>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({name})", self.url),
            None => f.write_str(&self.url),
        }
    }
}

impl Target {
    /// The agent named on the command line or in the environment, else the one that a configuration
    /// describes, else the one on this machine's default port.
    pub(super) fn choose(args: &AgentArgs) -> Result<Self, CliError> {
        if let Some(text) = &args.agent {
            return Self::parse(text);
        }
        if let Some(path) = &args.config {
            return Ok(Self::of(&config::load(path)?));
        }
        match config::load(Path::new(CONFIG_DEFAULT)) {
            Ok(config) => Ok(Self::of(&config)),
            // Nobody asked for this file, and operators often may not read it: it holds passwords.
            Err(LoadError::Read { .. }) => Self::parse("127.0.0.1:7800"),
            Err(error @ LoadError::Invalid { .. }) => Err(error.into()),
        }
    }

    /// An agent by address: `host:port`, or a URL.
    pub(super) fn parse(text: &str) -> Result<Self, CliError> {
        let refuse = || CliError::Address { text: text.to_owned() };
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&url).map_err(|_| refuse())?;
        let is_plain = parsed.scheme() == "http" && parsed.has_host() && parsed.path() == "/";
        if is_plain { Ok(Self { url, name: None, others: Vec::new() }) } else { Err(refuse()) }
    }

    fn of(config: &Config) -> Self {
        let others = config.members.iter().filter(|member| member.id != config.node.id).cloned().collect();
        let url = format!("http://{}", reachable(&config.node.listen));
        Self { url, name: Some(config.node.name.clone()), others }
    }

    /// How to ask somebody else.
    pub(super) fn another(&self) -> String {
        let option = |agent: &HostPort| format!("--agent http://{agent}");
        match self.others.as_slice() {
            [] => "--agent http://HOST:7800".to_owned(),
            others => others
                .iter()
                .map(|member| format!("{} ({})", option(&member.agent), member.name))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// An address to connect to, for one that is bound to: nobody can connect to "any".
fn reachable(listen: &HostPort) -> HostPort {
    let host = match listen.host.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        other => other,
    };
    HostPort { host: host.to_owned(), port: listen.port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_a_scheme() {
        for (text, url) in [
            ("10.0.0.1:7800", "http://10.0.0.1:7800"),
            ("http://db1:7800/", "http://db1:7800"),
            ("[fd00::1]:7800", "http://[fd00::1]:7800"),
        ] {
            assert_eq!(Target::parse(text).unwrap().url, url);
        }
        for bad in ["", "https://db1:7800", "http://", "http://db1:7800/v1/status", "db1:port", "ftp://db1"] {
            assert!(Target::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_configuration_tells_where_the_agent_and_its_peers_are() {
        let config = Config::parse(
            "[cluster]\nname = 'demo'\n[node]\nid = 4\nname = 'server4'\nkind = 'witness'\nlisten = '0.0.0.0:7801'\n\
             [[members]]\nid = 4\nname = 'server4'\nagent = '10.0.0.4:7801'\n\
             [[members]]\nid = 1\nname = 'server1'\nagent = '10.0.0.1:7800'\n",
        );
        let target = Target::of(&config.unwrap());
        assert_eq!(target.to_string(), "http://127.0.0.1:7801 (server4)");
        assert_eq!(target.another(), "--agent http://10.0.0.1:7800 (server1)");
    }

    #[test]
    fn an_address_that_was_typed_wins() {
        let args = AgentArgs { agent: Some("10.0.0.9:7800".into()), config: Some("/nowhere".into()) };
        assert_eq!(Target::choose(&args).unwrap().to_string(), "http://10.0.0.9:7800");
        let args = AgentArgs { agent: None, config: Some("/nowhere".into()) };
        assert!(matches!(Target::choose(&args), Err(CliError::Config(LoadError::Read { .. }))));
    }
}
