//! What a node should hold, from the catalogue.

use sqlx::SqliteConnection;
use stor_proto::satellite as proto;
use stor_replication::catalogue::{MemberState, VolumeRow};
use stor_replication::ids::ReplicaId;

use super::wire::{self, Addresses};
use crate::catalogue::load::{self, Which};
use crate::catalogue::row::{PoolOn, ReplicaPhase, Signer, Tombstone, Volume};
use crate::catalogue::scrub::Scrub;
use crate::catalogue::snapshot::{self, Copy, CopyPhase, Snapshot, SnapshotPhase, Source};
use crate::rights::Issuer;

/// Loads the desired state of a node, with its rights; `None` when the node is not registered.
pub async fn load(
    conn: &mut SqliteConnection,
    node: &str,
    issuer: Issuer<'_>,
) -> Result<Option<proto::Desired>, sqlx::Error> {
    let Some(row) = load::node(conn, node).await? else {
        return Ok(None);
    };
    let pools = load::pools_on(conn, node).await?;
    let volumes = load::volumes_which(conn, Which::On(node)).await?;
    let tombstones = load::tombstones(conn, Some(node)).await?;
    let addresses = addresses(conn).await?;
    let mut desired = desired(node, row.desired, pools, &volumes, &addresses);
    desired.replicas.extend(tombstones.iter().map(removal));
    let snapshots = snapshot::snapshots(conn, snapshot::Which::On(node)).await?;
    let sources = snapshot::sources_on(conn, node).await?;
    add_snapshots(&mut desired, node, &snapshots, &sources);
    add_recopies(&mut desired, &snapshots, (node, &addresses), issuer);
    desired.keys = load::signers(conn).await?.iter().map(key).collect();
    for volume in &volumes {
        let id = volume.row.volume.to_string();
        let mut engines = desired
            .engines
            .iter_mut()
            .filter_map(|engine| engine.volume.as_mut());
        if let Some(told) = engines.find(|told| told.volume_id == id) {
            told.right = right(volume, &volume.row, issuer);
        }
    }
    let history = load::history(conn).await?;
    desired.history = history.map(|history| history.id.to_string()).unwrap_or_default();
    desired.keep = load::keeps(conn).await?;
    desired.cluster = load::cluster_id(conn)
        .await?
        .map(|id| id.to_string())
        .unwrap_or_default();
    Ok(Some(desired))
}

/// Copies of snapshots on the node, the snapshot each of its engines is to make, and what new replicas begin as.
fn add_snapshots(desired: &mut proto::Desired, node: &str, snapshots: &[Snapshot], sources: &[Source]) {
    for one in snapshots {
        let making = one.phase == SnapshotPhase::Creating;
        for (replica, copy) in one.copies.iter().filter(|(_, copy)| copy.node == node) {
            desired.snapshots.push(proto::SnapshotCopy {
                volume_id: one.volume.to_string(),
                snapshot_id: one.id.to_string(),
                replica: replica.0,
                pool: copy.pool.clone(),
                may_make: making && copy.phase == CopyPhase::Creating,
                delete: copy.phase == CopyPhase::Deleting,
                recopy: None,
            });
        }
        let id = one.volume.to_string();
        let of = |engine: &&mut proto::Engine| {
            engine
                .volume
                .as_ref()
                .is_some_and(|volume| volume.volume_id == id)
        };
        // They come in the order in which they were asked for: the first is made first.
        if let Some(engine) = desired.engines.iter_mut().find(of)
            && making
            && engine.snapshot_id.is_empty()
        {
            engine.snapshot_id = one.id.to_string();
            engine.snapshot_hold = one.holds();
        }
    }
    for source in sources {
        let (volume, number) = (source.of.0.to_string(), source.of.1.0);
        let of = |replica: &&mut proto::Replica| replica.volume_id == volume && replica.replica == number;
        if let Some(replica) = desired.replicas.iter_mut().find(of) {
            replica.source = Some(proto::SnapshotSource {
                volume_id: source.volume.to_string(),
                snapshot_id: source.snapshot.to_string(),
                replica: source.replica.0,
            });
        }
    }
}

