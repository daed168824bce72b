//! What is sent to a server in one go: one simple query, or extended-protocol messages up to a `Sync`, a
//! `Flush` or a full buffer.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr;

use crate::sql::{Effect, Route, Settles, Show, Traces, Verdict, Why};
use crate::wire::frame::{self, HEADER_LEN, Header, Malformed};
use crate::wire::frontend::{self, Parse, Subject};

use super::statements::Definition;
use super::taken::{TakeError, Taken};
use super::told::Told;
use super::{Judge, Session};

/// Messages above this are passed on while they come in, and never held whole.
pub const LARGE: usize = 64 << 10;

/// A buffer for messages that grew beyond this is given back.
const KEEP: usize = 16 << 10;

/// Longer ones are rather taken from where they are than copied.
const COPIED_MAX: usize = 4 << 10;

/// What a message does to prepared statements.
#[derive(Debug, Clone)]
pub(super) enum What {
    Parse {
        name: String,
        definition: std::sync::Arc<Definition>,
    },
    /// `Describe` of a prepared statement.
    Uses(String),
    /// `Bind` of one that frees these names of prepared statements when it is run; `None`: all.
    Binds {
        name: String,
        frees: Vec<Option<String>>,
    },
    CloseStatement(String),
    ClosePortal,
    Other,
}

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) tag: u8,
    pub(super) len: usize,
    pub(super) what: What,
}

/// The text of a statement.
#[derive(Debug, Clone)]
enum Text {
    /// It stands in the messages.
    Here(Range<usize>),
    /// It came before.
    Before(Bytes),
}

/// Messages that go to one server together.
#[derive(Debug, Default)]
pub struct Segment {
    pub(super) bytes: BytesMut,
    pub(super) parts: Vec<Part>,
    pub(super) told: Told,
    /// Where all of them may run.
    pub route: Route,
    pub(super) effects: Vec<Effect>,
    pub(super) uses: Vec<String>,
    pub(super) traces: Traces,
    /// The proxy's own answer that is asked for.
    pub show: Option<Show>,
    /// Whether only some of the statements are for the proxy to answer.
    pub mixed: bool,
    /// Texts of the statements, to remember them by.
    texts: Vec<Text>,
    /// Bytes of the last message that have yet to come from the client.
    pub rest: usize,
    /// The server answers `ReadyForQuery` to the last message.
    pub ended: bool,
    /// It belongs to a batch that is under way.
    pub under_way: bool,
    /// What came before it in its batch has read, and that on another server.
    pub behind_reads: bool,
}

impl Segment {
    /// Empties it; its memory is for the next.
    pub fn clear(&mut self) {
        // Each by itself: to put a new one in the place of all would be to move all of it, for every statement.
        let Self {
            bytes,
            parts,
            told,
            route,
            effects,
            uses,
            traces,
            show,
            mixed,
            texts,
            rest,
            ended,
            under_way,
            behind_reads,
        } = self;
        bytes.clear();
        if bytes.capacity() > KEEP {
            *bytes = BytesMut::new();
        }
        parts.clear();
        effects.clear();
        uses.clear();
        texts.clear();
        (*told, *route, *traces) = (Told::default(), Route::default(), Traces::default());
        (*show, *mixed) = (None, false);
        (*rest, *ended, *under_way, *behind_reads) = (0, false, false, false);
    }

