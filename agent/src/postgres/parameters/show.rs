//! What became of the parameters here, for people.

use std::collections::BTreeMap;

use pgherd_core::capacity::NAMES;
use serde::{Deserialize, Serialize};

use super::file;
use crate::postgres::configuration::same_file;
use crate::postgres::instance::Instance;
use crate::postgres::session::{CONFIGURED, SessionError};

/// How a parameter stands on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Standing {
    /// It is as it was set.
    InEffect,
    /// The next restart brings it.
    RestartPending,
    /// Something else wins over it.
    Overridden {
        /// What.
        by: String,
    },
    /// PostgreSQL did not take it.
    Refused {
        /// What it said.
        why: String,
    },
    /// The agent has not come to it, or PostgreSQL does not run.
    NotYet {
        /// What is in the way.
        why: String,
    },
}

/// A parameter on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterHere {
    /// What is wanted here.
    pub wanted: String,
    /// What PostgreSQL runs with, if it runs and knows the parameter.
    pub running: Option<String>,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
}

/// What a restart would change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pending {
    /// Settings that have been changed and take effect only with the next start.
    pub settings: Vec<String>,
    /// Those of them that a standby must have as much of as its primary, and that are lowered: on the primary first.
    pub lowered: Vec<String>,
    /// Values that were set cluster-wide and that PostgreSQL here did not take, and why.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// One row of what PostgreSQL says.
struct Row {
    running: String,
    pending: bool,
    /// The file whose line counts, where there is one.
    file: Option<String>,
    source: String,
}

impl Instance {
    /// Up to which entry of the log the parameters are laid out here, and how each of them stands.
    pub async fn parameters_here(&self) -> (u64, BTreeMap<String, ParameterHere>) {
        let (applied, wanted, refused) = {
            let parameters = self.shared.parameters.lock().await;
            let refused: BTreeMap<String, String> =
                parameters.refused().map(|(name, refused)| (name.clone(), refused.why.clone())).collect();
            let wanted = parameters.wanted.clone().unwrap_or_default();
            (parameters.applied, wanted.values, refused)
        };
        let names: Vec<&String> = wanted.keys().collect();
        let rows = if names.is_empty() { Ok(BTreeMap::new()) } else { self.rows_of(&names).await };
        let here = |(name, value): (&String, &super::Value)| {
            let row = rows.as_ref().ok().and_then(|rows| rows.get(name));
            let standing = match (refused.get(name), &rows, row) {
                (Some(why), _, _) => Standing::Refused { why: why.clone() },
                (None, Err(error), _) => {
                    Standing::NotYet { why: format!("PostgreSQL does not answer: {error}") }
                }
                (None, Ok(_), Some(row)) => self.standing(row),
                (None, Ok(_), None) => {
                    Standing::NotYet { why: "no module that is loaded knows it".to_owned() }
                }
            };
            let running = row.map(|row| row.running.clone());
            (name.clone(), ParameterHere { wanted: value.value.clone(), running, standing })
        };
        let parameters = wanted.iter().map(here).collect();
        (applied, parameters)
    }

    fn standing(&self, row: &Row) -> Standing {
        let ours = row.file.as_ref().is_some_and(|by| same_file(by.as_ref(), &file(self.data_dir())));
        match &row.file {
            Some(by) if !ours => Standing::Overridden { by: by.clone() },
            Some(_) if row.pending => Standing::RestartPending,
            Some(_) if row.source == "command line" => {
                Standing::Overridden { by: "the command line with which it was started".to_owned() }
            }
            Some(_) => Standing::InEffect,
            None => Standing::NotYet { why: "the server has not read the agent's file yet".to_owned() },
        }
    }

