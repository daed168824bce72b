//! Parameters that the cluster sets: the agent's second file, `pgherd.parameters.conf`, and what becomes of values that
//! PostgreSQL does not take.
//!
//! `pgherd.conf` includes the file before all that the agent sets there itself, so that nothing in it wins over that. It
//! is laid out before every start and rewritten while PostgreSQL runs, each time as a whole. What PostgreSQL has run with,
//! and started with, here is remembered in the agent's state directory: where it does not start with newer values, it is
//! started with those. That a reload has taken a value says nothing of a start (`ssl = on` without a certificate).

mod ask;
mod show;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgherd_core::capacity::{Capacity, NAMES};
use serde::{Deserialize, Serialize};

use super::configuration::quote;
use super::files::{FileError, create_dir, own_file, replace_own, write_durably};
use super::follow::{FollowError, SETTLE, SETTLE_PAUSE};
use super::instance::{Instance, Patience};
use super::session::{Session, SessionError};

pub use ask::AskError;
pub(super) use ask::complaint;
pub use show::{ParameterHere, Pending, Standing};

/// The line of `pgherd.conf` that includes the file.
pub(super) const INCLUDE: &str = "include_if_exists = 'pgherd.parameters.conf'\n";

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("pgherd.parameters.conf")
}

/// A parameter that a start is told on its command line, with its value.
pub(super) type Told = (&'static str, u32);

/// Values that are doubted, by name, and what stands in the place of each, if anything does.
pub(super) type Doubts = BTreeMap<String, Option<String>>;

/// A value as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// As `postgresql.conf` would have it between quotes.
    pub value: String,
    /// The log's entry that set it.
    pub number: u64,
}

/// What the log wants of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The log's entry that last changed anything.
    pub number: u64,
    /// By name.
    pub values: BTreeMap<String, Value>,
}

/// A value that PostgreSQL did not take here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedValue {
    /// Which.
    pub value: Value,
    /// What PostgreSQL said.
    pub why: String,
}