    /// What its messages take, in bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// How many times it ends the data of a COPY.
    pub fn copies_ended(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part.tag, b'c' | b'f')).count()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Its messages: tag, and whether it is about a prepared statement.
    pub fn messages(&self) -> impl Iterator<Item = (u8, bool)> {
        self.parts.iter().map(|part| (part.tag, is_of_statement(&part.what)))
    }

    /// Whether the client waits for `ReadyForQuery`, whatever became of the messages before.
    pub fn ends_with_sync(&self) -> bool {
        self.parts.last().is_some_and(|part| part.tag == b'S')
    }

    /// Whether the client waits for `ReadyForQuery` when the first message in it fails: a query behind
    /// others is then not run, and what follows is not before the next `Sync`.
    pub fn ends_when_refused(&self) -> bool {
        self.ended && (self.parts.len() == 1 || self.ends_with_sync())
    }

    /// Whether a transaction on a standby can hold it, and still go on elsewhere behind it.
    pub fn suits_reader(&self) -> bool {
        !self.told.impure && self.route != Route::Primary
    }

    /// Whether something for the primary stands beside the end of a transaction in it. In a text that the
    /// parser does not know, any of several statements may be such an end.
    pub fn goes_on_behind_its_end(&self) -> bool {
        let ends = |effect: &Effect| matches!(effect, Effect::Commit | Effect::Rollback);
        let may_end = self.effects.iter().any(ends) || self.told.runs > self.told.statements;
        (self.told.impure || self.route == Route::Primary) && may_end
    }

    /// Whether what follows it in its batch may use a portal that is bound in it, and is with that
    /// portal's server for better or worse.
    pub fn leaves_portals(&self) -> bool {
        (self.told.portals > 0 || self.told.binds_named) && !self.ended
    }

    /// Whether it uses the unnamed portal that was bound before it, which only its server has.
    pub fn reaches_back(&self) -> bool {
        self.told.reaches_back
    }

    /// Whether something in it may be prepared under other settings than those of the login.
    pub(super) fn is_disturbed(&self) -> bool {
        self.route != Route::Read || self.told.statements > 1 || self.under_way
    }

    /// Whether a transaction block is opened in it.
    pub fn opens(&self) -> bool {
        self.told.opens
    }

    /// Whether all it does is to open a transaction block.
    pub(super) fn only_begins(&self) -> bool {
        self.told.begins == Some(true)
    }

    /// Whether no transaction is open behind it for certain, and it takes no more from the client: the
    /// server may be asked something in one go with it. `in_block`: a transaction is open before it.
    pub(super) fn settles(&self, in_block: bool) -> bool {
        let known = match self.told.settles {
            Some(Settles::Always) => true,
            Some(Settles::Alone) => !in_block,
            Some(Settles::Unknown) | None => false,
        };
        // A query behind messages without a Sync is not run if these fail, nor is what follows it.
        known && self.rest == 0 && (self.ends_with_sync() || (self.ended && self.parts.len() == 1))
    }

    /// Whether it runs one statement, of its own text or portal, and asks for nothing else.
    pub(super) fn runs_one(&self) -> bool {
        let count = |wanted: u8| self.messages().filter(|(tag, _)| *tag == wanted).count();
        if count(b'Q') > 0 {
            return self.parts.len() == 1;
        }
        let usual = self.messages().all(|(tag, of_statement)| match tag {
            b'D' => !of_statement,
            tag => matches!(tag, b'P' | b'B' | b'E' | b'S'),
        });
        usual && count(b'P') <= 1 && count(b'B') == 1 && count(b'E') == 1 && !self.reaches_back()
    }

    /// The text that opens a transaction block, or tells it to only read, if that is all it does.
    pub(super) fn beginning(&self) -> Option<Bytes> {
        if !self.only_begins() && !self.told.turns_read_only {
            return None;
        }
        let text = self.texts().next()?;
        self.texts().all(|other| other == text).then(|| Bytes::copy_from_slice(text))
    }

    /// Texts of the statements.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.texts.iter().map(|text| match text {
            Text::Here(range) => self.bytes.get(range.clone()).unwrap_or_default(),
            Text::Before(text) => text,
        })
    }

    /// A text stands so far behind the beginning of the next message.
    fn note_text(&mut self, behind: usize, len: usize) {
        let begin = self.bytes.len() + behind;
        self.texts.push(Text::Here(begin..begin + len));
    }

    /// Whether there is any statement in it.
    pub(super) fn has_statements(&self) -> bool {
        !self.texts.is_empty() || self.told.begins.is_some()
    }

    /// Whether all it does is to tell an open transaction block to only read.
    pub fn turns_read_only(&self) -> bool {
        self.told.turns_read_only
    }

    /// Whether all it does is to roll back.
    pub(super) fn only_rolls_back(&self) -> bool {
        self.told.rolls_back == Some(true)
    }

    /// `route`: where it may run in this session.
    fn add(&mut self, verdict: &Verdict, route: Route) {
        // What stands beside a rollback is not undone by it.
        self.told.may_commit |= self.told.rolls_back.is_some() && (self.told.ends_tx || verdict.rolls_back);
        self.told.ends_tx |= verdict.rolls_back;
        self.told.opens |= verdict.begins;
        let ends = |effect: &Effect| matches!(effect, Effect::Commit | Effect::Rollback);
        let reads = (route == Route::Read && verdict.effects.is_empty()) || verdict.turns_read_only;
        self.told.impure |= !reads && (verdict.effects.is_empty() || !verdict.effects.iter().all(ends));
        self.told.turns_read_only = verdict.turns_read_only && self.told.begins.is_none();
        self.told.begins = Some(verdict.begins && self.told.begins.unwrap_or(true));
        self.told.rolls_back = Some(verdict.rolls_back && self.told.rolls_back.unwrap_or(true));
        self.route = self.route.together(route);
        self.effects.extend(verdict.effects.iter().cloned());
        self.uses.extend(verdict.uses.iter().cloned());
        self.traces.add(&verdict.traces);
        let frees = verdict.effects.iter().any(|effect| effect.frees().is_some());
        self.told.frees_at =
            self.told.frees_at.or(frees.then(|| self.told.runs + verdict.frees_at.unwrap_or(0)));
        self.told.runs += verdict.count;
        self.told.statements += 1;
        self.told.soils |= soils(verdict);
        self.told.settles = Some(match (self.told.settles, verdict.settles) {
            (Some(Settles::Unknown), _) | (_, Settles::Unknown) => Settles::Unknown,
            (_, last) => last,
        });
        self.told.redefines |= verdict.defines.is_some();
        self.told.may_commit |= verdict.may_commit;
        self.note_show(verdict.show);
    }

    fn note_portal(&mut self, name: &str, is_there: bool) {
        self.told.portal = if name.is_empty() { Some(is_there) } else { self.told.portal };
    }

    fn note_portal_use(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.told.reaches_back |= self.told.portal.is_none();
        } else if !self.told.binds_named {
            // A cursor, on the primary if anywhere.
            self.route = Route::Primary;
        }
    }

    /// Whether it may meet a cursor of the session by its name.
    pub(super) fn binds_named(&self) -> bool {
        self.told.binds_named
    }

    fn note_show(&mut self, show: Option<Show>) {
        self.mixed |= self.told.judged && self.show != show;
        self.told.judged = true;
        self.show = self.show.or(show);
    }
}

