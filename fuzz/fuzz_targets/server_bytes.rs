//! What servers send, in pieces: each event is about bytes that are there, and something is always done.

#![no_main]

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use pgherd_proxy::session::{Event, Known, Reply, Segment, Session};
use pgherd_proxy::sql::{Facts, Verdict, classify};
use pgherd_proxy::wire::{frame, frontend};

fuzz_target!(|data: &[u8]| {
    let [pace, asked, data @ ..] = data else { return };
    let mut reply = Reply::new(asked & 1 == 1);
    ask(&mut reply, asked >> 1);
    let mut input = BytesMut::new();
    for chunk in data.chunks(usize::from(*pace).max(1)) {
        input.extend_from_slice(chunk);
        loop {
            let held_back = reply.is_replaceable();
            let Ok(event) = reply.next(&input) else { return };
            let len = match event {
                Event::Incomplete => break,
                Event::Release => {
                    assert!(held_back && !reply.is_replaceable(), "released once");
                    continue;
                }
                Event::Error { len, .. } => {
                    reply.on_error();
                    len
                }
                Event::Forward(len) | Event::Swallow(len) | Event::Hold(len) | Event::CopyIn(len) => len,
                Event::Parameter { len, .. } | Event::Ready { len, .. } => len,
            };
            assert!(0 < len && len <= input.len(), "{len} of {}", input.len());
            input.advance(len);
        }
    }
});

/// Makes the reply expect the answers to some messages.
fn ask(reply: &mut Reply, times: u8) {
    let mut input = BytesMut::new();
    for _ in 0..times % 5 {
        frontend::put_parse(&mut input, "s", b"SELECT 1\0\0\0");
        frontend::put_close_statement(&mut input, "s");
    }
    frame::put(&mut input, b'S', |_| {});
    let (mut session, mut segment) = (Session::default(), Segment::default());
    let judge = |sql: &[u8]| -> Arc<Verdict> { Arc::new(classify(sql, &Facts::by_names())) };
    session.take(&mut input, &mut segment, &judge).expect("these are messages");
    session.encode(&segment, &mut Known::default(), reply, &mut BytesMut::new());
}
