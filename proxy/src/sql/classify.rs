//! From a text to its verdict.

use sqlparser::ast::{
    ContextModifier, CopyTarget, CreateTable, DiscardObject, Expr, Function, Ident, ObjectName, Reset, Set,
    Statement, TransactionAccessMode, TransactionIsolationLevel, TransactionMode,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::defines::defines;
use super::facts::Facts;
use super::logins;
use super::pieces::pieces;
use super::settings::{is_of_the_transaction, same_everywhere};
use super::settles::settles;
use super::show::Show;
use super::temporary;
use super::traces::{self, Traces};
use super::walk::{Walk, folded_part as folded, only_sets_config, relation_reads};
use super::{Effect, Route, Verdict};
use super::{spaced, why, words};

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
        if verdict
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Pin | Effect::Keep | Effect::Temporary(_)))
        {
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
    let text = spaced::without_leading_comments(text);
    if let Some(show) = Show::parse(text) {
        return Verdict { show: Some(show), ..Verdict::plain(Route::Neutral) };
    }
    let mut verdict = judge_text(text, facts);
    // The parser takes a comment right behind an operator for a part of it, and then strings for code and code for
    // strings. Each reading may be the right one.
    if let Some(spaced) = spaced::before_comments(text) {
        let other = judge_text(&spaced, facts);
        verdict.route = verdict.route.together(other.route);
        verdict.spelled_out &= other.spelled_out;
        verdict.may_commit |= other.may_commit;
        let more = other.effects.into_iter().filter(|effect| !matches!(effect, Effect::Set { .. }));
        let more: Vec<Effect> = more.filter(|effect| !verdict.effects.contains(effect)).collect();
        verdict.effects.extend(more);
        verdict.traces.add(&other.traces);
    }
    verdict
}

fn judge_text(text: &str, facts: &Facts) -> Verdict {
    match Parser::parse_sql(&PostgreSqlDialect {}, text) {
        Ok(statements) => understood(&statements, text, facts),
        Err(_) => bare_table(text, facts)
            .or_else(|| read_by_words(text, facts))
            .unwrap_or_else(|| piece_by_piece(text, facts)),
    }
}

fn understood(statements: &[Statement], text: &str, facts: &Facts) -> Verdict {
    let mut verdict = combine(statements, text, facts);
    traces::note(&mut verdict, Some(statements), text, facts);
    verdict
}

/// A text that the parser does not understand as a whole.
fn piece_by_piece(text: &str, facts: &Facts) -> Verdict {
    let pieces = pieces(text);
    match pieces.as_deref() {
        Some([_, _, ..]) => {}
        None if text.trim().trim_end_matches(';').contains(';') => return Verdict::unknown(),
        Some([] | [_]) | None => {
            let mut verdict = unparsed(text, facts);
            traces::note(&mut verdict, None, text, facts);
            return verdict;
        }
    }
    let texts = pieces.iter().flatten().map(|piece| spaced::without_leading_comments(piece));
    together(texts.map(|piece| judge_text(piece, facts)).collect())
}

fn combine(statements: &[Statement], text: &str, facts: &Facts) -> Verdict {
    if let [statement] = statements {
        let own_text = text.trim().trim_end_matches(';');
        return single(statement, own_text, facts);
    }
    together(statements.iter().map(|statement| single(statement, &statement.to_string(), facts)).collect())
}

