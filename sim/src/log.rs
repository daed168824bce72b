//! What happened, for people: one line an event, the last so many of them.

use std::collections::VecDeque;

use crate::clock::Time;

/// Lines kept.
const LINES: usize = 4000;

/// See the module. Costs nothing while it is off: a run that failed is repeated with it on.
#[derive(Debug, Default)]
pub struct EventLog {
    on: bool,
    lines: VecDeque<(Time, String)>,
}

impl EventLog {
    /// On or off.
    pub fn new(on: bool) -> Self {
        Self { on, lines: VecDeque::new() }
    }

    /// Whether lines are kept.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Adds a line.
    pub fn add(&mut self, now: Time, line: impl FnOnce() -> String) {
        if self.on {
            if self.lines.len() == LINES {
                self.lines.pop_front();
            }
            self.lines.push_back((now, line()));
        }
    }

    /// All lines with their times.
    pub fn lines(&self) -> impl Iterator<Item = &(Time, String)> {
        self.lines.iter()
    }
}
