//! The house rules that no compiler checks: purity of the decision core, sizes, left-over marks,
//! module docs, the files every release needs.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// Folders (with the file of the same name) that decide without clock, IO, randomness or threads.
const PURE: &[&str] = &[
    "core/src",
    "agent/src/config",
    "proxy/src/wire",
    "proxy/src/sql",
    "proxy/src/session",
    "proxy/src/routing",
    "proxy/src/topology",
    "proxy/src/hba",
    "common/src",
    "sim/src/invariants",
    "sim/src/postgres",
    "sim/src/raft",
    "sim/src/run",
    "sim/src/scenario",
    "sim/src/world",
];
/// The edges of these folders, which do touch the world.
const IMPURE: &[&str] = &["common/src/time/real.rs", "agent/src/config/load.rs"];
/// What purity forbids. `HashMap` for its order, which differs from run to run.
const IMPURITIES: &[&str] = &[
    "tokio",
    "async",
    "std::net",
    "std::fs",
    "Instant::now",
    "SystemTime",
    "rand::rng",
    "thread_rng",
    "HashMap",
    "HashSet",
];
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
/// Functions that are longer for now, with their length. An entry may only shrink.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One Rust file of ours, by its path from the root.
struct Source {
    path: String,
    /// As written.
    text: String,
    /// Without comments, strings and test modules; as many lines as before the test module.
    code: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.ends_with("_tests.rs")
    }
}

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    for part in ["common", "core", "agent", "proxy", "cluster-tests", "sim", "xtask"] {
        files(&root.join(part).join("src"), "rs", &mut paths);
        files(&root.join(part).join("tests"), "rs", &mut paths);
    }
    let source = |path: &PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let code = without_tests(&code_only(&text));
        Some(Source { path: path.strip_prefix(&root).ok()?.display().to_string(), text, code })
    };
    let sources: Vec<Source> = paths.iter().filter_map(source).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// Everything before `mod tests {`.
fn without_tests(code: &str) -> String {
    let before: Vec<&str> = code.lines().take_while(|line| !line.starts_with("mod tests {")).collect();
    before.join("\n")
}

/// The text with comments and the insides of strings blanked, line by line.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if next == '"' {
            string(rest)
        } else if next == '\'' {
            char_literal(rest)
        } else {
            code.push(next);
            rest = &rest[next.len_utf8()..];
            continue;
        };
        code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    code
}

/// The length of a raw string at the start, if there is one.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let inner = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = inner.chars().take_while(|c| *c == '#').count();
    let opened = inner[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = opened.find(&close).map_or(opened.len(), |end| end + close.len());
    Some(text.len() - opened.len() + end)
}

/// The length of the string at the start.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => (),
        }
    }
    text.len()
}

/// The length of the character at the start, or 1 when the quote begins a lifetime.
fn char_literal(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => text[3..].find('\'').map_or(1, |end| end + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// Whether `word` stands in `line` by itself, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Name, first line and number of lines of every function, as rustfmt lays them out: the last line has
/// the indentation of the first.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indentation = &line[..line.len() - words.len()];
        let Some(at) = words.find("fn ").filter(|at| *at == 0 || words[..*at].ends_with(' ')) else {
            continue;
        };
        let modifier = |word: &str| matches!(word, "const" | "async" | "unsafe") || word.starts_with("pub");
        if !words[..at].split_whitespace().all(modifier) && !words.starts_with("pub(") {
            continue;
        }
        let name =
            words[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let closes = |line: &str| line == format!("{indentation}}}");
        let declared = |line: &str| line.trim_end().ends_with(';') || line.trim_end().ends_with('}');
        // Up to the opening brace; a declaration or a body on one line has none at its end.
        let header = lines[first..].iter().position(|line| line.trim_end().ends_with('{') || declared(line));
        let Some(header) = header.filter(|header| !declared(lines[first + header])) else { continue };
        if let Some(length) = lines[first + header..].iter().position(|line| closes(line)) {
            found.push((name.to_owned(), first + 1, header + length + 1));
        }
    }
    found
}

fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let sources = sources();
    let mut problems = Vec::new();
    for place in PURE {
        let (file, folder) = (format!("{place}.rs"), format!("{place}/"));
        let here = |source: &&Source| source.path == file || source.path.starts_with(&folder);
        let inside: Vec<&Source> = sources.iter().filter(here).collect();
        if inside.is_empty() {
            problems.push(format!("{place} is listed as pure but does not exist"));
        }
        for source in inside.into_iter().filter(|source| !source.is_test()) {
            if IMPURE.contains(&source.path.as_str()) {
                continue;
            }
            for (number, line) in source.code.lines().enumerate() {
                for word in IMPURITIES.iter().filter(|word| has_word(line, word)) {
                    problems.push(format!("{}:{}: `{word}` in a pure module", source.path, number + 1));
                }
            }
        }
    }
    none(&problems);
}

