//! What the statements that go to a server together are, in signs and numbers.

use crate::sql::Settles;

/// See the module. Nothing yet, at the beginning.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// Functions, views or the like get another meaning.
    pub(super) redefines: bool,
    /// How many statements were judged.
    pub(super) statements: usize,
    /// The same, those of one text counted one by one.
    pub(super) runs: usize,
    /// So many of these come before the first that frees names of prepared statements.
    pub(super) frees_at: Option<usize>,
    /// More than a read, or the beginning or end of a transaction, may be left behind on the connection.
    pub(super) soils: bool,
    pub(super) may_commit: bool,
    /// Whether a rollback is among the statements.
    pub(super) ends_tx: bool,
    /// A transaction block is opened in it.
    pub(super) opens: bool,
    /// So many portals were bound and have yet to give rows.
    pub(super) portals: u32,
    /// A named portal is bound in it, which is there until its transaction ends.
    pub(super) binds_named: bool,
    /// Whether the unnamed portal is there behind it; `None`: as before.
    pub(super) portal: Option<bool>,
    /// It uses the unnamed portal of the batch before.
    pub(super) reaches_back: bool,
    /// Something in it is neither a read nor the end of a transaction, or leaves something behind in it.
    pub(super) impure: bool,
    /// Whether all statements so far only open a transaction block; `None` before the first.
    pub(super) begins: Option<bool>,
    /// Whether all statements so far only roll back; `None` before the first.
    pub(super) rolls_back: Option<bool>,
    /// What the statements so far settle; `None` before the first.
    pub(super) settles: Option<Settles>,
    /// Whether the last statement tells the transaction block to only read, and is alone.
    pub(super) turns_read_only: bool,
    /// Whether any statement was judged yet.
    pub(super) judged: bool,
}
