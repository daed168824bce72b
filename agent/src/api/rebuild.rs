//! `pgherd rebuild`, at the agent of the node that is made anew: nobody else may touch its PostgreSQL.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use pgherd_common::errors::Chain;
use pgherd_core::rebuild::Order;

use super::operator::body;
use super::server::{Api, Refused};
use super::types::{Accepted, Ordered, RebuildRequest};
use crate::driver::{Event, NotTaken};
use crate::working::WorkStatus;

pub(super) async fn order(State(api): State<Api>, bytes: Bytes) -> Result<Json<Ordered>, Refused> {
    let request: RebuildRequest = body(&bytes)?;
    let name = &api.config.node.name;
    if request.node != *name {
        let error = format!("this is the agent of {name}, not of {}", request.node);
        return Err(Refused::new(StatusCode::CONFLICT, error, "only a node's own agent can rebuild it"));
    }
    // Numbers of different processes must differ, too.
    let number = u64::from(rand::random::<u32>());
    let order = Order { number, means: request.means, from: request.from, rate: request.rate };
    let taken = api.ask(|answer| Event::Rebuild(order, answer)).await?;
    match taken {
        Ok(taken) if taken == number => {
            Ok(Json(Ordered { message: format!("{name} is being rebuilt"), number }))
        }
        Ok(number) => Ok(Json(Ordered { message: format!("{name} is being rebuilt already"), number })),
        Err(NotTaken::Refused(refused)) => Err(Refused::new(StatusCode::CONFLICT, &refused, refused.hint())),
        Err(error @ NotTaken::Disk(..)) => {
            let hint = "check the disk of node.state_dir on that node";
            Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, Chain(&error), hint))
        }
    }
}

pub(super) async fn status(State(api): State<Api>) -> Json<WorkStatus> {
    Json(api.working.status())
}

pub(super) async fn stop(State(api): State<Api>) -> Result<Json<Accepted>, Refused> {
    let name = &api.config.node.name;
    if api.ask(Event::StopRebuild).await? {
        let message =
            format!("the rebuild of {name} stops; a copy leaves the old data as it was, a rewind ends first");
        return Ok(Json(Accepted { message, generation: None }));
    }
    let error = format!("{name} is not being rebuilt by an operator");
    Err(Refused::new(StatusCode::CONFLICT, error, "pgherd cluster-status shows what each node does"))
}
