//! COPY in both directions and both protocols.

use super::Maker;
use crate::difffuzz::line::Until;
use crate::difffuzz::say::{Bind, Say};
use crate::difffuzz::script::{Part, Step};

impl Maker {
    /// A COPY.
    pub(super) fn copy_step(&mut self) -> Step {
        match self.below(4) {
            0 | 1 if self.extended < 100 => self.copy_simply(),
            2 => self.copy_out(),
            _ => self.copy_in_extended(),
        }
    }

    fn copy_simply(&mut self) -> Step {
        let (sql, mut data) = self.copy_in();
        let sql = match self.below(4) {
            0 => format!("{sql}; SELECT count(*) FROM {}t1", self.prefix),
            1 => format!("SELECT 1; {sql}"),
            _ => sql,
        };
        let mut says = vec![Say::Query(sql)];
        says.append(&mut data);
        Step::one(says, Until::Ready(1))
    }

    fn copy_out(&mut self) -> Step {
        let p = self.prefix.clone();
        let from = match self.below(3) {
            0 => format!("(SELECT id, a, b FROM {p}t0 ORDER BY id)"),
            1 => format!("(SELECT id, r, v FROM {p}t1 ORDER BY id)"),
            _ => "(SELECT n, repeat('c', 100) FROM generate_series(1, 800) n ORDER BY n)".to_owned(),
        };
        let how = self.one_of(&["", "", " WITH (FORMAT csv, HEADER)", " WITH (FORMAT binary)"]);
        let sql = format!("COPY {from} TO STDOUT{how}");
        if self.chance(3) {
            let mut says = run(sql);
            says.push(Say::Sync);
            return Step::one(says, Until::Ready(1));
        }
        self.simple(sql)
    }

    fn copy_in_extended(&mut self) -> Step {
        let (sql, mut data) = self.copy_in();
        let mut says = run(sql);
        if self.chance(3) {
            says.push(Say::Flush);
            data.push(Say::Sync);
            let parts =
                vec![Part { says, until: Until::Quiet(0) }, Part { says: data, until: Until::Ready(1) }];
            return Step { parts };
        }
        // While data is awaited, a Sync is passed over.
        let early = self.chance(4);
        if early {
            says.push(Say::Sync);
        }
        says.append(&mut data);
        says.push(Say::Sync);
        Step::one(says, if early { Until::Quiet(1) } else { Until::Ready(1) })
    }

    /// The statement, and what follows it.
    fn copy_in(&mut self) -> (String, Vec<Say>) {
        let p = self.prefix.clone();
        let (how, mut data) = match self.below(8) {
            0 => (" (FORMAT csv)", vec!["5,five\n", "6,\"six, seven\"\n"]),
            1 => ("", vec!["5\tfive\n6\tonly ", "half a line\n", "7\t\\N\n"]),
            2 => ("", vec!["5\tfive\n", "no number\tx\n", "6\tsix\n"]),
            3 => ("", vec!["5\n"]),
            4 => ("", vec![]),
            5 => (" (FORMAT binary)", vec!["PGCOPY is not what this begins with"]),
            6 => ("", vec!["5\tfive\n\\.\n"]),
            _ => ("", vec!["8\teight\n"]),
        };
        let table = if self.chance(12) { "nowhere" } else { "t1" };
        if self.chance(10) {
            data.extend(["9\tmany many many many many many\n"; 3000]);
        }
        let mut says: Vec<Say> = data.iter().map(|data| Say::CopyData(data.as_bytes().to_vec())).collect();
        says.push(if self.chance(5) { Say::CopyFail("changed my mind".to_owned()) } else { Say::CopyDone });
        (format!("COPY {p}{table} (r, v) FROM STDIN{how}"), says)
    }
}

/// Prepares and executes.
fn run(sql: String) -> Vec<Say> {
    vec![
        Say::Parse { name: String::new(), sql, types: vec![] },
        Say::Bind(Bind::default()),
        Say::Describe(b'P', String::new()),
        Say::Execute(String::new(), 0),
    ]
}
