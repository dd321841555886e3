//! Snapshots as the catalogue keeps them: rows, and how they are read.
//!
//! ```text
//!              every member has it      and so have the others of its batch
//!   creating ----------------------> taken ------------------------------> ready ---+
//!       |                              |                                            | a user's wish
//!       +---- an engine gave it up, or one of its batch: failed ----------------> deleting ---> gone
//! ```
//!
//! A copy is called after the replica it was made for and outlives it. What counts is where it is: the replicas of the
//! volume are to have one each in their pools, and nobody else is.

use std::collections::BTreeMap;
use std::str::FromStr;

use sqlx::sqlite::SqliteRow;
use sqlx::{Error, FromRow, Row, SqliteConnection};
use stor_replication::catalogue::MemberState;
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use super::command::CloneWish;
use super::row::{ReplicaPhase, Volume, VolumePhase};
use super::sql;

type Result<T> = std::result::Result<T, Error>;

/// Life of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotPhase {
    /// To be made.
    Creating,
    /// Made, and others of its batch are not.
    Taken,
    /// There.
    Ready,
    /// Was not made; the row stays until somebody has seen it.
    Failed,
    /// Its copies are being removed; the row goes with the last of them.
    Deleting,
}

/// Life of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyPhase {
    /// May be made.
    Creating,
    /// Was made.
    Ready,
    /// To be removed.
    Deleting,
}

impl SnapshotPhase {
    const WORDS: [(Self, &'static str); 5] = [
        (Self::Creating, "creating"),
        (Self::Taken, "taken"),
        (Self::Ready, "ready"),
        (Self::Failed, "failed"),
        (Self::Deleting, "deleting"),
    ];

    /// As it is stored.
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(phase, _)| *phase == self)
            .map_or("", |(_, word)| word)
    }
}

impl CopyPhase {
    const WORDS: [(Self, &'static str); 3] = [
        (Self::Creating, "creating"),
        (Self::Ready, "ready"),
        (Self::Deleting, "deleting"),
    ];

    /// As it is stored.
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(phase, _)| *phase == self)
            .map_or("", |(_, word)| word)
    }
}

/// A snapshot with its copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Identity.
    pub id: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// Name of that volume, when it was asked for.
    pub volume_name: String,
    /// Name.
    pub name: String,
    /// Bytes of the volume at that time.
    pub size: u64,
    /// Where in its life it is.
    pub phase: SnapshotPhase,
    /// Why it failed.
    pub reason: String,
    /// Those asked for together.
    pub batch: Uuid,
    /// How many these are.
    pub batch_size: u64,
    /// Every engine of the batch holds its writes.
    pub go: bool,
    /// Index of the entry that asked for it.
    pub queued: u64,
    /// When it was asked for.
    pub created: String,
    /// Index of the last entry that changed it.
    pub revision: u64,
    /// It is made for this volume, and goes when that is there.
    pub clone: Option<CloneWish>,
    /// That volume was made.
    pub clone_made: bool,
    /// By the replica it was made for.
    pub copies: BTreeMap<ReplicaId, Copy>,
}

impl Snapshot {
    /// `VOLUME@NAME`.
    pub fn title(&self) -> String {
        format!("{}@{}", self.volume_name, self.name)
    }

    /// Can be used, or will be.
    pub fn is_live(&self) -> bool {
        matches!(
            self.phase,
            SnapshotPhase::Creating | SnapshotPhase::Taken | SnapshotPhase::Ready
        )
    }

    /// The volume's replica has no copy and is to have one: it is ready, the replica is in sync and stays, and somebody
    /// has a copy.
    //= docs/replication.md#S6
    pub fn lacks(&self, volume: &Volume, replica: ReplicaId) -> bool {
        let (Some(member), Some(place)) = (volume.row.replicas.get(&replica), volume.places.get(&replica))
        else {
            return false;
        };
        let stays =
            member.state == MemberState::InSync && !member.leaving && place.phase == ReplicaPhase::Ready;
        let ready = |copy: &Copy| copy.phase == CopyPhase::Ready;
        self.phase == SnapshotPhase::Ready
            && stays
            && self.clone.is_none()
            && self.volume == volume.row.volume
            && is_settled(volume)
            && !self
                .copies
                .values()
                .any(|copy| copy.is_at(&member.node, &place.pool))
            && self.copies.values().any(ready)
    }

