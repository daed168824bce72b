use std::collections::BTreeMap;
use std::sync::Arc;

use super::known::LEFT_MAX;
use super::*;
use crate::sql::{Facts, Verdict, classify};
use crate::wire::backend as answer;
use crate::wire::frame;

const NODE: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

/// A session with the connections it has to two nodes.
struct Fixture {
    session: Session,
    known: BTreeMap<NodeId, Known>,
    /// Whether the last batch has written.
    wrote: bool,
}

fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    frontend::put_query(&mut out, sql);
    out
}

fn extended(messages: &[(u8, &[u8])]) -> BytesMut {
    let mut out = BytesMut::new();
    for (tag, payload) in messages {
        frame::put(&mut out, *tag, |out| out.extend_from_slice(payload));
    }
    out
}

fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while let Some((header, _)) = frame::message(bytes).unwrap() {
        tags.push(char::from(header.tag));
        bytes = &bytes[header.len..];
    }
    tags
}

impl Fixture {
    fn new() -> Self {
        let session = Session::default();
        let known = [(NODE, session.fresh()), (OTHER, session.fresh())].into();
        Self { session, known, wrote: false }
    }

    /// The same behind what was sent of a batch before.
    fn take_more(&mut self, input: &mut BytesMut) -> Segment {
        let mut segment = Segment::default();
        segment.under_way = true;
        let judge = |sql: &[u8]| Arc::new(classify(sql, &Facts::by_names()));
        assert_eq!(self.session.take(input, &mut segment, &judge).unwrap(), Taken::Complete);
        segment
    }

    fn take(&mut self, input: &mut BytesMut) -> Segment {
        let mut segment = Segment::default();
        let judge = |sql: &[u8]| Arc::new(classify(sql, &Facts::by_names()));
        assert_eq!(self.session.take(input, &mut segment, &judge).unwrap(), Taken::Complete);
        segment
    }

    /// Sends what is in `input` to `node`, which answers with `answer`. What the server got, and what
    /// the client got.
    fn run(&mut self, node: NodeId, mut input: BytesMut, answer: &[u8]) -> (String, String) {
        let segment = self.take(&mut input);
        let batch = Batch::of(&segment);
        let mut reply = Reply::new(self.session.is_repeatable(&segment));
        let known = self.known.get_mut(&node).unwrap();
        let mut sent = BytesMut::new();
        self.session.begin_batch();
        self.session.encode(&segment, known, &mut reply, &mut sent);
        let (mut at, mut seen, mut held) = (0, Vec::new(), Vec::new());
        loop {
            let left = &answer[at..];
            let taken = match reply.next(left).unwrap() {
                Event::Incomplete => panic!("no ReadyForQuery in the answer"),
                Event::Forward(len) | Event::CopyIn(len) | Event::Parameter { len, .. } => {
                    seen.append(&mut held);
                    seen.extend_from_slice(&left[..len]);
                    len
                }
                Event::Swallow(len) => len,
                Event::Hold(len) => {
                    held.extend_from_slice(&left[..len]);
                    len
                }
                Event::Release => {
                    seen.append(&mut held);
                    0
                }
                Event::Error { len, .. } => {
                    reply.on_error();
                    seen.append(&mut held);
                    seen.extend_from_slice(&left[..len]);
                    len
                }
                Event::Ready { len, status } => {
                    seen.extend_from_slice(&left[..len]);
                    self.wrote = batch.has_written(&reply);
                    self.session.on_ready(&batch, node, status, &mut reply, known);
                    return (tags(&sent), tags(&seen));
                }
            };
            at += taken;
        }
    }

    fn wanted(&mut self, sql: &str) -> Wanted {
        let segment = self.take(&mut query(sql));
        self.session.wanted(&segment)
    }
}

fn done(tag: &str, status: TxStatus) -> BytesMut {
    let mut out = BytesMut::new();
    answer::put_complete(&mut out, tag);
    answer::put_ready(&mut out, status);
    out
}

fn replies(tags: &str, status: TxStatus) -> BytesMut {
    let mut out = BytesMut::new();
    for tag in tags.bytes() {
        match tag {
            b'C' => answer::put_complete(&mut out, "SELECT 1"),
            b'E' => Trouble::Cancelled.response(crate::wire::backend::Severity::Error).put(&mut out),
            other => answer::put_empty(&mut out, other),
        }
    }
    answer::put_ready(&mut out, status);
    out
}

#[test]
fn data_behind_what_may_be_a_copy_is_the_servers_to_judge() {
    let mut fixture = Fixture::new();
    let left_over = extended(&[(b'd', b"left over"), (b'c', b"")]);
    let batch = extended(&[
        (b'P', b"\0COPY t FROM STDIN\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'd', b"1\n"),
        (b'c', b""),
        (b'S', b""),
    ]);
    let mut input = left_over.clone();
    input.extend_from_slice(&batch);
    let segment = fixture.take(&mut input);
    assert_eq!((tags(&segment.bytes), segment.copies_ended()), ("PBEdcS".to_owned(), 1));
    // Within a batch that a server has part of, all of it goes there.
    let mut segment = Segment::default();
    segment.under_way = true;
    let judge = |sql: &[u8]| Arc::new(classify(sql, &Facts::by_names()));
    let taken = fixture.session.take(&mut left_over.clone(), &mut segment, &judge);
    assert_eq!((taken, tags(&segment.bytes)), (Ok(Taken::Incomplete), "dc".to_owned()));
}

#[test]
fn reads_go_to_readers_until_a_transaction_opens() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.wanted("SELECT 1"), Wanted::Reader);
    assert_eq!(fixture.wanted("INSERT INTO t VALUES (1)"), Wanted::Writer);
    assert_eq!(fixture.wanted("SET a.b = 'c'"), Wanted::Any);
    fixture.run(NODE, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    assert_eq!(fixture.wanted("SELECT 1"), Wanted::Stay(NODE));
    fixture.run(NODE, query("COMMIT"), &done("COMMIT", TxStatus::Idle));
    assert_eq!(fixture.wanted("SELECT 1"), Wanted::Reader);
    fixture.run(NODE, query("SELECT pg_advisory_lock(1)"), &done("SELECT 1", TxStatus::Idle));
    assert_eq!(fixture.wanted("SELECT 1"), Wanted::Writer);
}

#[test]
fn only_what_may_mean_a_temporary_table_stays_with_the_primary() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("CREATE TEMP TABLE x (a int)"), &done("CREATE TABLE", TxStatus::Idle));
    assert_eq!(fixture.wanted("SELECT 1"), Wanted::Reader);
    assert_eq!(fixture.wanted("SELECT 'x'"), Wanted::Writer);
    // The catalogs are not known here, so anything may be behind these.
    assert_eq!(fixture.wanted("SELECT a FROM t"), Wanted::Writer);
    let named = extended(&[(b'P', b"s\0SELECT 'x'\0\0\0"), (b'D', b"Ss\0"), (b'S', b"")]);
    let segment = fixture.take(&mut named.clone());
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer);
    fixture.run(NODE, query("DISCARD ALL"), &done("DISCARD ALL", TxStatus::Idle));
    assert_eq!(fixture.wanted("SELECT 'x'"), Wanted::Reader);
}

#[test]
fn only_what_does_no_harm_twice_is_repeatable() {
    let mut fixture = Fixture::new();
    let mut repeatable = |sql: &str| {
        let segment = fixture.take(&mut query(sql));
        fixture.session.is_repeatable(&segment)
    };
    assert!(repeatable("SELECT 1") && repeatable("BEGIN") && repeatable("SET a.b = 'c'"));
    assert!(!repeatable("INSERT INTO t VALUES (1)") && !repeatable("SELECT nextval('s')"));
    assert!(!repeatable("BEGIN; INSERT INTO t VALUES (1)"));
}

const PARSE: (u8, &[u8]) = (b'P', b"s1\0SELECT a FROM t\0\0\0");
const BIND: (u8, &[u8]) = (b'B', b"\0s1\0\0\0\0\0\0\0");
const EXECUTE: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
const SYNC: (u8, &[u8]) = (b'S', b"");

