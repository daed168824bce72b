//! Every script in `cluster-tests/scenarios` still tells the truth. `PGHERD_REWRITE=1` writes down what is
//! true now.

use std::fs;
use std::path::Path;

#[test]
fn scripts_print_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster-tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(paths.len() >= 10, "the scripts were not found");
    let rewrite = std::env::var_os("PGHERD_REWRITE").is_some();
    let mut differ = Vec::new();
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let now = match pgherd_sim::scenario::rewrite(&script) {
            Ok(now) => now,
            Err(nonsense) => panic!("{}: {nonsense}", path.display()),
        };
        if rewrite {
            fs::write(&path, now).unwrap();
        } else if script != now {
            let line = script.lines().zip(now.lines()).position(|(a, b)| a != b);
            let line = line.unwrap_or(script.lines().count().min(now.lines().count()));
            let show = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
            let (said, says) = (show(&script), show(&now));
            differ.push(format!("{}:{}:\n- {said}\n+ {says}", path.display(), line + 1));
        }
    }
    let hint = "PGHERD_REWRITE=1 rewrites the scripts; read the difference before you keep it";
    assert!(differ.is_empty(), "{}\n{hint}", differ.join("\n"));
}
