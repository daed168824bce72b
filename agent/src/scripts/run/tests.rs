//! With real processes.

use std::path::Path;

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn shell(script: &str, within: Duration) -> Ran {
    run(&words(&["/bin/sh", "-c", script]), &Surroundings::default(), within).await
}

/// Whether a process of this number is there, and not only its remains.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: &str) {
    let looking = async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, looking).await.is_ok(), "process {pid} lives");
}

#[tokio::test]
async fn both_outputs_and_the_status_are_told() {
    let ran = shell("echo out; echo err >&2; exit 3", SOON).await;
    assert!(matches!(&ran.end, End::Failed(status) if status.code() == Some(3)), "{ran:?}");
    assert!(ran.output.contains("out\n") && ran.output.contains("err\n"), "{ran:?}");
    assert!(ran.into_result().unwrap_err().starts_with("the script failed (exit status: 3): "));
    assert!(shell("true", SOON).await.into_result().is_ok());
    let ran = run(&words(&["/does/not/exist"]), &Surroundings::default(), SOON).await;
    assert!(matches!(ran.end, End::NotStarted(_)), "{ran:?}");
}

#[tokio::test]
async fn no_shell_reads_the_arguments() {
    let ran =
        run(&words(&["/bin/echo", "$HOME", "`id`", "a; echo b", "*"]), &Surroundings::default(), SOON).await;
    assert_eq!(ran.output, "$HOME `id` a; echo b *\n");
}

#[tokio::test]
async fn the_environment_tells_what_it_is_about() {
    let about = About { cluster: "demo".parse().unwrap(), node: "server1".parse().unwrap() };
    let surroundings = Surroundings::of(&about, "fence", Generation::ZERO.next());
    let ran = run(&words(&["/usr/bin/env"]), &surroundings, SOON).await;
    for line in
        ["PGHERD_CLUSTER=demo\n", "PGHERD_NODE=server1\n", "PGHERD_EVENT=fence\n", "PGHERD_GENERATION=1\n"]
    {
        assert!(ran.output.contains(line), "{line} not in {}", ran.output);
    }
}

#[tokio::test]
async fn a_script_that_hangs_is_killed_with_all_it_has_started() {
    let ran = shell("sleep 1000 & echo $!; trap '' TERM INT HUP; wait", Duration::from_millis(500)).await;
    assert!(matches!(ran.end, End::TooSlow(_)), "{ran:?}");
    assert!(ran.took < SOON, "{ran:?}");
    gone(&ran.output).await;
}

#[tokio::test]
async fn a_run_that_is_dropped_kills_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let running = tokio::spawn(async move { shell(&script, SOON).await });
    let looking = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, looking).await.is_ok(), "the script did not start");
    let pid = std::fs::read_to_string(&file).unwrap();
    assert!(lives(&pid));
    running.abort();
    gone(&pid).await;
}

#[tokio::test]
async fn output_without_end_is_read_and_forgotten() {
    let ran = shell("head -c 10000000 /dev/zero | tr '\\0' x", SOON).await;
    assert!(matches!(ran.end, End::Success), "{:?}", ran.end);
    assert_eq!(ran.output.len(), OUTPUT_MAX);
}

#[tokio::test]
async fn what_a_script_leaves_behind_is_not_waited_for() {
    let ran = shell("sleep 30 & echo $!", SOON).await;
    assert!(matches!(ran.end, End::Success), "{ran:?}");
    assert!(ran.took < Duration::from_secs(10), "{ran:?}");
    assert!(lives(&ran.output), "a script may start something that stays");
    kill_process_group(Pid::from_raw(ran.output.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap_err();
    rustix::process::kill_process(Pid::from_raw(ran.output.trim().parse().unwrap()).unwrap(), Signal::KILL)
        .unwrap();
}

#[tokio::test]
async fn a_script_has_the_priority_of_everybody_else() {
    // As an agent's are not: to give way to others needs no right, to end that does.
    let own = rustix::process::setpriority_process(None, 5);
    let score = std::fs::write("/proc/self/oom_score_adj", "500");
    assert!(own.is_ok() && score.is_ok(), "{own:?} {score:?}");
    let until = "until [ \"$(nice)\" = 0 ] && [ \"$(cat /proc/self/oom_score_adj)\" = 0 ]; do :; done";
    let ran = shell(until, SOON).await;
    assert!(ran.into_result().is_ok(), "tests run as root");
}
