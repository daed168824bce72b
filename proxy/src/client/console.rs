//! The database `pgherd`: administrators look at the proxy itself and act on it, in both protocols. No
//! server is behind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgherd_common::errors::Chain;
use tokio::sync::watch;

use crate::admin::command::{Command, PARAMETERS, statements};
use crate::admin::{self, reload};
use crate::clients::{Phase, Presence};
use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::upstream::CancelSlot;
use crate::wire::backend::{self, Severity, TxStatus};
use crate::wire::frontend::{self, Parse, Subject};
use crate::wire::{frame, frame::HEADER_LEN};

use super::login::Admitted;
use super::say_goodbye;
use super::state::Gone;

/// Longer messages are none of an administrator's.
const MESSAGE_MAX: usize = 64 << 10;

/// What was asked comes to.
enum Answer {
    Rows(Vec<Vec<String>>, &'static str),
    Done(&'static str),
    Nothing,
}

/// See the module.
pub(super) struct Console {
    shared: Arc<Shared>,
    pipe: Pipe,
    presence: Presence,
    stopping: watch::Receiver<bool>,
    slot: Arc<CancelSlot>,
    status: TxStatus,
    statements: BTreeMap<String, Command>,
    portals: BTreeMap<String, Command>,
    /// After an error, up to the next `Sync`.
    skipping: bool,
}

impl Console {
    pub(super) fn new(shared: Arc<Shared>, pipe: Pipe, admitted: Admitted) -> Self {
        Self {
            stopping: shared.stopping.clone(),
            shared,
            pipe,
            presence: admitted.presence,
            slot: Arc::default(),
            status: TxStatus::Idle,
            statements: BTreeMap::new(),
            portals: BTreeMap::new(),
            skipping: false,
        }
    }

    /// Serves the session to its end.
    pub(super) async fn run(mut self) {
        let guest = &self.presence.badge.guest;
        let user = guest.user.clone();
        if !guest.admin {
            let what = format!("database \"{}\"", guest.database);
            tracing::info!(user, "the proxy's own database was refused");
            return say_goodbye(&mut self.pipe, &Trouble::AdminsOnly { what }).await;
        }
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let key = self.shared.cancels.register(pid, &self.slot);
        for (name, value) in PARAMETERS {
            backend::put_parameter(&mut self.pipe.output, name, value);
        }
        backend::put_parameter(&mut self.pipe.output, "session_authorization", &user);
        backend::put_key(&mut self.pipe.output, key);
        backend::put_ready(&mut self.pipe.output, self.status);
        let gone = loop {
            if let Err(gone) = self.step().await {
                break gone;
            }
        };
        self.shared.cancels.forget(key);
        if let Gone::Trouble(trouble) = gone {
            tracing::info!(user, ?trouble, "session ended");
            say_goodbye(&mut self.pipe, &trouble).await;
        }
    }

    /// Waits for a message and answers it.
    async fn step(&mut self) -> Result<(), Gone> {
        let malformed = || Gone::Trouble(Trouble::Protocol("invalid message format".to_owned()));
        let header = frame::header(&self.pipe.input).map_err(|_| malformed())?;
        match header {
            Some(header) if header.len > MESSAGE_MAX => Err(malformed()),
            Some(header) if header.len <= self.pipe.input.len() => {
                let message = self.pipe.input.split_to(header.len);
                let payload = message.get(HEADER_LEN..).unwrap_or_default();
                self.on_message(header.tag, payload).await
            }
            _ => self.wait().await,
        }
    }

    async fn wait(&mut self) -> Result<(), Gone> {
        self.pipe.flush().await?;
        let open = self.status != TxStatus::Idle;
        let badge = &self.presence.badge;
        badge.is_at(if open { Phase::IdleInTransaction } else { Phase::Idle }, 0);
        badge.counts.bytes_in.set(self.pipe.received);
        badge.counts.bytes_out.set(self.pipe.sent);
        loop {
            self.heed()?;
            tokio::select! {
                result = self.pipe.fill() => return Ok(result?),
                () = self.presence.badge.bell.rung() => {}
            }
        }
    }

    /// Whether it has to go.
    fn heed(&self) -> Result<(), Gone> {
        if self.presence.badge.is_killed() {
            return Err(Gone::Trouble(Trouble::Killed));
        }
        if *self.stopping.borrow() {
            return Err(Gone::Trouble(Trouble::ShuttingDown));
        }
        Ok(())
    }

    async fn on_message(&mut self, tag: u8, payload: &[u8]) -> Result<(), Gone> {
        match tag {
            b'X' => return Err(Gone::Left),
            b'S' => {
                self.skipping = false;
                backend::put_ready(&mut self.pipe.output, self.status);
                return Ok(());
            }
            b'H' => return Ok(()),
            b'd' | b'c' | b'f' => return Ok(()),
            _ if self.skipping && tag != b'Q' => return Ok(()),
            _ => {}
        }
        self.slot.begins();
        if let Err(trouble) = self.serve(tag, payload).await? {
            self.presence.badge.counts.errors.add(1);
            trouble.response(Severity::Error).put(&mut self.pipe.output);
            if self.status == TxStatus::Open {
                self.status = TxStatus::Failed;
            }
            self.skipping = tag != b'Q';
        }
        if tag == b'Q' {
            self.skipping = false;
            backend::put_ready(&mut self.pipe.output, self.status);
        }
        Ok(())
    }

    async fn serve(&mut self, tag: u8, payload: &[u8]) -> Result<Result<(), Trouble>, Gone> {
        let content = |_| Gone::Trouble(Trouble::Protocol("invalid message format".to_owned()));
        match tag {
            b'Q' => return self.simple(payload).await,
            b'P' => {
                let parse = Parse::read(payload).map_err(content)?;
                match self.understand(&String::from_utf8_lossy(parse.sql)) {
                    Ok(command) => drop(self.statements.insert(parse.name.to_owned(), command)),
                    Err(trouble) => return Ok(Err(trouble)),
                }
                backend::put_empty(&mut self.pipe.output, b'1');
            }
            b'B' => {
                let (portal, name) = frontend::bind(payload).map_err(content)?;
                let Some(command) = self.statements.get(name).cloned() else { return Ok(Err(missing(name))) };
                self.portals.insert(portal.to_owned(), command);
                backend::put_empty(&mut self.pipe.output, b'2');
            }
            b'D' => {
                let subject = frontend::subject(payload).map_err(content)?;
                return Ok(self.describe(subject));
            }
            b'C' => {
                match frontend::subject(payload).map_err(content)? {
                    Subject::Statement(name) => drop(self.statements.remove(name)),
                    Subject::Portal(name) => drop(self.portals.remove(name)),
                }
                backend::put_empty(&mut self.pipe.output, b'3');
            }
            b'E' => {
                let mut reader = frame::Reader(payload);
                let name = reader.text().map_err(content)?;
                let Some(command) = self.portals.get(name).cloned() else { return Ok(Err(missing(name))) };
                return self.run_one(&command, false).await;
            }
            other => {
                let what = format!("invalid frontend message type {other}");
                return Err(Gone::Trouble(Trouble::Protocol(what)));
            }
        }
        Ok(Ok(()))
    }

    async fn simple(&mut self, payload: &[u8]) -> Result<Result<(), Trouble>, Gone> {
        let text = String::from_utf8_lossy(payload.strip_suffix(b"\0").unwrap_or(payload)).into_owned();
        for statement in statements(&text) {
            let command = match self.understand(statement) {
                Ok(command) => command,
                Err(trouble) => return Ok(Err(trouble)),
            };
            if let Err(trouble) = self.run_one(&command, true).await? {
                return Ok(Err(trouble));
            }
        }
        Ok(Ok(()))
    }

    fn understand(&self, sql: &str) -> Result<Command, Trouble> {
        let user = &self.presence.badge.guest.user;
        Command::parse(sql, user).map_err(|bad| Trouble::NotUnderstood(bad.to_string()))
    }

    fn describe(&mut self, subject: Subject<'_>) -> Result<(), Trouble> {
        let (command, name) = match subject {
            Subject::Statement(name) => (self.statements.get(name), name),
            Subject::Portal(name) => (self.portals.get(name), name),
        };
        let command = command.ok_or_else(|| missing(name))?;
        let out = &mut self.pipe.output;
        if matches!(subject, Subject::Statement(_)) {
            backend::put_no_parameters(out);
        }
        match command.columns() {
            Some(columns) => backend::put_columns(out, &columns),
            None => backend::put_empty(out, b'n'),
        }
        Ok(())
    }

    /// Runs a command and writes its answer, with the columns where they were not asked for before.
    async fn run_one(&mut self, command: &Command, describe: bool) -> Result<Result<(), Trouble>, Gone> {
        let badge = &self.presence.badge;
        badge.next_turn();
        badge.is_at(Phase::Active, 0);
        badge.counts.queries.add(1);
        let answer = match self.execute(command).await? {
            Ok(answer) => answer,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let out = &mut self.pipe.output;
        match answer {
            Answer::Rows(rows, tag) => {
                if describe {
                    backend::put_columns(out, &command.columns().unwrap_or_default());
                }
                rows.iter().for_each(|row| backend::put_row(out, row));
                backend::put_complete(out, tag);
            }
            Answer::Done(tag) => backend::put_complete(out, tag),
            Answer::Nothing => backend::put_empty(out, b'I'),
        }
        Ok(Ok(()))
    }

    async fn execute(&mut self, command: &Command) -> Result<Result<Answer, Trouble>, Gone> {
        Ok(Ok(match command {
            Command::Empty => Answer::Nothing,
            Command::Show(show) => Answer::Rows(self.shared.answer(*show, None).rows, "SHOW"),
            Command::Value(_, value) => Answer::Rows(vec![vec![value.clone()]], "SELECT 1"),
            Command::Ignored(tag) => Answer::Done(tag),
            Command::Begin => {
                self.status = TxStatus::Open;
                Answer::Done("BEGIN")
            }
            Command::End(tag) => {
                let failed = std::mem::replace(&mut self.status, TxStatus::Idle) == TxStatus::Failed;
                Answer::Done(if failed { "ROLLBACK" } else { tag })
            }
            Command::Pause(database) => return self.pause(database.as_deref()).await,
            Command::Resume(database) => {
                if !self.shared.pauses.end(database.as_deref()) {
                    return Ok(Err(Trouble::NotNow("it is not paused by itself".to_owned())));
                }
                tracing::info!(?database, "resumed");
                Answer::Done("RESUME")
            }
            Command::Kill(id) => match self.shared.clients.find(*id) {
                Some(badge) => {
                    tracing::info!(client = id, user = badge.guest.user, "client killed");
                    badge.kill();
                    // Whatever it is at, it looks up.
                    self.shared.cluster.nudge();
                    Answer::Done("KILL")
                }
                None => return Ok(Err(Trouble::NotUnderstood(format!("there is no client {id}")))),
            },
            Command::Reload => {
                let shared = self.shared.clone();
                // The disk must not hold up clients.
                match tokio::task::spawn_blocking(move || reload::reload(&shared)).await {
                    Ok(Ok(changes)) => Answer::Rows(reload::rows(&changes), "RELOAD"),
                    Ok(Err(error)) => return Ok(Err(Trouble::NotReloaded(Chain(&error).to_string()))),
                    Err(error) => return Ok(Err(Trouble::NotReloaded(error.to_string()))),
                }
            }
        }))
    }

    /// Waits until nothing runs any more of what is paused. Who gives up waiting ends the pause, too.
    async fn pause(&mut self, database: Option<&str>) -> Result<Result<Answer, Trouble>, Gone> {
        let shared = self.shared.clone();
        if !shared.pauses.begin(database) {
            return Ok(Err(Trouble::NotNow("it is paused already".to_owned())));
        }
        tracing::info!(?database, "pausing");
        let waited = self.until_settled(database).await;
        if !matches!(waited, Ok(Ok(_))) {
            shared.pauses.end(database);
        }
        waited
    }

    async fn until_settled(&mut self, database: Option<&str>) -> Result<Result<Answer, Trouble>, Gone> {
        let shared = self.shared.clone();
        self.pipe.flush().await?;
        loop {
            let settled = shared.pauses.settled.notified();
            tokio::pin!(settled);
            // From here on nothing is missed.
            settled.as_mut().enable();
            shared.pool.close_resting(database);
            let (mut busy, mut kept) = (0, 0);
            for badge in shared.clients.all() {
                let concerned = database.is_none_or(|name| badge.guest.database == name);
                if concerned && badge.guest.database != admin::command::DATABASE {
                    busy += usize::from(badge.phase().is_busy());
                    kept += badge.connections();
                }
            }
            if busy == 0 {
                if kept > 0 {
                    let told = format!("{kept} server connections are kept by sessions, which wait");
                    backend::put_notice(
                        &mut self.pipe.output,
                        &told,
                        "SHOW CLIENTS tells what they are kept for.",
                    );
                }
                return Ok(Ok(Answer::Done("PAUSE")));
            }
            let room = self.pipe.input.len() < MESSAGE_MAX;
            tokio::select! {
                biased;
                () = self.slot.cancelled() => return Ok(Err(Trouble::Cancelled)),
                () = settled => {}
                () = self.presence.badge.bell.rung() => self.heed()?,
                result = self.pipe.fill(), if room => result?,
            }
        }
    }
}

fn missing(name: &str) -> Trouble {
    Trouble::NotUnderstood(format!("there is no prepared statement or portal \"{name}\""))
}
