//! pgherd-proxy: the PostgreSQL endpoint that applications connect to. It sends writes to the primary and
//! reads to standbys, and keeps sessions alive while the primary changes.
//!
//! The pure part (`wire`, `sql`, `session`, `routing`, `topology`, `hba`, `sqlstate`) decides and knows no
//! sockets; the rest (`client`, `pool`, `upstream`, `control`, `driver`, `workers`) moves bytes and decides nothing.
//! No backend is named in the configuration: agents push them.

mod address;
mod admin;
mod client;
mod clients;
pub mod config;
mod control;
mod driver;
pub mod hba;
mod listen;
pub mod memory;
mod pauses;
mod pipe;
mod pool;
pub mod routing;
pub mod session;
mod shared;
pub mod sql;
pub mod sqlstate;
mod tls;
pub mod topology;
mod upstream;
pub mod verdicts;
pub mod wire;
mod workers;

pub use config::Config;
pub use driver::{RunError, run, serve};
pub use listen::SocketError;
pub use tls::TlsError;
pub use upstream::read_facts;
