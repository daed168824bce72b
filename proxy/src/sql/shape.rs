//! Which literals of a text cannot matter to its verdict, so that texts that differ in them alone share one.
//!
//! Such literals are masked: numbers become `0`, strings `''`. What is not certain to be inert stays as it is.
//! Verdicts look into literals in two ways: at the arguments of functions, and at words and signs anywhere in
//! the text. So nothing within the parentheses of what may be a call is masked, and no string that holds
//! anything that some rule looks for.

use super::Verdict;
use super::classify::{TEXT_MAX, words_of};

/// Appends the text with its inert literals masked. `None`, and nothing is appended, when the text is not to be
/// shared with any other: it is too long, is none of the statements that come in great numbers, holds
/// comments, backslashes, dollar quotes or a second statement, or is not understood.
pub fn mask(sql: &[u8], out: &mut Vec<u8>) -> Option<Masked> {
    let before = out.len();
    let masked = Scan::new(sql).run(out);
    if masked.is_none() {
        out.truncate(before);
    }
    masked
}

/// What was masked of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masked {
    numbers: [(usize, usize); NUMBERS_MAX],
    count: usize,
    /// Nothing but numbers, in digits alone, and no more of them than are noted.
    plain: bool,
}

/// Texts with more of them are rarely sent again and again.
const NUMBERS_MAX: usize = 6;

impl Masked {
    const NOTHING: Self = Self { numbers: [(0, 0); NUMBERS_MAX], count: 0, plain: true };

    fn note(&mut self, literal: &[u8], start: usize) {
        let number = Some((start, start + literal.len())).filter(|_| literal.iter().all(u8::is_ascii_digit));
        match self.numbers.get_mut(self.count).zip(number) {
            Some((place, number)) => (*place, self.count) = (number, self.count + 1),
            None => self.plain = false,
        }
    }

    /// Where the numbers stood, when the text has the same mask with other digits in their places, whatever they are.
    pub fn numbers(&self) -> Option<&[(usize, usize)]> {
        self.numbers.get(..self.count).filter(|_| self.plain)
    }
}

/// Whether the verdict on a masked text may hold for all that look like it: only what says no more than where a text may
/// run does, as nothing of a text can be in it.
pub fn is_shared(masked: &[u8], verdict: &Verdict) -> bool {
    // Together with what stands in a string these may mean something to those who go by words.
    const VERBS: &[&str] = &["alter", "create", "drop", "import"];
    let verb = |word: &str| VERBS.iter().any(|verb| word.eq_ignore_ascii_case(verb));
    let plain = verdict.effects.is_empty()
        && verdict.uses.is_empty()
        && verdict.defines.is_none()
        && verdict.show.is_none()
        && verdict.traces.prepares.is_none()
        && verdict.traces.customs.is_empty();
    plain && std::str::from_utf8(masked).is_ok_and(|text| !words_of(text).any(verb))
}

/// What texts begin with that are worth it.
const FIRST: &[&[u8]] = &[b"select", b"insert", b"update", b"delete", b"with", b"values"];

/// Words in front of a parenthesis that can never be the name of a function there.
const NO_CALL: &[&[u8]] = &[
    b"and",
    b"or",
    b"not",
    b"where",
    b"on",
    b"having",
    b"when",
    b"then",
    b"else",
    b"select",
    b"exists",
    b"from",
    b"as",
    b"union",
    b"except",
    b"intersect",
];

/// Words behind which a string is a value like any other.
const BEFORE_STRING: &[&[u8]] = &[b"like", b"ilike", b"between", b"and", b"or", b"when", b"then", b"else"];

/// Words behind which a number is a value like any other.
const BEFORE_NUMBER: &[&[u8]] = &[
    b"limit", b"offset", b"between", b"and", b"or", b"when", b"then", b"else", b"select", b"where", b"by",
    b"like", b"ilike",
];

/// Deeper texts are rare.
const DEPTH_MAX: usize = 32;

/// What a byte is, outside of quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Name,
    Digit,
    Operator,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    Comma,
    Dot,
    Colon,
    Semicolon,
    Dollar,
    Quote,
    DoubleQuote,
    Odd,
}

