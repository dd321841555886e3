//! Who listens at an address: asked before something is done that presumes that nobody does.

use std::time::Duration;

use stor_proto::peer as proto;

use crate::channel::Channels;

/// For the connection and the answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// A controller that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Its Raft id.
    pub id: u64,
    /// It has a log, of some cluster.
    pub initialized: bool,
}

/// Asks who serves peers at `address` (`host:port`); `None` when nobody answers within three seconds. Cancel-safe.
pub async fn who_listens(address: &str) -> Option<Listening> {
    let mut client = Channels::default().client(address).ok()?;
    let answer = tokio::time::timeout(DEADLINE, client.identify(proto::Empty {})).await;
    let identity = answer.ok()?.ok()?.into_inner();
    Some(Listening {
        id: identity.id,
        initialized: identity.initialized,
    })
}