#[test]
fn a_prepared_statement_is_introduced_where_it_is_not_known() {
    let mut fixture = Fixture::new();
    let (sent, seen) = fixture.run(NODE, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PS", "1Z"));
    let batch = || extended(&[BIND, EXECUTE, SYNC]);
    let (sent, seen) = fixture.run(OTHER, batch(), &replies("12C", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PBES", "2CZ"));
    let (sent, seen) = fixture.run(OTHER, batch(), &replies("2C", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("BES", "2CZ"));
    let (sent, _) = fixture.run(NODE, batch(), &replies("2C", TxStatus::Idle));
    assert_eq!(sent, "BES");
}

#[test]
fn a_name_that_means_something_else_now_is_closed_first() {
    let mut fixture = Fixture::new();
    fixture.run(OTHER, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    fixture.run(NODE, extended(&[(b'C', b"Ss1\0"), SYNC]), &replies("3", TxStatus::Idle));
    let (sent, seen) = fixture.run(NODE, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PS", "1Z"));
    let (sent, seen) = fixture.run(OTHER, extended(&[BIND, SYNC]), &replies("2", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("BS", "2Z"), "it means the same again");
    let parse = (b'P', &b"s1\0SELECT 2\0\0\0"[..]);
    fixture.run(NODE, extended(&[(b'C', b"Ss1\0"), parse, SYNC]), &replies("31", TxStatus::Idle));
    let (sent, seen) = fixture.run(OTHER, extended(&[BIND, SYNC]), &replies("312", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("CPBS", "2Z"));
}

#[test]
fn what_was_not_run_frees_no_names() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    let discard = (b'P', &b"\0DISCARD ALL\0\0\0"[..]);
    let bind = (b'B', &b"\0\0\0\0\0\0\0\0"[..]);
    // The portal says each time that it is done, and DISCARD is refused behind it.
    let messages = [BIND, EXECUTE, EXECUTE, EXECUTE, discard, bind, EXECUTE, SYNC];
    fixture.run(NODE, extended(&messages), &replies("2CCC12E", TxStatus::Idle));
    let (sent, _) = fixture.run(NODE, extended(&[BIND, SYNC]), &replies("2", TxStatus::Idle));
    assert_eq!(sent, "BS", "it is still there");
    fixture.run(NODE, extended(&[discard, bind, EXECUTE, SYNC]), &replies("12C", TxStatus::Idle));
    let segment = fixture.take(&mut extended(&[BIND, EXECUTE, SYNC]));
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer, "an unknown statement is no read");
}

#[test]
fn a_failed_parse_defines_nothing() {
    let mut fixture = Fixture::new();
    let (_, seen) = fixture.run(NODE, extended(&[PARSE, BIND, SYNC]), &replies("E", TxStatus::Idle));
    assert_eq!(seen, "EZ");
    let segment = fixture.take(&mut extended(&[BIND, EXECUTE, SYNC]));
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer, "an unknown statement is no read");
}

#[test]
fn settings_reach_the_other_connection_before_its_next_statement() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("SET a.b = 'c'"), &done("SET", TxStatus::Idle));
    assert!(fixture.session.replay(&fixture.known[&NODE]).is_empty());
    assert_eq!(fixture.session.replay(&fixture.known[&OTHER]), ["SET a.b = 'c'"]);
    fixture.run(NODE, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    fixture.run(NODE, query("SET a.d = 'e'"), &done("SET", TxStatus::Open));
    fixture.run(NODE, query("ROLLBACK"), &done("ROLLBACK", TxStatus::Idle));
    assert_eq!(fixture.session.replay(&fixture.known[&OTHER]), ["SET a.b = 'c'"]);
}

#[test]
fn a_session_chooses_what_its_reads_see() {
    let mut fixture = Fixture::new();
    let usual = Consistency::Session;
    assert_eq!(fixture.session.consistency(usual), usual);
    fixture.run(NODE, query("SET pgherd.read_consistency = 'eventual'"), &done("SET", TxStatus::Idle));
    assert_eq!(fixture.session.consistency(usual), Consistency::Eventual);
    fixture.run(NODE, query("SET pgherd.read_consistency TO global"), &done("SET", TxStatus::Idle));
    assert_eq!(fixture.session.consistency(usual), Consistency::Global);
    fixture.run(NODE, query("SET pgherd.read_consistency TO nonsense"), &done("SET", TxStatus::Idle));
    assert_eq!(fixture.session.consistency(usual), usual);
    fixture.run(NODE, query("SET pgherd.read_consistency TO global"), &done("SET", TxStatus::Idle));
    fixture.run(NODE, query("RESET pgherd.read_consistency"), &done("RESET", TxStatus::Idle));
    assert_eq!(fixture.session.consistency(usual), usual);
}

#[test]
fn a_lost_connection_is_told_by_what_was_at_stake() {
    let mut fixture = Fixture::new();
    let server: NodeName = "server1".parse().unwrap();
    let lose = |fixture: &mut Fixture, sql: &str| {
        let segment = fixture.take(&mut query(sql));
        let trouble = fixture.session.trouble_of(&Batch::of(&segment), &server, "gone");
        fixture.session.abandon_tx();
        trouble
    };
    assert!(matches!(lose(&mut fixture, "INSERT INTO t VALUES (1)"), Trouble::OutcomeUnknown { .. }));
    assert!(matches!(lose(&mut fixture, "SELECT 1"), Trouble::RolledBack { transaction: false, .. }));
    let begin = |fixture: &mut Fixture| fixture.run(NODE, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    begin(&mut fixture);
    assert!(matches!(
        lose(&mut fixture, "INSERT INTO t VALUES (1)"),
        Trouble::RolledBack { transaction: true, .. }
    ));
    assert_eq!(fixture.session.status(), TxStatus::Idle);
    begin(&mut fixture);
    assert!(matches!(
        lose(&mut fixture, "ROLLBACK; INSERT INTO t VALUES (1)"),
        Trouble::OutcomeUnknown { .. }
    ));
    begin(&mut fixture);
    assert!(matches!(lose(&mut fixture, "COMMIT"), Trouble::OutcomeUnknown { .. }));

    begin(&mut fixture);
    fixture.session.on_idle_loss(NODE, &server, "gone");
    let rollback = fixture.take(&mut query("ROLLBACK"));
    assert_eq!(fixture.session.take_lost(&rollback), None, "a rollback has nothing left to do");
    begin(&mut fixture);
    fixture.session.on_idle_loss(NODE, &server, "gone");
    let commit = fixture.take(&mut query("COMMIT"));
    assert!(matches!(fixture.session.take_lost(&commit), Some(Trouble::RolledBack { .. })));
}

#[test]
fn a_read_and_a_write_that_failed_have_not_written() {
    let mut fixture = Fixture::new();
    let mut wrote = |input, answer: &[u8]| {
        fixture.run(NODE, input, answer);
        fixture.wrote
    };
    let insert = "INSERT INTO t VALUES (1)";
    assert!(wrote(query(insert), &replies("C", TxStatus::Idle)));
    assert!(!wrote(query(insert), &replies("E", TxStatus::Idle)));
    assert!(!wrote(query("SELECT 1"), &replies("TDC", TxStatus::Idle)));
    assert!(!wrote(query("BEGIN"), &replies("C", TxStatus::Open)));
    assert!(wrote(query(insert), &replies("C", TxStatus::Open)));
    assert!(!wrote(query("ROLLBACK"), &replies("C", TxStatus::Idle)));
    // To prepare it is not to run it.
    let parse = [&b"s\0"[..], insert.as_bytes(), b"\0\0\0"].concat();
    assert!(!wrote(extended(&[(b'P', &parse), (b'S', b"")]), &replies("1", TxStatus::Idle)));
    let bind = b"\0s\0\0\0\0\0\0\0";
    let run = extended(&[(b'B', bind), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
    assert!(wrote(run, &replies("2C", TxStatus::Idle)));
}

#[test]
fn a_beginning_is_held_while_the_answer_could_come_from_elsewhere() {
    let mut reply = Reply::new(true);
    let bytes = replies("2C", TxStatus::Idle);
    assert_eq!(reply.next(&bytes[..5]).unwrap(), Event::Hold(5));
    assert!(reply.is_replaceable());
    assert_eq!(reply.next(&bytes[5..]).unwrap(), Event::Release);
    assert!(!reply.is_replaceable());
    let mut reply = Reply::new(true);
    assert_eq!(reply.next(&bytes).unwrap(), Event::Forward(bytes.len() - 6), "all of it is there");
    assert!(!reply.is_replaceable());
    let mut reply = Reply::new(true);
    assert_eq!(reply.next(&replies("2E", TxStatus::Idle)).unwrap(), Event::Hold(5));
    assert!(reply.is_replaceable(), "it may be an error that another server does not have");
}

#[test]
fn large_rows_pass_piece_by_piece_and_small_ones_whole() {
    let mut bytes = BytesMut::new();
    answer::put_row(&mut bytes, &["x".repeat(10)]);
    let small = bytes.len();
    answer::put_row(&mut bytes, &["x".repeat(3 * LARGE)]);
    let large = bytes.len() - small;
    let mut reply = Reply::new(false);
    assert_eq!(reply.next(&bytes[..small + 100]).unwrap(), Event::Forward(small));
    assert_eq!(reply.next(&bytes[small..small + 100]).unwrap(), Event::Incomplete);
    assert_eq!(reply.next(&bytes[small..small + LARGE]).unwrap(), Event::Forward(LARGE));
    assert!(reply.is_mid_message());
    assert_eq!(reply.next(&bytes[small + LARGE..]).unwrap(), Event::Forward(large - LARGE));
    assert!(!reply.is_mid_message());
}

#[test]
fn a_large_parse_is_passed_on_without_being_kept() {
    let mut fixture = Fixture::new();
    let mut payload = b"s1\0SELECT '".to_vec();
    payload.extend(vec![b'x'; 3 * LARGE]);
    let mut input = extended(&[(b'P', &payload)]);
    input.truncate(LARGE);
    let segment = fixture.take(&mut input);
    assert_eq!((segment.route, segment.rest), (Route::Primary, payload.len() + 5 - LARGE));
    assert!(input.is_empty());
}

#[test]
fn strangers_are_refused() {
    let mut fixture = Fixture::new();
    let judge = |sql: &[u8]| Arc::new(classify(sql, &Facts::by_names()));
    for bad in
        [&b"\0\0\0\0\x04"[..], b"Q\xff\xff\xff\xff", b"Q\0\0\0\x05x", b"B\0\0\0\x06ab", b"DX\0\0\0\x04"]
    {
        let result = fixture.session.take(&mut BytesMut::from(bad), &mut Segment::default(), &judge);
        assert!(result.is_err(), "{bad:?}: {result:?}");
    }
}

const INSERT: (u8, &[u8]) = (b'P', b"\0INSERT INTO t VALUES (1)\0\0\0");
const SELECT: (u8, &[u8]) = (b'P', b"\0SELECT a FROM t\0\0\0");
const BIND_UNNAMED: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");

#[test]
fn a_bind_means_the_statement_of_its_name_at_that_moment() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, extended(&[INSERT, BIND_UNNAMED, EXECUTE, SYNC]), &replies("12C", TxStatus::Idle));
    fixture.run(OTHER, extended(&[SELECT, SYNC]), &replies("1", TxStatus::Idle));
    // The first Bind is about the SELECT, of which the first node knows nothing; the second is not.
    let both = extended(&[BIND_UNNAMED, EXECUTE, INSERT, BIND_UNNAMED, EXECUTE, SYNC]);
    let (sent, seen) = fixture.run(NODE, both, &replies("12C12C", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PBEPBES", "2C12CZ"));
}

#[test]
fn a_name_that_is_taken_is_taken_on_every_server() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    // The server has to have the first one to refuse the second.
    let (sent, seen) = fixture.run(OTHER, extended(&[PARSE, SYNC]), &replies("1E", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PPS", "EZ"));
}

#[test]
fn the_proxy_s_own_answers_do_not_stand_for_others() {
    let mut fixture = Fixture::new();
    let show: (u8, &[u8]) = (b'P', b"\0SHOW NODES\0\0\0");
    let segment = fixture.take(&mut extended(&[show, BIND_UNNAMED, EXECUTE, SYNC]));
    assert!(segment.show.is_some() && !segment.mixed);
    let segment = fixture.take(&mut extended(&[INSERT, BIND_UNNAMED, EXECUTE, show, BIND_UNNAMED, SYNC]));
    assert!(segment.mixed);
    let segment = fixture.take(&mut extended(&[show, BIND_UNNAMED, EXECUTE, INSERT, BIND_UNNAMED, SYNC]));
    assert!(segment.mixed);
}

#[test]
fn a_name_may_be_closed_and_taken_again_at_once() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, extended(&[PARSE, SYNC]), &replies("1", TxStatus::Idle));
    let again = extended(&[(b'C', b"Ss1\0"), PARSE, BIND, SYNC]);
    let (sent, seen) = fixture.run(OTHER, again, &replies("312", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("CPBS", "312Z"));
}

#[test]
fn what_was_read_ahead_outlives_the_part_that_another_server_ran() {
    let mut fixture = Fixture::new();
    let mut read = extended(&[SELECT, BIND_UNNAMED, EXECUTE, (b'H', b"")]);
    let (first, mut reply) = (fixture.take(&mut read), Reply::default());
    let batch = Batch::of(&first);
    let known = fixture.known.get_mut(&OTHER).unwrap();
    fixture.session.begin_batch();
    fixture.session.encode(&first, known, &mut reply, &mut BytesMut::new());
    let second = fixture.take(&mut extended(&[INSERT, BIND_UNNAMED, EXECUTE, (b'H', b"")]));
    let answer = replies("1", TxStatus::Idle);
    assert_eq!(reply.next(&answer).unwrap(), Event::Forward(5));
    let known = fixture.known.get_mut(&OTHER).unwrap();
    fixture.session.on_part_ready(&batch, OTHER, TxStatus::Idle, &mut reply, known);

    let (known, mut sent) = (fixture.known.get_mut(&NODE).unwrap(), BytesMut::new());
    fixture.session.begin_batch();
    fixture.session.encode(&second, known, &mut Reply::default(), &mut sent);
    assert_eq!(tags(&sent), "PBEH", "the Bind is about the INSERT");
    let third = fixture.take(&mut extended(&[BIND_UNNAMED, EXECUTE, SYNC]));
    assert_eq!(third.route, Route::Primary);
}

#[test]
fn a_query_behind_a_failed_parse_waits_for_a_sync() {
    for (answer, skips) in [("E", true), ("13E", false)] {
        let mut fixture = Fixture::new();
        let mut input = extended(&[PARSE]);
        input.extend_from_slice(&query("SELECT 1"));
        let (segment, mut reply) = (fixture.take(&mut input), Reply::new(false));
        let (known, mut sent) = (fixture.known.get_mut(&NODE).unwrap(), BytesMut::new());
        fixture.session.encode(&segment, known, &mut reply, &mut sent);
        assert_eq!(tags(&sent), "PCQ");
        let bytes = replies(answer, TxStatus::Idle);
        let mut at = 0;
        loop {
            match reply.next(&bytes[at..]).unwrap() {
                Event::Forward(len) | Event::Swallow(len) => at += len,
                Event::Error { .. } => break reply.on_error(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reply.skips_to_sync(), skips, "{answer}");
    }
}

/// A connection that another client used last.
fn second_hand(session: &Session) -> Known {
    let mut other = Fixture::new();
    other.session = Session::new(Arc::default(), session.statements.identities.clone());
    other.run(NODE, extended(&[(b'P', b"\0SELECT 2\0\0\0"), (b'S', b"")]), &replies("1", TxStatus::Idle));
    session.fresh().behind_others(other.known[&NODE].clone())
}

#[test]
fn the_unnamed_statement_of_another_client_is_not_found() {
    let mut fixture = Fixture::new();
    fixture.known.insert(NODE, second_hand(&fixture.session));
    let bind = extended(&[(b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
    let (sent, seen) = fixture.run(NODE, bind, &replies("3E", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("CBES", "EZ"));
    // Its own is prepared like on any other connection.
    let parse = extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
    assert_eq!(fixture.run(NODE, parse, &replies("1", TxStatus::Idle)).0, "PS");
    fixture.known.insert(NODE, second_hand(&fixture.session));
    let bind = extended(&[(b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
    let (sent, seen) = fixture.run(NODE, bind, &replies("12C", TxStatus::Idle));
    assert_eq!((sent.as_str(), seen.as_str()), ("PBES", "2CZ"));
}

#[test]
fn what_others_prepared_is_used_where_it_is_the_same() {
    let parse = |name: &str, sql: &str| format!("{name}\0{sql}\0\0\0").into_bytes();
    let bind = || extended(&[(b'B', b"\0s\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
    let identities = Arc::<Identities>::default();
    let prepared = |sql: &str| {
        let mut fixture = Fixture::new();
        fixture.session = Session::new(Arc::default(), identities.clone());
        let named = extended(&[(b'P', &parse("s", sql)), (b'S', b"")]);
        fixture.run(NODE, named, &replies("1", TxStatus::Idle));
        fixture
    };
    let one = prepared("SELECT 1");
    assert!(one.known[&NODE].is_clean());
    let today = prepared("SELECT date 'today'");
    for (one, sql, answer, expected) in [
        (&one, "SELECT 1", "2C", "BES"),
        (&one, "SELECT 2", "312C", "CPBES"),
        (&today, "SELECT date 'today'", "312C", "CPBES"),
    ] {
        let mut other = prepared(sql);
        other.known.insert(OTHER, other.session.fresh().behind_others(one.known[&NODE].clone()));
        assert_eq!(other.run(OTHER, bind(), &replies(answer, TxStatus::Idle)).0, expected, "{sql}");
        // Whoever prepares prepares.
        let anew = extended(&[(b'C', b"Ss\0"), (b'P', &parse("s", sql)), (b'S', b"")]);
        assert_eq!(other.run(OTHER, anew, &replies("31", TxStatus::Idle)).0, "CPS", "{sql}");
    }
    for before in [
        &["SET a.b = 'c'"][..],
        &["BEGIN", "SET LOCAL DateStyle = 'German'"],
        &["BEGIN", "ALTER TABLE t ADD b int"],
        &["ALTER TABLE t ADD b int"],
    ] {
        let mut other = Fixture::new();
        other.session = Session::new(Arc::default(), identities.clone());
        let status = if before.len() > 1 { TxStatus::Open } else { TxStatus::Idle };
        for sql in before {
            other.run(NODE, query(sql), &done("", status));
        }
        let named = extended(&[(b'P', &parse("s", "SELECT 1")), (b'S', b"")]);
        other.run(NODE, named, &replies("1", status));
        other.run(NODE, query("COMMIT"), &done("COMMIT", TxStatus::Idle));
        other.known.insert(OTHER, other.session.fresh().behind_others(one.known[&NODE].clone()));
        let sent = other.run(OTHER, bind(), &replies("312C", TxStatus::Idle)).0;
        assert_eq!(sent, "CPBES", "{before:?}");
    }
}

/// A session that prepared `s`, and a connection on which another one has prepared something else under that name.
fn beside_another(sql: &str) -> Fixture {
    let mut fixture = Fixture::new();
    let mut other = Fixture::new();
    other.session = Session::new(Arc::default(), fixture.session.statements.identities.clone());
    let named = |sql: &str| extended(&[(b'P', format!("s\0{sql}\0\0\0").as_bytes()), (b'S', b"")]);
    other.run(NODE, named("SELECT 'of another'"), &replies("1", TxStatus::Idle));
    fixture.run(NODE, named(sql), &replies("1", TxStatus::Idle));
    let there = fixture.session.fresh().behind_others(other.known[&NODE].clone());
    fixture.known.insert(OTHER, there);
    fixture
}

const BIND_S: (u8, &[u8]) = (b'B', b"\0s\0\0\0\0\0\0\0");

#[test]
fn nobody_runs_what_another_client_prepared() {
    // Too large to be prepared elsewhere: it is no more, and nothing else is in its place.
    let mut fixture = beside_another("SELECT 1");
    let verdict = Arc::new(Verdict::plain(Route::Read));
    let large = fixture.session.statements.announce("s", None, (verdict, None), None, false);
    fixture.session.statements.confirm("s".to_owned(), large);
    fixture.session.statements.forget_pending();
    let (sent, _) = fixture.run(OTHER, extended(&[BIND_S, SYNC]), &replies("3E", TxStatus::Idle));
    assert_eq!(sent, "CBS");
    // By SQL, and too late to be prepared.
    let mut fixture = beside_another("SELECT 1");
    fixture.session.statements.note_prepared("s", "PREPARE s AS SELECT 1", false, None);
    let (sent, _) = fixture.run(OTHER, extended(&[BIND_S, SYNC]), &replies("3E", TxStatus::Idle));
    assert_eq!(sent, "CBS");
    // What ends a failed transaction can be prepared in it.
    let mut fixture = beside_another("ROLLBACK");
    fixture.run(OTHER, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    fixture.run(OTHER, query("SELECT 1/0"), &done("", TxStatus::Failed));
    let (sent, seen) = fixture.run(OTHER, extended(&[BIND_S, SYNC]), &replies("312", TxStatus::Failed));
    assert_eq!((sent.as_str(), seen.as_str()), ("CPBS", "2Z"));
}

#[test]
fn what_is_prepared_under_local_settings_stays_with_its_client() {
    let mut fixture = beside_another("SELECT 1");
    fixture.run(OTHER, query("BEGIN READ ONLY"), &done("BEGIN", TxStatus::Open));
    fixture.run(OTHER, query("SET LOCAL DateStyle = 'German'"), &done("SET", TxStatus::Open));
    assert!(fixture.known[&OTHER].is_clean());
    fixture.run(OTHER, extended(&[BIND_S, SYNC]), &replies("312", TxStatus::Open));
    assert!(!fixture.known[&OTHER].is_clean());
}

#[test]
fn what_others_prepared_is_not_found_behind_the_end_of_a_failed_transaction() {
    for (text, told) in [
        ("ROLLBACK TO a; EXECUTE s", "CPS"),
        ("ABORT; EXECUTE s", "CPS"),
        // Nothing can be prepared: what comes first is not known to be run.
        ("ROLLBACK TO \"A\"; EXECUTE s", "CS"),
        ("EXECUTE s", "CS"),
    ] {
        let mut fixture = beside_another("SELECT 1");
        fixture.run(OTHER, query("BEGIN"), &done("BEGIN", TxStatus::Open));
        fixture.run(OTHER, query("SELECT 1/0"), &done("", TxStatus::Failed));
        let segment = fixture.take(&mut query(text));
        let introductions = fixture.session.introduce(&segment, fixture.known.get_mut(&OTHER).unwrap());
        assert_eq!(tags(&introductions.messages), told, "{text}");
    }
    // What the server did not come to has closed nothing.
    let mut fixture = beside_another("SELECT 1");
    fixture.run(OTHER, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    let batch = extended(&[(b'P', b"\0SELEKT\0\0\0"), BIND_S, SYNC]);
    assert_eq!(fixture.run(OTHER, batch, &replies("E", TxStatus::Failed)).0, "PCPBS");
    let segment = fixture.take(&mut query("ABORT/**/; EXECUTE s"));
    let introductions = fixture.session.introduce(&segment, fixture.known.get_mut(&OTHER).unwrap());
    assert_eq!(tags(&introductions.messages), "CS");
}

#[test]
fn what_others_prepared_is_not_shown_behind_a_flush() {
    let mut fixture = beside_another("SELECT 1");
    let parse = (b'P', &b"\0SELECT * FROM pg_prepared_statements\0\0\0"[..]);
    let segment = fixture.take_more(&mut extended(&[parse, (b'B', b"\0\0\0\0\0\0\0\0"), EXECUTE, SYNC]));
    let (mut reply, mut sent) = (Reply::new(false), BytesMut::new());
    let known = fixture.known.get_mut(&OTHER).unwrap();
    fixture.session.encode(&segment, known, &mut reply, &mut sent);
    assert_eq!(tags(&sent), "CPBES");
}

#[test]
fn what_a_batch_prepared_anew_is_not_closed_as_another_s_behind_a_flush() {
    let mut fixture = beside_another("SELECT 1");
    let first = fixture.take(&mut extended(&[(b'C', b"Ss\0"), (b'P', b"s\0SELECT 2\0\0\0"), (b'H', b"")]));
    let parse = (b'P', &b"\0SELECT * FROM pg_prepared_statements\0\0\0"[..]);
    let more = fixture.take_more(&mut extended(&[parse, (b'B', b"\0\0\0\0\0\0\0\0"), EXECUTE, SYNC]));
    let (mut reply, mut sent) = (Reply::new(false), BytesMut::new());
    let known = fixture.known.get_mut(&OTHER).unwrap();
    fixture.session.begin_batch();
    fixture.session.encode(&first, known, &mut reply, &mut sent);
    fixture.session.encode(&more, known, &mut reply, &mut sent);
    assert_eq!(tags(&sent), "CPHPBES");
}

#[test]
fn a_connection_with_an_uncertain_name_is_emptied() {
    let mut fixture = beside_another("SELECT 1");
    let known = fixture.known.get_mut(&OTHER).unwrap();
    assert!(known.is_clean());
    known.statements.insert(String::new(), None);
    assert!(known.is_clean(), "the unnamed one is replaced by each who uses it");
    known.statements.insert("s".to_owned(), None);
    assert!(!known.is_clean());
}

#[test]
fn a_connection_that_many_prepared_on_is_emptied() {
    let mut fixture = Fixture::new();
    for number in 0..LEFT_MAX {
        assert!(fixture.known[&NODE].is_clean());
        let body = format!("s{number}\0SELECT 1\0\0\0");
        let named = extended(&[(b'P', body.as_bytes()), (b'S', b"")]);
        fixture.run(NODE, named, &replies("1", TxStatus::Idle));
    }
    fixture.run(NODE, extended(&[(b'P', b"t\0SELECT 1\0\0\0"), (b'S', b"")]), &replies("1", TxStatus::Idle));
    assert!(!fixture.known[&NODE].is_clean());
}

#[test]
fn reads_leave_a_connection_clean_and_nothing_else_does() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("SELECT 1"), &done("SELECT 1", TxStatus::Idle));
    let unnamed = extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
    fixture.run(NODE, unnamed, &replies("1", TxStatus::Idle));
    assert!(fixture.known[&NODE].is_clean());
    for sql in ["BEGIN", "SAVEPOINT a", "ROLLBACK TO a", "COMMIT", "ABORT", "SET LOCAL a = 1"] {
        fixture.run(NODE, query(sql), &done("", TxStatus::Idle));
        assert!(fixture.known[&NODE].is_clean(), "{sql}");
    }
    for sql in ["SET a.b = 'c'", "INSERT INTO t VALUES (1)", "BEGIN; SELECT f()", "SELECT f()"] {
        let mut fixture = Fixture::new();
        fixture.run(NODE, query(sql), &done("", TxStatus::Idle));
        assert!(!fixture.known[&NODE].is_clean(), "{sql}");
    }
    // What is set again there is there.
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("SET a.b = 'c'"), &done("SET", TxStatus::Idle));
    let mut other = fixture.session.fresh();
    assert!(other.is_clean());
    fixture.session.on_replayed(&mut other);
    assert!(!other.is_clean());
}

#[test]
fn what_sql_prepared_is_prepared_again_where_it_is_used() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("PREPARE p AS SELECT 1"), &done("PREPARE", TxStatus::Idle));
    assert!(!fixture.session.is_kept());
    let segment = fixture.take(&mut query("EXECUTE p"));
    let mut there = fixture.known[&NODE].clone();
    assert!(fixture.session.introduce(&segment, &mut there).by_sql.is_empty());
    let mut other = fixture.session.fresh();
    let introductions = fixture.session.introduce(&segment, &mut other);
    let texts: Vec<_> = introductions.by_sql.iter().filter_map(Introduction::sql).collect();
    assert_eq!((texts, tags(&introductions.messages)), (vec!["PREPARE p AS SELECT 1"], String::new()));
    other.learn(&introductions.by_sql[0]);
    assert!(fixture.session.introduce(&segment, &mut other).by_sql.is_empty());
    // Once it is gone for the session, it is to be gone everywhere.
    fixture.run(NODE, query("DEALLOCATE p"), &done("DEALLOCATE", TxStatus::Idle));
    let introductions = fixture.session.introduce(&segment, &mut other);
    assert_eq!((introductions.by_sql.len(), tags(&introductions.messages).as_str()), (0, "CS"));
    // In a failed transaction nothing can be prepared.
    fixture.run(NODE, query("PREPARE p AS SELECT 2"), &done("PREPARE", TxStatus::Idle));
    fixture.run(NODE, query("BEGIN"), &done("BEGIN", TxStatus::Failed));
    let introductions = fixture.session.introduce(&segment, &mut fixture.session.fresh());
    assert!(introductions.by_sql.is_empty() && introductions.messages.is_empty());
}

#[test]
fn what_only_one_connection_has_is_kept_until_it_is_discarded() {
    for (sql, pinned) in [
        ("LISTEN a", false),
        ("SELECT 1; PREPARE a AS SELECT 1", false),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", false),
        ("SELECT lastval()", false),
        ("CREATE TEMP TABLE x (a int)", false),
        ("SELECT pg_advisory_lock(1)", true),
        ("DO 'BEGIN END'", true),
        ("LOAD 'x'", true),
    ] {
        let mut fixture = Fixture::new();
        fixture.run(NODE, query(sql), &done("", TxStatus::Idle));
        assert!(fixture.session.is_kept(), "{sql}");
        assert_eq!(fixture.session.is_pinned(), pinned, "{sql}");
        let lost = ["LISTEN", "CURSOR", "TEMP", "advisory"].iter().any(|word| sql.contains(word));
        assert_eq!(fixture.session.why_unmovable().is_some(), lost, "{sql}");
        fixture.run(NODE, query("DISCARD ALL"), &done("DISCARD ALL", TxStatus::Idle));
        assert!(!fixture.session.is_kept(), "{sql}");
        assert_eq!(fixture.session.why_unmovable(), None, "{sql}");
    }
    let mut fixture = Fixture::new();
    for sql in
        ["SET work_mem = '1MB'", "INSERT INTO t VALUES (1)", "DECLARE c CURSOR FOR SELECT 1", "NOTIFY a"]
    {
        fixture.run(NODE, query(sql), &done("", TxStatus::Idle));
        assert!(!fixture.session.is_kept(), "{sql}");
    }
}

#[test]
fn data_that_comes_with_its_copy_is_kept_and_that_of_one_that_failed_is_not() {
    let mut fixture = Fixture::new();
    let copy: &[(u8, &[u8])] = &[
        (b'd', b"left over"),
        (b'P', b"\0COPY t FROM STDIN\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'd', b"1\n"),
        (b'c', b""),
        (b'S', b""),
    ];
    let segment = fixture.take(&mut extended(copy));
    assert_eq!((tags(&segment.bytes).as_str(), segment.copies_ended()), ("PBEdcS", 1));
    let flushed = fixture.take(&mut extended(&[(b'P', b"\0COPY t FROM STDIN\0\0\0"), (b'H', b"")]));
    assert_eq!((tags(&flushed.bytes).as_str(), flushed.copies_ended()), ("PH", 0));
    let rest = fixture.take_more(&mut extended(&[(b'd', b"1\n"), (b'f', b"no\0"), (b'S', b"")]));
    assert_eq!((tags(&rest.bytes).as_str(), rest.copies_ended()), ("dfS", 1));
}

#[test]
fn a_portal_that_is_used_later_in_the_batch_is_bound_where_all_else_can_follow() {
    let mut fixture = Fixture::new();
    let parse: (u8, &[u8]) = (b'P', b"\0SELECT 1\0\0\0");
    let bind: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
    let [all, some]: [(u8, &[u8]); 2] = [(b'E', b"\0\0\0\0\0"), (b'E', b"\0\0\0\0\x05")];
    let [flush, sync]: [(u8, &[u8]); 2] = [(b'H', b""), (b'S', b"")];
    for (messages, wanted) in [
        (vec![parse, bind, flush], Wanted::Writer),
        (vec![parse, bind, some, flush], Wanted::Writer),
        (vec![parse, bind, some, sync], Wanted::Reader),
        (vec![parse, bind, all, flush], Wanted::Reader),
        (vec![parse, flush], Wanted::Reader),
    ] {
        let segment = fixture.take(&mut extended(&messages));
        assert_eq!(fixture.session.wanted(&segment), wanted, "{messages:?}");
    }
    let mut large = extended(&[parse, (b'B', [b"\0\0".as_slice(), &[0; LARGE]].concat().as_slice())]);
    large.truncate(LARGE + 20);
    let segment = fixture.take(&mut large);
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer, "the rest of it may use the portal");
}

#[test]
fn sql_does_not_find_a_statement_that_was_closed_on_another_server() {
    let mut fixture = Fixture::new();
    let prepare: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT 1\0\0\0"), (b'S', b"")];
    let mut answer = BytesMut::new();
    answer::put_empty(&mut answer, b'1');
    answer::put_ready(&mut answer, TxStatus::Idle);
    fixture.run(NODE, extended(prepare), &answer);
    let mut answer = BytesMut::new();
    answer::put_empty(&mut answer, b'3');
    answer::put_ready(&mut answer, TxStatus::Idle);
    fixture.run(OTHER, extended(&[(b'C', b"Sp0\0"), (b'S', b"")]), &answer);
    for (node, sent) in [(NODE, "CS"), (NODE, ""), (OTHER, "")] {
        let segment = fixture.take(&mut query("EXECUTE p0"));
        let known = fixture.known.get_mut(&node).unwrap();
        assert_eq!(tags(&fixture.session.introduce(&segment, known).messages), sent);
    }
}

/// What the proxy sends in front of a `Bind` of the unnamed statement after `batch` was answered like this.
fn before_bind(batch: &[(u8, &[u8])], answers: &[u8]) -> String {
    let mut fixture = Fixture::new();
    let prepared = replies("1", TxStatus::Idle);
    fixture.run(NODE, extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]), &prepared);
    let told = replies(std::str::from_utf8(answers).unwrap(), TxStatus::Idle);
    fixture.run(NODE, extended(batch), &told);
    let segment = fixture.take(&mut extended(&[(b'B', b"\0\0\0\0\0\0\0\0"), (b'S', b"")]));
    let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
    fixture.session.begin_batch();
    fixture.session.encode(&segment, &mut Known::default(), &mut reply, &mut out);
    tags(&out)
}

#[test]
fn the_unnamed_statement_goes_when_its_successor_fails_and_with_a_query() {
    let [parse, bind, sync]: [(u8, &[u8]); 3] =
        [(b'P', b"\0SELECT 2\0\0\0"), (b'B', b"\0\0\0\0\0\0\0\0"), (b'S', b"")];
    assert_eq!(before_bind(&[parse, sync], b"1"), "PBS", "another connection is told of it");
    assert_eq!(before_bind(&[parse, sync], b"E"), "BS");
    assert_eq!(before_bind(&[bind, parse, sync], b"2E"), "BS");
    assert_eq!(before_bind(&[bind, parse, sync], b"E"), "PBS", "the second was never looked at");
    assert_eq!(before_bind(&[parse, (b'Q', b"SELECT 3\0")], b"13C"), "BS");
}

#[test]
fn a_query_that_is_passed_over_takes_no_statement_with_it() {
    let fails: &[(u8, &[u8])] = &[(b'E', b"\0\0\0\0\0"), (b'Q', b"SELECT 3\0")];
    assert_eq!(before_bind(fails, b"E"), "PBS", "it was not run");
}

#[test]
fn what_stood_in_for_a_name_gives_way_to_the_statement_behind_the_end_of_the_transaction() {
    let mut fixture = with_p0();
    fixture.run(OTHER, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    let again = extended(&[(b'P', b"p0\0SELECT b FROM t\0\0\0"), SYNC]);
    assert_eq!(fixture.run(OTHER, again, &replies("1E", TxStatus::Failed)).0, "PPS");
    let commit = [(b'P', &b"\0COMMIT\0\0\0"[..]), (b'B', b"\0\0\0\0\0\0\0\0"), EXECUTE];
    let bind = (b'B', &b"\0p0\0\0\0\0\0\0\0"[..]);
    let batch = extended(&[&commit[..], &[bind, EXECUTE, SYNC]].concat());
    assert_eq!(fixture.run(OTHER, batch, &replies("12C312C", TxStatus::Idle)).0, "PBECPBES");
}

/// A session that has prepared `p0` on one of its connections.
fn with_p0() -> Fixture {
    let mut fixture = Fixture::new();
    let prepare: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT a FROM t\0\0\0"), (b'S', b"")];
    fixture.run(NODE, extended(prepare), &replies("1", TxStatus::Idle));
    fixture
}

#[test]
fn a_name_in_use_is_taken_everywhere_whatever_it_stands_for() {
    let again: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT b FROM t\0\0\0"), (b'S', b"")];
    for (node, sent) in [(NODE, "PS"), (OTHER, "PPS")] {
        let mut fixture = with_p0();
        let segment = fixture.take(&mut extended(again));
        let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
        fixture.session.encode(&segment, fixture.known.get_mut(&node).unwrap(), &mut reply, &mut out);
        assert_eq!(tags(&out), sent);
        // What stands in for it may not fail because of what its text names.
        assert!(node == NODE || out[5..].starts_with(b"p0\0\0\0\0"));
    }
}

#[test]
fn what_was_closed_where_the_answer_is_not_wanted_is_not_there_any_more() {
    let mut fixture = with_p0();
    let again: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT b FROM t\0\0\0"), (b'S', b"")];
    let close: &[(u8, &[u8])] = &[(b'C', b"Sp0\0"), again[0], again[1]];
    let segment = fixture.take(&mut extended(close));
    let (mut reply, mut out) = (Reply::new(true), BytesMut::new());
    let known = fixture.known.get_mut(&NODE).unwrap();
    fixture.session.encode(&segment, known, &mut reply, &mut out);
    assert_eq!(reply.next(&replies("3E", TxStatus::Idle)).unwrap(), Event::Hold(5));
    reply.on_error();
    fixture.session.on_withdrawn(&mut reply, known);
    fixture.run(OTHER, extended(close), &replies("31", TxStatus::Idle));
    let segment = fixture.take(&mut extended(again));
    let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
    fixture.session.encode(&segment, fixture.known.get_mut(&NODE).unwrap(), &mut reply, &mut out);
    assert_eq!(tags(&out), "PPS", "its name is taken there, too");
}

#[test]
fn what_is_discarded_to_follow_the_session_is_not_there_any_more() {
    let mut fixture = with_p0();
    let again: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT b FROM t\0\0\0"), (b'S', b"")];
    fixture.run(OTHER, extended(&[(b'D', b"Sp0\0"), (b'S', b"")]), &replies("1tT", TxStatus::Idle));
    fixture.run(NODE, query("DISCARD ALL"), &done("DISCARD ALL", TxStatus::Idle));
    let mut other = fixture.known[&OTHER].clone();
    assert_eq!(fixture.session.replay(&other), ["DISCARD ALL"]);
    fixture.session.on_replayed(&mut other);
    fixture.run(NODE, extended(again), &replies("1", TxStatus::Idle));
    let segment = fixture.take(&mut extended(again));
    let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
    fixture.session.encode(&segment, &mut other, &mut reply, &mut out);
    assert_eq!(tags(&out), "PPS", "its name is taken there, too");
}

#[test]
fn what_is_freed_in_a_batch_is_not_put_back_behind_that() {
    let bind: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
    let execute: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
    for (text, sent) in [("DEALLOCATE ALL", "PBEPS"), ("DEALLOCATE p0", "PBEPS"), ("DEALLOCATE p1", "PBEPPS")]
    {
        let mut fixture = with_p0();
        let free = format!("\0{text}\0\0\0");
        let batch =
            [(b'P', free.as_bytes()), bind, execute, (b'P', b"p0\0SELECT b FROM t\0\0\0"), (b'S', b"")];
        let segment = fixture.take(&mut extended(&batch));
        let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
        fixture.session.encode(&segment, fixture.known.get_mut(&OTHER).unwrap(), &mut reply, &mut out);
        assert_eq!(tags(&out), sent, "{text}");
    }
}

#[test]
fn what_was_prepared_again_and_freed_in_one_batch_is_gone() {
    let batch: [(u8, &[u8]); 6] = [
        (b'B', b"\0p0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'P', b"\0DEALLOCATE ALL\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'S', b""),
    ];
    let mut fixture = with_p0();
    let (sent, _) = fixture.run(OTHER, extended(&batch), &replies("12C12C", TxStatus::Idle));
    assert_eq!(sent, "PBEPBES");
    let again: &[(u8, &[u8])] = &[(b'P', b"p0\0SELECT b FROM t\0\0\0"), (b'S', b"")];
    for node in [NODE, OTHER] {
        let segment = fixture.take(&mut extended(again));
        let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
        fixture.session.encode(&segment, fixture.known.get_mut(&node).unwrap(), &mut reply, &mut out);
        // At most closed before, and no placeholder for a name that is taken.
        assert_eq!(tags(&out), "CPS", "{node:?}");
        fixture.session.pass_over();
    }
}

#[test]
fn what_is_described_in_front_of_a_beginning_is_prepared_before_it() {
    let begin: [(u8, &[u8]); 3] = [
        (b'P', b"\0BEGIN ISOLATION LEVEL SERIALIZABLE\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
    ];
    let [describe, sync]: [(u8, &[u8]); 2] = [(b'D', b"Sp0\0"), (b'S', b"")];
    let flush: (u8, &[u8]) = (b'H', b"");
    for (batch, introduced) in [
        (vec![flush, describe, begin[0], begin[1], begin[2], sync], "CPS"),
        (vec![describe, begin[0], begin[1], begin[2], sync], "CPS"),
        (vec![(b'C', b"Sp0\0".as_slice()), describe, begin[0], begin[1], begin[2], sync], ""),
        (vec![describe, sync], ""),
    ] {
        let mut fixture = with_p0();
        let segment = fixture.take(&mut extended(&batch));
        let known = fixture.known.get_mut(&OTHER).unwrap();
        let introductions = fixture.session.introduce(&segment, known);
        assert_eq!(tags(&introductions.messages), introduced);
        known.doubt(&introductions);
        let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
        fixture.session.encode(&segment, known, &mut reply, &mut out);
        assert_eq!(
            tags(&out).contains("CPD"),
            introduced == "CPS",
            "if it was refused, it is prepared again"
        );
    }
}

#[test]
fn what_a_failed_batch_did_for_good_is_left_to_its_server() {
    let run_simply = |text: &str, completed: &str| {
        let mut fixture = with_p0();
        fixture.run(NODE, query(text), &replies(completed, TxStatus::Idle));
        fixture.session.is_pinned()
    };
    assert!(run_simply("DEALLOCATE ALL; SELECT 1; SELEKT 2", "CE"));
    assert!(!run_simply("SELECT 1; SELECT 1/0; DEALLOCATE ALL", "CE"), "it was not run");
    assert!(!run_simply("SELECT 1; SELECT 1/0; TABLE t ORDER BY 1; DEALLOCATE ALL", "CE"), "nor here");
    let run = |texts: &[&str], completed: usize| {
        let mut fixture = with_p0();
        let mut batch: Vec<(u8, Vec<u8>)> = vec![];
        let mut answer = BytesMut::new();
        for (at, text) in texts.iter().enumerate() {
            batch.push((b'P', format!("\0{text}\0\0\0").into_bytes()));
            batch.push((b'B', vec![0; 8]));
            batch.push((b'E', vec![0; 5]));
            if at < completed {
                answer::put_empty(&mut answer, b'1');
                answer::put_empty(&mut answer, b'2');
                answer::put_complete(&mut answer, "DONE");
            }
        }
        batch.push((b'S', vec![]));
        Trouble::Cancelled.response(answer::Severity::Error).put(&mut answer);
        answer::put_ready(&mut answer, TxStatus::Idle);
        let batch: Vec<(u8, &[u8])> = batch.iter().map(|(tag, payload)| (*tag, payload.as_slice())).collect();
        fixture.run(NODE, extended(&batch), &answer);
        fixture.session.is_pinned()
    };
    assert!(run(&["DISCARD ALL", "SELECT 1"], 1), "it is not undone");
    assert!(!run(&["SELECT 1", "SELECT 2", "DEALLOCATE ALL"], 1), "it was not run");
    assert!(!run(&["DISCARD ALL", "SELECT 1"], 0), "it failed itself");
    assert!(run(&["BEGIN", "SET search_path = a", "COMMIT", "SELECT 1"], 3));
    assert!(!run(&["INSERT INTO t VALUES (1)", "COMMIT", "SELECT 1"], 2), "no setting is in doubt");
    assert!(!run(&["SET search_path = a", "SELECT 1"], 1), "it is undone");
}

#[test]
fn settings_behind_the_end_of_a_failed_transaction_stay() {
    let mut fixture = Fixture::new();
    fixture.run(NODE, query("BEGIN"), &done("BEGIN", TxStatus::Open));
    fixture.run(NODE, query("SET search_path = lost"), &done("SET", TxStatus::Open));
    fixture.run(NODE, query("SELECT 1/0"), &replies("E", TxStatus::Failed));
    fixture.run(NODE, query("ROLLBACK; SET work_mem = '5MB'"), &replies("CC", TxStatus::Idle));
    assert_eq!(fixture.session.replay(&fixture.known[&OTHER]), ["SET work_mem = '5MB'"]);
}

#[test]
fn what_was_to_be_closed_and_was_not_is_closed_the_next_time() {
    let mut fixture = with_p0();
    fixture.run(OTHER, extended(&[(b'C', b"Sp0\0"), (b'S', b"")]), &replies("3", TxStatus::Idle));
    let describe: &[(u8, &[u8])] = &[(b'P', b"\0nonsense\0\0\0"), (b'D', b"Sp0\0"), (b'S', b"")];
    for _ in 0..2 {
        assert_eq!(fixture.run(NODE, extended(describe), &replies("E", TxStatus::Idle)).0, "PCDS");
    }
}

#[test]
fn a_named_portal_stays_where_the_rest_of_the_batch_may_want_it() {
    let mut fixture = Fixture::new();
    let parse: (u8, &[u8]) = (b'P', b"\0SELECT 1\0\0\0");
    let bind: (u8, &[u8]) = (b'B', b"a\0\0\0\0\0\0\0\0");
    let execute: (u8, &[u8]) = (b'E', b"a\0\0\0\0\0");
    for (last, wanted) in [(b'H', Wanted::Writer), (b'S', Wanted::Reader)] {
        let segment = fixture.take(&mut extended(&[parse, bind, execute, (last, b"")]));
        assert_eq!(fixture.session.wanted(&segment), wanted);
    }
}

#[test]
fn what_is_prepared_behind_what_frees_all_is_there_though_the_batch_fails() {
    let mut fixture = with_p0();
    let batch: &[(u8, &[u8])] = &[
        (b'P', b"\0DISCARD ALL\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'P', b"p1\0SELECT 1\0\0\0"),
        (b'B', b"\0p1\0\0\0\0\x01\0\0\0\0"),
        (b'S', b""),
    ];
    fixture.run(NODE, extended(batch), &replies("12C1E", TxStatus::Idle));
    for (name, sent) in [("p0", "CBS"), ("p1", "BS")] {
        let bind = format!("\0{name}\0\0\0\0\0\0\0");
        let answer = replies(if name == "p0" { "E" } else { "2" }, TxStatus::Idle);
        assert_eq!(fixture.run(NODE, extended(&[(b'B', bind.as_bytes()), (b'S', b"")]), &answer).0, sent);
    }
}

#[test]
fn what_stands_in_for_a_portal_is_found_by_nobody_who_could_use_it() {
    let read = |portal: &str| {
        let bind = format!("{portal}\0\0\0\0\0\0\0\0");
        extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'B', bind.as_bytes()), EXECUTE, SYNC])
    };
    let describe = || extended(&[(b'D', b"P\0"), SYNC]);
    for (before, answer, lacks) in
        [(read(""), "12C", true), (read("a"), "12C", false), (query("SELECT 1"), "C", false)]
    {
        let mut fixture = Fixture::new();
        fixture.run(NODE, query("BEGIN READ ONLY"), &done("BEGIN", TxStatus::Open));
        fixture.run(NODE, before, &replies(answer, TxStatus::Open));
        assert_eq!(fixture.session.lacks_portal(), lacks);
    }
    for (status, sent) in [(TxStatus::Open, "CDS"), (TxStatus::Failed, "DS")] {
        let mut fixture = Fixture::new();
        fixture.run(NODE, query("BEGIN READ ONLY"), &done("BEGIN", TxStatus::Open));
        fixture.run(NODE, read(""), &replies("12C", TxStatus::Open));
        fixture.session.detach_tx();
        fixture.session.stand_in();
        fixture.session.attach_tx(OTHER);
        let close = extended(&[(b'C', b"Sgone\0"), SYNC]);
        fixture.run(OTHER, close, &replies(if status == TxStatus::Open { "3" } else { "E" }, status));
        let answer = replies(if status == TxStatus::Open { "3E" } else { "E" }, TxStatus::Failed);
        assert_eq!(fixture.run(OTHER, describe(), &answer).0, sent);
        fixture.run(OTHER, query("ROLLBACK"), &done("ROLLBACK", TxStatus::Idle));
        assert!(!fixture.session.lacks_portal());
    }
    let mut fixture = Fixture::new();
    fixture.session.attach_tx(OTHER);
    fixture.session.stand_in();
    fixture.run(OTHER, read(""), &replies("12C", TxStatus::Open));
    assert_eq!(fixture.run(OTHER, describe(), &replies("T", TxStatus::Open)).0, "DS", "it has its own now");
}

#[test]
fn what_stands_in_for_a_portal_is_not_found_behind_a_flush_either() {
    let read = || extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'B', b"\0\0\0\0\0\0\0\0"), EXECUTE, (b'H', b"")]);
    for (before, sent) in [(None, "CES"), (Some(read()), "PBEHES")] {
        let mut fixture = Fixture::new();
        fixture.session.attach_tx(OTHER);
        fixture.session.stand_in();
        fixture.session.begin_batch();
        let (mut reply, mut out) = (Reply::new(false), BytesMut::new());
        let known = &mut fixture.known.get_mut(&OTHER).unwrap().clone();
        if let Some(mut before) = before {
            let segment = fixture.take(&mut before);
            fixture.session.encode(&segment, known, &mut reply, &mut out);
        }
        let segment = fixture.take_more(&mut extended(&[(b'E', b"\0\0\0\0\x0A"), SYNC]));
        fixture.session.encode(&segment, known, &mut reply, &mut out);
        assert_eq!(tags(&out), sent);
    }
}

#[test]
fn portals_that_are_not_its_own_are_the_primarys() {
    let mut fixture = Fixture::new();
    let segment = fixture.take(&mut extended(&[(b'D', b"Pc0\0"), (b'S', b"")]));
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer);
    let read: &[(u8, &[u8])] =
        &[(b'P', b"\0SELECT 1\0\0\0"), (b'B', b"c0\0\0\0\0\0\0\0\0"), (b'E', b"c0\0\0\0\0\0"), (b'S', b"")];
    let segment = fixture.take(&mut extended(read));
    assert_eq!(fixture.session.wanted(&segment), Wanted::Reader);
    fixture.run(NODE, query("DECLARE c0 CURSOR WITH HOLD FOR SELECT 1"), &done("DECLARE", TxStatus::Idle));
    let segment = fixture.take(&mut extended(read));
    assert_eq!(fixture.session.wanted(&segment), Wanted::Writer, "it may have that cursor");
}

#[test]
fn a_statement_that_is_only_freed_need_not_be_what_it_was() {
    let mut fixture = Fixture::new();
    let prepare = "PREPARE \"Q\"\"1\" AS SELECT a FROM gone";
    fixture.run(NODE, query(prepare), &done("PREPARE", TxStatus::Idle));
    for (text, sent) in [
        ("DEALLOCATE \"Q\"\"1\"", "PREPARE \"Q\"\"1\" AS SELECT"),
        ("EXECUTE \"Q\"\"1\"; DEALLOCATE \"Q\"\"1\"", prepare),
        ("EXECUTE \"Q\"\"1\"", prepare),
    ] {
        let segment = fixture.take(&mut query(text));
        let introductions = fixture.session.introduce(&segment, fixture.known.get_mut(&OTHER).unwrap());
        let by_sql: Vec<_> = introductions.by_sql.iter().filter_map(Introduction::sql).collect();
        assert_eq!(by_sql, [sent], "{text}");
    }
}

#[test]
fn what_sql_names_is_introduced_when_it_is_prepared() {
    let mut fixture = with_p0();
    let first: &[(u8, &[u8])] = &[(b'P', b"\0EXECUTE p0\0\0\0"), (b'H', b"")];
    let segment = fixture.take(&mut extended(first));
    let known = fixture.known.get_mut(&OTHER).unwrap();
    assert_eq!(tags(&fixture.session.introduce(&segment, known).messages), "CPS");
}

#[test]
fn what_sql_names_behind_a_flush_is_prepared_in_front_of_it() {
    let mut fixture = with_p0();
    let first = fixture.take(&mut extended(&[(b'P', b"\0SELECT 1\0\0\0"), (b'H', b"")]));
    let more = fixture.take_more(&mut extended(&[
        (b'P', b"\0EXECUTE p0\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0"),
        (b'S', b""),
    ]));
    for (node, sent) in [(NODE, "PBES"), (OTHER, "PPBES")] {
        let known = fixture.known.get_mut(&node).unwrap();
        let mut reply = Reply::new(false);
        fixture.session.begin_batch();
        fixture.session.encode(&first, known, &mut reply, &mut BytesMut::new());
        let mut out = BytesMut::new();
        fixture.session.encode(&more, known, &mut reply, &mut out);
        assert_eq!(tags(&out), sent);
    }
}

#[test]
fn nothing_of_a_segment_is_left_in_the_next() {
    let mut fixture = with_p0();
    for mut input in [
        query(
            "BEGIN; SET a.b = 'c'; CREATE TEMP TABLE x (a int); PREPARE p AS SELECT 1; DEALLOCATE ALL; COMMIT",
        ),
        query("ROLLBACK"),
        query("SET TRANSACTION READ ONLY"),
        query("SHOW POOL_NODES"),
        extended(&[(b'B', b"b\0p0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\x01"), (b'D', b"Sp0\0"), (b'H', b"")]),
    ] {
        let mut segment = fixture.take_more(&mut input);
        segment.clear();
        assert_eq!(format!("{segment:?}"), format!("{:?}", Segment::default()));
    }
}
