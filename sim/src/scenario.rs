//! Scenario scripts: what happens to a cluster and what it does, as text that people read.
//!
//! A script is a list of commands; the lines that begin with `|` are what the command before them printed.
//! [`rewrite`] runs a script and puts the output in its place, so a test compares the two texts.

mod command;
mod show;

use std::fmt;

use crate::clock::{Micros, SECOND, Time};
use crate::world::{Fault, OPEN_END, Plan, World};

use command::Command;

/// A script that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonsense {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

/// A cluster under a script.
struct Stage {
    world: World,
    /// Faults that have begun and can be taken back.
    standing: Vec<Fault>,
    /// When time was last counted from.
    since: Time,
    /// Lines of the log that were shown.
    shown: usize,
    acknowledged: Vec<Time>,
}

/// Runs a script; the same text with the output that it gives now.
pub fn rewrite(script: &str) -> Result<String, Nonsense> {
    let (mut text, mut stage) = (String::new(), None::<Stage>);
    for (number, line) in script.lines().enumerate().filter(|(_, line)| !line.starts_with('|')) {
        text.push_str(line);
        text.push('\n');
        let nonsense = |why: String| Nonsense { line: number + 1, why };
        let Some(command) = Command::read(line).map_err(nonsense)? else { continue };
        let output = match (&command, &mut stage) {
            (Command::Cluster(plan), stage) => {
                let (begun, output) = Stage::begin(plan);
                *stage = Some(begun);
                output
            }
            (_, None) => return Err(nonsense("a script begins with `cluster`".to_owned())),
            (_, Some(stage)) => stage.obey(&command).map_err(nonsense)?,
        };
        for line in output {
            text.push_str(format!("| {line}").trim_end());
            text.push('\n');
        }
        if let Some((at, violation)) = stage.as_ref().and_then(|stage| stage.world.checks.violation()) {
            return Err(nonsense(format!("at {at} s: {violation}")));
        }
    }
    Ok(text)
}

impl Stage {
    fn begin(plan: &Plan) -> (Self, Vec<String>) {
        let mut world = World::new(&Plan { log: true, direct_writers: false, ..plan.clone() }, 1);
        world.run(10 * SECOND);
        let since = world.now;
        let shown = world.log.lines().count();
        let stage = Self { world, standing: Vec::new(), since, shown, acknowledged: Vec::new() };
        let output = match stage.world.health().trouble() {
            None => "formed: everybody is in service".to_owned(),
            Some(sick) => format!("not whole: {sick}"),
        };
        (stage, vec![output])
    }

    /// Time is counted from here.
    fn count(&mut self) {
        if self.world.now == self.since {
            return;
        }
        self.since = self.world.now;
        self.shown = self.world.log.lines().count();
    }

    fn obey(&mut self, command: &Command) -> Result<Vec<String>, String> {
        match command {
            Command::Cluster(_) => {}
            Command::Run(span) => self.run(*span),
            Command::Fault(fault) => {
                let fault = self.numbered(fault)?;
                self.count();
                self.world.strike(0, fault.clone(), OPEN_END);
                self.standing.push(fault);
                self.run(0);
            }
            Command::Over(fault) => {
                let fault = self.numbered(fault)?;
                let at = self.standing.iter().position(|standing| *standing == fault);
                let Some(at) = at else { return Err("that has not begun".to_owned()) };
                self.standing.remove(at);
                self.count();
                self.world.end_fault(&fault);
            }
            Command::Mend => {
                self.standing.clear();
                self.count();
                self.world.heal();
            }
            Command::Status => return Ok(show::status(&self.world)),
            Command::History => return Ok(show::history(&self.world)),
            Command::Log => {
                let lines = show::decisions(&self.world, self.shown, self.since);
                self.shown = self.world.log.lines().count();
                return Ok(lines);
            }
            Command::Writes => return Ok(show::writes(&self.world, &mut self.acknowledged, self.since)),
        }
        Ok(Vec::new())
    }

    fn run(&mut self, span: Micros) {
        let until = self.world.now + span;
        let mut before: u64 = self.world.proxies.iter().map(|proxy| proxy.acknowledged).sum();
        loop {
            let next = (self.world.now + 10_000).min(until);
            self.world.run_until(next);
            let after: u64 = self.world.proxies.iter().map(|proxy| proxy.acknowledged).sum();
            if after > before {
                self.acknowledged.push(self.world.now);
                before = after;
            }
            if self.world.now >= until {
                return;
            }
        }
    }

    /// Names become places in the world.
    fn numbered(&self, fault: &command::Named) -> Result<Fault, String> {
        let place = |name: &str| {
            let found = self.world.machines.iter().position(|m| m.descriptor.name.as_str() == name);
            found.ok_or_else(|| format!("there is no {name}"))
        };
        fault.numbered(place)
    }
}
