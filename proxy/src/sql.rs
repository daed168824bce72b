//! What a piece of SQL means for routing: whether it can only read, what it does to the session, and
//! whether the proxy answers it itself.
//!
//! Decides from the text and what the catalogs say of the names in it. Knows neither nodes nor
//! connections. Safe by default: what is not *known* to be a read is none.

mod classify;
mod defines;
mod facts;
mod functions;
mod logins;
mod pieces;
mod settings;
mod settles;
mod shape;
mod show;
mod spaced;
mod temporary;
mod traces;
mod walk;
mod way_out;
mod why;
mod words;

pub use classify::classify;
pub use defines::Defined;
pub use facts::{Edition, Facts, FunctionRow, RelationRow, Standing};
pub use settings::is_of_the_transaction;
pub use settles::Settles;
pub use shape::{Masked, is_shared, mask};
pub use show::Show;
pub use traces::Traces;
pub use way_out::way_out;
pub use why::Why;

/// Where a text may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Route {
    /// Anywhere: it reads, and gives the same on every node that has the same data.
    Read,
    /// It neither reads nor writes data (SET, COMMIT, an empty text): any server will do.
    #[default]
    Neutral,
    /// Only where writes run.
    Primary,
}

impl Route {
    /// Where two things that must run on one server may run.
    #[must_use]
    pub fn together(self, other: Self) -> Self {
        match (self, other) {
            (Self::Primary, _) | (_, Self::Primary) => Self::Primary,
            (Self::Neutral, other) | (other, Self::Neutral) => other,
            (Self::Read, Self::Read) => Self::Read,
        }
    }
}

/// What a text does to the session once it succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A setting changed; `sql` makes the same change elsewhere.
    Set {
        /// Later changes under the same key replace this one.
        key: String,
        /// The statement.
        sql: String,
    },
    /// `RESET ALL`.
    ResetAll,
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DEALLOCATE ALL` (also as part of `DISCARD ALL`).
    DeallocateAll,
    /// `DEALLOCATE name`.
    Deallocate(String),
    /// Settings changed from here on can be undone by [`Effect::RollbackTo`].
    Savepoint(String),
    /// Settings changed since that savepoint are undone.
    RollbackTo(String),
    /// Something holds up to the end of the transaction, and where it runs only.
    ForTransaction,
    /// A transaction block ends, and its settings stay.
    Commit,
    /// A transaction block ends, and its settings are undone.
    Rollback,
    /// Commits may be acknowledged before they are written, for as little as one transaction.
    LazyCommits,
    /// It may end server processes, its own among them.
    Terminate,
    /// State came to be on this connection that only this session may have; reads may still go elsewhere.
    Keep,
    /// Something of this name came to be that only this session has, on its connection to the primary.
    Temporary(String),
    /// The same, if it rests on something temporary.
    LikelyTemporary(String),
    /// What had this name is gone, temporary or not.
    Dropped(String),
    /// What is temporary, if there is any, may be found under other names now.
    Mingles,
    /// The likely reason for [`Effect::Keep`], [`Effect::Pin`] or [`Effect::Temporary`] beside it.
    Because(Why),
    /// What a login gets changes. Names, some of them of databases, are given where it concerns whole
    /// databases.
    Logins(Option<Vec<String>>),
    /// State came to be that cannot be had on another server: the session stays with the primary.
    Pin,
    /// A function of this name, of which nothing is known yet, may have brought such state about.
    Suspect(String),
}

impl Effect {
    /// The name of the prepared statement that is no more; `None`: all of them.
    pub(crate) fn frees(&self) -> Option<Option<String>> {
        match self {
            Self::Deallocate(name) => Some(Some(name.clone())),
            Self::DeallocateAll | Self::DiscardAll => Some(None),
            _ => None,
        }
    }
}

/// Everything about a text that routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Where it may run.
    pub route: Route,
    /// What it does to the session, in order.
    pub effects: Vec<Effect>,
    /// Whether whatever it reads is named in it, or lies behind something that is: nothing in it looks
    /// for names by itself, as functions of the user's may.
    pub spelled_out: bool,
    /// Prepared statements it uses by name (`EXECUTE`, `DEALLOCATE`).
    pub uses: Vec<String>,
    /// How many statements it has.
    pub count: usize,
    /// So many come before the first that frees names of prepared statements, if it has several.
    pub frees_at: Option<usize>,
    /// Whether it may end a transaction block with a commit.
    pub may_commit: bool,
    /// Whether it only opens a transaction block, so that running it twice does no harm.
    pub begins: bool,
    /// Whether it leaves it to the session whether that block only reads.
    pub begins_as_usual: bool,
    /// Whether all it does is to tell an open transaction block to only read from here on.
    pub turns_read_only: bool,
    /// Whether it only rolls a transaction back.
    pub rolls_back: bool,
    /// Names that may mean something else once it is done: functions, views and the like.
    pub defines: Option<Vec<Defined>>,
    /// The proxy's own answer is asked for.
    pub show: Option<Show>,
    /// What it leaves behind on its connection.
    pub traces: Traces,
    /// Whether it is known what state it leaves its transaction in.
    pub settles: Settles,
}

impl Verdict {
    /// Of a text about which nothing more is known than where it may run.
    pub fn plain(route: Route) -> Self {
        Self {
            route,
            effects: vec![],
            spelled_out: true,
            uses: vec![],
            count: 1,
            frees_at: None,
            may_commit: false,
            begins: false,
            begins_as_usual: false,
            turns_read_only: false,
            rolls_back: false,
            defines: None,
            show: None,
            traces: Traces::default(),
            settles: Settles::Unknown,
        }
    }

    /// Of a text that could do anything, to the session, too.
    pub fn unknown() -> Self {
        let traces = Traces { indelible: true, uses_all: true, ..Traces::default() };
        Self { may_commit: true, effects: vec![Effect::Pin], traces, ..Self::plain(Route::Primary) }
    }
}
