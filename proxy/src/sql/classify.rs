//! From a text to its verdict.

use sqlparser::ast::{
    ContextModifier, CopyTarget, DiscardObject, Expr, Ident, ObjectName, OnCommit, Reset, Set, Statement,
    TransactionAccessMode, TransactionIsolationLevel, TransactionMode,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::facts::Facts;
use super::logins;
use super::settings::same_everywhere;
use super::settles::settles;
use super::show::Show;
use super::traces;
use super::walk::{Walk, only_sets_config, relation_reads};
use super::why;
use super::{Effect, Route, Verdict};

/// Longer texts are not parsed: deep trees need deep stacks, and a text of this size is rarely a read
/// that is worth it.
pub(super) const TEXT_MAX: usize = 16 << 10;

/// What `sql` means for routing.
pub fn classify(sql: &[u8], facts: &Facts) -> Verdict {
    let mut verdict = judge(sql, facts);
    verdict.settles = settles(sql);
    const LAZY: &[u8] = b"synchronous_commit";
    if sql.windows(LAZY.len()).any(|part| part.eq_ignore_ascii_case(LAZY)) {
        verdict.effects.push(Effect::LazyCommits);
    }
    if let Ok(text) = std::str::from_utf8(sql) {
        verdict.effects.extend(logins::changed_by(text));
        if verdict.effects.iter().any(|effect| matches!(effect, Effect::Pin | Effect::Keep)) {
            verdict.effects.push(Effect::Because(why::why(text)));
        }
    }
    verdict
}

fn judge(sql: &[u8], facts: &Facts) -> Verdict {
    let text = match std::str::from_utf8(sql) {
        Ok(text) if text.len() <= TEXT_MAX => text,
        Ok(_) | Err(_) => return Verdict::unknown(),
    };
    if let Some(show) = Show::parse(text) {
        return Verdict { show: Some(show), ..Verdict::plain(Route::Neutral) };
    }
    match Parser::parse_sql(&PostgreSqlDialect {}, text) {
        Ok(statements) => {
            let mut verdict = combine(&statements, text, facts);
            traces::note(&mut verdict, Some(&statements), text, facts);
            verdict
        }
        Err(_) => bare_table(text, facts).unwrap_or_else(|| {
            let mut verdict = unparsed(text);
            traces::note(&mut verdict, None, text, facts);
            verdict
        }),
    }
}

fn combine(statements: &[Statement], text: &str, facts: &Facts) -> Verdict {
    if let [statement] = statements {
        let own_text = text.trim().trim_end_matches(';');
        return single(statement, own_text, facts);
    }
    let verdicts: Vec<Verdict> =
        statements.iter().map(|statement| single(statement, &statement.to_string(), facts)).collect();
    let mut all = Verdict::plain(Route::Neutral);
    for verdict in verdicts {
        // What comes behind BEGIN in one text is not looked at one by one.
        let route = if verdict.begins { Route::Primary } else { verdict.route };
        all.route = all.route.together(route);
        all.effects.extend(verdict.effects);
        all.uses.extend(verdict.uses);
        if let Some(names) = verdict.defines {
            all.defines.get_or_insert_default().extend(names);
        }
        // What stands beside a rollback is not undone by it.
        all.may_commit |= verdict.may_commit || verdict.rolls_back;
    }
    all
}

/// `TABLE t`, which the parser does not know as a statement of its own, stands for `SELECT * FROM t`.
fn bare_table(text: &str, facts: &Facts) -> Option<Verdict> {
    let (first, rest) = text.trim().split_once(|c: char| c.is_ascii_whitespace())?;
    if !first.eq_ignore_ascii_case("table") {
        return None;
    }
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, &format!("SELECT * FROM {rest}")).ok()?;
    Some(combine(&statements, text, facts))
}

/// A text that the parser does not understand. PostgreSQL may.
fn unparsed(text: &str) -> Verdict {
    let mut verdict = Verdict { may_commit: true, defines: defines(text), ..Verdict::plain(Route::Primary) };
    let mut words =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default().to_ascii_lowercase();
    let body = text.trim().trim_end_matches(';');
    let one_statement = !body.contains(';');
    let scope = words.clone().find(|word| !word.eq_ignore_ascii_case("session"));
    let local = scope.is_some_and(ends_with_the_transaction);
    if first == "abort" && one_statement {
        return Verdict { rolls_back: true, ..neutral(Effect::Rollback) };
    }
    if matches!(first.as_str(), "set" | "reset") && one_statement {
        verdict.route = Route::Neutral;
        verdict.may_commit = false;
        if !local {
            verdict.effects.push(Effect::Set { key: body.to_ascii_lowercase(), sql: body.to_owned() });
        }
        return verdict;
    }
    if matches!(first.as_str(), "do" | "call") || leaves_state(&first) || words.any(leaves_state) {
        verdict.effects.push(Effect::Pin);
    }
    verdict
}

