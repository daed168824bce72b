//! What a text leaves behind on the connection that ran it, beyond what is told of the session's own
//! effects: whether emptying the connection undoes it, and what needs this very connection.
//!
//! Only additions to a verdict; where it may run is decided elsewhere.

use std::ops::ControlFlow;

use sqlparser::ast::{
    CreateTable, Expr, FunctionArg, FunctionArguments, ObjectName, OnCommit, Select, SelectInto, Statement,
    TableFactor, Value, Visit, Visitor,
};

use super::facts::{Facts, Standing};
use super::walk::{catalog_part, folded, literal, names_temporary};
use super::{Effect, Route, Verdict, Why};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// `DISCARD ALL` may not undo what it did (libraries, connections of extensions, what an interpreter
    /// remembers): nobody else may have the connection.
    pub indelible: bool,
    /// Custom settings (`my.name`), which are known on the connection from now on, though `RESET` empties
    /// them.
    pub customs: Vec<String>,
    /// What certainly needs this very connection beyond the transaction; what sequences gave last is not
    /// among it where the text itself opens a transaction block in front of the question.
    pub holds: Vec<Why>,
    /// Name and text of a statement that SQL prepares.
    pub prepares: Option<(String, String)>,
    /// It may name any prepared statement, or shows them all.
    pub uses_all: bool,
    /// It names the schema of temporary objects, other than to read or write them.
    pub names_temporary: bool,
    /// What other texts mean may be changed by it: what they name, or who may use that.
    pub alters: bool,
}

impl Traces {
    /// What each of several statements would be prepared from alone is not known.
    pub(super) fn prepared_beside_others(&mut self) {
        self.holds.push(Why::Prepare);
        // A name that the session has already is refused.
        self.uses_all = true;
    }

    /// Those of one more text.
    pub fn add(&mut self, other: &Self) {
        self.indelible |= other.indelible;
        self.uses_all |= other.uses_all;
        self.names_temporary |= other.names_temporary;
        self.alters |= other.alters;
        self.customs.extend(other.customs.iter().cloned());
        self.holds.extend(other.holds.iter().copied());
        if other.prepares.is_some() {
            self.prepares.clone_from(&other.prepares);
        }
    }
}

/// Where none of these is in a text, it does not alter what others mean, unless a function does that.
const ALTERS: &[&str] = &["alter", "create", "drop", "grant", "revoke", "import", "reassign"];

/// Adds what the statements of `text` leave behind; `None` when they are not understood.
pub(super) fn note(verdict: &mut Verdict, statements: Option<&[Statement]>, text: &str, facts: &Facts) {
    if verdict.route == Route::Read && verdict.effects.is_empty() {
        return;
    }
    let opaque = verdict.effects.iter().any(|effect| matches!(effect, Effect::Pin | Effect::Suspect(_)));
    verdict.traces.uses_all |=
        opaque || mentions(text, "pg_prepared_statement") || facts.may_show_prepared(text);
    verdict.traces.alters = ALTERS.iter().any(|word| mentions(text, word));
    let Some(statements) = statements else {
        verdict.traces.indelible |= opaque;
        verdict.traces.uses_all |= mentions(text, "execute");
        verdict.traces.customs.extend(set_by_words(text));
        let creates = text.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("create"));
        verdict.traces.names_temporary = mentions(text, "pg_temp");
        verdict.traces.holds.extend((creates && verdict.traces.names_temporary).then_some(Why::Temporary));
        return;
    };
    if mentions(text, "pg_temp") && !statements.iter().all(is_data) {
        verdict.traces.names_temporary = true;
        verdict.traces.holds.push(Why::Temporary);
        let known = |effect: &Effect| matches!(effect, Effect::Temporary(_));
        if !opaque && !verdict.effects.iter().any(known) {
            verdict.effects.push(Effect::Pin);
        }
    }
    let mut search = Search { facts, traces: std::mem::take(&mut verdict.traces) };
    let mut in_block = false;
    for statement in statements {
        match statement {
            Statement::StartTransaction { .. } => in_block = true,
            Statement::Commit { .. } | Statement::Rollback { savepoint: None, .. } => in_block = false,
            _ => {}
        }
        let held = search.traces.holds.len();
        let ControlFlow::Continue(()) = statement.visit(&mut search);
        if in_block {
            let behind = search.traces.holds.split_off(held);
            search.traces.holds.extend(behind.into_iter().filter(|why| *why != Why::Sequence));
        }
        search.traces.holds.extend(held_by(statement));
    }
    verdict.traces = search.traces;
    let executes_by_name = matches!(statements, [Statement::Execute { .. }]);
    verdict.traces.uses_all |= !executes_by_name && mentions(text, "execute");
    if mentions(text, "set") && !statements.iter().all(is_data) {
        verdict.traces.customs.extend(set_by_words(text));
    }
    match statements {
        [Statement::Prepare { name, .. }] => {
            let name =
                if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
            // It follows its session: nothing has to be kept for it.
            verdict.effects.retain(|effect| *effect != Effect::Keep);
            verdict.uses.push(name.clone());
            verdict.traces.prepares = Some((name, text.trim().trim_end_matches(';').to_owned()));
        }
        several => {
            let prepares = |statement: &&Statement| matches!(statement, Statement::Prepare { .. });
            several.iter().filter(prepares).for_each(|_| verdict.traces.prepared_beside_others());
        }
    }
}

