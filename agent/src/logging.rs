//! What is logged, and in which form: the same for guardian and worker.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The raft library says at length what this agent says itself, and calls its own stop an error, and a change of voters that
/// another leader has to make.
const FILTER: &str = "info,openraft=error,openraft::core::heartbeat=off,openraft::raft::raft_inner=off,\
                      openraft::raft::api::management=off";

/// Logs to these writers from now on.
pub(crate) fn start(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env("PGHERD_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
}
