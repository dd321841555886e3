//! Events and commands as short lines.

use stor_replication::body::Body;
use stor_replication::engine;
use stor_replication::extents::Extent;
use stor_replication::replica;
use stor_replication::wire::Header;

use super::disk::Data;

pub(crate) fn header(header: &Header, body: &Body<Data>) -> String {
    let body = match body {
        Body::None => String::new(),
        Body::Data(data) => format!(" {:?}", &data.blocks[..data.blocks.len().min(2)]),
        Body::Bytes(bytes) => format!(" {} bytes", bytes.len()),
    };
    format!(
        "{:?} r{} op{} {} {}+{} {:?} f{}{body}",
        header.kind,
        header.replica,
        header.op,
        header.view,
        header.offset / 4096,
        header.length / 4096,
        header.status,
        header.flags,
    )
}

/// As many dashes as blocks of holes, hashes for data.
fn holes(extents: &[Extent]) -> String {
    let sign = |extent: &Extent| {
        let sign = if extent.hole { "-" } else { "#" };
        sign.repeat(extent.length as usize / 4096)
    };
    extents.iter().map(sign).collect()
}

pub(crate) fn replica_event(event: &replica::Event<Data>) -> String {
    match event {
        replica::Event::Request {
            conn,
            header: of,
            body,
        } => format!("c{conn} {}", header(of, body)),
        replica::Event::Open { conn, header: of, .. } => format!("c{conn} {}", header(of, &Body::None)),
        replica::Event::Gone { conn } => format!("c{conn} gone"),
        replica::Event::DiskDone { op, result } => {
            format!(
                "disk {op} {}",
                result.as_ref().map_or_else(|e| format!("{e:?}"), |_| "ok".into())
            )
        }
        replica::Event::ExtentsFound { op, extents } => format!("extents {op} {}", holes(extents)),
        replica::Event::Digested { op, digests } => {
            let told = digests
                .as_ref()
                .map(|digests| (digests.read, digests.units.len()));
            format!("digested {op} {told:?}")
        }
        replica::Event::SnapshotDone { op, result } => format!("snapshot {op} {result:?}"),
        replica::Event::PagesStored { result } => format!("pages {result:?}"),
        replica::Event::Grown { size } => format!("grown to {size}"),
        replica::Event::Tick => "tick".into(),
    }
}

pub(crate) fn replica_command(command: &replica::Command<Data>) -> String {
    match command {
        replica::Command::Reply {
            conn,
            header: of,
            body,
        } => format!("c{conn} {}", header(of, body)),
        replica::Command::Drop { conn } => format!("drop c{conn}"),
        replica::Command::Disk { op, action } => match action {
            replica::DiskAction::Write { range, data, fua } => {
                format!(
                    "disk {op} write {}+{} {:?} fua {fua}",
                    range.offset / 4096,
                    range.len / 4096,
                    data.blocks[0]
                )
            }
            other => format!("disk {op} {other:?}"),
        },
        replica::Command::StorePages(pages) => {
            format!("store {:?}", pages.iter().map(|page| page.id).collect::<Vec<_>>())
        }
    }
}

pub(crate) fn request(request: &engine::Request<Data>) -> String {
    match request {
        engine::Request::Read(range) => format!("read {}+{}", range.offset / 4096, range.len / 4096),
        engine::Request::Write { range, data, fua } => {
            format!(
                "write {}+{} = {} fua {fua}",
                range.offset / 4096,
                range.len / 4096,
                data.blocks[0]
            )
        }
        engine::Request::Zero { range, fua, .. } => {
            format!("zero {}+{} fua {fua}", range.offset / 4096, range.len / 4096)
        }
        engine::Request::Extents(range) => format!("extents {}+{}", range.offset / 4096, range.len / 4096),
        engine::Request::Flush => "flush".into(),
    }
}

pub(crate) fn engine_event(event: &engine::Event<Data>) -> String {
    match event {
        engine::Event::Submit { io, request: of } => format!("submit {io} {}", request(of)),
        engine::Event::Connected { replica, link } => format!("r{replica} link {} connected", link.0),
        engine::Event::Lost { replica, link } => format!("r{replica} link {} lost", link.0),
        engine::Event::Answer { header: of, body, .. } => header(of, body),
        engine::Event::Row(row) => format!("row {}", self::row(row)),
        engine::Event::Outcome {
            proposal,
            row,
            refusal,
        } => {
            format!("outcome {proposal} {} {refusal:?}", self::row(row))
        }
        engine::Event::Snapshot(ask) => format!("snapshot {ask:?}"),
        engine::Event::Scrub(ask) => format!("scrub {ask:?}"),
        engine::Event::Stop => "stop".into(),
        engine::Event::Tick => "tick".into(),
    }
}

pub(crate) fn row(row: &stor_replication::catalogue::VolumeRow) -> String {
    let members: Vec<String> = row.in_sync().map(|id| id.to_string()).collect();
    format!(
        "rev {} view {} in sync {{{}}} owner {:?}",
        row.revision,
        row.view,
        members.join(","),
        row.owner
    )
}

pub(crate) fn engine_command(command: &engine::Command<Data>) -> String {
    match command {
        engine::Command::Connect { replica, link } => format!("connect r{replica} link {}", link.0),
        engine::Command::Disconnect { replica, link } => format!("disconnect r{replica} link {}", link.0),
        engine::Command::Send { header: of, body, .. } => header(of, body),
        engine::Command::Propose { proposal, change } => format!("propose {proposal} {change:?}"),
        engine::Command::CompleteExtents { io, extents } => format!("complete {io} {}", holes(extents)),
        engine::Command::Complete { io, result } => {
            let text = match result {
                Ok(Some(data)) => format!("{:?}", data.blocks),
                Ok(None) => "ok".into(),
                Err(error) => format!("{error:?}"),
            };
            format!("complete {io} {text}")
        }
        engine::Command::StateChanged => "state changed".into(),
    }
}
