//! Whom a primary lets in that was started in place while commits wait for standbys.
//!
//! What a crashed primary has on its disk need not be on any standby. Once it runs again everybody would see that, and the
//! next failover might lose it. Proxies are told of the primary when that cannot happen any more; for clients that connect
//! directly there is a gate: `hba_file` is a link, first to rules that let only agents and standbys in, then to the DBA's
//! own file, which from then on is as good as ever: edits of it take effect with a reload. The next start that needs no
//! gate uses the DBA's file without any link.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::configuration::{DEPTH_MAX, conf_files, same_file};
use super::files::{self, FileError};
use super::follow::{FollowError, SETTLE, SETTLE_PAUSE};
use super::instance::{Instance, Patience};
use super::session::{Session, SessionError};

/// `postgres -C` reads a few files.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// Why clients are not kept out, or not let in.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The program failed.
    #[error("`postgres -C hba_file` does not tell where pg_hba.conf is: {0}")]
    Ask(String),
    /// The DBA's rules could not be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it names is sought beside the link, and not found.
    #[error(
        "{path:?} names {named:?} without its directory, which PostgreSQL would look for in the data directory; write the whole \
         path there"
    )]
    Relative {
        /// The DBA's file.
        path: PathBuf,
        /// What is named.
        named: String,
    },
    /// A file of ours could not be written.
    #[error("cannot change whom PostgreSQL lets in")]
    File(#[from] FileError),
    /// The postmaster was not told.
    #[error("cannot make PostgreSQL read pg_hba.conf")]
    Reload(#[from] FollowError),
    /// The server did not answer.
    #[error("cannot tell whom PostgreSQL lets in")]
    Session(#[from] SessionError),
    /// PostgreSQL would keep to the rules that it has.
    #[error(
        "PostgreSQL would not take over the rules in {path:?}, and goes on letting only agents and standbys in: {}{error}; \
         once that is mended it is tried again by itself",
        line.map_or(String::new(), |line| format!("line {line}: "))
    )]
    Rules {
        /// The DBA's file.
        path: PathBuf,
        /// The line, if it is one.
        line: Option<i32>,
        /// PostgreSQL's words.
        error: String,
    },
    /// The reload took too long.
    #[error("PostgreSQL has not read pg_hba.conf again within {} ms; its log may tell why, and it is tried again", SETTLE.as_millis())]
    NotInEffect,
}

/// What `hba_file` names.
fn link(data_dir: &Path) -> PathBuf {
    data_dir.join("pgherd_hba.conf")
}

/// The rules while the gate is closed. They are removed once it is known to be open.
fn gate(data_dir: &Path) -> PathBuf {
    data_dir.join("pgherd_gate.conf")
}

impl Instance {
    /// Before a start: closes the gate. The value for `hba_file`.
    pub(super) async fn close_gate(&self) -> Result<PathBuf, GateError> {
        let path = self.hba_file().await?;
        let settings = self.settings();
        let elsewhere = path.parent() != Some(self.data_dir());
        let rules = Rules::read(&path, &[&settings.user, &settings.replication_user])
            .map_err(|source| GateError::Read { path: path.clone(), source })?;
        if let Some(named) = rules.relative.filter(|_| elsewhere) {
            return Err(GateError::Relative { path, named });
        }
        let (gate, link) = (gate(self.data_dir()), link(self.data_dir()));
        let text = format!(
            "# Owned and rewritten by pgherd-agent. In force while a primary that was started in place has WAL that may not\n\
             # be on as many standbys as commits wait for; then {} is again.\n\
             {}\
             local all all reject # not before standbys have what this primary has\n\
             host all all all reject # not before standbys have what this primary has\n",
            path.display(),
            rules.kept
        );
        files::write_durably(&gate, text.as_bytes(), 0o600, Some(&self.shared.owner))?;
        files::point_durably(&link, &gate)?;
        Ok(link)
    }

    /// Lets everybody in whom the DBA's rules admit. Returns when new connections are served by them.
    pub async fn let_in(&self) -> Result<(), GateError> {
        let _acting = self.shared.acting.lock().await;
        let path = self.hba_file().await?;
        files::point_durably(&link(self.data_dir()), &path)?;
        let session = self.session().await?;
        check_rules(&session, &path).await?;
        let told: String = session.value("SELECT clock_timestamp()::text").await?;
        self.reload()?;
        let patience = Patience::new(SETTLE, SETTLE_PAUSE);
        // A process that was forked after the reload knows its time, and the postmaster forks none in the middle of one.
        while !self.knows_reload(&told).await? {
            if !patience.next().await {
                return Err(GateError::NotInEffect);
            }
        }
        // They may have been changed meanwhile.
        check_rules(&session, &path).await?;
        files::remove_durably(&gate(self.data_dir()))?;
        self.shared.stirred.notify_one();
        Ok(())
    }

