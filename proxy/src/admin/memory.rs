//! `SHOW MEMORY`.

use crate::memory::{self, Usage};

use super::{Scope, Table};

pub(super) const MEMORY: &[&str] = &["item", "number", "bytes", "bytes_max"];

/// What takes the proxy's memory, and what it may take.
pub(super) fn memory(scope: &Scope<'_>) -> Table {
    let row = |item: &str, Usage { number, bytes }: Usage, max: Option<usize>| {
        let max = max.map(|max| max.to_string()).unwrap_or_default();
        vec![item.to_owned(), number.to_string(), bytes.to_string(), max]
    };
    let clients = scope.clients.all();
    let sum = |usages: &mut dyn Iterator<Item = Usage>| usages.fold(Usage::default(), Usage::and);
    let buffers = sum(&mut clients.iter().map(|badge| Usage { number: 1, bytes: badge.buffers() }));
    let statements = sum(&mut clients.iter().map(|badge| badge.statements.usage()));
    let open = scope.pool.servers.all();
    let servers = sum(&mut open.iter().map(|(_, facts)| Usage { number: 1, bytes: facts.buffers() }));
    let resident = memory::resident().map(|bytes| Usage { number: 1, bytes }).unwrap_or_default();
    let (verdicts, verdicts_max) = scope.verdicts.usage();
    let rows = vec![
        row("process", resident, None),
        row("client buffers", buffers, None),
        row("prepared statements", statements, None),
        row("server buffers", servers, None),
        row("verdicts", verdicts, Some(verdicts_max)),
        row("catalogs", (scope.catalogs)(), None),
    ];
    Table { columns: MEMORY, rows }
}