/// Names that mean something else, to readers, once this is done; `None` when it defines nothing of that
/// kind. Rather too many.
fn defines(text: &str) -> Option<Vec<String>> {
    const KINDS: &[&str] = &[
        "view",
        "function",
        "procedure",
        "routine",
        "aggregate",
        "sequence",
        "unlogged",
        "logged",
        "foreign",
        "rule",
        "extension",
        "schema",
        "rename",
    ];
    const NAMES_MAX: usize = 12;
    let split = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words = split.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase);
    let from = words.skip_while(|word| !matches!(word.as_str(), "create" | "alter" | "drop"));
    let names: Vec<String> = from.take(NAMES_MAX).collect();
    names.iter().any(|word| KINDS.contains(&word.as_str())).then_some(names)
}

/// By the word behind `SET`.
fn ends_with_the_transaction(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    matches!(word.as_str(), "local" | "transaction" | "constraints") || word.starts_with("transaction_")
}

fn leaves_state(word: &str) -> bool {
    const WORDS: &[&str] =
        &["temp", "temporary", "pg_temp", "set_config", "set", "reset", "discard", "listen", "load"];
    WORDS.iter().any(|known| word.eq_ignore_ascii_case(known))
}

fn single(statement: &Statement, text: &str, facts: &Facts) -> Verdict {
    match statement {
        Statement::Query(query) => {
            if let Some((name, false)) = only_sets_config(query) {
                return set_of(name.to_ascii_lowercase(), text);
            }
            let walk = Walk::through(statement, facts);
            let route = if walk.reads { Route::Read } else { Route::Primary };
            Verdict { effects: walk.effects(), ..Verdict::plain(route) }
        }
        Statement::Explain { .. } | Statement::ShowVariable { .. } | Statement::Copy { .. } => {
            let route = if utility_reads(statement, facts) { Route::Read } else { Route::Primary };
            let effects = Walk::through(statement, facts).lasting_effects();
            Verdict { effects, ..Verdict::plain(route) }
        }
        Statement::StartTransaction { modes, statements, modifier: None, .. } if statements.is_empty() => {
            let route = if may_run_on_a_standby(modes) { Route::Read } else { Route::Primary };
            Verdict { begins: true, ..Verdict::plain(route) }
        }
        Statement::Commit { .. } => Verdict { may_commit: true, ..neutral(Effect::Commit) },
        Statement::Rollback { savepoint: None, .. } => {
            Verdict { rolls_back: true, ..neutral(Effect::Rollback) }
        }
        Statement::Rollback { savepoint: Some(name), .. } => neutral(Effect::RollbackTo(folded(name))),
        Statement::Savepoint { name } => neutral(Effect::Savepoint(folded(name))),
        Statement::ReleaseSavepoint { .. } => Verdict::plain(Route::Neutral),
        Statement::Set(set) => set_verdict(set, text),
        Statement::Reset(_) | Statement::Discard { .. } => reset_verdict(statement, text),
        Statement::Deallocate { name, .. } if name.value.eq_ignore_ascii_case("all") => {
            Verdict { effects: vec![Effect::DeallocateAll], ..Verdict::plain(Route::Primary) }
        }
        Statement::Deallocate { name, .. } => {
            let name = folded(name);
            let effects = vec![Effect::Deallocate(name.clone())];
            Verdict { effects, uses: vec![name], ..Verdict::plain(Route::Primary) }
        }
        Statement::Execute { name, .. } => {
            let uses = name.as_ref().and_then(last_part).into_iter().collect();
            // Its arguments may call anything.
            let effects = Walk::through(statement, facts).lasting_effects();
            Verdict { uses, effects, ..Verdict::plain(Route::Primary) }
        }
        Statement::Call(_) => Verdict::unknown(),
        other => {
            let mut effects = Walk::through(other, facts).lasting_effects();
            if keeps_connection(other) {
                effects.push(Effect::Keep);
            }
            if makes_temporary(other) || matches!(other, Statement::Load { .. }) {
                effects.push(Effect::Pin);
            }
            let data = matches!(
                other,
                Statement::Insert(_)
                    | Statement::Update { .. }
                    | Statement::Delete(_)
                    | Statement::Merge { .. }
            );
            let defines = if data { None } else { defines(text) };
            Verdict { effects, defines, ..Verdict::plain(Route::Primary) }
        }
    }
}

/// Things that stay on the connection until they are given up.
fn keeps_connection(statement: &Statement) -> bool {
    match statement {
        Statement::LISTEN { .. } | Statement::Prepare { .. } => true,
        Statement::Declare { stmts } => stmts.iter().any(|cursor| cursor.hold == Some(true)),
        _ => false,
    }
}

