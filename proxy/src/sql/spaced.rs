//! Texts as the parser has to see them to read comments as PostgreSQL does.

/// What follows the comments at the beginning.
pub(super) fn without_leading_comments(text: &str) -> &str {
    let mut rest = text.trim_start();
    loop {
        let behind = if let Some(line) = rest.strip_prefix("--") {
            line.find(['\n', '\r']).and_then(|end| line.get(end..))
        } else if let Some(block) = rest.strip_prefix("/*") {
            behind_block(block)
        } else {
            return rest;
        };
        match behind {
            Some(behind) => rest = behind.trim_start(),
            // Nothing but a comment, or one without an end.
            None => return rest,
        }
    }
}

/// What follows a comment whose beginning was read. Comments nest.
pub(super) fn behind_block(block: &str) -> Option<&str> {
    let (mut depth, mut rest) = (1_usize, block);
    while depth > 0 {
        let at = rest.find(['*', '/'])?;
        let found = rest.get(at..)?;
        let (step, len) = match found {
            _ if found.starts_with("*/") => (-1, 2),
            _ if found.starts_with("/*") => (1, 2),
            _ => (0, 1),
        };
        depth = depth.saturating_add_signed(step);
        rest = found.get(len..)?;
    }
    Some(rest)
}

/// The text with a space between operators and the comments right behind them; `None` when there are none.
/// What looks like this within a string gets a space, too.
pub(super) fn before_comments(text: &str) -> Option<String> {
    const OPERATORS: &str = "+-*/<>=~!@#%^&|`?";
    let (mut spaced, mut rest) = (String::new(), text);
    while let Some(at) = ["--", "/*"].iter().filter_map(|opening| rest.find(opening)).min() {
        let (before, comment) = rest.split_at(at);
        // A line of dashes is one comment.
        let dashes = comment.len() - comment.trim_start_matches('-').len();
        let (opening, behind) = comment.split_at(dashes.max(2));
        spaced.push_str(before);
        if spaced.ends_with(|c| OPERATORS.contains(c)) {
            spaced.push(' ');
        }
        spaced.push_str(opening);
        rest = behind;
    }
    spaced.push_str(rest);
    (spaced.len() > text.len()).then_some(spaced)
}

/// The text with a space in place of each comment, and of what looks like one within a string.
pub(super) fn without_comments(text: &str) -> String {
    let (mut bare, mut rest) = (String::new(), text);
    while let Some(at) = ["--", "/*"].iter().filter_map(|opening| rest.find(opening)).min() {
        let (before, comment) = rest.split_at(at);
        bare.push_str(before);
        bare.push(' ');
        rest = match comment.strip_prefix("/*") {
            Some(block) => behind_block(block).unwrap_or_default(),
            None => comment.find(['\n', '\r']).and_then(|end| comment.get(end..)).unwrap_or_default(),
        };
    }
    bare.push_str(rest);
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_as_postgresql_reads_them() {
        for (text, expected) in [
            ("SELECT 1", "SELECT 1"),
            (" -- a\n /* b /* c */ d */ SELECT 1", "SELECT 1"),
            ("-- a\rSELECT 1", "SELECT 1"),
            ("/***/SELECT 1 /* a */", "SELECT 1 /* a */"),
            ("/* a", "/* a"),
            ("-- a", "-- a"),
        ] {
            assert_eq!(without_leading_comments(text), expected, "{text}");
        }
        for (text, expected) in [
            ("SELECT 1 -- a", None),
            ("------ a\nSELECT 1 /* b *//* c */", Some("------ a\nSELECT 1 /* b */ /* c */")),
            ("SELECT 1 ||/*'*/ 2", Some("SELECT 1 || /*'*/ 2")),
            ("SELECT 1 +---'", Some("SELECT 1 + ---'")),
        ] {
            assert_eq!(before_comments(text).as_deref(), expected, "{text}");
        }
        assert_eq!(without_comments("CREATE /* a */OR -- b\nREPLACE"), "CREATE  OR  \nREPLACE");
    }
}
