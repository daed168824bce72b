//! Reading a TOML configuration so that every mistake is reported at once, with its key path, and an
//! unknown key is refused with the nearest known name.
//!
//! A configuration is read through [`Section`]s. Each asks for the keys it knows, which also records
//! them: what nobody asked for is unknown, and the record is what `docs/configuration.md` is checked
//! against.

mod setting;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use toml::{Table, Value};

pub use setting::Setting;
pub use value::{ByteSize, ConfigValue, Millis, Secret};

/// Everything that is wrong with a configuration. Never empty when it is returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    found: Vec<String>,
}

impl Problems {
    /// Adds a problem at a key path (`postgres.port`).
    pub fn add(&mut self, path: &str, what: impl fmt::Display) {
        self.found.push(if path.is_empty() { what.to_string() } else { format!("{path}: {what}") });
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// One line for each problem.
    pub fn lines(&self) -> &[String] {
        &self.found
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problem{}", self.found.len(), if self.found.len() == 1 { "" } else { "s" })?;
        self.found.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// A key that the program understands, as it documents itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownKey {
    /// Full path; `[]` marks a list of tables: `members[].name`.
    pub path: String,
    /// The kind of value, for people.
    pub kind: &'static str,
    /// The default as written in TOML; `None` when the key is required, `Some("")` when it may be
    /// left out without a value taking its place.
    pub default: Option<String>,
}

/// A configuration being read.
#[derive(Debug, Default)]
pub struct Reader {
    problems: Problems,
    known: Vec<KnownKey>,
    settings: Vec<Setting>,
}

/// One table of it. Ask for all keys, then call [`Section::finish`].
#[derive(Debug)]
pub struct Section {
    /// With list positions, for messages: `members[2]`.
    path: String,
    /// Without, for documentation: `members[]`.
    pattern: String,
    values: Table,
    asked: Vec<String>,
}

impl Reader {
    /// Parses the text; a syntax error is a problem like any other and leaves an empty root.
    pub fn parse(text: &str) -> (Self, Section) {
        let mut reader = Self::default();
        let values = text.parse::<Table>().unwrap_or_else(|error| {
            let at = error.span().map_or(1, |span| {
                1 + text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
            });
            reader.problems.add("", format!("line {at}: {}", error.message()));
            Table::new()
        });
        (reader, Section { path: String::new(), pattern: String::new(), values, asked: Vec::new() })
    }

    /// Reports a broken relation between values that were each fine.
    pub fn problem(&mut self, path: &str, what: impl fmt::Display) {
        self.problems.add(path, what);
    }

    fn know(&mut self, known: KnownKey) {
        if !self.known.contains(&known) {
            self.known.push(known);
        }
    }

    /// All keys that were asked for, for the documentation test.
    pub fn known_keys(&self) -> &[KnownKey] {
        &self.known
    }

    /// What was asked for, with what it came to, in the order in which it was asked for.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The result, if nothing is wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                assert!(!self.problems.is_empty(), "a value is missing though no problem was reported");
                Err(self.problems)
            }
        }
    }
}