/// The verdict on statements that come in one text.
fn together(verdicts: Vec<Verdict>) -> Verdict {
    let frees = |verdict: &Verdict| verdict.effects.iter().any(|effect| effect.frees().is_some());
    let frees_at = verdicts.iter().position(frees);
    let mut all = Verdict { count: verdicts.len(), frees_at, ..Verdict::plain(Route::Neutral) };
    for verdict in verdicts {
        // What comes behind BEGIN in one text is not looked at one by one.
        let route = if verdict.begins { Route::Primary } else { verdict.route };
        all.route = all.route.together(route);
        // Beside reads it would pass for one.
        if verdict.route == Route::Neutral && verdict.effects.is_empty() && !verdict.begins {
            all.effects.push(Effect::ForTransaction);
        }
        all.spelled_out &= verdict.spelled_out;
        all.effects.extend(verdict.effects);
        all.uses.extend(verdict.uses);
        if let Some(names) = verdict.defines {
            all.defines.get_or_insert_default().extend(names);
        }
        // Only what comes alone can be prepared again elsewhere.
        if verdict.traces.prepares.is_some() {
            all.effects.push(Effect::Keep);
            all.traces.prepared_beside_others();
        }
        all.traces.add(&Traces { prepares: None, ..verdict.traces });
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
    (statements.len() == 1).then(|| understood(&statements, text, facts))
}

fn read_by_words(text: &str, facts: &Facts) -> Option<Verdict> {
    let spelled_out = words::reads(text, facts)?;
    Some(Verdict { spelled_out, ..Verdict::plain(Route::Read) })
}

/// Statements that change what is stored, and no setting of the session.
const QUIET: &[&str] = &["alter", "create", "delete", "insert", "merge", "update"];

/// Statements that call the functions in them at once.
const RUNS: &[&str] =
    &["copy", "delete", "explain", "insert", "merge", "select", "table", "update", "values", "with"];

/// A statement that the parser does not understand. PostgreSQL may.
fn unparsed(text: &str, facts: &Facts) -> Verdict {
    let mut verdict =
        Verdict { may_commit: true, defines: defines(text, facts), ..Verdict::plain(Route::Primary) };
    let mut words = words_of(text);
    let first = words.next().unwrap_or_default().to_ascii_lowercase();
    let body = text.trim().trim_end_matches(';');
    let scope = words.find(|word| !word.eq_ignore_ascii_case("session"));
    let local = scope.is_some_and(ends_with_the_transaction);
    if first == "abort" {
        return Verdict { rolls_back: true, ..neutral(Effect::Rollback) };
    }
    if matches!(first.as_str(), "set" | "reset") {
        verdict.route = Route::Neutral;
        verdict.may_commit = false;
        if !local {
            verdict.effects.push(Effect::Set { key: body.to_ascii_lowercase(), sql: body.to_owned() });
            verdict.effects.extend(temporary::found_by_default(body));
        }
        return verdict;
    }
    let (made, rest) = temporary::made_by_unparsed(body);
    verdict.effects.extend(made);
    let harmless_code = first == "do" && speaks_plpgsql(body) && facts.leaves_nothing(body, &[]);
    // In these SET is no statement of its own.
    let quiet = harmless_code || (QUIET.contains(&first.as_str()) && facts.calls_leave_nothing(rest));
    let telling = |word: &str| {
        leaves_state(word) && !(quiet && ["set", "reset"].contains(&word.to_ascii_lowercase().as_str()))
    };
    let calls = RUNS.contains(&first.as_str()) && !facts.calls_leave_nothing(rest);
    let code = (first == "do" && !harmless_code) || first == "call";
    if code || calls || leaves_state(&first) || leaves_names(body) || words_of(rest).any(telling) {
        verdict.effects.push(Effect::Pin);
    }
    verdict
}

fn deallocated(name: &Ident) -> Effect {
    if name.value.eq_ignore_ascii_case("all") {
        Effect::DeallocateAll
    } else {
        Effect::Deallocate(folded(name))
    }
}

/// Whether a `DO` block is in a language whose text can be looked at.
fn speaks_plpgsql(text: &str) -> bool {
    let mut languages = words_of(text).skip_while(|word| !word.eq_ignore_ascii_case("language")).skip(1);
    languages.next().is_none_or(|name| name.eq_ignore_ascii_case("plpgsql"))
}

pub(super) fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// By the word behind `SET`.
fn ends_with_the_transaction(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    matches!(word.as_str(), "local" | "transaction" | "constraints") || is_of_the_transaction(&word)
}

/// Whether a cursor outlives its transaction, or a statement is prepared.
fn leaves_names(text: &str) -> bool {
    let has = |known: &str| words_of(text).any(|word| word.eq_ignore_ascii_case(known));
    let mut behind = words_of(text).skip_while(|word| !word.eq_ignore_ascii_case("prepare"));
    let prepares = behind.nth(1).is_some_and(|word| !word.eq_ignore_ascii_case("transaction"));
    prepares || (has("declare") && has("hold"))
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
            Verdict { effects: walk.effects(), spelled_out: walk.spelled_out, ..Verdict::plain(route) }
        }
        Statement::Explain { .. } | Statement::ShowVariable { .. } | Statement::Copy { .. } => {
            let route = if utility_reads(statement, facts) { Route::Read } else { Route::Primary };
            let walk = Walk::through(statement, facts);
            let mut effects = walk.lasting_effects();
            if let Statement::Explain { statement, .. } = statement {
                effects.extend(temporary::made_by(statement, text));
            }
            Verdict { effects, spelled_out: walk.spelled_out, ..Verdict::plain(route) }
        }
        Statement::StartTransaction { modes, statements, modifier: None, .. } if statements.is_empty() => {
            let route = if may_run_on_a_standby(modes) { Route::Read } else { Route::Primary };
            let begins_as_usual = modes.iter().all(keeps_no_snapshot);
            Verdict { begins: true, begins_as_usual, ..Verdict::plain(route) }
        }
        Statement::Commit { .. } => Verdict { may_commit: true, ..neutral(Effect::Commit) },
        Statement::Rollback { savepoint: None, .. } => {
            Verdict { rolls_back: true, ..neutral(Effect::Rollback) }
        }
        Statement::Rollback { savepoint: Some(name), .. } => neutral(Effect::RollbackTo(folded(name))),
        Statement::Savepoint { name } => neutral(Effect::Savepoint(folded(name))),
        Statement::ReleaseSavepoint { .. } => Verdict::plain(Route::Neutral),
        Statement::Set(Set::SetTransaction { modes, snapshot: None, session: false }) => {
            set_transaction(modes)
        }
        Statement::Set(set) => set_verdict(set, text),
        Statement::Reset(_) | Statement::Discard { .. } => reset_verdict(statement, text),
        Statement::Deallocate { name, .. } => {
            let effect = deallocated(name);
            let uses = effect.frees().flatten().into_iter().collect();
            Verdict { effects: vec![effect], uses, ..Verdict::plain(Route::Primary) }
        }
        Statement::Execute { name, .. } => {
            let uses = name.as_ref().and_then(last_part).into_iter().collect();
            // Its arguments may call anything.
            let effects = Walk::through(statement, facts).lasting_effects();
            Verdict { uses, effects, ..Verdict::plain(Route::Primary) }
        }
        Statement::Call(call) => called(call, facts),
        other => {
            let mut effects = effects_of(other, facts);
            if keeps_connection(other) {
                effects.push(Effect::Keep);
            }
            effects.extend(temporary::made_by(other, text));
            effects.extend(matches!(other, Statement::Load { .. }).then_some(Effect::Pin));
            let data = matches!(
                other,
                Statement::Insert(_)
                    | Statement::Update { .. }
                    | Statement::Delete(_)
                    | Statement::Merge { .. }
            );
            let defines = if data { None } else { defines(text, facts) };
            Verdict { effects, defines, ..Verdict::plain(Route::Primary) }
        }
    }
}

