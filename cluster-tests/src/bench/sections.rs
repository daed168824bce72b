//! docs/benchmarks.md has several authors: each program that measures owns what stands between two marks of
//! its name, and leaves the rest as it is.

use std::path::Path;

/// The document.
pub const FILE: &str = "benchmarks.md";
const TITLE: &str = "# Benchmarks\n";

/// Writes one section of the document in this directory, which is begun if it is not there.
pub fn write(dir: &Path, name: &str, section: &str) -> std::io::Result<()> {
    let path = dir.join(FILE);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => TITLE.to_owned(),
        Err(error) => return Err(error),
    };
    std::fs::write(path, put(&before, name, section))
}

/// The document with this section in the place of the one of the same name, or at its end.
pub fn put(document: &str, name: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->\n"));
    let inside = format!("{begin}\n{}\n\n{end}", section.trim());
    let around = document.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    match around {
        Some((before, after)) => format!("{before}{inside}{after}"),
        None => format!("{}\n\n{inside}", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_the_one_before_and_touches_no_other() {
        let first = put(TITLE, "proxy", "one\n");
        assert_eq!(first, "# Benchmarks\n\n<!-- begin proxy -->\n\none\n\n<!-- end proxy -->\n");
        let both = put(&first, "failover", "two");
        let again = put(&both, "proxy", "\nthree\n");
        assert!(both.contains("one") && both.contains("two"), "{both}");
        assert!(!again.contains("one") && again.contains("two") && again.contains("three"), "{again}");
        assert_eq!(put(&again, "proxy", "three"), again, "the same twice changes nothing");
        assert_eq!(put(&again, "failover", "two"), again);
    }

    #[test]
    fn a_document_is_begun_once() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proxy", "one").unwrap();
        write(dir.path(), "failover", "two").unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.matches(TITLE).count(), 1);
        assert!(text.find("one") < text.find("two"), "{text}");
    }
}
