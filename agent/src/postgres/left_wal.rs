//! What a server that was killed has left in `pg_wal`: how far it goes, and the bytes of it.
//!
//! Where the WAL of a killed primary ends, `pg_control` does not tell. It is found as recovery finds it: the last page that
//! belongs where it lies, and in it the end of the chain of records. Checksums are left to recovery, which reads all of it
//! again. The layout is that of PostgreSQL's `access/xlog_internal.h` and `access/xlogrecord.h`, the same in 14 to 18.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgherd_common::{Lsn, Timeline};

use super::timelines::{timeline_of, wal_dir};
use crate::salvage::LeftWal;

/// Every segment begins with a header of this length, every other page with a shorter one.
const LONG_HEADER: usize = 40;
const SHORT_HEADER: usize = 24;
/// `XLP_FIRST_IS_CONTRECORD` and `XLP_LONG_HEADER`.
const CONTINUES: u16 = 1;
const LONG: u16 = 2;
/// The magic number of a page is this, and a number for the major version.
const MAGIC: u16 = 0xD100;
/// A record's header, and what its records are aligned to.
const RECORD_HEADER: usize = 24;
const ALIGNMENT: usize = 8;

/// Where the WAL ends that the newest timeline has here; `None` when there is none. An error where that cannot be told: an
/// end that is too early would be taken for the truth.
pub(super) fn find(data_dir: &Path) -> io::Result<Option<LeftWal>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(wal_dir(data_dir))? {
        let entry = entry?;
        segments.extend(entry.file_name().to_str().and_then(|name| Segment::named(name, &entry.path())));
    }
    segments.sort_unstable_by_key(|segment| Reverse((segment.timeline, segment.log, segment.low)));
    for segment in segments {
        // Files kept for later hold what they held before.
        if let Some(end) = segment.end()? {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

/// Up to `length` bytes from `from` on, as they lie in the files of a timeline; fewer where those end.
pub(super) fn read(data_dir: &Path, timeline: Timeline, from: Lsn, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let size = segment_size(data_dir, timeline)?;
    while bytes.len() < length {
        let at = from.0 + bytes.len() as u64;
        let (path, offset) = (path_of(data_dir, timeline, at, size), at % size);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let part = (length - bytes.len()).min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        let start = bytes.len();
        bytes.resize(start + part, 0);
        file.read_exact_at(bytes.get_mut(start..).unwrap_or_default(), offset)?;
    }
    Ok(bytes)
}

/// The file of a timeline that has the position `at`, with segments of `size` bytes.
pub(super) fn path_of(data_dir: &Path, timeline: Timeline, at: u64, size: u64) -> PathBuf {
    let (number, per_log) = (at / size, (1 << 32) / size);
    wal_dir(data_dir).join(format!("{:08X}{:08X}{:08X}", timeline.0, number / per_log, number % per_log))
}

fn segment_size(data_dir: &Path, timeline: Timeline) -> io::Result<u64> {
    let names = fs::read_dir(wal_dir(data_dir))?.flatten();
    let mut segments = names.filter_map(|entry| Segment::named(entry.file_name().to_str()?, &entry.path()));
    let of = segments.find(|segment| segment.timeline == timeline);
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("no WAL of timeline {timeline}"));
    size_of(&File::open(of.ok_or_else(none)?.path)?)
}

fn size_of(segment: &File) -> io::Result<u64> {
    let size = segment.metadata()?.len();
    let sane = size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size);
    let strange = || io::Error::new(io::ErrorKind::InvalidData, format!("a WAL segment of {size} bytes"));
    sane.then_some(size).ok_or_else(strange)
}

/// A file of `pg_wal`.
#[derive(Debug)]
struct Segment {
    timeline: Timeline,
    /// The two halves of its number; how many there are of the lower one depends on the size of the files.
    log: u64,
    low: u64,
    path: PathBuf,
}

impl Segment {
    fn named(name: &str, path: &Path) -> Option<Self> {
        let timeline = timeline_of(name).filter(|_| name.len() == 24)?;
        let half = |range| name.get(range).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        Some(Self { timeline, log: half(8..16)?, low: half(16..24)?, path: path.to_owned() })
    }

