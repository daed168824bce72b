//! Tests on whole clusters of real servers: one program, since linking one for each file takes longer than many a test.
//!
//! Which of them run side by side is in `.config/nextest.toml`.

mod agents;
mod bench;
mod campaign;
mod cascade;
mod difffuzz;
mod drivers;
mod failover;
mod guardian;
mod harness;
mod lag;
mod logical;
mod membership;
mod notify;
mod parameters;
mod pause;
mod quorum;
mod rebuild;
mod refusals;
mod restart;
mod routing;
mod scale;
mod scenarios;
mod sick;
mod stale;
mod synchronous;
mod unmovable;
mod vip;
mod watchdog;
