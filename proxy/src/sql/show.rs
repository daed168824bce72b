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
    /// Clients with what they are at.
    Clients,
    /// Server connections by node, user and database.
    Pools,
    /// The topology in effect and where it comes from.
    Topology,
}

impl Show {
    /// Recognises the question, in any case and with or without a semicolon.
    pub fn parse(sql: &str) -> Option<Self> {
        let mut words = sql.trim().trim_end_matches(';').split_ascii_whitespace();
        if !words.next()?.eq_ignore_ascii_case("show") {
            return None;
        }
        let what = words.next()?.to_ascii_lowercase();
        if words.next().is_some() {
            return None;
        }
        match what.as_str() {
            "nodes" => Some(Self::Nodes),
            "pool_nodes" => Some(Self::PoolNodes),
            "pool_version" => Some(Self::PoolVersion),
            "clients" => Some(Self::Clients),
            "pools" => Some(Self::Pools),
            "topology" => Some(Self::Topology),
            _ => None,
        }
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
