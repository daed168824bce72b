//! What people are shown of places and of the connections in them.

use pgherd_common::NodeId;

use crate::control::lock;

use super::Pool;

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
    /// All places.
    pub(crate) fn places(&self) -> Vec<PlaceRow> {
        let places = lock(&self.places);
        let row = |((node, user, database), place): (&super::Key, &std::sync::Arc<super::Place>)| {
            let shelf = lock(&place.shelf);
            PlaceRow {
                node: *node,
                user: user.clone(),
                database: database.clone(),
                in_use: place.in_use() + place.reserved(),
                resting: shelf.len(),
                claimed: shelf.claimed(),
                waiting: place.waiting(),
                size: place.size(),
            }
        };
        places.iter().map(row).collect()
    }
}
