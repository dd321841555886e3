//! What the node should hold, as the controllers said last.
//!
//! It is kept on disk, so that a node that boots while no controller answers serves its replicas and its
//! volumes. The file is replaced whole and carries a checksum:
//!
//! ```text
//!  0  magic "STORDSRD"
//!  8  version, u32 LE
//! 12  reserved, zero
//! 16  highest revision ever seen, u64 LE
//! 24  length of the message, u64 LE
//! 32  BLAKE3 of bytes 0..32 and of the message, 32 bytes
//! 64  the message: proto.Desired
//! ```
//!
//! A catalogue restored from a backup names another history; what it does not mention stays then, as told in
//! [`super::kept`]. Within a history, revisions only rise. One that is lower than what this node has seen comes from
//! a controller whose files were put back behind the cluster's back. Such a catalogue does not know what happened after the backup, so that nothing
//! is taken away on its word: it can add and change, but what it does not mention stays, and what it
//! wants deleted or stopped stays as well, until its revisions have passed those seen here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use stor_proto::satellite as proto;
use stor_replication::engine::SnapshotAsk;
use stor_replication::ids::{Epoch, Lineage, ReplicaId, ScrubRun, VolumeId};
use stor_replication::scrub::ScrubAsk;
use stor_right::{Keyring, PublicKey, TrustedKey};
use thiserror::Error;

use super::copies::{self, CopyKey, Source, WantedCopy};
use super::durable::{self, ReplaceError};
use super::kept;
use super::row::{self, RowError, Volume};
use crate::pool::lvm::{Device, Thin};
use crate::pool::{Kind, PoolSpec};

const MAGIC: &[u8; 8] = b"STORDSRD";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const CHECKED: usize = 32;

/// All the node should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// Of the catalogue.
    pub revision: u64,
    /// By name.
    pub pools: BTreeMap<String, PoolSpec>,
    /// Replicas to serve, make or delete.
    pub replicas: BTreeMap<(VolumeId, ReplicaId), WantedReplica>,
    /// Copies for snapshots to keep or delete.
    pub copies: BTreeMap<CopyKey, WantedCopy>,
    /// Engines to run or end.
    pub engines: BTreeMap<VolumeId, WantedEngine>,
    /// What replicas check rights with.
    pub keys: Keyring,
    /// Of the catalogue: revisions of different ones can't be compared.
    pub history: String,
    /// The catalogue was restored or doubts some of its rows: it is told all that is in the pools.
    pub keep: bool,
    /// Identity of the cluster; empty when it was not told.
    pub cluster: String,
}

/// A replica the node should hold, or have no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedReplica {
    /// The volume's name.
    pub volume_name: String,
    /// Pool it is in.
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// History it must belong to.
    pub lineage: Lineage,
    /// What should become of it.
    pub wish: Wish,
    /// What it holds at first, if it is to be made; otherwise it is empty.
    pub source: Option<Source>,
}

/// What should become of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Serve it; it must be there.
    Serve,
    /// Serve it, make it first if it was never there; with `in_sync` as a member of the in-sync set.
    Make {
        /// The volume is new: all its replicas are equal, being empty.
        in_sync: bool,
    },
    /// Remove it.
    Delete,
}

/// An engine the node should run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedEngine {
    /// How its device is reached.
    pub transport: TransportKind,
    /// Refuse writes.
    pub read_only: bool,
    /// Drain, flush, end, give up the right.
    pub stop: bool,
    /// The snapshot to be made now.
    pub snapshot: Option<SnapshotAsk>,
    /// The scrub that is to go on.
    pub scrub: Option<ScrubAsk>,
    /// Its volume.
    pub volume: Volume,
}

/// See [`crate::control::Transport`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransportKind {
    /// A device of the kernel's ublk driver.
    Ublk,
    /// A device of the kernel's nbd driver.
    Nbd,
    /// FUSE file and loop device.
    Fuse,
    /// NBD on a unix socket.
    Socket,
    /// No device.
    None,
}

impl TryFrom<proto::Desired> for Desired {
    type Error = RowError;

