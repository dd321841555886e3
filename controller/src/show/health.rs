//! Health: every reason why something needs a look, with what to do, worst first.

use std::collections::{BTreeMap, BTreeSet};

use stor_api::objects::{
    AttachmentState, Check, Controller, ControllerRole, Health, NodeKind, NodeState, Pool, PoolState,
    ReplicaState, Severity, Status, StatusNodes, StatusPool, VolumeState,
};
use stor_api::objects::{Node, Replica, Tombstone, TombstoneState, Volume};
use stor_api::size;
use stor_replication::catalogue::EjectReason;

use super::history;
use super::scrubs;
use super::volume::{LAST, REPLACE};
use crate::catalogue::command::Purpose;
use crate::catalogue::row;
use crate::catalogue::snapshot::Snapshot;
use crate::observed::Observations;

/// Fill levels, in percent, from which a pool is reported; from the last on, nothing new is placed there.
const FULL: [u128; 3] = [80, 90, 95];
/// From here on the metadata of a thin pool is reported; nothing new is placed there from 90 on.
const METADATA_FULL: u128 = 75;

/// All that goes into a status.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Controllers.
    pub controllers: Vec<Controller>,
    /// Nodes.
    pub nodes: &'a [Node],
    /// Pools on nodes.
    pub pools: &'a [Pool],
    /// Volumes as they are stored.
    pub rows: &'a [row::Volume],
    /// The same as they are shown.
    pub volumes: &'a [Volume],
    /// What is left of deleted volumes.
    pub tombstones: &'a [Tombstone],
    /// Snapshots as they are stored.
    pub snapshots: &'a [Snapshot],
    /// What satellites report.
    pub seen: &'a Observations,
    /// Nodes as they are stored.
    pub node_rows: &'a [row::Node],
    /// Which history of the catalogue it is.
    pub history: Option<row::History>,
}

/// The cluster on one screen.
pub fn status(facts: Facts<'_>) -> Status {
    let mut checks = controllers(&facts.controllers);
    checks.extend(nodes(facts.nodes));
    checks.extend(pools(facts.pools));
    checks.extend(volumes(facts.volumes));
    checks.extend(scrubs::checks(facts.rows));
    checks.extend(history::checks(&facts));
    checks.extend(left_behind(facts.tombstones));
    checks.extend(super::snapshot::checks(facts.snapshots, facts.rows, facts.seen));
    let mut checks = folded(checks);
    checks.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then_with(|| (&a.code, &a.objects).cmp(&(&b.code, &b.objects)))
    });
    let health = checks
        .iter()
        .map(|check| check.severity)
        .max()
        .map_or(Health::Ok, |worst| match worst {
            Severity::Info => Health::Ok,
            Severity::Warning => Health::Warn,
            Severity::Error => Health::Err,
        });
    Status {
        cluster_id: facts.cluster_id,
        version: env!("CARGO_PKG_VERSION").into(),
        health,
        checks,
        controllers: facts.controllers,
        nodes: count_nodes(facts.nodes),
        pools: sum_pools(facts.pools),
        volumes: count_volumes(facts.volumes),
        work: work(facts.rows, facts.volumes),
    }
}

/// Of what goes wrong in many places the same way, this many are told one by one.
const ONE_BY_ONE: usize = 4;

/// Checks of one code as one, where there are many: a node that is gone concerns each of its volumes.
fn folded(checks: Vec<Check>) -> Vec<Check> {
    let mut kinds: BTreeMap<(Severity, String), Vec<Check>> = BTreeMap::new();
    for check in checks {
        kinds
            .entry((check.severity, check.code.clone()))
            .or_default()
            .push(check);
    }
    let fold = |mut alike: Vec<Check>| {
        alike.sort_by(|a, b| a.objects.cmp(&b.objects));
        let more = alike.len().saturating_sub(1);
        if more < ONE_BY_ONE {
            return alike;
        }
        let objects = alike.iter().flat_map(|check| check.objects.clone()).collect();
        alike.truncate(1);
        alike
            .into_iter()
            .map(|first| Check {
                message: format!("{}; and {more} more like this", first.message),
                objects: Vec::clone(&objects),
                ..first
            })
            .collect()
    };
    kinds.into_values().flat_map(fold).collect()
}

pub(super) fn check(code: &str, severity: Severity, message: String, object: String, remedy: &str) -> Check {
    Check {
        code: code.into(),
        severity,
        message,
        objects: vec![object],
        remedy: remedy.into(),
    }
}

