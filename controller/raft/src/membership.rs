//! Who is in the cluster: listing, removing, handing over.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use tokio::time::Instant;

use crate::entry::TypeConfig;
use crate::peer::Seat;
use crate::propose::Route;
use crate::{Application, Node, PeerInfo};

/// A change of members, including the copy of the catalogue to a new one.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

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

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

pub(crate) fn refused<T>(reason: impl Into<String>) -> Result<T, MembershipError> {
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

    pub(crate) fn require_leadership(&self) -> Result<(), MembershipError> {
        let view = self.inner.leadership.borrow();
        if view.is_self {
            Ok(())
        } else {
            Err(MembershipError::NotLeader {
                leader: view.leader.clone(),
            })
        }
    }

    pub(crate) async fn change(
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
    pub(crate) async fn again(
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