fn mentions(text: &str, word: &str) -> bool {
    text.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

fn is_data(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_)
            | Statement::Insert(_)
            | Statement::Update { .. }
            | Statement::Delete(_)
            | Statement::Merge { .. }
            | Statement::Copy { .. }
    )
}

/// The custom settings that stand behind `SET` or `RESET`, wherever that is.
fn set_by_words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| c.is_ascii_whitespace() || matches!(c, '=' | ';' | ',' | '(' | ')'));
    let words = parts.filter(|part| !part.is_empty()).map(|part| part.replace('"', "").to_lowercase());
    let (mut found, mut behind) = (Vec::new(), false);
    for word in words {
        match word.as_str() {
            "set" | "reset" => behind = true,
            "session" | "local" => {}
            _ => {
                // Numbers have dots, too, and texts that are no statement have them anywhere.
                let name = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
                if behind && name && word.contains('.') && !word.contains('\'') {
                    found.push(word);
                }
                behind = false;
            }
        }
    }
    found
}

/// What stays on the connection until it is given up, or the session ends.
fn held_by(statement: &Statement) -> Option<Why> {
    match statement {
        Statement::LISTEN { .. } => Some(Why::Listen),
        Statement::Declare { stmts } if stmts.iter().any(|cursor| cursor.hold == Some(true)) => {
            Some(Why::HeldCursor)
        }
        Statement::CreateTable(CreateTable { temporary: true, on_commit, .. })
            if *on_commit != Some(OnCommit::Drop) =>
        {
            Some(Why::Temporary)
        }
        Statement::CreateView(view) if view.temporary => Some(Why::Temporary),
        Statement::CreateSequence { temporary: true, .. } => Some(Why::Temporary),
        _ => None,
    }
}

struct Search<'a> {
    facts: &'a Facts,
    traces: Traces,
}

impl Search<'_> {
    fn function(&mut self, name: &ObjectName, arguments: Option<&[FunctionArg]>) {
        let parts = folded(name).unwrap_or_default();
        let (schema, name) = match parts.as_slice() {
            [name] => (None, name.as_str()),
            [schema, name] => (Some(schema.as_str()), name.as_str()),
            _ => return self.traces.indelible = true,
        };
        match catalog_part(schema, name) {
            Some("set_config") => match arguments.and_then(|list| list.first()).and_then(literal) {
                Some(Value::SingleQuotedString(name)) if !name.contains('.') => {}
                Some(Value::SingleQuotedString(name)) => self.traces.customs.push(name.to_ascii_lowercase()),
                _ => self.traces.indelible = true,
            },
            Some("currval" | "lastval") => self.traces.holds.push(Why::Sequence),
            Some(name) if name.starts_with("pg_") && name.contains("advisory") => {
                if !name.contains("xact") && !name.contains("unlock") {
                    self.traces.holds.push(Why::AdvisoryLock);
                }
            }
            Some(name) if name.starts_with("pg_stat") => {}
            _ => {
                let standing = self.facts.function(schema, name);
                self.traces.indelible |= matches!(standing, Standing::Stateful | Standing::Unknown);
            }
        }
    }
}