/// The parameters could not be put into effect.
#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    /// A file.
    #[error("cannot write the parameters that the cluster sets")]
    File(#[from] FileError),
    /// The values could not be tried.
    #[error("cannot tell whether PostgreSQL takes the parameters that the cluster sets")]
    Ask(#[from] AskError),
    /// The server does not answer.
    #[error("cannot tell whether PostgreSQL has the parameters that the cluster sets")]
    Session(#[from] SessionError),
    /// The server does not reload.
    #[error(transparent)]
    Reload(#[from] FollowError),
    /// The reload took too long.
    #[error("PostgreSQL has not reloaded its configuration within {} ms; its log may tell why", SETTLE.as_millis())]
    NotReloaded,
}

/// What outlives the agent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// With what PostgreSQL last ran here.
    proven: BTreeMap<String, String>,
    /// With what it last started.
    #[serde(default)]
    started: BTreeMap<String, String>,
    /// What it did not take.
    refused: BTreeMap<String, RefusedValue>,
}

/// What an agent knows of its node's parameters.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// `None` until the log has told.
    wanted: Option<Wanted>,
    kept: Kept,
    /// Up to which entry of the log the file has it all.
    applied: u64,
    /// Whether this process has seen PostgreSQL run with the file as it is.
    seen: bool,
    /// What was refused, and nobody was told of yet.
    news: BTreeMap<String, RefusedValue>,
}

impl Parameters {
    /// What an earlier process has kept. What cannot be read is as good as new: every value has to prove itself again.
    pub(super) fn load(state_dir: &Path) -> Self {
        let kept = match fs::read(kept_file(state_dir)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("what parameters PostgreSQL has run with is forgotten: {error}");
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        Self { kept, ..Self::default() }
    }

    fn save(&self, state_dir: &Path) -> Result<(), FileError> {
        create_dir(state_dir)?;
        // Plain data: encoding has no way to fail.
        let bytes = serde_json::to_vec(&self.kept).unwrap_or_default();
        write_durably(&kept_file(state_dir), &bytes, 0o600, None)
    }

    /// Whether there is anything to do. Where nothing was ever set there is not.
    fn lacks(&self, runs: bool) -> bool {
        let number = self.wanted.as_ref().map_or(0, |wanted| wanted.number);
        number > 0 && (self.applied != number || (runs && !self.seen))
    }

    fn is_refused(&self, name: &str, value: &Value) -> bool {
        self.kept.refused.get(name).is_some_and(|refused| refused.value == *value)
    }

    /// What the file is to have. In the place of a value that was refused stands the one that last worked, if there is one.
    fn values(&self) -> BTreeMap<String, String> {
        let wanted = self.wanted.iter().flat_map(|wanted| &wanted.values);
        let value = |(name, value): (&String, &Value)| {
            let chosen =
                if self.is_refused(name, value) { self.kept.proven.get(name) } else { Some(&value.value) };
            Some((name.clone(), chosen?.clone()))
        };
        wanted.filter_map(value).collect()
    }

    /// Those of them with which PostgreSQL has not run here yet.
    fn unproven(&self) -> BTreeMap<String, String> {
        let mut values = self.values();
        values.retain(|name, value| self.kept.proven.get(name) != Some(value));
        values
    }

    /// What may keep PostgreSQL from starting: first what it has never run with, then all that it was not started with
    /// before, since a reload takes values that a start does not.
    fn doubts(&self) -> Vec<Doubts> {
        let differs = |known: &BTreeMap<String, String>| -> Doubts {
            let values = self.values().into_iter().filter(|(name, value)| known.get(name) != Some(value));
            values.map(|(name, _)| (name.clone(), known.get(&name).cloned())).collect()
        };
        let mut doubts = vec![differs(&self.kept.proven), differs(&self.kept.started)];
        doubts.dedup();
        doubts.retain(|doubts| !doubts.is_empty());
        doubts
    }

    fn refuse(&mut self, name: &str, why: &str) {
        let wanted = self.wanted.as_ref().and_then(|wanted| wanted.values.get(name));
        let Some(value) = wanted.cloned() else { return };
        let refused = RefusedValue { value, why: why.to_owned() };
        self.kept.refused.insert(name.to_owned(), refused.clone());
        self.news.insert(name.to_owned(), refused);
    }

    /// What was refused and is still wanted.
    fn refused(&self) -> impl Iterator<Item = (&String, &RefusedValue)> {
        let wanted = |name: &String| self.wanted.as_ref().and_then(|wanted| wanted.values.get(name));
        self.kept.refused.iter().filter(move |(name, refused)| wanted(name) == Some(&refused.value))
    }
}

fn kept_file(state_dir: &Path) -> PathBuf {
    state_dir.join("parameters.json")
}

fn text(values: &BTreeMap<String, String>) -> String {
    let lines = values.iter().map(|(name, value)| format!("{name} = {}\n", quote(value)));
    let head = "# Owned and rewritten by pgherd-agent: what `pgherd pg-set` has set. Changes made by hand are lost.\n";
    head.to_owned() + &lines.collect::<String>()
}

impl Instance {
    /// What the log wants of this node, from now on. In effect after [`Instance::configure`], or with the next start.
    pub async fn want(&self, wanted: Wanted) {
        self.shared.parameters.lock().await.wanted = Some(wanted);
    }

    /// Puts what is wanted into the file and, where PostgreSQL runs, into effect, as far as that needs no restart. Tells
    /// what PostgreSQL did not take since it was last called. Touches no disk where all is as it was.
    pub async fn configure(&self) -> Result<BTreeMap<String, RefusedValue>, ParametersError> {
        if self.shared.parameters.lock().await.lacks(self.is_up()) {
            self.include().await?;
            self.put_into_effect().await?;
        }
        Ok(std::mem::take(&mut self.shared.parameters.lock().await.news))
    }

    async fn put_into_effect(&self) -> Result<(), ParametersError> {
        let mut parameters = self.shared.parameters.lock().await;
        let number = parameters.wanted.as_ref().map_or(0, |wanted| wanted.number);
        if !self.is_laid_out(&parameters.values()) {
            // A name that PostgreSQL does not know would keep it from taking over anything at all.
            for (name, why) in self.complaints(&parameters.unproven()).await? {
                tracing::error!(%name, "PostgreSQL does not take the value that was set cluster-wide: {why}");
                parameters.refuse(&name, &why);
            }
            parameters.save(&self.settings().state_dir)?;
            self.lay_out(&parameters.values())?;
            parameters.seen = false;
        }
        parameters.applied = number;
        if !parameters.seen && self.is_up() {
            let session = self.session().await?;
            self.take_over(&session).await?;
            parameters.seen = true;
            self.note_what_runs(&mut parameters, &session).await?;
        }
        Ok(())
    }

    /// Whether there is a postmaster.
    pub fn is_up(&self) -> bool {
        self.postmaster().is_ok_and(|postmaster| postmaster.is_some())
    }

    fn is_laid_out(&self, values: &BTreeMap<String, String>) -> bool {
        fs::read(file(self.data_dir())).is_ok_and(|present| present == text(values).as_bytes())
    }

    /// Writes the file; it is there after a crash.
    fn lay_out(&self, values: &BTreeMap<String, String>) -> Result<(), FileError> {
        if self.is_laid_out(values) {
            return Ok(());
        }
        write_durably(&file(self.data_dir()), text(values).as_bytes(), 0o600, Some(&self.shared.owner))
    }

    /// Makes sure that `pgherd.conf` includes the file. An earlier agent's does not.
    async fn include(&self) -> Result<(), ParametersError> {
        let path = own_file(self.data_dir());
        let present = || fs::read_to_string(&path).unwrap_or_default();
        if present().contains(INCLUDE) {
            return Ok(());
        }
        // Whoever acts may be writing it.
        let _acting = self.shared.acting.lock().await;
        let present = present();
        if present.contains(INCLUDE) {
            return Ok(());
        }
        self.shared.parameters.lock().await.seen = false;
        Ok(replace_own(self.data_dir(), &format!("{INCLUDE}{present}"), &self.shared.owner)?)
    }

    /// Returns when the running server has read its files again.
    async fn take_over(&self, session: &Session) -> Result<(), ParametersError> {
        let loaded = "SELECT pg_conf_load_time()::text";
        let before: String = session.value(loaded).await?;
        self.reload()?;
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        while session.value::<String>(loaded).await? == before {
            if !patience.next().await {
                return Err(ParametersError::NotReloaded);
            }
        }
        Ok(())
    }

    /// What runs has proven itself, as far as that goes without a start.
    async fn note_what_runs(
        &self,
        parameters: &mut Parameters,
        session: &Session,
    ) -> Result<(), ParametersError> {
        let values = parameters.values();
        let names: Vec<&String> = values.keys().collect();
        let pending = "SELECT lower(name) FROM pg_settings WHERE pending_restart AND lower(name) = ANY($1)";
        let mut waiting = Vec::new();
        for row in session.rows(pending, &[&names]).await? {
            waiting.push(session.take::<String>(&row, 0)?);
        }
        let runs = values.into_iter().filter(|(name, _)| !waiting.contains(name));
        let before = parameters.kept.clone();
        parameters.kept.proven.extend(runs);
        if parameters.kept != before {
            parameters.save(&self.settings().state_dir)?;
        }
        Ok(())
    }

    /// Before a start: the file is as it should be.
    pub(super) async fn lay_out_wanted(&self) -> Result<(), FileError> {
        let mut parameters = self.shared.parameters.lock().await;
        let Some(number) = parameters.wanted.as_ref().map(|wanted| wanted.number) else {
            return Ok(());
        };
        let values = parameters.values();
        if !values.is_empty() || file(self.data_dir()).exists() {
            self.lay_out(&values)?;
        }
        parameters.applied = number;
        Ok(())
    }

    /// What may keep PostgreSQL from starting: each time more of it, and what stands in its place.
    pub(super) async fn doubts(&self) -> Vec<Doubts> {
        self.shared.parameters.lock().await.doubts()
    }

    /// Before anything runs on the data that is no server, such as what pg_rewind starts for crash recovery: it could not
    /// go back to values that work.
    pub(super) async fn lay_out_what_works(&self) -> Result<(), FileError> {
        let most = self.doubts().await.pop().unwrap_or_default();
        self.lay_out_instead(&most).await
    }

    /// PostgreSQL did not start: before another attempt these values are gone, or what they were.
    pub(super) async fn lay_out_instead(&self, doubts: &Doubts) -> Result<(), FileError> {
        let mut values = self.shared.parameters.lock().await.values();
        for (name, instead) in doubts {
            match instead {
                Some(instead) => values.insert(name.clone(), instead.clone()),
                None => values.remove(name),
            };
        }
        if values.is_empty() && !file(self.data_dir()).exists() { Ok(()) } else { self.lay_out(&values) }
    }

    /// PostgreSQL started without these values and did not with them.
    pub(super) async fn refuse_values(&self, doubts: Doubts, why: &str) {
        let mut parameters = self.shared.parameters.lock().await;
        let values = parameters.values();
        for (name, instead) in doubts {
            let value = values.get(&name).map_or("", String::as_str);
            tracing::error!(%name, %value, "PostgreSQL does not start with this value, and runs without it: {why}");
            parameters.refuse(&name, why);
            match instead {
                Some(instead) => parameters.kept.proven.insert(name, instead),
                None => parameters.kept.proven.remove(&name),
            };
        }
        self.kept(&parameters);
    }

    /// PostgreSQL started with what the file has, but for what it was told otherwise.
    pub(super) async fn started(&self, told: &[Told]) {
        let mut parameters = self.shared.parameters.lock().await;
        if parameters.wanted.is_some() {
            let before = parameters.kept.clone();
            let mut values = parameters.values();
            for (name, _) in told {
                match before.proven.get(*name) {
                    Some(proven) => values.insert((*name).to_owned(), proven.clone()),
                    None => values.remove(*name),
                };
            }
            parameters.kept.started.clone_from(&values);
            parameters.kept.proven = values;
            parameters.seen = true;
            // Somebody else may have written it meanwhile, before it was known what does not work.
            let wanted = parameters.values();
            let there = !wanted.is_empty() || file(self.data_dir()).exists();
            if let Err(error) = if there { self.lay_out(&wanted) } else { Ok(()) } {
                tracing::warn!("{}", pgherd_common::errors::Chain(&error));
                parameters.seen = false;
            }
            if parameters.kept != before {
                self.kept(&parameters);
            }
        }
    }

    /// What cannot be kept has to prove itself again after a restart of the agent.
    fn kept(&self, parameters: &Parameters) {
        if let Err(error) = parameters.save(&self.settings().state_dir) {
            tracing::warn!("what parameters PostgreSQL runs with is not remembered: {error}");
        }
    }

    /// What a standby's start has to be told besides, so that it has as much as `floor` and its WAL say.
    pub(super) async fn lift(&self, floor: Option<Capacity>) -> Vec<Told> {
        let control = self.control().await.ok().and_then(|control| control.capacity);
        let Some(needed) = control.into_iter().chain(floor).reduce(Capacity::most) else { return Vec::new() };
        let configured = match self.configured_capacity().await {
            Ok(configured) => configured,
            // Then it is told all of it: less than it would have is better than less than it needs.
            Err(error) => {
                tracing::warn!("cannot tell what PostgreSQL is configured for: {error}");
                Capacity::default()
            }
        };
        let lifted: Vec<_> =
            configured.shortfalls(needed).map(|missing| (missing.name, missing.needs)).collect();
        for (name, value) in &lifted {
            tracing::info!(%name, %value, "a standby needs as much of this as its primary has: started with that");
        }
        lifted
    }

    /// What the start of a primary has to be told besides, so that one that crashed does not come up with more than its
    /// standbys have: they are to have it first, and a crash is no time for changes.
    pub(super) async fn cap(&self) -> Vec<Told> {
        let control = self.control().await.ok().filter(|control| !control.is_clean());
        let Some(had) = control.and_then(|control| control.capacity) else { return Vec::new() };
        let configured = self.configured_capacity().await.unwrap_or(had);
        let held: Vec<_> = had.shortfalls(configured).map(|more| (more.name, more.has)).collect();
        for (name, value) in &held {
            tracing::info!(%name, %value, "a primary that crashed comes up with what it had of this; more waits for a restart");
        }
        held
    }

    /// What a start would give the server of what standbys need.
    pub async fn configured_capacity(&self) -> Result<Capacity, AskError> {
        let nothing = BTreeMap::new();
        let values = futures_util::future::try_join_all(NAMES.map(|name| self.configured(name, &nothing)));
        let mut found = [0; NAMES.len()];
        for (place, value) in found.iter_mut().zip(values.await?) {
            *place =
                value.parse().map_err(|_| AskError::Refused(format!("it told {value:?} for a number")))?;
        }
        Ok(Capacity::new(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(values: &[(&str, &str, u64)]) -> Wanted {
        let value = |(name, value, number): &(&str, &str, u64)| {
            ((*name).to_owned(), Value { value: (*value).to_owned(), number: *number })
        };
        Wanted { number: 9, values: values.iter().map(value).collect() }
    }

    fn pairs(values: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
        values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn a_refused_value_gives_way_to_the_last_one_that_worked_until_it_is_set_again() {
        let mut parameters =
            Parameters { wanted: Some(wanted(&[("a", "2", 5), ("b", "x", 6)])), ..Parameters::default() };
        parameters.kept.proven.insert("a".to_owned(), "1".to_owned());
        assert_eq!(pairs(&parameters.unproven()), [("a", "2"), ("b", "x")]);
        for name in ["a", "b", "never wanted"] {
            parameters.refuse(name, "too much");
        }
        assert_eq!(parameters.news.len(), 2);
        assert_eq!(pairs(&parameters.values()), [("a", "1")]);
        assert!(parameters.unproven().is_empty());
        assert_eq!(parameters.refused().count(), 2);
        // The same value again: somebody has made room for it.
        parameters.wanted = Some(wanted(&[("a", "2", 7)]));
        assert_eq!(pairs(&parameters.values()), [("a", "2")]);
        assert_eq!(parameters.refused().count(), 0);
    }

    #[test]
    fn what_never_ran_is_doubted_first_and_then_all_that_was_not_there_at_a_start() {
        let mut parameters = Parameters {
            wanted: Some(wanted(&[("a", "2", 5), ("b", "x", 6), ("c", "1", 7)])),
            ..Parameters::default()
        };
        parameters.kept.proven =
            BTreeMap::from([("a", "1"), ("b", "x"), ("c", "1")].map(|(n, v)| (n.into(), v.into())));
        parameters.kept.started = BTreeMap::from([("a", "1"), ("c", "1")].map(|(n, v)| (n.into(), v.into())));
        let first = Doubts::from([("a".to_owned(), Some("1".to_owned()))]);
        let then = Doubts::from([("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)]);
        assert_eq!(parameters.doubts(), [first, then]);
        parameters.kept.started = parameters.values();
        parameters.kept.proven = parameters.values();
        assert!(parameters.doubts().is_empty());
    }

    #[test]
    fn values_are_quoted() {
        let values = BTreeMap::from([("search_path".to_owned(), r#""$user", 'it'"#.to_owned())]);
        assert!(text(&values).ends_with("\nsearch_path = '\"$user\", ''it'''\n"), "{}", text(&values));
    }

    #[test]
    fn what_is_kept_is_found_again_and_what_is_damaged_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let mut parameters = Parameters { wanted: Some(wanted(&[("a", "2", 5)])), ..Parameters::default() };
        parameters.kept.proven.insert("b".to_owned(), "1".to_owned());
        parameters.refuse("a", "no");
        parameters.save(dir.path()).unwrap();
        assert_eq!(Parameters::load(dir.path()).kept, parameters.kept);
        fs::write(kept_file(dir.path()), "{").unwrap();
        assert_eq!(Parameters::load(dir.path()).kept, Kept::default());
    }
}