impl Section {
    /// A value that must be there; `None` after the problem was reported.
    pub fn required<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str) -> Option<T> {
        self.note::<T>(reader, key, None);
        if !self.values.contains_key(key) {
            reader.problems.add(&self.path_of(key), format!("missing; expected {}", T::KIND));
            return None;
        }
        self.take(reader, key)
    }

    /// A value that may be left out.
    pub fn optional<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str) -> Option<T> {
        self.note::<T>(reader, key, Some(String::new()));
        self.take(reader, key)
    }

    /// A value with a default, given as it would be written in TOML.
    pub fn or<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str, default: &str) -> Option<T> {
        self.note::<T>(reader, key, Some(default.to_owned()));
        if self.values.contains_key(key) {
            return self.take(reader, key);
        }
        let value =
            format!("default = {default}").parse::<Table>().ok().and_then(|mut t| t.remove("default"));
        let value = value.and_then(|value| T::from_value(&value).ok());
        assert!(value.is_some(), "the default of {} does not parse: {default}", self.path_of(key));
        value
    }

    /// A span that must not be zero, with a default.
    pub fn positive(&mut self, reader: &mut Reader, key: &str, default: &str) -> Option<Duration> {
        let span = self.or::<Millis>(reader, key, default)?;
        if span.0.is_zero() {
            reader.problem(&self.path_of(key), "must be longer than 0");
            return None;
        }
        Some(span.0)
    }

    /// A sub-table; an empty one when it is absent.
    pub fn table(&mut self, reader: &mut Reader, key: &str) -> Section {
        self.optional_table(reader, key).unwrap_or_else(|| self.child(key, Table::new()))
    }

    /// A sub-table that may be absent as a whole.
    pub fn optional_table(&mut self, reader: &mut Reader, key: &str) -> Option<Section> {
        self.asked.push(key.to_owned());
        match self.values.remove(key)? {
            Value::Table(values) => Some(self.child(key, values)),
            other => {
                let found = other.type_str();
                reader.problems.add(&self.path_of(key), format!("expected a table [{key}], found a {found}"));
                None
            }
        }
    }

    /// A list of tables (`[[members]]`), empty when it is absent.
    pub fn tables(&mut self, reader: &mut Reader, key: &str) -> Vec<Section> {
        self.asked.push(key.to_owned());
        let Some(value) = self.values.remove(key) else { return Vec::new() };
        let Value::Array(items) = value else {
            reader.problems.add(&self.path_of(key), format!("expected a list of tables [[{key}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (position, item) in items.into_iter().enumerate() {
            let Value::Table(values) = item else {
                reader.problems.add(&self.path_of(key), format!("entry {} is not a table", position + 1));
                continue;
            };
            sections.push(Section {
                path: format!("{}[{}]", self.path_of(key), position + 1),
                pattern: format!("{}[]", join(&self.pattern, key)),
                values,
                asked: Vec::new(),
            });
        }
        sections
    }

    /// A section like those of [`Self::tables`] that holds nothing: asked for its keys, it documents
    /// them.
    pub fn blank_entry(&self, key: &str) -> Section {
        Section {
            path: join(&self.path, key),
            pattern: format!("{}[]", join(&self.pattern, key)),
            values: Table::new(),
            asked: Vec::new(),
        }
    }

    /// Tables whose names are free (`[databases.app]`), by their names.
    pub fn named_tables(&mut self, reader: &mut Reader, key: &str) -> Vec<(String, Section)> {
        let Some(section) = self.optional_table(reader, key) else { return Vec::new() };
        let mut sections = Vec::new();
        for (name, value) in section.values {
            let path = format!("{}.{}", section.path, quoted(&name));
            match value {
                Value::Table(values) => {
                    let pattern = format!("{}.NAME", section.pattern);
                    sections.push((name, Section { path, pattern, values, asked: Vec::new() }));
                }
                other => {
                    let found = other.type_str();
                    reader.problems.add(&path, format!("expected a table [{path}], found a {found}"));
                }
            }
        }
        sections
    }

    /// A section like those of [`Self::named_tables`] that holds nothing.
    pub fn blank_named(&self, key: &str) -> Section {
        Section {
            path: format!("{}.NAME", join(&self.path, key)),
            pattern: format!("{}.NAME", join(&self.pattern, key)),
            values: Table::new(),
            asked: Vec::new(),
        }
    }

    /// Names and values of a table whose keys are free (`weights.NODE = 2`).
    pub fn map<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str) -> BTreeMap<String, T> {
        let known = format!("{key}.NAME");
        self.asked.push(known.clone());
        reader.know(KnownKey {
            path: join(&self.pattern, &known),
            kind: T::KIND,
            default: Some(String::new()),
        });
        let Some(mut section) = self.optional_table(reader, key) else { return BTreeMap::new() };
        let names: Vec<String> = section.values.keys().cloned().collect();
        let mut values = BTreeMap::new();
        for name in names {
            section.note_value::<T>(reader, &name, join(&self.pattern, &known), None);
            values.extend(section.take(reader, &name).map(|value| (name, value)));
        }
        values
    }

    /// The key's full path, for messages about its value.
    pub fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Refuses every key that nobody asked for.
    pub fn finish(self, reader: &mut Reader) {
        for key in self.values.keys() {
            let hint = match nearest(key, &self.asked) {
                Some(known) => format!("unknown key; did you mean `{known}`?"),
                None => format!("unknown key; known here: {}", self.asked.join(", ")),
            };
            reader.problems.add(&self.path_of(key), hint);
        }
    }

    fn child(&self, key: &str, values: Table) -> Section {
        Section { path: self.path_of(key), pattern: join(&self.pattern, key), values, asked: Vec::new() }
    }

    fn note<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str, default: Option<String>) {
        self.asked.push(key.to_owned());
        let pattern = join(&self.pattern, key);
        self.note_value::<T>(reader, key, pattern.clone(), default.clone());
        reader.know(KnownKey { path: pattern, kind: T::KIND, default });
    }

    fn note_value<T: ConfigValue>(
        &self,
        reader: &mut Reader,
        key: &str,
        pattern: String,
        default: Option<String>,
    ) {
        let given = self.values.get(key).map(Value::to_string);
        let path = format!("{}.{}", self.path, quoted(key));
        reader.settings.push(Setting::new(&path, pattern, given, default, T::SECRET));
    }

    fn take<T: ConfigValue>(&mut self, reader: &mut Reader, key: &str) -> Option<T> {
        let value = self.values.remove(key)?;
        T::from_value(&value)
            .map_err(|reason| {
                reader.problems.add(&self.path_of(key), format!("{reason}; expected {}", T::KIND));
            })
            .ok()
    }
}

