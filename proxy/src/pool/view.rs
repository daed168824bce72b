//! What people are shown of clients and places.

use std::sync::atomic::Ordering;

use pgherd_common::NodeId;

use crate::control::lock;
use crate::sql::Why;

use super::{ClientId, Pool};

/// What a client is at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ClientState {
    /// In a word.
    pub(crate) phase: &'static str,
    /// Server connections that it has.
    pub(crate) connections: usize,
    /// What keeps it on its connection to the primary.
    pub(crate) kept_by: Option<Why>,
}

/// A client.
#[derive(Debug)]
pub(crate) struct ClientRow {
    pub(crate) id: ClientId,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) state: ClientState,
}

/// A place.
#[derive(Debug)]
pub(crate) struct PlaceRow {
    pub(crate) node: NodeId,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) in_use: usize,
    pub(crate) resting: usize,
    pub(crate) claimed: usize,
    pub(crate) waiting: usize,
    pub(crate) size: usize,
}

impl Pool {
    /// A client's state changed.
    pub(crate) fn note(&self, client: ClientId, state: ClientState) {
        if let Some((_, noted)) = lock(&self.clients).get_mut(&client) {
            *noted = state;
        }
    }

    /// All clients, in the order in which they came.
    pub(crate) fn clients(&self) -> Vec<ClientRow> {
        let clients = lock(&self.clients);
        let row = |(id, (account, state)): (&ClientId, &(std::sync::Arc<super::Account>, ClientState))| {
            let (user, database) = (account.user.clone(), account.database.clone());
            ClientRow { id: *id, user, database, state: *state }
        };
        clients.iter().map(row).collect()
    }

    /// All places.
    pub(crate) fn places(&self) -> Vec<PlaceRow> {
        let places = lock(&self.places);
        let row = |((node, user, database), place): (&super::Key, &std::sync::Arc<super::Place>)| {
            let shelf = lock(&place.shelf);
            PlaceRow {
                node: *node,
                user: user.clone(),
                database: database.clone(),
                in_use: place.in_use(),
                resting: shelf.len(),
                claimed: shelf.claimed(),
                waiting: place.waiting.load(Ordering::Relaxed),
                size: place.size,
            }
        };
        places.iter().map(row).collect()
    }
}
