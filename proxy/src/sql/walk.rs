//! Goes through a syntax tree and looks for a reason why it is not a read.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Value, Visit,
    Visitor,
};

use super::Effect;
use super::facts::{Facts, Standing};
use super::functions::is_stateless;
use super::settings::same_everywhere;

/// What was found.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    facts: &'a Facts,
    /// It is planned and not run.
    plans: bool,
    /// Nothing spoke against a read.
    pub(super) reads: bool,
    /// State came to be that only this server has.
    pub(super) pins: bool,
    /// All that is read is named in it, as [`super::Verdict::spelled_out`] says.
    pub(super) spelled_out: bool,
    /// Temporary tables that it makes.
    temporaries: Vec<String>,
    /// It asks what the connection remembers of sequences.
    keeps: bool,
    /// Server processes may be ended.
    pub(super) terminates: bool,
    /// What is called where a relation could stand, and is visited as one next.
    called: Option<ObjectName>,
    /// Functions of which it is not known whether they leave state behind.
    suspects: Vec<String>,
}

impl<'a> Walk<'a> {
    /// Goes through `node`.
    pub(super) fn through(node: &impl Visit, facts: &'a Facts) -> Self {
        Self::begin(node, facts, false)
    }

    /// The same for what is only planned: servers in recovery plan writes, too, and volatile functions are
    /// not called.
    pub(super) fn through_plan(node: &impl Visit, facts: &'a Facts) -> Self {
        Self::begin(node, facts, true)
    }

    fn begin(node: &impl Visit, facts: &'a Facts, plans: bool) -> Self {
        let mut walk = Self {
            facts,
            plans,
            reads: true,
            pins: false,
            spelled_out: true,
            temporaries: vec![],
            keeps: false,
            terminates: false,
            called: None,
            suspects: vec![],
        };
        // Never breaks: a pin may hide behind the first thing that is no read.
        let ControlFlow::Continue(()) = node.visit(&mut walk);
        walk
    }

    /// What it does to the session.
    pub(super) fn effects(&self) -> Vec<Effect> {
        let terminates = self.terminates.then_some(Effect::Terminate);
        terminates.into_iter().chain(self.lasting_effects()).collect()
    }

    /// What of it outlives the statement.
    pub(super) fn lasting_effects(&self) -> Vec<Effect> {
        let suspects = self.suspects.iter().cloned().map(Effect::Suspect);
        let keeps = self.keeps.then_some(Effect::Keep);
        let temporaries = self.temporaries.iter().cloned().map(Effect::Temporary);
        self.pins.then_some(Effect::Pin).into_iter().chain(temporaries).chain(keeps).chain(suspects).collect()
    }

    fn require(&mut self, condition: bool) {
        self.reads &= condition;
    }

    /// For things that speak against a read only when they are done.
    fn require_if_run(&mut self, condition: bool) {
        self.require(condition || self.plans);
    }

    fn function(&mut self, name: &ObjectName, arguments: Option<&[FunctionArg]>) {
        let parts = folded(name).unwrap_or_default();
        let (schema, name) = match parts.as_slice() {
            [name] => (None, name.as_str()),
            [schema, name] => (Some(schema.as_str()), name.as_str()),
            _ => {
                self.pins = true;
                return self.require_if_run(false);
            }
        };
        match catalog_part(schema, name) {
            Some("set_config") => {
                let local = arguments.and_then(|list| list.get(2)).and_then(literal);
                self.pins |= !matches!(local, Some(Value::Boolean(true)));
                // What is made from now on is temporary.
                let value = arguments.and_then(|list| list.get(1)).and_then(literal);
                self.pins |= value.is_some_and(|value| names_temporary(&value.to_string()));
                self.require_if_run(false);
            }
            Some("current_setting") => {
                let setting = arguments.and_then(|list| list.first()).and_then(literal);
                let known = matches!(setting, Some(Value::SingleQuotedString(name)) if same_everywhere(name));
                self.require_if_run(known);
            }
            Some(own) if is_statistic(own) => {
                self.pins = true;
                self.require_if_run(false);
            }
            _ => self.by_facts(schema, name),
        }
    }

