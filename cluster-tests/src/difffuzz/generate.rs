//! Makes a session out of a seed and its number.
//!
//! All statements give the same on two servers with the same data: what has no order is not asked for, and
//! nothing is said of time, chance, plans or places. Mistakes are welcome: they must be answered alike, too.

mod copy;
mod extended;
mod reads;
mod state;
mod tables;
mod writes;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::line::Until;
use super::say::Say;
use super::script::{Room, Script, Step};
use extended::Shape;

pub(super) use tables::{furnish, tidy};

/// Rows of the first table: numbers 1 to this. Statements ask for a few more.
const ROWS: i32 = 20;

/// Draws a session.
pub(super) struct Maker {
    rng: StdRng,
    room: Room,
    /// In front of the names of tables; empty when the search path leads there.
    prefix: String,
    /// How much of the session uses the extended protocol, in percent.
    extended: u32,
    /// How much is about something other than reads and writes, in percent.
    oddities: u32,
    /// Whether tables and functions are made and altered.
    alters: bool,
    /// A transaction was begun, if all went well.
    in_tx: bool,
    /// Statements that were prepared with the protocol.
    named: Vec<(String, Shape)>,
    /// So many tables, columns and the like were made.
    made: u32,
}

/// The session with this number.
pub(super) fn session(seed: u64, number: u64, room: &Room) -> Script {
    let mut rng = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let by_path = rng.random_ratio(1, 2);
    let maker = Maker {
        prefix: if by_path { String::new() } else { format!("{}.", room.schema) },
        room: room.clone(),
        extended: [0, 30, 60, 100].choose(&mut rng).copied().unwrap_or(50),
        oddities: [5, 20, 45].choose(&mut rng).copied().unwrap_or(20),
        alters: rng.random_ratio(1, 8),
        in_tx: false,
        named: vec![],
        made: 0,
        rng,
    };
    maker.session(by_path)
}

impl Maker {
    fn session(mut self, by_path: bool) -> Script {
        let mut steps = Vec::new();
        if by_path {
            steps.push(self.simple(format!("SET search_path = {}, public", self.room.schema)));
        }
        for _ in 0..self.rng.random_range(6..32) {
            let step = self.step();
            steps.push(step);
        }
        Script { steps, alters: self.alters }
    }

    fn step(&mut self) -> Step {
        let chance = self.rng.random_range(0..100);
        match chance {
            0..3 => self.copy_step(),
            3..5 if self.extended > 0 => self.disorder(),
            5 => self.function_call(),
            _ if self.rng.random_range(0..100) < self.extended => self.extended_step(),
            _ => {
                let count = if self.rng.random_ratio(1, 6) { self.rng.random_range(2..5) } else { 1 };
                let texts: Vec<String> = (0..count).map(|_| self.statement()).collect();
                self.simple(texts.join("; "))
            }
        }
    }

    fn simple(&self, sql: String) -> Step {
        Step::one(vec![Say::Query(sql)], Until::Ready(1))
    }

    /// Any statement without parameters.
    fn statement(&mut self) -> String {
        if self.in_tx && self.rng.random_ratio(1, 5) {
            return self.end_of_transaction();
        }
        if self.rng.random_range(0..100) < self.oddities {
            return self.oddity();
        }
        match self.rng.random_range(0..10) {
            0..6 => self.read(),
            6 if !self.in_tx => self.begin(),
            _ => self.write(),
        }
    }

    fn oddity(&mut self) -> String {
        match self.rng.random_range(0..13) {
            0..3 => self.setting(),
            3 => self.transaction_word(),
            4 => self.sql_prepared(),
            5 => self.cursor(),
            6 => self.temporary(),
            7 => self.notification(),
            8 => self.lock(),
            9 => self.mistake(),
            10 if self.alters => self.definition(),
            11 => self.notice(),
            _ => self.catalog(),
        }
    }

    /// One of these.
    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        self.rng.random_range(0..end)
    }

    fn chance(&mut self, of: u32) -> bool {
        self.rng.random_ratio(1, of)
    }

    /// The number of a row that exists more often than not.
    fn row(&mut self) -> i32 {
        self.rng.random_range(1..ROWS + 4)
    }

    /// A number for something new.
    fn new_number(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    /// A short text, now and then with what is hard to quote.
    fn word(&mut self) -> String {
        let word = self.one_of(&[
            "ash",
            "birch",
            "cedar",
            "it''s",
            "öl",
            "back\\\\slash",
            "",
            "tab\there",
            "x'';--",
        ]);
        word.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seed: u64, number: u64) -> String {
        let room = Room { schema: "w1".to_owned(), serial: 1 };
        session(seed, number, &room).steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_session_is_its_seed_and_number() {
        assert_eq!(told(1, 2), told(1, 2));
        assert_ne!(told(1, 2), told(1, 3));
        assert_ne!(told(1, 2), told(2, 2));
    }
}
