//! The files the agent owns in the data directory: `pgherd.conf` and `standby.signal`; how files are replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::command::OsUser;
use super::configuration::{self, quote};
use super::conninfo::Conninfo;
use super::cover::standby_name;
use super::parameters::INCLUDE;
use super::settings::{Settings, Upstream};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path:?}; check space and permissions there")]
pub struct FileError {
    /// "write", "remove" ...
    pub what: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { what, path, source }
}

/// `pgherd.conf` of a data directory.
pub(super) fn own_file(data_dir: &Path) -> PathBuf {
    data_dir.join("pgherd.conf")
}

pub(super) fn standby_signal(data_dir: &Path) -> PathBuf {
    data_dir.join("standby.signal")
}

/// What the agent configures: whom the walreceiver follows, all of it empty when that is nobody, and for whom commits wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Following {
    pub(super) primary_conninfo: String,
    pub(super) primary_slot_name: String,
    /// `synchronous_standby_names`, where it is not the DBA's.
    pub(super) waits_for: Option<String>,
    /// Whether logical slots are copied from there.
    pub(super) copies: bool,
    /// On a primary: `synchronized_standby_slots`, where it is not the DBA's.
    pub(super) held_back: Option<String>,
}

/// For whom commits wait, in `pgherd.conf`.
const WAITS_FOR: &str = "synchronous_standby_names";
/// For whom subscribers wait, there.
pub(super) const HELD_BACK: &str = "synchronized_standby_slots";

/// What `pgherd.conf` says now, if anything.
pub(super) fn sets(data_dir: &Path, setting: &str) -> Option<String> {
    let text = fs::read_to_string(own_file(data_dir)).ok()?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix(setting)?.strip_prefix(" = '"))?;
    configuration::unquote(line)
}

impl Following {
    /// No walreceiver.
    pub(super) fn nobody() -> Self {
        Self {
            primary_conninfo: String::new(),
            primary_slot_name: String::new(),
            waits_for: None,
            copies: false,
            held_back: None,
        }
    }

    /// Of a primary, as `pgherd.conf` has it.
    pub(super) fn as_primary(data_dir: &Path) -> Self {
        let (waits_for, held_back) = (sets(data_dir, WAITS_FOR), sets(data_dir, HELD_BACK));
        Self { waits_for, held_back, ..Self::nobody() }
    }

    /// The same, with commits that wait for these.
    pub(super) fn waiting(self, waits_for: Option<String>) -> Self {
        Self { waits_for, ..self }
    }

    pub(super) fn of(settings: &Settings, upstream: &Upstream) -> Self {
        let mut conninfo = Conninfo::to(&upstream.address).set("user", &settings.replication_user);
        if let Some(password) = &settings.replication_password {
            conninfo = conninfo.set("password", &password.0);
        }
        let name = match upstream.generation {
            Some(generation) => standby_name(settings, &settings.node, generation),
            None => settings.node.to_string(),
        };
        let conninfo = conninfo
            .set("application_name", &name)
            .set("connect_timeout", "2")
            // A host that vanished is noticed within seconds, not after the kernel's two hours.
            .set("keepalives_idle", "2")
            .set("keepalives_interval", "2")
            .set("keepalives_count", "3")
            .set("tcp_user_timeout", "6000");
        let database = Some(&settings.database).filter(|_| upstream.copy_slots);
        let conninfo = database.into_iter().fold(conninfo, |conninfo, name| conninfo.set("dbname", name));
        let (primary_conninfo, primary_slot_name) = (conninfo.finish(), settings.node.slot());
        Self { primary_conninfo, primary_slot_name, copies: upstream.copy_slots, ..Self::nobody() }
    }

    /// Then the archive is cut off too: what it brings is not wanted while the primary changes.
    pub(super) fn is_of_nobody(&self) -> bool {
        self.primary_conninfo.is_empty()
    }

    fn text(&self) -> String {
        // Following somebody, the DBA's own setting applies.
        let restore = if self.is_of_nobody() { "restore_command = ''\n" } else { "" };
        let line = |setting: &str, names: &Option<String>| {
            names.as_ref().map_or(String::new(), |names| format!("{setting} = {}\n", quote(names)))
        };
        let (waits, held_back) = (line(WAITS_FOR, &self.waits_for), line(HELD_BACK, &self.held_back));
        let copies =
            if self.copies { "sync_replication_slots = on\nhot_standby_feedback = on\n" } else { "" };
        format!(
            "# Owned and rewritten by pgherd-agent. Changes made by hand are lost.\n\
             {INCLUDE}\
             primary_conninfo = {}\n\
             primary_slot_name = {}\n\
             recovery_target_timeline = 'latest'\n\
             hot_standby = on\n\
             # Followers of a new primary reconnect in milliseconds; the default is 5 s.\n\
             wal_retrieve_retry_interval = '100ms'\n\
             {restore}{waits}{held_back}{copies}",
            quote(&self.primary_conninfo),
            quote(&self.primary_slot_name)
        )
    }

    /// Puts it into `pgherd.conf`, unless it is there already.
    pub(super) fn write(&self, data_dir: &Path, owner: &OsUser) -> Result<(), FileError> {
        self.replace(data_dir, owner)?.map_or(Ok(()), Replaced::outlives_crash)
    }

