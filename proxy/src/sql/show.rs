//! The questions that the proxy answers itself.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Backends with all that is known of them.
    Nodes,
    /// Backends in the columns of Pgpool-II 4.7.
    PoolNodes,
    /// The proxy's version, as Pgpool-II words it.
    PoolVersion,
    /// The proxy's version.
    Version,
    /// Clients with what they are at.
    Clients,
    /// Connections to servers, one by one.
    Servers,
    /// The same, counted by node, user and database.
    Pools,
    /// What was done, by database and user.
    Stats,
    /// What takes memory.
    Memory,
    /// Every key of the configuration.
    Config,
    /// What holds for databases.
    Databases,
    /// What holds for users.
    Users,
    /// The topology in effect and where it comes from.
    Topology,
    /// What may be asked and done.
    Help,
}

impl Show {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Nodes,
        Self::PoolNodes,
        Self::PoolVersion,
        Self::Version,
        Self::Clients,
        Self::Servers,
        Self::Pools,
        Self::Stats,
        Self::Memory,
        Self::Config,
        Self::Databases,
        Self::Users,
        Self::Topology,
        Self::Help,
    ];

    /// The word behind `SHOW`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::PoolNodes => "pool_nodes",
            Self::PoolVersion => "pool_version",
            Self::Version => "version",
            Self::Clients => "clients",
            Self::Servers => "servers",
            Self::Pools => "pools",
            Self::Stats => "stats",
            Self::Memory => "memory",
            Self::Config => "config",
            Self::Databases => "databases",
            Self::Users => "users",
            Self::Topology => "topology",
            Self::Help => "help",
        }
    }

    /// Whether everybody may ask: it tells of nodes, and of nobody's sessions or settings.
    pub fn is_for_everybody(self) -> bool {
        matches!(self, Self::Nodes | Self::PoolNodes | Self::PoolVersion | Self::Version)
    }

    /// Recognises the question, in any case and with or without a semicolon.
    pub fn parse(sql: &str) -> Option<Self> {
        let mut words = sql.trim().trim_end_matches(';').split_ascii_whitespace();
        if !words.next()?.eq_ignore_ascii_case("show") {
            return None;
        }
        let what = words.next()?;
        if words.next().is_some() {
            return None;
        }
        Self::ALL.into_iter().find(|show| show.word().eq_ignore_ascii_case(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_questions_are_recognised() {
        assert_eq!(Show::parse("SHOW nodes"), Some(Show::Nodes));
        assert_eq!(Show::parse(" show\n POOL_NODES ; "), Some(Show::PoolNodes));
        assert_eq!(Show::parse("Show Pool_Version;"), Some(Show::PoolVersion));
        assert_eq!(Show::parse("show topology"), Some(Show::Topology));
        for other in ["", "show", "SHOW server_version", "SHOW NODES x", "SELECT nodes", "SHOWNODES"] {
            assert_eq!(Show::parse(other), None, "{other}");
        }
    }
}
