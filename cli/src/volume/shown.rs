//! How volumes are shown to people.

use std::time::Duration;

use stor_api::objects::{
    Attachment, AttachmentState, Replica, ReplicaState, ScrubState, Volume, VolumeState,
};
use stor_api::size;

use crate::output::width;
use crate::table::{Cell, Column, Fields, Table, Tone};
use crate::wait::seconds;

fn state(state: VolumeState) -> Cell {
    let (word, tone) = match state {
        VolumeState::Creating => ("creating", Tone::Warn),
        VolumeState::Healthy => ("healthy", Tone::Good),
        VolumeState::Degraded => ("degraded", Tone::Warn),
        VolumeState::Unknown => ("unknown", Tone::Warn),
        VolumeState::Suspended => ("suspended", Tone::Bad),
        VolumeState::Failed => ("failed", Tone::Bad),
        VolumeState::CatalogueBehind => ("catalogue-behind", Tone::Bad),
        VolumeState::Deleting => ("deleting", Tone::Faint),
    };
    Cell::new(word, tone)
}

fn replica_state(state: ReplicaState) -> Cell {
    let (word, tone) = match state {
        ReplicaState::Creating => ("creating", Tone::Warn),
        ReplicaState::InSync => ("in-sync", Tone::Good),
        ReplicaState::Stale => ("stale", Tone::Bad),
        ReplicaState::Syncing => ("syncing", Tone::Warn),
        ReplicaState::Offline => ("offline", Tone::Bad),
        ReplicaState::Failed => ("failed", Tone::Bad),
        ReplicaState::Deleting => ("deleting", Tone::Faint),
    };
    Cell::new(word, tone)
}

/// One that is to go is in sync until it is gone.
fn shown_state(replica: &Replica) -> Cell {
    if replica.leaving {
        return Cell::new("leaving", Tone::Warn);
    }
    replica_state(replica.state)
}

fn shown_reason(replica: &Replica) -> String {
    let place = replica.replaces.map(|old| format!("takes the place of {old}"));
    match place {
        Some(place) if replica.reason.is_empty() => place,
        Some(place) => format!("{}; {place}", replica.reason),
        None => replica.reason.clone(),
    }
}

fn attachment_state(state: AttachmentState) -> Cell {
    let (word, tone) = match state {
        AttachmentState::Attaching => ("attaching", Tone::Warn),
        AttachmentState::Attached => ("attached", Tone::Good),
        AttachmentState::Suspended => ("suspended", Tone::Bad),
        AttachmentState::Failed => ("failed", Tone::Bad),
        AttachmentState::Detaching => ("detaching", Tone::Warn),
        AttachmentState::Unknown => ("unknown", Tone::Bad),
    };
    Cell::new(word, tone)
}

fn joined<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(" ")
}

pub(super) fn table(volumes: &[Volume]) -> Table {
    let mut table = Table::new(&[
        Column::left("NAME"),
        Column::right("SIZE"),
        Column::left("STATE"),
        Column::left("IN SYNC"),
        Column::left("REPLICAS"),
        Column::right("ALLOCATED"),
        Column::left("ATTACHED"),
        Column::optional("CLASS"),
        Column::optional("SCRUB"),
        Column::optional("REASON"),
    ]);
    for volume in volumes {
        let in_sync = volume.replicas.iter().filter(|r| r.in_sync).count();
        let allocated: u64 = volume.replicas.iter().map(|r| r.allocated_bytes).sum();
        let attached = joined(volume.attachments.iter().map(|a| a.node.as_str()));
        table.row([
            volume.name.clone().into(),
            size::format(volume.size_bytes).into(),
            state(volume.state),
            format!("{in_sync} of {}", volume.replicas.len()).into(),
            joined(volume.replicas.iter().map(|r| r.node.as_str())).into(),
            size::format(allocated).into(),
            if attached.is_empty() {
                "-".into()
            } else {
                attached.into()
            },
            volume.class.clone().unwrap_or_default().into(),
            scrub_cell(volume),
            volume.reason.clone().into(),
        ]);
    }
    table
}

