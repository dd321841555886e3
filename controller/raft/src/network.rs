//! openraft's calls to another member.

use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stor_proto::peer as proto;
use stor_proto::peer::peer_client::PeerClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::PeerInfo;
use crate::channel::{Channels, is_away};
use crate::entry::{Snapshot, TypeConfig, Vote};
use crate::snapshot::SnapshotFile;
use crate::{transfer, wire};

type RpcError = RPCError<TypeConfig>;

/// Entries wait for the follower's fsync. openraft proposes one heartbeat interval as their deadline; a disk
/// that is busy for longer would make the leader send the same entries again and again.
const APPEND_MIN: Duration = Duration::from_secs(2);

/// Makes the clients.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) from: u64,
    pub(crate) channels: Channels,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Member;

    async fn new_client(&mut self, target: u64, node: &PeerInfo) -> Member {
        Member {
            from: self.from,
            to: target,
            address: node.peer_address.clone(),
            channels: self.channels.clone(),
        }
    }
}

/// One member as a target of calls.
#[derive(Debug)]
pub(crate) struct Member {
    from: u64,
    to: u64,
    address: String,
    channels: Channels,
}

impl Member {
    fn client(&self) -> Result<PeerClient<Channel>, Unreachable<TypeConfig>> {
        self.channels
            .client(&self.address)
            .map_err(|error| Unreachable::new(&error))
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.from,
            target: self.to,
            timeout,
        }
    }

    async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        method: &str,
        action: RPCTypes,
        request: &Q,
        option: &RPCOption,
    ) -> Result<R, RpcError> {
        let body = serde_json::to_vec(request).map_err(|error| NetworkError::new(&error))?;
        let call = proto::RaftCall {
            method: method.to_owned(),
            body,
            to: self.to,
        };
        let mut client = self.client()?;
        let reply = tokio::time::timeout(option.soft_ttl(), client.raft(call))
            .await
            .map_err(|_| self.timeout(action, option.soft_ttl()))?
            .map_err(|status| failed(&status))?;
        Ok(serde_json::from_slice(&reply.into_inner().body).map_err(|error| NetworkError::new(&error))?)
    }
}

/// openraft backs off from a member that is unreachable and tries again at once after other errors, so all but
/// the clearest of them count as unreachable.
fn failed(status: &Status) -> RpcError {
    let error = Unreachable::from_string(describe(status));
    if !is_away(status) {
        tracing::debug!(%status, "a member refused a call");
    }
    RPCError::Unreachable(error)
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

impl RaftNetworkV2<TypeConfig> for Member {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let starts_the_log = rpc.prev_log_id.is_none();
        let timeout = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(APPEND_MIN)
        };
        let request = wire::put_append(self.to, rpc).map_err(|error| NetworkError::new(&error))?;
        let mut client = self.client()?;
        let reply = tokio::time::timeout(timeout, client.append(request))
            .await
            .map_err(|_| self.timeout(RPCTypes::AppendEntries, timeout))?
            .map_err(|status| failed(&status))?;
        let reply = wire::take_append_reply(reply.into_inner()).map_err(|error| NetworkError::new(&error))?;
        if starts_the_log && reply.is_conflict() {
            // There is nothing before the first entry to conflict with, and openraft counts on that.
            return Err(Unreachable::from_string("a conflict before the first entry of the log").into());
        }
        Ok(reply)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.call("vote", RPCTypes::Vote, &rpc, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.call("pre_vote", RPCTypes::Vote, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let client = self.client()?;
        let sending = transfer::send(client, self.to, vote, snapshot);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            result = tokio::time::timeout(transfer::SNAPSHOT_DEADLINE, sending) => match result {
                Ok(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
                Ok(Err(error)) => {
                    tracing::warn!(member = %self.address, %error, "sending a snapshot failed");
                    Err(Unreachable::new(&error).into())
                }
                Err(_) => Err(self.timeout(RPCTypes::InstallSnapshot, transfer::SNAPSHOT_DEADLINE).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        self.call("transfer_leader", RPCTypes::TransferLeader, &req, &option)
            .await
    }
}
