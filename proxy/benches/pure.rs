//! What the parts of the proxy cost that decide and touch no socket: framing, verdicts, routing, sessions.
//! `cargo bench -p pgherd-proxy`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput};
use pgherd_common::topology::{Availability, Backend, Parts};
use pgherd_common::{Generation, NodeId, Topology, Version, WallTime};
use pgherd_proxy::routing::{Need, Shares, View, choose};
use pgherd_proxy::session::{Batch, Event, Reply, Segment, Session};
use pgherd_proxy::sql::{Edition, Facts, classify, mask};
use pgherd_proxy::verdicts::VerdictCache;
use pgherd_proxy::wire::backend::{self, TxStatus};
use pgherd_proxy::wire::{frame, frontend};

const ONE_ROW: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;";
const JOIN: &str = "SELECT b.bbalance, count(*), max(a.abalance) FROM pgbench_accounts a \
     JOIN pgbench_branches b ON a.bid = b.bid WHERE a.aid IN (1, 2, 3, 5, 8, 13) AND b.bbalance > 0 \
     GROUP BY b.bbalance ORDER BY count(*) DESC LIMIT 10";
const INSERT: &str = "INSERT INTO events (id, at, kind, note) VALUES \
     (17, '2026-01-01 12:00:00', 'login', 'from 10.0.0.1'), (18, '2026-01-01 12:00:01', 'logout', 'by hand')";
const UPDATE: &str = "UPDATE pgbench_accounts SET abalance = abalance + 17 WHERE aid = 12345;";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    framing(&mut criterion);
    verdicts(&mut criterion);
    routing(&mut criterion);
    sessions(&mut criterion);
    criterion.final_summary();
}

/// A thousand rows of a hundred bytes, and what comes behind them.
fn rows() -> BytesMut {
    let mut out = BytesMut::new();
    for _ in 0..1000 {
        frame::put(&mut out, b'D', |out| out.extend_from_slice(&[b'x'; 100]));
    }
    backend::put_complete(&mut out, "SELECT 1000");
    backend::put_ready(&mut out, TxStatus::Idle);
    out
}

fn framing(criterion: &mut Criterion) {
    let rows = rows();
    let mut group = criterion.benchmark_group("framing");
    group.throughput(Throughput::Bytes(rows.len() as u64));
    group.bench_function("walk 1000 rows", |bencher| {
        bencher.iter(|| {
            let (mut rest, mut count) = (black_box(rows.as_ref()), 0);
            while let Ok(Some((header, _))) = frame::message(rest) {
                rest = rest.get(header.len..).unwrap_or_default();
                count += 1;
            }
            count
        });
    });
    group.bench_function("pass 1000 rows to a client", |bencher| {
        bencher.iter(|| pass(&mut Reply::new(false), black_box(rows.as_ref())));
    });
    group.finish();
}

/// How many events an answer is cut into.
fn pass(reply: &mut Reply, answer: &[u8]) -> usize {
    let (mut rest, mut count) = (answer, 0);
    loop {
        let len = match reply.next(rest) {
            Ok(
                Event::Forward(len) | Event::Hold(len) | Event::Swallow(len) | Event::Parameter { len, .. },
            ) => len,
            Ok(Event::Release) => 0,
            Ok(_) | Err(_) => return count,
        };
        rest = rest.get(len..).unwrap_or_default();
        count += 1;
    }
}

fn edition() -> Edition {
    Edition { facts: Arc::new(Facts::by_names()), number: 1 }
}

