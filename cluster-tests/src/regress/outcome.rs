//! What a run of a suite said about each test, and what two runs say differently.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// Whether each test passed, by name.
    pub tests: BTreeMap<String, bool>,
    /// Where its files are.
    pub dir: PathBuf,
    /// Whether the run had to be ended.
    pub hung: bool,
}

impl Outcome {
    /// Reads what the driver printed.
    pub(super) fn read(said: &str, dir: &Path, hung: bool) -> Self {
        Self { tests: said.lines().filter_map(test_line).collect(), dir: dir.to_owned(), hung }
    }

    /// `215 of 217 passed`.
    pub(super) fn told(&self) -> String {
        let passed = self.tests.values().filter(|passed| **passed).count();
        let hung = if self.hung { ", and the run was ended because it hung" } else { "" };
        format!("{passed} of {} passed{hung}", self.tests.len())
    }

    /// What the server answered in a test.
    fn answers(&self, test: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.join("results").join(format!("{test}.out"))).ok()
    }
}

/// One test's name and whether it passed, in either of the two notations of the drivers.
fn test_line(line: &str) -> Option<(String, bool)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["ok", _, "-" | "+", name, ..] => Some(((*name).to_owned(), true)),
        ["not", "ok", _, "-" | "+", name, ..] => Some(((*name).to_owned(), false)),
        ["test", name, "...", result, ..] | [name, "...", result, ..] => {
            matches!(*result, "ok" | "FAILED" | "failed").then(|| ((*name).to_owned(), *result == "ok"))
        }
        _ => None,
    }
}

/// Tests that did not end in both runs as in the other: each with a line for people.
pub(super) fn differences(direct: &Outcome, proxied: &Outcome) -> Vec<(String, String)> {
    let mut differing = Vec::new();
    for (name, passed) in &direct.tests {
        let what = match (passed, proxied.tests.get(name)) {
            (_, None) => Some("did not run"),
            (true, Some(false)) => Some("fails"),
            (false, Some(true)) => Some("passes, and fails directly"),
            (false, Some(false)) if direct.answers(name) != proxied.answers(name) => {
                Some("fails, and fails directly in another way")
            }
            (true, Some(true)) | (false, Some(false)) => None,
        };
        differing.extend(what.map(|what| (name.clone(), what.to_owned())));
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read() {
        let fifteen = "parallel group (2 tests):  name text\n     name                         ... ok           57 ms\n     text                         ... FAILED       31 ms\ntest test_setup                   ... ok          180 ms\n";
        let sixteen =
            "ok 1         - test_setup      180 ms\n# parallel group\nnot ok 2     + name   57 ms\n1..2\n";
        let of = |said: &str| Outcome::read(said, Path::new("/nowhere"), false);
        let expected = |name: &str, passed| (name.to_owned(), passed);
        assert_eq!(
            of(fifteen).tests,
            [expected("name", true), expected("text", false), expected("test_setup", true)].into()
        );
        assert_eq!(of(sixteen).tests, [expected("name", false), expected("test_setup", true)].into());
    }

    #[test]
    fn only_what_differs_is_told() {
        let of = |tests: &[(&str, bool)]| Outcome {
            tests: tests.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect(),
            dir: PathBuf::from("/nowhere"),
            hung: false,
        };
        let direct = of(&[("a", true), ("b", true), ("c", false), ("d", false)]);
        let proxied = of(&[("a", true), ("b", false), ("c", false)]);
        let names: Vec<String> =
            differences(&direct, &proxied).into_iter().map(|(name, what)| format!("{name} {what}")).collect();
        assert_eq!(names, ["b fails", "d did not run"]);
    }
}
