//! Statements that make temporary objects, or give them names by which they were not known before.
//!
//! They may name one too many; what cannot be told apart pins the session.

use sqlparser::ast::{ObjectName, OnCommit, Statement};

use super::Effect;
use super::classify::{last_part, words_of};
use super::walk::folded_part;

/// What a statement does to the temporary objects of a session; `text`: the whole of it.
pub(super) fn made_by(statement: &Statement, text: &str) -> Vec<Effect> {
    if let Statement::Drop { names, .. } = statement {
        return names.iter().filter_map(last_part).map(Effect::Dropped).collect();
    }
    let effect = match statement {
        // It is gone before anything else can come.
        Statement::CreateTable(table) if matches!(table.on_commit, Some(OnCommit::Drop)) => None,
        Statement::CreateTable(table) if table.temporary || is_in_temporary_schema(&table.name) => {
            // Whoever reads from the parent reads from it, too.
            if table.inherits.is_some() { Some(Effect::Pin) } else { temporary(&table.name) }
        }
        Statement::CreateSequence { temporary: marked, name, .. }
            if *marked || is_in_temporary_schema(name) =>
        {
            temporary(name)
        }
        Statement::CreateView(view) if view.temporary || is_in_temporary_schema(&view.name) => {
            temporary(&view.name)
        }
        // What looks at something temporary is temporary.
        Statement::CreateView(view) if view.materialized => None,
        Statement::CreateView(view) => last_part(&view.name).map(Effect::LikelyTemporary),
        Statement::CreateTable(_) | Statement::CreateSequence { .. } => None,
        _ => by_words(text),
    };
    effect.into_iter().collect()
}

/// The same for a text that the parser does not understand, with the rest that is yet to be looked at.
pub(super) fn made_by_unparsed(text: &str) -> (Option<Effect>, &str) {
    match temporary_relation(text) {
        Some((name, rest)) => (Some(Effect::Temporary(name)), rest),
        None => (by_words(text), text),
    }
}

/// Whether a setting makes temporary what is not said to be, or has texts mean something else.
pub(super) fn found_by_default(set: &str) -> Option<Effect> {
    let set = set.to_ascii_lowercase();
    let usual = ["on", "true", "yes", "1", "default", "standard_conforming_strings"];
    let escapes = set.contains("standard_conforming_strings")
        && !words_of(&set).last().is_some_and(|value| usual.contains(&value));
    (set.contains("pg_temp") || escapes).then_some(Effect::Pin)
}

fn temporary(name: &ObjectName) -> Option<Effect> {
    Some(last_part(name).map_or(Effect::Pin, Effect::Temporary))
}

fn is_in_temporary_schema(name: &ObjectName) -> bool {
    let schema = name.0.first().and_then(|part| part.as_ident()).map(folded_part);
    name.0.len() > 1 && schema.is_some_and(|schema| schema.starts_with("pg_temp"))
}

fn by_words(text: &str) -> Option<Effect> {
    let is = |known: &'static str| move |word: &str| word.eq_ignore_ascii_case(known);
    let first = words_of(text).next()?.to_ascii_lowercase();
    if !matches!(first.as_str(), "create" | "alter") {
        return None;
    }
    if words_of(text).any(|word| word.to_ascii_lowercase().starts_with("pg_temp")) {
        return Some(Effect::Pin);
    }
    let renames = words_of(text).any(is("rename"));
    // A name in quotes may hold anything.
    if words_of(text).any(is("inherit")) || (renames && text.contains('"')) {
        return Some(Effect::Mingles);
    }
    if renames {
        return words_of(text).last().map(|name| Effect::LikelyTemporary(name.to_ascii_lowercase()));
    }
    // A rule can turn a table into a view.
    words_of(text).any(|word| is("view")(word) || is("rule")(word)).then_some(Effect::Mingles)
}

