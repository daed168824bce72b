//! A session: what a client says, step by step, and how the two servers' answers are compared.

use std::fmt;
use std::time::Duration;

use super::line::{Address, Line, Until};
use super::say::{Say, message};
use super::told::Told;

/// What belongs together: without the rest, a part may never be answered.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) parts: Vec<Part>,
}

/// What is said in one go, before the answer is looked at.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) says: Vec<Say>,
    pub(super) until: Until,
}

impl Step {
    /// A step of one part.
    pub(super) fn one(says: Vec<Say>, until: Until) -> Self {
        Self { parts: vec![Part { says, until }] }
    }
}

/// Where a script finds its tables, and what only it may use.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// The schema that is its own.
    pub(super) schema: String,
    /// Tells its advisory locks from those of others.
    pub(super) serial: u32,
}

/// A session.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    /// It makes or alters something that its room has to be cleared of.
    pub(super) alters: bool,
}

/// The answers to a step, from the first on that differs.
#[derive(Debug)]
pub(super) struct Difference {
    /// Which step; the number of steps where it is about the end of the session, `None` where about
    /// its beginning.
    pub(super) step: Option<usize>,
    direct: Vec<Told>,
    proxied: Vec<Told>,
    /// Where they begin to differ.
    at: usize,
    silent: bool,
}

/// Both servers.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) direct: Address,
    pub(super) proxy: Address,
    /// How long an answer may take.
    pub(super) patience: Duration,
}

/// What a session came to.
#[derive(Debug, Default)]
pub(super) struct Played {
    pub(super) statements: usize,
    pub(super) messages: usize,
    pub(super) difference: Option<Difference>,
    hidden: Hidden,
}

/// What a transaction that has failed hides.
#[derive(Debug, Default, Clone, Copy)]
struct Hidden {
    /// There is one.
    failed: bool,
    /// All that is still to come up to the next `Sync`.
    rest: bool,
}

impl Script {
    /// Only these of its steps.
    pub(super) fn only(mut self, kept: &[usize]) -> Self {
        let mut number = 0..;
        self.steps.retain(|_| number.next().is_some_and(|number| kept.contains(&number)));
        self
    }

    /// Says it all to both.
    pub(super) async fn play(&self, pair: &Pair) -> std::io::Result<Played> {
        let (mut direct, greeting) = Line::open(&pair.direct, pair.patience).await?;
        let (mut proxied, proxy_greeting) = Line::open(&pair.proxy, pair.patience).await?;
        let mut played = Played::default();
        if let Some(found) = compare(None, sorted(greeting), sorted(proxy_greeting), false) {
            played.difference = Some(found);
            return Ok(played);
        }
        for (number, step) in self.steps.iter().enumerate() {
            for part in &step.parts {
                let mut bytes = Vec::new();
                part.says.iter().for_each(|say| say.put(&mut bytes));
                played.statements += part.says.iter().filter(|say| say.runs()).count();
                let said = (bytes.as_slice(), part.until);
                if played.say(number, said, &mut direct, &mut proxied).await? {
                    return Ok(played);
                }
            }
        }
        let mut goodbye = Vec::new();
        message(&mut goodbye, b'X', |_| ());
        played.say(self.steps.len(), (&goodbye, Until::Ready(usize::MAX)), &mut direct, &mut proxied).await?;
        Ok(played)
    }
}

impl Played {
    /// Says this to both. Whether that is the end: they differ, or they hang up.
    async fn say(
        &mut self,
        number: usize,
        (bytes, until): (&[u8], Until),
        direct: &mut Line,
        proxied: &mut Line,
    ) -> std::io::Result<bool> {
        let (mut answer, mut proxy_answer) = (Vec::new(), Vec::new());
        if !direct.exchange(bytes, until, &mut answer).await {
            let text =
                format!("the stand-alone server gives no answer in step {number}: the script is wrong");
            return Err(std::io::Error::other(text));
        }
        let as_much = match until {
            Until::Quiet(_) => Until::Count(answer.len()),
            Until::Ready(_) | Until::Count(_) => until,
        };
        let heard = proxied.exchange(bytes, as_much, &mut proxy_answer).await;
        self.messages += answer.len();
        let ended = answer.last().is_some_and(|last| last.tag == 0);
        self.hidden.even_out(&mut answer, &mut proxy_answer);
        self.difference = compare(Some(number), answer, proxy_answer, !heard);
        Ok(ended || self.difference.is_some())
    }
}

