//! Where the parts of a copy go: the data directory, its WAL directory and its tablespaces, each beside what it replaces, so
//! that taking its place is a rename.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use pgherd_common::WallTime;

use super::super::command::OsUser;
use super::super::files::{FileError, failed, point_durably};
use super::super::kept::Kept;
use super::super::settings::Settings;
use super::source::Facts;
use super::{CloneError, Mark};

/// The name of a copy that is being made.
const STAGED: &str = "pgherd-clone";

/// Beyond what the source has: WAL that is written meanwhile, and files that grow.
const SPARE: u64 = 32 << 20;

/// A directory that is replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    /// Its place.
    pub(super) at: PathBuf,
    /// The copy for now.
    pub(super) staged: PathBuf,
    /// Where the old one goes.
    aside: PathBuf,
    /// Whether there is an old one.
    present: bool,
}

/// A tablespace. Only what PostgreSQL has made in it is replaced, so it may be a mount point.
///
/// What is not part of it lies beside it where that can be: pg_rewind takes all that is in a tablespace for data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    oid: u32,
    /// On the source.
    pub(super) there: PathBuf,
    /// Here.
    at: PathBuf,
    bytes: u64,
}

impl Space {
    pub(super) fn staged(&self) -> PathBuf {
        beside_or_in(&self.at, STAGED)
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) data: Spot,
    /// Where WAL is kept elsewhere.
    pub(super) wal: Option<Spot>,
    pub(super) spaces: Vec<Space>,
    old_spaces: Vec<(u32, PathBuf)>,
    aside_name: String,
}

impl Layout {
    /// Looks, touches nothing.
    pub(super) fn plan(settings: &Settings, facts: &Facts, now: WallTime) -> Result<Self, CloneError> {
        let aside_name = format!("pgherd-old-{}", now.0 / 1000);
        let data = Spot::plan(real(&settings.data_dir)?, &aside_name)?;
        let old_wal = real(&data.at.join("pg_wal"))?;
        let elsewhere = Some(old_wal).filter(|wal| !wal.starts_with(&data.at));
        let wal = elsewhere.map(|wal| Spot::plan(wal, &aside_name)).transpose()?;
        let old_spaces = spaces_of(&data.at);
        let mut spaces = Vec::new();
        for space in &facts.tablespaces {
            let present = old_spaces.iter().find(|(oid, _)| *oid == space.oid).map(|(_, at)| at.clone());
            let at = match present {
                Some(at) => at,
                None => free_place(&space.location, settings)?,
            };
            spaces.push(Space { oid: space.oid, there: space.location.clone(), at, bytes: space.bytes });
        }
        for at in old_spaces.iter().map(|(_, at)| at).chain(spaces.iter().map(|space| &space.at)) {
            if real(at)?.starts_with(&data.at) {
                let why = "it is a tablespace within the data directory, which is replaced as a whole; move it out of there: \
                           on this node with its link in pg_tblspc, and on the source, if it is there too, into a new tablespace";
                return Err(CloneError::Place { path: at.clone(), why: why.to_owned() });
            }
        }
        Ok(Self { data, wal, spaces, old_spaces, aside_name })
    }

    /// Whether it all fits, beside what is there.
    pub(super) fn check_room(&self, facts: &Facts, kept: &[Kept]) -> Result<(), CloneError> {
        let mut disks = BTreeMap::<u64, (PathBuf, u64)>::new();
        let spaces = self.spaces.iter().map(|space| (space.at.as_path(), space.bytes));
        let data = [(self.data.at.as_path(), facts.data + facts.data / 20 + SPARE)];
        let wal = self.wal.iter().map(|wal| (wal.at.as_path(), SPARE));
        for (path, bytes) in data.into_iter().chain(wal).chain(spaces) {
            let there = existing(path);
            let disk = fs::metadata(&there).map_err(failed("look at", &there))?.dev();
            disks.entry(disk).or_insert_with(|| (there, 0)).1 += bytes;
        }
        for (path, needed) in disks.into_values() {
            let disk =
                rustix::fs::statvfs(&path).map_err(io::Error::from).map_err(failed("look at", &path))?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if needed > free {
                let paths: Vec<String> =
                    kept.iter().flat_map(|kept| &kept.paths).map(|path| path.display().to_string()).collect();
                let kept = if paths.is_empty() {
                    "; make room, or remove the old data by hand and run `pgherd create-standby` there"
                        .to_owned()
                } else {
                    format!("; what is kept of earlier rebuilds may be removed: {}", paths.join(", "))
                };
                let (needed_mb, free_mb) = (needed >> 20, free >> 20);
                return Err(CloneError::NoRoom { path, needed_mb, free_mb, kept });
            }
        }
        Ok(())
    }

    /// Everywhere that there may be a part of the copy.
    pub(super) fn staged(&self) -> Vec<PathBuf> {
        let wal = self.wal.iter().map(|wal| wal.staged.clone());
        let spaces = self.spaces.iter().map(Space::staged);
        [self.data.staged.clone()].into_iter().chain(wal).chain(spaces).collect()
    }

    /// Makes the empty directories, which PostgreSQL's user often may not.
    pub(super) fn make_room(&self, owner: &OsUser) -> Result<(), FileError> {
        for space in self.spaces.iter().filter(|space| !space.at.exists()) {
            make_dir(&space.at, owner)?;
        }
        self.staged().iter().try_for_each(|dir| make_dir(dir, owner))
    }

    /// Has the links of the copy lead to where their targets will be.
    pub(super) fn finish_links(&self) -> Result<(), FileError> {
        for space in &self.spaces {
            point_durably(&self.data.staged.join(format!("pg_tblspc/{}", space.oid)), &space.at)?;
        }
        match &self.wal {
            Some(wal) => point_durably(&self.data.staged.join("pg_wal"), &wal.at),
            None => Ok(()),
        }
    }

