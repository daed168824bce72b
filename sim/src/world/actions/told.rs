//! What an agent does, in words.

use pgherd_core::reconcile::{LocalAction, Wait};

/// One line for the log.
pub(super) fn describe(action: &LocalAction) -> String {
    match action {
        LocalAction::Fence { reason } => format!("fences PostgreSQL: {reason}"),
        LocalAction::StartPrimary(generation, _) => {
            format!("starts PostgreSQL as primary of generation {generation}")
        }
        LocalAction::StartStandby => "starts PostgreSQL as a standby".to_owned(),
        LocalAction::Rejoin { upstream, .. } => format!("rejoins as a standby of {}", upstream.node),
        LocalAction::Rebuild(rebuild) => format!("is rebuilt as a standby of {}", rebuild.upstream.node),
        LocalAction::StopFast { reason } => format!("stops PostgreSQL: {reason}"),
        LocalAction::DrainAndStop { .. } => "drains and stops PostgreSQL: switchover".to_owned(),
        LocalAction::Prepare { generation, .. } => {
            format!("checkpoints for the switchover to generation {generation}")
        }
        LocalAction::Checkpoint => "checkpoints after the promotion".to_owned(),
        LocalAction::Recruit(generation) => {
            format!("recruited for generation {generation}: cuts the walreceiver")
        }
        LocalAction::Salvage { offer, .. } => format!("fetches what {} has left", offer.node),
        LocalAction::FenceScript { generation, .. } => {
            format!("runs the fence script before generation {generation}")
        }
        LocalAction::Promote(generation, _) => {
            format!("promotes PostgreSQL to primary of generation {generation}")
        }
        LocalAction::Cover(Wait { standbys, of, .. }) => {
            let of: Vec<String> = of.iter().map(ToString::to_string).collect();
            format!("has commits wait for {standbys} of {}", of.join(", "))
        }
        LocalAction::LetIn => "lets clients in".to_owned(),
        LocalAction::Follow(upstream) => format!("follows {}", upstream.node),
        LocalAction::HoldBack(_) => "has logical slots wait for standbys".to_owned(),
        LocalAction::AlignSlots { .. } => "aligns replication slots with the members".to_owned(),
    }
}
