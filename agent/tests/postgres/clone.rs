//! A stopped node is made anew: by a copy, whole or interrupted, with everything that lies elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgherd_agent::postgres::{
    CloneError, CreateError, Instance, RebuildError, Rebuilt, RejoinError, Settings, Upstream, create_standby,
};
use pgherd_agent::reconcile::Commits;
use pgherd_agent::working::Working;
use pgherd_common::NodeName;
use pgherd_core::rebuild::{Means, Rebuild, Setback};
use tempfile::TempDir;

use super::server::{Server, chown, now};

async fn wanted(primary: &Server, means: Means, sources: &[&Server]) -> Rebuild {
    Rebuild {
        upstream: primary.upstream(),
        running: primary.running().await,
        means,
        sources: sources.iter().map(|server| server.upstream()).collect(),
        rate: None,
        order: None,
    }
}

/// A primary with some rows, and a standby of it.
async fn pair() -> (Server, Server) {
    let primary = Server::primary("alpha").await;
    primary.sql("CREATE TABLE t AS SELECT g AS i FROM generate_series(1, 1000) AS g").await;
    let standby = Server::standby(&primary, "beta").await;
    (primary, standby)
}

async fn stop(server: &Server) {
    server.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
}

async fn count(server: &Server) -> String {
    server.text("SELECT count(*)::text FROM t").await
}

async fn until_count(server: &Server, wanted: &str) {
    let begun = now();
    while count(server).await != wanted {
        assert!(now().since(begun) < Duration::from_secs(20), "{} of {wanted}", count(server).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Names in a directory that a rebuild may have made there.
fn ours(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.contains("pgherd-")).collect();
    names.sort();
    names
}

/// A directory of PostgreSQL's user.
fn dir_of_postgres() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pgherd-ts-").tempdir_in("/tmp").unwrap();
    chown(dir.path());
    dir
}

#[tokio::test]
async fn a_standby_is_copied_anew_and_keeps_what_is_its_own() {
    let (primary, mut standby) = pair().await;
    let third = Server::standby(&primary, "gamma").await;
    stop(&standby).await;
    // Of the DBA, and other than on the source.
    let own = standby.settings.data_dir.join("extra.conf");
    std::fs::write(&own, "# of beta\n").unwrap();
    chown(&own);
    let marker = standby.settings.data_dir.join("pg_hba.conf");
    let hba = format!("# beta's\n{}", std::fs::read_to_string(&marker).unwrap());
    std::fs::write(&marker, &hba).unwrap();
    primary.sql("INSERT INTO t SELECT generate_series(1, 500)").await;

    let working = Working::default();
    let plan = wanted(&primary, Means::Best, &[&third, &primary]).await;
    let rebuilt = standby.instance.rebuild(&plan, &working).await.unwrap();
    let Rebuilt::Copied { from, bytes, kept: Some(kept) } = rebuilt else { panic!("{rebuilt:?}") };
    assert_eq!(from.as_str(), "gamma", "a standby by preference");
    assert!(bytes > 10 << 20, "{bytes}");
    standby.streams().await;
    until_count(&standby, "1500").await;
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "# of beta\n");
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), hba);
    assert!(Path::new(&kept).join("PG_VERSION").exists(), "the old data is kept in {kept}");
    assert_eq!(ours(standby.root()).len(), 1, "{:?}", ours(standby.root()));

    // Its time comes, but not while nobody knows whether the copy is of any use.
    stop(&standby).await;
    standby.settings.keep_old_data = Duration::ZERO;
    standby.instance = Instance::open(standby.settings.clone()).await.unwrap();
    standby.instance.expire_kept().await;
    assert_eq!(ours(standby.root()).len(), 1, "{:?}", ours(standby.root()));
    standby.instance.start_standby(Some(&primary.upstream())).await.unwrap();
    standby.instance.expire_kept().await;
    assert_eq!(ours(standby.root()), Vec::<String>::new());
}

