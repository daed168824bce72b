//! Goes through a syntax tree and looks for a reason why it is not a read.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName,
    ObjectNamePart, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Value, Visit, Visitor,
};

use super::Effect;
use super::functions::FunctionFacts;
use super::settings::same_everywhere;

/// What was found.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    facts: &'a FunctionFacts,
    /// Nothing spoke against a read.
    pub(super) reads: bool,
    /// State came to be that only this server has.
    pub(super) pins: bool,
    /// It asks what the connection remembers of sequences.
    keeps: bool,
    /// Server processes may be ended.
    pub(super) terminates: bool,
}

impl<'a> Walk<'a> {
    /// Goes through `node`.
    pub(super) fn through(node: &impl Visit, facts: &'a FunctionFacts) -> Self {
        let mut walk = Self { facts, reads: true, pins: false, keeps: false, terminates: false };
        // Never breaks: a pin may hide behind the first thing that is no read.
        let ControlFlow::Continue(()) = node.visit(&mut walk);
        walk
    }

    /// What it does to the session.
    pub(super) fn effects(&self) -> Vec<Effect> {
        let terminates = self.terminates.then_some(Effect::Terminate);
        let keeps = self.keeps.then_some(Effect::Keep);
        terminates.into_iter().chain(self.pins.then_some(Effect::Pin)).chain(keeps).collect()
    }

    fn require(&mut self, condition: bool) {
        self.reads &= condition;
    }

    fn function(&mut self, name: &ObjectName, arguments: Option<&[FunctionArg]>) {
        let Some(name) = catalog_name(name) else {
            self.pins = true;
            return self.require(false);
        };
        match name.as_str() {
            "set_config" => {
                let local = arguments.and_then(|list| list.get(2)).and_then(literal);
                self.pins |= !matches!(local, Some(Value::Boolean(true)));
                self.require(false);
            }
            "current_setting" => {
                let setting = arguments.and_then(|list| list.first()).and_then(literal);
                let known = matches!(setting, Some(Value::SingleQuotedString(name)) if same_everywhere(name));
                self.require(known);
            }
            other if self.facts.is_read_only(other) => {}
            other => {
                self.pins |= is_statistic(other);
                self.keeps |= matches!(other, "currval" | "lastval");
                self.terminates |= other == "pg_terminate_backend";
                // A function of the user's may have made a temporary table or changed a setting.
                self.pins |= !self.facts.is_stateless(other);
                self.require(false);
            }
        }
    }

    fn call(&mut self, function: &Function) {
        self.require(function.parameters == FunctionArguments::None);
        match &function.args {
            FunctionArguments::List(list) => self.function(&function.name, Some(&list.args)),
            FunctionArguments::None | FunctionArguments::Subquery(_) => self.function(&function.name, None),
        }
    }

    fn data_type(&mut self, data_type: &DataType) {
        // Names of objects are resolved where the statement runs: temporary ones exist on one server only.
        let registered = match data_type {
            DataType::Regclass => true,
            DataType::Custom(name, _) => catalog_name(name).is_some_and(|name| name.starts_with("reg")),
            _ => false,
        };
        self.require(!registered);
    }

    fn body(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Table(table) => {
                let names = [table.schema_name.as_deref(), table.table_name.as_deref()];
                self.require(is_plain_relation(names.into_iter().flatten()));
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            // Visited on their own.
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => {}
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                self.require(false);
            }
        }
    }
}

/// The setting's name, and whether it ends with the transaction, if all that a query does is to call
/// `set_config` once with constants: then it is a SET.
pub(super) fn only_sets_config(query: &Query) -> Option<(&str, bool)> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice() else {
        return None;
    };
    let FunctionArguments::List(list) = &function.args else { return None };
    let (name, local) = match list.args.iter().map(literal).collect::<Option<Vec<_>>>()?.as_slice() {
        [Value::SingleQuotedString(name), Value::SingleQuotedString(_), Value::Boolean(local)] => {
            (name, *local)
        }
        _ => return None,
    };
    // Nothing else may be in it: printed anew it has to be these words alone.
    let called = function.name.to_string();
    let bare = query.to_string() == format!("SELECT {function}")
        && function.to_string() == format!("{called}({list})");
    (bare && catalog_name(&function.name)? == "set_config").then_some((name.as_str(), local))
}