    fn try_from(from: proto::Desired) -> Result<Self, RowError> {
        let mut desired = Self {
            revision: from.revision,
            history: from.history,
            keep: from.keep,
            cluster: from.cluster,
            ..Self::default()
        };
        for pool in from.pools {
            desired.pools.insert(pool.name.clone(), wanted_pool(pool)?);
        }
        for replica in from.replicas {
            let key = (row::volume_id(&replica.volume_id)?, ReplicaId(replica.replica));
            desired.replicas.insert(key, wanted_replica(replica)?);
        }
        for copy in from.snapshots {
            let (key, copy) = copies::wanted(copy)?;
            desired.copies.insert(key, copy);
        }
        for engine in from.engines {
            let engine = wanted_engine(engine)?;
            desired.engines.insert(engine.volume.row.volume, engine);
        }
        let keys: Result<_, RowError> = from.keys.into_iter().map(trusted_key).collect();
        desired.keys = Keyring::new(keys?);
        Ok(desired)
    }
}

fn wanted_pool(from: proto::Pool) -> Result<PoolSpec, RowError> {
    let (path, kind) = match from.kind.as_str() {
        "file" => (PathBuf::from(from.path), Kind::File),
        "lvm-thin" => {
            let Some((group, pool)) = from.path.split_once('/') else {
                return Err(RowError::Unknown {
                    what: "the volume group and thin pool",
                    text: from.path,
                });
            };
            let thin = Thin {
                group: lvm_name(group)?,
                pool: lvm_name(pool)?,
                devices: from.devices.into_iter().map(device).collect(),
                make: from.make,
                adopt: from.adopt,
                wipe: from.wipe,
            };
            (Path::new("/dev").join(group).join(pool), Kind::Thin(thin))
        }
        _ => {
            return Err(RowError::Unknown {
                what: "the kind of a pool",
                text: from.kind,
            });
        }
    };
    Ok(PoolSpec {
        name: from.name,
        path,
        kind,
    })
}

/// What LVM takes for a name, and no command line for anything else.
fn lvm_name(text: &str) -> Result<String, RowError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    let whole = !text.is_empty() && text.len() <= 127 && text.bytes().all(good);
    if !whole || text.starts_with(['-', '.']) {
        return Err(RowError::Unknown {
            what: "the name of a volume group or thin pool",
            text: text.to_owned(),
        });
    }
    Ok(text.to_owned())
}

fn device(from: proto::PoolDevice) -> Device {
    Device {
        path: from.path,
        size: from.size_bytes,
        model: from.model,
        serial: from.serial,
    }
}

fn trusted_key(from: proto::SigningKey) -> Result<TrustedKey, RowError> {
    let bytes = from.public.len();
    let key = from.public.try_into().map_err(|_| RowError::Key { bytes })?;
    Ok(TrustedKey {
        key: PublicKey(key),
        retired: from.retired,
    })
}

fn wanted_replica(from: proto::Replica) -> Result<WantedReplica, RowError> {
    let source = from.source.as_ref().map(copies::source).transpose()?;
    Ok(WantedReplica {
        source,
        volume_name: from.volume_name,
        pool: from.pool,
        size: row::size(from.size_bytes)?,
        lineage: row::lineage(&from.lineage)?,
        wish: match (from.delete, from.create) {
            (true, _) => Wish::Delete,
            (false, true) => Wish::Make {
                in_sync: from.in_sync,
            },
            (false, false) => Wish::Serve,
        },
    })
}

fn wanted_engine(from: proto::Engine) -> Result<WantedEngine, RowError> {
    let transport = match from.transport.as_str() {
        "ublk" => TransportKind::Ublk,
        "nbd" => TransportKind::Nbd,
        "fuse" => TransportKind::Fuse,
        "socket" => TransportKind::Socket,
        "none" => TransportKind::None,
        _ => {
            return Err(RowError::Unknown {
                what: "the transport",
                text: from.transport,
            });
        }
    };
    let volume = from.volume.ok_or(RowError::Absent {
        what: "the volume of an engine",
    })?;
    let snapshot = match from.snapshot_id.as_str() {
        "" => None,
        id => Some(SnapshotAsk {
            snapshot: row::snapshot_id(id)?,
            hold: from.snapshot_hold,
        }),
    };
    let scrub = from.scrub.map(|scrub| ScrubAsk {
        run: ScrubRun(scrub.run),
        from: scrub.from,
        reports: scrub.reports,
        found: scrub.found,
        rate: scrub.rate,
        mend: scrub.mend,
    });
    Ok(WantedEngine {
        transport,
        snapshot,
        scrub,
        read_only: from.read_only,
        stop: from.stop,
        volume: volume.try_into()?,
    })
}

