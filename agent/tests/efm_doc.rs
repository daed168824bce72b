//! `docs/efm-to-pgherd.md` against the command line and the configuration there are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The cells of every row but the heads.
fn rows(text: &str) -> Vec<Vec<&str>> {
    fn cells(line: &str) -> Vec<&str> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    }
    let is_row = |line: &&str| ["| `", "| none", "| replication"].iter().any(|start| line.starts_with(start));
    text.lines().filter(is_row).filter(|line| !line.starts_with("| `efm` |")).map(cells).collect()
}

fn help(words: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_pgherd")).args(words).arg("--help").output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// Why there is no such command, or no such option.
fn command_trouble(typed: &str) -> Option<String> {
    let words: Vec<&str> = typed.split_whitespace().skip(1).collect();
    let (options, command): (Vec<&str>, Vec<&str>) =
        words.into_iter().partition(|word| word.starts_with("--"));
    let Some(help) = help(&command) else { return Some(format!("`{typed}`: no such command")) };
    let missing = options.iter().find(|option| !help.contains(*option))?;
    Some(format!("`{typed}`: no option {missing}"))
}

#[test]
fn every_command_and_property_of_efm_has_an_answer_that_exists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/efm-to-pgherd.md");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split_once("\n## What went wrong there\n").unwrap().0;
    let keys: BTreeSet<String> = pgherd_agent::config::known_keys().into_iter().map(|key| key.path).collect();
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    let rows = rows(text);
    for row in &rows {
        let [theirs, ours, _] = row.as_slice() else { panic!("{row:?}") };
        if *theirs != "none" && !seen.insert(*theirs) {
            wrong.push(format!("{theirs} is there twice"));
        }
        let reason = ours.strip_prefix("not needed").is_some_and(|why| why.len() > 3);
        if !reason && quoted(ours).next().is_none() {
            wrong.push(format!("{theirs} has no answer"));
        }
        for named in quoted(ours).chain(row[2..].iter().flat_map(|cell| quoted(cell))) {
            if named.starts_with("pgherd ") {
                wrong.extend(command_trouble(named));
            } else if named.contains('.')
                && !named.ends_with(".toml")
                && !named.ends_with(".conf")
                && !keys.contains(named)
            {
                wrong.push(format!("{named} is no key of agent.toml"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let named: usize = rows.iter().map(|row| quoted(row[0]).count()).sum();
    assert_eq!(named, 18 + EFM_PROPERTIES, "commands with their variants, and properties");
}

/// Every function of the workspace, tests above all.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let skipped = ["target", ".git"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !skipped {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_test_that_keeps_a_defect_away_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/efm-to-pgherd.md")).unwrap();
    let defects = text.split_once("\n## What went wrong there\n").unwrap().1;
    let mut known = BTreeSet::new();
    functions(&root, &mut known);
    let is_test = |name: &&str| name.matches('_').count() > 2 && *name != "synchronous_standby_names";
    let named: Vec<&str> = quoted(defects).filter(is_test).collect();
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<&str> = named.into_iter().filter(|name| !known.contains(*name)).collect();
    assert!(missing.is_empty(), "no such test: {missing:?}");
}

/// As many as Failover Manager 5.4 documents.
const EFM_PROPERTIES: usize = 104;
