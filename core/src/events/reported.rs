//! What keeps the coordinator from acting, where a person should hear of it: these last, and are told again from time to
//! time.

use pgherd_common::{Generation, NodeName};

use super::{Event, Kind};
use crate::coordinator::{NotYet, VotersStay};

/// The event that a reason not to act amounts to; most are nobody's concern.
pub(super) fn of(why: &NotYet, generation: Generation) -> Option<Event> {
    let one = |kind, node: &NodeName| Some((kind, Some(node.clone())));
    let (kind, node) = match why {
        NotYet::AutoFailoverOff(node) => one(Kind::FailoverIsOff, node),
        NotYet::Unguarded(node) => one(Kind::PrimaryUnguarded, node),
        NotYet::NoCandidate { node, .. } => one(Kind::NoCandidate, node),
        NotYet::TooFewLeft { node, .. } => one(Kind::TooFewLeft, node),
        NotYet::Paused { .. } => Some((Kind::LeftAlone, None)),
        NotYet::Minority { node, .. } => one(Kind::Minority, node),
        NotYet::Sick(_) => Some((Kind::PrimarySick, None)),
        NotYet::TooFewStandbys { .. } => Some((Kind::TooFewStandbys, None)),
        NotYet::Scheduled { .. } => Some((Kind::SwitchoverWaits, None)),
        NotYet::SeveralPrimaries(_) => Some((Kind::SeveralPrimaries, None)),
        NotYet::ForeignSystem { node, .. } | NotYet::MajorVersion { node, .. } => {
            one(Kind::WrongDatabase, node)
        }
        NotYet::DuplicateName(node) => one(Kind::DuplicateName, node),
        NotYet::Voters(VotersStay::LastVoters(node) | VotersStay::NobodyReadmits(node)) => {
            one(Kind::VotesAtRisk, node)
        }
        NotYet::Voters(VotersStay::SeveralLost(_)) => Some((Kind::VotesAtRisk, None)),
        NotYet::Voters(VotersStay::Returning { .. } | VotersStay::PlanUnknown(_))
        | NotYet::Leaving { .. }
        | NotYet::MembersUnseen(_)
        | NotYet::Unsettled(_)
        | NotYet::NoPrimaryToForm(_)
        | NotYet::NeverConfirmed(_)
        | NotYet::Listening(_)
        | NotYet::Unverified { .. }
        | NotYet::LeaseRunning { .. }
        | NotYet::Recruiting { .. }
        | NotYet::Salvaging { .. }
        | NotYet::Covering { .. }
        | NotYet::Cascade { .. }
        | NotYet::Step { .. } => None,
    }?;
    Some(Event::new(kind, node, generation, why.to_string()))
}
