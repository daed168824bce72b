//! `failover.rejoin` and its kin: what becomes of a failed primary.

use std::time::Duration;

use pgherd_common::config::{ConfigValue, Millis, Reader, Section};
use pgherd_core::reconcile::RejoinRules;

/// What becomes of a failed primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejoin {
    /// It comes back as a standby without being asked.
    pub auto: bool,
    /// Also by a copy of another server, where nothing else helps.
    pub clone: bool,
    /// How long data is kept that a copy has replaced; zero: not at all.
    pub keep_old_data: Duration,
}

/// `failover.rejoin`.
enum When {
    Auto,
    Manual,
}

impl ConfigValue for When {
    const KIND: &'static str = "\"auto\" or \"manual\"";

    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value.as_str() {
            Some("auto") => Ok(Self::Auto),
            Some("manual") => Ok(Self::Manual),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

impl Rejoin {
    pub(super) fn read(r: &mut Reader, failover: &mut Section) -> Option<Self> {
        let when = failover.or::<When>(r, "rejoin", "\"auto\"");
        let clone = failover.or(r, "rejoin_clone", "true");
        let keep: Option<Millis> = failover.or(r, "keep_old_data", "\"72h\"");
        Some(Self { auto: matches!(when?, When::Auto), clone: clone?, keep_old_data: keep?.0 })
    }

    pub(crate) fn rules(self) -> RejoinRules {
        RejoinRules { auto: self.auto, clone: self.clone }
    }
}
