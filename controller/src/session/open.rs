//! The open sessions, and how they learn that what their node should hold may have changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use stor_proto::satellite::{FromController, from_controller};

use super::Outgoing;
use crate::catalogue::load;
use crate::cluster::{Cluster, Trouble};
use crate::observed::HEARTBEAT;

/// The open sessions of this controller.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<BTreeMap<String, Open>>,
}

#[derive(Debug)]
struct Open {
    /// Entry of the log that last touched what the node should hold.
    desired: watch::Sender<u64>,
    replaced: CancellationToken,
    out: Outgoing,
}

impl Sessions {
    pub(super) fn begin(&self, node: &str, out: &Outgoing) -> (watch::Receiver<u64>, CancellationToken) {
        let (sender, receiver) = watch::channel(0);
        let replaced = CancellationToken::new();
        let open = Open {
            desired: sender,
            replaced: replaced.clone(),
            out: out.clone(),
        };
        if let Some(old) = self.lock().insert(node.to_owned(), open) {
            old.replaced.cancel();
        }
        (receiver, replaced)
    }

    /// Ends the registration, unless a newer session has taken the place.
    pub(super) fn end(&self, node: &str, mine: &CancellationToken) {
        if !mine.is_cancelled() {
            self.lock().remove(node);
        }
    }

    /// Tells sessions that their node's desired state may have changed.
    pub fn touch(&self, touched: &[(String, u64)]) {
        let open = self.lock();
        for (node, index) in touched {
            if let Some(open) = open.get(node) {
                open.desired.send_if_modified(|at| {
                    let newer = *index > *at;
                    *at = (*at).max(*index);
                    newer
                });
            }
        }
    }

    /// Ends the session of a deleted node.
    pub fn close(&self, node: &str) {
        if let Some(open) = self.lock().remove(node) {
            open.replaced.cancel();
        }
    }

    /// Tells a node's satellite something that is no state. Whether it could be handed over.
    pub fn tell(&self, node: &str, kind: from_controller::Kind) -> bool {
        let message = FromController { kind: Some(kind) };
        let open = self.lock();
        open.get(node)
            .is_some_and(|open| open.out.try_send(Ok(message)).is_ok())
    }

    /// Number of open sessions.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells sessions of every change of what their nodes should hold, until the Raft node ends. Many entries
/// applied together are one look.
pub async fn follow_desired(cluster: Arc<Cluster>) {
    let mut applied = cluster.raft.applied();
    let mut seen = 0;
    loop {
        let now_at = *applied.borrow_and_update();
        match touched_since(&cluster, seen).await {
            Ok(touched) => {
                cluster.sessions.touch(&touched);
                seen = touched
                    .iter()
                    .map(|(_, index)| *index)
                    .max()
                    .unwrap_or(seen)
                    .max(seen);
            }
            Err(error) => {
                tracing::error!(error = %error, applied = now_at, "reading what changed for satellites failed");
                tokio::time::sleep(HEARTBEAT).await;
                continue;
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

async fn touched_since(cluster: &Cluster, seen: u64) -> Result<Vec<(String, u64)>, Trouble> {
    let mut look = cluster.look_local().await?;
    Ok(load::desired_since(look.rows(), seen).await?)
}