fn controllers(controllers: &[Controller]) -> Vec<Check> {
    let voters = controllers
        .iter()
        .filter(|c| c.role != ControllerRole::Learner)
        .count();
    let down = controllers.iter().filter(|c| !c.online).map(|c| {
        check(
            "CONTROLLER_DOWN",
            Severity::Warning,
            format!("controller {} is not reachable from the leader", c.name),
            format!("controller/{}", c.name),
            &format!(
                "start stor-controller on its host; if the host is gone for good: storctl controller remove {}, then \
                 join another",
                c.name
            ),
        )
    });
    let even = (voters == 2).then(|| Check {
        code: "CONTROLLERS_EVEN".into(),
        severity: Severity::Warning,
        message: "two controllers vote: when either fails, nothing can be changed".into(),
        objects: Vec::new(),
        remedy: "join a third: stor-controller join --name NAME --seed http://HOST:PORT of a controller, on another host".into(),
    });
    down.chain(even).collect()
}

fn nodes(nodes: &[Node]) -> Vec<Check> {
    nodes
        .iter()
        .filter_map(|node| match node.state {
            NodeState::Online => None,
            NodeState::New => Some(check(
                "NODE_NEW",
                Severity::Info,
                format!("node {} was never seen", node.name),
                format!("node/{}", node.name),
                "start stor-satellite on it",
            )),
            NodeState::Offline => {
                let since = node
                    .last_seen
                    .as_ref()
                    .map_or_else(String::new, |t| format!(" (last seen {t})"));
                Some(check(
                    "NODE_OFFLINE",
                    Severity::Warning,
                    format!("node {} is not connected{since}", node.name),
                    format!("node/{}", node.name),
                    "start stor-satellite on the node and check that it reaches a controller",
                ))
            }
        })
        .collect()
}

fn pools(pools: &[Pool]) -> Vec<Check> {
    let mut checks = Vec::new();
    for pool in pools {
        let (name, object) = (
            format!("{} on {}", pool.name, pool.node),
            format!("pool/{}/{}", pool.name, pool.node),
        );
        match pool.state {
            PoolState::Failed => checks.push(check(
                "POOL_FAILED",
                Severity::Error,
                format!("pool {name} can't be used: {}", pool.error),
                object,
                "look at the pool's directory or volume group, and its disk, on the node; what its replicas need of it waits or fails",
            )),
            PoolState::Ready if pool.capacity_bytes > 0 => {
                checks.extend(metadata(pool, &name, &object));
                let used = u128::from(pool.capacity_bytes.saturating_sub(pool.free_bytes)) * 100
                    / u128::from(pool.capacity_bytes);
                let Some(level) = FULL.iter().rev().find(|level| used >= **level) else {
                    continue;
                };
                let severity = if *level >= 90 {
                    Severity::Error
                } else {
                    Severity::Warning
                };
                checks.push(check(
                    "POOL_FULL",
                    severity,
                    format!("pool {name} is {used} % full, {} are free", size::format(pool.free_bytes)),
                    object,
                    "add space or another node's pool, or delete volumes; at 95 % nothing new is placed there",
                ));
            }
            PoolState::Ready | PoolState::Pending | PoolState::Offline => {}
        }
    }
    checks
}

/// A thin pool whose metadata fills up: sooner than its data only with many snapshots, and worse.
fn metadata(pool: &Pool, name: &str, object: &str) -> Option<Check> {
    let used = u128::from(pool.metadata_used_bytes) * 100 / u128::from(pool.metadata_capacity_bytes.max(1));
    (used >= METADATA_FULL).then(|| {
        check(
            "POOL_METADATA_FULL",
            Severity::Error,
            format!("the metadata of pool {name} is {used} % full; when it is full, its replicas fail"),
            object.to_owned(),
            &format!(
                "grow it on the node: lvextend --poolmetadatasize +SIZE {}; or delete snapshots",
                pool.dir
            ),
        )
    })
}

/// Where the replicas are that have every write, whatever became of the nodes.
fn in_sync_nodes(volume: &Volume) -> String {
    let in_sync = volume.replicas.iter().filter(|replica| replica.in_sync);
    let nodes: Vec<&str> = in_sync.map(|replica| replica.node.as_str()).collect();
    nodes.join(" or ")
}

