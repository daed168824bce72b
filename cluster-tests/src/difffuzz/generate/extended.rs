//! The extended protocol, in and out of order, and function calls.

use super::Maker;
use crate::difffuzz::line::Until;
use crate::difffuzz::say::{Bind, Say};
use crate::difffuzz::script::{Part, Step};

const INT: u32 = 23;
const TEXT: u32 = 25;

/// A statement with parameters.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    sql: String,
    values: Vec<Value>,
}

#[derive(Debug, Clone)]
enum Value {
    Int(i32),
    Text(String),
    NullInt,
}

impl Shape {
    fn new(sql: String, values: Vec<Value>) -> Self {
        Self { sql, values }
    }

    fn types(&self) -> Vec<u32> {
        let of = |value: &Value| if matches!(value, Value::Text(_)) { TEXT } else { INT };
        self.values.iter().map(of).collect()
    }
}

impl Value {
    fn bytes(&self, binary: bool) -> Option<Vec<u8>> {
        match self {
            Self::Int(number) if binary => Some(number.to_be_bytes().to_vec()),
            Self::Int(number) => Some(number.to_string().into_bytes()),
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::NullInt => None,
        }
    }
}

impl Maker {
    /// One or several groups of messages, with a `Sync` behind each, sent at once or bit by bit.
    pub(super) fn extended_step(&mut self) -> Step {
        let groups = if self.chance(3) { 2 + self.below(4) } else { 1 };
        let (mut says, mut syncs) = (Vec::new(), 0);
        for _ in 0..groups {
            let units = if self.chance(4) { 2 + self.below(2) } else { 1 };
            for _ in 0..units {
                self.unit(&mut says);
            }
            says.push(Say::Sync);
            syncs += 1;
        }
        if !self.chance(8) {
            return Step::one(says, Until::Ready(syncs));
        }
        // What comes before the last Sync is answered in pieces.
        let at = usize::try_from(self.below(8)).unwrap_or(0).min(says.len() - 1);
        let rest = says.split_off(at);
        let before = says.iter().filter(|say| matches!(say, Say::Sync)).count();
        says.push(Say::Flush);
        let parts = vec![
            Part { says, until: Until::Quiet(before) },
            Part { says: rest, until: Until::Ready(syncs - before) },
        ];
        Step { parts }
    }

    /// Prepares something and runs it, or runs what was prepared.
    fn unit(&mut self, says: &mut Vec<Say>) {
        if !self.named.is_empty() && self.chance(2) {
            let at = usize::try_from(self.below(8)).unwrap_or(0) % self.named.len();
            if let Some((name, shape)) = self.named.get(at).cloned() {
                return self.use_named(&name, &shape, says);
            }
        }
        let shape = self.shape();
        if self.chance(4) && !shape.values.is_empty() {
            let name = self.one_of(&["p0", "p1", "p2", "p3"]).to_owned();
            if self.chance(3) {
                says.push(Say::Close(b'S', name.clone()));
                self.named.retain(|(known, _)| *known != name);
            }
            self.parse(&name, &shape, says);
            if !self.named.iter().any(|(known, _)| *known == name) {
                self.named.push((name.clone(), shape.clone()));
            }
            return self.use_named(&name, &shape, says);
        }
        let plain = shape.values.is_empty() && self.chance(2);
        let shape = if plain { Shape::new(self.statement(), vec![]) } else { shape };
        self.parse("", &shape, says);
        self.run("", &shape, says);
    }

    fn parse(&mut self, name: &str, shape: &Shape, says: &mut Vec<Say>) {
        let types = if self.chance(2) { shape.types() } else { vec![] };
        says.push(Say::Parse { name: name.to_owned(), sql: shape.sql.clone(), types });
    }

    fn use_named(&mut self, name: &str, shape: &Shape, says: &mut Vec<Say>) {
        match self.below(12) {
            0 => {
                says.push(Say::Close(b'S', name.to_owned()));
                self.named.retain(|(known, _)| known != name);
            }
            1 if self.describes_later() => says.push(Say::Describe(b'S', name.to_owned())),
            // Once more under the same name: an error.
            2 if self.chance(3) => self.parse(name, shape, says),
            _ => self.run(name, shape, says),
        }
    }

    /// Whether what was prepared before may be described, or its parameters be counted. Once the search path leads elsewhere, the parameters
    /// of what is not found there any more are only known where it was prepared.
    fn describes_later(&self) -> bool {
        !self.prefix.is_empty()
    }

    fn run(&mut self, name: &str, shape: &Shape, says: &mut Vec<Say>) {
        if self.chance(4) && (name.is_empty() || self.describes_later()) {
            says.push(Say::Describe(b'S', name.to_owned()));
        }
        let portal = if self.chance(5) { self.one_of(&["a", "b"]).to_owned() } else { String::new() };
        says.push(self.bind(&portal, name, shape));
        if !self.chance(3) {
            says.push(Say::Describe(b'P', portal.clone()));
        }
        match self.below(6) {
            0 => {
                let limit = 1 + self.below(5);
                for _ in 0..1 + self.below(3) {
                    says.push(Say::Execute(portal.clone(), limit));
                }
            }
            1 => {
                says.push(Say::Execute(portal.clone(), 0));
                says.push(Say::Close(b'P', portal));
            }
            _ => says.push(Say::Execute(portal, 0)),
        }
    }