    /// Nobody loses anything when this copy goes: the volume has no replica where it is, and every replica it has or
    /// is to have holds a copy of its own.
    //= docs/replication.md#S7
    pub fn is_left_over(&self, volume: &Volume, copy: &Copy) -> bool {
        let places = || {
            let replicas = volume.row.replicas.iter();
            replicas.filter_map(|(replica, member)| Some((member, volume.places.get(replica)?)))
        };
        let alive = |phase: ReplicaPhase| phase != ReplicaPhase::Deleting;
        let occupied =
            places().any(|(member, place)| alive(place.phase) && copy.is_at(&member.node, &place.pool));
        if self.phase != SnapshotPhase::Ready || !is_settled(volume) || occupied {
            return false;
        }
        let mut staying = places()
            .filter(|(member, place)| alive(place.phase) && !member.leaving)
            .peekable();
        let held = |node: &str, pool: &str| {
            let mut copies = self.copies.values();
            copies.any(|copy| copy.phase == CopyPhase::Ready && copy.is_at(node, pool))
        };
        copy.phase == CopyPhase::Creating
            || (staying.peek().is_some() && staying.all(|(member, place)| held(&member.node, &place.pool)))
    }

    /// Its engine is to hold writes for it and wait.
    pub fn holds(&self) -> bool {
        self.batch_size > 1 && !self.go
    }
}

/// Where a copy lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Node.
    pub node: String,
    /// Pool there.
    pub pool: String,
    /// Where in its life it is.
    pub phase: CopyPhase,
}

/// Its replicas are known, and are what somebody wants.
fn is_settled(volume: &Volume) -> bool {
    volume.phase == VolumePhase::Available && !volume.doubt
}

impl Copy {
    /// It is in that pool, whatever becomes of it.
    pub fn is_at(&self, node: &str, pool: &str) -> bool {
        self.node == node && self.pool == pool
    }
}

/// Where a replica that is being made has its first data from: a copy in its own pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The replica that is being made.
    pub of: (VolumeId, ReplicaId),
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whose snapshot it is.
    pub volume: VolumeId,
    /// Whose copy.
    pub replica: ReplicaId,
}

fn uuid(row: &SqliteRow, column: &str) -> Result<Uuid> {
    let text: String = row.try_get(column)?;
    Uuid::from_str(&text).map_err(|_| malformed(column, &text))
}

fn clone(row: &SqliteRow) -> Result<Option<CloneWish>> {
    let text: Option<String> = row.try_get("clone")?;
    let parsed = |text: String| serde_json::from_str(&text).map_err(|_| malformed("clone", &text));
    text.map(parsed).transpose()
}

fn malformed(column: &str, text: &str) -> Error {
    Error::ColumnDecode {
        index: column.into(),
        source: format!("unexpected value {text:?}").into(),
    }
}

impl FromRow<'_, SqliteRow> for Snapshot {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let word: String = row.try_get("phase")?;
        let phase = SnapshotPhase::WORDS.iter().find(|(_, known)| *known == word);
        Ok(Self {
            id: SnapshotId(uuid(row, "id")?),
            volume: VolumeId(uuid(row, "volume")?),
            volume_name: row.try_get("volume_name")?,
            name: row.try_get("name")?,
            size: row.try_get("size")?,
            phase: phase.ok_or_else(|| malformed("phase", &word))?.0,
            reason: row.try_get("reason")?,
            batch: uuid(row, "batch")?,
            batch_size: row.try_get("batch_size")?,
            go: row.try_get("go")?,
            queued: row.try_get("queued")?,
            created: row.try_get("created")?,
            revision: row.try_get("revision")?,
            clone: clone(row)?,
            clone_made: row.try_get("clone_made")?,
            copies: BTreeMap::new(),
        })
    }
}

struct CopyRow(SnapshotId, ReplicaId, Copy);

impl FromRow<'_, SqliteRow> for CopyRow {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let word: String = row.try_get("phase")?;
        let phase = CopyPhase::WORDS.iter().find(|(_, known)| *known == word);
        let copy = Copy {
            node: row.try_get("node")?,
            pool: row.try_get("pool")?,
            phase: phase.ok_or_else(|| malformed("phase", &word))?.0,
        };
        let id = SnapshotId(uuid(row, "snapshot")?);
        Ok(Self(id, ReplicaId(row.try_get("replica")?), copy))
    }
}

impl FromRow<'_, SqliteRow> for Source {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            of: (VolumeId(uuid(row, "volume")?), ReplicaId(row.try_get("replica")?)),
            snapshot: SnapshotId(uuid(row, "source_snapshot")?),
            volume: VolumeId(uuid(row, "source_volume")?),
            replica: ReplicaId(row.try_get("source_replica")?),
        })
    }
}