fn is_statistic(name: &str) -> bool {
    name.starts_with("pg_stat")
}

fn literal(argument: &FunctionArg) -> Option<&Value> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => Some(&value.value),
        _ => None,
    }
}

/// The name parts as PostgreSQL folds them; `None` when a part is no plain name.
fn folded(name: &ObjectName) -> Option<Vec<String>> {
    let part = |part: &ObjectNamePart| match part {
        ObjectNamePart::Identifier(ident) if ident.quote_style.is_some() => Some(ident.value.clone()),
        ObjectNamePart::Identifier(ident) => Some(ident.value.to_ascii_lowercase()),
        ObjectNamePart::Function(_) => None,
    };
    name.0.iter().map(part).collect()
}

/// The name within `pg_catalog`, if that is where it is looked up.
fn catalog_name(name: &ObjectName) -> Option<String> {
    match folded(name)?.as_slice() {
        [name] => Some(name.clone()),
        [schema, name] if schema == "pg_catalog" => Some(name.clone()),
        _ => None,
    }
}

/// Whether a relation is, by its name, neither a catalog nor a statistics view nor a sequence.
pub(super) fn is_plain_relation<'a>(parts: impl Iterator<Item = &'a str>) -> bool {
    let parts: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
    parts.len() <= 2
        && parts.iter().all(|part| !part.starts_with("pg_") && part != "information_schema")
        && parts.last().is_some_and(|name| !name.ends_with("_seq"))
}

/// [`is_plain_relation`] of a parsed name.
pub(super) fn is_plain_name(name: &ObjectName) -> bool {
    folded(name).is_some_and(|parts| is_plain_relation(parts.iter().map(String::as_str)))
}

impl Visitor for Walk<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Self::Break> {
        self.require(matches!(statement, Statement::Query(_)));
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        self.require(query.locks.is_empty());
        let foreign = query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty();
        self.require(!foreign);
        self.body(&query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        if let Some(into) = &select.into {
            self.require(false);
            self.pins |= into.temporary;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
        // Whoever watches a server's statistics means to see in them what this session does.
        self.pins |=
            folded(relation).is_some_and(|parts| parts.last().is_some_and(|name| is_statistic(name)));
        self.require(is_plain_name(relation));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        match factor {
            TableFactor::Table { name, args: Some(call), .. } => {
                self.require(call.settings.is_none());
                self.function(name, Some(&call.args));
            }
            TableFactor::Function { name, args, .. } => self.function(name, Some(args)),
            TableFactor::Table { args: None, .. }
            | TableFactor::Derived { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::JsonTable { .. }
            | TableFactor::NestedJoin { .. } => {}
            // Not PostgreSQL's.
            _ => self.require(false),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        match expr {
            Expr::Function(function) => self.call(function),
            Expr::Cast { data_type, .. } => self.data_type(data_type),
            Expr::TypedString(typed) => self.data_type(&typed.data_type),
            // An operator named with its schema may be anybody's.
            Expr::BinaryOp { op: BinaryOperator::PGCustomBinaryOperator(_), .. } => self.require(false),
            // Columns of a sequence.
            Expr::Identifier(ident) => {
                let name = ident.value.to_ascii_lowercase();
                self.require(!matches!(name.as_str(), "last_value" | "is_called" | "log_cnt"));
            }
            Expr::MatchAgainst { .. } | Expr::Lambda(_) | Expr::MemberOf(_) | Expr::Convert { .. } => {
                self.require(false);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