impl Visitor for Search<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Self::Break> {
        self.traces.indelible |= matches!(statement, Statement::Load { .. } | Statement::Call(_));
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        let is_temporary = |into: &SelectInto| into.temporary || names_temporary(&into.to_string());
        if select.into.as_ref().is_some_and(is_temporary) {
            self.traces.holds.push(Why::Temporary);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        match factor {
            TableFactor::Table { name, args: Some(call), .. } => self.function(name, Some(&call.args)),
            TableFactor::Function { name, args, .. } => self.function(name, Some(args)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        if let Expr::Function(function) = expr {
            match &function.args {
                FunctionArguments::List(list) => self.function(&function.name, Some(&list.args)),
                FunctionArguments::None | FunctionArguments::Subquery(_) => {
                    self.function(&function.name, None);
                }
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify;
    use crate::sql::shape::tests::assert_same;

    fn traces(sql: &str) -> Traces {
        assert_same(sql, &Facts::by_names());
        classify(sql.as_bytes(), &Facts::by_names()).traces
    }

    #[test]
    fn what_emptying_undoes_is_told_from_what_it_does_not() {
        for sql in [
            "SELECT f()",
            "SELECT * FROM f(1)",
            "SELECT setseed(0.5)",
            "SELECT set_config($1, $2, true)",
            "SELECT pg_replication_origin_session_setup('a')",
            "SELECT pg_create_logical_replication_slot('a', 'b', true)",
            "SELECT pg_backup_start('a')",
            "EXECUTE p(f(1))",
            "LOAD 'x'",
            "CALL p()",
            "DO 'BEGIN END'",
            "FROBNICATE temp",
        ] {
            assert!(traces(sql).indelible, "{sql}");
        }
        for sql in [
            "CREATE TEMP TABLE a (b int)",
            "SELECT 1 INTO TEMP a",
            "SELECT pg_advisory_lock(1)",
            "SELECT set_config('a', 'b' || 'c', false)",
            "SELECT * FROM pg_stat_activity",
            "INSERT INTO a VALUES (nextval('b'), lower('C'))",
            "SET a = 1",
        ] {
            assert!(!traces(sql).indelible, "{sql}");
        }
    }

    #[test]
    fn custom_settings_are_found_wherever_they_are_set() {
        for sql in [
            "SET my.name = 'x'",
            "SET LOCAL My.Name TO 'x', 'y'",
            "set session \"my\".\"name\"=1",
            "RESET my.name",
            "SELECT set_config('my.name', $1, true)",
            "SELECT a FROM set_config('MY.NAME', $1, true) a",
            "INSERT INTO a SELECT set_config('my.name', b, true) FROM c",
            "ALTER ROLE joe SET my.name = 1",
            "ALTER ROLE joe IN DATABASE d SET my.name = 1",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET my.name = 'x' AS 'SELECT 1'",
            "BEGIN; SET LOCAL my.name = 1; COMMIT",
        ] {
            assert!(traces(sql).customs.contains(&"my.name".to_owned()), "{sql}: {:?}", traces(sql).customs);
        }
        for sql in ["SET work_mem = '1.5MB'", "UPDATE a SET b = c.d FROM c", "SHOW my.name"] {
            assert!(traces(sql).customs.is_empty(), "{sql}");
        }
    }

    #[test]
    fn what_needs_the_very_connection_is_known() {
        for (sql, why) in [
            ("LISTEN a", Why::Listen),
            ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", Why::HeldCursor),
            ("CREATE TEMP TABLE a (b int) ON COMMIT DELETE ROWS", Why::Temporary),
            ("CREATE TEMP TABLE a AS SELECT 1", Why::Temporary),
            ("CREATE TEMP VIEW a AS SELECT 1", Why::Temporary),
            ("CREATE TEMP SEQUENCE a", Why::Temporary),
            ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", Why::Temporary),
            ("CREATE TABLE pg_temp.a (b int)", Why::Temporary),
            ("SELECT 1 AS b INTO TEMP a", Why::Temporary),
            ("SELECT pg_try_advisory_lock_shared(1)", Why::AdvisoryLock),
            ("INSERT INTO a VALUES (lastval())", Why::Sequence),
            ("BEGIN; COMMIT; SELECT lastval()", Why::Sequence),
            ("BEGIN; SELECT pg_advisory_lock(1); COMMIT", Why::AdvisoryLock),
            ("SELECT 1; PREPARE a AS SELECT 1", Why::Prepare),
        ] {
            assert_eq!(traces(sql).holds, [why], "{sql}");
        }
        for sql in [
            "CREATE TEMP TABLE a (b int) ON COMMIT DROP",
            "SELECT pg_advisory_xact_lock(1), pg_advisory_unlock_all()",
            "DECLARE c CURSOR FOR SELECT 1",
            "BEGIN; INSERT INTO a VALUES (1); SAVEPOINT s; ROLLBACK TO s; SELECT lastval(), currval('b')",
            "PREPARE a AS SELECT 1",
            "UNLISTEN *",
            "SELECT f()",
        ] {
            assert_eq!(traces(sql).holds, [], "{sql}");
        }
    }

    #[test]
    fn a_statement_that_sql_prepares_is_remembered_with_its_text() {
        let verdict = classify(b"PREPARE \"A\" (int) AS SELECT $1 ; ", &Facts::by_names());
        let text = "PREPARE \"A\" (int) AS SELECT $1 ".to_owned();
        assert_eq!(verdict.traces.prepares, Some(("A".to_owned(), text)));
        assert_eq!((verdict.uses, verdict.effects), (vec!["A".to_owned()], vec![]));
        assert_eq!(traces("PREPARE A AS SELECT 1").prepares.unwrap().0, "a");
        assert_eq!(traces("PREPARE TRANSACTION 'a'").prepares, None);
        for sql in
            ["EXPLAIN EXECUTE p", "CREATE TABLE a AS EXECUTE p", "SELECT * FROM pg_prepared_statements"]
        {
            assert!(traces(sql).uses_all, "{sql}");
        }
        assert!(!traces("EXECUTE p(1)").uses_all && !traces("INSERT INTO a VALUES (1)").uses_all);
    }
}
