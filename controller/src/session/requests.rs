//! Requests of satellites: changes of a volume's view.

use stor_proto::satellite::{self as proto, answer, request};
use stor_replication::catalogue::{Change, Refusal, VolumeRow};
use stor_replication::ids::VolumeId;

use super::desired;
use super::wire::{self, Malformed};
use crate::catalogue::{Action, Outcome, Refused, is_above, load};
use crate::cluster::{Cluster, Trouble};
use crate::rights::Issuer;

/// The catalogue is older than what the satellite knows, or may be.
const BEHIND: &str = "catalogue-behind";

/// Answers a request.
pub(super) async fn answer(cluster: &Cluster, node: &str, request: proto::Request) -> proto::Answer {
    let answered = match &request.kind {
        Some(request::Kind::Change(change)) => change_view(cluster, node, change).await,
        None => Err(Malformed::Empty.into()),
    };
    let kind = match answered {
        Ok(kind) => kind,
        Err(Failed::Malformed(malformed)) => refused("malformed", malformed.to_string(), None),
        // To the satellite this means: no answer at all, ask the next leader. Its outcome is learned there.
        Err(Failed::Trouble(trouble)) => {
            tracing::warn!(node, error = %trouble, "a satellite's request has no outcome yet");
            refused("not-leader", trouble.to_string(), None)
        }
    };
    proto::Answer {
        id: request.id,
        kind: Some(kind),
    }
}

enum Failed {
    Malformed(Malformed),
    Trouble(Trouble),
}

impl From<Malformed> for Failed {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Trouble(error.into())
    }
}

fn refused(code: &str, message: String, volume: Option<proto::Volume>) -> answer::Kind {
    answer::Kind::Refused(proto::Refused {
        code: code.into(),
        message,
        volume,
    })
}

async fn change_view(cluster: &Cluster, node: &str, ask: &proto::ChangeView) -> Result<answer::Kind, Failed> {
    let (volume, change) = wire::change(ask, node)?;
    // Counting up from an old catalogue would reach an epoch that is in use elsewhere.
    if let Change::Restart { .. } = change
        && let Some(message) = behind(cluster, volume).await?
    {
        return Ok(refused(BEHIND, message, None));
    }
    let action = Action::ChangeView {
        volume,
        change,
        caller: node.to_owned(),
    };
    match cluster.propose(action).await? {
        Ok(Outcome::Row(row)) => Ok(answer::Kind::Volume(told(cluster, node, *row).await?)),
        // Every change of a view answers its row; the read shows it all the same.
        Ok(_) => read_row(cluster, node, volume).await,
        Err(Refused::View {
            refusal: Refusal::ViewChanged { expected, current },
            ..
        }) if is_above(expected, current) => {
            let message = format!("the engine is at view {expected}, the catalogue at {current}");
            Ok(refused(BEHIND, message, None))
        }
        Err(Refused::View { refusal, row }) => {
            let message = refusal.to_string();
            let row = told(cluster, node, *row).await?;
            Ok(refused(wire::refusal_code(&refusal), message, Some(row)))
        }
        Err(Refused::NoSuch { object }) => Ok(refused("not-found", format!("there is no {object}"), None)),
        // Without a row, so that nobody acts on one that may be old: the engine goes on with what it has.
        Err(behind @ Refused::Behind { .. }) => Ok(refused(BEHIND, behind.to_string(), None)),
        Err(other) => Ok(refused("refused", other.to_string(), None)),
    }
}

/// What is wrong when a replica has seen more than this catalogue.
async fn behind(cluster: &Cluster, id: VolumeId) -> Result<Option<String>, Failed> {
    let mut look = cluster.look().await?;
    let Some(volume) = load::volume(look.rows(), id).await? else {
        return Ok(None);
    };
    Ok(look.seen.ahead_of(&volume.row).map(|(holder, stored)| {
        format!(
            "the replica on node {holder} is at view {stored}, the catalogue at {}: storctl volume adopt {}",
            volume.row.view, volume.name
        )
    }))
}

async fn read_row(cluster: &Cluster, node: &str, id: VolumeId) -> Result<answer::Kind, Failed> {
    let mut look = cluster.look().await?;
    let addresses = desired::addresses(look.rows()).await?;
    Ok(match load::volume(look.rows(), id).await? {
        Some(volume) if volume.doubt => {
            let message = format!(
                "the catalogue may be older than the data of volume {}",
                volume.name
            );
            refused(BEHIND, message, None)
        }
        Some(volume) => {
            let mut told = wire::volume(&volume.row, &volume.name, &addresses);
            told.right = desired::right(&volume, &volume.row, Issuer::new(&cluster.signer, node));
            answer::Kind::Volume(told)
        }
        None => refused("not-found", format!("there is no volume {id}"), None),
    })
}

/// The row as it was decided, which may not be the newest any more, with name and addresses of now; and with the
/// right to its epoch, if the node that asks owns it: it may start an engine at once.
async fn told(cluster: &Cluster, node: &str, row: VolumeRow) -> Result<proto::Volume, Failed> {
    let mut look = cluster.look_local().await?;
    let addresses = desired::addresses(look.rows()).await?;
    let volume = load::volume(look.rows(), row.volume).await?;
    let name = volume.as_ref().map_or("", |volume| volume.name.as_str());
    let mut told = wire::volume(&row, name, &addresses);
    if let Some(volume) = &volume {
        told.right = desired::right(volume, &row, Issuer::new(&cluster.signer, node));
    }
    Ok(told)
}