/// What gives a volume back the copies it lacks, by what is wrong with each.
fn regain(volume: &Volume) -> String {
    let mut remedies = Vec::new();
    let mut away = Vec::new();
    for replica in volume
        .replicas
        .iter()
        .filter(|one| one.state != ReplicaState::InSync)
    {
        match replica.state {
            ReplicaState::Offline => away.push(replica.node.as_str()),
            ReplicaState::Failed => remedies.push(mend(replica)),
            ReplicaState::Stale if replica.reason == EjectReason::NoSpace.to_string() => {
                remedies.push(format!(
                    "make room in pool {} on {}: grow it, or delete volumes or snapshots there",
                    replica.pool, replica.node
                ));
            }
            ReplicaState::InSync
            | ReplicaState::Creating
            | ReplicaState::Stale
            | ReplicaState::Syncing
            | ReplicaState::Deleting => {}
        }
    }
    if !away.is_empty() {
        remedies.insert(0, format!("bring {} back", away.join(" and ")));
    }
    remedies.push("what is missing is copied by itself".to_owned());
    remedies.join("; ")
}

/// What helps a replica that its node can't use.
fn mend(replica: &Replica) -> String {
    if let Some((_, command)) = replica.reason.split_once(REPLACE) {
        return format!("its files are of no use any more; {REPLACE}{command}");
    }
    if replica.reason.ends_with(LAST) {
        return format!(
            "bring back the files of the replica on {}: mount its disk, or copy them from where they are still whole; \
             without them, a snapshot or a backup of the volume is what is left",
            replica.node
        );
    }
    format!(
        "look at pool {} on node {}, and at the satellite's log there; the replica is used again when its node can open it",
        replica.pool, replica.node
    )
}

fn volumes(volumes: &[Volume]) -> Vec<Check> {
    let mut checks = Vec::new();
    for volume in volumes {
        let object = format!("volume/{}", volume.name);
        let bring_back = format!(
            "bring back {}: a replica that is in sync is there",
            in_sync_nodes(volume)
        );
        let degraded = regain(volume);
        let force = format!(
            "bring the named nodes back; or: storctl volume delete {} --force, which says what it leaves behind",
            volume.name
        );
        let found = match volume.state {
            VolumeState::Degraded => Some((
                "VOLUME_DEGRADED",
                Severity::Warning,
                "has less than its full redundancy",
                degraded.as_str(),
            )),
            VolumeState::Unknown => Some((
                "VOLUME_UNKNOWN",
                Severity::Warning,
                "was not heard of since the present controller leads",
                "wait a moment; if it stays, bring the named nodes back",
            )),
            VolumeState::Suspended => Some((
                "VOLUME_SUSPENDED",
                Severity::Error,
                "answers no I/O",
                "bring the named nodes back; I/O goes on by itself",
            )),
            VolumeState::Failed => Some((
                "VOLUME_FAILED",
                Severity::Error,
                "can't be served",
                bring_back.as_str(),
            )),
            VolumeState::Creating if !volume.reason.is_empty() => Some((
                "VOLUME_CREATING",
                Severity::Warning,
                "is still being created",
                "put right what is named, or delete the volume: another one is placed elsewhere",
            )),
            VolumeState::Deleting if !volume.reason.is_empty() => Some((
                "VOLUME_DELETING",
                Severity::Info,
                "is still being deleted",
                force.as_str(),
            )),
            VolumeState::Creating
            | VolumeState::Healthy
            | VolumeState::CatalogueBehind
            | VolumeState::Deleting => None,
        };
        if let Some((code, severity, what, remedy)) = found {
            let message = format!("volume {} {what}: {}", volume.name, volume.reason);
            checks.push(check(code, severity, message, object, remedy));
        }
        for replica in volume
            .replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::Failed)
        {
            checks.push(check(
                "REPLICA_FAILED",
                Severity::Error,
                format!(
                    "the replica of volume {} on {} can't be used: {}",
                    volume.name, replica.node, replica.reason
                ),
                format!("replica/{}/{}", volume.name, replica.node),
                &mend(replica),
            ));
        }
    }
    checks
}

/// Nodes that have files of replicas that were deleted or moved, which they can't remove now.
fn left_behind(tombstones: &[Tombstone]) -> Vec<Check> {
    let mut places: BTreeMap<(&str, &str), Vec<&Tombstone>> = BTreeMap::new();
    for tombstone in tombstones {
        if tombstone.state != TombstoneState::Removing {
            let place = (tombstone.node.as_str(), tombstone.pool.as_str());
            places.entry(place).or_default().push(tombstone);
        }
    }
    let tell = |((node, pool), left): ((&str, &str), Vec<&Tombstone>)| {
        let failed = left.iter().find(|one| one.state == TombstoneState::Failed);
        let (severity, why) = match failed {
            Some(one) => (Severity::Warning, one.reason.as_str()),
            None => (Severity::Info, "removed when the node is back"),
        };
        let count = left.len();
        let replicas = if count == 1 {
            "replica that is"
        } else {
            "replicas that are"
        };
        check(
            "LEFT_BEHIND",
            severity,
            format!("pool {pool} on {node} still has {count} {replicas} not wanted any more: {why}"),
            format!("pool/{pool}/{node}"),
            &format!(
                "start stor-satellite on the node; if it is gone for good: storctl node delete {node} --force"
            ),
        )
    };
    places.into_iter().map(tell).collect()
}

