//! What a worker and its guardian tell each other. Both are the same program, and its format is nobody
//! else's business.
//!
//! The guardian hands over once, at the start. From then on only the worker speaks, in messages of one
//! size that are sent whole or not at all. Points in time may be told as they are: both processes read
//! the same clock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pgherd_common::{Generation, MonoTime};
use pgherd_core::node::Guard;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

/// The longest first message: it holds the whole configuration.
const HAND_OVER_BYTES_MAX: usize = 150_000;
/// Signs of life need not come more often than this.
const ALIVE_PAUSE: Duration = Duration::from_millis(100);

/// What a worker is given at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandOver {
    adopted_until_ns: u64,
    /// PostgreSQL ran, and could write, when the last worker was heard of.
    pub(crate) ran_before: bool,
    /// The process of the guardian.
    pub(crate) guardian: i32,
    /// The configuration as the guardian read it: the file may have changed since.
    pub(crate) config: String,
}

impl HandOver {
    /// From this process.
    pub(super) fn new(adopted_until: MonoTime, ran_before: bool, config: &str) -> Self {
        let guardian = rustix::process::getpid().as_raw_nonzero().get();
        Self { adopted_until_ns: nanos(adopted_until), ran_before, guardian, config: config.to_owned() }
    }

    /// Until when a primary that runs may go on without a lease.
    pub(crate) fn adopted_until(&self) -> MonoTime {
        MonoTime::since_boot(Duration::from_nanos(self.adopted_until_ns))
    }

    /// As one message.
    pub(super) fn send(&self, socket: impl AsFd) -> io::Result<()> {
        send(socket, &serde_json::to_vec(self)?, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Waits for the message.
    fn receive(socket: impl AsFd) -> io::Result<Self> {
        let mut bytes = vec![0; HAND_OVER_BYTES_MAX];
        let ((), length) = recv(socket, &mut *bytes, RecvFlags::empty()).map(|(_, length)| ((), length))?;
        Ok(serde_json::from_slice(bytes.get(..length).unwrap_or_default())?)
    }
}

/// What a worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// What there is to guard.
    Guard(Guard),
    /// A turn that began then is complete.
    Alive(MonoTime),
    /// The worker was told to end, and PostgreSQL is nobody's charge from now on.
    Leaving,
}

impl Word {
    /// The size of every message.
    pub(super) const SIZE: usize = 17;

    fn encode(self) -> [u8; Self::SIZE] {
        let (kind, first, second) = match self {
            Self::Guard(Guard::Off) => (0, 0, 0),
            Self::Guard(Guard::Until { generation, fence_at }) => (1, generation.number(), nanos(fence_at)),
            Self::Alive(begun) => (2, nanos(begun), 0),
            Self::Leaving => (3, 0, 0),
        };
        let mut bytes = [kind; Self::SIZE];
        let numbers = first.to_le_bytes().into_iter().chain(second.to_le_bytes());
        bytes.iter_mut().skip(1).zip(numbers).for_each(|(byte, number)| *byte = number);
        bytes
    }

    /// `None` for what no worker says.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, numbers) = bytes.split_first()?;
        let (first, second) = numbers.split_first_chunk()?;
        let first = u64::from_le_bytes(*first);
        let second = u64::from_le_bytes(second.try_into().ok()?);
        let time = |nanos| MonoTime::since_boot(Duration::from_nanos(nanos));
        match kind {
            0 => Some(Self::Guard(Guard::Off)),
            1 => Some(Self::Guard(Guard::Until { generation: generation(first)?, fence_at: time(second) })),
            2 => Some(Self::Alive(time(first))),
            3 => Some(Self::Leaving),
            _ => None,
        }
    }
}

fn nanos(at: MonoTime) -> u64 {
    u64::try_from(at.since(MonoTime::default()).as_nanos()).unwrap_or(u64::MAX)
}

fn generation(number: u64) -> Option<Generation> {
    let number: serde::de::value::U64Deserializer<serde::de::value::Error> = number.into_deserializer();
    Generation::deserialize(number).ok()
}

/// The guardian does not take what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuardianLost {
    /// It has ended, and the kernel is about to end this process.
    #[error("the guardian of this agent is gone")]
    Gone,
    /// It does not read. It will get the newest word as soon as it does.
    #[error("the guardian of this agent hangs: send its process SIGCONT, or restart the agent")]
    Hangs,
}

/// The worker's end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// A word that is yet to be delivered.
    undelivered: Option<Guard>,
    /// The deadline it knows.
    fence_at: Option<MonoTime>,
    alive_at: MonoTime,
}

