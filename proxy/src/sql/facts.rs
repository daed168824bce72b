//! What a database's catalogs say about the functions and relations that statements name: which of them
//! only read, and which leave something behind in the session.
//!
//! A name stands for all that bear it, in whichever schema, as the search path is not known. What the
//! catalogs were not asked about, or what was redefined since, is unknown, and unknown is no read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::memory::Usage;

use super::Defined;
use super::functions;
use super::walk::is_plain_relation;

/// A row of `pg_proc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionRow {
    /// Its number.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `i`mmutable, `s`table or `v`olatile.
    pub volatility: char,
    /// What it is written in.
    pub language: String,
    /// Its text; empty for what is built in. `None` when that is not the whole of it.
    pub body: Option<String>,
    /// The functions that an aggregate calls.
    pub calls: Vec<u32>,
}

/// A row of `pg_class` that is no ordinary user table: views, sequences, unlogged and foreign tables, and
/// everything in the system's own schemas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelationRow {
    /// Its number.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// As in `relkind`.
    pub kind: char,
    /// Standbys have its contents.
    pub logged: bool,
    /// Functions that a view calls.
    pub calls: Vec<u32>,
    /// Relations that a view reads.
    pub reads: Vec<u32>,
    /// A view that locks rows or writes.
    pub locks: bool,
}

/// How a function stands to the session that calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It gives the same on every node and does nothing else.
    Reads,
    /// It may write, and leaves nothing behind in the session.
    Stateless,
    /// It may leave something behind: a temporary table, a setting, a lock.
    Stateful,
    /// Nothing is known of it.
    Unknown,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Catalog {
    /// By name, then by schema; all overloads together.
    functions: BTreeMap<String, BTreeMap<String, Standing>>,
    /// Relations that are no reads, by name, with their schemas.
    odd: BTreeMap<String, BTreeSet<String>>,
    /// Views in which functions of the user's are called, by name.
    calling: BTreeSet<String>,
    /// Views that show what is prepared, by name in small letters.
    showing: BTreeSet<String>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `None` when the catalogs were not read.
    catalog: Option<Arc<Catalog>>,
    /// They are going to be.
    pending: bool,
    /// Names that were given a new meaning since, with how the new ones stand to the session.
    doubted: BTreeMap<String, Standing>,
    /// Those of before the last reading, during which they may not have been committed yet.
    older: BTreeMap<String, Standing>,
}

/// What is known of a database, with a number that changes when that does.
#[derive(Debug, Clone)]
pub struct Edition {
    /// The facts.
    pub facts: Arc<Facts>,
    /// Its number.
    pub number: u64,
}

/// Sessions would have to name so many things at once; then everything is doubted.
const DOUBTED_MAX: usize = 10_000;

impl Facts {
    /// About what they take, and how many names they are about.
    pub(crate) fn usage(&self) -> Usage {
        // A tree's node is half empty at worst.
        const NAME: usize = 2 * size_of::<(String, Standing)>();
        let of = |name: &String| Usage { number: 1, bytes: name.len() + NAME };
        let catalog = self.catalog.iter().flat_map(|catalog| {
            let functions = catalog.functions.iter().flat_map(|(name, all)| all.keys().chain([name]));
            let odd = catalog.odd.iter().flat_map(|(name, schemas)| schemas.iter().chain([name]));
            functions.chain(odd).chain(&catalog.calling).chain(&catalog.showing)
        });
        let names = catalog.chain(self.doubted.keys()).chain(self.older.keys());
        names.map(of).fold(Usage::default(), Usage::and)
    }

    /// The catalogs have yet to be read.
    pub fn pending() -> Self {
        Self { pending: true, ..Self::default() }
    }

    /// The catalogs cannot be read: names have to be enough. A standby still refuses what is no read.
    pub fn by_names() -> Self {
        Self::default()
    }

    /// As the catalogs say.
    pub fn of(functions: &[FunctionRow], relations: &[RelationRow]) -> Self {
        let standings = function_standings(functions);
        let catalog = Catalog {
            odd: odd_relations(relations, &standings),
            functions: by_name(functions, &standings),
            calling: calling_views(relations),
            showing: showing_views(functions, relations),
        };
        Self { catalog: Some(Arc::new(catalog)), ..Self::default() }
    }

