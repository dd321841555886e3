//! What a node should hold, from the catalogue.

use sqlx::SqliteConnection;
use stor_proto::satellite as proto;
use stor_replication::catalogue::MemberState;

use super::wire::{self, Addresses};
use crate::catalogue::load::{self, Which};
use crate::catalogue::row::{ReplicaPhase, Volume};

/// Loads the desired state of a node; `None` when the node is not registered.
pub async fn load(conn: &mut SqliteConnection, node: &str) -> Result<Option<proto::Desired>, sqlx::Error> {
    let Some(row) = load::node(conn, node).await? else {
        return Ok(None);
    };
    let pools = load::pools_on(conn, node).await?;
    let volumes = load::volumes_which(conn, Which::On(node)).await?;
    let addresses = addresses(conn).await?;
    Ok(Some(desired(node, row.desired, pools, &volumes, &addresses)))
}

/// Where the nodes' replica servers are.
pub async fn addresses(conn: &mut SqliteConnection) -> Result<Addresses, sqlx::Error> {
    let nodes = load::nodes(conn).await?;
    Ok(nodes
        .into_iter()
        .filter_map(|node| Some((node.name, node.data_address?)))
        .collect())
}

/// The desired state of `node` from its rows.
pub fn desired(
    node: &str,
    revision: u64,
    pools: Vec<(String, String, String)>,
    volumes: &[Volume],
    addresses: &Addresses,
) -> proto::Desired {
    proto::Desired {
        revision,
        pools: pools
            .into_iter()
            .map(|(name, kind, path)| proto::Pool { name, kind, path })
            .collect(),
        replicas: volumes.iter().flat_map(|volume| replicas(node, volume)).collect(),
        engines: volumes
            .iter()
            .filter_map(|volume| engine(node, volume, addresses))
            .collect(),
    }
}

fn replicas<'a>(node: &'a str, volume: &'a Volume) -> impl Iterator<Item = proto::Replica> + 'a {
    volume
        .row
        .replicas
        .iter()
        .filter(move |(_, member)| member.node == node)
        .filter_map(|(id, member)| {
            let place = volume.places.get(id)?;
            Some(proto::Replica {
                volume_id: volume.row.volume.to_string(),
                volume_name: volume.name.clone(),
                replica: id.0,
                pool: place.pool.clone(),
                size_bytes: volume.row.size,
                lineage: volume.row.lineage.to_string(),
                create: place.phase == ReplicaPhase::Creating,
                in_sync: place.phase == ReplicaPhase::Creating && member.state == MemberState::InSync,
                delete: place.phase == ReplicaPhase::Deleting,
            })
        })
}

fn engine(node: &str, volume: &Volume, addresses: &Addresses) -> Option<proto::Engine> {
    let attachment = volume.attachment.as_ref()?;
    (volume.row.owner.as_deref() == Some(node)).then(|| proto::Engine {
        transport: attachment.transport.clone(),
        read_only: attachment.read_only,
        stop: attachment.detaching,
        volume: Some(wire::volume(&volume.row, &volume.name, addresses)),
    })
}
