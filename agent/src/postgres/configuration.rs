//! Reading the DBA's configuration files: only which files they include.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// PostgreSQL's own limit.
pub(super) const DEPTH_MAX: usize = 10;

/// All files that `config_file` includes, directly or not, whether they exist or not.
pub(super) fn included(config_file: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    read(config_file, &std::fs::read_to_string(config_file)?, DEPTH_MAX, &mut found);
    Ok(found)
}

/// Whether two paths name the same file, which need not exist.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    a == b || real(a).is_some_and(|a| real(b) == Some(a))
}

fn read(file: &Path, text: &str, depth: usize, found: &mut BTreeSet<PathBuf>) {
    let dir = file.parent().unwrap_or(Path::new("/"));
    for line in text.lines() {
        let files = match directive(line) {
            Some((Directive::File, path)) => vec![dir.join(path)],
            Some((Directive::Directory, path)) => conf_files(&dir.join(path)),
            None => continue,
        };
        for path in files {
            // What cannot be read (not there yet, or not ours to read) cannot include anything we see.
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if found.insert(path.clone()) && depth > 1 {
                read(&path, &text, depth - 1, found);
            }
        }
    }
}

/// What PostgreSQL reads of a directory that is included.
pub(super) fn conf_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let shown = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".conf") && !name.starts_with('.')
    };
    entries.flatten().map(|entry| entry.path()).filter(shown).collect()
}

enum Directive {
    File,
    Directory,
}

/// `include = 'file'`, with or without `=` and quotes.
fn directive(line: &str) -> Option<(Directive, String)> {
    let line = line.trim_start();
    let split = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (name, rest) = line.split_at_checked(split)?;
    let kind = match name.to_ascii_lowercase().as_str() {
        "include" | "include_if_exists" => Directive::File,
        "include_dir" => Directive::Directory,
        _ => return None,
    };
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next()?.to_owned(),
    };
    (!value.is_empty()).then_some((kind, value))
}

/// The text up to the closing quote.
pub(super) fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars().peekable();
    loop {
        match chars.next()? {
            '\'' if chars.next_if_eq(&'\'').is_none() => return Some(value),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

/// A value as `postgresql.conf` wants it.
pub(super) fn quote(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(line: &str) -> Option<String> {
        directive(line).map(|(_, path)| path)
    }

    #[test]
    fn include_lines_are_understood_as_postgresql_does() {
        for line in [
            "include_if_exists = '/d/pgherd.conf'",
            "  include '/d/pgherd.conf' # ours",
            "INCLUDE=/d/pgherd.conf#x",
            "include_if_exists /d/pgherd.conf",
            r"include '/d/pg\herd.conf'",
        ] {
            assert_eq!(path_of(line).as_deref(), Some("/d/pgherd.conf"), "{line}");
        }
        for line in ["#include '/d/pgherd.conf'", "included = 'x'", "include", "include = ''", "port = 5432"]
        {
            assert_eq!(path_of(line), None, "{line}");
        }
        assert_eq!(path_of("include 'it''s'").as_deref(), Some("it's"));
    }

    #[test]
    fn includes_are_followed_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("conf.d")).unwrap();
        std::fs::write(at("main.conf"), "include_dir 'conf.d'\nport = 1\n").unwrap();
        std::fs::write(
            at("conf.d/10.conf"),
            "include = '../main.conf'\ninclude_if_exists '../data/pgherd.conf'\n",
        )
        .unwrap();
        std::fs::write(at("conf.d/.hidden.conf"), "include 'never'\n").unwrap();
        std::fs::create_dir(at("data")).unwrap();
        let found = included(&at("main.conf")).unwrap();
        assert!(found.iter().any(|path| same_file(path, &at("data/pgherd.conf"))), "{found:?}");
        assert!(!found.iter().any(|path| path.ends_with("never")), "{found:?}");
    }

    #[test]
    fn quoted_values_are_read_back() {
        for value in ["plain", "it's", r"a\b", "x'y\\'z"] {
            let quoted = quote(value);
            assert_eq!(unquote(quoted.strip_prefix('\'').unwrap()).as_deref(), Some(value), "{quoted}");
        }
        assert_eq!(quote("a\nb"), r"'a\nb'");
    }
}
