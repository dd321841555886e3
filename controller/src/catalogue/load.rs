//! Reads the catalogue. A row that does not decode is an error of the database, never a default.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Error, FromRow, Row, SqliteConnection};
use stor_replication::catalogue::{EjectReason, Member, MemberState, VolumeRow};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use super::command::{ClassWish, Leaving, NodeKind, PoolKind, PoolWish, Purpose};
use super::row::{
    Attachment, Class, Event, History, Node, Place, Pool, PoolOn, ReplicaPhase, Signer, Tombstone, Volume,
    VolumePhase,
};
use super::scrub::Scrub;
use super::sql;

type Result<T> = std::result::Result<T, Error>;

/// SQLite's integers are signed; nothing in the catalogue comes near the end of them.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn malformed(column: &str, value: impl std::fmt::Display) -> Error {
    Error::ColumnDecode {
        index: column.into(),
        source: format!("unexpected value {value:?}", value = value.to_string()).into(),
    }
}

fn json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|_| malformed(column, text))
}

fn uuid(row: &SqliteRow, column: &str) -> Result<Uuid> {
    let text: String = row.try_get(column)?;
    Uuid::from_str(&text).map_err(|_| malformed(column, text))
}

fn word<T>(row: &SqliteRow, column: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
    let text: String = row.try_get(column)?;
    parse(&text).ok_or_else(|| malformed(column, text))
}

/// An [`EjectReason`] from its stored form.
pub fn eject_reason(word: &str) -> Option<EjectReason> {
    use EjectReason::{CacheLost, Disagrees, DiskFailed, New, NoSpace, Operator, TimedOut, Unreachable};
    [
        New,
        Unreachable,
        TimedOut,
        DiskFailed,
        NoSpace,
        CacheLost,
        Disagrees,
        Operator,
    ]
    .into_iter()
    .find(|reason| reason.to_string() == word)
}

impl FromRow<'_, SqliteRow> for Node {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            name: row.try_get("name")?,
            address: row.try_get("address")?,
            kind: word(row, "kind", NodeKind::from_word)?,
            properties: json(row, "properties")?,
            data_address: row.try_get("data_address")?,
            version: row.try_get("version")?,
            boot_id: row.try_get("boot_id")?,
            transports: json(row, "transports")?,
            online: row.try_get("online")?,
            leaving: match row.try_get::<Option<&str>, _>("leaving")? {
                None => None,
                Some(_) => Some(word(row, "leaving", Leaving::from_word)?),
            },
            offline_since: row.try_get("offline_since")?,
            desired: row.try_get("desired")?,
            revision: row.try_get("revision")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Pool {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            wish: PoolWish {
                name: row.try_get("name")?,
                node: row.try_get("node")?,
                kind: word(row, "kind", PoolKind::from_word)?,
                dir: row.try_get("dir")?,
                devices: json(row, "devices")?,
                adopt: row.try_get("adopt")?,
                wipe: row.try_get("wipe")?,
                tags: json(row, "tags")?,
                overprovision_milli: row.try_get("overprovision_milli")?,
            },
            promised: row.try_get("promised")?,
            replicas: row.try_get("replicas")?,
            ready: row.try_get("ready")?,
            revision: row.try_get("revision")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for PoolOn {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            name: row.try_get("name")?,
            kind: word(row, "kind", PoolKind::from_word)?,
            dir: row.try_get("dir")?,
            devices: json(row, "devices")?,
            adopt: row.try_get("adopt")?,
            wipe: row.try_get("wipe")?,
            ready: row.try_get("ready")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Class {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            wish: ClassWish {
                name: row.try_get("name")?,
                replicas: row.try_get("replicas")?,
                pool: row.try_get("pool")?,
                tags: json(row, "tags")?,
                transport: row.try_get("transport")?,
                spread: row.try_get("spread")?,
                together: row.try_get("together")?,
                scrub_days: row.try_get("scrub_days")?,
            },
            volumes: row.try_get("volumes")?,
            revision: row.try_get("revision")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Event {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            seq: row.try_get("seq")?,
            time: row.try_get("time")?,
            severity: row.try_get("severity")?,
            kind: row.try_get("kind")?,
            object: row.try_get("object")?,
            message: row.try_get("message")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Volume {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let attachment = match row.try_get::<Option<String>, _>("transport")? {
            None => None,
            Some(transport) => Some(Attachment {
                transport,
                read_only: row.try_get("read_only")?,
                purpose: word(row, "purpose", Purpose::from_word)?,
                detaching: row.try_get("detaching")?,
            }),
        };
        Ok(Self {
            row: VolumeRow {
                volume: VolumeId(uuid(row, "id")?),
                size: row.try_get("size")?,
                revision: row.try_get("revision")?,
                view: View {
                    epoch: Epoch(row.try_get("epoch")?),
                    config: ConfigSeq(row.try_get("config")?),
                },
                owner: row.try_get("owner")?,
                clean: row.try_get("clean")?,
                clean_before: row.try_get("clean_before")?,
                lineage: Lineage(uuid(row, "lineage")?),
                min_in_sync: row.try_get("min_in_sync")?,
                replicas: BTreeMap::new(),
            },
            name: row.try_get("name")?,
            phase: word(row, "phase", VolumePhase::from_word)?,
            wish: json(row, "wish")?,
            created: row.try_get("created")?,
            places: BTreeMap::new(),
            attachment,
            doubt: row.try_get("doubt")?,
            grow_to: row.try_get("grow_to")?,
            scrub: Scrub::beside(row)?,
        })
    }
}

struct Replica {
    volume: VolumeId,
    id: ReplicaId,
    member: Member,
    place: Place,
}

impl FromRow<'_, SqliteRow> for Replica {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let state = if row.try_get("in_sync")? {
            MemberState::InSync
        } else {
            MemberState::Stale {
                since: row.try_get::<Option<u64>, _>("since")?.map(ConfigSeq),
                reason: word(row, "reason", eject_reason)?,
            }
        };
        Ok(Self {
            volume: VolumeId(uuid(row, "volume")?),
            id: ReplicaId(row.try_get("replica")?),
            member: Member {
                node: row.try_get("node")?,
                joined: row.try_get::<Option<u64>, _>("joined")?.map(ConfigSeq),
                state,
                leaving: row.try_get("leaving")?,
            },
            place: Place {
                pool: row.try_get("pool")?,
                phase: word(row, "phase", ReplicaPhase::from_word)?,
                replaces: row.try_get::<Option<u32>, _>("replaces")?.map(ReplicaId),
            },
        })
    }
}

