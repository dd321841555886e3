//! Taking a node into the cluster: who it is, whether it may, and its way from learner to voter.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use stor_proto::peer as proto;
use tokio::time::Instant;

use crate::membership::{DEADLINE, PAUSE, refused};
use crate::peer::Seat;
use crate::{Application, MembershipError, Node, PeerInfo, state};

/// A learner with fewer entries to go becomes a voter: they are there before the membership is.
const NEARLY: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Learner,
    Voter,
}

impl<A: Application> Node<A> {
    /// Takes a node in: learner first, voter once it has nearly all of the log. It must be serving already,
    /// with an empty directory. Does nothing if it is a voter; continues what was interrupted.
    ///
    /// Cancel-safe: a node left a learner is promoted by the next call.
    pub async fn add_member(&self, peer: PeerInfo) -> Result<(), MembershipError> {
        self.require_leadership()?;
        let deadline = Instant::now() + DEADLINE;
        let id = peer.id;
        let known = self.check_addable(&peer).await?;
        let seat = self.identify(&peer, deadline).await?;
        if known == Some(Role::Voter) {
            return Ok(());
        }
        loop {
            let adding = self.inner.raft.add_learner(id, seat.clone(), false);
            match tokio::time::timeout_at(deadline, adding).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => self.again("adding the controller", error, deadline).await?,
                Err(_) => {
                    return Err(MembershipError::Timeout {
                        doing: "adding the controller",
                        limit: DEADLINE,
                    });
                }
            }
        }
        self.caught_up(id, deadline).await?;
        self.change(
            ChangeMembers::AddVoterIds(BTreeSet::from([id])),
            "promoting the controller",
            deadline,
        )
        .await?;
        tracing::info!(member = %peer, id, "member added");
        Ok(())
    }

    /// What it is already; an error if it must not become a member.
    async fn check_addable(&self, peer: &PeerInfo) -> Result<Option<Role>, MembershipError> {
        if let Err(error) = self.inner.channels.client(&peer.peer_address) {
            return refused(error.to_string());
        }
        for member in self.members() {
            if member.peer == *peer {
                return Ok(Some(if member.voter { Role::Voter } else { Role::Learner }));
            }
            if member.peer.id == peer.id {
                return refused(format!("the id {} is that of {}", peer.id, member.peer));
            }
            if member.peer.name == peer.name || member.peer.peer_address == peer.peer_address {
                return refused(format!(
                    "{} has this name or address already; remove it first",
                    member.peer
                ));
            }
        }
        match state::is_former_member(self.reader(), peer.id).await {
            Ok(false) => Ok(None),
            Ok(true) => refused(format!(
                "the id {} was that of a controller that has been removed; let it join with an empty \
                 directory and a new id",
                peer.id
            )),
            Err(error) => Err(MembershipError::Stopped {
                reason: error.to_string(),
            }),
        }
    }

    /// Asks the node itself who it is: it must be there, be the one meant, and have the log it had.
    async fn identify(&self, peer: &PeerInfo, deadline: Instant) -> Result<Seat, MembershipError> {
        let mut client = match self.inner.channels.client(&peer.peer_address) {
            Ok(client) => client,
            Err(error) => return refused(error.to_string()),
        };
        let identity = loop {
            match tokio::time::timeout_at(deadline, client.identify(proto::Empty {})).await {
                Ok(Ok(identity)) => break identity.into_inner(),
                Ok(Err(status)) if Instant::now() + PAUSE < deadline => {
                    tracing::debug!(member = %peer, %status, "not reached yet");
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Err(_)) | Err(_) => {
                    return Err(MembershipError::Timeout {
                        doing: "reaching the controller",
                        limit: DEADLINE,
                    });
                }
            }
        };
        if identity.id != peer.id {
            return refused(format!(
                "at {} is the controller {}, not {}",
                peer.peer_address, identity.id, peer.id
            ));
        }
        let seat = Seat {
            peer: peer.clone(),
            incarnation: identity.incarnation,
        };
        let members = Arc::clone(&self.inner.raft.metrics().borrow_watched().membership_config);
        match members.membership().get_node(&peer.id) {
            Some(known) if *known != seat => refused(format!(
                "{peer} has lost the log it had; remove it and let it join with an empty directory and a new id"
            )),
            None if identity.initialized => refused(format!(
                "{peer} has the log of another cluster; let it join with an empty directory"
            )),
            Some(_) | None => Ok(seat),
        }
    }

    async fn caught_up(&self, id: u64, deadline: Instant) -> Result<(), MembershipError> {
        let mut metrics = self.inner.raft.metrics();
        let caught_up = async {
            loop {
                {
                    let now = metrics.borrow_watched();
                    let matched = now
                        .replication
                        .as_ref()
                        .and_then(|all| all.get(&id).copied().flatten());
                    let goal = now.last_log_index.map_or(0, |last| last.saturating_sub(NEARLY));
                    if matched.is_some_and(|matched| matched.index >= goal) {
                        return Ok(());
                    }
                    if now.replication.is_none() {
                        return Err(MembershipError::NotLeader { leader: None });
                    }
                }
                if let Err(error) = metrics.changed().await {
                    return Err(MembershipError::Stopped {
                        reason: error.to_string(),
                    });
                }
            }
        };
        tokio::time::timeout_at(deadline, caught_up)
            .await
            .map_err(|_| MembershipError::Timeout {
                doing: "copying the log to the controller",
                limit: DEADLINE,
            })?
    }
}
