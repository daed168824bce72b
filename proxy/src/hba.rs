//! Who may connect from where and has to prove it how: rules in the manner of `pg_hba.conf`, the first that
//! fits decides.

use core::net::IpAddr;
use std::fmt;

use crate::config::AuthMethod;

/// Which connections a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Over a Unix socket.
    Local,
    /// Over TCP, encrypted or not.
    Host,
    /// Over TCP, encrypted.
    HostSsl,
    /// Over TCP, in clear.
    HostNoSsl,
}

/// A database or a user in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// Whichever.
    All,
    /// A database with the name of the user.
    SameUser,
    /// No database at all: physical replication, which no other name stands for.
    Replication,
    /// This one.
    Exactly(String),
}

/// What stands in place of a name and cannot be decided here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// An empty text.
    #[error("an empty name")]
    Empty,
    /// Membership is known to the cluster alone.
    #[error("{0:?} asks for membership in a role, which the proxy does not know; list the users themselves")]
    Membership(String),
    /// A file, or a pattern.
    #[error(
        "{0:?} stands for a file or a regular expression, which are not supported here; list the names themselves"
    )]
    Indirect(String),
    /// A keyword for databases in the list of users.
    #[error("\"sameuser\" is about databases; name users, or \"all\"")]
    SameUser,
}

impl Name {
    /// A database. A name in quotes (`"\"all\""`) is nothing but a name.
    pub fn database(text: &str) -> Result<Self, BadName> {
        match text {
            "sameuser" => Ok(Self::SameUser),
            "samerole" | "samegroup" => Err(BadName::Membership(text.to_owned())),
            "replication" => Ok(Self::Replication),
            other => Self::plain(other),
        }
    }

    /// A user. Quotes do the same.
    pub fn user(text: &str) -> Result<Self, BadName> {
        match text {
            "sameuser" => Err(BadName::SameUser),
            other if other.starts_with('+') => Err(BadName::Membership(text.to_owned())),
            other => Self::plain(other),
        }
    }

    fn plain(text: &str) -> Result<Self, BadName> {
        let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        match quoted.unwrap_or(text) {
            "" => Err(BadName::Empty),
            "all" if quoted.is_none() => Ok(Self::All),
            name if quoted.is_none() && name.starts_with(['@', '/']) => {
                Err(BadName::Indirect(text.to_owned()))
            }
            name => Ok(Self::Exactly(name.to_owned())),
        }
    }

    fn fits(&self, name: &str, user: &str) -> bool {
        match self {
            Self::All => true,
            Self::SameUser => name == user,
            Self::Replication => false,
            Self::Exactly(own) => own == name,
        }
    }

    fn fits_database(&self, facts: &Facts<'_>) -> bool {
        if facts.replication { *self == Self::Replication } else { self.fits(facts.database, facts.user) }
    }
}

/// The addresses that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// All of them.
    All,
    /// Those that share so many first bits with this one.
    Network(IpAddr, u32),
}

/// A text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"all\" nor an address with the length of its prefix, such as \"10.0.0.0/8\"")]
pub struct BadAddresses(String);

impl Addresses {
    /// Reads `all`, an address, or an address with the length of its prefix.
    pub fn parse(text: &str) -> Result<Self, BadAddresses> {
        if text == "all" {
            return Ok(Self::All);
        }
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let read = || {
            let address: IpAddr = address.parse().ok()?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
            (prefix <= bits).then_some(Self::Network(address, prefix))
        };
        read().ok_or_else(|| BadAddresses(text.to_owned()))
    }

    fn fit(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::All, _) => true,
            (Self::Network(IpAddr::V4(own), prefix), IpAddr::V4(other)) => {
                let differ = u32::from(own) ^ u32::from(other);
                differ.checked_shr(32 - prefix).unwrap_or(0) == 0
            }
            (Self::Network(IpAddr::V6(own), prefix), IpAddr::V6(other)) => {
                let differ = u128::from(own) ^ u128::from(other);
                differ.checked_shr(128 - prefix).unwrap_or(0) == 0
            }
            (Self::Network(..), _) => false,
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which connections.
    pub kind: Kind,
    /// To one of these databases.
    pub databases: Vec<Name>,
    /// As one of these users.
    pub users: Vec<Name>,
    /// From here.
    pub addresses: Addresses,
    /// What they have to do.
    pub method: AuthMethod,
}

/// What counts about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Where it comes from; `None`: over a Unix socket.
    pub address: Option<IpAddr>,
    /// It is encrypted.
    pub encrypted: bool,
    /// As whom.
    pub user: &'a str,
    /// To which database.
    pub database: &'a str,
    /// For physical replication, which needs none.
    pub replication: bool,
}

impl fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, user, database, .. } = self;
        let encryption = if self.encrypted { "SSL encryption" } else { "no encryption" };
        match address {
            Some(address) => write!(f, "host \"{address}\", user \"{user}\", ")?,
            None => write!(f, "host \"[local]\", user \"{user}\", ")?,
        }
        if !self.replication {
            write!(f, "database \"{database}\", ")?;
        }
        f.write_str(encryption)
    }
}

