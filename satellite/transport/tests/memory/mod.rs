//! An NBD server over memory: the smallest driver of `stor_transport::nbd` there can be, so that real clients can
//! judge the protocol. One thread per connection, one request at a time.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, bail};
use stor_transport::nbd::{
    self, Command, Export, Extent, ExtentState, Handshake, Negotiated, Progress, REQUEST_BYTES, Request,
};

const BLOCK: usize = 4096;

/// What a volume holds: blocks, `None` where nothing was written.
pub(crate) struct Volume {
    blocks: Mutex<Vec<Option<Box<[u8]>>>>,
}

impl Volume {
    fn new(size: u64) -> Self {
        Self {
            blocks: Mutex::new(vec![None; usize::try_from(size).unwrap() / BLOCK]),
        }
    }

    fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let blocks = self.blocks.lock().unwrap();
        range(offset, length)
            .flat_map(|at| blocks[at].as_deref().unwrap_or(&[0; BLOCK]).to_vec())
            .collect()
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut blocks = self.blocks.lock().unwrap();
        let first = usize::try_from(offset).unwrap() / BLOCK;
        for (at, block) in data.chunks(BLOCK).enumerate() {
            blocks[first + at] = Some(block.into());
        }
    }

    fn discard(&self, offset: u64, length: u32) {
        self.blocks.lock().unwrap()[range(offset, length)].fill(None);
    }

    fn extents(&self, offset: u64, length: u32) -> Vec<Extent> {
        let blocks = self.blocks.lock().unwrap();
        let state = |at: usize| {
            if blocks[at].is_some() {
                ExtentState::Data
            } else {
                ExtentState::Hole
            }
        };
        range(offset, length)
            .map(|at| Extent {
                length: BLOCK as u64,
                state: state(at),
            })
            .collect()
    }
}

fn range(offset: u64, length: u32) -> std::ops::Range<usize> {
    let first = usize::try_from(offset).unwrap() / BLOCK;
    first..first + length as usize / BLOCK
}

/// Serves the export until the test's process ends.
pub(crate) fn serve(export: Export, socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let volume = Arc::new(Volume::new(export.size));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, export, volume) = (stream.unwrap(), export.clone(), Arc::clone(&volume));
            thread::spawn(move || {
                if let Err(error) = connection(stream, &export, &volume) {
                    // Clients that just go away are ordinary; the client's own check decides.
                    eprintln!("connection ended: {error:#}");
                }
            });
        }
    });
}

fn connection(mut stream: UnixStream, export: &Export, volume: &Volume) -> anyhow::Result<()> {
    let mut handshake = Handshake::new(export)?;
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let negotiated = loop {
        let fed = handshake.feed(&input, &mut out);
        stream.write_all(&out)?;
        out.clear();
        let (consumed, progress) = fed?;
        input.drain(..consumed);
        match progress {
            Progress::NeedMore => {
                // A byte at a time at first, to try the cuts.
                let mut piece = [0; 4096];
                let most = if input.len() < 20 { 1 } else { piece.len() };
                match stream.read(&mut piece[..most])? {
                    0 => bail!("the client left the handshake"),
                    got => input.extend(&piece[..got]),
                }
            }
            Progress::Ready(negotiated) => break negotiated,
            Progress::Closed(_) => return Ok(()),
        }
    };
    assert!(
        input.is_empty(),
        "clients wait for the last reply of the handshake"
    );
    loop {
        let mut header = [0; REQUEST_BYTES];
        stream.read_exact(&mut header).context("between requests")?;
        let request = nbd::parse_request(&header)?;
        let mut payload = vec![0; request.payload_len() as usize];
        stream.read_exact(&mut payload)?;
        if let Err(refusal) = request.check(export, &negotiated) {
            nbd::refusal(&negotiated, request.cookie, refusal, &mut out);
        } else if request.command == Command::Disconnect {
            return Ok(());
        } else {
            answer(&request, &payload, &negotiated, volume, &mut out);
        }
        stream.write_all(&out)?;
        out.clear();
    }
}

fn answer(request: &Request, payload: &[u8], negotiated: &Negotiated, volume: &Volume, out: &mut Vec<u8>) {
    let Request {
        cookie,
        offset,
        length,
        ..
    } = *request;
    match request.command {
        Command::Read { .. } if !negotiated.structured => {
            out.extend(nbd::simple(cookie, None));
            out.extend(volume.read(offset, length));
        }
        Command::Read { df } => read_in_chunks(request, df, volume, out),
        Command::Write => {
            volume.write(offset, payload);
            out.extend(nbd::success(cookie));
        }
        Command::Flush => out.extend(nbd::success(cookie)),
        Command::Trim | Command::WriteZeroes { no_hole: false, .. } => {
            volume.discard(offset, length);
            out.extend(nbd::success(cookie));
        }
        Command::WriteZeroes { no_hole: true, .. } => {
            volume.write(offset, &vec![0; length as usize]);
            out.extend(nbd::success(cookie));
        }
        Command::BlockStatus { .. } => {
            let context = negotiated.meta_base_allocation.unwrap();
            nbd::block_status(context, request, volume.extents(offset, length), out);
        }
        Command::Disconnect | Command::Cache | Command::Unknown(_) => unreachable!("refused before"),
    }
}

/// Every chunk type a read can have: data and holes of a block each, then nothing.
fn read_in_chunks(request: &Request, df: bool, volume: &Volume, out: &mut Vec<u8>) {
    let Request {
        cookie,
        offset,
        length,
        ..
    } = *request;
    if df {
        out.extend(nbd::read_data(cookie, true, offset, length));
        out.extend(volume.read(offset, length));
        return;
    }
    let mut at = offset;
    for extent in volume.extents(offset, length) {
        let part = u32::try_from(extent.length).unwrap();
        if extent.state == ExtentState::Data {
            out.extend(nbd::read_data(cookie, false, at, part));
            out.extend(volume.read(at, part));
        } else {
            out.extend(nbd::hole(cookie, false, at, part));
        }
        at += extent.length;
    }
    out.extend(nbd::none(cookie));
}