/// Of what, and with what right, copies on the node are made anew.
fn add_recopies(
    desired: &mut proto::Desired,
    snapshots: &[Snapshot],
    (node, addresses): (&str, &Addresses),
    issuer: Issuer<'_>,
) {
    for one in snapshots.iter().filter(|one| one.phase == SnapshotPhase::Ready) {
        let id = one.id.to_string();
        let new = |(_, copy): &(&ReplicaId, &Copy)| copy.node == node && copy.phase == CopyPhase::Creating;
        for (replica, _) in one.copies.iter().filter(new) {
            let kept = one
                .copies
                .iter()
                .filter(|(_, copy)| copy.phase == CopyPhase::Ready);
            let sources = kept.filter_map(|(replica, copy)| {
                let address = addresses.get(&copy.node)?.clone();
                let replica = replica.0;
                Some(proto::CopySource { replica, address })
            });
            let recopy = proto::Recopy {
                size_bytes: one.size,
                sources: sources.collect(),
                right: issuer.copy_right(one.id).bytes().to_vec(),
            };
            let mut told = desired.snapshots.iter_mut();
            if let Some(told) = told.find(|told| told.snapshot_id == id && told.replica == replica.0) {
                told.recopy = Some(recopy);
            }
        }
    }
}

/// The right to the epoch of a row of `volume`, as it is told; empty for whoever does not own it.
pub(super) fn right(volume: &Volume, row: &VolumeRow, issuer: Issuer<'_>) -> Vec<u8> {
    let read_only = volume
        .attachment
        .as_ref()
        .is_some_and(|attachment| attachment.read_only);
    let right = issuer.right(row, read_only).unwrap_or_default();
    right.bytes().to_vec()
}

fn key(signer: &Signer) -> proto::SigningKey {
    proto::SigningKey {
        public: signer.key.0.to_vec(),
        retired: signer.retired,
    }
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
    pools: Vec<PoolOn>,
    volumes: &[Volume],
    addresses: &Addresses,
) -> proto::Desired {
    proto::Desired {
        revision,
        pools: pools.into_iter().map(pool).collect(),
        replicas: volumes.iter().flat_map(|volume| replicas(node, volume)).collect(),
        engines: volumes
            .iter()
            .filter_map(|volume| engine(node, volume, addresses))
            .collect(),
        // The keys come with the rights, by whoever gives them.
        ..proto::Desired::default()
    }
}

fn pool(row: PoolOn) -> proto::Pool {
    let devices = row.devices.into_iter().map(|device| proto::PoolDevice {
        path: device.path,
        size_bytes: device.size,
        model: device.model,
        serial: device.serial,
    });
    proto::Pool {
        name: row.name,
        kind: row.kind.word().to_owned(),
        path: row.dir,
        devices: devices.collect(),
        make: !row.ready,
        adopt: row.adopt,
        wipe: row.wipe,
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
                // They grow before the volume does.
                size_bytes: volume.row.size.max(volume.grow_to.unwrap_or(0)),
                lineage: volume.row.lineage.to_string(),
                // What was to be made before a restore may have been made, used and deleted since.
                create: place.phase == ReplicaPhase::Creating && !volume.doubt,
                in_sync: place.phase == ReplicaPhase::Creating
                    && !volume.doubt
                    && member.state == MemberState::InSync,
                delete: place.phase == ReplicaPhase::Deleting,
                source: None,
            })
        })
}

/// What is left of a deleted volume is to be removed like any replica.
fn removal(tombstone: &Tombstone) -> proto::Replica {
    proto::Replica {
        volume_id: tombstone.volume.to_string(),
        volume_name: tombstone.name.clone(),
        replica: tombstone.replica.0,
        pool: tombstone.pool.clone(),
        size_bytes: tombstone.size,
        lineage: tombstone.lineage.to_string(),
        create: false,
        in_sync: false,
        delete: true,
        source: None,
    }
}

fn engine(node: &str, volume: &Volume, addresses: &Addresses) -> Option<proto::Engine> {
    let attachment = volume.attachment.as_ref()?;
    (volume.row.owner.as_deref() == Some(node)).then(|| proto::Engine {
        transport: attachment.transport.clone(),
        read_only: attachment.read_only,
        stop: attachment.detaching && !volume.doubt,
        snapshot_id: String::new(),
        snapshot_hold: false,
        scrub: volume
            .scrub
            .as_ref()
            .and_then(Scrub::ask)
            .map(|ask| proto::Scrub {
                run: ask.run.0,
                from: ask.from,
                reports: ask.reports,
                found: ask.found,
                rate: ask.rate,
                mend: ask.mend,
            }),
        volume: Some(wire::volume(&volume.row, &volume.name, addresses)),
    })
}
