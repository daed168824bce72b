//! The agent's hands on its own PostgreSQL: look, start, stop, promote, repoint, rewind, fence.
//!
//! Nothing is decided here. Each action is idempotent, checks its precondition again, has a deadline,
//! and fails with an error of its own. Nothing here knows about raft, leases or other agents; the only
//! thing it learns about another node is what [`Instance::knock`] sees of its PostgreSQL.
//!
//! The agent owns a few files in the data directory: `pgherd.conf`, `pgherd.parameters.conf`, `standby.signal`, and two for its
//! gate (`gate.rs`).
//! It never writes to the configuration files of the DBA.

mod clone;
mod command;
mod configuration;
mod conninfo;
mod control;
mod controldata;
mod cover;
mod create;
mod fence;
mod files;
mod follow;
mod gate;
mod health;
mod instance;
mod kept;
mod left_wal;
mod open;
mod own_address;
mod parameters;
mod probe;
mod process;
mod rebuild;
mod rejoin;
mod remote;
mod rewind;
mod salvage;
mod saved_wal;
mod session;
mod settings;
mod slots;
mod timelines;

pub use clone::CloneError;
pub use control::{CheckpointError, DrainError, StartError, StopError};
pub use controldata::ControlDataError;
pub use cover::CoverError;
pub use create::{CreateError, create_standby};
pub use fence::{FenceError, kill_instance};
pub use files::FileError;
pub use follow::{FollowError, PromoteError, RecruitError};
pub use gate::GateError;
pub use instance::Instance;
pub use open::OpenError;
pub use parameters::{
    AskError, ParameterHere, ParametersError, Pending, RefusedValue, Standing, Value, Wanted,
};
pub use rebuild::{RebuildError, Rebuilt};
pub use rejoin::{RejoinError, Rejoined};
pub use rewind::RewindError;
pub use salvage::{CHUNK_MAX, FetchError, SalvageError};
pub use session::SessionError;
pub use settings::{Settings, Upstream};
pub use slots::SlotsError;
