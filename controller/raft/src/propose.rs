//! Writing and linearizable reading, on the leader.

use std::time::Duration;

use openraft::LinearizerOption;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use tokio::time::Instant;

use crate::entry::{Body, TypeConfig};
use crate::{Application, Node, PeerInfo};

/// How long [`Node::propose`] and [`Node::linearize`] wait for the cluster; longer than an election.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause before a retry; a new leader needs a few round trips to get its lease.
const PAUSE: Duration = Duration::from_millis(20);
/// Largest command, so that entries always fit a message.
const LARGEST: usize = 1 << 20;

/// A command was not acknowledged, or a read cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads. Nothing was done.
    #[error("this controller does not lead{}", leader.as_ref().map_or_else(String::new, |peer| format!("; {peer} does")))]
    NotLeader {
        /// The leader, when known.
        leader: Option<PeerInfo>,
    },
    /// There was no leader with a majority in time. Nothing was done.
    #[error("the controllers have had no leader with a majority for {waited:?}; are enough of them running?")]
    NoLeader {
        /// How long.
        waited: Duration,
    },
    /// The command was accepted but not acknowledged: it may or may not be applied, now or later.
    #[error("the command was sent but not acknowledged ({reason}); it may have been applied")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// The node has stopped; a command in hand may or may not be applied.
    #[error("this controller has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The command is too large. Nothing was done.
    #[error("the command has {size} bytes; {LARGEST} are allowed")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The command or its reply is not JSON; a defect of the application.
    #[error("cannot {doing}: {source}")]
    Encoding {
        /// What we were doing.
        doing: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl ProposeError {
    /// Whether the command surely has had and will have no effect, so that it may be proposed again as it is.
    pub fn surely_not_applied(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::NoLeader { .. } | Self::TooLarge { .. } => true,
            Self::OutcomeUnknown { .. } | Self::Stopped { .. } => false,
            Self::Encoding { doing, .. } => *doing == ENCODE,
        }
    }
}

const ENCODE: &str = "encode the command";

/// What to do about openraft's advice to ask another node.
pub(crate) enum Route {
    /// No other node is known to lead: this one may be about to.
    Retry,
    Elsewhere(PeerInfo),
}

impl<A: Application> Node<A> {
    /// Proposes a command; answers its reply once a majority has it on disk and this node has applied it.
    ///
    /// Waits up to 10 s for a leader to be elected. Cancel-safe: a command that was sent goes its way.
    pub async fn propose(&self, command: A::Command) -> Result<A::Reply, ProposeError> {
        self.propose_within(command, DEADLINE).await
    }

    /// [`Node::propose`] with another deadline.
    pub async fn propose_within(
        &self,
        command: A::Command,
        limit: Duration,
    ) -> Result<A::Reply, ProposeError> {
        let body = serde_json::to_vec(&command).map_err(|source| ProposeError::Encoding {
            doing: ENCODE,
            source,
        })?;
        if body.len() > LARGEST {
            return Err(ProposeError::TooLarge { size: body.len() });
        }
        let body = Body(body.into());
        let deadline = Instant::now() + limit;
        loop {
            let writing = self.inner.raft.client_write(body.clone());
            let result = tokio::time::timeout_at(deadline, writing).await;
            let error = match result {
                Ok(Ok(response)) => {
                    return serde_json::from_slice(&response.data.0).map_err(|source| {
                        ProposeError::Encoding {
                            doing: "decode the reply",
                            source,
                        }
                    });
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(unknown(format!("no majority within {limit:?}"))),
            };
            match error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(advice)) => {
                    self.pause(&advice, deadline, limit).await?;
                }
                RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
                    return Err(unknown("another controller became leader".to_owned()));
                }
                RaftError::APIError(error) => return Err(unknown(error.to_string())),
                RaftError::Fatal(error) => {
                    return Err(ProposeError::Stopped {
                        reason: error.to_string(),
                    });
                }
            }
        }
    }

    /// On the leader: makes sure that it still leads and that [`Node::reader`] shows everything that was
    /// acknowledged before this call. Costs a round trip to a majority. Cancel-safe.
    pub async fn linearize(&self) -> Result<(), ProposeError> {
        self.linearize_within(DEADLINE).await
    }

    /// [`Node::linearize`] with another deadline.
    pub async fn linearize_within(&self, limit: Duration) -> Result<(), ProposeError> {
        let deadline = Instant::now() + limit;
        loop {
            // An acknowledgement of a message sent after now: no trust in clocks.
            let option = LinearizerOption::new(Some(Duration::ZERO), true)
                .with_wait_timeout(deadline.saturating_duration_since(Instant::now()));
            let reading = async {
                match self.inner.raft.get_read_linearizer(option).await {
                    Ok(point) => point
                        .await_ready(&self.inner.raft)
                        .await
                        .map_err(RaftError::Fatal),
                    Err(error) => Err(error),
                }
            };
            let error = match tokio::time::timeout_at(deadline, reading).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(ProposeError::NoLeader { waited: limit }),
            };
            match error {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(advice)) => {
                    self.pause(&advice, deadline, limit).await?;
                }
                RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                    self.pause(&ForwardToLeader::empty(), deadline, limit).await?;
                }
                RaftError::Fatal(error) => {
                    return Err(ProposeError::Stopped {
                        reason: error.to_string(),
                    });
                }
            }
        }
    }

    async fn pause(
        &self,
        advice: &ForwardToLeader<TypeConfig>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), ProposeError> {
        match self.route(advice) {
            Route::Elsewhere(leader) => Err(ProposeError::NotLeader { leader: Some(leader) }),
            Route::Retry if Instant::now() + PAUSE >= deadline => {
                Err(ProposeError::NoLeader { waited: limit })
            }
            Route::Retry => {
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
        }
    }

    /// Right after an election, during a transfer, and when heartbeats were late, openraft says "ask the
    /// leader" without naming another one: the lease is not there yet.
    pub(crate) fn route(&self, advice: &ForwardToLeader<TypeConfig>) -> Route {
        let elsewhere = advice.leader_id.is_some_and(|id| id != self.me().id);
        match (&advice.leader_node, advice.reason) {
            (Some(leader), ForwardReason::NotLeader) if elsewhere => Route::Elsewhere(leader.peer.clone()),
            _ => Route::Retry,
        }
    }
}

fn unknown(reason: String) -> ProposeError {
    ProposeError::OutcomeUnknown { reason }
}
