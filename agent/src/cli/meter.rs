//! Shows how far something is: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};

use super::error::CliError;
use super::print;
use super::units::{bytes, span};
use crate::working::Step;

/// Between two lines about the same step, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    shown: Option<Shown>,
}

/// The step that is being shown.
struct Shown {
    what: String,
    /// When the first bytes of it were seen, and how many.
    since: MonoTime,
    first: u64,
    /// Of the last line.
    printed: MonoTime,
}

impl Meter {
    pub(super) fn new() -> Self {
        let bar = io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::stdout());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, shown: None }
    }

    pub(super) fn show(&mut self, step: &Step) -> Result<(), CliError> {
        let now = RealClock.now();
        let is_new = self.shown.as_ref().is_none_or(|shown| shown.what != step.what);
        if is_new {
            let what = step.what.clone();
            self.shown = Some(Shown { what, since: now, first: step.done, printed: now });
        }
        if let Some(bar) = &self.bar {
            if is_new {
                bar.set_style(style(step.total > 0));
                bar.reset();
            }
            bar.set_message(step.what.clone());
            if step.total > 0 {
                bar.set_length(step.total);
                bar.set_position(step.done);
            }
            return Ok(());
        }
        let Some(shown) = &mut self.shown else { return Ok(()) };
        if !is_new && (step.total == 0 || now.since(shown.printed) < LINE_EVERY) {
            return Ok(());
        }
        shown.printed = now;
        print(&format!("{}\n", line(step, shown.first, now.since(shown.since))))
    }

    /// Something that is no step.
    pub(super) fn say(&self, text: &str) -> Result<(), CliError> {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(&format!("{text}\n"))),
            None => print(&format!("{text}\n")),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(counted: bool) -> ProgressStyle {
    let template = if counted {
        "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
    } else {
        "{spinner} {msg}, {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `copying from server3: 120 MB of 1.2 GB (10 %), 12 MB/s, 1 min 30 s left`.
fn line(step: &Step, first: u64, elapsed: Duration) -> String {
    if step.total == 0 {
        return step.what.clone();
    }
    let percent = step.done.saturating_mul(100) / step.total.max(1);
    let mut text = format!("{}: {} of {} ({percent} %)", step.what, bytes(step.done), bytes(step.total));
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let rate = step.done.saturating_sub(first).saturating_mul(1000).checked_div(millis).unwrap_or(0);
    let left = step.total.saturating_sub(step.done).saturating_mul(1000);
    if let Some(left) = left.checked_div(rate) {
        text += &format!(", {}/s, {} left", bytes(rate), span(left));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_rate_and_time() {
        let step = |done, total| Step { what: "copying from server3".into(), done, total };
        assert_eq!(line(&step(0, 0), 0, Duration::ZERO), "copying from server3");
        assert_eq!(
            line(&step(0, 10 << 20), 0, Duration::ZERO),
            "copying from server3: 0 bytes of 10 MB (0 %)"
        );
        assert_eq!(
            line(&step(4 << 20, 10 << 20), 2 << 20, Duration::from_secs(2)),
            "copying from server3: 4 MB of 10 MB (40 %), 1 MB/s, 6 s left"
        );
    }
}
