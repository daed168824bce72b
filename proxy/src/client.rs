//! One task for each client: it logs the client in, then carries bytes between it and its servers as the
//! session machine says.

mod answer;
mod at_once;
mod calls;
mod console;
mod exchange;
mod flow;
mod fresh;
mod idle;
mod introduce;
mod login;
mod moving;
mod opening;
mod outcome;
mod pooled;
mod prove;
mod reach;
mod refusal;
mod replication;
mod servers;
mod spare;
mod state;
mod work;

use std::sync::Arc;

use crate::admin::command::DATABASE;
use crate::listen::Visitor;
use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::wire::backend::{Severity, put_old_error};
use crate::wire::startup::StartupError;

use console::Console;
use login::{Admission, Refusal};
use state::Client;

/// A client that goes on on another thread.
#[derive(Debug)]
pub(crate) struct Moving {
    client: Box<Client>,
    /// The number of the worker that it goes to.
    pub(crate) to: usize,
}

impl Moving {
    /// Serves it on this thread.
    pub(crate) async fn go_on(self) -> Option<Self> {
        self.client.go_on().await
    }
}

/// Serves one client from its first byte to its last, or until it goes on elsewhere.
pub(crate) async fn serve(shared: Arc<Shared>, visitor: Visitor) -> Option<Moving> {
    let mut pipe = match visitor.settle() {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::debug!(%error, "client socket unusable");
            return None;
        }
    };
    match Box::pin(login::admit(&shared, &mut pipe)).await {
        Ok(Admission::Done) => {}
        Ok(Admission::Session(admitted)) if admitted.login.database() == DATABASE => {
            Box::pin(Console::new(shared, pipe, *admitted).run()).await;
        }
        Ok(Admission::Session(admitted)) => {
            return Box::new(Client::new(shared, pipe, *admitted)).run().await;
        }
        Err(Refusal::Gone(error)) => tracing::debug!(%error, "client left before it was logged in"),
        Err(Refusal::Trouble(trouble)) => {
            tracing::info!(?trouble, "client refused");
            say_goodbye(&mut pipe, &trouble).await;
        }
    }
    None
}

/// Tells the client why its connection ends.
async fn say_goodbye(pipe: &mut Pipe, trouble: &Trouble) {
    let error = trouble.response(Severity::Fatal);
    match trouble {
        Trouble::Startup(StartupError::Version { major: 1..3, .. }) => {
            put_old_error(&mut pipe.output, &error);
        }
        _ => error.put(&mut pipe.output),
    }
    // Whoever does not take it in time will find the connection closed.
    drop(tokio::time::timeout(std::time::Duration::from_secs(1), pipe.finish()).await);
}
