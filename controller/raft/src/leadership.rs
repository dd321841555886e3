//! Who leads, as this node sees it.

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::PeerInfo;
use crate::entry::TypeConfig;

/// Who leads. A view, not a right: another leader may exist already. Before acting on what was read, call
/// [`crate::Node::linearize`]; what is proposed by a former leader is refused by the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, when one is known.
    pub leader: Option<PeerInfo>,
    /// Whether it is this node.
    pub is_self: bool,
    /// Counts elections; grows with every new leader.
    pub term: u64,
}

fn view(metrics: &RaftServerMetrics<TypeConfig>) -> Leadership {
    let leader = metrics
        .current_leader
        .and_then(|id| metrics.membership_config.membership().get_node(&id))
        .map(|seat| seat.peer.clone());
    Leadership {
        is_self: metrics.state == ServerState::Leader,
        leader,
        term: metrics.vote.leader_id.term,
    }
}

/// Follows openraft's metrics until the node stops.
pub(crate) async fn follow(
    mut metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    views: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    loop {
        let now = view(&metrics.borrow_watched());
        views.send_if_modified(|last| {
            let changed = *last != now;
            if changed {
                tracing::info!(
                    leader = now.leader.as_ref().map(|peer| peer.name.as_str()),
                    term = now.term,
                    "leadership"
                );
                *last = now;
            }
            changed
        });
        let ended = tokio::select! {
            () = stop.cancelled() => true,
            changed = metrics.changed() => changed.is_err(),
        };
        if ended {
            break;
        }
    }
    // Nobody may take a stopped node for the leader.
    views.send_modify(|last| {
        last.leader = None;
        last.is_self = false;
    });
}