    /// Where the WAL in this file ends; `None` when it holds none of its own, or nothing but a part of a record that began
    /// in an earlier one and is not whole.
    fn end(&self) -> io::Result<Option<LeftWal>> {
        let file = File::open(&self.path)?;
        let size = size_of(&file)?;
        let start = (self.log << 32) + self.low * size;
        let mut first = [0; LONG_HEADER];
        file.read_exact_at(&mut first, 0)?;
        let page_size = field(&first, 36).map_or(0, |size| u64::from(u32::from_ne_bytes(size)));
        let sane = page_size.is_power_of_two() && (1 << 10..=1 << 16).contains(&page_size);
        if !sane || !self.is_page(&first, start) {
            return Ok(None);
        }
        // Pages are written one after the other: all up to some page belong here, and none behind it.
        let (mut good, mut bad) = (0, size / page_size);
        while bad - good > 1 {
            let middle = u64::midpoint(good, bad);
            let mut header = [0; SHORT_HEADER];
            file.read_exact_at(&mut header, middle * page_size)?;
            if self.is_page(&header, start + middle * page_size) { good = middle } else { bad = middle }
        }
        let mut page = vec![0; usize::try_from(page_size).unwrap_or(0)];
        for number in (0..=good).rev() {
            file.read_exact_at(&mut page, number * page_size)?;
            if let Some(end) = end_in(&page) {
                let end = Lsn(start + number * page_size + end);
                return Ok(Some(LeftWal { timeline: self.timeline, end }));
            }
        }
        Ok(None)
    }

    /// Whether a page belongs at this position.
    fn is_page(&self, header: &[u8], position: u64) -> bool {
        let magic = field(header, 0).map(u16::from_ne_bytes);
        let timeline = field(header, 4).map(u32::from_ne_bytes);
        let address = field(header, 8).map(u64::from_ne_bytes);
        magic.is_some_and(|magic| magic & 0xFF00 == MAGIC)
            && timeline.is_some_and(|timeline| (1..=self.timeline.0).contains(&timeline))
            && address == Some(position)
    }
}

/// Where, in the last page there is, the last whole record ends; `None` when no record begins in it.
fn end_in(page: &[u8]) -> Option<u64> {
    let info = u16::from_ne_bytes(field(page, 2)?);
    let header = if info & LONG == 0 { SHORT_HEADER } else { LONG_HEADER };
    let mut at = header;
    if info & CONTINUES != 0 {
        let rest = usize::try_from(u32::from_ne_bytes(field(page, 16)?)).ok()?;
        at = aligned(header.checked_add(rest)?)?;
        if at > page.len() {
            return None;
        }
    }
    let address = u64::from_ne_bytes(field(page, 8)?);
    let mut before = None;
    loop {
        let length = field(page, at).map(u32::from_ne_bytes).and_then(|length| usize::try_from(length).ok());
        let chained = match (field(page, at + 8).map(u64::from_ne_bytes), before) {
            (Some(previous), Some(before)) => previous == address + before,
            _ => true,
        };
        let next = length.filter(|length| *length >= RECORD_HEADER && chained);
        let next =
            next.and_then(|length| aligned(at.checked_add(length)?)).filter(|next| *next <= page.len());
        match next {
            Some(next) => (before, at) = (Some(at as u64), next),
            // Nothing but the header: the record before ended with the page before.
            None if at == header => return Some(0),
            None => return Some(at as u64),
        }
    }
}