#[test]
fn functions_are_short() {
    let mut problems = Vec::new();
    let mut tolerated_seen = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, line, length) in functions(&source.code) {
            let key = format!("{}::{name}", source.path);
            let entry = LONG_FUNCTIONS.iter().find(|(known, _)| *known == key).map(|(_, length)| *length);
            tolerated_seen.extend(entry.map(|_| key.clone()));
            if entry.is_some_and(|tolerated| length < tolerated) {
                problems.push(format!("{key} has shrunk to {length} lines: say so in LONG_FUNCTIONS"));
            } else if length > entry.unwrap_or(FUNCTION_LINES_MAX) {
                problems.push(format!("{}:{line}: `{name}` has {length} lines; split it", source.path));
            }
        }
    }
    let gone = LONG_FUNCTIONS.iter().filter(|(known, _)| !tolerated_seen.iter().any(|seen| seen == known));
    problems.extend(gone.map(|(known, _)| format!("{known} is no more: take it out of LONG_FUNCTIONS")));
    none(&problems);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut problems = Vec::new();
    for source in sources() {
        let lines = source.code.lines().count();
        if !source.is_test() && lines > FILE_LINES_MAX {
            problems.push(format!("{}: {lines} lines without its tests; split it", source.path));
        }
        let first = source.text.lines().find(|line| !line.trim().is_empty());
        let lies_in_tests = source.is_test() && source.path.contains("/src/");
        if !lies_in_tests && !first.is_some_and(|line| line.starts_with("//! ")) {
            problems.push(format!("{}: begins without a `//!` that says what it is for", source.path));
        }
    }
    none(&problems);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat(), ["dbg", "!"].concat()];
    let mut problems = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| has_word(line, mark)) {
                problems.push(format!("{}:{}: {mark}", source.path, number + 1));
            }
        }
    }
    none(&problems);
}

#[test]
fn every_example_configuration_is_toml() {
    let mut paths = Vec::new();
    files(&root().join("configs"), "toml", &mut paths);
    assert!(!paths.is_empty(), "configs/ holds no example");
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let parsed = text.parse::<toml::Table>();
        assert!(parsed.is_ok(), "{}: {}", path.display(), parsed.unwrap_err());
    }
}

#[test]
fn a_release_has_its_papers() {
    for paper in ["LICENSE", "CHANGELOG.md", "README.md"] {
        let text = fs::read_to_string(root().join(paper)).unwrap_or_default();
        assert!(text.len() > 100, "{paper} is missing or empty");
    }
    let mut decisions = Vec::new();
    files(&root().join("docs/decisions"), "md", &mut decisions);
    assert!(!decisions.is_empty(), "docs/decisions/ holds no decision");
    for (number, path) in (1..).zip(decisions) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(name.starts_with(&format!("{number:04}-")), "{name}: decision {number:04} should stand here");
        assert!(fs::read_to_string(&path).unwrap().starts_with("# "), "{name} has no title");
    }
}

#[test]
fn every_invariant_has_its_file_and_its_line() {
    let mut paths = Vec::new();
    files(&root().join("sim/src/invariants"), "rs", &mut paths);
    let listed = fs::read_to_string(root().join("docs/invariants.md")).unwrap();
    let names: Vec<String> =
        paths.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    assert!(names.len() > 10, "the invariants were not found");
    let mut problems = Vec::new();
    for name in &names {
        let number = name.split('_').next().unwrap_or_default();
        let number = number.replacen("i0", "I", 1).to_uppercase();
        let line = listed.lines().find(|line| line.contains(&format!("`{name}`")));
        if line.is_none_or(|line| !line.starts_with(&format!("| {number} |"))) {
            problems.push(format!("docs/invariants.md has no line for {number} with `{name}`"));
        }
    }
    for line in listed.lines().filter(|line| line.starts_with("| I") || line.starts_with("| L")) {
        if !names.iter().any(|name| line.contains(&format!("`{name}`"))) {
            problems.push(format!("docs/invariants.md lists what has no file: {line}"));
        }
    }
    none(&problems);
}

#[test]
fn the_reader_of_code_knows_strings_and_comments() {
    let text = "let a = \"tokio // no\"; // async\n/* HashMap */ let b = '\"'; let c: &'a str = r#\"std::fs \" \"#;\n";
    let code = code_only(text);
    for word in IMPURITIES {
        assert!(!has_word(&code, word), "{word} in {code:?}");
    }
    assert_eq!(code.lines().count(), 2);
    assert!(has_word("use tokio::net;", "tokio") && !has_word("tokio_like", "tokio"));

    let text = "impl A {\n    pub(crate) async fn one(\n        &self,\n    ) -> u8 {\n        1\n    }\n\n    fn two();\n}\nfn three() {}\nconst fn four() {\n}\n";
    let found = functions(text);
    assert_eq!(found, [("one".to_owned(), 2, 5), ("four".to_owned(), 11, 2)]);
}