impl Channel {
    /// On standard input, which is /dev/null afterwards.
    pub(crate) fn take_over() -> io::Result<(Self, HandOver)> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let hand_over = HandOver::receive(&socket)?;
        Ok((Self::new(socket), hand_over))
    }

    fn new(socket: OwnedFd) -> Self {
        Self { socket, undelivered: None, fence_at: None, alive_at: MonoTime::default() }
    }

    /// On return the guardian knows, or will know before it does anything else.
    pub(crate) fn tell(&mut self, guard: Option<Guard>) -> Result<(), GuardianLost> {
        self.undelivered = guard.or(self.undelivered);
        let Some(guard) = self.undelivered else { return Ok(()) };
        self.say(Word::Guard(guard))?;
        self.undelivered = None;
        self.fence_at = match guard {
            Guard::Until { fence_at, .. } => Some(fence_at),
            Guard::Off => None,
        };
        Ok(())
    }

    /// A turn that began at `begun` is complete.
    pub(crate) fn alive(&mut self, begun: MonoTime) {
        let due = begun >= self.alive_at + ALIVE_PAUSE || self.fence_at.is_some_and(|at| begun >= at);
        // If it cannot be told now, there will be a next turn.
        if due && self.say(Word::Alive(begun)).is_ok() {
            self.alive_at = begun;
        }
    }

    /// This worker ends because it was told to.
    pub(crate) fn leave(&mut self) -> Result<(), GuardianLost> {
        self.say(Word::Leaving)
    }

    fn say(&self, word: Word) -> Result<(), GuardianLost> {
        match send(&self.socket, &word.encode(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Err(GuardianLost::Hangs),
            Err(_) => Err(GuardianLost::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::charge;

    fn at(millis: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(millis))
    }

    fn until(fence_at: MonoTime) -> Guard {
        Guard::Until { generation: Generation::ZERO.next().next(), fence_at }
    }

    #[test]
    fn every_word_arrives_as_it_was_said() {
        let words =
            [Word::Guard(Guard::Off), Word::Guard(until(at(123_456_789))), Word::Alive(at(7)), Word::Leaving];
        for word in words {
            assert_eq!(Word::decode(&word.encode()), Some(word));
        }
        assert_eq!(Word::decode(&[9; Word::SIZE]), None);
        assert_eq!(Word::decode(&[1; 5]), None);
        assert_eq!(Word::decode(&[]), None);
    }

    #[test]
    fn the_hand_over_arrives_whole() {
        let (ours, theirs) = charge::sockets().unwrap();
        let given = HandOver::new(at(5000), true, &"# comment\n".repeat(5000));
        given.send(&ours).unwrap();
        let got = HandOver::receive(&theirs).unwrap();
        assert_eq!((got.adopted_until(), &got), (at(5000), &given));
    }

    #[test]
    fn a_guardian_that_hangs_gets_the_newest_word_first_of_all() {
        let (ours, theirs) = charge::sockets().unwrap();
        let mut channel = Channel::new(theirs);
        let told = (0..100_000).find(|time| channel.tell(Some(until(at(*time)))).is_err());
        let told = told.expect("it takes everything");
        assert!(told > 100, "{told} words");
        assert_eq!(channel.tell(Some(until(at(999_999)))), Err(GuardianLost::Hangs));
        let mut bytes = [0; Word::SIZE];
        while recv(&ours, &mut bytes, RecvFlags::DONTWAIT).is_ok() {}
        assert_eq!(channel.tell(None), Ok(()));
        recv(&ours, &mut bytes, RecvFlags::DONTWAIT).unwrap();
        assert_eq!(Word::decode(&bytes), Some(Word::Guard(until(at(999_999)))));
        drop(ours);
        assert_eq!(channel.tell(Some(Guard::Off)), Err(GuardianLost::Gone));
    }

    #[test]
    fn signs_of_life_are_few_until_the_deadline_has_passed() {
        let (ours, theirs) = charge::sockets().unwrap();
        let mut channel = Channel::new(theirs);
        channel.tell(Some(until(at(1130)))).unwrap();
        for time in [1000, 1010, 1099, 1100, 1110, 1131, 1132] {
            channel.alive(at(time));
        }
        let mut said = Vec::new();
        let mut bytes = [0; Word::SIZE];
        while recv(&ours, &mut bytes, RecvFlags::DONTWAIT).is_ok() {
            said.extend(Word::decode(&bytes));
        }
        let alive = [1000, 1100, 1131, 1132].map(|time| Word::Alive(at(time)));
        assert_eq!(said[1..], alive);
    }
}
