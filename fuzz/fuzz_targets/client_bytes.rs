//! What clients send: segments are cut out of it and written for servers, which answer them. Nothing of it is
//! lost, doubled or put in another order, and what the proxy puts in between stays between the two.

#![no_main]

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use pgherd_common::NodeId;
use pgherd_proxy::session::{Batch, Event, Known, Reply, Segment, Session, Taken};
use pgherd_proxy::sql::{Facts, Verdict, classify};
use pgherd_proxy::wire::backend::{self, TxStatus};
use pgherd_proxy::wire::frame;

fuzz_target!(|data: &[u8]| {
    let [pace, answers, data @ ..] = data else { return };
    let mut client = Client {
        session: Session::default(),
        servers: [Known::default(), Known::default()],
        segment: Segment::default(),
        seen: vec![],
        answers: *answers,
    };
    let mut input = BytesMut::new();
    for chunk in data.chunks(usize::from(*pace).max(1)) {
        input.extend_from_slice(chunk);
        if !client.take(&mut input) {
            return;
        }
    }
});

struct Client {
    session: Session,
    servers: [Known; 2],
    segment: Segment,
    /// What went into the segment.
    seen: Vec<u8>,
    answers: u8,
}

impl Client {
    /// False at the end of the session.
    fn take(&mut self, input: &mut BytesMut) -> bool {
        let facts = Facts::by_names();
        loop {
            let before = input.clone();
            let judge = |sql: &[u8]| -> Arc<Verdict> { Arc::new(classify(sql, &facts)) };
            let taken = self.session.take(input, &mut self.segment, &judge);
            assert!(before.ends_with(input), "what is left is the end of what there was");
            self.seen.extend_from_slice(&before[..before.len() - input.len()]);
            match taken {
                Ok(Taken::Incomplete) => return true,
                Ok(Taken::Complete) => {}
                // The rest of a large message would come.
                Ok(Taken::Ignored(rest)) => {
                    assert!(input.is_empty() && rest > 0);
                    return false;
                }
                Ok(Taken::Goodbye) | Err(_) => return false,
            }
            let segment = std::mem::take(&mut self.segment);
            let seen = std::mem::take(&mut self.seen);
            assert!(!segment.is_empty());
            if segment.rest > 0 || !self.send(&segment, &seen) {
                return false;
            }
        }
    }

    /// Writes the segment for a server and has it answered.
    fn send(&mut self, segment: &Segment, seen: &[u8]) -> bool {
        self.answers = self.answers.rotate_left(1);
        let known = &mut self.servers[usize::from(self.answers & 1)];
        let mut reply = Reply::new(self.session.is_repeatable(segment));
        let mut sent = BytesMut::new();
        let introduced = self.session.introduce(segment, known);
        drop(frames(&introduced.messages));
        self.session.begin_batch();
        self.session.encode(segment, known, &mut reply, &mut sent);
        let (asked, sent) = (messages(seen), frames(&sent));
        let mut asked = asked.iter().peekable();
        let (mut answer, mut owed) = (BytesMut::new(), String::new());
        for message in &sent {
            let own = asked.peek().is_some_and(|asked| *asked == message);
            if own {
                asked.next();
            }
            let tag = match message[0] {
                b'P' => b'1',
                b'B' => b'2',
                b'C' => b'3',
                b'Q' | b'S' | b'F' => b'Z',
                _ => continue,
            };
            if tag == b'Z' {
                backend::put_ready(&mut answer, TxStatus::Idle);
            } else {
                backend::put_empty(&mut answer, tag);
            }
            // Which of two that are alike is the client's does not matter.
            if own {
                owed.push(char::from(tag));
            }
        }
        assert!(asked.next().is_none(), "all that the client said reaches the server, in its order");
        if !segment.ended {
            return false;
        }
        let got = passed_on(&mut reply, answer, owed.matches('Z').count());
        assert_eq!(got, owed, "the client gets answers to what it asked, and no others");
        let status = if self.answers & 2 == 0 { TxStatus::Idle } else { TxStatus::Open };
        self.session.on_ready(&Batch::of(segment), NodeId(1), status, &mut reply, known);
        let _replayed = self.session.replay(known);
        true
    }
}

/// The tags of what comes through to the client.
fn passed_on(reply: &mut Reply, mut answer: BytesMut, mut readies: usize) -> String {
    let mut got = String::new();
    while readies > 0 {
        match reply.next(&answer).expect("the answer fits") {
            Event::Forward(len) | Event::Hold(len) => {
                got.extend(frames(&answer[..len]).iter().map(|message| char::from(message[0])));
                answer.advance(len);
            }
            Event::Swallow(len) => answer.advance(len),
            Event::Ready { len, .. } => {
                got.push('Z');
                answer.advance(len);
                readies -= 1;
            }
            Event::Release => {}
            other => panic!("{other:?} in an answer without it"),
        }
    }
    got
}

/// What a client said, without the data of a COPY that failed and what flushes nothing.
fn messages(seen: &[u8]) -> Vec<Vec<u8>> {
    let said = frames(seen);
    said.into_iter().skip_while(|message| matches!(message[0], b'd' | b'c' | b'f' | b'H')).collect()
}

fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((header, _)) = frame::message(bytes).expect("whole messages") {
        frames.push(bytes[..header.len].to_vec());
        bytes = &bytes[header.len..];
    }
    assert!(bytes.is_empty(), "whole messages");
    frames
}
