//! How a test ends early: with the error and all its causes, as text that can be read.

use std::error::Error;
use std::fmt;

use pgherd_common::errors::Chain;

/// Any error; made by `?`.
pub struct Failure(String);

/// What a test returns.
pub type TestResult = Result<(), Failure>;

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Chain(&error).to_string())
    }
}

/// What the test runner prints.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    /// A failure of the test's own.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
