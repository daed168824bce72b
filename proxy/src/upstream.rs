//! Connections to PostgreSQL servers: opening them, interrupting what runs on them, and looking up
//! verifiers and catalogs. Does as it is told; which server is somebody else's decision.

mod cancel;
mod catalogs;
mod connect;
mod dial;
mod questions;
mod server;
mod verifiers;

pub(crate) use cancel::{CancelSlot, Cancels};
pub(crate) use catalogs::Catalogs;
pub use catalogs::read_facts;
pub(crate) use connect::{ConnectError, Login, connect, nonce};
pub(crate) use questions::Heard;
pub(crate) use server::{QueryError, Reported, Server};
pub(crate) use verifiers::{VerifierError, Verifiers};
