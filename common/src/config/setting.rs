//! What a configuration says, key by key, as people are shown it and as two of them are compared.

use std::fmt;

/// One key with what it came to.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    path: String,
    pattern: String,
    given: Option<String>,
    default: Option<String>,
    secret: bool,
}

impl Setting {
    pub(super) fn new(
        path: &str,
        pattern: String,
        given: Option<String>,
        default: Option<String>,
        secret: bool,
    ) -> Self {
        Self { path: path.trim_start_matches('.').to_owned(), pattern, given, default, secret }
    }

    /// Where it stands: `databases.app.pool_size`, `hba[2].method`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// As it is documented: `databases.NAME.pool_size`, `hba[].method`.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Whether the file says something about it.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// The value in effect, as TOML; empty where there is none. Secrets are not shown.
    pub fn shown(&self) -> &str {
        match &self.given {
            Some(_) if self.secret => "***",
            Some(given) => given,
            None => self.default(),
        }
    }

    /// The value when the file says nothing; empty where there is none.
    pub fn default(&self) -> &str {
        self.default.as_deref().unwrap_or_default()
    }

    /// Whether it comes to the same as `other`, secrets included.
    pub fn same_value(&self, other: &Self) -> bool {
        let value = |of: &Self| of.given.clone().or_else(|| of.default.clone()).unwrap_or_default();
        value(self) == value(other)
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.path, self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_but_never_shown() {
        let secret = |value: &str| {
            let given = Some(format!("{value:?}"));
            Setting::new("auth.password", "auth.password".into(), given, Some("\"\"".into()), true)
        };
        assert_eq!(secret("hunter2").shown(), "***");
        assert_eq!(format!("{:?}", secret("hunter2")), "auth.password = ***");
        assert!(secret("a").same_value(&secret("a")) && !secret("a").same_value(&secret("b")));
    }
}
