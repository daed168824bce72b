//! One agent over HTTP.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CliError;
use super::target::Target;
use crate::api::types::{Accepted, Refusal};

/// A connection refused takes no time; a host that is gone takes this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Long enough for an agent that first has to find a leader to pass the request on to.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// An agent to talk to.
#[derive(Debug)]
pub(super) struct Agent {
    target: Target,
    client: Client,
}

impl Agent {
    pub(super) fn new(target: Target) -> Result<Self, CliError> {
        // Agents are neighbours: a proxy for the world outside must not come between.
        let client =
            Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).build();
        Ok(Self { target, client: client.map_err(CliError::Client)? })
    }

    /// Another agent of the cluster.
    pub(super) fn sibling(&self, target: Target) -> Self {
        Self { target, client: self.client.clone() }
    }

    /// Who is asked.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Asks.
    pub(super) async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(self.client.get(format!("{}{path}", self.target.url))).await
    }

    /// Orders.
    pub(super) async fn order(&self, path: &str, body: &impl Serialize) -> Result<Accepted, CliError> {
        self.call(self.client.post(format!("{}{path}", self.target.url)).json(body)).await
    }

    /// Orders what is answered in its own way.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.call(self.client.post(format!("{}{path}", self.target.url)).json(body)).await
    }

    /// Has the agent try something.
    pub(super) async fn try_out<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(self.client.post(format!("{}{path}", self.target.url))).await
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = request.send().await.map_err(|cause| self.failed(cause))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|cause| self.failed(cause))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|cause| self.stranger(format!("it answered {cause}")));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Err(CliError::Refused(refusal)),
            Err(_) => Err(self.stranger(format!("it answered HTTP {status}"))),
        }
    }

    fn failed(&self, cause: reqwest::Error) -> CliError {
        let (target, cause) = (self.target.clone(), cause.without_url());
        if cause.is_connect() {
            CliError::NoAgent { target, cause }
        } else if cause.is_timeout() {
            CliError::Slow { target, within: ANSWER_TIMEOUT }
        } else {
            CliError::Broken { target, cause }
        }
    }

    fn stranger(&self, what: String) -> CliError {
        CliError::Stranger { target: self.target.clone(), what }
    }
}
