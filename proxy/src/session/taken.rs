//! What comes of looking at the client's bytes.

use crate::wire::frame::BadFrame;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// More bytes are needed.
    Incomplete,
    /// The segment is to be sent.
    Complete,
    /// The next so many bytes, still to come, are the rest of a message that nobody wants.
    Ignored(usize),
    /// The client says goodbye.
    Goodbye,
}

/// A client that does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// Lengths that cannot be.
    #[error("invalid message length")]
    Frame(#[from] BadFrame),
    /// Contents that cannot be.
    #[error("invalid message format in message {tag:?}", tag = char::from(*.0))]
    Content(u8),
    /// No such message.
    #[error("invalid frontend message type {0}")]
    Tag(u8),
    /// A message that is no data, while data was asked for.
    #[error("unexpected message type 0x{0:02X} during COPY from stdin")]
    InCopy(u8),
}