    /// These names may mean something else from now on.
    pub fn doubt(&mut self, defined: &[Defined]) {
        if self.doubted.len() + defined.len() > DOUBTED_MAX {
            *self = Self::pending();
        } else if self.catalog.is_some() || self.pending {
            for one in defined {
                let standing = self.doubted.entry(one.name.clone()).or_insert(one.standing);
                *standing = one.standing.max(*standing);
            }
        }
    }

    /// What a new reading of the catalogs told. What was doubted while it went on may not have been committed
    /// before it: that is settled by the next one only. Whether there has to be one.
    pub fn replaces(&mut self, before: &Self) -> bool {
        self.older = before.doubted.clone();
        !self.older.is_empty()
    }

    /// Whether there is no function of this name, as far as is known.
    pub fn is_unheard_of(&self, name: &str) -> bool {
        let bears = |catalog: &Arc<Catalog>| catalog.functions.contains_key(name);
        !is_cut(name) && !self.catalog.as_ref().is_some_and(bears) && self.doubt_about(name).is_none()
    }

    fn doubt_about(&self, name: &str) -> Option<Standing> {
        self.doubted.get(name).copied().max(self.older.get(name).copied())
    }

    /// Whether the catalogs have yet to be read.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// What is known of the functions of this name.
    pub fn function(&self, schema: Option<&str>, name: &str) -> Standing {
        let builtin = if functions::is_read_only(name) { Standing::Reads } else { Standing::Stateless };
        let named = functions::is_read_only(name) || functions::is_stateless(name);
        if schema == Some("pg_catalog") && named {
            return builtin;
        }
        let Some(catalog) = &self.catalog else {
            let known = named && schema.is_none_or(|schema| schema == "pg_catalog");
            return match (known, self.pending) {
                (true, _) => builtin,
                (false, true) => Standing::Unknown,
                (false, false) => Standing::Stateful,
            };
        };
        let doubted = self.doubt_about(name);
        let bearers = catalog.functions.get(name).into_iter().flatten();
        let meant = bearers.filter(|(own, _)| schema.is_none_or(|schema| schema == own.as_str()));
        let by_catalog = meant.map(|(_, standing)| *standing).max();
        match (by_catalog.max(doubted), named) {
            (Some(standing), _) => standing,
            // Syntax that looks like a function.
            (None, true) if schema.is_none() => builtin,
            (None, _) => Standing::Unknown,
        }
    }

    /// Whether code, as in the text of a function, leaves nothing behind in its session. `own`: names that are not
    /// held against it.
    pub fn leaves_nothing(&self, code: &str, own: &[String]) -> bool {
        let Some(catalog) = &self.catalog else { return false };
        let passes = |standing: &Standing| *standing <= Standing::Stateless;
        let harmless = |word: String| {
            let known = catalog.functions.get(&word).into_iter().flatten();
            own.contains(&word)
                || (self.doubt_about(&word).is_none_or(|doubt| passes(&doubt))
                    && known.map(|(_, standing)| standing).all(passes))
        };
        let is_known = |name: &str| {
            let name = name.to_ascii_lowercase();
            functions::is_syntax(&name)
                || functions::is_read_only(&name)
                || own.contains(&name)
                || self.doubt_about(&name).is_some()
                || catalog.functions.contains_key(&name)
        };
        !leaves_state(code) && words(code).all(harmless) && calls(code).all(is_known)
    }

    /// Whether functions of this name look for nothing by a name that is not in the statement.
    pub fn is_spelled_out(&self, schema: Option<&str>, name: &str) -> bool {
        let Some(catalog) = &self.catalog else { return false };
        let bearers = catalog.functions.get(name).into_iter().flatten();
        let mut meant = bearers.filter(|(own, _)| schema.is_none_or(|schema| schema == own.as_str()));
        meant.all(|(own, _)| own == "pg_catalog") && !functions::sees_temporary(name)
    }

