//! The harness itself: servers come up where they should, and nothing outlives the cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_cluster_tests::descriptor::Descriptor;
use pgherd_cluster_tests::process::wait_gone;
use pgherd_cluster_tests::{Cluster, Failure, TestResult};

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

#[tokio::test]
async fn servers_on_loopback_and_nothing_left() -> TestResult {
    let builder = Cluster::for_test("harness");
    let cluster = builder.prepare().await?;
    builder.make_servers(&cluster).await?;
    let dir = cluster.dir().to_owned();

    let client = cluster.connect_server("server1", "app").await?;
    let row = client.query_one("SELECT pg_is_in_recovery(), current_setting('fsync')", &[]).await?;
    assert_eq!((row.get(0), row.get(1)), (false, "on"));
    for standby in ["server2", "server3"] {
        let data_dir = cluster.node(standby).data_dir().map(Path::to_owned).unwrap_or_default();
        assert!(data_dir.join("standby.signal").exists() && data_dir.join("PG_VERSION").exists());
        assert_eq!(cluster.node(standby).postmaster(), None, "agents start the standbys");
    }
    assert!(cluster.node("server4").postgres.is_none());

    let file = tempfile::NamedTempFile::new()?;
    Descriptor::of(&cluster).write(file.path())?;
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path())?)?;
    let postmaster =
        cluster.node("server1").postmaster().ok_or_else(|| Failure::new("server1 does not run"))?;
    assert_eq!(written["nodes"][0]["postgres"]["pid"], postmaster);
    assert_eq!(written["nodes"][3]["kind"], "witness");
    assert!(written["nodes"][3]["postgres"].is_null());

    cluster.finish(&[])?;
    assert!(wait_gone(postmaster, Duration::ZERO).await, "the postmaster outlived its cluster");
    assert!(!dir.exists(), "{dir:?} is left");
    Ok(())
}

#[tokio::test]
async fn a_killed_server_and_a_given_directory() -> TestResult {
    let given = tempfile::Builder::new().prefix("pgherd-given-").tempdir()?;
    std::fs::set_permissions(given.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let builder = Cluster::for_test("given").dir(Some(given.path().to_owned()));
    let cluster = builder.prepare().await?;
    builder.make_servers(&cluster).await?;
    let killed = cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    assert!(wait_gone(killed, Duration::from_secs(5)).await);
    cluster.finish(&[])?;
    assert!(given.path().is_dir(), "a directory that was there before stays");
    assert_eq!(std::fs::read_dir(given.path())?.count(), 0);

    std::fs::write(given.path().join("mine"), "")?;
    let refused = Cluster::builder().dir(Some(given.path().to_owned())).prepare().await;
    let reason =
        refused.err().ok_or_else(|| Failure::new("a directory with files in it was accepted"))?.to_string();
    assert!(reason.contains("is not empty"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn namespaces_can_be_cut_and_are_removed() -> TestResult {
    let builder = Cluster::for_test("netns").netns(true);
    let cluster = builder.prepare().await?;
    builder.make_servers(&cluster).await?;
    let node = cluster.node("server1");
    let postgres = node.postgres.as_ref().ok_or_else(|| Failure::new("server1 is a database node"))?;
    let address: std::net::SocketAddr = postgres.address().parse()?;
    let reach = || tokio::time::timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(address));
    assert!(matches!(reach().await, Ok(Ok(_))), "the host reaches {address}");
    cluster.cut("server1").await?;
    assert!(!matches!(reach().await, Ok(Ok(_))), "{address} is reachable though it was cut off");
    cluster.connect_server("server1", "app").await?.simple_query("SELECT 1").await?;
    cluster.heal("server1").await?;
    assert!(tokio::net::TcpStream::connect(address).await.is_ok(), "{address} came back");

    let (netns, host_if) = (node.place.netns.clone(), node.place.host_if.clone());
    let (netns, host_if) =
        (netns.ok_or_else(|| Failure::new("no namespace"))?, host_if.ok_or_else(|| Failure::new("no link"))?);
    assert!(exists(&host_if));
    cluster.finish(&[])?;
    assert!(!exists(&host_if), "{host_if} is left");
    assert!(!PathBuf::from("/run/netns").join(&netns).exists(), "{netns} is left");
    Ok(())
}
