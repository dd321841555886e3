//! openraft's calls to another member.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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

use crate::channel::{Channels, is_away};
use crate::contact::Contacts;
use crate::entry::{LogId, Snapshot, TypeConfig, Vote};
use crate::peer::Seat;
use crate::snapshot::SnapshotFile;
use crate::{transfer, wire};

type RpcError = RPCError<TypeConfig>;

/// Entries wait for the follower's fsync. openraft proposes one heartbeat interval as their deadline; a disk
/// that is busy for longer would make the leader send the same entries again and again.
const APPEND_MIN: Duration = Duration::from_secs(2);

/// What each member has acknowledged to this leader: the leader's vote and the last entry.
type Acknowledged = Arc<Mutex<BTreeMap<u64, (Vote, LogId)>>>;

/// Makes the clients.
#[derive(Debug)]
pub(crate) struct Network {
    from: u64,
    channels: Channels,
    contacts: Contacts,
    acknowledged: Acknowledged,
}

impl Network {
    pub(crate) fn new(from: u64, channels: Channels, contacts: Contacts) -> Self {
        Self {
            from,
            channels,
            contacts,
            acknowledged: Acknowledged::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Member;

    async fn new_client(&mut self, target: u64, node: &Seat) -> Member {
        Member {
            from: self.from,
            to: proto::Addressee {
                id: target,
                incarnation: node.incarnation.clone(),
            },
            address: node.peer.peer_address.clone(),
            channels: self.channels.clone(),
            contacts: self.contacts.clone(),
            acknowledged: Arc::clone(&self.acknowledged),
        }
    }
}

/// One member as a target of calls.
#[derive(Debug)]
pub(crate) struct Member {
    from: u64,
    to: proto::Addressee,
    address: String,
    channels: Channels,
    contacts: Contacts,
    acknowledged: Acknowledged,
}

/// A member's log went back behind what it acknowledged, for example because an old copy of its directory was
/// put back.
#[derive(Debug, thiserror::Error)]
#[error(
    "the controller {id} no longer has entry {index}, which it had acknowledged; remove it and let it join \
     again with an empty directory and a new id"
)]
struct LostEntries {
    id: u64,
    index: u64,
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
            target: self.to.id,
            timeout,
        }
    }

    /// A member that lost entries is kept out: openraft would go on counting them towards a majority. Nothing is
    /// known of what it acknowledged to earlier leaders, whose entries may have been replaced lawfully.
    fn check_progress(
        &self,
        vote: Vote,
        previous: Option<LogId>,
        last: Option<LogId>,
        reply: &AppendEntriesResponse<TypeConfig>,
    ) -> Result<(), LostEntries> {
        let id = self.to.id;
        let mut all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all
            .get(&id)
            .filter(|(to, _)| *to == vote)
            .map(|(_, entry)| *entry);
        if reply.is_conflict() {
            // No entry precedes the first one, so there can be no conflict; openraft counts on that.
            let index = previous.map_or(0, |previous| previous.index);
            if previous.is_none() || known.is_some_and(|known| index <= known.index) {
                let error = LostEntries { id, index };
                tracing::error!(%error, "a controller is not safe to use");
                return Err(error);
            }
        }
        let reached = match reply {
            AppendEntriesResponse::Success => last,
            AppendEntriesResponse::PartialSuccess(reached) => *reached,
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
        };
        if let Some(reached) = reached.max(known) {
            all.insert(id, (vote, reached));
        }
        Ok(())
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
            to: Some(self.to.clone()),
        };
        let mut client = self.client()?;
        let reply = tokio::time::timeout(option.soft_ttl(), client.raft(call))
            .await
            .map_err(|_| self.timeout(action, option.soft_ttl()))?
            .map_err(|status| failed(&status))?;
        self.contacts.heard(self.to.id);
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
        let (vote, previous) = (rpc.vote, rpc.prev_log_id);
        let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
        let timeout = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(APPEND_MIN)
        };
        let request = wire::put_append(self.to.clone(), rpc).map_err(|error| NetworkError::new(&error))?;
        let mut client = self.client()?;
        let reply = tokio::time::timeout(timeout, client.append(request))
            .await
            .map_err(|_| self.timeout(RPCTypes::AppendEntries, timeout))?
            .map_err(|status| failed(&status))?;
        self.contacts.heard(self.to.id);
        let reply = wire::take_append_reply(reply.into_inner()).map_err(|error| NetworkError::new(&error))?;
        self.check_progress(vote, previous, last, &reply)
            .map_err(|error| Unreachable::new(&error))?;
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
        let sending = transfer::send(client, self.to.clone(), vote, snapshot);
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
