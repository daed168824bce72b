//! What all parts stand on: the ways to the servers, and a place for what goes wrong on them.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use super::client::{Client, ClientError};
use super::scram::Password;
use super::{Options, Row};
use crate::bench::stand::{Running, Stand};
use crate::bench::target::Target;
use crate::postgres::APP;

/// So many clients log in at the same time where nothing else is said.
pub(super) const LOGINS_AT_ONCE: usize = 100;
/// Of what goes wrong so much is told; the rest is counted.
const FAULTS_TOLD: usize = 3;

/// All of it.
pub(super) struct Ground<'a> {
    pub(super) stand: &'a Stand,
    pub(super) options: &'a Options,
    pub(super) password: Arc<Password>,
    pub(super) say: &'a dyn Fn(&str),
}

/// A way that can be gone.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) target: Target,
    pub(super) address: SocketAddr,
    /// The process in between, if there is one.
    pub(super) pid: Option<u32>,
    pub(super) password: Arc<Password>,
}

/// What went wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    count: RefCell<u64>,
    first: RefCell<Vec<String>>,
}

impl<'a> Ground<'a> {
    pub(super) fn new(stand: &'a Stand, options: &'a Options, say: &'a dyn Fn(&str)) -> Self {
        Self { stand, options, password: Arc::new(Password::new(APP)), say }
    }

    /// pgbench's accounts are numbered from 1 to this.
    pub(super) fn accounts(&self) -> u32 {
        self.options.scale * 100_000
    }

    /// The way to a target, or why there is none.
    pub(super) fn way(&self, running: &Running) -> Result<Way, String> {
        if let Some(trouble) = &running.trouble {
            return Err(format!("it cannot be measured: {trouble}"));
        }
        let address = SocketAddr::from(([127, 0, 0, 1], running.port));
        Ok(Way { target: running.target, address, pid: running.pid, password: self.password.clone() })
    }

    /// Measures each of `targets` that is there; what goes wrong on one does not keep the next from it.
    pub(super) async fn each<T>(
        &self,
        targets: &[Target],
        measure: impl AsyncFn(&Way, &Faults) -> Result<T, ClientError>,
    ) -> Vec<Row<T>> {
        let mut rows = Vec::new();
        for running in self.stand.targets.iter().filter(|running| targets.contains(&running.target)) {
            let faults = Faults::default();
            (self.say)(&format!("  {}", running.target));
            let figures = match self.way(running) {
                Err(trouble) => {
                    faults.note(&trouble);
                    None
                }
                Ok(way) => {
                    let measured = measure(&way, &faults).await;
                    measured.inspect_err(|error| faults.failed(error)).ok()
                }
            };
            rows.push(faults.row(running.target, figures));
        }
        rows
    }
}

impl Way {
    /// A client who has logged in.
    pub(super) async fn open(&self) -> Result<Client, ClientError> {
        Client::open(self.address, &self.password).await
    }
}

impl Faults {
    /// Something went wrong.
    pub(super) fn note(&self, text: &str) {
        *self.count.borrow_mut() += 1;
        let mut first = self.first.borrow_mut();
        if first.len() < FAULTS_TOLD {
            first.push(text.to_owned());
        }
    }

    /// Something went wrong for a client.
    pub(super) fn failed(&self, error: &ClientError) {
        self.note(&pgherd_common::errors::Chain(error).to_string());
    }

    /// The value, if all went well.
    pub(super) fn passed<T>(&self, result: Result<T, ClientError>) -> Option<T> {
        result.inspect_err(|error| self.failed(error)).ok()
    }

    /// Whether the answer was what it had to be.
    pub(super) fn expect(&self, told: impl std::fmt::Display, expected: impl std::fmt::Display) {
        let (told, expected) = (told.to_string(), expected.to_string());
        if told != expected {
            self.note(&format!("wrong answer: {told:?} instead of {expected:?}"));
        }
    }

    /// A line of a table.
    pub(super) fn row<T>(self, target: Target, figures: Option<T>) -> Row<T> {
        Row { target, figures, errors: self.count.into_inner(), told: self.first.into_inner() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_faults_are_told_and_all_are_counted() {
        let faults = Faults::default();
        faults.expect("SELECT 1", "SELECT 1");
        (0..5).for_each(|number| faults.expect(number, 5));
        let row = faults.row(Target::Pgherd, Some(()));
        assert_eq!((row.errors, row.told.len()), (5, FAULTS_TOLD));
        assert_eq!(row.told[0], "wrong answer: \"0\" instead of \"5\"");
    }
}