    /// All that has to be done for the copy to take its place, from `now` on.
    pub(super) fn swap(&self, now: WallTime) -> Result<(Mark, Kept), FileError> {
        if !self.data.present && self.data.at.exists() {
            // Nothing to keep, but a name in the way.
            fs::remove_dir(&self.data.at).map_err(failed("replace", &self.data.at))?;
        }
        let (mut moves, mut links, mut emptied) = (Vec::new(), Vec::new(), Vec::new());
        let mut paths = Vec::new();
        // Also of tablespaces that are no more on the source: they belong to what is kept.
        for (oid, at) in &self.old_spaces {
            let aside = beside_or_in(at, &self.aside_name);
            let present = if at.exists() { versions(at)? } else { Vec::new() };
            moves.extend(present.into_iter().map(|name| (at.join(&name), aside.join(&name))));
            if at.exists() {
                links.push((self.data.aside.join(format!("pg_tblspc/{oid}")), aside.clone()));
                paths.push(aside);
            }
        }
        for space in &self.spaces {
            let staged = space.staged();
            moves.extend(
                versions(&staged)?.into_iter().map(|name| (staged.join(&name), space.at.join(&name))),
            );
            emptied.push(staged);
        }
        if let Some(wal) = &self.wal {
            moves.extend(wal.moves());
            links.push((self.data.aside.join("pg_wal"), wal.aside.clone()));
            paths.push(wal.aside.clone());
        }
        moves.extend(self.data.moves());
        if self.data.present {
            // Last, since the others are part of it: it is removed first.
            paths.push(self.data.aside.clone());
        } else {
            links.clear();
        }
        let kept = Kept { since: now, paths };
        Ok((Mark::Swapping { moves, links, emptied, kept: kept.clone() }, kept))
    }
}

impl Spot {
    fn plan(at: PathBuf, aside_name: &str) -> Result<Self, CloneError> {
        let refuse = |why: &str| CloneError::Place { path: at.clone(), why: why.to_owned() };
        let Some(parent) = at.parent() else {
            return Err(refuse("it is the root of everything; check postgres.data_dir"));
        };
        let present = match fs::metadata(&at) {
            Ok(metadata) => {
                let outside = fs::metadata(parent).map_err(failed("look at", parent))?;
                if metadata.dev() != outside.dev() {
                    return Err(refuse(
                        "it is a mount point, which cannot be renamed; have the data in a directory below the mount point \
                         (postgres.data_dir, or where pg_wal leads to)",
                    ));
                }
                let mut entries = fs::read_dir(&at).map_err(failed("read", &at))?;
                // An empty one is nothing to keep.
                entries.next().is_some()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("look at", &at)(error).into()),
        };
        Ok(Self { staged: beside(&at, STAGED), aside: beside(&at, aside_name), present, at })
    }

    fn moves(&self) -> Vec<(PathBuf, PathBuf)> {
        let old = self.present.then(|| (self.at.clone(), self.aside.clone()));
        old.into_iter().chain([(self.staged.clone(), self.at.clone())]).collect()
    }
}

/// Where a path leads: what is there is replaced, and the link stays. A name that nothing has leads to itself.
fn real(path: &Path) -> Result<PathBuf, CloneError> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(error) if absent(&error) => match fs::symlink_metadata(path) {
            Ok(_) => Err(CloneError::Place {
                path: path.to_owned(),
                why: "it is a link that leads to nothing; mount or make what it is to lead to, or remove the link".to_owned(),
            }),
            Err(error) if absent(&error) => Ok(path.to_owned()),
            Err(error) => Err(failed("look at", path)(error).into()),
        },
        Err(error) => Err(failed("look at", path)(error).into()),
    }
}

/// `/srv/ts.suffix`.
fn beside(at: &Path, suffix: &str) -> PathBuf {
    let mut name = at.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Beside a directory, or in it where it is a mount point, or what is beside it is not PostgreSQL's.
fn beside_or_in(at: &Path, suffix: &str) -> PathBuf {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = at.parent().unwrap_or(at);
    let same_disk = !at.exists() || device(parent) == device(at);
    if same_disk && rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok() {
        beside(at, suffix)
    } else {
        at.join(suffix)
    }
}

/// The tablespaces of a data directory, and where they are.
fn spaces_of(data_dir: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(data_dir.join("pg_tblspc")) else { return Vec::new() };
    let space = |entry: fs::DirEntry| {
        let oid = entry.file_name().to_str()?.parse().ok()?;
        Some((oid, fs::read_link(entry.path()).ok()?))
    };
    entries.flatten().filter_map(space).collect()
}

/// Where a tablespace can go that this node did not have: to the same place as on the source, unless something is there.
fn free_place(there: &Path, settings: &Settings) -> Result<PathBuf, CloneError> {
    let mut other = there.as_os_str().to_owned();
    other.push(format!("-{}", settings.node));
    for place in [there.to_owned(), PathBuf::from(other)] {
        let taken = match versions(&place) {
            Ok(found) => !found.is_empty(),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error.into()),
        };
        if !taken {
            return Ok(place);
        }
    }
    Err(CloneError::Place {
        path: there.to_owned(),
        why: format!(
            "the tablespace's place is taken by another server, and so is the one with -{} at its end; move what is there away",
            settings.node
        ),
    })
}

/// What PostgreSQL has made in a tablespace: one directory for each version.
fn versions(space: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(space).map_err(failed("read", space))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("PG_")).collect())
}

/// The path, or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn make_dir(dir: &Path, owner: &OsUser) -> Result<(), FileError> {
    let made = (|| {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        if owner.switch { chown(dir, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
    })();
    made.map_err(failed("create", dir))
}
