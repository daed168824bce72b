//! Tests of the whole proxy between real servers and real clients: one program, since linking one for each file takes longer
//! than the tests.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test")]

#[path = "../harness/mod.rs"]
mod harness;

mod administration;
mod auth;
mod cancel;
mod changes;
mod clients;
mod conflicts;
mod consistency;
mod large;
mod leaks;
mod limits;
mod logins;
mod outcome;
mod pooling;
mod positions;
mod protocol;
mod read_only;
mod reads_write_nothing;
mod replication;
mod routing;
mod slow_standby;
mod tls_clients;
mod tls_servers;
mod unix_socket;