fn count_nodes(nodes: &[Node]) -> StatusNodes {
    let mut counts = StatusNodes::default();
    for node in nodes {
        let online = u64::from(node.state == NodeState::Online);
        match node.kind {
            NodeKind::Storage => {
                counts.storage += 1;
                counts.storage_online += online;
            }
            NodeKind::Diskless => {
                counts.diskless += 1;
                counts.diskless_online += online;
            }
        }
    }
    counts
}

fn sum_pools(pools: &[Pool]) -> Vec<StatusPool> {
    let mut sums: BTreeMap<&str, StatusPool> = BTreeMap::new();
    // Pools of several nodes, or several of one, may share a file system: its space is there once.
    let mut counted = BTreeSet::new();
    for pool in pools {
        let sum = sums.entry(&pool.name).or_insert_with(|| StatusPool {
            name: pool.name.clone(),
            nodes: 0,
            filesystems: 0,
            capacity_bytes: 0,
            free_bytes: 0,
        });
        sum.nodes += 1;
        if !pool.filesystem.is_empty() && !counted.insert((pool.name.as_str(), pool.filesystem.as_str())) {
            continue;
        }
        sum.filesystems += 1;
        sum.capacity_bytes = sum.capacity_bytes.saturating_add(pool.capacity_bytes);
        sum.free_bytes = sum.free_bytes.saturating_add(pool.free_bytes);
    }
    sums.into_values().collect()
}

/// The state's word as it stands in JSON.
fn count_volumes(volumes: &[Volume]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for volume in volumes {
        let word = match volume.state {
            VolumeState::Creating => "creating",
            VolumeState::Healthy => "healthy",
            VolumeState::Degraded => "degraded",
            VolumeState::Unknown => "unknown",
            VolumeState::Suspended => "suspended",
            VolumeState::Failed => "failed",
            VolumeState::CatalogueBehind => "catalogue-behind",
            VolumeState::Deleting => "deleting",
        };
        *counts.entry(word.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// What an attach or a detach that is under way waits for.
fn attaching(row: &row::Volume, volume: &Volume) -> Option<String> {
    let attachment = volume.attachments.first()?;
    let detaching = row.attachment.as_ref().is_some_and(|is| is.detaching);
    let what = match attachment.state {
        _ if detaching => "being detached from",
        AttachmentState::Detaching => "being detached from",
        AttachmentState::Attaching => "being attached on",
        AttachmentState::Attached
        | AttachmentState::Suspended
        | AttachmentState::Failed
        | AttachmentState::Unknown => return None,
    };
    let why = if attachment.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", attachment.reason)
    };
    Some(format!("volume {}: {what} {}{why}", row.name, attachment.node))
}

fn because(volume: &Volume) -> String {
    if volume.reason.is_empty() {
        String::new()
    } else {
        format!(", {}", volume.reason)
    }
}

fn work(rows: &[row::Volume], volumes: &[Volume]) -> Vec<String> {
    let mut lines = Vec::new();
    for (row, volume) in rows.iter().zip(volumes) {
        let scrubbed = scrubs::work(volume);
        let healing = row
            .attachment
            .as_ref()
            .is_some_and(|a| a.purpose == Purpose::Healing);
        let healing = healing && scrubbed.is_none();
        lines.extend(scrubbed);
        if let (true, Some(node)) = (healing, &row.row.owner) {
            lines.push(format!(
                "volume {}: node {node} brings its replicas up to date",
                row.name
            ));
        }
        for replica in &volume.replicas {
            if let (Some(percent), Some(left)) = (replica.resync_percent, replica.resync_left_bytes) {
                lines.push(format!(
                    "volume {}: replica on {} {percent:.1} % in sync, {} left",
                    row.name,
                    replica.node,
                    size::format(left)
                ));
            }
        }
        lines.extend(attaching(row, volume));
        match volume.state {
            VolumeState::Creating => {
                lines.push(format!("volume {}: being created{}", row.name, because(volume)));
            }
            VolumeState::Deleting => {
                lines.push(format!("volume {}: being deleted{}", row.name, because(volume)));
            }
            _ => {}
        }
    }
    lines
}