/// What the first rule that fits demands; `None` when none fits.
pub fn method(rules: &[Rule], facts: &Facts<'_>) -> Option<AuthMethod> {
    let fits = |rule: &&Rule| {
        let place = match (rule.kind, facts.address) {
            (Kind::Local, address) => address.is_none(),
            (_, None) => false,
            (Kind::Host, Some(address)) => rule.addresses.fit(address),
            (Kind::HostSsl, Some(address)) => facts.encrypted && rule.addresses.fit(address),
            (Kind::HostNoSsl, Some(address)) => !facts.encrypted && rule.addresses.fit(address),
        };
        place
            && rule.databases.iter().any(|name| name.fits_database(facts))
            && rule.users.iter().any(|name| name.fits(facts.user, facts.user))
    };
    rules.iter().find(fits).map(|rule| rule.method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: Kind, database: &str, user: &str, addresses: &str, method: AuthMethod) -> Rule {
        Rule {
            kind,
            databases: vec![Name::database(database).unwrap()],
            users: vec![Name::user(user).unwrap()],
            addresses: Addresses::parse(addresses).unwrap(),
            method,
        }
    }

    fn facts<'a>(address: &str, encrypted: bool, user: &'a str, database: &'a str) -> Facts<'a> {
        let address = Some(address.parse().unwrap());
        Facts { address, encrypted, user, database, replication: false }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        use AuthMethod::{Md5, Reject, ScramSha256, Trust};
        let rules = [
            rule(Kind::Local, "all", "all", "all", Trust),
            rule(Kind::Host, "all", "mallory", "all", Reject),
            rule(Kind::HostSsl, "shop", "all", "10.0.0.0/8", ScramSha256),
            rule(Kind::HostNoSsl, "sameuser", "all", "10.1.0.0/16", Md5),
        ];
        for (facts, expected) in [
            (facts("10.1.2.3", true, "mallory", "shop"), Some(Reject)),
            (facts("10.1.2.3", true, "ann", "shop"), Some(ScramSha256)),
            (facts("10.1.2.3", false, "ann", "shop"), None),
            (facts("10.1.2.3", false, "ann", "ann"), Some(Md5)),
            (facts("10.2.2.3", false, "ann", "ann"), None),
            (facts("11.1.2.3", true, "ann", "shop"), None),
            (facts("::1", true, "ann", "shop"), None),
        ] {
            assert_eq!(method(&rules, &facts), expected, "{facts}");
        }
        assert_eq!(method(&[], &facts("10.1.2.3", true, "ann", "shop")), None);
    }

    #[test]
    fn sockets_and_replication_have_rules_of_their_own() {
        use AuthMethod::{Md5, ScramSha256, Trust};
        let rules = [
            rule(Kind::Host, "all", "all", "all", ScramSha256),
            rule(Kind::Local, "all", "ann", "all", Trust),
            rule(Kind::Host, "replication", "all", "all", Md5),
        ];
        let tcp = facts("10.1.2.3", false, "ann", "replication");
        assert_eq!(method(&rules, &tcp), Some(ScramSha256), "a database of that name");
        assert_eq!(method(&rules, &Facts { replication: true, ..tcp }), Some(Md5));
        assert_eq!(method(&rules, &Facts { address: None, ..tcp }), Some(Trust));
        assert_eq!(method(&rules, &Facts { address: None, user: "joe", ..tcp }), None);
        assert_eq!(method(&rules, &Facts { address: None, replication: true, ..tcp }), None);
    }

    #[test]
    fn networks_are_compared_bit_by_bit() {
        let fits =
            |network: &str, address: &str| Addresses::parse(network).unwrap().fit(address.parse().unwrap());
        assert!(fits("10.0.0.0/8", "10.255.0.1") && !fits("10.0.0.0/8", "11.0.0.0"));
        assert!(fits("10.0.0.77/25", "10.0.0.1") && !fits("10.0.0.77/25", "10.0.0.128"));
        assert!(fits("0.0.0.0/0", "1.2.3.4") && !fits("0.0.0.0/0", "::1"));
        assert!(fits("1.2.3.4", "1.2.3.4") && !fits("1.2.3.4/32", "1.2.3.5"));
        assert!(fits("fd00::/9", "fd7f::1") && !fits("fd00::/9", "fd80::1"));
        assert!(fits("::/0", "::1") && fits("::1/128", "::1") && fits("all", "::1"));
        for bad in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "samenet", "example.org", "10.0.0.0/-1", "10.0.0.0/"]
        {
            assert!(Addresses::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_keywords_unless_they_are_quoted() {
        assert_eq!(Name::database("all"), Ok(Name::All));
        assert_eq!(Name::database("\"all\""), Ok(Name::Exactly("all".to_owned())));
        assert_eq!(Name::user("\"+ann\""), Ok(Name::Exactly("+ann".to_owned())));
        assert_eq!(Name::database("replication"), Ok(Name::Replication));
        assert_eq!(Name::database("\"replication\""), Ok(Name::Exactly("replication".to_owned())));
        for bad in ["", "\"\"", "samerole", "@file", "/^a"] {
            assert!(Name::database(bad).is_err(), "{bad}");
        }
        for bad in ["", "+admins", "sameuser", "@file"] {
            assert!(Name::user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn facts_are_told_as_postgresql_does() {
        let told = facts("::1", true, "ann", "shop").to_string();
        assert_eq!(told, "host \"::1\", user \"ann\", database \"shop\", SSL encryption");
        let local = Facts { address: None, replication: true, ..facts("::1", false, "ann", "shop") };
        let expected = "host \"[local]\", user \"ann\", no encryption";
        assert_eq!(local.to_string(), expected);
        assert!(facts("::1", false, "ann", "shop").to_string().ends_with("no encryption"));
    }
}
