//! Builds the programs as they are installed. The proxy is compiled twice: what a first one does under load tells the
//! compiler which ways through it are common.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::{built, cargo, program};

/// What is installed, and what measures it.
const PROGRAMS: &[&str] = &["pgherd", "pgherd-agent", "pgherd-proxy", "pgherd-demo", "pgherd-bench"];

/// Everything that the proxy is for, for a moment.
const LOAD: &[&str] = &["proxy", "--targets", "pgherd", "--seconds", "3", "--rounds", "1"];

/// Why there are no programs.
enum Failure {
    /// This cannot be done.
    Step(&'static str, io::Error),
    /// This ended badly; it has said why itself.
    Ended(String),
    /// Something that should be there is not.
    Missing(String),
}

/// Builds them into `target/dist`.
pub(crate) fn run() -> ExitCode {
    if let Some(refusal) = program::root_is_missing() {
        println!("{refusal}");
        return ExitCode::FAILURE;
    }
    match build() {
        Ok(dist) => {
            println!("the programs are in {}", dist.display());
            ExitCode::SUCCESS
        }
        Err(Failure::Step(what, error)) => {
            println!("{what}: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Ended(what) | Failure::Missing(what)) => {
            println!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, Failure> {
    let (dist, work) = (built("dist"), built("pgo"));
    let (raw, merged, trained) = (work.join("raw"), work.join("proxy.profdata"), work.join("bin"));
    let host = told_by_rustc(&["-vV"])?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| Failure::Missing("rustc does not say what it compiles for".to_owned()))?;
    let profdata = profdata(&host)?;
    println!("1/4 all programs");
    done(&mut program::build())?;
    println!("2/4 a proxy that counts what it does");
    let counting = proxy(&host, &work.join("counting"), &format!("-Cprofile-generate={}", raw.display()))?;
    println!("3/4 a cluster, and a minute's load");
    for old in [&raw, &trained] {
        if old.exists() {
            fs::remove_dir_all(old)
                .map_err(|error| Failure::Step("cannot remove what was counted before", error))?;
        }
    }
    install(&counting, &trained)?;
    done(Command::new(trained.join("pgherd-bench")).args(LOAD))?;
    if fs::read_dir(&raw).map_or(true, |mut counted| counted.next().is_none()) {
        return Err(Failure::Missing(format!("the proxy left no counts in {}", raw.display())));
    }
    done(Command::new(profdata).arg("merge").arg("-o").arg(&merged).arg(&raw))?;
    println!("4/4 the proxy");
    let guided = proxy(&host, &work.join("guided"), &format!("-Cprofile-use={}", merged.display()))?;
    install(&guided, &dist)?;
    Ok(dist)
}

/// Puts the programs there, with this proxy.
fn install(proxy: &Path, dir: &Path) -> Result<(), Failure> {
    let step = |error| Failure::Step("cannot put the programs together", error);
    fs::create_dir_all(dir).map_err(step)?;
    for name in PROGRAMS {
        let from = if *name == "pgherd-proxy" { proxy.to_owned() } else { built("release").join(name) };
        let to = dir.join(name);
        // One that runs cannot be written to, but be replaced.
        if to.exists() {
            fs::remove_file(&to).map_err(step)?;
        }
        fs::copy(from, to).map_err(step)?;
    }
    Ok(())
}

/// Builds a proxy with these flags, and leaves alone what was built with others. Only what is compiled for its own sake
/// gets them, not what runs while compiling.
fn proxy(host: &str, dir: &Path, flags: &str) -> Result<PathBuf, Failure> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "pgherd-proxy", "--bin", "pgherd-proxy"]);
    // It would win over the other one without a word.
    build.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", flags);
    done(build.args(["--target", host, "--target-dir"]).arg(dir))?;
    Ok(dir.join(host).join("release/pgherd-proxy"))
}

/// The program that makes counts useful to the compiler; rustup brings it.
fn profdata(host: &str) -> Result<PathBuf, Failure> {
    let sysroot = told_by_rustc(&["--print", "sysroot"])?;
    let program = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/llvm-profdata");
    if !program.exists() {
        done(Command::new("rustup").args(["component", "add", "llvm-tools"]))?;
    }
    if program.exists() {
        Ok(program)
    } else {
        Err(Failure::Missing(format!(
            "{} does not exist; `rustup component add llvm-tools` brings it",
            program.display()
        )))
    }
}

fn told_by_rustc(arguments: &[&str]) -> Result<String, Failure> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(arguments).output();
    let output = output.map_err(|error| Failure::Step("rustc cannot be run", error))?;
    if !output.status.success() {
        return Err(Failure::Ended(format!("rustc {} ended with {}", arguments.join(" "), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn done(command: &mut Command) -> Result<(), Failure> {
    let what = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Ended(format!("{what} ended with {status}"))),
        Err(error) => Err(Failure::Ended(format!("{what} cannot be run: {error}"))),
    }
}