impl Session {
    /// Moves whole messages from `input` into `segment` until it is complete or the bytes run out.
    pub fn take(
        &mut self,
        input: &mut BytesMut,
        segment: &mut Segment,
        judge: &dyn Judge,
    ) -> Result<Taken, TakeError> {
        while let Some(header) = frontend::header(input)? {
            let have = input.len().min(header.len);
            if have < header.len && have < LARGE {
                return Ok(Taken::Incomplete);
            }
            if header.tag == b'X' {
                return Ok(Taken::Goodbye);
            }
            let whole = have == header.len;
            // Left over from a COPY that failed: servers ignore them too. Behind something that may begin one
            // they are the server's to judge.
            if is_copied(header.tag) && segment.is_empty() && !segment.under_way {
                frame::consume(input, have);
                if !whole {
                    return Ok(Taken::Ignored(header.len - have));
                }
                continue;
            }
            // There is nothing to flush yet.
            if header.tag == b'H' && header.len == HEADER_LEN && segment.is_empty() && !segment.under_way {
                frame::consume(input, have);
                continue;
            }
            let payload = input.get(HEADER_LEN..have).unwrap_or_default();
            let what = self.read_message(header, payload, whole, segment, judge)?;
            segment.parts.push(Part { tag: header.tag, len: have, what });
            segment.rest = header.len - have;
            segment.ended = matches!(header.tag, b'Q' | b'S' | b'F');
            append(&mut segment.bytes, input, have);
            if segment.ended || header.tag == b'H' || !whole || segment.bytes.len() >= LARGE {
                return Ok(Taken::Complete);
            }
        }
        Ok(Taken::Incomplete)
    }