pub(super) fn describe(volume: &Volume) -> String {
    let mut fields = Fields::default();
    fields
        .field("Name", volume.name.as_str())
        .field("Id", volume.id.as_str())
        .field(
            "Size",
            format!(
                "{} ({} bytes)",
                size::format(volume.size_bytes),
                volume.size_bytes
            ),
        )
        .optional(
            "Growing to",
            &volume.growing_to_bytes.map(size::format).unwrap_or_default(),
        )
        .field("State", state(volume.state))
        .optional("Reason", &volume.reason)
        .optional("Class", volume.class.as_deref().unwrap_or_default())
        .field("Least in sync", volume.min_in_sync.to_string())
        .field("Epoch", format!("{} (attaches so far)", volume.epoch))
        .field(
            "In-sync set",
            match volume.config {
                0 => "as at first".to_owned(),
                1 => "changed once".to_owned(),
                times => format!("changed {times} times"),
            },
        )
        .field("Created", crate::event::short_time(&volume.created))
        .optional("Scrub", &scrubbed(volume));
    let mut text = fields.render();
    text.extend([format!(
        "\nReplicas\n{}",
        replica_table(&volume.replicas, false).render(width())
    )]);
    if matches!(volume.state, VolumeState::Creating | VolumeState::Deleting) {
        return text;
    }
    if volume.attachments.is_empty() {
        let attach = format!("storctl volume attach {} --node NODE", volume.name);
        text.extend([format!("\nNot attached; `{attach}` does it.\n")]);
    } else {
        text.extend([format!(
            "\nAttachments\n{}",
            attachments(&volume.attachments).render(width())
        )]);
        for attachment in &volume.attachments {
            text.extend([format!(
                "\nSince the engine on {} began\n{}",
                attachment.node,
                counters(attachment)
            )]);
        }
    }
    text
}

/// What a list says of scrubs: one that is under way, and what nobody has looked at.
fn scrub_cell(volume: &Volume) -> Cell {
    let Some(scrub) = &volume.scrub else {
        return "".into();
    };
    match (scrub.state, scrub.unacknowledged) {
        (ScrubState::Running, 0) => Cell::new(format!("{:.0} %", scrub.percent), Tone::Warn),
        (ScrubState::Running, found) => {
            Cell::new(format!("{:.0} %, {found} found", scrub.percent), Tone::Bad)
        }
        (_, 0) => "".into(),
        (_, found) => Cell::new(format!("{found} found"), Tone::Bad),
    }
}

/// How its last scrub went, and when the copies were last known to be compared.
fn scrubbed(volume: &Volume) -> String {
    let Some(scrub) = &volume.scrub else {
        return String::new();
    };
    let when = match (&scrub.ended, &scrub.last_complete) {
        (Some(ended), _) => format!(", {}", crate::event::short_time(ended)),
        (None, Some(last)) => format!("; the last one ended {}", crate::event::short_time(last)),
        (None, None) => String::new(),
    };
    let seen = match scrub.unacknowledged {
        0 => String::new(),
        _ => format!(
            "; not acknowledged (storctl volume scrub {} --acknowledge)",
            volume.name
        ),
    };
    format!("{}{when}{seen}", super::scrub::in_words(scrub))
}

/// A volume in one line, and its replicas.
pub(crate) fn volume_and_replicas(volume: &Volume) -> String {
    let table = replica_table(&volume.replicas, false).render(width());
    format!(
        "volume {}: {}\n\n{table}",
        volume.name,
        size::format(volume.size_bytes)
    )
}

/// Replicas; `of`: say of which volume.
pub(crate) fn replica_table(replicas: &[Replica], of: bool) -> Table {
    let mut table = Table::new(&[
        if of {
            Column::left("VOLUME")
        } else {
            Column::optional("")
        },
        Column::right("ID"),
        Column::left("NODE"),
        Column::left("POOL"),
        Column::left("STATE"),
        Column::left("IN SYNC"),
        Column::right("ALLOCATED"),
        Column::optional("RESYNC"),
        Column::optional("REASON"),
    ]);
    for replica in replicas {
        // A member is as far as one can be.
        let resync = replica
            .resync_percent
            .filter(|_| !replica.in_sync)
            .map(|percent| {
                let left = replica
                    .resync_left_bytes
                    .map(|b| format!(", {} left", size::format(b)))
                    .unwrap_or_default();
                format!("{percent:.0} %{left}")
            });
        let volume = if of { replica.volume.clone() } else { String::new() };
        table.row([
            volume.into(),
            replica.id.to_string().into(),
            replica.node.clone().into(),
            replica.pool.clone().into(),
            shown_state(replica),
            if replica.in_sync { "yes" } else { "no" }.into(),
            size::format(replica.allocated_bytes).into(),
            resync.unwrap_or_default().into(),
            shown_reason(replica).into(),
        ]);
    }
    table
}

