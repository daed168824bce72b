//! Which server ran how many of the suite's SELECTs, as the servers themselves counted.

use crate::cluster::Cluster;
use crate::failure::Failure;

/// Statements that begin like a query and succeeded, in the database of the suite, without the proxy's
/// own questions.
const SELECTS: &str = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
     WHERE dbid IN (SELECT oid FROM pg_database WHERE datname = $1) \
       AND query ~* '^[\\s(]*(--[^\\n]*\\n\\s*)*(select|with|table|values)\\M' \
       AND query !~ '^SELECT pg_catalog[.]current_setting[(]'";

/// How many ran where, by node.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares(Vec<(String, bool, i64)>);

/// Forgets what was counted before.
pub(super) async fn reset(cluster: &Cluster) -> Result<(), Failure> {
    for node in databases(cluster) {
        let client = cluster.connect_server(&node, "postgres").await?;
        client.batch_execute("SELECT pg_stat_statements_reset()").await?;
    }
    Ok(())
}

/// Asks every server.
pub(super) async fn count(cluster: &Cluster, database: &str) -> Result<Shares, Failure> {
    let mut counted = Vec::new();
    for node in databases(cluster) {
        let client = cluster.connect_server(&node, "postgres").await?;
        let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0);
        let selects = client.query_one(SELECTS, &[&database]).await?.get(0);
        counted.push((node, standby, selects));
    }
    Ok(Shares(counted))
}

fn databases(cluster: &Cluster) -> Vec<String> {
    let with_postgres = cluster.nodes().iter().filter(|node| node.postgres.is_some());
    with_postgres.map(|node| node.name.clone()).collect()
}

impl Shares {
    /// The line for people.
    pub(super) fn told(&self) -> String {
        let sum = |standbys_only: bool| -> i64 {
            self.0.iter().filter(|(_, standby, _)| *standby || !standbys_only).map(|(.., count)| count).sum()
        };
        let each = self.0.iter().map(|(node, standby, count)| {
            format!("{node} ({}) {count}", if *standby { "standby" } else { "primary" })
        });
        let each = each.collect::<Vec<_>>().join(", ");
        let percent = sum(true) * 1000 / sum(false).max(1);
        format!("SELECTs that ran on standbys: {}.{} %  ({each})", percent / 10, percent % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_standbys() {
        let shares = Shares(vec![("server1".into(), false, 600), ("server2".into(), true, 401)]);
        assert!(shares.told().starts_with("SELECTs that ran on standbys: 40.0 %"), "{}", shares.told());
        assert!(Shares::default().told().contains("0.0 %"));
    }
}
