//! Keeps an address as it is ordered, in a thread of its own: the kernel may make who changes an address
//! wait, and whoever decides waits for nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};

use crate::{Mac, Vip};

/// A question is not answered later than this on a link that works...
const ANSWER_WAIT: Duration = Duration::from_millis(30);
/// ...and so many without an answer in a row mean that nobody has the address.
const QUESTIONS: u32 = 3;
/// Between questions once there is a result.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// A new holder says so at once and then again, since nobody acknowledges it.
const ANNOUNCEMENTS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];
/// How often the address is renewed, and looked for where it is not to be.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// After a failure.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long the end waits for the kernel.
const END_PATIENCE: Duration = Duration::from_millis(500);

/// What is to be done about the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is not to be here: it goes where it is found.
    Release,
    /// The same, and it is to be found out whether somebody else has it.
    Ask,
    /// It is to be here.
    Hold {
        /// No longer than until then, unless a later order moves the time.
        until: MonoTime,
        /// For so long in the kernel's own count.
        lifetime: Duration,
    },
}

/// What is known of the address here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// It is here.
    pub held: bool,
    /// What became of asking, since that was ordered.
    pub asked: Asked,
    /// Why the last attempt failed, until one succeeds.
    pub trouble: Option<String>,
}

/// Whether somebody else has the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asked {
    /// Nobody knows.
    #[default]
    Unknown,
    /// Nobody answers for it.
    Silent,
    /// This card does.
    Elsewhere(Mac),
}

enum Word {
    Order(Order),
    End(Parting, Sender<()>),
}

/// What becomes of an address that nobody takes care of any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// It goes.
    Release,
    /// If it is here, it stays, without an end.
    Leave,
}

/// Told of what is new; `false`: it could not take it, and is told again.
pub type Tell = Box<dyn Fn(&Seen) -> bool + Send>;

/// The thread, from outside.
#[derive(Debug)]
pub struct Keeper {
    words: Sender<Word>,
}

impl Keeper {
    /// Starts it; it reports what it finds at once, and then what changes.
    pub fn start(vip: Vip, tell: Tell) -> std::io::Result<Self> {
        let (words, inbox) = channel();
        let keeping = Keeping {
            vip,
            tell,
            order: None,
            seen: None,
            reported: None,
            silent: 0,
            due: RealClock.now(),
            announced: ANNOUNCEMENTS.len(),
            taken: RealClock.now(),
        };
        std::thread::Builder::new().name("virtual-ip".to_owned()).spawn(move || keeping.run(&inbox))?;
        Ok(Self { words })
    }

    /// Returns at once.
    pub fn order(&self, order: Order) {
        // The thread ends with this process.
        let _ = self.words.send(Word::Order(order));
    }

    /// Nobody takes care of the address from now on. Whether the kernel has done it in time.
    pub fn end(&self, parting: Parting) -> bool {
        let (done, wait) = channel();
        let told = self.words.send(Word::End(parting, done)).is_ok();
        told && wait.recv_timeout(END_PATIENCE).is_ok()
    }
}

struct Keeping {
    vip: Vip,
    tell: Tell,
    order: Option<Order>,
    /// `None`: nobody has looked yet.
    seen: Option<Seen>,
    reported: Option<Seen>,
    /// Questions in a row that nobody answered.
    silent: u32,
    /// When there is something to do again.
    due: MonoTime,
    /// How many announcements have been made, of an address that was taken then.
    announced: usize,
    taken: MonoTime,
}

