//! The operators' own word on the database: a script that runs again and again while PostgreSQL does.

use pgherd_common::Generation;
use pgherd_core::events::{Event, Kind};
use tokio::sync::{mpsc, watch as watched};

use super::{End, Surroundings, run};
use crate::config::Monitor;
use crate::driver;
use crate::notify::{About, Notifier};

/// Runs the script while PostgreSQL answers, and reports what becomes of it.
pub(crate) async fn watch(
    monitor: Monitor,
    about: About,
    notifier: Notifier,
    mut answers: watched::Receiver<bool>,
    events: mpsc::Sender<driver::Event>,
) {
    let mut complained = false;
    let mut failing = false;
    loop {
        // Nor is it said any more.
        if !*answers.borrow() && std::mem::take(&mut failing) && report(&events, None).await.is_err() {
            return;
        }
        if answers.wait_for(|answers| *answers).await.is_err() {
            return;
        }
        answers.borrow_and_update();
        let surroundings = Surroundings::of(&about, "custom_monitor", Generation::ZERO);
        let ran = run(&monitor.line.fill(|_| String::new()), &surroundings, monitor.timeout).await;
        // What was said of a server that is gone says nothing of the next one.
        if answers.has_changed().unwrap_or(true) {
            continue;
        }
        let verdict = match &ran.end {
            End::Success => None,
            failed => Some(format!("it {failed}{}", ran.quoted())),
        };
        // One that hangs, or is not there, says nothing of the database.
        let counts = matches!(ran.end, End::Failed(_)) && !monitor.safe_mode;
        match &verdict {
            Some(why) if !counts => {
                if !std::mem::replace(&mut complained, true) {
                    let text = format!(
                        "the custom monitor of {} is of no use: {why}. Nothing is done about it",
                        about.node
                    );
                    let node = Some(about.node.clone());
                    notifier.tell(&Event::new(Kind::MonitorComplains, node, Generation::ZERO, text));
                }
            }
            Some(_) | None => complained = false,
        }
        // What hangs has not recovered either.
        let undecided = verdict.is_some() && !counts && !monitor.safe_mode;
        if !undecided {
            let verdict = verdict.filter(|_| counts);
            failing = verdict.is_some();
            if report(&events, verdict).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(monitor.interval) => {}
            ended = answers.wait_for(|answers| !*answers) => if ended.is_err() { return },
        }
    }
}

async fn report(events: &mpsc::Sender<driver::Event>, verdict: Option<String>) -> Result<(), ()> {
    events.send(driver::Event::Monitored(verdict)).await.map_err(|_| ())
}