impl FromRow<'_, SqliteRow> for Tombstone {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            volume: VolumeId(uuid(row, "volume")?),
            replica: ReplicaId(row.try_get("replica")?),
            name: row.try_get("name")?,
            node: row.try_get("node")?,
            pool: row.try_get("pool")?,
            size: row.try_get("size")?,
            lineage: Lineage(uuid(row, "lineage")?),
            allocated: row.try_get("allocated")?,
            deleted: row.try_get("deleted")?,
        })
    }
}

/// A replica whose files are being made or removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moving {
    /// Volume.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// Node.
    pub node: String,
    /// Creating or deleting.
    pub phase: ReplicaPhase,
}

impl FromRow<'_, SqliteRow> for Moving {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            volume: VolumeId(uuid(row, "volume")?),
            replica: ReplicaId(row.try_get("replica")?),
            node: row.try_get("node")?,
            phase: word(row, "phase", ReplicaPhase::from_word)?,
        })
    }
}

/// Identity of the cluster, once it has one.
pub async fn cluster_id(conn: &mut SqliteConnection) -> Result<Option<Uuid>> {
    sqlx::query(sql::CLUSTER)
        .fetch_optional(conn)
        .await?
        .map(|row| uuid(&row, "id"))
        .transpose()
}

impl FromRow<'_, SqliteRow> for Signer {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            controller: row.try_get("controller")?,
            key: word(row, "key", |text| text.parse().ok())?,
            retired: row.try_get("retired")?,
        })
    }
}

/// The keys of all controllers, oldest first.
pub async fn signers(conn: &mut SqliteConnection) -> Result<Vec<Signer>> {
    sqlx::query_as(sql::SIGNERS).fetch_all(conn).await
}

/// The history of the catalogue, once the cluster has its identity.
pub async fn history(conn: &mut SqliteConnection) -> Result<Option<History>> {
    let Some(row) = sqlx::query(sql::HISTORY).fetch_optional(conn).await? else {
        return Ok(None);
    };
    Ok(Some(History {
        id: uuid(&row, "history")?,
        generation: row.try_get("generation")?,
        restored: row.try_get("restored")?,
        unsettled: row.try_get("unsettled")?,
    }))
}

/// Whether nodes are to keep what this history does not mention: it is not settled, or a row is in doubt.
pub async fn keeps(conn: &mut SqliteConnection) -> Result<bool> {
    sqlx::query_scalar(sql::KEEPS).fetch_one(conn).await
}