fn verdicts(criterion: &mut Criterion) {
    let facts = Facts::by_names();
    let mut group = criterion.benchmark_group("verdicts");
    for (name, sql) in [("one row", ONE_ROW), ("a join", JOIN), ("an update", UPDATE)] {
        group.bench_function(format!("classify {name}"), |bencher| {
            bencher.iter(|| classify(black_box(sql.as_bytes()), &facts));
        });
    }
    let edition = edition();
    let mut cache = VerdictCache::new(1 << 20);
    group.bench_function("cache hit", |bencher| {
        bencher.iter(|| cache.verdict(&edition, "app", black_box(ONE_ROW.as_bytes())));
    });
    let mut masked = Vec::new();
    for (name, sql) in [("one row", ONE_ROW), ("a join", JOIN), ("an update", UPDATE), ("an insert", INSERT)]
    {
        group.bench_function(format!("mask {name}"), |bencher| {
            bencher.iter(|| {
                masked.clear();
                mask(black_box(sql.as_bytes()), &mut masked)
            });
        });
    }
    let mut number = 0_u64;
    for (name, before, behind) in [
        ("cache hit with another number", "SELECT abalance FROM pgbench_accounts WHERE aid = ", ";"),
        ("cache miss", "SELECT abalance FROM pgbench_accounts WHERE aid = $1 AND a", " = 1;"),
        ("cache miss without a shape", "LISTEN a", ""),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    format!("{before}{number}{behind}")
                },
                |sql| (cache.verdict(&edition, "app", sql.as_bytes()), sql),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn server(id: u64) -> Option<Backend> {
    Some(Backend {
        id: NodeId(id),
        name: format!("server{id}").parse().ok()?,
        address: format!("10.0.0.{id}:5432").parse().ok()?,
        weight: 1,
        attached: true,
        availability: Availability::Up,
        changed: WallTime(0),
    })
}

/// A primary and two standbys.
fn topology() -> Option<Topology> {
    let parts = Parts {
        cluster: "demo".parse().ok()?,
        version: Version { generation: Generation::ZERO.next(), revision: 1 },
        backends: (1..=3).map(server).collect::<Option<_>>()?,
        primary: Some(NodeId(1)),
        first_xid: None,
        change: None,
    };
    Topology::new(parts).ok()
}

fn routing(criterion: &mut Criterion) {
    let Some(topology) = topology() else { return };
    let (shares, lags, avoided) = (Shares::default(), BTreeMap::new(), BTreeSet::new());
    let load = BTreeMap::new();
    let (topology, shares, lags, avoided, load) = (&topology, &shares, &lags, &avoided, &load);
    let view = View { topology, shares, lags: Some(lags), avoided, load, backed: true };
    let mut group = criterion.benchmark_group("routing");
    let mut draw = 0_u64;
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The return value borrows from the view.
            black_box(choose(Need::Read, &view, draw >> 33));
        });
    });
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            black_box(choose(Need::Write, &view, 0));
        });
    });
    group.finish();
}

/// What a client sends in one go, and what a server answers.
struct Exchange {
    name: &'static str,
    sent: BytesMut,
    answer: BytesMut,
}

fn exchanges() -> [Exchange; 2] {
    let mut simple = BytesMut::new();
    frontend::put_query(&mut simple, ONE_ROW);
    let mut extended = BytesMut::new();
    frontend::put_parse(&mut extended, "", &[ONE_ROW.as_bytes(), b"\0\0\0"].concat());
    for (tag, payload) in [
        (b'B', b"\0\0\0\0\0\0\0\0".as_slice()),
        (b'D', b"P\0".as_slice()),
        (b'E', b"\0\0\0\0\0".as_slice()),
        (b'S', b"".as_slice()),
    ] {
        frame::put(&mut extended, tag, |out| out.extend_from_slice(payload));
    }
    let answer = |tags: &[u8]| {
        let mut out = BytesMut::new();
        for tag in tags {
            frame::put(&mut out, *tag, |_| {});
        }
        frame::put(&mut out, b'T', |out| out.extend_from_slice(&[0; 32]));
        frame::put(&mut out, b'D', |out| out.extend_from_slice(&[0; 7]));
        backend::put_complete(&mut out, "SELECT 1");
        backend::put_ready(&mut out, TxStatus::Idle);
        out
    };
    [
        Exchange { name: "simple", sent: simple, answer: answer(b"") },
        Exchange { name: "extended", sent: extended, answer: answer(b"12") },
    ]
}

fn sessions(criterion: &mut Criterion) {
    let edition = edition();
    let cache = RefCell::new(VerdictCache::new(1 << 20));
    let judge = |sql: &[u8]| cache.borrow_mut().verdict(&edition, "app", sql);
    let mut group = criterion.benchmark_group("session");
    for Exchange { name, sent, answer } in exchanges() {
        let (mut session, mut known, mut out) =
            (Session::default(), Session::default().fresh(), BytesMut::new());
        group.bench_function(format!("take and encode, {name}"), |bencher| {
            bencher.iter_batched(
                || sent.clone(),
                |mut input| {
                    let mut segment = Segment::default();
                    let taken = session.take(&mut input, &mut segment, &judge);
                    let mut reply = Reply::new(session.is_repeatable(&segment));
                    out.clear();
                    session.encode(&segment, &mut known, &mut reply, &mut out);
                    (taken, session.wanted(&segment), segment)
                },
                BatchSize::SmallInput,
            );
        });
        let (mut session, mut known) = (Session::default(), Session::default().fresh());
        group.bench_function(format!("from query to ready, {name}"), |bencher| {
            bencher.iter_batched(
                || sent.clone(),
                |mut input| {
                    let mut segment = Segment::default();
                    let taken = session.take(&mut input, &mut segment, &judge);
                    let batch = Batch::of(&segment);
                    let mut reply = Reply::new(session.is_repeatable(&segment));
                    out.clear();
                    session.encode(&segment, &mut known, &mut reply, &mut out);
                    let events = pass(&mut reply, &answer);
                    session.on_ready(&batch, NodeId(2), TxStatus::Idle, &mut reply, &mut known);
                    (taken, events)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
