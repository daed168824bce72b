//! What came of it, for people and for documents.

use std::fmt::Write;

use super::active::{self, Active};
use super::idle::{self, Idle};
use super::latency::Latency;
use super::logins::Logins;
use super::pipelines::{self, Pipelines};
use super::reads::{self, Reads};
use super::rows::{self, Stream};
use super::text::table;
use crate::bench::machine::Machine;
use crate::bench::target::Target;

/// What is measured of a target in one part.
pub trait Figures {
    /// Names of the columns.
    const HEADS: &'static [&'static str];

    /// One text for each column.
    fn cells(&self) -> Vec<String>;
}

/// One target in one part.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<F> {
    /// Through what.
    pub target: Target,
    /// `None` if it could not be measured to the end.
    pub figures: Option<F>,
    /// Answers that were wrong or did not come.
    pub errors: u64,
    /// The first of them.
    pub told: Vec<String>,
}

/// A figure that was promised to stay within bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The figure, and its bound.
    pub what: String,
    /// Whether it did.
    pub kept: bool,
}

/// All figures. A part that was not asked for has no rows.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Name and version of every program.
    pub versions: Vec<(String, String)>,
    /// Clients that say nothing.
    pub idle: Vec<Row<Idle>>,
    /// Many clients of whom some ask.
    pub active: Vec<Row<Active>>,
    /// A large result.
    pub rows: Vec<Row<Stream>>,
    /// COPY from the client.
    pub copy_in: Vec<Row<Stream>>,
    /// COPY to the client.
    pub copy_out: Vec<Row<Stream>>,
    /// A burst of logins.
    pub logins: Vec<Row<Logins>>,
    /// Many statements in one write.
    pub pipelines: Vec<Row<Pipelines>>,
    /// One client.
    pub latency: Vec<Row<Latency>>,
    /// Reads by one instance and by several.
    pub reads: Vec<Row<Reads>>,
    /// What the logs of servers, agents and the proxy hold that nobody expects.
    pub alarms: Vec<String>,
}

impl Report {
    pub(super) fn new(machine: Machine, versions: Vec<(String, String)>) -> Self {
        Self { machine, versions, ..Self::default() }
    }

    /// What was promised, as far as it was measured.
    pub fn promises(&self) -> Vec<Promise> {
        let mut promises = idle::promises(&self.idle);
        promises.extend(active::promises(&self.active));
        promises.extend(rows::promises("rows", &self.rows));
        promises.extend(rows::promises("copy in", &self.copy_in));
        promises.extend(rows::promises("copy out", &self.copy_out));
        promises.extend(pipelines::promises(&self.pipelines));
        promises.extend(reads::promises(&self.reads));
        promises
    }
}

impl Report {
    /// The tables of all parts that were run, then promises, alarms and the verdict.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (part, _) in self.parts() {
            text.push_str(&part);
        }
        text.push('\n');
        for promise in self.promises() {
            let word = if promise.kept { "kept" } else { "NOT KEPT" };
            let _infallible = writeln!(text, "promise {word}: {}", promise.what);
        }
        for alarm in &self.alarms {
            let _infallible = writeln!(text, "in the logs: {alarm}");
        }
        let _infallible = writeln!(text, "errors: {}", self.errors());
        text
    }

    /// Answers that were wrong or did not come, in all parts.
    pub fn errors(&self) -> u64 {
        self.parts().into_iter().map(|(_, errors)| errors).sum()
    }

    /// Table and errors of each part that was run.
    fn parts(&self) -> Vec<(String, u64)> {
        let all = [
            part("idle: clients that say nothing", &self.idle),
            part("active: some of many clients read by primary key", &self.active),
            part("rows: one large result", &self.rows),
            part("copy in: COPY FROM STDIN", &self.copy_in),
            part("copy out: COPY TO STDOUT", &self.copy_out),
            part("logins: SCRAM, 50 at once, beside a client that asks SELECT 1", &self.logins),
            part("pipelines: 64 KB of statements up to each Sync", &self.pipelines),
            part("latency: one client reads by primary key", &self.latency),
            part("reads: by weights of primary and standbys, each held to the same share", &self.reads),
        ];
        all.into_iter().flatten().collect()
    }
}

fn part<F: Figures>(title: &str, rows: &[Row<F>]) -> Option<(String, u64)> {
    let errors = rows.iter().map(|row| row.errors).sum();
    (!rows.is_empty()).then(|| (table(title, rows), errors))
}