/// All nodes, by name.
pub async fn nodes(conn: &mut SqliteConnection) -> Result<Vec<Node>> {
    sqlx::query_as(sql::NODES).fetch_all(conn).await
}

/// A page of nodes.
pub async fn nodes_page(conn: &mut SqliteConnection, after: &str, limit: u64) -> Result<Vec<Node>> {
    sqlx::query_as(sql::NODES_PAGE)
        .bind(after)
        .bind(integer(limit))
        .fetch_all(conn)
        .await
}

/// One node.
pub async fn node(conn: &mut SqliteConnection, name: &str) -> Result<Option<Node>> {
    sqlx::query_as(sql::NODE).bind(name).fetch_optional(conn).await
}

/// Nodes last recorded as online.
pub async fn nodes_online(conn: &mut SqliteConnection) -> Result<Vec<String>> {
    sqlx::query_scalar(sql::NODES_ONLINE).fetch_all(conn).await
}

/// All pools, by name and node.
pub async fn pools(conn: &mut SqliteConnection) -> Result<Vec<Pool>> {
    sqlx::query_as(sql::POOLS).fetch_all(conn).await
}

/// One pool on one node.
pub async fn pool(conn: &mut SqliteConnection, name: &str, node: &str) -> Result<Option<Pool>> {
    sqlx::query_as(sql::POOL)
        .bind(name)
        .bind(node)
        .fetch_optional(conn)
        .await
}

/// A node's pools, as it is told of them.
pub async fn pools_on(conn: &mut SqliteConnection, node: &str) -> Result<Vec<PoolOn>> {
    sqlx::query_as(sql::POOLS_ON).bind(node).fetch_all(conn).await
}

/// A page of classes.
pub async fn classes_page(conn: &mut SqliteConnection, after: &str, limit: u64) -> Result<Vec<Class>> {
    sqlx::query_as(sql::CLASSES_PAGE)
        .bind(after)
        .bind(integer(limit))
        .fetch_all(conn)
        .await
}

/// One class.
pub async fn class(conn: &mut SqliteConnection, name: &str) -> Result<Option<Class>> {
    sqlx::query_as(sql::CLASS).bind(name).fetch_optional(conn).await
}

/// The volume of a name.
pub async fn volume_named(conn: &mut SqliteConnection, name: &str) -> Result<Option<Volume>> {
    match sqlx::query(sql::VOLUME_ID)
        .bind(name)
        .fetch_optional(&mut *conn)
        .await?
    {
        Some(row) => volume(conn, VolumeId(uuid(&row, "id")?)).await,
        None => Ok(None),
    }
}

/// One volume.
pub async fn volume(conn: &mut SqliteConnection, id: VolumeId) -> Result<Option<Volume>> {
    Ok(volumes(conn, &[id.to_string()]).await?.pop())
}

/// Those of `ids` that exist, by name.
pub async fn volumes(conn: &mut SqliteConnection, ids: &[String]) -> Result<Vec<Volume>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let list = serde_json::Value::from(ids).to_string();
    let mut volumes: Vec<Volume> = sqlx::query_as(sql::VOLUMES)
        .bind(&list)
        .fetch_all(&mut *conn)
        .await?;
    let replicas: Vec<Replica> = sqlx::query_as(sql::REPLICAS).bind(&list).fetch_all(conn).await?;
    let mut by_volume: BTreeMap<VolumeId, Vec<Replica>> = BTreeMap::new();
    for replica in replicas {
        by_volume.entry(replica.volume).or_default().push(replica);
    }
    for volume in &mut volumes {
        for replica in by_volume.remove(&volume.row.volume).unwrap_or_default() {
            volume.row.replicas.insert(replica.id, replica.member);
            volume.places.insert(replica.id, replica.place);
        }
    }
    Ok(volumes)
}

/// Which volumes to load.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All.
    All,
    /// A page by name.
    Page {
        /// Names after this one.
        after: &'a str,
        /// At most.
        limit: u64,
    },
    /// With a replica on the node or owned by it.
    On(&'a str),
    /// With an owner.
    Attached,
    /// Without an owner, and not clean or with a stale replica.
    Unhealed,
    /// Without an owner, and a snapshot of it is to be made.
    Snapping,
    /// Without an owner, and a scrub of it is under way.
    Scrubbing,
    /// Attached to be healed.
    Healing,
    /// Whose engine is asked to end.
    Detaching,
    /// Whose row may be older than the data.
    Doubted,
    /// With a replica that is to go.
    Leaving,
    /// That are to be larger.
    Growing,
}