    /// The same, but for the last step that makes it outlive a crash of the machine, if there is anything to write.
    pub(super) fn replace(&self, data_dir: &Path, owner: &OsUser) -> Result<Option<Replaced>, FileError> {
        let path = own_file(data_dir);
        let text = self.text();
        if fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
            return Ok(None);
        }
        replace_whole(&path, text.as_bytes(), 0o600, Some(owner)).map(Some)
    }
}

/// Replaces `pgherd.conf` by hand, so to speak.
pub(super) fn replace_own(data_dir: &Path, text: &str, owner: &OsUser) -> Result<(), FileError> {
    write_durably(&own_file(data_dir), text.as_bytes(), 0o600, Some(owner))
}

/// Makes a directory of the agent's, if it is missing.
pub(super) fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(failed("create", path))
}

/// Makes the next start one of a standby.
pub(super) fn create_standby_signal(data_dir: &Path, owner: &OsUser) -> Result<(), FileError> {
    let path = standby_signal(data_dir);
    if path.exists() { Ok(()) } else { write_durably(&path, b"", 0o600, Some(owner)) }
}

/// Replaces a file so that after a crash the new content is there.
pub(super) fn write_durably(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<&OsUser>,
) -> Result<(), FileError> {
    replace_whole(path, content, mode, owner)?.outlives_crash()
}

/// A file that was replaced: after a crash either the old or the new content is there.
#[must_use]
pub(super) struct Replaced(PathBuf);

impl Replaced {
    /// From now on it is the new one.
    pub(super) fn outlives_crash(self) -> Result<(), FileError> {
        sync_parent(&self.0)
    }
}

fn replace_whole(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<&OsUser>,
) -> Result<Replaced, FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".pgherd-tmp");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(owner) = owner.filter(|owner| owner.switch) {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(failed("write", path))?;
    Ok(Replaced(path.to_owned()))
}

/// Makes a symbolic link, in the place of whatever has its name, so that it is there after a crash.
pub(super) fn point_durably(link: &Path, target: &Path) -> Result<(), FileError> {
    if fs::read_link(link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let temporary = link.with_extension("pgherd-tmp");
    remove_durably(&temporary)?;
    let made = std::os::unix::fs::symlink(target, &temporary).and_then(|()| fs::rename(&temporary, link));
    made.map_err(failed("write", link))?;
    sync_parent(link)
}

/// Removes a file for good; its absence is fine.
pub(super) fn remove_durably(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

pub(super) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync", parent))
}

/// Opens the file that takes a starting postmaster's output, and its length so far.
pub(super) fn open_log(path: &Path, owner: &OsUser) -> Result<(File, u64), FileError> {
    let opened = (|| {
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            fs::create_dir_all(parent)?;
            if owner.switch {
                std::os::unix::fs::chown(parent, Some(owner.uid), Some(owner.gid))?;
            }
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        if owner.switch {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        let length = file.metadata()?.len();
        Ok((file, length))
    })();
    opened.map_err(failed("open", path))
}

#[cfg(test)]
mod tests {
    use super::super::{configuration, conninfo};
    use super::*;

    #[test]
    fn nobody_followed_is_all_empty() {
        let text = Following::nobody().text();
        assert!(text.contains("primary_conninfo = ''\nprimary_slot_name = ''\n"), "{text}");
        assert!(text.ends_with("\nrestore_command = ''\n"), "{text}");
        let somebody = Following { primary_conninfo: "host=a".to_owned(), ..Following::nobody() };
        assert!(!somebody.text().contains("restore_command"), "{}", somebody.text());
        assert!(!text.contains("synchronous_standby_names"), "{text}");
        let text = Following::nobody().waiting(Some("ANY 1 (\"a/1\")".to_owned())).text();
        assert!(text.ends_with("synchronous_standby_names = 'ANY 1 (\"a/1\")'\n"), "{text}");
    }

    #[test]
    fn a_nasty_password_passes_both_quotings() {
        let nasty = r"a'b\c ''d\'";
        let info = Conninfo::default().set("password", nasty).finish();
        let text = Following { primary_conninfo: info.clone(), ..Following::nobody() }.text();
        assert!(text.contains(&configuration::quote(&info)), "{text}");
        assert_eq!(conninfo::pairs(&info), [("password".to_owned(), nasty.to_owned())]);
    }

    #[test]
    fn what_a_primary_is_configured_to_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Following::as_primary(dir.path()), Following::nobody());
        let names = Some("ANY 1 (\"it's/1\")".to_owned());
        let held_back = Some("pgherd_a, pgherd_b".to_owned());
        let primary = Following { waits_for: names, held_back, ..Following::nobody() };
        fs::write(own_file(dir.path()), primary.text()).unwrap();
        assert_eq!(Following::as_primary(dir.path()), primary);
    }

    #[test]
    fn slots_are_copied_only_where_that_is_asked_for() {
        let text = Following { copies: true, ..Following::nobody() }.text();
        assert!(text.ends_with("sync_replication_slots = on\nhot_standby_feedback = on\n"), "{text}");
        let text = Following::nobody().text();
        assert!(
            !text.contains("slots") && !text.contains("feedback"),
            "no server before 17 knows them: {text}"
        );
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for content in ["first, and longer", "second"] {
            write_durably(&path, content.as_bytes(), 0o600, None).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        remove_durably(&path).unwrap();
        remove_durably(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