impl Keeping {
    fn run(mut self, inbox: &Receiver<Word>) {
        loop {
            let now = RealClock.now();
            match inbox.recv_timeout(self.wake_at().since(now)) {
                Ok(Word::Order(order)) => self.ordered(order),
                Ok(Word::End(parting, done)) => {
                    let ended = match parting {
                        Parting::Release => self.release(),
                        Parting::Leave => self.leave(),
                    };
                    match ended {
                        Ok(()) => drop(done.send(())),
                        Err(error) => tracing::error!("virtual IP {}: {error}", self.vip.subnet()),
                    }
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.work();
            self.report();
        }
    }

    /// Renewals of the same order need not be acted on at once.
    fn ordered(&mut self, order: Order) {
        let same_kind = self.order.map(|order| std::mem::discriminant(&order));
        if same_kind != Some(std::mem::discriminant(&order)) {
            self.due = RealClock.now();
            self.silent = 0;
            if let Some(seen) = &mut self.seen {
                seen.asked = Asked::Unknown;
            }
        }
        self.order = Some(order);
    }

    fn wake_at(&self) -> MonoTime {
        let mut at = self.due;
        if let Some(Order::Hold { until, .. }) = self.order
            && self.held()
        {
            at = at.min(until);
            at = ANNOUNCEMENTS.get(self.announced).map_or(at, |pause| at.min(self.taken + *pause));
        }
        // What could not be told has to be told again.
        if self.reported == self.seen { at } else { at.min(RealClock.now() + Duration::from_millis(5)) }
    }

    fn held(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.held)
    }

    fn work(&mut self) {
        self.announce();
        // At the end of the lease the address goes, whatever has become of the worker's other threads.
        let ended = matches!(self.order, Some(Order::Hold { until, .. }) if over(until));
        if RealClock.now() < self.due && !(ended && self.held()) {
            return;
        }
        let result = match self.order {
            None => self.vip.is_held().map(|held| self.found(held)).map_err(|error| text(&error)),
            Some(Order::Hold { until, lifetime }) if !over(until) => self.hold(lifetime),
            Some(Order::Hold { .. } | Order::Release) => self.release(),
            Some(Order::Ask) => self.release().and_then(|()| self.ask()),
        };
        if let Err(error) = result {
            self.failed(error);
        }
    }

    fn found(&mut self, held: bool) {
        let seen = self.seen.get_or_insert_default();
        (seen.held, seen.trouble) = (held, None);
        self.due = RealClock.now() + LOOK_AGAIN;
    }

    fn failed(&mut self, error: String) {
        self.due = RealClock.now() + TRY_AGAIN;
        let seen = self.seen.get_or_insert_default();
        if seen.trouble.as_ref() != Some(&error) {
            let ip = self.vip.subnet();
            // Without a link nobody can be asked, and nobody need be.
            if matches!(self.order, Some(Order::Ask)) {
                tracing::warn!("virtual IP {ip}: {error}; trying again");
            } else {
                tracing::error!("virtual IP {ip}: {error}; trying again");
            }
            seen.trouble = Some(error);
        }
    }

    fn hold(&mut self, lifetime: Duration) -> Result<(), String> {
        let had = self.vip.is_held().map_err(|error| text(&error))?;
        self.vip.hold(Some(lifetime)).map_err(|error| text(&error))?;
        if matches!(self.order, Some(Order::Hold { until, .. }) if over(until)) {
            return self.release();
        }
        let held = self.held();
        self.found(true);
        if !had || !held {
            if held {
                tracing::warn!("virtual IP {} was missing here and is taken again", self.vip.subnet());
            } else {
                tracing::info!("virtual IP {} taken", self.vip.subnet());
            }
            (self.taken, self.announced) = (RealClock.now(), 0);
            self.announce();
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        let had = self.vip.release().map_err(|error| text(&error))?;
        match (had, self.held()) {
            (true, true) => tracing::info!("virtual IP {} released", self.vip.subnet()),
            (true, false) => {
                tracing::warn!("virtual IP {} was here and is not to be: removed", self.vip.subnet());
            }
            (false, _) => {}
        }
        self.found(false);
        Ok(())
    }

    fn ask(&mut self) -> Result<(), String> {
        let answer = self.vip.ask(ANSWER_WAIT).map_err(|error| text(&error))?;
        self.silent = if answer.is_some() { 0 } else { self.silent + 1 };
        let asked = match answer {
            Some(by) => Asked::Elsewhere(by),
            None if self.silent >= QUESTIONS => Asked::Silent,
            // One lost question is no news.
            None => self.seen.as_ref().map(|seen| seen.asked).unwrap_or_default(),
        };
        let settled = answer.is_some() || asked == Asked::Silent;
        self.due = RealClock.now() + if settled { ASK_AGAIN } else { Duration::ZERO };
        let seen = self.seen.get_or_insert_default();
        if seen.asked != asked
            && let Asked::Elsewhere(by) = &asked
        {
            tracing::info!("virtual IP {} is answered for by {by}", self.vip.subnet());
        }
        seen.asked = asked;
        Ok(())
    }

    fn announce(&mut self) {
        // A thread that has slept through the end of it would draw traffic to where the address is not any more.
        let holds = matches!(self.order, Some(Order::Hold { until, .. }) if !over(until));
        while holds
            && self.held()
            && let Some(pause) = ANNOUNCEMENTS.get(self.announced)
            && self.taken + *pause <= RealClock.now()
        {
            self.announced += 1;
            if let Err(error) = self.vip.announce() {
                tracing::warn!("virtual IP {} could not be announced: {}", self.vip.subnet(), Chain(&error));
            }
        }
    }

    fn leave(&mut self) -> Result<(), String> {
        if !matches!(self.order, Some(Order::Hold { until, .. }) if self.held() && !over(until)) {
            return Ok(());
        }
        self.vip.hold(None).map_err(|error| text(&error))?;
        tracing::info!("virtual IP {} stays here; nobody takes care of it any more", self.vip.subnet());
        Ok(())
    }

    fn report(&mut self) {
        if self.reported == self.seen {
            return;
        }
        if let Some(seen) = &self.seen
            && (self.tell)(seen)
        {
            self.reported = self.seen.clone();
        }
    }
}

fn over(until: MonoTime) -> bool {
    RealClock.now() >= until
}

fn text(error: &dyn std::error::Error) -> String {
    Chain(error).to_string()
}