    fn read_message(
        &mut self,
        header: Header,
        payload: &[u8],
        whole: bool,
        segment: &mut Segment,
        judge: &dyn Judge,
    ) -> Result<What, TakeError> {
        let malformed = |_: Malformed| TakeError::Content(header.tag);
        match header.tag {
            b'Q' => {
                let text = payload.strip_suffix(b"\0").filter(|text| whole && memchr(0, text).is_none());
                if whole && text.is_none() {
                    return Err(TakeError::Content(header.tag));
                }
                segment.told.portal = Some(false);
                match text {
                    Some(text) => {
                        let verdict = judge.verdict(text);
                        segment.add(&verdict, self.route(&verdict, Some(text)));
                        segment.note_text(HEADER_LEN, text.len());
                    }
                    None => segment.add_unknown(),
                }
                Ok(What::Other)
            }
            b'P' => self.read_parse(payload, whole, segment, judge).map_err(malformed),
            b'B' => self.read_bind(payload, segment, judge).map_err(malformed),
            b'D' | b'C' => match (header.tag, frontend::subject(payload).map_err(malformed)?) {
                (b'D', Subject::Statement(name)) => {
                    let route = self.statements.find(name).map_or(Route::Primary, |known| {
                        self.route(&known.verdict_now(judge), known.text().map(|text| &**text))
                    });
                    segment.route = segment.route.together(route);
                    Ok(What::Uses(name.to_owned()))
                }
                (b'C', Subject::Statement(name)) => Ok(What::CloseStatement(name.to_owned())),
                (b'C', Subject::Portal(name)) => {
                    segment.told.portals = segment.told.portals.saturating_sub(1);
                    segment.note_portal(name, false);
                    Ok(What::ClosePortal)
                }
                (_, Subject::Portal(name)) => {
                    segment.note_portal_use(name.as_bytes());
                    Ok(What::Other)
                }
                (_, Subject::Statement(_)) => Err(TakeError::Tag(header.tag)),
            },
            b'E' => {
                // A portal's name comes first.
                segment.note_portal_use(payload.split(|byte| *byte == 0).next().unwrap_or_default());
                // All rows at once: nobody comes back for more.
                if payload.ends_with(&[0; 4]) {
                    segment.told.portals = segment.told.portals.saturating_sub(1);
                } else {
                    segment.told.impure = true;
                }
                Ok(What::Other)
            }
            b'H' | b'S' | b'd' | b'c' | b'f' => Ok(What::Other),
            b'F' => {
                segment.add_unknown();
                Ok(What::Other)
            }
            other => Err(TakeError::Tag(other)),
        }
    }

    fn read_bind(&self, payload: &[u8], segment: &mut Segment, judge: &dyn Judge) -> Result<What, Malformed> {
        let (portal, name) = frontend::bind(payload)?;
        segment.told.portals += 1;
        segment.note_portal(portal, true);
        segment.told.binds_named |= !portal.is_empty();
        // It may be asked for more rows later.
        segment.told.impure |= !portal.is_empty();
        let mut frees = vec![];
        match self.statements.find(name) {
            Some(definition) => {
                let (verdict, text) = (definition.verdict_now(judge), definition.text());
                segment.add(&verdict, self.route(&verdict, text.map(|text| &**text)));
                segment.texts.extend(text.cloned().map(Text::Before));
                frees.extend(verdict.effects.iter().filter_map(Effect::frees));
            }
            // Prepared by SQL, or an error.
            None => {
                let verdict = Verdict { may_commit: true, ..Verdict::plain(Route::Primary) };
                segment.add(&verdict, Route::Primary);
            }
        }
        Ok(What::Binds { name: name.to_owned(), frees })
    }

    /// Where a text may run in this session.
    fn route(&self, verdict: &Verdict, text: Option<&[u8]>) -> Route {
        let reads = verdict.begins_as_usual && self.reads_as_usual;
        if reads { Route::Read } else { self.temporaries.route(verdict, text) }
    }

    fn read_parse(
        &mut self,
        payload: &[u8],
        whole: bool,
        segment: &mut Segment,
        judge: &dyn Judge,
    ) -> Result<What, Malformed> {
        if !whole || self.statements.are_too_many() {
            let name = frame::Reader(payload).text()?;
            let verdict = std::sync::Arc::new(Verdict::unknown());
            segment.add(&verdict, Route::Primary);
            let definition = self.statements.announce(name, None, (verdict, None), None, false);
            return Ok(What::Parse { name: name.to_owned(), definition });
        }
        let parse = Parse::read(payload)?;
        let (version, verdict) = (judge.version(), judge.verdict(parse.sql));
        // What it does to the session it does when it is bound; preparing it only needs the right place.
        segment.route = segment.route.together(self.route(&verdict, Some(parse.sql)));
        segment.note_show(verdict.show);
        // It may be run behind a flush, when it is too late to tell its connection of them.
        segment.uses.extend(verdict.uses.iter().cloned());
        segment.note_text(HEADER_LEN + parse.name.len() + 1, parse.sql.len());
        let body = Some(Bytes::copy_from_slice(parse.body));
        let common = self.prepares_commonly(parse.name, parse.sql, segment);
        let judged = (verdict, version);
        let definition = self.statements.announce(parse.name, body, judged, self.settings.path(), common);
        Ok(What::Parse { name: parse.name.to_owned(), definition })
    }
}

