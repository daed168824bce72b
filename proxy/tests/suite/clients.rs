//! The clients that people use: pgbench in its three modes, psql.

use std::process::Stdio;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

fn command(program: &str, proxy: &Proxy) -> Command {
    let mut command = Command::new(program);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", proxy.port().to_string());
    command.env("PGUSER", "postgres").env("PGPASSWORD", "secret").env("PGDATABASE", "postgres");
    command.kill_on_drop(true);
    command
}

async fn pgbench(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = soon(command("pgbench", proxy).args(arguments).output()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "pgbench {arguments:?}: {out}{err}");
    assert!(!err.contains("error"), "pgbench {arguments:?}: {err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench_runs_in_every_mode() {
    let primary = Postgres::primary(Access::Scram);
    let standby = primary.standby();
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Scram).await;
    proxy.knows_catalogs().await;
    pgbench(&proxy, &["-i", "-q", "-s", "1"]).await;
    standby.caught_up_with(&primary).await;
    let client = proxy.connect().await;
    let counted = async |position: usize, column: &str| {
        let nodes = client.query("SHOW NODES", &[]).await.unwrap();
        nodes[position].get::<_, String>(column).parse::<u64>().unwrap()
    };
    // Filling the tables reads a little, too.
    let before = (counted(0, "select_cnt").await, counted(1, "select_cnt").await);
    for mode in ["simple", "extended", "prepared"] {
        for script in ["select-only", "tpcb-like"] {
            let arguments = ["-n", "-c", "4", "-t", "50", "-M", mode, "-b", script];
            let report = pgbench(&proxy, &arguments).await;
            assert!(report.contains("number of transactions actually processed: 200/200"), "{report}");
            assert!(report.contains("failed transactions: 0 "), "{report}");
        }
    }
    let report = pgbench(&proxy, &["-n", "-c", "2", "-t", "20", "-C", "-S"]).await;
    assert!(report.contains("40/40"), "{report}");
    // Each of the four clients prepares its SELECT once, with a Sync of its own, which counts too; each
    // of the seven runs begins by asking for the scale and for partitions.
    assert_eq!(counted(0, "select_cnt").await - before.0, 600 + 4, "the reads inside transactions");
    assert_eq!(counted(1, "select_cnt").await - before.1, 640 + 4 + 14, "the reads outside");
    assert_eq!(counted(1, "write_cnt").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_feels_at_home() {
    let primary = Postgres::primary(Access::Trust);
    let standby = primary.standby();
    let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let session = r"
        CREATE TABLE shop (id int PRIMARY KEY, name text);
        \copy shop FROM PSTDIN
        \d shop
        \dt
        SELECT nonsense;
        BEGIN; SELECT 1/0; SELECT 'in failed'; ROLLBACK;
        \set AUTOCOMMIT off
        INSERT INTO shop VALUES (3, 'three');
        COMMIT;
        \set AUTOCOMMIT on
        DO $$ BEGIN RAISE NOTICE 'heard'; END $$;
        SELECT count(*) AS shops FROM shop FOR UPDATE OF shop;
        SELECT string_agg(name, ',' ORDER BY id) FROM (SELECT * FROM shop FOR UPDATE) s;
        COPY shop TO STDOUT;
        ;
        SELECT 1 AS a \; SELECT 2 AS b;
        \conninfo
    ";
    // psql reads the data of \copy from where it reads commands.
    let session = session.replace("PSTDIN", "STDIN\n1\tone\n2\ttwo\n\\.");
    let session: String = session.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let mut psql = command("psql", &proxy);
    psql.args(["-X", "-A"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = psql.spawn().unwrap();
    child.stdin.take().unwrap().write_all(session.as_bytes()).await.unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    for part in
        ["COPY 2", "Table \"public.shop\"", "public|shop|table|postgres", "one,two,three", "3\tthree", "b\n2"]
    {
        assert!(out.contains(part), "{part:?} not in {out}{err}");
    }
    for part in [
        "column \"nonsense\" does not exist",
        "division by zero",
        "current transaction is aborted",
        "NOTICE:  heard",
    ] {
        assert!(err.contains(part), "{part:?} not in {out}{err}");
    }
    assert!(!err.contains("connection"), "{err}");
}
