//! Handing a request to the leader.

use std::time::Duration;

use stor_proto::peer::{HttpRequest, HttpResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::channel::never_sent;
use crate::{Application, Node, PeerInfo};

/// How long [`Node::forward`] takes at most, waiting for a leader included.
const DEADLINE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// Set on a refusal by a node that does not lead, to tell it from an error of anything in between.
pub(crate) const NOT_LEADER: &str = "stor-not-leader";

/// A request was not answered by the leader.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// This node leads by now: it should handle the request itself. Nothing was sent.
    #[error("this controller has become the leader")]
    LeadsItself,
    /// No leader took the request in time, or none can be elected. It surely had no effect.
    #[error("no leading controller could be reached for {waited:?}; are enough of them running?")]
    NoLeader {
        /// How long.
        waited: Duration,
    },
    /// The leader had the request and did not answer: it may or may not have had an effect.
    #[error(
        "the leading controller {leader} did not answer ({reason}); the request may have been carried out"
    )]
    Interrupted {
        /// Whom it was sent to.
        leader: PeerInfo,
        /// What happened.
        reason: String,
    },
}

impl ForwardError {
    /// Whether the request surely had no effect, so that it may be sent again as it is.
    pub fn surely_not_done(&self) -> bool {
        match self {
            Self::LeadsItself | Self::NoLeader { .. } => true,
            Self::Interrupted { .. } => false,
        }
    }
}

impl<A: Application> Node<A> {
    /// Hands a request to the present leader and answers what it answers. Waits for a leader to be elected as long as
    /// one may be, and tries again as long as the request surely was not handled.
    ///
    /// Cancel-safe: a request that was sent may be carried out all the same.
    pub async fn forward(&self, request: HttpRequest) -> Result<HttpResponse, ForwardError> {
        self.forward_within(request, DEADLINE).await
    }

    /// [`Node::forward`] with another deadline.
    pub async fn forward_within(
        &self,
        request: HttpRequest,
        limit: Duration,
    ) -> Result<HttpResponse, ForwardError> {
        let deadline = Instant::now() + limit;
        let mut views = self.leadership();
        loop {
            let view = views.borrow_and_update().clone();
            if view.is_self {
                return Err(ForwardError::LeadsItself);
            }
            if let Some(leader) = view.leader {
                match self.send(&leader, request.clone(), deadline).await {
                    Ok(response) => return Ok(response),
                    Err(Failed::NotHandled(reason)) => {
                        tracing::debug!(%leader, %reason, "a request was not taken");
                    }
                    Err(Failed::Unknown(reason)) => {
                        return Err(ForwardError::Interrupted { leader, reason });
                    }
                }
            }
            // Nothing was sent that could have had an effect, and there is nobody to send it to.
            if Instant::now() >= deadline || self.cut_off().is_some() {
                return Err(ForwardError::NoLeader { waited: limit });
            }
            // A change of the leadership, or a moment; whichever is first.
            let until = deadline.min(Instant::now() + PAUSE);
            if let Ok(Err(_)) = tokio::time::timeout_at(until, views.changed()).await {
                return Err(ForwardError::NoLeader { waited: limit });
            }
        }
    }

    async fn send(
        &self,
        leader: &PeerInfo,
        request: HttpRequest,
        deadline: Instant,
    ) -> Result<HttpResponse, Failed> {
        let mut client = self
            .inner
            .channels
            .client(&leader.peer_address)
            .map_err(|error| Failed::NotHandled(error.to_string()))?;
        // When another leader is elected, the old one may hang for ever: the caller hears of it at once.
        let mut views = self.leadership();
        let replaced = views.wait_for(|view| view.leader.as_ref().is_some_and(|other| other.id != leader.id));
        tokio::select! {
            biased;
            answer = client.forward(request) => answer.map(tonic::Response::into_inner).map_err(|status| classify(&status)),
            _ = replaced => Err(Failed::Unknown("another controller became leader".to_owned())),
            () = tokio::time::sleep_until(deadline) => Err(Failed::Unknown("no answer in time".to_owned())),
        }
    }
}

enum Failed {
    /// Surely not carried out.
    NotHandled(String),
    Unknown(String),
}

fn classify(status: &Status) -> Failed {
    let refused = status.code() == Code::FailedPrecondition && status.metadata().contains_key(NOT_LEADER);
    let reason = format!("{:?}: {}", status.code(), status.message());
    if refused || never_sent(status) {
        Failed::NotHandled(reason)
    } else {
        Failed::Unknown(reason)
    }
}
