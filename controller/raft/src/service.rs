//! What the other members ask of this one, over gRPC.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesResponse, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stor_proto::peer as proto;
use stor_proto::peer::peer_server::{Peer, PeerServer};
use stor_proto::peer::{HttpRequest, HttpResponse};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use crate::channel::MESSAGE;
use crate::entry::{TypeConfig, Vote};
use crate::forward::NOT_LEADER;
use crate::membership::MembershipError;
use crate::{Application, Node, PeerInfo, transfer, wire};

/// Answers requests that followers hand to this node while it leads.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers as if the request had come to this node, but never forwards it again: if the leadership is lost
    /// meanwhile, the answer says so.
    fn forward(&self, request: HttpRequest) -> Pin<Box<dyn Future<Output = HttpResponse> + Send + '_>>;
}

/// The gRPC service.
pub(crate) struct PeerService<A: Application> {
    node: Node<A>,
    handler: Arc<dyn PeerHandler>,
}

impl<A: Application> PeerService<A> {
    pub(crate) fn new(node: Node<A>, handler: Arc<dyn PeerHandler>) -> Self {
        Self { node, handler }
    }

    pub(crate) fn into_server(self) -> PeerServer<Self> {
        PeerServer::new(self)
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE)
    }

    /// An address can be taken over by another node, and a node can have lost its log: neither may answer for
    /// the one that was asked.
    fn check_addressee(&self, to: Option<&proto::Addressee>) -> Result<(), Status> {
        let me = self.node.addressee();
        match to {
            Some(to) if *to == me => Ok(()),
            Some(to) if to.id == me.id => Err(Status::not_found(format!(
                "the controller {} has lost the log it had; remove it and let it join with a new id",
                me.id
            ))),
            _ => Err(Status::not_found(format!("this is the controller {}", me.id))),
        }
    }

    /// A request for this node's vote; who asks is there.
    fn candidacy(&self, body: &[u8]) -> Result<VoteRequest<TypeConfig>, Status> {
        let request: VoteRequest<TypeConfig> = decode(body)?;
        self.node.inner.contacts.heard(request.vote.leader_id.voted_for);
        Ok(request)
    }
}

fn stopped(error: &Fatal<TypeConfig>) -> Status {
    Status::unavailable(format!("this controller has stopped: {error}"))
}

fn raft_stopped(error: &RaftError<TypeConfig>) -> Status {
    Status::unavailable(format!("this controller has stopped: {error}"))
}
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(body).map_err(|error| Status::invalid_argument(error.to_string()))
}
fn reply<T: Serialize>(value: &T) -> Result<Response<proto::RaftReply>, Status> {
    let body = serde_json::to_vec(value).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(proto::RaftReply { body }))
}

impl<A: Application> Node<A> {
    pub(crate) fn addressee(&self) -> proto::Addressee {
        proto::Addressee {
            id: self.me().id,
            incarnation: self.inner.incarnation.clone(),
        }
    }

    async fn receive_snapshot(&self, stream: Streaming<proto::SnapshotChunk>) -> Result<Vote, Status> {
        let inner = &self.inner;
        let _one = inner
            .receiving
            .try_lock()
            .map_err(|_| Status::resource_exhausted("another snapshot is being received"))?;
        let draft = inner.shelf.draft("received");
        let received = transfer::receive(stream, &self.addressee(), &draft, A::migrator())
            .await
            .map_err(|error| {
                tracing::warn!(%error, "a snapshot was not received");
                Status::aborted(error.to_string())
            })?;
        let answer = inner
            .raft
            .install_full_snapshot(received.vote, received.snapshot)
            .await
            .map_err(|error| stopped(&error))?;
        Ok(answer.vote)
    }
}

#[tonic::async_trait]
impl<A: Application> Peer for PeerService<A> {
    async fn append(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendReply>, Status> {
        let request = request.into_inner();
        self.check_addressee(request.to.as_ref())?;
        let request =
            wire::take_append(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let inner = &self.node.inner;
        let leader = request.vote.leader_id.voted_for;
        let answer = inner
            .raft
            .append_entries(request)
            .await
            .map_err(|error| raft_stopped(&error))?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            inner.contacts.led(leader);
        }
        Ok(Response::new(wire::put_append_reply(&answer)))
    }

    async fn raft(&self, request: Request<proto::RaftCall>) -> Result<Response<proto::RaftReply>, Status> {
        let proto::RaftCall { method, body, to } = request.into_inner();
        self.check_addressee(to.as_ref())?;
        let raft = &self.node.inner.raft;
        match method.as_str() {
            "vote" => reply(
                &raft
                    .vote(self.candidacy(&body)?)
                    .await
                    .map_err(|error| raft_stopped(&error))?,
            ),
            "pre_vote" => reply(
                &raft
                    .pre_vote(self.candidacy(&body)?)
                    .await
                    .map_err(|error| raft_stopped(&error))?,
            ),
            "transfer_leader" => reply(
                &raft
                    .handle_transfer_leader(decode(&body)?)
                    .await
                    .map_err(|error| stopped(&error))?,
            ),
            other => Err(Status::unimplemented(format!("unknown Raft call `{other}`"))),
        }
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        // A task of its own, so that no half-written draft is left in use when the connection breaks.
        let node = self.node.clone();
        let stream = request.into_inner();
        let received = tokio::spawn(async move { node.receive_snapshot(stream).await }).await;
        let vote = received.map_err(|error| Status::internal(error.to_string()))??;
        reply(&vote)
    }

    async fn identify(&self, _: Request<proto::Empty>) -> Result<Response<proto::Identity>, Status> {
        let proto::Addressee { id, incarnation } = self.node.addressee();
        let initialized = self.node.is_initialized().await;
        Ok(Response::new(proto::Identity {
            id,
            incarnation,
            initialized,
        }))
    }

    async fn forward(&self, request: Request<HttpRequest>) -> Result<Response<HttpResponse>, Status> {
        if !self.node.inner.leadership.borrow().is_self {
            let mut status = Status::failed_precondition("this controller does not lead");
            status
                .metadata_mut()
                .insert(NOT_LEADER, MetadataValue::from_static("1"));
            return Err(status);
        }
        // A task of its own: a request once taken is carried through when the caller goes away, and a defect of
        // the handler does not take the connection with it.
        let handler = Arc::clone(&self.handler);
        let request = request.into_inner();
        let handled = tokio::spawn(async move { handler.forward(request).await }).await;
        handled
            .map(Response::new)
            .map_err(|error| Status::internal(error.to_string()))
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        use proto::join_reply::Outcome;
        let proto::JoinRequest {
            name,
            id,
            peer_address,
            api_address,
        } = request.into_inner();
        let peer = PeerInfo {
            id,
            name,
            peer_address,
            api_address,
        };
        let outcome = match self.node.add_member(peer).await {
            Ok(()) => Outcome::Joined(proto::Empty {}),
            Err(MembershipError::NotLeader { leader: Some(leader) }) => {
                Outcome::Leader(wire::put_member(&leader))
            }
            Err(MembershipError::Refused { reason }) => Outcome::Refused(reason),
            Err(
                error @ (MembershipError::NotLeader { leader: None }
                | MembershipError::Timeout { .. }
                | MembershipError::Stopped { .. }),
            ) => Outcome::Later(error.to_string()),
        };
        Ok(Response::new(proto::JoinReply {
            outcome: Some(outcome),
        }))
    }
}
