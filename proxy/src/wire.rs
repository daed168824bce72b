//! PostgreSQL's frontend/backend protocol 3.0 as bytes: where messages begin and end, what the few
//! messages say that the proxy looks into, and the messages it makes itself.
//!
//! Knows nothing of sockets or sessions. However the bytes of a stream are cut, the same messages
//! come out.

pub mod backend;
pub mod frame;
pub mod frontend;
pub mod password;
pub mod scram;
pub mod startup;

pub use frame::{BadFrame, Header, Malformed, Reader};