    fn by_facts(&mut self, schema: Option<&str>, name: &str) {
        self.terminates |= catalog_part(schema, name) == Some("pg_terminate_backend");
        self.keeps |= matches!(catalog_part(schema, name), Some("currval" | "lastval"));
        let standing = self.facts.function(schema, name);
        self.spelled_out &= self.facts.is_spelled_out(schema, name);
        match standing {
            Standing::Reads | Standing::Stateless => {}
            // It may have made a temporary table or changed a setting.
            Standing::Stateful => self.pins = true,
            Standing::Unknown => self.suspects.push(name.to_owned()),
        }
        // Planning calls what claims to be stable or immutable, and the user's functions may lie.
        let not_called = self.plans && catalog_part(schema, name).is_some_and(is_stateless);
        self.require(standing == Standing::Reads || not_called);
    }

    /// A column may be a function of the row in disguise.
    fn column(&mut self, ident: &Ident) {
        let name = folded_part(ident);
        let reads = self.facts.is_unheard_of(&name) || self.facts.function(None, &name) == Standing::Reads;
        self.require_if_run(reads);
    }

    fn relation(&mut self, name: &ObjectName) {
        let last = folded(name).and_then(|parts| parts.last().cloned());
        self.spelled_out &= last.is_some_and(|name| self.facts.is_plain(&name));
        self.require(relation_reads(name, self.facts));
    }

    fn call(&mut self, function: &Function) {
        self.require(function.parameters == FunctionArguments::None);
        match &function.args {
            FunctionArguments::List(list) => self.function(&function.name, Some(&list.args)),
            FunctionArguments::None | FunctionArguments::Subquery(_) => self.function(&function.name, None),
        }
    }

    fn data_type(&mut self, data_type: &DataType) {
        // Names of objects are resolved, and told, as the temporary ones allow.
        let registered = match data_type {
            DataType::Regclass => true,
            DataType::Custom(name, _) => catalog_name(name).is_some_and(|name| name.starts_with("reg")),
            _ => false,
        };
        self.spelled_out &= !registered;
    }

    fn body(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Table(table) => {
                let names = [table.schema_name.as_deref(), table.table_name.as_deref()];
                let parts: Vec<String> = names.into_iter().flatten().map(str::to_ascii_lowercase).collect();
                self.spelled_out &= parts.last().is_some_and(|name| self.facts.is_plain(name));
                self.require(self.facts.relation_reads(&parts));
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            // Visited on their own.
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => {}
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                self.require_if_run(false);
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

/// Whether the schema of what is temporary is named.
pub(super) fn names_temporary(text: &str) -> bool {
    text.to_ascii_lowercase().contains("pg_temp")
}

/// What a server counts for itself; what the planner knows of columns is the same everywhere.
fn is_statistic(name: &str) -> bool {
    name.starts_with("pg_stat") && !name.starts_with("pg_statistic") && !name.starts_with("pg_stats")
}

pub(super) fn literal(argument: &FunctionArg) -> Option<&Value> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => Some(&value.value),
        _ => None,
    }
}

/// The name parts as PostgreSQL folds them; `None` when a part is no plain name.
pub(super) fn folded(name: &ObjectName) -> Option<Vec<String>> {
    let part = |part: &ObjectNamePart| match part {
        ObjectNamePart::Identifier(ident) => Some(folded_part(ident)),
        ObjectNamePart::Function(_) => None,
    };
    name.0.iter().map(part).collect()
}

/// A name as PostgreSQL folds it.
pub(super) fn folded_part(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

/// The name within `pg_catalog`, if that is where it is looked up.
fn catalog_name(name: &ObjectName) -> Option<String> {
    match folded(name)?.as_slice() {
        [name] => Some(name.clone()),
        [schema, name] if schema == "pg_catalog" => Some(name.clone()),
        _ => None,
    }
}

pub(super) fn catalog_part<'a>(schema: Option<&str>, name: &'a str) -> Option<&'a str> {
    schema.is_none_or(|schema| schema == "pg_catalog").then_some(name)
}