/// Read-only transactions that see what was committed before each of their statements: such a one can go
/// on elsewhere when a standby cannot serve it any further. One with a snapshot of its own cannot.
fn may_run_on_a_standby(modes: &[TransactionMode]) -> bool {
    const READ_ONLY: TransactionMode = TransactionMode::AccessMode(TransactionAccessMode::ReadOnly);
    let fits = |mode: &TransactionMode| match mode {
        TransactionMode::AccessMode(access) => *access == TransactionAccessMode::ReadOnly,
        TransactionMode::IsolationLevel(level) => {
            matches!(
                level,
                TransactionIsolationLevel::ReadCommitted | TransactionIsolationLevel::ReadUncommitted
            )
        }
    };
    modes.contains(&READ_ONLY) && modes.iter().all(fits)
}

fn neutral(effect: Effect) -> Verdict {
    Verdict { effects: vec![effect], ..Verdict::plain(Route::Neutral) }
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

fn last_part(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(folded)
}

/// Whether EXPLAIN, SHOW or COPY only reads.
fn utility_reads(statement: &Statement, facts: &Facts) -> bool {
    match statement {
        Statement::Explain { analyze, options, statement, .. } => {
            let analyzes = |name: &Ident| name.value.eq_ignore_ascii_case("analyze");
            let options_analyze = options.iter().flatten().any(|option| analyzes(&option.name));
            let runs = *analyze || options_analyze;
            let through = if runs { Walk::through } else { Walk::through_plan };
            through(statement.as_ref(), facts).reads
        }
        Statement::ShowVariable { variable } => {
            let name: Vec<&str> = variable.iter().map(|ident| ident.value.as_str()).collect();
            same_everywhere(&name.join("."))
        }
        Statement::Copy { source, to: true, target: CopyTarget::Stdout, .. } => match source {
            sqlparser::ast::CopySource::Table { table_name, .. } => relation_reads(table_name, facts),
            sqlparser::ast::CopySource::Query(query) => Walk::through(query.as_ref(), facts).reads,
        },
        _ => false,
    }
}

fn set_verdict(set: &Set, text: &str) -> Verdict {
    let local = |scope: &Option<ContextModifier>| matches!(scope, Some(ContextModifier::Local));
    let key = match set {
        Set::SingleAssignment { scope, .. } if local(scope) => None,
        Set::SetRole { context_modifier, .. } if local(context_modifier) => None,
        Set::SetTimeZone { local: true, .. } => None,
        Set::SetTransaction { session: false, .. } => None,
        Set::SingleAssignment { variable, .. } => Some(variable.to_string().to_ascii_lowercase()),
        Set::SetTimeZone { value: Expr::Identifier(_) | Expr::Value(_), .. } => Some("timezone".to_owned()),
        Set::SetNames { .. } | Set::SetNamesDefault { .. } => Some("client_encoding".to_owned()),
        Set::SetRole { .. } => Some("role".to_owned()),
        Set::SetSessionAuthorization(_) => Some("session authorization".to_owned()),
        // Anything else is remembered under its own text.
        _ => Some(text.to_ascii_lowercase()),
    };
    key.map_or_else(|| Verdict::plain(Route::Neutral), |key| set_of(key, text))
}

/// `text` changes the setting `key`.
fn set_of(key: String, text: &str) -> Verdict {
    // It sets its two halves one by one: what an earlier one set may still hold.
    let key = if key == "datestyle" { text.to_ascii_lowercase() } else { key };
    neutral(Effect::Set { key, sql: text.to_owned() })
}

fn reset_verdict(statement: &Statement, text: &str) -> Verdict {
    let set = |key: String| neutral(Effect::Set { key, sql: text.to_owned() });
    match statement {
        Statement::Reset(statement) => match &statement.reset {
            Reset::ALL => neutral(Effect::ResetAll),
            Reset::SessionAuthorization => set("session authorization".to_owned()),
            Reset::ConfigurationParameter(name) => set(name.to_string().to_ascii_lowercase()),
        },
        Statement::Discard { object_type: DiscardObject::ALL } => {
            Verdict { effects: vec![Effect::DiscardAll], ..Verdict::plain(Route::Primary) }
        }
        _ => Verdict::plain(Route::Primary),
    }
}

fn makes_temporary(statement: &Statement) -> bool {
    let in_temporary_schema = |name: &ObjectName| {
        name.0
            .first()
            .and_then(|part| part.as_ident())
            .is_some_and(|ident| folded(ident).starts_with("pg_temp"))
    };
    match statement {
        // One that goes with its transaction is not there for anything else to see.
        Statement::CreateTable(table) if table.on_commit == Some(OnCommit::Drop) => false,
        Statement::CreateTable(table) => table.temporary || in_temporary_schema(&table.name),
        Statement::CreateView(view) => view.temporary || in_temporary_schema(&view.name),
        Statement::CreateSequence { temporary, name, .. } => *temporary || in_temporary_schema(name),
        _ => false,
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
