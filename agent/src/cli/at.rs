//! When a switchover is to begin, as operators type it. Pure: clock and zone are handed in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Days, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use pgherd_common::WallTime;
use pgherd_common::config::{ConfigValue, Millis};

use super::error::CliError;
use crate::coordinator::SCHEDULE_AHEAD_MAX;

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    typed: String,
    meaning: Meaning,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// `+90m`.
    In(Duration),
    /// With its offset.
    Exactly(WallTime),
    /// Where the command runs.
    Local(NaiveDateTime),
    /// When the clocks where the command runs show it next.
    Next(NaiveTime),
}

/// A time, and how it reads where the command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct When {
    pub(super) at: WallTime,
    pub(super) shown: String,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl FromStr for At {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let meaning = in_span(text).or_else(|| exactly(text)).or_else(|| local(text)).or_else(|| next(text));
        let meaning = meaning.ok_or(
            "give a time such as 2026-12-01T03:00:00+01:00, \"2026-12-01 03:00\", 03:00 or +90m (units: s, m or min, h, d)",
        )?;
        Ok(Self { typed: text.to_owned(), meaning })
    }
}

/// A span of time, as in the configuration, and with `m` for minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let spelt = text.strip_suffix('m').map_or(text.to_owned(), |minutes| format!("{minutes}min"));
        let span = Millis::from_value(&toml::Value::String(spelt));
        span.map(|span| Self(span.0)).map_err(|_| "give a duration such as 30m (units: s, m or min, h, d)")
    }
}

fn in_span(text: &str) -> Option<Meaning> {
    text.strip_prefix('+')?.parse().ok().map(|Span(span)| Meaning::In(span))
}

fn exactly(text: &str) -> Option<Meaning> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(Meaning::Exactly(wall(&time)))
}

fn local(text: &str) -> Option<Meaning> {
    const FORMATS: [&str; 4] = ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"];
    let parse = |format: &&str| NaiveDateTime::parse_from_str(text, format).ok();
    FORMATS.iter().find_map(parse).map(Meaning::Local)
}

fn next(text: &str) -> Option<Meaning> {
    let parse = |format: &&str| NaiveTime::parse_from_str(text, format).ok();
    ["%H:%M", "%H:%M:%S"].iter().find_map(parse).map(Meaning::Next)
}

fn wall<Z: TimeZone>(time: &DateTime<Z>) -> WallTime {
    // Before 1970 is as much in the past as 1970 is.
    WallTime(u64::try_from(time.timestamp_millis()).unwrap_or(0))
}

impl At {
    /// The moment that is meant, if somebody can mean it.
    pub(super) fn resolve<Z: TimeZone>(&self, now: WallTime, zone: &Z) -> Result<When, CliError>
    where
        Z::Offset: fmt::Display,
    {
        let at = match self.meaning {
            Meaning::In(span) => now + span,
            Meaning::Exactly(at) => at,
            Meaning::Local(time) => self.unique(time, zone)?,
            Meaning::Next(time) => {
                let today = date(now, zone);
                match self.unique(today.and_time(time), zone)? {
                    at if at > now => at,
                    _ => self.unique((today + Days::new(1)).and_time(time), zone)?,
                }
            }
        };
        let shown = show(at, zone);
        if at <= now {
            return Err(self.refuse(format!("means {shown}, which is past")));
        }
        if at > now + SCHEDULE_AHEAD_MAX {
            return Err(self.refuse(format!("means {shown}, which is more than a year ahead")));
        }
        Ok(When { at, shown })
    }

    /// Where clocks are put forward or back, some times of day do not come, or come twice.
    fn unique<Z: TimeZone>(&self, time: NaiveDateTime, zone: &Z) -> Result<WallTime, CliError> {
        match zone.from_local_datetime(&time) {
            LocalResult::Single(at) => Ok(wall(&at)),
            LocalResult::Ambiguous(..) => {
                Err(self.refuse(format!("means {time}, which comes twice: clocks are put back")))
            }
            LocalResult::None => {
                Err(self.refuse(format!("means {time}, which does not come: clocks are put forward")))
            }
        }
    }

    fn refuse(&self, understood: String) -> CliError {
        CliError::Time { typed: self.typed.clone(), understood }
    }
}

/// `None` for what lies beyond all calendars.
fn utc(at: WallTime) -> Option<DateTime<Utc>> {
    i64::try_from(at.0).ok().and_then(DateTime::from_timestamp_millis)
}

fn date<Z: TimeZone>(at: WallTime, zone: &Z) -> NaiveDate {
    utc(at).map_or(NaiveDate::MIN, |at| at.with_timezone(zone).date_naive())
}

fn show<Z: TimeZone>(at: WallTime, zone: &Z) -> String
where
    Z::Offset: fmt::Display,
{
    let shown = |at: DateTime<Utc>| at.with_timezone(zone).format("%Y-%m-%d %H:%M:%S %:z").to_string();
    utc(at).map_or_else(|| at.to_string(), shown)
}

#[cfg(test)]
mod tests {
    use chrono::FixedOffset;

    use super::*;

    /// 2026-11-30 22:30:00 where it is one hour later than in Greenwich.
    const NOW: WallTime = WallTime(1_796_074_200_000);