/// Looked up, since every byte of nearly every text is.
static CLASSES: [Class; 256] = {
    let mut classes = [Class::Odd; 256];
    let (mut left, mut byte): (&mut [Class], u8) = (&mut classes, 0);
    while let Some((first, rest)) = left.split_first_mut() {
        *first = class_of(byte);
        (left, byte) = (rest, byte.wrapping_add(1));
    }
    classes
};

fn class(byte: u8) -> Class {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(Class::Odd)
}

const fn class_of(byte: u8) -> Class {
    match byte {
        b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' => Class::Space,
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => Class::Name,
        b'0'..=b'9' => Class::Digit,
        b'+' | b'-' | b'*' | b'/' | b'<' | b'>' | b'=' | b'~' | b'!' | b'@' | b'#' | b'%' | b'^' | b'&'
        | b'|' | b'?' => Class::Operator,
        b'(' => Class::Open,
        b')' => Class::Close,
        b'[' => Class::OpenBracket,
        b']' => Class::CloseBracket,
        b',' => Class::Comma,
        b'.' => Class::Dot,
        b':' => Class::Colon,
        b';' => Class::Semicolon,
        b'$' => Class::Dollar,
        b'\'' => Class::Quote,
        b'"' => Class::DoubleQuote,
        _ => Class::Odd,
    }
}

fn in_name(byte: u8) -> bool {
    matches!(class(byte), Class::Name | Class::Digit)
}

/// What parentheses are around something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// None, or such as only group.
    Plain,
    /// Those of `IN`.
    List,
    /// Those of a row of `VALUES`.
    Row,
    /// Those of what may be a call, a type or a list of columns, and all within them.
    Call,
    /// Those of a subscript or an array, and all within them.
    Bracket,
}

/// What stands in front of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// A word without quotes, and without a dot before it.
    Word {
        start: usize,
        end: usize,
    },
    /// An operator behind which a value is nothing but that.
    Operator,
    Open(Level),
    Close(Level),
    Comma,
    /// Behind a row of `VALUES`.
    CommaBehindRow,
    Dot,
    /// Anything else: a literal, a name in quotes or of several parts, a colon.
    Other,
}

struct Scan<'a> {
    sql: &'a [u8],
    at: usize,
    /// So much has been written out, or left out.
    copied: usize,
    before: Before,
    levels: [Level; DEPTH_MAX],
    depth: usize,
    ascii: bool,
    masked: Masked,
}

impl<'a> Scan<'a> {
    fn new(sql: &'a [u8]) -> Self {
        Self {
            sql,
            at: 0,
            copied: 0,
            before: Before::Other,
            levels: [Level::Plain; DEPTH_MAX],
            depth: 0,
            ascii: true,
            masked: Masked::NOTHING,
        }
    }

    /// `None`: the text is to be taken as it is.
    fn run(mut self, out: &mut Vec<u8>) -> Option<Masked> {
        if self.sql.len() > TEXT_MAX {
            return None;
        }
        self.first()?;
        while let Some(byte) = self.sql.get(self.at) {
            match class(*byte) {
                Class::Space => self.at += 1,
                Class::Name => self.word(),
                Class::Digit => self.number(out),
                Class::Operator => self.operator()?,
                Class::Quote => self.string(out)?,
                Class::Open => self.push(self.opens())?,
                Class::OpenBracket => self.push(Level::Bracket)?,
                Class::Close => self.pop(false)?,
                Class::CloseBracket => self.pop(true)?,
                Class::Comma => {
                    let behind_row = self.before == Before::Close(Level::Row);
                    self.step(1, if behind_row { Before::CommaBehindRow } else { Before::Comma });
                }
                Class::Dot => self.step(1, Before::Dot),
                Class::Colon => self.step(1, Before::Other),
                Class::DoubleQuote => {
                    let end = self.closing(b'"')?;
                    self.ascii &= self.sql.get(self.at..end)?.is_ascii();
                    self.at = end;
                    self.before = Before::Other;
                }
                Class::Dollar => self.parameter()?,
                Class::Semicolon => {
                    let rest = self.sql.get(self.at + 1..)?;
                    if !rest.iter().all(|byte| class(*byte) == Class::Space) {
                        return None;
                    }
                    break;
                }
                Class::Odd => return None,
            }
        }
        if self.depth != 0 || !(self.ascii || std::str::from_utf8(self.sql).is_ok()) {
            return None;
        }
        out.extend_from_slice(self.sql.get(self.copied..)?);
        Some(self.masked)
    }

