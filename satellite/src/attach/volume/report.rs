//! What is told to the controllers about one volume's engine.

use stor_proto::satellite as proto;
use stor_replication::engine::SnapshotStage;

use super::super::plan::{Device, Goal};
use super::VolumeTask;
use crate::agent::desired::TransportKind;
use crate::control::{Report, State};

/// The status of a volume; `None` when there is nothing to say.
pub(super) fn status(task: &VolumeTask) -> Option<proto::EngineStatus> {
    let goal = task.goal();
    if goal == Goal::Unknown {
        return None;
    }
    let (state, reason) = state(task, goal)?;
    let transport = task.engine.as_ref().map(|engine| engine.transport);
    let row = task.latest.as_ref().map(|volume| &volume.row);
    let epoch = match (&task.running, row) {
        (Some(running), _) => running.epoch.0,
        (None, Some(row)) => row.view.epoch.0,
        (None, None) => 0,
    };
    let report = task.running.as_ref().and_then(|running| running.report.as_ref());
    let snapshot = report.and_then(|report| report.snapshot);
    Some(proto::EngineStatus {
        volume_id: task.volume.to_string(),
        epoch,
        state: state.into(),
        reason,
        device: task
            .device_path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        nbd_uri: match transport {
            Some(TransportKind::Socket) => nbd_uri(task),
            _ => String::new(),
        },
        syncing: report.map(syncing).unwrap_or_default(),
        counters: report.map(counters),
        transport: match transport {
            Some(TransportKind::Ublk) => "ublk",
            Some(TransportKind::Nbd) => "nbd",
            Some(TransportKind::Fuse) => "fuse",
            Some(TransportKind::Socket) => "socket",
            Some(TransportKind::None) => "none",
            None => "",
        }
        .to_owned(),
        read_only: task.engine.as_ref().is_some_and(|engine| engine.read_only),
        snapshot_id: snapshot.map(|(id, _)| id.to_string()).unwrap_or_default(),
        snapshot_stage: snapshot.map_or("", |(_, stage)| stage_word(stage)).to_owned(),
        scrub: report.and_then(|report| report.scrub.as_ref()).map(scrub),
    })
}

fn stage_word(stage: SnapshotStage) -> &'static str {
    match stage {
        SnapshotStage::Waiting => "waiting",
        SnapshotStage::Holding => "holding",
        SnapshotStage::Held => "held",
        SnapshotStage::Making => "making",
    }
}

fn state(task: &VolumeTask, goal: Goal) -> Option<(proto::EngineState, String)> {
    use proto::EngineState as Told;
    let ending = matches!(goal, Goal::Stop(_) | Goal::Nothing | Goal::Halt);
    let Some(running) = &task.running else {
        let told = if ending { Told::Stopping } else { Told::Starting };
        let reason = without_engine(task, ending)?;
        return Some((told, reason));
    };
    if ending {
        return Some((Told::Stopping, first(&[&task.device_error, slow(task)])));
    }
    let Some(report) = &running.report else {
        return Some((Told::Starting, first(&[&task.device_error, &task.last_end])));
    };
    let with_device = task
        .engine
        .as_ref()
        .is_some_and(|engine| !matches!(engine.transport, TransportKind::Socket | TransportKind::None));
    Some(match report.state {
        State::Starting => (Told::Starting, report.reason.clone()),
        // For whoever asked for a device it serves when the device is there.
        State::Serving if with_device && task.device != Device::Attached => {
            match task.device_error.as_str() {
                "" => (Told::Starting, first(&[slow(task), "the device is being made"])),
                error => (Told::Failed, error.to_owned()),
            }
        }
        State::Serving => (Told::Serving, task.fixed.clone()),
        State::Suspended => (Told::Suspended, report.reason.clone()),
        State::Fenced => (Told::Fenced, report.reason.clone()),
        State::Failed => (Told::Failed, report.reason.clone()),
        State::Stopping => (Told::Stopping, report.reason.clone()),
    })
}

/// The reason of a volume without an engine; `None` when it is right that it has none.
fn without_engine(task: &VolumeTask, ending: bool) -> Option<String> {
    let owner = task
        .latest
        .as_ref()
        .and_then(|volume| volume.row.owner.as_deref());
    let ours = owner == Some(task.context.node.as_str());
    if ending {
        let left = ours || task.device != Device::None;
        return left.then(|| first(&[&task.device_error, slow(task), &task.refused]));
    }
    if !ours {
        return Some(match owner {
            Some(node) => format!("the volume is attached on node {node}"),
            None => "the volume is not attached".to_owned(),
        });
    }
    if task.asking {
        let waits = "no controller has given a new epoch yet";
        return Some(match task.last_end.as_str() {
            "" => waits.to_owned(),
            end => format!("{end}; {waits}"),
        });
    }
    Some(first(&[
        &task.refused,
        &task.device_error,
        slow(task),
        &task.last_end,
    ]))
}

fn slow(task: &VolumeTask) -> &'static str {
    if task.device_is_slow() {
        "the kernel takes long to make or take away the device: look for I/O that does not end"
    } else {
        ""
    }
}

fn first(reasons: &[&str]) -> String {
    let found = reasons.iter().find(|reason| !reason.is_empty());
    found.map(|reason| (*reason).to_owned()).unwrap_or_default()
}

fn nbd_uri(task: &VolumeTask) -> String {
    let name = task.latest.as_ref().map_or("", |volume| volume.name.as_str());
    let socket = task.context.paths.nbd_socket(task.volume);
    format!("nbd+unix:///{name}?socket={}", query(&socket.to_string_lossy()))
}

/// Escapes what would end or change a query; clients decode it.
fn query(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}

fn syncing(report: &Report) -> Vec<proto::SyncProgress> {
    let progress = |progress: &crate::control::Progress| proto::SyncProgress {
        replica: progress.replica.0,
        total_bytes: progress.total_bytes,
        done_bytes: progress.done_bytes,
    };
    report.syncing.iter().map(progress).collect()
}

fn scrub(scrub: &crate::control::Scrub) -> proto::ScrubProgress {
    proto::ScrubProgress {
        run: scrub.run.0,
        cursor: scrub.cursor,
        waits: scrub.waits.clone(),
    }
}

fn counters(report: &Report) -> proto::EngineCounters {
    let counters = report.counters;
    proto::EngineCounters {
        reads: counters.reads,
        read_bytes: counters.read_bytes,
        writes: counters.writes,
        written_bytes: counters.written_bytes,
        flushes: counters.flushes,
        resynced_bytes: counters.resynced_bytes,
        repaired_bytes: counters.repaired_bytes,
        snapshots: counters.snapshots,
        held_last_us: counters.held_last_us,
        held_longest_us: counters.held_longest_us,
    }
}
