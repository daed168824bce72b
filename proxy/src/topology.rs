//! What a pushed topology does: whether it is taken, and what it means for connections that are open.
//!
//! Knows neither links nor sockets. Versions never go back.

mod accept;
mod drain;
mod lag;

pub use accept::{Acceptance, accept};
pub use drain::{Fate, Role, fate};
pub use lag::Positions;