    fn read(text: &str) -> Result<String, String> {
        let at: At = text.parse().map_err(str::to_owned)?;
        let zone = FixedOffset::east_opt(3600).unwrap();
        let when = at.resolve(NOW, &zone).map_err(|error| error.to_string())?;
        assert!(when.at > NOW);
        Ok(when.shown)
    }

    #[test]
    fn every_way_of_writing_a_time_is_understood() {
        assert_eq!(show(NOW, &FixedOffset::east_opt(3600).unwrap()), "2026-11-30 22:30:00 +01:00");
        for (typed, meant) in [
            ("2026-12-01T03:00:00+01:00", "2026-12-01 03:00:00 +01:00"),
            ("2026-12-01T03:00:00Z", "2026-12-01 04:00:00 +01:00"),
            ("2026-12-01 03:00", "2026-12-01 03:00:00 +01:00"),
            ("2026-12-01T03:00:30", "2026-12-01 03:00:30 +01:00"),
            ("23:00", "2026-11-30 23:00:00 +01:00"),
            // Past today.
            ("03:00", "2026-12-01 03:00:00 +01:00"),
            ("22:30", "2026-12-01 22:30:00 +01:00"),
            ("+90m", "2026-12-01 00:00:00 +01:00"),
            ("+90min", "2026-12-01 00:00:00 +01:00"),
            ("+2h", "2026-12-01 00:30:00 +01:00"),
            ("+2s", "2026-11-30 22:30:02 +01:00"),
            ("+365d", "2027-11-30 22:30:00 +01:00"),
        ] {
            assert_eq!(read(typed).as_deref(), Ok(meant), "{typed}");
        }
    }

    /// One hour ahead of Greenwich. At 02:00 on the 5th of December clocks are put forward, at 03:00 on the 6th back.
    #[derive(Debug, Clone)]
    struct Restless;

    impl Restless {
        fn offset(hours: i32) -> FixedOffset {
            FixedOffset::east_opt(hours * 3600).unwrap()
        }
    }

    impl TimeZone for Restless {
        type Offset = FixedOffset;

        fn from_offset(_: &FixedOffset) -> Self {
            Self
        }

        fn offset_from_local_date(&self, _: &NaiveDate) -> LocalResult<FixedOffset> {
            LocalResult::Single(Self::offset(1))
        }

        fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> LocalResult<FixedOffset> {
            match local.format("%d %H").to_string().as_str() {
                "05 02" => LocalResult::None,
                "06 02" => LocalResult::Ambiguous(Self::offset(2), Self::offset(1)),
                _ => LocalResult::Single(Self::offset(1)),
            }
        }

        fn offset_from_utc_date(&self, _: &NaiveDate) -> FixedOffset {
            Self::offset(1)
        }

        fn offset_from_utc_datetime(&self, _: &NaiveDateTime) -> FixedOffset {
            Self::offset(1)
        }
    }

    #[test]
    fn a_time_that_clocks_skip_or_show_twice_needs_its_offset() {
        let read = |typed: &str| {
            let when = typed.parse::<At>().unwrap().resolve(NOW, &Restless);
            when.map(|when| when.shown).map_err(|error| error.to_string())
        };
        assert_eq!(read("2026-12-05 01:30").as_deref(), Ok("2026-12-05 01:30:00 +01:00"));
        assert_eq!(
            read("2026-12-05 02:30").unwrap_err(),
            "2026-12-05 02:30 means 2026-12-05 02:30:00, which does not come: clocks are put forward"
        );
        assert_eq!(
            read("2026-12-06 02:30").unwrap_err(),
            "2026-12-06 02:30 means 2026-12-06 02:30:00, which comes twice: clocks are put back"
        );
        assert_eq!(read("2026-12-06T02:30:00+02:00").as_deref(), Ok("2026-12-06 01:30:00 +01:00"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_was_understood() {
        for (typed, why) in [
            ("2026-11-30 03:00", "2026-11-30 03:00 means 2026-11-30 03:00:00 +01:00, which is past"),
            (
                "2026-11-30T22:30:00+01:00",
                "2026-11-30T22:30:00+01:00 means 2026-11-30 22:30:00 +01:00, which is past",
            ),
            ("+0s", "+0s means 2026-11-30 22:30:00 +01:00, which is past"),
            ("+367d", "+367d means 2027-12-02 22:30:00 +01:00, which is more than a year ahead"),
            (
                "2062-12-01T03:00:00Z",
                "2062-12-01T03:00:00Z means 2062-12-01 04:00:00 +01:00, which is more than a year ahead",
            ),
            ("1926-12-01T03:00:00Z", "1926-12-01T03:00:00Z means 1970-01-01 01:00:00 +01:00, which is past"),
        ] {
            assert_eq!(read(typed).as_ref().map_err(String::as_str), Err(why), "{typed}");
        }
        for typed in
            ["", "3", "25:00", "tomorrow", "+", "+5", "+5x", "-5m", "2026-13-01 03:00", "+99999999999999999h"]
        {
            assert!(read(typed).unwrap_err().starts_with("give a time such as"), "{typed}");
        }
        assert!(read("+9999999999d").unwrap_err().ends_with("which is more than a year ahead"));
    }
}