    /// Whether relations of this name look for nothing by a name that they do not show.
    pub fn is_plain(&self, name: &str) -> bool {
        self.catalog.as_ref().is_some_and(|catalog| !catalog.calling.contains(name))
    }

    /// Whether a view that shows prepared statements may be named in a text.
    pub fn may_show_prepared(&self, text: &str) -> bool {
        let Some(catalog) = &self.catalog else { return self.pending };
        let any = !(catalog.showing.is_empty() && self.doubted.is_empty() && self.older.is_empty());
        // Names that are no words are not found in a text.
        let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let legible = catalog.showing.iter().chain(self.doubted.keys()).chain(self.older.keys()).all(plain);
        any && (!legible
            || words(text).any(|word| catalog.showing.contains(&word) || self.doubt_about(&word).is_some()))
    }

    /// Whether reading from the relations of this name is a read.
    pub fn relation_reads(&self, parts: &[String]) -> bool {
        if !is_plain_relation(parts.iter().map(String::as_str)) || parts.iter().any(|part| is_cut(part)) {
            return false;
        }
        let (schema, name) = match parts {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            _ => return false,
        };
        let system = |schema: &String| schema == "pg_catalog" || schema == "information_schema";
        if schema.is_some_and(system) || (schema.is_none() && name.starts_with("pg_")) {
            return true;
        }
        let Some(catalog) = &self.catalog else { return !self.pending };
        let odd = catalog.odd.get(name);
        let is_odd = odd.is_some_and(|schemas| schema.is_none_or(|schema| schemas.contains(schema)));
        !is_odd && self.doubt_about(name).is_none()
    }
}

/// PostgreSQL cuts names of this length: it is another one that is meant.
fn is_cut(name: &str) -> bool {
    const NAME_MAX: usize = 63;
    name.len() > NAME_MAX
}

fn by_name(
    functions: &[FunctionRow],
    standings: &BTreeMap<u32, Standing>,
) -> BTreeMap<String, BTreeMap<String, Standing>> {
    let mut names: BTreeMap<String, BTreeMap<String, Standing>> = BTreeMap::new();
    for row in functions {
        let standing = standings.get(&row.oid).copied().unwrap_or(Standing::Unknown);
        let schemas = names.entry(row.name.clone()).or_default();
        let all = schemas.entry(row.schema.clone()).or_insert(Standing::Reads);
        *all = standing.max(*all);
    }
    names
}

/// From the best that each function's own row allows, down to what the functions that it calls allow.
fn function_standings(rows: &[FunctionRow]) -> BTreeMap<u32, Standing> {
    let mut standings: BTreeMap<u32, Standing> = rows.iter().map(|row| (row.oid, by_itself(row))).collect();
    let user_rows = rows.iter().filter(|row| !is_builtin(row));
    let mut oids_by_name: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for row in user_rows.clone() {
        oids_by_name.entry(row.name.as_str()).or_default().push(row.oid);
    }
    let callees = |row: &FunctionRow| {
        let words: BTreeSet<String> = words(row.body.as_deref().unwrap_or_default()).collect();
        let named = words.iter().filter_map(|word| oids_by_name.get(word.as_str())).flatten().copied();
        named.chain(row.calls.iter().copied()).collect::<Vec<u32>>()
    };
    let calls: Vec<(u32, Vec<u32>)> = user_rows.map(|row| (row.oid, callees(row))).collect();
    loop {
        let mut changed = false;
        for (oid, callees) in &calls {
            let worst =
                callees.iter().map(|oid| standings.get(oid).copied().unwrap_or(Standing::Unknown)).max();
            let own = standings.get(oid).copied().unwrap_or(Standing::Unknown);
            // What calls something unknown may leave anything behind.
            let worst = worst.map_or(own, |worst| worst.min(Standing::Stateful));
            if worst > own {
                standings.insert(*oid, worst);
                changed = true;
            }
        }
        if !changed {
            return standings;
        }
    }
}

fn is_builtin(row: &FunctionRow) -> bool {
    row.schema == "pg_catalog"
}

