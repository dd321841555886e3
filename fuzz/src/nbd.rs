//! What an NBD client sends.

use stor_transport::nbd::{
    Abort, Command, Export, Handshake, Negotiated, Progress, REQUEST_BYTES, Refusal, parse_request,
};

use crate::bytes::Bytes;

const SIZE: u64 = 1 << 30;
/// The longest answer to one option, generously; an option has at least 16 bytes.
const MOST_ANSWER: usize = 2 << 10;

fn export() -> Export {
    Export::new("db1", SIZE)
}

/// Bytes in any pieces: the pieces must make no difference, and the handshake takes no more than it was given.
pub(crate) fn handshake(input: &[u8]) {
    let mut from = Bytes(input);
    let step = usize::from(from.byte()).max(1);
    let (whole, answer) = talk(from.0, usize::MAX);
    let (pieces, same) = talk(from.0, step);
    assert_eq!(whole, pieces, "the result depends on the pieces");
    assert_eq!(answer, same, "the answer depends on the pieces");
    assert!(
        answer.len() <= 18 + (input.len() / 16 + 1) * MOST_ANSWER,
        "{} bytes of answers to {} bytes",
        answer.len(),
        input.len()
    );
}

/// How a handshake ends and what the server says in it.
fn talk(input: &[u8], step: usize) -> (Option<Progress>, Vec<u8>) {
    let Ok(mut handshake) = Handshake::new(&export()) else {
        panic!("the export is refused");
    };
    let mut out = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        let part = input.get(start..end).unwrap_or_default();
        match handshake.feed(part, &mut out) {
            Ok((taken, progress)) => {
                assert!(taken <= part.len(), "it took more than there was");
                start += taken;
                match progress {
                    Progress::NeedMore => {}
                    Progress::Ready(_) | Progress::Closed(Abort::ByClient | Abort::UnknownExport) => {
                        return (Some(progress), out);
                    }
                }
            }
            Err(_) => return (None, out),
        }
        if end == input.len() {
            return (Some(Progress::NeedMore), out);
        }
        end = end.saturating_add(step).min(input.len());
    }
}

pub(crate) fn requests(input: &[u8]) {
    let mut from = Bytes(input);
    let flags = from.byte();
    let mut export = export();
    export.read_only = flags & 1 != 0;
    export.trim = flags & 2 == 0;
    export.write_zeroes = flags & 4 == 0;
    let negotiated = Negotiated {
        structured: flags & 8 != 0,
        meta_base_allocation: None,
        no_zeroes: true,
    };
    while !from.is_empty() {
        let mut bytes: [u8; REQUEST_BYTES] = from.array();
        if flags & 16 == 0 {
            let magic = 0x2560_9513_u32.to_be_bytes();
            bytes.iter_mut().zip(magic).for_each(|(to, from)| *to = from);
        }
        let Ok(request) = parse_request(&bytes) else {
            continue;
        };
        let checked: Result<(), Refusal> = request.check(&export, &negotiated);
        let end = request.offset.checked_add(request.length.into());
        let inside = end.is_some_and(|end| end <= SIZE);
        let needs_range = matches!(
            request.command,
            Command::Read { .. } | Command::Write | Command::Trim | Command::WriteZeroes { .. }
        );
        assert!(
            checked.is_err() || inside || !needs_range,
            "{request:?} leaves the volume and is taken"
        );
        let writes = matches!(
            request.command,
            Command::Write | Command::Trim | Command::WriteZeroes { .. }
        );
        assert!(
            checked.is_err() || !writes || !export.read_only,
            "{request:?} writes"
        );
    }
}