    fn bind(&mut self, portal: &str, statement: &str, shape: &Shape) -> Say {
        let binary = self.chance(2);
        let results = match self.below(3) {
            0 => vec![],
            1 => vec![0],
            _ => vec![1],
        };
        let mut values: Vec<_> = shape.values.iter().map(|value| value.bytes(binary)).collect();
        if self.chance(20) && (statement.is_empty() || self.describes_later()) {
            // One too many.
            values.push(Some(vec![0]));
        }
        let formats = if binary { vec![1] } else { vec![] };
        Say::Bind(Bind {
            portal: portal.to_owned(),
            statement: statement.to_owned(),
            formats,
            values,
            results,
        })
    }

    fn shape(&mut self) -> Shape {
        let (p, row) = (self.prefix.clone(), self.row());
        let (int, other) = (Value::Int(row), Value::Int(self.row()));
        let word = Value::Text(self.word());
        match self.below(17) {
            0 | 1 => Shape::new(format!("SELECT id, a, b FROM {p}t0 WHERE id = $1"), vec![int]),
            2 => Shape::new(format!("SELECT id, c, d FROM {p}t0 WHERE a > $1 ORDER BY id"), vec![int]),
            3 => Shape::new(format!("SELECT count(*) FROM {p}t0 WHERE b <> $1"), vec![word]),
            4 => Shape::new("SELECT $1::int4 + $2::int4 AS sum".to_owned(), vec![int, other]),
            5 => Shape::new("SELECT $1::text || '!' AS t, length($1)".to_owned(), vec![word]),
            6 => Shape::new("SELECT n FROM generate_series(1, $1::int4) n ORDER BY n".to_owned(), vec![int]),
            7 => Shape::new(format!("SELECT id, v, j FROM {p}t1 WHERE r = $1 ORDER BY id"), vec![int]),
            8 => {
                Shape::new(format!("INSERT INTO {p}t1 (r, v) VALUES ($1, $2) RETURNING id"), vec![int, word])
            }
            9 => Shape::new(format!("UPDATE {p}t0 SET a = $1 WHERE id = $2"), vec![int, other]),
            10 => Shape::new(format!("DELETE FROM {p}t0 WHERE id = $1"), vec![int]),
            11 => Shape::new(format!("INSERT INTO {p}t0 (id, b) VALUES ($1, $2)"), vec![int, word]),
            12 => Shape::new(format!("SELECT id FROM {p}t0 WHERE id = $1 FOR UPDATE"), vec![int]),
            13 => Shape::new("SELECT 10 / ($1::int4 - 5)".to_owned(), vec![int]),
            14 => Shape::new(format!("SELECT a FROM {p}t0 WHERE a = $1 ORDER BY id"), vec![Value::NullInt]),
            15 if self.chance(4) => {
                Shape::new("SELECT length($1::text)".to_owned(), vec![Value::Text("l".repeat(90_000))])
            }
            _ => Shape::new(format!("SELECT max(a), min(id) FROM {p}t0"), vec![]),
        }
    }

    /// Messages in any order.
    pub(super) fn disorder(&mut self) -> Step {
        let mut says = Vec::new();
        let mut until = Until::Ready(1);
        for _ in 0..3 + self.below(8) {
            let name = self.one_of(&["", "", "p0", "p1"]).to_owned();
            let portal = self.one_of(&["", "", "a", "c0"]).to_owned();
            let shape = self.shape();
            says.push(match self.below(14) {
                0..3 => {
                    // What is known of the name is not certain any more.
                    self.named.retain(|(known, _)| *known != name);
                    Say::Parse { name, sql: shape.sql, types: vec![] }
                }
                3..6 => self.bind(&portal, &name, &shape),
                6 if name.is_empty() || self.describes_later() => Say::Describe(b'S', name),
                6 => Say::Flush,
                7 => Say::Describe(b'P', portal),
                // What was bound before may have been left behind with a standby; and servers crash when they are
                // asked for what a transaction bound that has failed.
                8..10 if says.iter().any(|say| matches!(say, Say::Bind(bind) if bind.portal == portal)) => {
                    Say::Execute(portal, self.below(3))
                }
                8..10 => Say::Execute("none".to_owned(), self.below(3)),
                10 => Say::Close(b'S', name),
                11 => Say::Close(b'P', portal),
                12 if self.chance(2) => {
                    until = Until::Quiet(1);
                    Say::Query(self.statement())
                }
                12 => self.stray(),
                _ => Say::Flush,
            });
        }
        says.push(Say::Sync);
        Step::one(says, until)
    }

    /// Data that nobody asked for.
    fn stray(&mut self) -> Say {
        match self.below(3) {
            0 => Say::CopyDone,
            1 => Say::CopyFail("no need".to_owned()),
            _ => Say::CopyData(b"1\tx\n".to_vec()),
        }
    }

    /// A function called by its number.
    pub(super) fn function_call(&mut self) -> Step {
        let int = |number: i32| Some(number.to_be_bytes().to_vec());
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let row = self.row();
        let say = match self.below(6) {
            // int4pl, int4div, textcat, upper, length
            0 => Say::Call(177, vec![int(row), int(2)]),
            1 => Say::Call(154, vec![int(row), int(row % 3)]),
            2 => Say::Call(1258, vec![text("a"), text("b")]),
            3 => Say::Call(871, vec![text("loud")]),
            4 => Say::Call(1317, vec![None]),
            _ => Say::Call(99, vec![]),
        };
        Step::one(vec![say], Until::Ready(1))
    }
}