/// Volumes, by name.
pub async fn volumes_which(conn: &mut SqliteConnection, which: Which<'_>) -> Result<Vec<Volume>> {
    let query = match which {
        Which::All => sqlx::query_scalar(sql::VOLUME_IDS),
        Which::Page { after, limit } => sqlx::query_scalar(sql::VOLUME_IDS_PAGE)
            .bind(after)
            .bind(integer(limit)),
        Which::On(node) => sqlx::query_scalar(sql::VOLUME_IDS_ON).bind(node),
        Which::Attached => sqlx::query_scalar(sql::VOLUME_IDS_ATTACHED),
        Which::Unhealed => sqlx::query_scalar(sql::VOLUME_IDS_UNHEALED),
        Which::Snapping => sqlx::query_scalar(sql::VOLUME_IDS_SNAPPING),
        Which::Scrubbing => sqlx::query_scalar(sql::VOLUME_IDS_SCRUBBING),
        Which::Healing => sqlx::query_scalar(sql::VOLUME_IDS_HEALING),
        Which::Detaching => sqlx::query_scalar(sql::VOLUME_IDS_DETACHING),
        Which::Doubted => sqlx::query_scalar(sql::VOLUME_IDS_DOUBTED),
        Which::Leaving => sqlx::query_scalar(sql::VOLUME_IDS_LEAVING),
        Which::Growing => sqlx::query_scalar(sql::VOLUME_IDS_GROWING),
    };
    let ids: Vec<String> = query.fetch_all(&mut *conn).await?;
    volumes(conn, &ids).await
}

/// Ids of all volumes.
pub async fn volume_ids(conn: &mut SqliteConnection) -> Result<BTreeSet<VolumeId>> {
    let rows = sqlx::query(sql::VOLUME_IDS).fetch_all(conn).await?;
    rows.iter().map(|row| Ok(VolumeId(uuid(row, "id")?))).collect()
}

/// What is left of deleted volumes, on one node or all.
pub async fn tombstones(conn: &mut SqliteConnection, node: Option<&str>) -> Result<Vec<Tombstone>> {
    match node {
        Some(node) => sqlx::query_as(sql::TOMBSTONES_ON).bind(node),
        None => sqlx::query_as(sql::TOMBSTONES),
    }
    .fetch_all(conn)
    .await
}

/// What is left of one replica.
pub async fn tombstone(
    conn: &mut SqliteConnection,
    volume: VolumeId,
    replica: ReplicaId,
) -> Result<Option<Tombstone>> {
    sqlx::query_as(sql::TOMBSTONE)
        .bind(volume.to_string())
        .bind(replica.0)
        .fetch_optional(conn)
        .await
}

/// Name and node of pools that their nodes have not reported as usable yet.
pub async fn pools_unready(conn: &mut SqliteConnection) -> Result<Vec<(String, String)>> {
    sqlx::query_as(sql::POOLS_UNREADY).fetch_all(conn).await
}

/// Replicas being made or removed.
pub async fn moving(conn: &mut SqliteConnection) -> Result<Vec<Moving>> {
    sqlx::query_as(sql::REPLICAS_MOVING).fetch_all(conn).await
}

/// Nodes whose desired state may have changed after entry `after`, with the entry that did it.
pub async fn desired_since(conn: &mut SqliteConnection, after: u64) -> Result<Vec<(String, u64)>> {
    sqlx::query_as(sql::DESIRED_SINCE)
        .bind(integer(after))
        .fetch_all(conn)
        .await
}

/// Events after `after`, oldest first.
pub async fn events(conn: &mut SqliteConnection, after: u64, limit: u64) -> Result<Vec<Event>> {
    sqlx::query_as(sql::EVENTS_AFTER)
        .bind(integer(after))
        .bind(integer(limit))
        .fetch_all(conn)
        .await
}

/// Number of the newest event, 0 without any.
pub async fn last_event(conn: &mut SqliteConnection) -> Result<u64> {
    Ok(sqlx::query_scalar::<_, Option<u64>>(sql::EVENTS_LAST)
        .fetch_one(conn)
        .await?
        .unwrap_or(0))
}

/// Number of volumes and replicas.
pub async fn counts(conn: &mut SqliteConnection) -> Result<(u64, u64)> {
    let volumes = sqlx::query_scalar(sql::COUNT_VOLUMES)
        .fetch_one(&mut *conn)
        .await?;
    Ok((
        volumes,
        sqlx::query_scalar(sql::COUNT_REPLICAS).fetch_one(conn).await?,
    ))
}