#[tokio::test]
async fn a_diverged_node_that_cannot_be_rewound_is_copied() {
    let old = Server::initialised_with("alpha", &["--wal-segsize=1"]).await;
    old.instance.start_primary(&Commits::Free).await.unwrap();
    old.sql("CREATE TABLE t AS SELECT g AS i FROM generate_series(1, 1000) AS g").await;
    let new = Server::standby(&old, "beta").await;
    new.instance.recruit().await.unwrap();
    old.sql("INSERT INTO t VALUES (-1)").await;
    new.instance.promote().await.unwrap();
    new.instance.checkpoint().await.unwrap();
    new.sql("INSERT INTO t VALUES (1), (2)").await;
    old.instance.fence().await.unwrap();

    let working = Working::default();
    let only = old.instance.rebuild(&wanted(&new, Means::Rewind, &[]).await, &working).await.unwrap_err();
    let RebuildError::Rejoin(refused @ RejoinError::NotRewindable(_)) = &only else { panic!("{only:?}") };
    assert_eq!(refused.setback(), Some(Setback::NeedsClone));
    let rebuilt = old.instance.rebuild(&wanted(&new, Means::Best, &[&new]).await, &working).await.unwrap();
    assert!(matches!(rebuilt, Rebuilt::Copied { .. }), "{rebuilt:?}");
    old.streams().await;
    until_count(&old, "1002").await;
    assert_eq!(old.text("SELECT count(*)::text FROM t WHERE i = -1").await, "0");
}

#[tokio::test]
async fn a_diverged_node_is_rewound_where_that_can_be() {
    let (old, new) = pair().await;
    new.instance.recruit().await.unwrap();
    old.sql("INSERT INTO t VALUES (-1)").await;
    new.instance.promote().await.unwrap();
    new.instance.checkpoint().await.unwrap();
    old.instance.fence().await.unwrap();
    let working = Working::default();
    let rebuilt = old.instance.rebuild(&wanted(&new, Means::Best, &[&new]).await, &working).await.unwrap();
    assert!(matches!(rebuilt, Rebuilt::Rewound { .. }), "{rebuilt:?}");
    old.streams().await;
    assert_eq!(count(&old).await, "1000");
}

