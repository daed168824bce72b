//! What the programs here have in common towards the person at the terminal.

use tokio::signal::unix::{SignalKind, signal};

/// Tells the person something.
#[expect(clippy::print_stdout, reason = "the programs here talk to a person")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Ends at Ctrl-C, a plain `kill`, or when the terminal goes away.
pub async fn stopped() {
    let of = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = of(SignalKind::interrupt()) => (),
        () = of(SignalKind::terminate()) => (),
        () = of(SignalKind::hangup()) => (),
    }
}
