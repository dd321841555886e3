//! Between openraft's types and the messages of `peer.proto`. What comes from a peer is checked here.

use bytes::Bytes;
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use stor_proto::peer as proto;

use crate::PeerInfo;
use crate::entry::{Body, Entry, LogId, Payload, TypeConfig, Vote, log_id};

/// A peer's message that says less than it must.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the message lacks `{0}`")]
    Missing(&'static str),
    #[error("the message's entries are not consecutive")]
    Gap,
    #[error("`{what}` is not the JSON we expect")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
}

pub(crate) fn put_log_id(id: &LogId) -> proto::LogId {
    proto::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(crate) fn take_log_id(id: proto::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn put_vote(vote: &Vote) -> proto::Vote {
    proto::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn take_vote(vote: proto::Vote) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: vote.term,
            voted_for: vote.node,
        },
        committed: vote.committed,
    }
}

fn put_entry(entry: Entry) -> Result<proto::Entry, WireError> {
    use proto::entry::Payload as Wire;
    let payload = match entry.payload {
        Payload::Blank => Wire::Blank(proto::Empty {}),
        Payload::Normal(body) => Wire::Command(body.0.into()),
        Payload::Membership(membership) => {
            Wire::Membership(serde_json::to_vec(&membership).map_err(|source| WireError::Json {
                what: "membership",
                source,
            })?)
        }
    };
    Ok(proto::Entry {
        id: Some(put_log_id(&entry.log_id)),
        payload: Some(payload),
    })
}

fn take_entry(entry: proto::Entry) -> Result<Entry, WireError> {
    use proto::entry::Payload as Wire;
    let payload = match entry.payload.ok_or(WireError::Missing("payload"))? {
        Wire::Blank(proto::Empty {}) => Payload::Blank,
        Wire::Command(command) => Payload::Normal(Body(Bytes::from(command))),
        Wire::Membership(json) => {
            Payload::Membership(serde_json::from_slice(&json).map_err(|source| WireError::Json {
                what: "membership",
                source,
            })?)
        }
    };
    Ok(Entry {
        log_id: take_log_id(entry.id.ok_or(WireError::Missing("id"))?),
        payload,
    })
}

pub(crate) fn put_append(
    to: proto::Addressee,
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<proto::AppendRequest, WireError> {
    Ok(proto::AppendRequest {
        to: Some(to),
        vote: Some(put_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(put_log_id),
        entries: request
            .entries
            .into_iter()
            .map(put_entry)
            .collect::<Result<_, _>>()?,
        committed: request.leader_commit.as_ref().map(put_log_id),
    })
}

/// openraft asserts that entries follow each other: a peer's mistake must end here instead.
pub(crate) fn take_append(
    request: proto::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let prev_log_id = request.previous.map(take_log_id);
    let entries = request
        .entries
        .into_iter()
        .map(take_entry)
        .collect::<Result<Vec<_>, _>>()?;
    let mut last = prev_log_id;
    for entry in &entries {
        let expected = last.map_or(Some(0), |id| id.index.checked_add(1));
        if Some(entry.log_id.index) != expected || last.is_some_and(|last| entry.log_id < last) {
            return Err(WireError::Gap);
        }
        last = Some(entry.log_id);
    }
    Ok(AppendEntriesRequest {
        vote: take_vote(request.vote.ok_or(WireError::Missing("vote"))?),
        prev_log_id,
        entries,
        leader_commit: request.committed.map(take_log_id),
    })
}

pub(crate) fn put_append_reply(reply: &AppendEntriesResponse<TypeConfig>) -> proto::AppendReply {
    use proto::append_reply::{Outcome, Partial};
    let outcome = match reply {
        AppendEntriesResponse::Success => Outcome::Success(proto::Empty {}),
        AppendEntriesResponse::PartialSuccess(last) => Outcome::Partial(Partial {
            last: last.as_ref().map(put_log_id),
        }),
        AppendEntriesResponse::Conflict => Outcome::Conflict(proto::Empty {}),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(put_vote(vote)),
    };
    proto::AppendReply {
        outcome: Some(outcome),
    }
}

pub(crate) fn take_append_reply(
    reply: proto::AppendReply,
) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    use proto::append_reply::Outcome;
    Ok(match reply.outcome.ok_or(WireError::Missing("outcome"))? {
        Outcome::Success(proto::Empty {}) => AppendEntriesResponse::Success,
        Outcome::Partial(partial) => AppendEntriesResponse::PartialSuccess(partial.last.map(take_log_id)),
        Outcome::Conflict(proto::Empty {}) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(take_vote(vote)),
    })
}

pub(crate) fn put_member(peer: &PeerInfo) -> proto::Member {
    proto::Member {
        id: peer.id,
        name: peer.name.clone(),
        peer_address: peer.peer_address.clone(),
        api_address: peer.api_address.clone(),
    }
}

pub(crate) fn take_member(member: proto::Member) -> PeerInfo {
    PeerInfo {
        id: member.id,
        name: member.name,
        peer_address: member.peer_address,
        api_address: member.api_address,
    }
}
