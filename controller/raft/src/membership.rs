//! Who is in the cluster: listing, adding, removing, handing over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use stor_proto::peer as proto;
use tokio::time::Instant;

use crate::entry::TypeConfig;
use crate::peer::Seat;
use crate::propose::Route;
use crate::{Application, Node, PeerInfo, state};

/// A change of members, including the copy of the catalogue to a new one.
const DEADLINE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);
/// A learner with fewer entries to go becomes a voter: they are there before the membership is.
const NEARLY: u64 = 64;

/// A member as the asked node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Who it is.
    pub peer: PeerInfo,
    /// Whether it votes; a learner is being filled.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// The last log entry it has; only the leader knows.
    pub matched: Option<u64>,
    /// Whether the leader heard of it within the last election timeout; only the leader knows.
    pub heard: Option<bool>,
}

/// The members were not changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Another node leads. Nothing was done.
    #[error("this controller does not lead{}", leader.as_ref().map_or_else(String::new, |peer| format!("; {peer} does")))]
    NotLeader {
        /// The leader, when known.
        leader: Option<PeerInfo>,
    },
    /// It must not be done. Nothing was done.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// It was not finished in time; asking again continues it.
    #[error("{doing} was not finished within {limit:?}; asking again continues it")]
    Timeout {
        /// What.
        doing: &'static str,
        /// The time.
        limit: Duration,
    },
    /// The node has stopped.
    #[error("this controller has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Learner,
    Voter,
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn refused<T>(reason: impl Into<String>) -> Result<T, MembershipError> {
    Err(MembershipError::Refused {
        reason: reason.into(),
    })
}

impl<A: Application> Node<A> {
    /// The members, by id. Complete on the leader; elsewhere without `matched` and `heard`.
    pub fn members(&self) -> Vec<MemberInfo> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let patience = self.inner.options.timing.election_max;
        metrics
            .membership_config
            .membership()
            .nodes()
            .map(|(id, seat)| MemberInfo {
                peer: seat.peer.clone(),
                voter: voters.contains(id),
                leader: metrics.current_leader == Some(*id),
                matched: metrics
                    .replication
                    .as_ref()
                    .and_then(|all| all.get(id).copied().flatten())
                    .map(|matched| matched.index),
                heard: metrics.heartbeat.as_ref().map(|all| {
                    *id == self.me().id
                        || all
                            .get(id)
                            .copied()
                            .flatten()
                            .is_some_and(|heard| heard.elapsed() < patience)
                }),
            })
            .collect()
    }

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

    /// Removes a member for good. Its id cannot come back. Refused when the rest would have no majority.
    ///
    /// Cancel-safe: asking again continues it.
    pub async fn remove_member(&self, id: u64) -> Result<(), MembershipError> {
        self.require_leadership()?;
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.peer.id == id) else {
            return refused(format!("there is no controller with id {id}"));
        };
        if member.voter {
            let rest = members.iter().filter(|other| other.voter && other.peer.id != id);
            let (here, all) = rest.fold((0, 0), |(here, all), other| {
                (here + usize::from(other.heard == Some(true)), all + 1)
            });
            if all == 0 {
                return refused("the last controller cannot be removed");
            }
            if here * 2 <= all {
                return refused(format!(
                    "without {} only {here} of {all} controllers would be reachable, which is no majority; \
                     bring another one back first",
                    member.peer
                ));
            }
        }
        let ids = BTreeSet::from([id]);
        // A voter goes from both lists at once, because voters are not retained as learners.
        let change = if member.voter {
            ChangeMembers::RemoveVoters(ids)
        } else {
            ChangeMembers::RemoveNodes(ids)
        };
        self.change(change, "removing the controller", Instant::now() + DEADLINE)
            .await?;
        tracing::info!(member = %member.peer, id, "member removed");
        Ok(())
    }

    /// Hands the leadership to another voter and waits until it leads. Cancel-safe.
    pub async fn transfer_leader(&self, id: u64) -> Result<(), MembershipError> {
        self.require_leadership()?;
        if id == self.me().id {
            return Ok(());
        }
        match self.members().into_iter().find(|member| member.peer.id == id) {
            None => return refused(format!("there is no controller with id {id}")),
            Some(member) if !member.voter => {
                return refused(format!("{} is still being filled and cannot lead", member.peer));
            }
            Some(member) if member.heard != Some(true) => {
                return refused(format!("{} is not reachable and cannot lead", member.peer));
            }
            Some(_) => {}
        }
        let stopped = |reason: String| MembershipError::Stopped { reason };
        self.inner
            .raft
            .trigger()
            .transfer_leader(id)
            .await
            .map_err(|error| stopped(error.to_string()))?;
        let limit = self.inner.options.timing.election_max * 4;
        let mut leadership = self.leadership();
        let done = leadership.wait_for(|view| view.leader.as_ref().is_some_and(|leader| leader.id == id));
        match tokio::time::timeout(limit, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(stopped(error.to_string())),
            Err(_) => Err(MembershipError::Timeout {
                doing: "handing over the leadership",
                limit,
            }),
        }
    }

    fn require_leadership(&self) -> Result<(), MembershipError> {
        let view = self.inner.leadership.borrow();
        if view.is_self {
            Ok(())
        } else {
            Err(MembershipError::NotLeader {
                leader: view.leader.clone(),
            })
        }
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

    async fn change(
        &self,
        change: ChangeMembers<u64, Seat>,
        doing: &'static str,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        loop {
            let changing = self.inner.raft.change_membership(change.clone(), false);
            match tokio::time::timeout_at(deadline, changing).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => self.again(doing, error, deadline).await?,
                Err(_) => {
                    return Err(MembershipError::Timeout {
                        doing,
                        limit: DEADLINE,
                    });
                }
            }
        }
    }

    /// Pauses if trying again may help.
    async fn again(
        &self,
        doing: &'static str,
        error: WriteError,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        match error {
            RaftError::APIError(
                ClientWriteError::ForwardToLeader(advice) | ClientWriteError::LogEntryDiscarded(advice),
            ) => {
                if let Route::Elsewhere(leader) = self.route(&advice) {
                    return Err(MembershipError::NotLeader { leader: Some(leader) });
                }
            }
            // Another change is under way, or the leader is new.
            RaftError::APIError(
                ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                )
                | ClientWriteError::PreconditionFailed(_),
            ) => {}
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
                return refused(error.to_string());
            }
            RaftError::Fatal(error) => {
                return Err(MembershipError::Stopped {
                    reason: error.to_string(),
                });
            }
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(MembershipError::Timeout {
                doing,
                limit: DEADLINE,
            });
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}