    fn step(&mut self, len: usize, before: Before) {
        self.at += len;
        self.before = before;
    }

    fn level(&self) -> Level {
        let innermost = self.depth.checked_sub(1).and_then(|last| self.levels.get(last));
        innermost.copied().unwrap_or(Level::Plain)
    }

    fn push(&mut self, level: Level) -> Option<()> {
        *self.levels.get_mut(self.depth)? = level;
        self.depth += 1;
        self.step(1, Before::Open(level));
        Some(())
    }

    fn pop(&mut self, bracket: bool) -> Option<()> {
        let level = self.level();
        self.depth = self.depth.checked_sub(1)?;
        self.step(1, Before::Close(level));
        ((level == Level::Bracket) == bracket).then_some(())
    }

    /// What a parenthesis opens.
    fn opens(&self) -> Level {
        let within = matches!(self.level(), Level::Call | Level::Bracket);
        match self.before {
            _ if within => Level::Call,
            Before::Word { .. } if self.is_behind(&[b"in"]) => Level::List,
            Before::Word { .. } if self.is_behind(&[b"values"]) => Level::Row,
            Before::Word { .. } if self.is_behind(NO_CALL) => Level::Plain,
            Before::Operator | Before::Open(_) | Before::Comma => Level::Plain,
            Before::CommaBehindRow => Level::Row,
            Before::Word { .. } | Before::Close(_) | Before::Dot | Before::Other => Level::Call,
        }
    }

    /// Whether one of these words, in lower case, stands right before.
    fn is_behind(&self, words: &[&[u8]]) -> bool {
        let Before::Word { start, end } = self.before else { return false };
        let before = self.sql.get(start..end).unwrap_or_default();
        words.iter().any(|word| word.eq_ignore_ascii_case(before))
    }

    fn first(&mut self) -> Option<()> {
        self.at = self.sql.iter().position(|byte| class(*byte) != Class::Space)?;
        self.word();
        self.is_behind(FIRST).then_some(())
    }

    fn word(&mut self) {
        let (start, qualified) = (self.at, self.before == Before::Dot);
        self.skip(in_name);
        self.before = if qualified { Before::Other } else { Before::Word { start, end: self.at } };
    }

