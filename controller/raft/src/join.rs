//! A new node's way into a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use stor_proto::peer as proto;
use tokio::time::Instant;

use crate::channel::{Channels, never_sent};
use crate::{PeerInfo, wire};

/// The whole of it; a big snapshot outlasts one attempt of the leader.
const DEADLINE: Duration = Duration::from_mins(3);
const PAUSE: Duration = Duration::from_millis(100);

/// A node was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The leader refuses; asking again does not help.
    #[error("{by} refuses to take this controller in: {reason}")]
    Refused {
        /// The address that refused.
        by: String,
        /// Why.
        reason: String,
    },
    /// No leader took it in within three minutes.
    #[error(
        "no controller took this one in within {} s ({}); repeat the command to go on", limit.as_secs(), answers.join("; ")
    )]
    Unreachable {
        /// The time.
        limit: Duration,
        /// What each address said last.
        answers: Vec<String>,
    },
}

/// Asks the members at `seeds` to take in the node `me`, which must be open and serving; follows them to the
/// leader. Answers when it is a voter.
///
/// Cancel-safe: asking again continues it.
pub async fn join(seeds: &[String], me: &PeerInfo) -> Result<(), JoinError> {
    let deadline = Instant::now() + DEADLINE;
    let channels = Channels::default();
    let mut said = Vec::new();
    loop {
        let mut answers = Vec::new();
        let mut asked = BTreeSet::new();
        let mut queue: Vec<String> = seeds.iter().rev().cloned().collect();
        while let Some(address) = queue.pop() {
            if !asked.insert(address.clone()) {
                continue;
            }
            match ask(&channels, &address, me, deadline).await {
                Answer::Joined => return Ok(()),
                Answer::Refused(reason) => return Err(JoinError::Refused { by: address, reason }),
                Answer::Leader(leader) => queue.push(leader.peer_address),
                Answer::Later(reason) => answers.push(format!("{address}: {reason}")),
            }
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(JoinError::Unreachable {
                limit: DEADLINE,
                answers,
            });
        }
        if said != answers {
            tracing::warn!(
                answers = answers.join("; "),
                left_s = deadline.saturating_duration_since(Instant::now()).as_secs(),
                "no controller takes this one in yet; asking on"
            );
            said = answers;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Answer {
    Joined,
    Refused(String),
    Leader(PeerInfo),
    Later(String),
}

async fn ask(channels: &Channels, address: &str, me: &PeerInfo, deadline: Instant) -> Answer {
    use proto::join_reply::Outcome;
    let mut client = match channels.client(address) {
        Ok(client) => client,
        Err(error) => return Answer::Refused(error.to_string()),
    };
    let request = proto::JoinRequest {
        name: me.name.clone(),
        id: me.id,
        peer_address: me.peer_address.clone(),
        api_address: me.api_address.clone(),
    };
    match tokio::time::timeout_at(deadline, client.join(request)).await {
        Err(_) => Answer::Later("no answer".to_owned()),
        Ok(Err(status)) if never_sent(&status) => Answer::Later(
            "cannot be reached; is a controller running there, and is this its peer address?".to_owned(),
        ),
        Ok(Err(status)) => Answer::Later(status.message().to_owned()),
        Ok(Ok(reply)) => match reply.into_inner().outcome {
            Some(Outcome::Joined(_)) => Answer::Joined,
            Some(Outcome::Refused(reason)) => Answer::Refused(reason),
            Some(Outcome::Later(reason)) => Answer::Later(reason),
            Some(Outcome::Leader(leader)) => Answer::Leader(wire::take_member(leader)),
            None => Answer::Later("an empty answer".to_owned()),
        },
    }
}
