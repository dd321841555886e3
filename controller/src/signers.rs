//! Keeps the list of the keys that satellites trust: the leader asks every controller for the public half of its
//! key, once it knows of it and now and then, and has it written to the catalogue; the keys of controllers that were
//! removed are retired.
//!
//! A controller has its key in the list before it can come to lead, as a rule; if not, that is the first thing it
//! does, before satellites have found it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stor_proto::peer::keys_client::KeysClient;
use stor_proto::peer::keys_server::{Keys, KeysServer};
use stor_proto::peer::{KeyReply, KeyRequest};
use stor_raft::MemberInfo;
use stor_right::PublicKey;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use crate::catalogue::row::Signer;
use crate::catalogue::{Action, load};
use crate::cluster::{Cluster, Trouble};
use crate::session::http;

/// Between looks at the list and at who is a member.
const LOOK: Duration = Duration::from_secs(1);
/// A controller whose key is known is asked again after this: it may have lost it and made another.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// A controller that does not answer in this time is asked at the next look.
const ANSWER: Duration = Duration::from_secs(2);

/// Tells this controller's public key.
#[derive(Debug)]
pub struct Service {
    cluster: Arc<Cluster>,
}

impl Service {
    /// The service for a server of tonic.
    pub fn new(cluster: Arc<Cluster>) -> KeysServer<Self> {
        KeysServer::new(Self { cluster })
    }
}

#[tonic::async_trait]
impl Keys for Service {
    async fn public_key(&self, request: Request<KeyRequest>) -> Result<Response<KeyReply>, Status> {
        let me = self.cluster.raft.me().id;
        let meant = request.into_inner().controller;
        // An address can be taken over by another controller.
        if meant != me {
            return Err(Status::not_found(format!(
                "this is the controller {me}, not {meant}"
            )));
        }
        let public = self.cluster.signer.public().0.to_vec();
        Ok(Response::new(KeyReply { public }))
    }
}

/// Runs as long as the Raft node does; works while it leads.
pub async fn run(cluster: Arc<Cluster>) {
    let mut leadership = cluster.raft.leadership();
    loop {
        if leadership.wait_for(|view| view.is_self).await.is_err() {
            return;
        }
        let mut asked = Asked::default();
        while cluster.leads() {
            match tend(&cluster, &mut asked).await {
                Ok(()) | Err(Trouble::NotLeader) => {}
                Err(error) => tracing::warn!(%error, "the list of signing keys could not be looked after"),
            }
            // Sooner when the leadership is over.
            let lost = leadership.wait_for(|view| !view.is_self);
            if let Ok(Err(_)) = tokio::time::timeout(LOOK, lost).await {
                return;
            }
        }
    }
}

/// Which controllers answered, and when. At most as many as there are members.
type Asked = std::collections::BTreeMap<u64, Instant>;

async fn tend(cluster: &Arc<Cluster>, asked: &mut Asked) -> Result<(), Trouble> {
    let mut look = cluster.look_local().await?;
    let known = load::signers(look.rows()).await?;
    drop(look);
    let (members, me) = (cluster.raft.members(), cluster.raft.me().id);
    asked.retain(|id, _| members.iter().any(|member| member.peer.id == *id));
    for member in &members {
        let id = member.peer.id;
        let listed = listed(&known, id);
        let key = if id == me {
            Some(cluster.signer.public())
        } else if listed.is_none() || asked.get(&id).is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            let answer = ask(member).await;
            if answer.is_some() {
                asked.insert(id, Instant::now());
            }
            answer
        } else {
            None
        };
        if let Some(key) = key.filter(|key| listed != Some(*key)) {
            propose(
                cluster,
                Action::AddSigner {
                    controller: id,
                    name: member.peer.name.clone(),
                    key,
                },
            )
            .await?;
        }
    }
    let is_member = |id: u64| members.iter().any(|member| member.peer.id == id);
    let gone: std::collections::BTreeSet<u64> = known
        .iter()
        .filter(|one| !one.retired)
        .map(|one| one.controller)
        .collect();
    for controller in gone
        .into_iter()
        .filter(|id| !members.is_empty() && !is_member(*id))
    {
        propose(cluster, Action::RetireSigners { controller }).await?;
    }
    Ok(())
}

fn listed(known: &[Signer], controller: u64) -> Option<PublicKey> {
    let mut of = known
        .iter()
        .filter(|one| one.controller == controller && !one.retired);
    of.next().map(|one| one.key)
}

async fn propose(cluster: &Cluster, action: Action) -> Result<(), Trouble> {
    if let Err(refused) = cluster.propose(action).await? {
        tracing::warn!(%refused, "the catalogue does not take a signing key");
    }
    Ok(())
}

/// The public key of a member, if it answers.
async fn ask(member: &MemberInfo) -> Option<PublicKey> {
    let asking = async {
        let endpoint = Endpoint::from_shared(http(&member.peer.peer_address))
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .connect_timeout(ANSWER);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let request = KeyRequest {
            controller: member.peer.id,
        };
        let reply = KeysClient::new(channel).public_key(request).await?;
        let public = <[u8; 32]>::try_from(reply.into_inner().public.as_slice());
        public
            .map(PublicKey)
            .map_err(|_| Status::internal("its key has not 32 bytes"))
    };
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(Ok(key)) => Some(key),
        Ok(Err(status)) => {
            tracing::debug!(controller = %member.peer.name, reason = status.message(), "its signing key is not known yet");
            None
        }
        Err(_) => None,
    }
}
