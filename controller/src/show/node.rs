//! Nodes, disks, pools, classes and events.

use stor_api::objects::{
    Class, ClassSpec, Disk, Event, Mount, Node, NodeKind, NodeLeaving, NodeState, Orphan, Pool, PoolState,
    Severity, Transport,
};

use crate::catalogue::{command, row};
use crate::observed::Observations;

/// A node.
pub fn node(row: &row::Node, seen: &Observations) -> Node {
    let state = if seen.online(&row.name) {
        NodeState::Online
    } else if row.version.is_none() {
        NodeState::New
    } else {
        NodeState::Offline
    };
    Node {
        name: row.name.clone(),
        address: row.address.clone(),
        kind: match row.kind {
            command::NodeKind::Storage => NodeKind::Storage,
            command::NodeKind::Diskless => NodeKind::Diskless,
        },
        state,
        leaving: row.leaving.map(|leaving| match leaving {
            command::Leaving::Drain => NodeLeaving::Drain,
            command::Leaving::Lost => NodeLeaving::Lost,
        }),
        properties: row.properties.clone(),
        data_address: row.data_address.clone(),
        version: row.version.clone(),
        transports: row
            .transports
            .iter()
            .map(|probe| Transport {
                name: probe.name.clone(),
                available: probe.available,
                remedy: probe.remedy.clone(),
            })
            .collect(),
        last_seen: seen.last(&row.name).map(|heard| heard.time.clone()),
        revision: row.revision,
    }
}

/// A pool on one node.
#[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52 thousandths")]
pub fn pool(row: &row::Pool, seen: &Observations) -> Pool {
    let heard = seen
        .last(&row.wish.node)
        .and_then(|heard| heard.pools.get(&row.wish.name));
    let (state, error) = match heard {
        _ if !seen.online(&row.wish.node) => (
            PoolState::Offline,
            format!("node {} is not connected", row.wish.node),
        ),
        None => (PoolState::Pending, String::new()),
        Some(report) if report.error.is_empty() => (PoolState::Ready, String::new()),
        Some(report) => (PoolState::Failed, report.error.clone()),
    };
    Pool {
        name: row.wish.name.clone(),
        node: row.wish.node.clone(),
        kind: row.wish.kind.word().into(),
        dir: row.wish.dir.clone(),
        devices: row
            .wish
            .devices
            .iter()
            .map(|device| device.path.clone())
            .collect(),
        tags: row.wish.tags.clone(),
        state,
        error,
        filesystem: heard.map_or_else(String::new, |report| report.filesystem.clone()),
        capacity_bytes: heard.map_or(0, |report| report.capacity_bytes),
        free_bytes: heard.map_or(0, |report| report.free_bytes),
        metadata_capacity_bytes: heard.map_or(0, |report| report.metadata_capacity_bytes),
        metadata_used_bytes: heard.map_or(0, |report| report.metadata_used_bytes),
        promised_bytes: row.promised,
        overprovision: row.wish.overprovision_milli as f64 / 1000.0,
        snapshots: heard.map_or_else(String::new, |report| report.snapshots.clone()),
        replicas: row.replicas,
        checked: heard.is_some_and(|report| report.checked),
        revision: row.revision,
    }
}

/// A class.
pub fn class(row: &row::Class) -> Class {
    let wish = &row.wish;
    Class {
        spec: ClassSpec {
            name: wish.name.clone(),
            replicas: wish.replicas,
            pool: wish.pool.clone(),
            tags: wish.tags.clone(),
            transport: wish.transport.clone(),
            spread: wish.spread.clone(),
            together: wish.together.clone(),
            scrub_days: wish.scrub_days,
        },
        volumes: row.volumes,
        revision: row.revision,
    }
}

/// The block devices nodes report, by node and path.
pub fn disks(seen: &Observations, node: Option<&str>) -> Vec<Disk> {
    let mut disks: Vec<Disk> = seen
        .nodes()
        .filter(|(name, _)| node.is_none_or(|wanted| wanted == *name) && seen.online(name))
        .flat_map(|(name, heard)| {
            heard.disks.iter().map(move |disk| Disk {
                node: name.to_owned(),
                path: disk.path.clone(),
                size_bytes: disk.size_bytes,
                model: disk.model.clone(),
                serial: disk.serial.clone(),
                rotational: disk.rotational,
                in_use: disk.in_use.clone(),
                wipeable: disk.wipeable,
            })
        })
        .collect();
    disks.sort_by(|a, b| (&a.node, &a.path).cmp(&(&b.node, &b.path)));
    disks
}

/// File systems of nodes that could hold pools, by node and path.
pub fn mounts(seen: &Observations, node: Option<&str>) -> Vec<Mount> {
    let online = seen
        .nodes()
        .filter(|(name, _)| node.is_none_or(|wanted| wanted == *name) && seen.online(name));
    let mut mounts: Vec<Mount> = online
        .flat_map(|(name, heard)| {
            heard.mounts.iter().map(move |mount| Mount {
                node: name.to_owned(),
                path: mount.path.clone(),
                filesystem: mount.filesystem.clone(),
                capacity_bytes: mount.capacity_bytes,
                free_bytes: mount.free_bytes,
            })
        })
        .collect();
    mounts.sort_by(|a, b| (&a.node, &a.path).cmp(&(&b.node, &b.path)));
    mounts
}

/// What is in pools and belongs to nothing, by node, pool and name.
pub fn orphans(seen: &Observations, node: Option<&str>) -> Vec<Orphan> {
    let online = seen
        .nodes()
        .filter(|(name, _)| node.is_none_or(|wanted| wanted == *name) && seen.online(name));
    let mut orphans: Vec<Orphan> = online
        .flat_map(|(name, heard)| {
            heard.pools.values().flat_map(move |pool| {
                pool.orphans.iter().map(move |orphan| Orphan {
                    node: name.to_owned(),
                    pool: pool.name.clone(),
                    name: orphan.name.clone(),
                    what: orphan.what.clone(),
                    bytes: orphan.bytes,
                })
            })
        })
        .collect();
    orphans.sort_by(|a, b| (&a.node, &a.pool, &a.name).cmp(&(&b.node, &b.pool, &b.name)));
    orphans
}

/// An event.
pub fn event(row: &row::Event) -> Event {
    Event {
        seq: row.seq,
        time: row.time.clone(),
        severity: match row.severity.as_str() {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            _ => Severity::Error,
        },
        kind: row.kind.clone(),
        object: row.object.clone(),
        message: row.message.clone(),
    }
}
