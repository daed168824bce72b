//! A real mail server and a real HTTP listener, for what agents tell people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::install::package;
use crate::network::Place;
use crate::undertaker::Undertaker;
use crate::wait::{NotReached, wait_until};

const START_TIME_MAX: Duration = Duration::from_secs(30);

/// See the module. It ends when this is dropped, or its owner is gone.
#[derive(Debug)]
pub struct Receiver {
    host: String,
    dir: PathBuf,
    ports: BTreeMap<String, u16>,
    #[expect(dead_code, reason = "kept for its drop")]
    process: Daemon,
    #[expect(dead_code, reason = "kept for its drop: it ends the process and removes the directory")]
    undertaker: Undertaker,
}

/// Something that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Received {
    /// Where: `mail`, `starttls`, `tls` or `http`.
    pub kind: String,
    /// Of a mail.
    pub sender: String,
    /// Of a mail.
    pub to: Vec<String>,
    /// Of a mail.
    pub subject: String,
    /// Of a mail.
    pub text: String,
    /// Of a mail: the connection was.
    pub encrypted: bool,
    /// Of a mail: there was one.
    pub login: bool,
    /// Of a request.
    pub path: String,
    /// Of a request.
    pub headers: BTreeMap<String, String>,
    /// Of a request.
    pub json: serde_json::Value,
}

impl Received {
    /// Of a request: which event it tells of.
    pub fn event(&self) -> &str {
        self.json.get("event").and_then(serde_json::Value::as_str).unwrap_or_default()
    }
}

impl Receiver {
    /// Starts one at an address of this machine. `certificate`: PEM of a chain and its key; then there are encrypted servers too.
    pub async fn start(host: &str, certificate: Option<(&str, &str)>) -> Result<Self, Failure> {
        package(Path::new("/usr/bin/python3"), "python3", &|_| ()).await?;
        let module = Path::new("/usr/lib/python3/dist-packages/aiosmtpd");
        package(module, "python3-aiosmtpd", &|_| ()).await?;
        let mut undertaker = Undertaker::start()?;
        let dir = tempfile::Builder::new().prefix("pgherd-receiver-").tempdir()?.keep();
        undertaker.will_remove(&dir)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers/receiver.py");
        let mut arguments = vec![script.display().to_string(), host.to_owned(), dir.display().to_string()];
        if let Some((chain, key)) = certificate {
            for (name, pem) in [("chain.pem", chain), ("key.pem", key)] {
                std::fs::write(dir.join(name), pem)?;
                arguments.push(dir.join(name).display().to_string());
            }
        }
        let place = Place { host: host.to_owned(), netns: None, host_if: None };
        let mut process = Daemon::new("receiver", Path::new("/usr/bin/python3"), arguments, place, &dir);
        process.start()?;
        let ports = wait_until("the receiver listens", START_TIME_MAX, async || {
            let log = || std::fs::read_to_string(dir.join("receiver.log")).unwrap_or_default();
            std::fs::read_to_string(dir.join("ports")).map_err(|error| format!("{error}: {}", log()))
        });
        let ports = serde_json::from_str(&ports.await?)?;
        Ok(Self { host: host.to_owned(), dir, ports, process, undertaker })
    }

    /// Where it is.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its directory, for files that go when it goes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The port of one of its servers: `mail`, `starttls`, `tls`, `http`, `https`.
    ///
    /// # Panics
    /// When there is none.
    pub fn port(&self, kind: &str) -> u16 {
        self.ports.get(kind).copied().unwrap_or_else(|| panic!("there is no server for {kind:?}"))
    }

    /// All that has arrived.
    pub fn received(&self) -> Vec<Received> {
        let text = std::fs::read_to_string(self.dir.join("received")).unwrap_or_default();
        // The last line may be in the making.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for something.
    pub async fn until(
        &self,
        what: &str,
        within: Duration,
        look: impl Fn(&Received) -> bool,
    ) -> Result<Received, NotReached> {
        wait_until(what, within, async || {
            let all = self.received();
            let told = || {
                all.iter()
                    .map(|one| format!("{} {}{}", one.kind, one.subject, one.event()))
                    .collect::<Vec<_>>()
            };
            all.iter().find(|one| look(one)).cloned().ok_or_else(|| told().join("\n"))
        })
        .await
    }
}
