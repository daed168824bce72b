//! A log that is never waited for: whoever reads it may hang, and a deadline would pass meanwhile, or a
//! lease not be renewed.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Lines that may wait to be written. More are lost.
const LINES_MAX: usize = 200;
/// How long the last lines may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

enum Entry {
    Text(Vec<u8>),
    Flush(Sender<()>),
}

/// One end of the log.
#[derive(Clone)]
struct Lossy(SyncSender<Entry>);

impl Write for Lossy {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // Full: the line is lost.
        let _ = self.0.try_send(Entry::Text(text.to_vec()));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// To be waited for before the process ends.
#[derive(Clone)]
pub(crate) struct Flush(SyncSender<Entry>);

impl Flush {
    /// Returns when everything is written, or cannot be.
    pub(crate) fn wait(self) {
        let (done, wait) = channel();
        if self.0.try_send(Entry::Flush(done)).is_ok() {
            let _written_or_not = wait.recv_timeout(FLUSH_PATIENCE);
        }
    }
}

/// Logs to standard error from now on.
pub(crate) fn start_log() -> Flush {
    let (lines, queue) = sync_channel(LINES_MAX);
    let writer = Lossy(lines.clone());
    crate::logging::start(move || writer.clone());
    // Without the thread the queue fills up, and nothing is logged.
    let _thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&queue));
    Flush(lines)
}

fn write(queue: &Receiver<Entry>) {
    for entry in queue {
        match entry {
            // There is nobody to tell.
            Entry::Text(text) => drop(io::stderr().write_all(&text)),
            Entry::Flush(done) => drop(done.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        let (lines, queue) = sync_channel(3);
        let mut log = Lossy(lines);
        for _ in 0..10 {
            log.write_all(b"line\n").unwrap();
        }
        assert_eq!(queue.try_iter().count(), 3);
    }
}