/// What of a statement outlives it.
fn effects_of(statement: &Statement, facts: &Facts) -> Vec<Effect> {
    match statement {
        // Nothing in it is called yet.
        Statement::CreateView(view) if !view.materialized => vec![],
        // How it is partitioned looks like the call of a function.
        Statement::CreateTable(table) if table.partition_by.is_some() => {
            let plain = CreateTable { partition_by: None, ..table.clone() };
            Walk::through(&Statement::CreateTable(plain), facts).lasting_effects()
        }
        other => Walk::through(other, facts).lasting_effects(),
    }
}

/// A procedure may do whatever a function may, and commit.
fn called(call: &Function, facts: &Facts) -> Verdict {
    let effects = Walk::through(&Expr::Function(call.clone()), facts).lasting_effects();
    Verdict { may_commit: true, effects, ..Verdict::plain(Route::Primary) }
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
    modes.contains(&READ_ONLY) && modes.iter().all(|mode| *mode == READ_ONLY || keeps_no_snapshot(mode))
}

fn keeps_no_snapshot(mode: &TransactionMode) -> bool {
    use TransactionIsolationLevel::{ReadCommitted, ReadUncommitted};
    matches!(mode, TransactionMode::IsolationLevel(ReadCommitted | ReadUncommitted))
}

fn set_transaction(modes: &[TransactionMode]) -> Verdict {
    let route = if modes.iter().any(is_serializable) { Route::Primary } else { Route::Neutral };
    Verdict { turns_read_only: may_run_on_a_standby(modes), ..Verdict::plain(route) }
}

/// Servers in recovery do not do that, be it only for a statement.
fn is_serializable(mode: &TransactionMode) -> bool {
    matches!(mode, TransactionMode::IsolationLevel(TransactionIsolationLevel::Serializable))
}

fn neutral(effect: Effect) -> Verdict {
    Verdict { effects: vec![effect], ..Verdict::plain(Route::Neutral) }
}

pub(super) fn last_part(name: &ObjectName) -> Option<String> {
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
    let mut verdict = neutral(Effect::Set { key, sql: text.to_owned() });
    verdict.effects.extend(temporary::found_by_default(text));
    verdict
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

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
