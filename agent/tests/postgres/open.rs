//! Everything that keeps an agent from taking care of a data directory, and what it says then.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pgherd_agent::postgres::{Instance, OpenError, Settings};

use crate::server::Server;

async fn refused(good: &Settings, change: impl FnOnce(&mut Settings)) -> OpenError {
    let mut settings = good.clone();
    change(&mut settings);
    Instance::open(settings).await.expect_err("must be refused")
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let server = Server::initialised("n1").await;
    let good = &server.settings;
    let dir = |name: &str| -> PathBuf {
        let path = server.root().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };

    let error = refused(good, |s| s.data_dir = "/nonexistent/data".into()).await;
    assert!(matches!(error, OpenError::NoDataDirectory { .. }), "{error}");
    let empty = dir("empty");
    let error = refused(good, |s| s.data_dir = empty).await;
    assert!(
        matches!(error, OpenError::EmptyDataDirectory(_))
            && error.to_string().contains("pgherd create-standby"),
        "{error}"
    );
    let other = dir("other");
    std::fs::write(other.join("holiday.jpg"), "").unwrap();
    let error = refused(good, |s| s.data_dir = other).await;
    assert!(matches!(error, OpenError::NotADataDirectory(_)), "{error}");
    let root_owned = dir("root-owned");
    std::fs::write(root_owned.join("PG_VERSION"), "15\n").unwrap();
    let error = refused(good, |s| s.data_dir = root_owned).await;
    assert!(matches!(error, OpenError::WrongOwner { .. }) && error.to_string().contains("chown"), "{error}");
    let open_mode = dir("open-mode");
    std::fs::write(open_mode.join("PG_VERSION"), "15\n").unwrap();
    crate::server::chown(&open_mode);
    std::fs::set_permissions(&open_mode, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = refused(good, |s| s.data_dir = open_mode).await;
    assert!(matches!(error, OpenError::WrongMode { mode: 0o755, .. }), "{error}");

    let error = refused(good, |s| s.bin_dir = "/usr/bin/nowhere".into()).await;
    assert!(matches!(error, OpenError::NoBinaries { .. }), "{error}");
    let error = refused(good, |s| s.config_file = "/nonexistent.conf".into()).await;
    assert!(matches!(error, OpenError::NoConfiguration { .. }), "{error}");
    let bare = server.root().join("bare.conf");
    std::fs::write(&bare, "port = 5432\n").unwrap();
    let error = refused(good, |s| s.config_file = bare).await;
    let line = format!("include_if_exists = '{}/pgherd.conf'", good.data_dir.display());
    assert!(matches!(error, OpenError::NotIncluded { .. }) && error.to_string().contains(&line), "{error}");
    let error = refused(good, |s| s.os_user = "nobody-by-this-name".into()).await;
    assert!(matches!(error, OpenError::UnknownUser(_)), "{error}");

    std::fs::write(good.data_dir.join("PG_VERSION"), "11\n").unwrap();
    let error = refused(good, |_| {}).await;
    assert!(matches!(error, OpenError::MajorMismatch { .. }), "{error}");
    let old = dir("old-bin");
    std::fs::write(old.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 11.22'\n").unwrap();
    std::fs::set_permissions(old.join("postgres"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = refused(good, |s| s.bin_dir = old).await;
    assert!(matches!(error, OpenError::UnsupportedMajor { major: 11 }), "{error}");
    std::fs::write(good.data_dir.join("PG_VERSION"), "15\n").unwrap();
    std::fs::remove_file(good.data_dir.join("global/pg_control")).unwrap();
    let error = refused(good, |_| {}).await;
    assert!(matches!(error, OpenError::Control(_)), "{error}");
}