    /// Goes on to the next byte of another kind.
    fn skip(&mut self, kind: impl Fn(u8) -> bool) {
        let rest = self.sql.get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|byte| !kind(*byte)).unwrap_or(rest.len());
    }

    fn operator(&mut self) -> Option<()> {
        let start = self.at;
        self.skip(|byte| class(byte) == Class::Operator);
        let operator = self.sql.get(start..self.at)?;
        if operator.windows(2).any(|pair| matches!(pair, b"--" | b"/*")) {
            return None;
        }
        let named = start.checked_sub(1).and_then(|at| self.sql.get(at)) == Some(&b':');
        // What ends otherwise may be the beginning of something else, such as `U&''`.
        let plain =
            matches!(operator.last()?, b'=' | b'<' | b'>' | b'+' | b'-' | b'*' | b'/' | b'%' | b'|' | b'~');
        self.before = if plain && !named { Before::Operator } else { Before::Other };
        Some(())
    }

    /// `$1`, and nothing else with a dollar in it.
    fn parameter(&mut self) -> Option<()> {
        if self.at.checked_sub(1).and_then(|at| self.sql.get(at)).is_some_and(|byte| in_name(*byte)) {
            return None;
        }
        self.at += 1;
        let start = self.at;
        self.skip(|byte| byte.is_ascii_digit());
        let next = self.sql.get(self.at).copied().unwrap_or(b' ');
        self.before = Before::Other;
        (self.at > start && !in_name(next) && next != b'$').then_some(())
    }

    fn number(&mut self, out: &mut Vec<u8>) {
        let (start, byte) = (self.at, |at: usize| self.sql.get(at).copied().unwrap_or(b' '));
        let digits = |mut at: usize| {
            while byte(at).is_ascii_digit() {
                at += 1;
            }
            at
        };
        let mut end = digits(start);
        if byte(end) == b'.' && byte(end + 1).is_ascii_digit() {
            end = digits(end + 1);
        }
        let signed = usize::from(matches!(byte(end + 1), b'+' | b'-'));
        if matches!(byte(end), b'e' | b'E') && byte(end + 1 + signed).is_ascii_digit() {
            end = digits(end + 1 + signed);
        }
        let whole = !in_name(byte(end)) && byte(end) != b'.';
        if whole && self.takes_number() && self.is_let_alone(end) {
            self.mask(start, end, b"0", out);
        } else {
            self.at = end;
            self.skip(|byte| in_name(byte) || byte == b'.');
        }
        self.before = Before::Other;
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let (start, end) = (self.at, self.closing(b'\'')?);
        let content = self.sql.get(start + 1..end - 1)?;
        self.ascii &= content.is_ascii();
        let glued = self.sql.get(end).is_some_and(|byte| in_name(*byte));
        if !glued && self.takes_string() && self.is_let_alone(end) && !is_telling(content) {
            self.mask(start, end, b"''", out);
        } else {
            self.at = end;
        }
        self.before = Before::Other;
        Some(())
    }

    fn mask(&mut self, start: usize, end: usize, with: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(self.sql.get(self.copied..start).unwrap_or_default());
        out.extend_from_slice(with);
        self.masked.note(self.sql.get(start..end).unwrap_or_default(), start);
        (self.at, self.copied) = (end, end);
    }

    /// Where what is quoted from here on ends, the quote included. What it means with a backslash in it depends on
    /// settings.
    fn closing(&self, quote: u8) -> Option<usize> {
        let mut at = self.at + 1;
        loop {
            let rest = self.sql.get(at..)?;
            at += rest.iter().position(|byte| *byte == quote || *byte == b'\\')?;
            match (self.sql.get(at), self.sql.get(at + 1)) {
                (Some(b'\\'), _) => return None,
                (_, Some(next)) if *next == quote => at += 2,
                _ => return Some(at + 1),
            }
        }
    }

    fn takes_string(&self) -> bool {
        match (self.level(), self.before) {
            (Level::Call | Level::Bracket, _) => false,
            (_, Before::Operator) => true,
            (_, Before::Word { .. }) => self.is_behind(BEFORE_STRING),
            (level, Before::Open(_) | Before::Comma) => matches!(level, Level::List | Level::Row),
            (_, Before::Close(_) | Before::CommaBehindRow | Before::Dot | Before::Other) => false,
        }
    }

    fn takes_number(&self) -> bool {
        match (self.level(), self.before) {
            (Level::Call | Level::Bracket, _) => false,
            (_, Before::Operator | Before::Comma) => true,
            (_, Before::Word { .. }) => self.is_behind(BEFORE_NUMBER),
            (level, Before::Open(_)) => matches!(level, Level::List | Level::Row),
            (_, Before::Close(_) | Before::CommaBehindRow | Before::Dot | Before::Other) => false,
        }
    }

    /// Whether what follows a literal leaves it what it is: no cast, no further part of it.
    fn is_let_alone(&self, end: usize) -> bool {
        let rest = self.sql.get(end..).unwrap_or_default();
        let next = rest.iter().map(|byte| class(*byte)).find(|class| *class != Class::Space);
        next.is_none_or(|next| {
            matches!(next, Class::Name | Class::Operator | Class::Close | Class::Comma | Class::Semicolon)
        })
    }
}

/// Whether a string holds something, in whatever case, that some rule looks for anywhere in a text.
fn is_telling(content: &[u8]) -> bool {
    content.iter().enumerate().any(|(at, first)| {
        let telling: &[&[u8]] = match first.to_ascii_lowercase() {
            b';' | b'(' => return true,
            b'-' => &[b"--"],
            b'/' => &[b"/*"],
            b'&' => &[b"&\""],
            b'a' => &[b"alter"],
            b'c' => &[b"copy", b"create"],
            b'd' => &[b"discard", b"drop"],
            b'e' => &[b"execute"],
            b'i' => &[b"import"],
            b'l' => &[b"listen", b"load"],
            b'p' => &[b"pg_"],
            b's' => &[b"set", b"synchronous_commit"],
            b't' => &[b"temp"],
            _ => return false,
        };
        let rest = content.get(at..).unwrap_or_default();
        let is_here =
            |word: &&[u8]| rest.get(..word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word));
        telling.iter().any(is_here)
    })
}

#[cfg(test)]
#[path = "shape_tests.rs"]
pub(super) mod tests;
