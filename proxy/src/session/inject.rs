//! What the proxy says to a server on its own account, between the client's messages.

use bytes::BytesMut;

use crate::wire::frontend;

use super::reply::Reply;
use super::statements::Expected;

/// A name that no client gives to a statement.
pub(super) const NOTHING: &str = "\u{1}";

/// The body of a `Parse` that cannot fail: an empty text without parameters.
const NO_QUERY: &[u8] = b"\0\0\0";

pub(super) fn inject_close(name: &str, reply: &mut Reply, out: &mut BytesMut) {
    frontend::put_close_statement(out, name);
    reply.expect(Expected::Close { name: Some(name.to_owned()), injected: true });
}

/// On one server, a transaction that has read is too old to be told its isolation.
pub(super) fn inject_read(reply: &mut Reply, out: &mut BytesMut) {
    frontend::put_parse(out, NOTHING, b"SELECT\0\0\0");
    reply.expect(Expected::Placeholder);
    inject_close(NOTHING, reply, out);
}

pub(super) fn put_placeholder(name: &str, reply: &mut Reply, out: &mut BytesMut) {
    frontend::put_parse(out, name, NO_QUERY);
    reply.expect(Expected::Placeholder);
}