/// A key as it stands in a file.
fn quoted(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { format!("{key:?}") }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The known name within a third of the key's length in edits, if there is one.
fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let (distance, name) = known.iter().map(|name| (edits(key, name), name)).min()?;
    (distance <= 1 + key.len() / 3).then_some(name.as_str())
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, above) in b.chars().zip(row.windows(2)) {
            let [diagonal, up] = above else { break };
            left = (diagonal + usize::from(from != to)).min(up + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Sample {
        name: String,
        port: u16,
        period: Duration,
        members: usize,
    }

    fn read(text: &str) -> Result<Sample, Problems> {
        let (mut reader, mut root) = Reader::parse(text);
        let r = &mut reader;
        let mut node = root.table(r, "node");
        let (name, port) = (node.required(r, "name"), node.or(r, "port", "5432"));
        node.finish(r);
        let mut timings = root.table(r, "timings");
        let period = timings.or::<Millis>(r, "probe_interval", "\"300ms\"");
        timings.finish(r);
        let members = root.tables(r, "members").len();
        root.finish(r);
        let value = || Some(Sample { name: name?, port: port?, period: period?.0, members });
        let value = value();
        reader.finish(value)
    }

    #[test]
    fn a_good_file_is_read() {
        let sample = read("[node]\nname = 'a'\n[timings]\nprobe_interval = '2s'\n[[members]]\n").unwrap();
        let expected = Sample { name: "a".into(), port: 5432, period: Duration::from_secs(2), members: 1 };
        assert_eq!(sample, expected);
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_their_paths() {
        let problems = read("[node]\nnmae = 'a'\nport = 70000\n[timings]\nprobe_interval = 5\n").unwrap_err();
        let text = problems.to_string();
        assert_eq!(problems.lines().len(), 4, "{text}");
        for part in [
            "node.name: missing",
            "node.nmae: unknown key; did you mean `name`?",
            "node.port: ",
            "timings.probe_interval: ",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn tables_have_whatever_names() {
        let (mut reader, mut root) =
            Reader::parse("[users.ann]\nage = 1\n[users.\"o'neil & co\"]\nage = 'x'\n[users]\nbob = 3\n");
        let mut ages = Vec::new();
        for (name, mut section) in root.named_tables(&mut reader, "users") {
            let age: Option<u32> = section.optional(&mut reader, "age");
            ages.push((name, age));
            section.finish(&mut reader);
        }
        root.finish(&mut reader);
        assert_eq!(ages, [("ann".to_owned(), Some(1)), ("o'neil & co".to_owned(), None)]);
        assert_eq!(reader.known_keys()[0].path, "users.NAME.age");
        let paths: Vec<&str> = reader.settings().iter().map(Setting::path).collect();
        assert_eq!(paths, ["users.ann.age", "users.\"o'neil & co\".age"]);
        let problems = reader.finish::<()>(None).unwrap_err().to_string();
        for part in ["users.bob: expected a table", "users.\"o'neil & co\".age: found string"] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let text = read("[node]\nname = 'a'\nport = = 3\n").unwrap_err().to_string();
        assert!(text.contains("line 3"), "{text}");
    }
}