/// Which snapshots to load.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All.
    All,
    /// Being made or removed, or made and waiting for others.
    Moving,
    /// Of a volume.
    Of(VolumeId),
    /// Of any volume that has or had this name.
    Named(&'a str),
    /// With a copy on the node, or of a volume it owns.
    On(&'a str),
    /// Asked for together.
    Batch(Uuid),
    /// Made for a volume, and ready or failed.
    Clones,
    /// Ready, with copies that are not where the replicas are.
    Uneven,
    /// With a copy on the node, or in this pool of it.
    At(&'a str, Option<&'a str>),
}

/// Snapshots in the order in which they were asked for.
pub async fn snapshots(conn: &mut SqliteConnection, which: Which<'_>) -> Result<Vec<Snapshot>> {
    let query = match which {
        Which::All => sqlx::query_scalar(sql::SNAPSHOT_IDS),
        Which::Moving => sqlx::query_scalar(sql::SNAPSHOT_IDS_MOVING),
        Which::Of(volume) => sqlx::query_scalar(sql::SNAPSHOT_IDS_OF).bind(volume.to_string()),
        Which::Named(volume) => sqlx::query_scalar(sql::SNAPSHOT_IDS_NAMED).bind(volume),
        Which::On(node) => sqlx::query_scalar(sql::SNAPSHOT_IDS_ON).bind(node),
        Which::Clones => sqlx::query_scalar(sql::SNAPSHOT_IDS_CLONES),
        Which::Uneven => sqlx::query_scalar(sql::SNAPSHOT_IDS_UNEVEN),
        Which::At(node, pool) => sqlx::query_scalar(sql::SNAPSHOT_IDS_AT).bind(node).bind(pool),
        Which::Batch(batch) => sqlx::query_scalar(sql::SNAPSHOT_IDS_BATCH).bind(batch.to_string()),
    };
    let ids: Vec<String> = query.fetch_all(&mut *conn).await?;
    load(conn, &ids).await
}

/// One snapshot.
pub async fn snapshot(conn: &mut SqliteConnection, id: SnapshotId) -> Result<Option<Snapshot>> {
    Ok(load(conn, &[id.to_string()]).await?.pop())
}

/// The snapshot of that name: one that is there or will be before one that failed, later ones first.
pub async fn snapshot_named(
    conn: &mut SqliteConnection,
    volume: &str,
    name: &str,
) -> Result<Option<Snapshot>> {
    let mut found = snapshots(conn, Which::Named(volume)).await?;
    found.retain(|snapshot| snapshot.name == name);
    found.sort_by_key(|snapshot| (snapshot.is_live(), snapshot.queued));
    Ok(found.pop())
}

async fn load(conn: &mut SqliteConnection, ids: &[String]) -> Result<Vec<Snapshot>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let list = serde_json::Value::from(ids).to_string();
    let mut found: Vec<Snapshot> = sqlx::query_as(sql::SNAPSHOTS)
        .bind(&list)
        .fetch_all(&mut *conn)
        .await?;
    let copies: Vec<CopyRow> = sqlx::query_as(sql::SNAPSHOT_COPIES)
        .bind(&list)
        .fetch_all(conn)
        .await?;
    for CopyRow(id, replica, copy) in copies {
        if let Some(snapshot) = found.iter_mut().find(|snapshot| snapshot.id == id) {
            snapshot.copies.insert(replica, copy);
        }
    }
    Ok(found)
}

/// Where the replicas that a node is to make have their first data from.
pub async fn sources_on(conn: &mut SqliteConnection, node: &str) -> Result<Vec<Source>> {
    sqlx::query_as(sql::SOURCES_ON).bind(node).fetch_all(conn).await
}

/// How many replicas are still to be made of a snapshot.
pub async fn users_of(conn: &mut SqliteConnection, snapshot: SnapshotId) -> Result<u64> {
    sqlx::query_scalar(sql::SOURCE_USERS)
        .bind(snapshot.to_string())
        .fetch_one(conn)
        .await
}

/// The volume a volume was made a copy of.
pub async fn clone_of(conn: &mut SqliteConnection, volume: VolumeId) -> Result<Option<String>> {
    Ok(sqlx::query_scalar::<_, Option<String>>(sql::CLONE_OF)
        .bind(volume.to_string())
        .fetch_optional(conn)
        .await?
        .flatten())
}

/// The snapshot a volume was made of.
pub async fn source_of(conn: &mut SqliteConnection, volume: VolumeId) -> Result<Option<String>> {
    Ok(sqlx::query_scalar::<_, Option<String>>(sql::VOLUME_SOURCE)
        .bind(volume.to_string())
        .fetch_optional(conn)
        .await?
        .flatten())
}

/// Copies on a node, or in one of its pools.
pub async fn copies_at(conn: &mut SqliteConnection, node: &str, pool: Option<&str>) -> Result<u64> {
    sqlx::query_scalar(sql::COUNT_COPIES)
        .bind(node)
        .bind(pool)
        .fetch_one(conn)
        .await
}