fn aligned(at: usize) -> Option<usize> {
    at.checked_next_multiple_of(ALIGNMENT)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8192;
    const SEGMENT: u64 = 1 << 20;

    /// A page at `address` with records of these lengths behind `rest` bytes of an earlier one.
    fn page(address: u64, rest: u32, lengths: &[u32]) -> Vec<u8> {
        let long = address.is_multiple_of(SEGMENT);
        let mut page = vec![0; PAGE];
        let info = u16::from(rest > 0) * CONTINUES + u16::from(long) * LONG;
        page[..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
        page[2..4].copy_from_slice(&info.to_ne_bytes());
        page[4..8].copy_from_slice(&1_u32.to_ne_bytes());
        page[8..16].copy_from_slice(&address.to_ne_bytes());
        page[16..20].copy_from_slice(&rest.to_ne_bytes());
        if long {
            page[36..40].copy_from_slice(&u32::try_from(PAGE).unwrap().to_ne_bytes());
        }
        let mut at = aligned(if long { LONG_HEADER } else { SHORT_HEADER } + rest as usize).unwrap();
        let mut before = 0;
        for length in lengths {
            page[at..at + 4].copy_from_slice(&length.to_ne_bytes());
            page[at + 8..at + 16].copy_from_slice(&(address + before).to_ne_bytes());
            (before, at) = (at as u64, aligned(at + *length as usize).unwrap());
        }
        page
    }

    #[test]
    fn the_last_whole_record_of_a_page_is_found() {
        let end = |rest, lengths: &[u32]| end_in(&page(SEGMENT + 8192, rest, lengths));
        assert_eq!(end(0, &[]), Some(0), "the page before was the last one with a record");
        assert_eq!(end(0, &[24, 50]), Some(24 + 24 + 56));
        assert_eq!(end(100, &[]), Some(128), "what began before ends here");
        assert_eq!(end(100, &[30]), Some(128 + 32));
        assert_eq!(end(0, &[8000, 500]), Some(24 + 8000), "the rest of the second one is not there");
        assert_eq!(end(9000, &[]), None, "neither does a record begin here nor is it whole");
        assert_eq!(end(0, &[24, 23]), Some(48), "shorter than any record");
        let mut stale = page(SEGMENT + 8192, 0, &[24, 32, 32]);
        stale[24 + 24 + 8..24 + 24 + 16].copy_from_slice(&77_u64.to_ne_bytes());
        assert_eq!(end_in(&stale), Some(48), "what does not follow on the record before is older");
        for cut in 0..200 {
            // Whatever the bytes, it returns.
            let _ = end_in(&stale[..cut]);
        }
    }

    #[test]
    fn the_end_lies_in_the_last_page_that_belongs_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        let write = |name: &str, pages: &[Vec<u8>]| {
            let mut bytes = pages.concat();
            bytes.resize(usize::try_from(SEGMENT).unwrap(), 0);
            fs::write(dir.path().join("pg_wal").join(name), bytes).unwrap();
        };
        let first = 3 * SEGMENT;
        write("000000010000000000000003", &[page(first, 0, &[24]), page(first + 8192, 0, &[40])]);
        // Kept for later, with what it held before, and one that is no segment.
        write("000000010000000000000004", &[page(SEGMENT, 0, &[24]), page(SEGMENT + 8192, 0, &[24])]);
        fs::write(dir.path().join("pg_wal/00000002.history"), "").unwrap();
        let left = LeftWal { timeline: Timeline(1), end: Lsn(first + 8192 + 24 + 40) };
        assert_eq!(find(dir.path()).unwrap(), Some(left));

        // A record that fills the rest of the segment and goes on in the next one, where it has not arrived.
        let whole: Vec<Vec<u8>> = (0..SEGMENT / 8192)
            .map(|n| {
                page(
                    first + n * 8192,
                    if n > 100 { 1 << 20 } else { 0 },
                    if n == 100 { &[1 << 20] } else { &[] },
                )
            })
            .collect();
        write("000000010000000000000003", &whole);
        assert_eq!(find(dir.path()).unwrap().unwrap().end, Lsn(first + 100 * 8192));
        let rest = page(first + SEGMENT, 1 << 19, &[]);
        write("000000010000000000000004", &[rest]);
        assert_eq!(find(dir.path()).unwrap().unwrap().end, Lsn(first + 100 * 8192), "nor does it end there");
        fs::write(dir.path().join("pg_wal/000000010000000000000009"), "cut short").unwrap();
        assert!(find(dir.path()).is_err(), "what the newest file holds is not known");
        fs::remove_file(dir.path().join("pg_wal/000000010000000000000009")).unwrap();

        let bytes = read(dir.path(), Timeline(1), Lsn(first + SEGMENT - 8192), 3 * 8192).unwrap();
        assert_eq!(bytes.len(), 3 * 8192, "across two files");
        assert_eq!(bytes[8..16], (first + SEGMENT - 8192).to_ne_bytes());
        let bytes = read(dir.path(), Timeline(1), Lsn(first + 2 * SEGMENT - 100), 8192).unwrap();
        assert_eq!(bytes.len(), 100, "as much as there is");
        assert!(read(dir.path(), Timeline(2), Lsn(first), 1).is_err());
    }
}