/// Why the file of the desired state could not be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Of a later release.
    #[error("{} has version {version}, this stor-satellite reads up to {VERSION}: install the newer release", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// A damaged file could not be put aside.
    #[error("cannot put the damaged {} aside: {source}", path.display())]
    PutAside {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// See [`ReplaceError`].
    #[error(transparent)]
    Write(#[from] ReplaceError),
    /// A controller sent what cannot be read.
    #[error("what the controller wants of this node cannot be read: {0}; nothing was changed")]
    Message(#[from] RowError),
}

/// What happened to a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its revision was below the highest seen: nothing was taken away.
    pub behind: bool,
    /// Epochs that may have been used before, because this node has no memory of the time before the
    /// message: an engine needs a new one.
    pub doubtful: Vec<(VolumeId, Epoch)>,
}

/// The desired state and its file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    highest: u64,
    message: Option<proto::Desired>,
    desired: Option<Desired>,
}

impl Store {
    /// Reads the file. A damaged one is put aside and logged: the controllers say again what they want,
    /// and nothing is stopped or deleted before they have.
    pub fn load(path: &Path) -> Result<Self, StoreError> {
        let mut store = Self {
            path: path.to_owned(),
            highest: 0,
            message: None,
            desired: None,
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(store),
            Err(source) => {
                return Err(StoreError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        match decode(&bytes) {
            Ok((highest, message, desired)) => {
                store.highest = highest;
                store.message = Some(message);
                store.desired = Some(desired);
            }
            Err(Undecodable::Newer(version)) => {
                return Err(StoreError::Newer {
                    path: path.to_owned(),
                    version,
                });
            }
            Err(Undecodable::Damaged(reason)) => {
                let aside = put_aside(path)?;
                tracing::error!(
                    path = %path.display(), aside = %aside.display(), reason,
                    "the desired state on disk is damaged; nothing is served before a controller answers"
                );
            }
        }
        Ok(store)
    }

    /// What the node should hold; `None` until it is known.
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// Takes a controller's message. When it returns, the new state is on disk.
    /// `before_save` gets what [`Accepted`] calls doubtful, and makes it durable before the message is.
    pub fn accept<E: From<StoreError>>(
        &mut self,
        message: proto::Desired,
        before_save: impl FnOnce(&Accepted) -> Result<(), E>,
    ) -> Result<Accepted, E> {
        // Before anything else: a message that cannot be read changes nothing.
        let plain = Desired::try_from(message.clone()).map_err(StoreError::from)?;
        let other = self.is_other_history(&message);
        let behind = !other && message.revision < self.highest;
        let message = match &self.message {
            Some(current) if behind => proto::Desired {
                kept: current.kept.clone(),
                ..merge_older(current, message)
            },
            Some(current) if other => proto::Desired {
                kept: Some(Box::new(kept::begin(&kept::merged(current), &message))),
                ..message
            },
            Some(current) if message.keep => {
                let mut left = current.kept.clone();
                if let Some(left) = &mut left {
                    kept::thin(left, &message);
                }
                proto::Desired {
                    kept: left,
                    ..message
                }
            }
            // It knows all: what it does not mention is wanted no more.
            _ => message,
        };
        let desired = if message.kept.is_none() && !behind {
            plain
        } else {
            Desired::try_from(kept::merged(&message)).map_err(StoreError::from)?
        };
        let accepted = Accepted {
            behind,
            doubtful: self.doubtful(&desired, behind || other),
        };
        let highest = if other {
            message.revision
        } else {
            self.highest.max(message.revision)
        };
        if self.message.as_ref() != Some(&message) || highest != self.highest {
            before_save(&accepted)?;
            durable::replace(&self.path, &encode(highest, &message)).map_err(StoreError::from)?;
        }
        self.highest = highest;
        self.message = Some(message);
        self.desired = Some(desired);
        Ok(accepted)
    }

    /// A controller speaks for another history than the last one did.
    fn is_other_history(&self, message: &proto::Desired) -> bool {
        let before = self.message.as_ref().map_or("", |known| known.history.as_str());
        !before.is_empty() && !message.history.is_empty() && before != message.history
    }

    fn doubtful(&self, desired: &Desired, behind: bool) -> Vec<(VolumeId, Epoch)> {
        let seen = |volume: &VolumeId| {
            self.desired
                .as_ref()
                .is_some_and(|known| known.engines.contains_key(volume))
        };
        let forgetful = self.desired.is_none() || behind;
        desired
            .engines
            .iter()
            .filter(|(volume, _)| forgetful && !seen(volume))
            .map(|(volume, engine)| (*volume, engine.volume.row.view.epoch))
            .collect()
    }
}

fn encode(highest: u64, message: &proto::Desired) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + message.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&highest.to_le_bytes());
    bytes.extend_from_slice(&(message.len() as u64).to_le_bytes());
    let checksum = checksum(&bytes, &message);
    bytes.extend_from_slice(&checksum);
    bytes.extend_from_slice(&message);
    bytes
}

fn checksum(header: &[u8], message: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new()
        .update(header)
        .update(message)
        .finalize()
        .as_bytes()
}

enum Undecodable {
    Newer(u32),
    Damaged(&'static str),
}

fn decode(bytes: &[u8]) -> Result<(u64, proto::Desired, Desired), Undecodable> {
    use Undecodable::{Damaged, Newer};
    let (header, message) = bytes.split_at_checked(HEADER).ok_or(Damaged("it is too short"))?;
    let (checked, sum) = header
        .split_at_checked(CHECKED)
        .ok_or(Damaged("it is too short"))?;
    let field = |from: usize| {
        let bytes = checked.get(from..from + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if !checked.starts_with(MAGIC) {
        return Err(Damaged("it does not begin as it should"));
    }
    // Before the checksum: a later release may compute another one.
    let version = field(8)
        .and_then(|word| u32::try_from(word & 0xffff_ffff).ok())
        .unwrap_or(0);
    if version > VERSION {
        return Err(Newer(version));
    }
    if checksum(checked, message) != sum {
        return Err(Damaged("its checksum is wrong"));
    }
    if field(24) != Some(message.len() as u64) {
        return Err(Damaged("its length is wrong"));
    }
    let message = proto::Desired::decode(message).map_err(|_| Damaged("its message cannot be read"))?;
    let desired =
        Desired::try_from(kept::merged(&message)).map_err(|_| Damaged("its message makes no sense"))?;
    Ok((field(16).unwrap_or(0), message, desired))
}

fn put_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside).map_err(|source| StoreError::PutAside {
        path: path.to_owned(),
        source,
    })?;
    Ok(aside)
}

/// What to act on when a catalogue that is older than `current` speaks: see the head of this file.
fn merge_older(current: &proto::Desired, older: proto::Desired) -> proto::Desired {
    let mut merged = older;
    let pools: BTreeSet<_> = merged.pools.iter().map(|pool| pool.name.clone()).collect();
    merged.pools.extend(
        current
            .pools
            .iter()
            .filter(|pool| !pools.contains(&pool.name))
            .cloned(),
    );

    let key = |replica: &proto::Replica| (replica.volume_id.clone(), replica.replica);
    merged.replicas.retain(|replica| !replica.delete);
    merged.snapshots.retain(|copy| !copy.delete);
    let replicas: BTreeSet<_> = merged.replicas.iter().map(key).collect();
    merged.replicas.extend(
        current
            .replicas
            .iter()
            .filter(|replica| !replicas.contains(&key(replica)))
            // Neither is made again what was taken away since, nor taken away what is not mentioned.
            .map(|replica| proto::Replica {
                delete: false,
                create: replica.create && !replica.delete,
                ..replica.clone()
            }),
    );

    // A key the older catalogue does not know may have signed the right of an engine that runs; one that was retired
    // stays so.
    let known = |key: &proto::SigningKey| current.keys.iter().find(|known| known.public == key.public);
    for key in &mut merged.keys {
        key.retired |= known(key).is_some_and(|known| known.retired);
    }
    let keys: BTreeSet<_> = merged.keys.iter().map(|key| key.public.clone()).collect();
    let kept = current.keys.iter().filter(|key| !keys.contains(&key.public));
    merged.keys.splice(0..0, kept.cloned());

    let rank = |engine: &proto::Engine| {
        let volume = engine.volume.as_ref();
        volume.map(|volume| (volume.volume_id.clone(), volume.epoch, volume.revision))
    };
    let running: BTreeMap<_, _> = current
        .engines
        .iter()
        .filter_map(|engine| rank(engine).map(|(volume, epoch, revision)| (volume, (epoch, revision))))
        .collect();
    merged.engines.retain(|engine| {
        rank(engine).is_some_and(|(volume, epoch, revision)| {
            let newer = running
                .get(&volume)
                .is_none_or(|known| (epoch, revision) >= *known);
            newer && !engine.stop
        })
    });
    let engines: BTreeSet<_> = merged
        .engines
        .iter()
        .filter_map(rank)
        .map(|(volume, ..)| volume)
        .collect();
    let kept = current
        .engines
        .iter()
        .filter(|engine| rank(engine).is_some_and(|(volume, ..)| !engines.contains(&volume)));
    merged.engines.extend(kept.cloned());
    merged
}