fn attachments(attachments: &[Attachment]) -> Table {
    let mut table = Table::new(&[
        Column::left("NODE"),
        Column::left("STATE"),
        Column::left("ACCESS"),
        Column::left("TRANSPORT"),
        Column::optional("DEVICE"),
        Column::optional("NBD"),
        Column::right("EPOCH"),
        Column::optional("REASON"),
    ]);
    for attachment in attachments {
        table.row([
            attachment.node.clone().into(),
            attachment_state(attachment.state),
            if attachment.read_only {
                "read-only"
            } else {
                "read-write"
            }
            .into(),
            attachment.transport.clone().into(),
            attachment.device.clone().into(),
            attachment.nbd_uri.clone().into(),
            attachment.epoch.to_string().into(),
            attachment.reason.clone().into(),
        ]);
    }
    table
}

fn counters(attachment: &Attachment) -> String {
    let c = &attachment.counters;
    let mut fields = Fields::default();
    fields
        .field(
            "  Read",
            format!("{} in {} requests", size::format(c.read_bytes), c.reads),
        )
        .field(
            "  Written",
            format!("{} in {} requests", size::format(c.written_bytes), c.writes),
        )
        .field("  Flushes", c.flushes.to_string())
        .field("  Resynced", size::format(c.resynced_bytes))
        .field("  Repaired", size::format(c.repaired_bytes));
    if c.held_last_us > 0 {
        let held = |us: u64| seconds(Duration::from_millis(us.div_ceil(1000)));
        let (last, longest) = (held(c.held_last_us), held(c.held_longest_us));
        fields.field(
            "  Snapshots",
            format!(
                "{}; writes held for {last} the last time, {longest} at most",
                c.snapshots
            ),
        );
    }
    fields.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stor_api::objects::Counters;

    fn volume() -> Volume {
        let replica = |id, node: &str, state, in_sync| Replica {
            volume: "db1".into(),
            id,
            node: node.into(),
            pool: "sp01".into(),
            state,
            in_sync,
            reason: String::new(),
            allocated_bytes: 3 << 30,
            resync_percent: None,
            resync_left_bytes: None,
            leaving: false,
            replaces: None,
        };
        let mut syncing = replica(2, "s2", ReplicaState::Syncing, false);
        syncing.resync_percent = Some(41.7);
        syncing.resync_left_bytes = Some(90 << 20);
        syncing.reason = "unreachable".into();
        Volume {
            name: "db1".into(),
            id: "0191d5b4-0000-7000-8000-000000000001".into(),
            size_bytes: 10 << 30,
            growing_to_bytes: None,
            scrub: None,
            class: Some("fast".into()),
            state: VolumeState::Degraded,
            reason: "replica 2 on s2 is not in sync: unreachable".into(),
            epoch: 3,
            config: 4,
            min_in_sync: 1,
            replicas: vec![replica(1, "s1", ReplicaState::InSync, true), syncing],
            attachments: vec![Attachment {
                volume: "db1".into(),
                node: "k1".into(),
                transport: "fuse".into(),
                read_only: false,
                device: "/dev/stor/db1".into(),
                nbd_uri: String::new(),
                epoch: 3,
                state: AttachmentState::Attached,
                reason: String::new(),
                counters: Counters {
                    reads: 10,
                    read_bytes: 40_960,
                    writes: 2000,
                    written_bytes: 8_192_000,
                    flushes: 3,
                    resynced_bytes: 1 << 20,
                    repaired_bytes: 0,
                    ..Counters::default()
                },
            }],
            created: "2026-01-01T00:00:00.5Z".into(),
            revision: 12,
        }
    }

    fn detached() -> Volume {
        let mut volume = volume();
        volume.name = "a-volume-nobody-uses".into();
        volume.size_bytes = 1 << 20;
        volume.class = None;
        volume.state = VolumeState::Healthy;
        volume.reason.clear();
        volume.attachments.clear();
        for replica in &mut volume.replicas {
            replica.state = ReplicaState::InSync;
            replica.in_sync = true;
            replica.reason.clear();
            replica.resync_percent = None;
        }
        volume
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn list() {
        insta::assert_snapshot!(plain(&table(&[detached(), volume()]).render(None)));
    }

    #[test]
    fn one() {
        insta::assert_snapshot!(plain(&describe(&volume())));
    }

    #[test]
    fn one_that_is_not_attached() {
        insta::assert_snapshot!(plain(&describe(&detached())));
    }
}