#[tokio::test]
async fn tablespaces_and_a_wal_directory_elsewhere_are_kept_where_they_are() {
    let primary = Server::primary("alpha").await;
    let (theirs, own_wal) = (dir_of_postgres(), dir_of_postgres());
    let place = |name: &str| theirs.path().join(name);
    for (name, table) in [("ts = 1", "t"), ("mounted", "u")] {
        std::fs::create_dir(place(name)).unwrap();
        chown(&place(name));
        primary.sql(&format!("CREATE TABLESPACE far_{table} LOCATION '{}'", place(name).display())).await;
        let rows = "SELECT g AS i FROM generate_series(1, 1000) AS g";
        primary.sql(&format!("CREATE TABLE {table} TABLESPACE far_{table} AS {rows}")).await;
    }

    // Their places are taken on this machine, so the new node finds others. One is a disk of its own.
    let (here, mounted) = (place("ts = 1-delta"), Disk::mounted_at(place("mounted-delta"), 64));
    let (root, settings) = empty_node(&primary, "delta");
    let working = Working::default();
    let identifier = primary.instance.identity().0;
    let (sources, upstream) = ([primary.upstream()], primary.upstream());
    create_standby(&settings, identifier, &sources, &upstream, None, &working).await.unwrap();
    let node = Node { instance: Instance::open(settings.clone()).await.unwrap(), settings, _root: root };
    node.instance.start_standby(Some(&upstream)).await.unwrap();
    for place in [&here, &mounted.0] {
        assert_eq!(std::fs::read_dir(place).unwrap().count(), 1, "PG_... and nothing else");
    }

    node.instance.stop_fast(Duration::from_secs(10)).await.unwrap();
    let wal = own_wal.path().join("wal");
    std::fs::rename(node.settings.data_dir.join("pg_wal"), &wal).unwrap();
    std::os::unix::fs::symlink(&wal, node.settings.data_dir.join("pg_wal")).unwrap();
    primary.sql("INSERT INTO t SELECT generate_series(1, 500)").await;
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let rebuilt = node.instance.rebuild(&plan, &working).await.unwrap();
    let Rebuilt::Copied { kept: Some(kept), .. } = rebuilt else { panic!("{rebuilt:?}") };
    assert_eq!(std::fs::read_link(node.settings.data_dir.join("pg_wal")).unwrap(), wal);
    assert_eq!(ours(own_wal.path()).len(), 1, "{:?}", ours(own_wal.path()));
    assert_eq!(
        (ours(&here).len(), ours(theirs.path()).len()),
        (0, 1),
        "beside it: {:?}",
        ours(theirs.path())
    );
    assert_eq!(ours(&mounted.0).len(), 1, "inside: {:?}", ours(&mounted.0));
    for (space, at) in [("far_t", &here), ("far_u", &mounted.0)] {
        let oid =
            primary.text(&format!("SELECT oid::text FROM pg_tablespace WHERE spcname = '{space}'")).await;
        let link = |dir: &Path| std::fs::read_link(dir.join("pg_tblspc").join(&oid)).unwrap();
        assert_eq!(link(&node.settings.data_dir), *at);
        let old = link(Path::new(&kept));
        assert!(
            old != *at && std::fs::read_dir(&old).unwrap().count() == 1,
            "the old data has its own: {old:?}"
        );
    }
    let begun = now();
    while node.count().await != 1500 {
        assert!(now().since(begun) < Duration::from_secs(20), "the rows do not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Before its disk goes.
    drop(node);
}

/// A node that was created.
struct Node {
    instance: Instance,
    settings: Settings,
    _root: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        pgherd_agent::postgres::kill_instance(&self.settings.data_dir, Duration::from_secs(5))
            .expect("the test's server is killed");
    }
}

impl Node {
    async fn count(&self) -> i64 {
        let mut config = tokio_postgres::Config::new();
        let socket = self.settings.socket_dir.as_ref().unwrap();
        config.host_path(socket).port(self.settings.address.port).user("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }
}

/// Settings of a node without data, its configuration beside it as Debian has it.
fn empty_node(like: &Server, name: &str) -> (TempDir, Settings) {
    let root = dir_of_postgres();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let data_dir = root.path().join("data");
    let config_file = root.path().join("postgresql.conf");
    std::fs::write(
        &config_file,
        format!(
            "fsync = off\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n\
             data_directory = '{data}'\nmax_connections = 20\nshared_buffers = 16MB\n\
             hba_file = '{data}/pg_hba.conf'\nident_file = '{data}/pg_ident.conf'\n\
             include_if_exists = '{data}/pgherd.conf'\n",
            root.path().display(),
            data = data_dir.display(),
        ),
    )
    .unwrap();
    chown(&config_file);
    let settings = Settings {
        node: name.parse::<NodeName>().unwrap(),
        config_file,
        address: format!("127.0.0.1:{port}").parse().unwrap(),
        socket_dir: Some(root.path().to_owned()),
        log_file: root.path().join("postmaster.log"),
        state_dir: root.path().join("state"),
        data_dir,
        ..like.settings.clone()
    };
    (root, settings)
}

#[tokio::test]
async fn a_standby_is_created_only_where_there_is_nothing_and_only_of_this_cluster() {
    let (primary, other) = (Server::primary("alpha").await, Server::primary("omega").await);
    let identifier = primary.instance.identity().0;
    let (root, settings) = empty_node(&primary, "delta");
    let working = Working::default();
    let create = async |from: &Server| {
        create_standby(&settings, identifier, &[from.upstream()], &from.upstream(), None, &working).await
    };
    let error = create(&other).await.unwrap_err();
    assert!(matches!(error, CreateError::Clone(CloneError::ForeignSource { .. })), "{error:?}");
    assert!(!settings.data_dir.exists() && ours(root.path()).is_empty());

    std::fs::create_dir(&settings.data_dir).unwrap();
    let (from, bytes) = create(&primary).await.unwrap();
    assert!(from.node.as_str() == "alpha" && bytes > 10 << 20, "{from} {bytes}");
    let error = create(&primary).await.unwrap_err();
    assert!(
        matches!(&error, CreateError::NotEmpty(_)) && error.to_string().contains("pgherd rebuild"),
        "{error}"
    );
    assert!(settings.data_dir.join("standby.signal").exists());
}

#[tokio::test]
async fn a_foreign_data_directory_is_not_replaced() {
    let (primary, standby) = pair().await;
    let stranger = Server::initialised("omega").await;
    stop(&standby).await;
    let control = "global/pg_control";
    let data = &standby.settings.data_dir;
    std::fs::copy(stranger.settings.data_dir.join(control), data.join(control)).unwrap();
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let error = standby.instance.rebuild(&plan, &Working::default()).await.unwrap_err();
    assert!(matches!(&error, RebuildError::Clone(CloneError::Foreign { .. })), "{error:?}");
    assert_eq!(ours(standby.root()), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_runs_is_not_replaced() {
    let (primary, standby) = pair().await;
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let error = standby.instance.rebuild(&plan, &Working::default()).await.unwrap_err();
    assert!(matches!(&error, RebuildError::Rejoin(RejoinError::Running)), "{error:?}");
    standby.streams().await;
}

/// A rebuild at a rate at which it takes seconds, and what there is to see of it.
async fn slow_rebuild(
    primary: &Server,
    standby: &Server,
    working: &Working,
) -> tokio::task::JoinHandle<Result<Rebuilt, RebuildError>> {
    let mut plan = wanted(primary, Means::Clone, &[primary]).await;
    plan.rate = Some(2 << 20);
    let (instance, shared) = (standby.instance.clone(), working.clone());
    let work = tokio::spawn(async move { instance.rebuild(&plan, &shared).await });
    let begun = now();
    while working.status().step.is_none_or(|step| step.done <= 1 << 20) {
        assert!(
            !work.is_finished() && now().since(begun) < Duration::from_secs(20),
            "{:?}",
            working.status()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    work
}

fn copies(staged: &Path) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == staged))
        .count()
}

#[tokio::test]
async fn a_copy_that_is_stopped_leaves_everything_as_it_was() {
    let (primary, standby) = pair().await;
    stop(&standby).await;
    let working = Working::default();
    let work = slow_rebuild(&primary, &standby, &working).await;
    working.stop();
    let error = work.await.unwrap().unwrap_err();
    assert!(matches!(&error, RebuildError::Clone(CloneError::Stopped)), "{error:?}");
    assert_eq!(ours(standby.root()), Vec::<String>::new());
    standby.instance.start_standby(Some(&primary.upstream())).await.unwrap();
    standby.streams().await;
    assert_eq!(count(&standby).await, "1000");
}

#[tokio::test]
async fn a_complete_copy_that_cannot_be_prepared_is_removed() {
    let (primary, standby) = pair().await;
    stop(&standby).await;
    // A file here, a directory there: one cannot take the place of the other.
    let (file, dir) = (standby.settings.data_dir.join("extra"), primary.settings.data_dir.join("extra"));
    std::fs::write(&file, "of beta\n").unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("part"), "of alpha\n").unwrap();
    chown(&file);
    chown(&dir);
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let error = standby.instance.rebuild(&plan, &Working::default()).await.unwrap_err();
    assert!(matches!(&error, RebuildError::Clone(CloneError::File(_))), "{error:?}");
    assert_eq!(ours(standby.root()), Vec::<String>::new());
    standby.instance.start_standby(Some(&primary.upstream())).await.unwrap();
    standby.streams().await;
}

#[tokio::test]
async fn links_to_nothing_and_tablespaces_within_the_data_are_not_replaced() {
    let (primary, standby) = pair().await;
    stop(&standby).await;
    let data = &standby.settings.data_dir;
    let refused = async || {
        let plan = wanted(&primary, Means::Clone, &[&primary]).await;
        match standby.instance.rebuild(&plan, &Working::default()).await.unwrap_err() {
            RebuildError::Clone(CloneError::Place { path, why }) => (path, why),
            other => panic!("{other:?}"),
        }
    };
    let (inner, space) = (data.join("inner"), data.join("pg_tblspc/99999"));
    std::fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink(&inner, &space).unwrap();
    let (path, why) = refused().await;
    assert!(path == inner && why.contains("within the data directory"), "{path:?} {why}");
    std::fs::remove_file(&space).unwrap();

    let wal = data.join("pg_wal");
    std::fs::rename(&wal, data.join("wal")).unwrap();
    std::os::unix::fs::symlink(standby.root().join("unmounted"), &wal).unwrap();
    let (path, why) = refused().await;
    assert!(path.ends_with("pg_wal") && why.contains("leads to nothing"), "{path:?} {why}");
    assert_eq!(ours(standby.root()), Vec::<String>::new());
}

#[tokio::test]
async fn an_interrupted_copy_is_begun_anew() {
    let (primary, mut standby) = pair().await;
    stop(&standby).await;
    let work = slow_rebuild(&primary, &standby, &Working::default()).await;
    let staged = standby.root().join("data.pgherd-clone");
    assert_eq!(copies(&staged), 2, "pg_basebackup and the one that receives WAL");
    // As if the agent were killed: nobody tidies up.
    work.abort();
    assert!(staged.join("base").exists());

    standby.instance = Instance::open(standby.settings.clone()).await.unwrap();
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let rebuilt = standby.instance.rebuild(&plan, &Working::default()).await.unwrap();
    assert!(matches!(rebuilt, Rebuilt::Copied { .. }), "{rebuilt:?}");
    assert_eq!(copies(&staged), 0);
    standby.streams().await;
    assert_eq!(ours(standby.root()).len(), 1, "{:?}", ours(standby.root()));
}

#[tokio::test]
async fn a_copy_takes_its_place_although_the_agent_dies_meanwhile() {
    let (primary, mut standby) = pair().await;
    stop(&standby).await;
    let plan = wanted(&primary, Means::Clone, &[&primary]).await;
    let Rebuilt::Copied { kept: Some(kept), .. } =
        standby.instance.rebuild(&plan, &Working::default()).await.unwrap()
    else {
        panic!("not copied")
    };
    stop(&standby).await;
    // The renames as they stand after the first of them.
    let (data, staged) = (&standby.settings.data_dir, standby.root().join("data.pgherd-clone"));
    let aside = standby.root().join("data.pgherd-old-1");
    std::fs::rename(data, &staged).unwrap();
    std::fs::rename(&kept, &aside).unwrap();
    let mark = format!(
        "{{\"swapping\":{{\"moves\":[[\"{data}\",\"{aside}\"],[\"{staged}\",\"{data}\"]],\"links\":[],\"emptied\":[],\
         \"kept\":{{\"since\":1000,\"paths\":[\"{aside}\"]}}}}}}",
        data = data.display(),
        aside = aside.display(),
        staged = staged.display()
    );
    let path = standby.settings.state_dir.join("clone/mark.json");
    std::fs::write(&path, mark).unwrap();
    let error = standby.instance.start_standby(Some(&primary.upstream())).await.unwrap_err();
    assert!(error.to_string().contains("about to be replaced by a copy"), "{error}");

    standby.instance = Instance::open(standby.settings.clone()).await.unwrap();
    assert!(!path.exists() && !staged.exists() && aside.exists());
    standby.instance.start_standby(Some(&primary.upstream())).await.unwrap();
    standby.streams().await;
}

#[tokio::test]
async fn a_source_that_is_gone_is_passed_over() {
    let (primary, standby) = pair().await;
    stop(&standby).await;
    let mut plan = wanted(&primary, Means::Clone, &[]).await;
    let nobody = Upstream {
        node: "nobody".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        generation: None,
        copy_slots: false,
    };
    plan.sources = vec![nobody.clone()];
    let error = standby.instance.rebuild(&plan, &Working::default()).await.unwrap_err();
    assert!(matches!(&error, RebuildError::Clone(CloneError::Ask { .. })), "{error:?}");
    plan.sources = vec![nobody, primary.upstream()];
    let rebuilt = standby.instance.rebuild(&plan, &Working::default()).await.unwrap();
    assert!(matches!(&rebuilt, Rebuilt::Copied { from, .. } if from.as_str() == "alpha"), "{rebuilt:?}");
}

/// A disk of its own, until the end of the test.
struct Disk(PathBuf);

impl Disk {
    fn mounted_at(path: PathBuf, megabytes: u32) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={megabytes}m,mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        assert!(mounted.unwrap().success());
        chown(&path);
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg(&self.0).status();
        assert!(gone.is_ok_and(|status| status.success()), "the test's disk is unmounted");
    }
}

#[tokio::test]
async fn too_little_room_and_a_mount_point_are_told_before_anything_is_done() {
    let primary = Server::primary("alpha").await;
    let (root, mut settings) = empty_node(&primary, "delta");
    let disk = Disk::mounted_at(root.path().join("disk"), 24);
    let identifier = primary.instance.identity().0;
    let working = Working::default();
    settings.data_dir = disk.0.join("data");
    let create = async |settings: &Settings| {
        let (sources, upstream) = ([primary.upstream()], primary.upstream());
        create_standby(settings, identifier, &sources, &upstream, None, &working).await.unwrap_err()
    };
    let error = create(&settings).await;
    let CreateError::Clone(CloneError::NoRoom { needed_mb, free_mb, .. }) = &error else {
        panic!("{error:?}")
    };
    assert!(*needed_mb > *free_mb && *free_mb <= 24, "{error}");
    assert_eq!(std::fs::read_dir(&disk.0).unwrap().count(), 0);

    settings.data_dir.clone_from(&disk.0);
    let error = create(&settings).await;
    let CreateError::Clone(CloneError::Place { why, .. }) = &error else { panic!("{error:?}") };
    assert!(why.contains("mount point"), "{why}");
}