impl Hidden {
    /// In a transaction that has failed, a connection cannot hear of a statement that was prepared elsewhere: it
    /// refuses what is said about it, whereas PostgreSQL describes it if it gives no rows, and counts the values
    /// bound to it. Takes out of both answers what is said up to the next `Sync` then.
    fn even_out(&mut self, direct: &mut Vec<Told>, proxied: &mut Vec<Told>) {
        let mut at = 0;
        loop {
            if self.rest {
                for told in [&mut *direct, &mut *proxied] {
                    let upto = told.iter().skip(at).position(|told| told.tag == b'Z');
                    told.drain(at..upto.map_or(told.len(), |upto| at + upto));
                }
                self.rest = direct.len() <= at;
            }
            let (Some(one), Some(other)) = (direct.get(at), proxied.get(at)) else { break };
            self.failed = if one.tag == b'Z' { one.is_failed() } else { self.failed };
            let hides = one != other && other.is_refused() && (one.tag == b't' || one.is_miscounted());
            self.rest = self.failed && hides;
            at += usize::from(!self.rest);
        }
    }
}

/// The order of the first `ParameterStatus` messages says nothing.
fn sorted(mut told: Vec<Told>) -> Vec<Told> {
    told.sort_by(|a, b| (a.tag, &a.payload).cmp(&(b.tag, &b.payload)));
    told
}

fn compare(step: Option<usize>, direct: Vec<Told>, proxied: Vec<Told>, silent: bool) -> Option<Difference> {
    let same = direct.iter().zip(&proxied).take_while(|(a, b)| a == b).count();
    let differ = same < direct.len() || same < proxied.len();
    differ.then_some(Difference { step, direct, proxied, at: same, silent })
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says: Vec<&Say> = self.parts.iter().flat_map(|part| &part.says).collect();
        says.chunk_by(|one, next| one == next).try_for_each(|alike| match alike {
            [say] => writeln!(f, "    {say}"),
            _ => alike.first().map_or(Ok(()), |say| writeln!(f, "    {say} ({} times)", alike.len())),
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        if self.at > 0 {
            writeln!(f, "  {} messages are the same, then", self.at)?;
        }
        for (name, told) in [("PostgreSQL", &self.direct), ("the proxy", &self.proxied)] {
            writeln!(f, "  {name}:")?;
            let rest = told.get(self.at..).unwrap_or_default();
            rest.iter().take(SHOWN).try_for_each(|told| writeln!(f, "    {told}"))?;
            if rest.is_empty() {
                writeln!(f, "    (nothing)")?;
            }
        }
        if self.silent {
            writeln!(f, "  the proxy did not say anything more")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tag: u8, payload: &[u8]) -> Told {
        Told::new(tag, payload.to_vec())
    }

    #[test]
    fn only_what_a_failed_transaction_hides_is_evened_out() {
        let (ready, same) = (told(b'Z', b"E"), told(b'1', b""));
        let refused = told(b'E', b"SERROR\0C25P02\0\0");
        let described = [same.clone(), told(b't', b"\0\0"), told(b'n', b""), ready.clone(), same.clone()];
        let hidden = [same.clone(), refused.clone(), ready.clone(), same.clone()];
        let failed = Hidden { failed: true, rest: false };
        let (mut direct, mut proxied) = (described.to_vec(), hidden.to_vec());
        failed.clone().even_out(&mut direct, &mut proxied);
        assert!(direct == proxied && direct.len() == 3, "{direct:?} {proxied:?}");
        // What is flushed is heard before the rest.
        let (mut first, mut later) = (failed, vec![refused.clone(), ready.clone()]);
        let (mut direct, mut proxied) = (described[1..3].to_vec(), vec![refused.clone()]);
        first.even_out(&mut direct, &mut proxied);
        assert!(direct.is_empty() && proxied.is_empty());
        let mut skipped = vec![ready.clone()];
        first.even_out(&mut later, &mut skipped);
        assert!(later == skipped && later.len() == 1 && !first.rest, "{later:?} {skipped:?}");
        let (mut direct, mut proxied) = (vec![told(b'D', b"row"), ready.clone()], vec![refused, ready]);
        failed.clone().even_out(&mut direct, &mut proxied);
        assert!(compare(None, direct, proxied, false).is_some(), "a row is not hidden");
    }
}