/// Whether a relation is, by its name, neither a sequence nor a view of what one server alone knows.
pub(super) fn is_plain_relation<'a>(parts: impl Iterator<Item = &'a str>) -> bool {
    let parts: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
    let (schema, name) = match parts.as_slice() {
        [name] => (None, name),
        [schema, name] => (Some(schema.as_str()), name),
        _ => return false,
    };
    let ordinary = !name.starts_with("pg_") && !name.ends_with("_seq");
    match schema {
        Some("information_schema") => true,
        Some("pg_catalog") => is_replicated_catalog(name),
        Some(other) => !other.starts_with("pg_") && ordinary,
        None => ordinary || is_replicated_catalog(name),
    }
}

/// Catalogs that standbys have from the primary, like any table.
fn is_replicated_catalog(name: &str) -> bool {
    const CATALOGS: &str = "
        pg_aggregate pg_am pg_amop pg_amproc pg_attrdef pg_attribute pg_auth_members pg_authid pg_cast pg_class
        pg_collation pg_constraint pg_conversion pg_database pg_db_role_setting pg_default_acl pg_depend pg_description
        pg_enum pg_event_trigger pg_extension pg_foreign_data_wrapper pg_foreign_server pg_foreign_table pg_group
        pg_index pg_indexes pg_inherits pg_init_privs pg_language pg_largeobject pg_largeobject_metadata pg_matviews
        pg_namespace pg_opclass pg_operator pg_opfamily pg_parameter_acl pg_partitioned_table pg_policies pg_policy
        pg_proc pg_publication pg_publication_namespace pg_publication_rel pg_publication_tables pg_range pg_rewrite
        pg_roles pg_rules pg_seclabel pg_sequence pg_shadow pg_shdepend pg_shdescription pg_shseclabel pg_statistic
        pg_statistic_ext pg_statistic_ext_data pg_stats pg_stats_ext pg_stats_ext_exprs pg_subscription
        pg_subscription_rel pg_tables pg_tablespace pg_transform pg_trigger pg_ts_config pg_ts_config_map pg_ts_dict
        pg_ts_parser pg_ts_template pg_type pg_user pg_user_mapping pg_user_mappings pg_views
    ";
    CATALOGS.split_ascii_whitespace().any(|known| known == name)
}

/// Whether reading from a relation is a read.
pub(super) fn relation_reads(name: &ObjectName, facts: &Facts) -> bool {
    folded(name).is_some_and(|parts| facts.relation_reads(&parts))
}

impl Visitor for Walk<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Self::Break> {
        let writes = matches!(
            statement,
            Statement::Insert(_) | Statement::Update { .. } | Statement::Delete(_) | Statement::Merge { .. }
        );
        self.require(matches!(statement, Statement::Query(_)) || (self.plans && writes));
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        self.require_if_run(query.locks.is_empty());
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
            match into.targets.as_slice() {
                _ if !into.temporary => self.pins |= names_temporary(&into.to_string()),
                [Expr::Identifier(name)] => self.temporaries.push(folded_part(name)),
                _ => self.pins = true,
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
        // Whoever watches a server's statistics means to see in them what this session does.
        self.pins |=
            folded(relation).is_some_and(|parts| parts.last().is_some_and(|name| is_statistic(name)));
        if self.called.take().as_ref() != Some(relation) {
            self.relation(relation);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        match factor {
            TableFactor::Table { name, args: Some(call), .. } => {
                self.require(call.settings.is_none());
                self.called = Some(name.clone());
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
                self.column(ident);
            }
            Expr::CompoundIdentifier(parts) => parts.iter().skip(1).for_each(|part| self.column(part)),
            Expr::MatchAgainst { .. } | Expr::Lambda(_) | Expr::MemberOf(_) | Expr::Convert { .. } => {
                self.require(false);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
