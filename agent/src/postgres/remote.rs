//! Knocking on another node's PostgreSQL, to tell a lost node from a lost agent.

use std::io::ErrorKind;

use pgherd_common::HostPort;

use super::session::{Session, SessionError};
use super::settings::Settings;
use crate::observation::RemoteDatabase;

/// What is seen there within `connect_timeout`.
pub(super) async fn knock(settings: &Settings, other: &HostPort) -> RemoteDatabase {
    let look = async { Session::remote(settings, other).await?.value("SELECT pg_is_in_recovery()").await };
    match tokio::time::timeout(settings.connect_timeout, look).await {
        Err(_) => RemoteDatabase::Silent,
        Ok(Ok(true)) => RemoteDatabase::InRecovery,
        Ok(Ok(false)) => RemoteDatabase::Writable,
        Ok(Err(error)) => verdict(&error),
    }
}

fn verdict(error: &SessionError) -> RemoteDatabase {
    match (error.code(), error.io()) {
        (Some(_), _) => RemoteDatabase::Answering,
        (None, Some(ErrorKind::ConnectionRefused)) => RemoteDatabase::Refused,
        (None, _) => RemoteDatabase::Silent,
    }
}