    /// Whether a server with this `hba_file` may still keep clients out.
    pub(super) fn is_gated(&self, hba_file: &str) -> bool {
        // The name alone nearly always tells, without a look at the disk.
        let (file, link) = (Path::new(hba_file), link(self.data_dir()));
        file.file_name() == link.file_name() && same_file(file, &link) && gate(self.data_dir()).exists()
    }

    /// A start that needs no gate: nothing of it is left, in the way of pg_rewind.
    pub(super) fn forget_gate(&self) -> Result<(), FileError> {
        files::remove_durably(&link(self.data_dir()))?;
        files::remove_durably(&gate(self.data_dir()))
    }

    async fn knows_reload(&self, told: &str) -> Result<bool, SessionError> {
        let session = self.connect().await?;
        let row = session.row("SELECT pg_conf_load_time() >= $1::text::timestamptz", &[&told]).await?;
        session.take(&row, 0)
    }

    /// Where the DBA has the rules.
    async fn hba_file(&self) -> Result<PathBuf, GateError> {
        let mut command = self.server_command();
        let output = command.args(["-C", "hba_file"]).kill_on_drop(true).output();
        let output = tokio::time::timeout(ASK_PATIENCE, output)
            .await
            .map_err(|_| GateError::Ask(format!("no answer in {} s", ASK_PATIENCE.as_secs())))?
            .map_err(|error| GateError::Ask(error.to_string()))?;
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || told.is_empty() {
            return Err(GateError::Ask(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(self.data_dir().join(told))
    }
}

/// Whether PostgreSQL would take the DBA's rules over. A line that could never fit (`hostssl` without TLS) is no obstacle.
async fn check_rules(session: &Session, path: &Path) -> Result<(), GateError> {
    const RULES: &str = "SELECT count(*) FILTER (WHERE type IS NOT NULL), \
        (array_agg(line_number) FILTER (WHERE type IS NULL))[1], (array_agg(error) FILTER (WHERE type IS NULL))[1] \
        FROM pg_hba_file_rules";
    let row = session.row(RULES, &[]).await?;
    let (rules, line): (i64, Option<i32>) = (session.take(&row, 0)?, session.take(&row, 1)?);
    let error: Option<String> = session.take(&row, 2)?;
    let error = error.or_else(|| (rules == 0).then(|| "there is no rule".to_owned()));
    error.map_or(Ok(()), |error| Err(GateError::Rules { path: path.to_owned(), line, error }))
}

/// What is left of `pg_hba.conf` for some users.
#[derive(Debug, Default)]
struct Rules {
    /// The lines that are for them, and for them alone as far as they are named: they come in by these as by all lines.
    kept: String,
    /// A file that is named without a directory.
    relative: Option<String>,
}

impl Rules {
    fn read(file: &Path, users: &[&str]) -> io::Result<Self> {
        let mut rules = Self::default();
        rules.add(file, users, DEPTH_MAX)?;
        Ok(rules)
    }

    fn add(&mut self, file: &Path, users: &[&str], depth: usize) -> io::Result<()> {
        let text = String::from_utf8_lossy(&fs::read(file)?).replace("\\\r\n", "").replace("\\\n", "");
        let dir = file.parent().unwrap_or(Path::new("/"));
        for line in text.lines() {
            let fields = fields(line);
            let word = |at: usize| Some(fields.get(at)?.tokens.first()?.text.as_str());
            let included = match (word(0), word(1)) {
                (Some("include" | "include_if_exists"), Some(path)) => vec![dir.join(path)],
                (Some("include_dir"), Some(path)) => {
                    let mut files = conf_files(&dir.join(path));
                    files.sort();
                    files
                }
                (_, _) => {
                    let files = fields.iter().flat_map(|field| &field.tokens).filter_map(Token::file);
                    self.note_relative(files);
                    self.kept.push_str(&narrowed(line, &fields, users));
                    continue;
                }
            };
            self.note_relative(word(1).into_iter());
            for path in included.iter().filter(|path| depth > 1 && path.exists()) {
                self.add(path, users, depth - 1)?;
            }
        }
        Ok(())
    }

    fn note_relative<'a>(&mut self, mut files: impl Iterator<Item = &'a str>) {
        self.relative =
            self.relative.take().or_else(|| files.find(|file| !file.starts_with('/')).map(str::to_owned));
    }
}

/// The line with those of the users whom it is for; empty if that is none of them. As it is, if only the server can tell
/// whom it is for (`+role`, a pattern, a file of names): whoever it lets in is let in.
fn narrowed(line: &str, fields: &[Field], users: &[&str]) -> String {
    const USER: usize = 2;
    let Some(field) = fields.get(USER) else { return String::new() };
    if field.tokens.iter().any(|token| !token.quoted && token.text.starts_with(['+', '/', '@'])) {
        return format!("{line}\n");
    }
    let named = |user: &&&str| {
        field.tokens.iter().any(|token| token.text == **user || (!token.quoted && token.text == "all"))
    };
    let names: Vec<String> =
        users.iter().filter(named).map(|user| format!("\"{}\"", user.replace('"', "\"\""))).collect();
    match (names.is_empty(), line.get(..field.start), line.get(field.end..)) {
        (false, Some(before), Some(behind)) => format!("{before}{}{behind}\n", names.join(",")),
        (_, _, _) => String::new(),
    }
}

/// A field of a line: names with commas between them.
struct Field {
    start: usize,
    end: usize,
    tokens: Vec<Token>,
}

#[derive(Debug, PartialEq, Eq)]
struct Token {
    text: String,
    /// It begins with a quote, and so is a name and nothing else.
    quoted: bool,
}

impl Token {
    /// Where the names are that it stands for.
    fn file(&self) -> Option<&str> {
        self.text.strip_prefix('@').filter(|_| !self.quoted)
    }
}

/// A line as PostgreSQL takes it apart (`next_token` and `next_field_expand` in `hba.c`).
fn fields(line: &str) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let mut chars = line.char_indices().peekable();
    let mut goes_on = false;
    loop {
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let Some((start, _)) = chars.peek().copied().filter(|(_, c)| *c != '#') else { return fields };
        let quoted = chars.peek().is_some_and(|(_, c)| *c == '"');
        let (mut token, mut inside) = (Token { text: String::new(), quoted }, false);
        while let Some((_, c)) =
            chars.next_if(|(_, c)| inside || !(c.is_ascii_whitespace() || matches!(c, ',' | '#')))
        {
            if c != '"' {
                token.text.push(c);
            } else if inside && chars.next_if(|(_, next)| *next == '"').is_some() {
                token.text.push('"');
            } else {
                inside = !inside;
            }
        }
        let end = chars.peek().map_or(line.len(), |(at, _)| *at);
        match fields.last_mut().filter(|_| goes_on) {
            Some(field) => {
                field.tokens.push(token);
                field.end = end;
            }
            None => fields.push(Field { start, end, tokens: vec![token] }),
        }
        goes_on = chars.next_if(|(_, c)| *c == ',').is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pg_hba.conf");
        fs::write(&file, text).unwrap();
        fs::write(dir.path().join("more.conf"), "host all herd ::1/128 cert\nhost all eve ::1/128 trust\n")
            .unwrap();
        Rules::read(&file, &["herd", "walker"]).unwrap()
    }

    #[test]
    fn rules_are_kept_for_those_users_alone_and_in_their_order() {
        assert_eq!(
            rules(
                "# a comment\n\
                 local   all  herd         scram-sha-256\n\
                 host all app 10.0.0.0/8 trust\n\
                 hostssl \"db one\",two  all, eve 10.0.0.1 255.255.255.255  cert clientcert=verify-full # why\n\
                 host replication app, walker,\"herd\" samenet md5\n\
                 host all \"all\" all reject\n\
                 host all \"+herd\" all reject\n\
                 host all a\"ll\" all reject\n\
                 include_if_exists more.conf\n\
                 include_if_exists none.conf\n\
                 host all \\\nall all scram-sha-256\n"
            )
            .kept,
            "local   all  \"herd\"         scram-sha-256\n\
             hostssl \"db one\",two  \"herd\",\"walker\" 10.0.0.1 255.255.255.255  cert clientcert=verify-full # why\n\
             host replication \"herd\",\"walker\" samenet md5\n\
             host all \"herd\",\"walker\" all reject\n\
             host all \"herd\" ::1/128 cert\n\
             host all \"herd\",\"walker\" all scram-sha-256\n"
        );
        assert_eq!(rules("host all\n\n  \n#\n,\n").kept, "");
    }

    #[test]
    fn rules_that_only_the_server_understands_stay_as_they_are() {
        for line in
            ["host all +dbas all reject", "host all app,@names samenet md5", "host all /^h all trust # x"]
        {
            assert_eq!(rules(line).kept, format!("{line}\n"));
        }
    }

    #[test]
    fn files_that_are_named_without_a_directory_are_noticed() {
        let relative = |text: &str| rules(text).relative;
        assert_eq!(relative("host @/etc/dbs all all md5\nhost \"@db\" all all md5\n"), None);
        assert_eq!(relative("host @dbs,x all all md5\n").as_deref(), Some("dbs"));
        assert_eq!(
            relative("include_dir /none\ninclude_if_exists none.conf\n").as_deref(),
            Some("none.conf")
        );
    }

    #[test]
    fn quotes_are_taken_apart_as_postgresql_does() {
        let texts = |line: &str| -> Vec<Vec<String>> {
            fields(line).into_iter().map(|f| f.tokens.into_iter().map(|t| t.text).collect()).collect()
        };
        assert_eq!(texts("a \"b,c #\"\"d\",e f#g"), [vec!["a"], vec!["b,c #\"d", "e"], vec!["f"]]);
        assert_eq!(texts("\"open to the end, "), [vec!["open to the end, "]]);
        assert!(texts("  # all of it").is_empty());
    }
}
