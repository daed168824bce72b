//! Answers that the proxy gives itself, in either protocol.

use crate::admin::Table;
use crate::session::Segment;
use crate::sql::Show;
use crate::sqlstate::Trouble;
use crate::wire::backend::{self, Severity};

use super::state::Client;

impl Client {
    /// Answers a segment that asks for `show`.
    pub(super) fn answer(&mut self, show: Show, segment: &Segment) {
        if !show.is_for_everybody() && !self.config.is_admin(&self.user) {
            let what = format!("SHOW {}", show.word().to_uppercase());
            return self.deny(&Trouble::AdminsOnly { what }, segment);
        }
        let table = self.shared.answer(show, self.session.last_read());
        self.session.on_answered(segment);
        for (tag, about_statement) in segment.messages() {
            self.answer_message(tag, about_statement, &table);
        }
    }

    /// Unlike a refusal of what a server would run, this leaves a transaction as it is.
    fn deny(&mut self, trouble: &Trouble, segment: &Segment) {
        self.presence.badge.counts.errors.add(1);
        trouble.response(Severity::Error).put(&mut self.pipe.output);
        self.discard = segment.rest;
        if segment.ends_when_refused() {
            backend::put_ready(&mut self.pipe.output, self.session.status());
        } else {
            self.skipping = true;
        }
    }

    fn answer_message(&mut self, tag: u8, about_statement: bool, table: &Table) {
        let out = &mut self.pipe.output;
        match tag {
            b'Q' => {
                backend::put_columns(out, table.columns);
                rows(out, table);
            }
            b'P' => backend::put_empty(out, b'1'),
            b'B' => backend::put_empty(out, b'2'),
            b'C' => backend::put_empty(out, b'3'),
            b'D' => {
                if about_statement {
                    backend::put_no_parameters(out);
                }
                backend::put_columns(out, table.columns);
            }
            b'E' => rows(out, table),
            _ => {}
        }
        if matches!(tag, b'Q' | b'S') {
            backend::put_ready(out, self.session.status());
        }
    }
}

fn rows(out: &mut bytes::BytesMut, table: &Table) {
    table.rows.iter().for_each(|row| backend::put_row(out, row));
    backend::put_complete(out, &format!("SELECT {}", table.rows.len()));
}