fn by_itself(row: &FunctionRow) -> Standing {
    if is_builtin(row) {
        let reads = row.volatility == 'i' || functions::is_read_only(&row.name);
        return match reads {
            true => Standing::Reads,
            // None of these that is not volatile leaves anything behind.
            false if row.volatility == 's' || functions::is_stateless(&row.name) => Standing::Stateless,
            false => Standing::Stateful,
        };
    }
    let Some(body) = &row.body else { return Standing::Stateful };
    let compiled = matches!(row.language.as_str(), "c" | "internal");
    let legible = matches!(row.language.as_str(), "sql" | "plpgsql");
    // What the languages Perl and Python remember from call to call.
    let remembers = |word: &str| !legible && matches!(word, "_shared" | "sd" | "gd");
    let odd = |word: String| tells_servers_apart(&word) || remembers(&word);
    if row.volatility != 'v' && (compiled || !words(body).any(odd)) {
        return Standing::Reads;
    }
    if legible && !leaves_state(body) { Standing::Stateless } else { Standing::Stateful }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let split = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    split.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase)
}

impl Facts {
    /// Whether no function is called in a text that may leave something behind.
    pub fn calls_leave_nothing(&self, text: &str) -> bool {
        let passes = |name: &str| {
            let name = name.to_ascii_lowercase();
            let syntax = functions::is_syntax(&name) && self.is_unheard_of(&name);
            syntax || self.function(None, &name) <= Standing::Stateless
        };
        calls(text).all(passes)
    }
}

/// Names in front of a parenthesis, but for those of relations with their columns.
fn calls(code: &str) -> impl Iterator<Item = &str> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut rest, mut before) = (code, "");
    std::iter::from_fn(move || {
        loop {
            let (gap, text) = rest.split_at(rest.find(in_word)?);
            let (word, behind) = text.split_at(text.find(|c| !in_word(c)).unwrap_or(text.len()));
            let relation = ["into", "table", "references", "exists", "as"];
            let names =
                gap.trim().is_empty() && relation.iter().any(|known| before.eq_ignore_ascii_case(known));
            (rest, before) = (behind, word);
            if behind.trim_start().starts_with('(') && !names {
                return Some(word);
            }
        }
    })
}

/// Words in the text of a function that claims to only read and may all the same not give the same
/// everywhere, or do something to the session.
fn tells_servers_apart(word: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "pg_stat",
        "pg_is_",
        "pg_last_",
        "pg_current",
        "pg_backend",
        "pg_lock",
        "pg_prepared",
        "pg_temp",
        "pg_settings",
        "pg_cursors",
        "inet_",
        "txid",
        "dblink",
        "lo_",
        "current_setting",
    ];
    const WORDS: &[&str] = &[
        "set_config",
        "execute",
        "nextval",
        "setval",
        "currval",
        "lastval",
        "pg_terminate_backend",
        "pg_cancel_backend",
        "pg_notify",
        "pg_export_snapshot",
        "regclass",
        "to_regclass",
    ];
    word.contains("advisory")
        || functions::outlives_emptying(word)
        || WORDS.contains(&word)
        || PREFIXES.iter().any(|prefix| word.starts_with(prefix))
}

/// Whether the text of a function has something in it that outlives its call.
fn leaves_state(body: &str) -> bool {
    const WORDS: &[&str] = &[
        "temp",
        "temporary",
        "set_config",
        "reset",
        "discard",
        "listen",
        "unlisten",
        "load",
        "prepare",
        "deallocate",
        "execute",
        "lo_open",
        "lo_creat",
        "setseed",
        "pg_terminate_backend",
        // Temporary tables may come by another name that way.
        "view",
        "rule",
        "rename",
        "inherit",
        "inherits",
    ];
    let leaves = |word: &String| {
        let session_lock = word.contains("advisory") && !word.contains("xact");
        let foreign = ["dblink", "pg_temp", "pg_stat", "pg_prepared_statement"]
            .iter()
            .any(|prefix| word.starts_with(prefix));
        session_lock || foreign || functions::outlives_emptying(word) || WORDS.contains(&word.as_str())
    };
    // In a comment the words of an UPDATE may stand before a SET.
    let commented = body.contains("--") || body.contains("/*");
    let sets = |statement: &str| {
        let words: Vec<String> = words(statement).collect();
        let mut places = words.iter().enumerate().filter(|(_, word)| *word == "set");
        places.any(|(at, _)| commented || !is_in_update(words.get(..at).unwrap_or_default()))
    };
    words(body).any(|word| leaves(&word)) || body.split(';').any(sets)
}

