//! One client that asks without a pause, on a thread of its own: how long its answers take while others do
//! something else. The kernel, and not our own queue, decides when it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::active::micros;
use super::client::ClientError;
use super::ground::Way;

/// It asks until it is dropped.
pub(super) struct Probe {
    stop: Arc<AtomicBool>,
    told: oneshot::Receiver<Result<Vec<u32>, ClientError>>,
}

impl Probe {
    /// Logs in and begins. It has asked once when this returns.
    pub(super) async fn start(way: &Way) -> Result<Self, ClientError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, began) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let (way, stops) = (way.clone(), stop.clone());
        let work = move || {
            // Whoever dropped the probe does not want to know.
            let _nobody = tell.send(on_its_own(asked(&way, &stops, ready)));
        };
        let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(work);
        thread.map_err(|source| ClientError::Io { doing: "start a thread", source })?;
        let probe = Self { stop, told };
        match began.await {
            Ok(()) => Ok(probe),
            Err(_) => Err(probe.stop().await.err().unwrap_or(ClientError::Closed)),
        }
    }

    /// How long each answer took, in microseconds.
    pub(super) async fn stop(mut self) -> Result<Vec<u32>, ClientError> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.told).await.unwrap_or(Err(ClientError::Closed))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn on_its_own<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| ClientError::Io { doing: "start a runtime", source })?;
    runtime.block_on(work)
}

async fn asked(way: &Way, stop: &AtomicBool, ready: oneshot::Sender<()>) -> Result<Vec<u32>, ClientError> {
    let mut client = way.open().await?;
    client.ask_known("SELECT 1", "1").await?;
    let _gone = ready.send(());
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        client.ask_known("SELECT 1", "1").await?;
        latencies.push(micros(sent.elapsed()));
    }
    client.close().await?;
    Ok(latencies)
}
