//! The tables that a session finds.

use super::ROWS;

/// A schema with tables and rows in it, in place of whatever was there.
pub(in super::super) fn furnish(schema: &str) -> String {
    format!(
        "SET client_min_messages = warning; DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; \
         CREATE TABLE {schema}.t0 (id int PRIMARY KEY, a int, b text, c numeric(10,2), d date); \
         CREATE TABLE {schema}.t1 (id serial PRIMARY KEY, r int, v text, j jsonb); \
         {}",
        tidy(schema)
    )
}

/// The rows as they were at first, after a session that did not alter the tables.
pub(in super::super) fn tidy(schema: &str) -> String {
    format!(
        "TRUNCATE {schema}.t0, {schema}.t1 RESTART IDENTITY; \
         INSERT INTO {schema}.t0 SELECT n, n % 7, 'row ' || n, n * 1.25, date '2024-01-01' + n \
         FROM generate_series(1, {ROWS}) n; \
         INSERT INTO {schema}.t1 (r, v, j) SELECT n, repeat('v', n), jsonb_build_object('n', n) \
         FROM generate_series(1, 10) n"
    )
}