/// Whether a SET is a part of an UPDATE rather than a statement of its own, by the words before it: between the
/// two there is no more than the table's name and alias.
fn is_in_update(before: &[String]) -> bool {
    const BETWEEN_MAX: usize = 6;
    let back = before.iter().rev().take(BETWEEN_MAX);
    let mut back = back.take_while(|word| !matches!(word.as_str(), "then" | "else" | "loop" | "begin"));
    back.any(|word| word == "update")
}

/// Views are no reads when something in them is none, in views behind them, too.
fn odd_relations(
    rows: &[RelationRow],
    functions: &BTreeMap<u32, Standing>,
) -> BTreeMap<String, BTreeSet<String>> {
    let system = |row: &RelationRow| row.schema == "pg_catalog" || row.schema == "information_schema";
    let by_itself = |row: &RelationRow| {
        let parts = [row.schema.as_str(), row.name.as_str()];
        let plain = if system(row) {
            is_plain_relation(parts.into_iter())
        } else {
            matches!(row.kind, 'r' | 'p' | 'm' | 'v')
        };
        let calls_reads = row.calls.iter().all(|oid| functions.get(oid) == Some(&Standing::Reads));
        !plain || !row.logged || row.locks || !(calls_reads || system(row))
    };
    let mut odd: BTreeSet<u32> = rows.iter().filter(|row| by_itself(row)).map(|row| row.oid).collect();
    loop {
        let infected = |row: &&RelationRow| {
            !odd.contains(&row.oid) && !system(row) && row.reads.iter().any(|oid| odd.contains(oid))
        };
        let more: Vec<u32> = rows.iter().filter(infected).map(|row| row.oid).collect();
        if more.is_empty() {
            break;
        }
        odd.extend(more);
    }
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows.iter().filter(|row| odd.contains(&row.oid)) {
        names.entry(row.name.clone()).or_default().insert(row.schema.clone());
    }
    names
}

/// Views that call functions of the user's.
fn calling_views(rows: &[RelationRow]) -> BTreeSet<String> {
    // Those of PostgreSQL's own have smaller numbers.
    const USERS_MIN: u32 = 16384;
    let calls = |row: &RelationRow| row.calls.iter().any(|oid| *oid >= USERS_MIN);
    with_views_over(rows, calls).map(|row| row.name.clone()).collect()
}

/// Views over PostgreSQL's own that shows what is prepared, or over what that one calls.
fn showing_views(functions: &[FunctionRow], rows: &[RelationRow]) -> BTreeSet<String> {
    let shows = |row: &&FunctionRow| is_builtin(row) && row.name == "pg_prepared_statement";
    let functions: BTreeSet<u32> = functions.iter().filter(shows).map(|row| row.oid).collect();
    let shows = |row: &RelationRow| {
        row.schema == "pg_catalog" && row.name == "pg_prepared_statements"
            || row.calls.iter().any(|oid| functions.contains(oid))
    };
    with_views_over(rows, shows).map(|row| row.name.to_lowercase()).collect()
}

/// These, and the views over them.
fn with_views_over(
    rows: &[RelationRow],
    these: impl Fn(&RelationRow) -> bool,
) -> impl Iterator<Item = &RelationRow> {
    let mut found: BTreeSet<u32> = rows.iter().filter(|row| these(row)).map(|row| row.oid).collect();
    loop {
        let over =
            |row: &&RelationRow| !found.contains(&row.oid) && row.reads.iter().any(|oid| found.contains(oid));
        let more: Vec<u32> = rows.iter().filter(over).map(|row| row.oid).collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    rows.iter().filter(move |row| found.contains(&row.oid))
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