    async fn rows_of(&self, names: &[&String]) -> Result<BTreeMap<String, Row>, SessionError> {
        let sql = format!(
            "SELECT lower(s.name), {CONFIGURED}, s.pending_restart, \
            (SELECT f.sourcefile FROM pg_file_settings AS f WHERE lower(f.name) = lower(s.name) ORDER BY f.seqno DESC LIMIT 1), \
            s.source FROM pg_settings AS s WHERE lower(s.name) = ANY($1)"
        );
        let session = self.session().await?;
        let mut rows = BTreeMap::new();
        for row in session.rows(&sql, &[&names]).await? {
            let name: String = session.take(&row, 0)?;
            let (running, pending) = (session.take(&row, 1)?, session.take(&row, 2)?);
            let (file, source) = (session.take(&row, 3)?, session.take(&row, 4)?);
            rows.insert(name, Row { running, pending, file, source });
        }
        Ok(rows)
    }

    /// What a restart would change here.
    pub async fn pending(&self) -> Result<Pending, SessionError> {
        const PENDING: &str = "SELECT s.name, s.setting, coalesce((SELECT f.setting FROM pg_file_settings AS f \
            WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1), s.boot_val, ''), s.pending_restart FROM pg_settings AS s \
            WHERE s.pending_restart OR s.name = ANY($1) ORDER BY s.name";
        let session = self.session().await?;
        let mut found = Pending::default();
        for row in session.rows(PENDING, &[&&NAMES[..]]).await? {
            let name: String = session.take(&row, 0)?;
            let number = |text: &str| text.parse::<u32>().ok();
            let (has, gets) = (number(session.take(&row, 1)?), number(session.take(&row, 2)?));
            // Where a start was told more than the files say, PostgreSQL itself need not know of it.
            let lowered =
                NAMES.contains(&name.as_str()) && has.zip(gets).is_some_and(|(has, gets)| gets < has);
            if lowered {
                found.lowered.push(name.clone());
            }
            if lowered || session.take(&row, 3)? {
                found.settings.push(name);
            }
        }
        let parameters = self.shared.parameters.lock().await;
        let refused = parameters.refused();
        found.refused = refused.map(|(name, r)| format!("{name} = '{}': {}", r.value.value, r.why)).collect();
        Ok(found)
    }

    /// Which of these PostgreSQL knows, by their names in lower case, with what it takes to change each.
    pub async fn contexts(&self, names: &[&String]) -> Result<BTreeMap<String, String>, SessionError> {
        let session = self.session().await?;
        let sql = "SELECT lower(name), context FROM pg_settings WHERE lower(name) = ANY($1)";
        let mut found = BTreeMap::new();
        for row in session.rows(sql, &[&names]).await? {
            found.insert(session.take(&row, 0)?, session.take(&row, 1)?);
        }
        Ok(found)
    }

    /// What a value of an extension's parameter meets in a session where the extension is loaded; nothing stays.
    pub async fn try_in_session(&self, name: &str, value: &str) -> Result<(), SessionError> {
        let session = self.session().await?;
        // A statement of its own is a transaction of its own, at whose end the value is gone.
        session.row("SELECT set_config($1, $2, true)", &[&name, &value]).await.map(drop)
    }

    /// Whether pages have checksums.
    pub async fn has_checksums(&self) -> Result<bool, SessionError> {
        self.session().await?.value("SELECT current_setting('data_checksums') = 'on'").await
    }

    /// The versions of the running server and of the programs that are installed now, as they call themselves.
    pub async fn versions(&self) -> (Option<String>, Option<String>) {
        let running = async {
            let session = self.session().await.ok()?;
            session.value::<String>("SELECT current_setting('server_version')").await.ok()
        };
        let installed = async {
            let mut command = tokio::process::Command::new(self.settings().bin_dir.join("postgres"));
            command.arg("--version").env("LC_ALL", "C").stdin(std::process::Stdio::null()).kill_on_drop(true);
            let output =
                tokio::time::timeout(self.settings().connect_timeout * 5, command.output()).await.ok()?;
            String::from_utf8(output.ok().filter(|output| output.status.success())?.stdout).ok()
        };
        let (running, installed) = tokio::join!(running, installed);
        let number = |text: String| {
            let mut words = text.split_whitespace();
            words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
        };
        (running.and_then(number), installed.and_then(number))
    }
}