/// The name of a temporary relation, when nothing but its columns and its query are left to look at.
fn temporary_relation(text: &str) -> Option<(String, &str)> {
    let (mut rest, mut marked) = (strip(text.trim_start(), "create")?, false);
    for word in ["or", "replace", "local", "global", "temporary", "temp", "recursive"] {
        if let Some(next) = strip(rest, word) {
            marked |= word.starts_with("temp");
            rest = next;
        }
    }
    rest = ["table", "view", "sequence"].iter().find_map(|kind| strip(rest, kind))?;
    rest = strip(rest, "if").and_then(|rest| strip(strip(rest, "not")?, "exists")).unwrap_or(rest);
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (name, rest) = rest.split_at(end);
    let mut next = rest.trim_start().chars();
    let plain = next.next().is_some_and(|c| c == '(' || c.is_ascii_alphabetic());
    let inherits = words_of(rest).any(|word| word.eq_ignore_ascii_case("inherits"));
    let one = !text.contains(';');
    (marked && plain && one && !inherits && !name.is_empty()).then(|| (name.to_ascii_lowercase(), rest))
}

/// What follows a word and the space behind it.
fn strip<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = text.split_at_checked(word.len())?;
    let space = rest.chars().next().is_some_and(|c| c.is_ascii_whitespace());
    (space && first.eq_ignore_ascii_case(word)).then(|| rest.trim_start())
}

#[cfg(test)]
mod tests {
    use crate::sql::shape::tests::assert_same;
    use crate::sql::{Effect, Facts, classify};

    fn effects(text: &str) -> Vec<Effect> {
        assert_same(text, &Facts::by_names());
        let mut effects = classify(text.as_bytes(), &Facts::by_names()).effects;
        effects.retain(|effect| !matches!(effect, Effect::Because(_)));
        effects
    }

    #[test]
    fn temporary_objects_are_known_by_their_names() {
        for text in [
            "CREATE TEMP TABLE x (a int)",
            "CREATE TEMPORARY TABLE IF NOT EXISTS X AS SELECT 1",
            "CREATE TABLE pg_temp.x (a int)",
            "SELECT 1 INTO TEMP x",
            "SELECT 1 INTO TEMPORARY TABLE x",
            "CREATE TEMP VIEW x AS SELECT 1",
            "CREATE TEMP SEQUENCE x",
            "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1",
            // Not for the parser.
            "CREATE TEMP TABLE x (a int, EXCLUDE USING gist (a WITH &&) WHERE (a > 1) DEFERRABLE)",
            "CREATE LOCAL TEMPORARY TABLE x (LIKE y INCLUDING ALL) ON COMMIT PRESERVE ROWS WITHOUT OIDS",
            "create local temp table if not exists x (a int compression pglz, b box)",
        ] {
            assert_eq!(effects(text), [Effect::Temporary("x".to_owned())], "{text}");
        }
    }

    #[test]
    fn what_is_dropped_is_known_by_its_name() {
        assert_eq!(effects("DROP TABLE X"), [Effect::Dropped("x".to_owned())]);
        let both = ["x", "y"].map(|name| Effect::Dropped(name.to_owned()));
        assert_eq!(effects("DROP TABLE IF EXISTS x, y CASCADE"), both);
    }

    #[test]
    fn what_is_gone_with_its_transaction_leaves_nothing() {
        assert_eq!(effects("CREATE TEMP TABLE x (a int) ON COMMIT DROP"), []);
    }

    #[test]
    fn what_cannot_be_told_by_names_pins() {
        for text in [
            "CREATE TEMP TABLE x () INHERITS (t)",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE TYPE pg_temp.ty AS (a int)",
        ] {
            assert_eq!(effects(text), [Effect::Pin], "{text}");
        }
        for text in ["SET search_path = pg_temp", "SELECT set_config('search_path', 'a, pg_temp', false)"] {
            assert!(effects(text).contains(&Effect::Pin), "{text}");
        }
    }

    #[test]
    fn new_names_and_new_children_are_noticed() {
        for text in ["ALTER TABLE x RENAME TO y", "ALTER VIEW x RENAME TO Y", "CREATE VIEW y AS SELECT 1"] {
            assert_eq!(effects(text), [Effect::LikelyTemporary("y".to_owned())], "{text}");
        }
        for text in [
            "ALTER TABLE x INHERIT t",
            "ALTER TABLE x RENAME TO \"y z\"",
            "CREATE RULE \"_RETURN\" AS ON SELECT TO x DO INSTEAD SELECT 1",
        ] {
            assert_eq!(effects(text), [Effect::Mingles], "{text}");
        }
    }
}
