//! What the kernel asks a FUSE file system for.

use stor_transport::fuse::{Answer, Connection, Data, parse};

use crate::bytes::Bytes;

const SIZE: u64 = 1 << 30;
/// A FUSE request's own header.
const HEADER: usize = 40;
/// The longest reply the kernel asks for, a listing of the directory; anything else is far shorter.
const MOST_REPLY: usize = 4 << 10;

pub(crate) fn requests(input: &[u8]) {
    let mut from = Bytes(input);
    let mut connection = Connection::new(SIZE, from.byte().is_multiple_of(4));
    while !from.is_empty() {
        let length = usize::from(from.byte()) + usize::from(from.byte() % 4) * 256;
        let mut request = from.some(HEADER + length).to_vec();
        if let Some(number) = request.first().copied()
            && number != 0
        {
            // Its length is right, and the operation one of those there are, mostly.
            let length = u32::try_from(request.len()).unwrap_or(0).to_le_bytes();
            request.iter_mut().zip(length).for_each(|(to, from)| *to = from);
            let code = u32::from(number % 64).to_le_bytes();
            request
                .iter_mut()
                .skip(4)
                .zip(code)
                .for_each(|(to, from)| *to = from);
        }
        let Ok(parsed) = parse(&request) else {
            continue;
        };
        match connection.answer(&parsed) {
            Answer::Reply(bytes) | Answer::Started(bytes, _) | Answer::Refused(bytes, _) => {
                assert!(bytes.len() >= 16, "a reply without a header");
                assert!(bytes.len() <= MOST_REPLY, "a reply of {} bytes", bytes.len());
            }
            Answer::Data(data) => inside(&data, request.len()),
            Answer::Nothing => {}
        }
    }
}

fn inside(data: &Data, length: usize) {
    let (offset, len) = match data {
        Data::Read { offset, len, .. } => (*offset, u64::from(*len)),
        Data::Write { offset, payload, .. } => {
            assert!(
                payload.start <= payload.end && payload.end <= length,
                "{payload:?} of {length} bytes"
            );
            (*offset, payload.len() as u64)
        }
        Data::Discard { offset, len, .. } | Data::Zero { offset, len, .. } => (*offset, *len),
        Data::Flush { .. } => return,
    };
    let end = offset.checked_add(len);
    assert!(
        len > 0 && end.is_some_and(|end| end <= SIZE),
        "{data:?} leaves the volume"
    );
}