impl Segment {
    /// What in it needs the very connection beyond its transaction. `in_tx`: one is open.
    pub fn holds(&self, in_tx: bool) -> Option<Why> {
        let prepared = self.parts.iter().filter_map(|part| match &part.what {
            What::Parse { definition, .. } => Some(&definition.verdict.traces.holds),
            _ => None,
        });
        // It may be prepared for a transaction to come.
        let mut prepared = prepared.flatten().filter(|why| **why != Why::Sequence);
        let in_tx = in_tx || self.told.opens;
        let run = self.traces.holds.iter().find(|why| !(in_tx && **why == Why::Sequence));
        run.or_else(|| prepared.next()).copied()
    }

    /// Whether the schema of temporary objects may come to be by it.
    pub(super) fn may_make_temporary(&self) -> bool {
        let makes = |effect: &Effect| {
            use Effect::{LikelyTemporary, Pin, Suspect, Temporary};
            matches!(effect, Temporary(_) | LikelyTemporary(_) | Pin | Suspect(_))
        };
        self.traces.names_temporary
            || self.traces.holds.contains(&Why::Temporary)
            || self.effects.iter().any(makes)
    }

    /// Whether a named statement is prepared in it by the protocol.
    pub(super) fn prepares_named(&self) -> bool {
        self.parts.iter().any(|part| matches!(&part.what, What::Parse { name, .. } if !name.is_empty()))
    }

    /// Whether all it does is to free this name of a prepared statement.
    pub(super) fn only_frees(&self, name: &str) -> bool {
        let frees = |effect: &Effect| matches!(effect, Effect::Deallocate(freed) if freed == name);
        self.told.runs == 1 && self.effects.iter().any(frees)
    }

    /// Names of statements that it uses and that were prepared before it.
    pub(super) fn uses_from_before(&self) -> impl Iterator<Item = &String> {
        let mut own = BTreeSet::new();
        self.parts.iter().filter_map(move |part| match &part.what {
            What::Uses(name) | What::Binds { name, .. } => Some(name).filter(|name| !own.contains(*name)),
            What::Parse { name, .. } | What::CloseStatement(name) => {
                own.insert(name);
                None
            }
            What::ClosePortal | What::Other => None,
        })
    }

    /// Names of prepared statements in it, of the protocol's messages too.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        let in_messages = self.parts.iter().filter_map(|part| match &part.what {
            What::Parse { name, .. } | What::Uses(name) | What::Binds { name, .. } => Some(name),
            What::CloseStatement(_) | What::ClosePortal | What::Other => None,
        });
        self.uses.iter().chain(in_messages)
    }

    /// What it changes for new logins, if it does.
    pub fn changes_logins(&self) -> Option<&Option<Vec<String>>> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Logins(databases) => Some(databases),
            _ => None,
        })
    }

    fn add_unknown(&mut self) {
        self.add(&Verdict::unknown(), Route::Primary);
    }
}

fn is_of_statement(what: &What) -> bool {
    matches!(what, What::Uses(_) | What::Binds { .. } | What::CloseStatement(_))
}

/// Whether a text does more than to read, or to begin or end a transaction.
fn soils(verdict: &Verdict) -> bool {
    let control = |effect: &Effect| {
        use Effect::{Commit, ForTransaction, Rollback, RollbackTo, Savepoint};
        matches!(effect, Commit | ForTransaction | Rollback | Savepoint(_) | RollbackTo(_))
    };
    let harmless = verdict.begins || verdict.route != Route::Primary;
    !harmless || !verdict.effects.iter().all(control)
}

/// Whether a message is part of a COPY from the client.
fn is_copied(tag: u8) -> bool {
    matches!(tag, b'd' | b'c' | b'f')
}

/// Moves `count` bytes: many without a copy when nothing is there yet, few into memory that is there already.
fn append(to: &mut BytesMut, from: &mut BytesMut, count: usize) {
    if to.is_empty() && count > COPIED_MAX {
        *to = from.split_to(count);
    } else {
        to.extend_from_slice(from.get(..count).unwrap_or_default());
        frame::consume(from, count);
    }
}
