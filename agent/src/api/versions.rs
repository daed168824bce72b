//! Which version of PostgreSQL each node runs, and which one is installed there.

use std::path::Path;

use axum::Json;
use axum::extract::State;

use super::server::Api;
use super::types::{VersionHere, VersionStatus};

/// The versions on the node of the agent asked.
pub(super) const HERE: &str = "/v1/version-here";

pub(super) async fn here(State(api): State<Api>) -> Json<VersionHere> {
    let (Some(instance), Some(postgres)) = (&api.instance, &api.config.postgres) else {
        return Json(VersionHere::default());
    };
    let (running, installed) = instance.versions().await;
    let (_, major) = instance.identity();
    let bin_dir = postgres.bin_dir.display().to_string();
    Json(VersionHere { major, running, installed, install: install(&postgres.bin_dir, major), bin_dir })
}

/// How the programs in this directory are brought up to date, told by where they are.
fn install(bin_dir: &Path, major: u32) -> String {
    // A link is as good as what it points to.
    let real = bin_dir.canonicalize().unwrap_or_else(|_| bin_dir.to_owned());
    let real = real.display().to_string();
    if real == format!("/usr/lib/postgresql/{major}/bin") {
        format!("apt-get update && apt-get install --only-upgrade postgresql-{major}")
    } else if real == format!("/usr/pgsql-{major}/bin") {
        format!("dnf upgrade postgresql{major}-server")
    } else if real == "/usr/bin" {
        "dnf upgrade postgresql-server".to_owned()
    } else {
        format!("put the new programs of PostgreSQL {major} into {}", bin_dir.display())
    }
}

pub(super) async fn all(State(api): State<Api>) -> Json<Vec<VersionStatus>> {
    let state = api.consensus.state().borrow().clone();
    let asks = state.databases().map(|member| async {
        let told: Result<VersionHere, _> = api.link.get(&member.descriptor.agent, HERE).await;
        let node = member.descriptor.name.clone();
        match told {
            Ok(here) => VersionStatus { node, here, trouble: None },
            Err(error) => {
                VersionStatus { node, here: VersionHere::default(), trouble: Some(error.to_string()) }
            }
        }
    });
    Json(futures_util::future::join_all(asks).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_programs_tells_how_they_are_updated() {
        let line = |dir: &str| install(Path::new(dir), 99);
        assert_eq!(
            line("/usr/lib/postgresql/99/bin"),
            "apt-get update && apt-get install --only-upgrade postgresql-99"
        );
        assert_eq!(line("/usr/pgsql-99/bin"), "dnf upgrade postgresql99-server");
        assert_eq!(line("/opt/pg/bin"), "put the new programs of PostgreSQL 99 into /opt/pg/bin");
    }
}
