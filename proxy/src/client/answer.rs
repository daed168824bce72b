//! Answers that the proxy gives itself, in either protocol.

use bytes::BytesMut;

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
        self.answer_each(segment, 0, Some(table.columns), |out| rows(out, &table));
    }

    /// Answers what is left of a segment, so many of whose messages are answered, with a command that returns no rows.
    pub(super) fn answer_command(&mut self, command: &str, segment: &Segment, answered: usize) {
        self.answer_each(segment, answered, None, |out| backend::put_complete(out, command));
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

    /// `content`: rows with these columns, if it has any, and the end.
    fn answer_each(
        &mut self,
        segment: &Segment,
        answered: usize,
        columns: Option<&[&str]>,
        content: impl Fn(&mut BytesMut),
    ) {
        let out = &mut self.pipe.output;
        for (tag, about_statement) in segment.messages().filter(|(tag, _)| *tag != b'H').skip(answered) {
            match tag {
                b'Q' => {
                    if let Some(columns) = columns {
                        backend::put_columns(out, columns);
                    }
                    content(out);
                }
                b'P' => backend::put_empty(out, b'1'),
                b'B' => backend::put_empty(out, b'2'),
                b'C' => backend::put_empty(out, b'3'),
                b'D' => {
                    if about_statement {
                        backend::put_no_parameters(out);
                    }
                    match columns {
                        Some(columns) => backend::put_columns(out, columns),
                        None => backend::put_empty(out, b'n'),
                    }
                }
                b'E' => content(out),
                _ => {}
            }
            if matches!(tag, b'Q' | b'S') {
                backend::put_ready(out, self.session.status());
            }
        }
    }
}

fn rows(out: &mut BytesMut, table: &Table) {
    table.rows.iter().for_each(|row| backend::put_row(out, row));
    backend::put_complete(out, &format!("SELECT {}", table.rows.len()));
}
