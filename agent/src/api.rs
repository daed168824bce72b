//! The agent's port: what operators, proxies, other agents and monitoring ask of it.

mod maintenance;
mod members;
mod metrics;
mod operator;
mod parameters;
mod rebuild;
mod restart;
mod server;
mod status;
pub mod types;
mod versions;

pub use server::{Api, router};
