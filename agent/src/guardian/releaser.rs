//! Gives the virtual IP up when PostgreSQL is fenced, in a thread of its own: the kernel may make who
//! removes an address wait, and the guardian waits for nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_vip::Vip;

/// After a failure. The address goes by itself meanwhile.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// So often.
const ATTEMPTS: u32 = 20;

/// The thread, from outside.
#[derive(Debug)]
pub(super) struct Releaser(SyncSender<()>);

impl Releaser {
    /// Waits for something to do.
    pub(super) fn start(vip: Vip) -> std::io::Result<Self> {
        // One word that is not heard yet is as good as two.
        let (words, inbox) = sync_channel(1);
        std::thread::Builder::new().name("virtual-ip".to_owned()).spawn(move || obey(&vip, &inbox))?;
        Ok(Self(words))
    }

    /// Returns at once.
    pub(super) fn release(&self) {
        let _one_waits_already = self.0.try_send(());
    }
}

fn obey(vip: &Vip, inbox: &Receiver<()>) {
    let mut attempts_left = 0;
    loop {
        let told = match attempts_left {
            0 => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            _ => inbox.recv_timeout(TRY_AGAIN),
        };
        match told {
            Ok(()) => attempts_left = ATTEMPTS,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        attempts_left = match vip.release() {
            Ok(was_here) => {
                if was_here {
                    tracing::warn!("virtual IP {} released by the guardian", vip.subnet());
                }
                0
            }
            Err(error) if attempts_left == 1 => {
                tracing::error!("the guardian cannot release virtual IP {}: {}", vip.subnet(), Chain(&error));
                0
            }
            Err(_) => attempts_left - 1,
        };
    }
}
