//! FUSE requests and replies byte by byte, as a little-endian 64-bit kernel has them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
#![cfg(target_endian = "little")]

use proptest::prelude::*;
use stor_transport::fuse::{
    self, Answer, Connection, Data, Errno, FILE_NODE, FuseError, MAX_IO, Operation, RESENT, RefusedInit,
    Session, Unique, parse,
};

const SIZE: u64 = 1 << 30;
const UNIQUE: u64 = 42;
const ROOT: u64 = 1;
const RESEND: u64 = 1 << 39;
const INIT_EXT: u64 = 1 << 30;

/// A request with its arguments as numbers of four bytes.
fn request(opcode: u32, node: u64, arguments: &[u32], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + 4 * arguments.len() + data.len()).unwrap();
    let mut bytes = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    bytes.extend(UNIQUE.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    bytes.extend(data);
    bytes
}

fn connection() -> Connection {
    Connection::new(SIZE, false)
}

fn answer_by(mut connection: Connection, bytes: &[u8]) -> Answer {
    connection.answer(&parse(bytes).unwrap())
}

fn answer(bytes: &[u8]) -> Answer {
    answer_by(connection(), bytes)
}

/// The body of a successful reply.
fn body(answer: Answer) -> Vec<u8> {
    let Answer::Reply(bytes) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(bytes[..4], u32::try_from(bytes.len()).unwrap().to_le_bytes());
    assert_eq!(bytes[4..8], [0; 4], "no error");
    assert_eq!(bytes[8..16], UNIQUE.to_le_bytes());
    bytes[16..].to_vec()
}

fn failed(errno: Errno) -> Answer {
    Answer::Reply(fuse::error(Unique(UNIQUE), errno).to_vec())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn small(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

const KERNEL_FLAGS: u32 = 0xFFFF_FFFF;

#[test]
fn init_agrees_on_what_both_can() {
    let mut connection = connection();
    // Linux 6.18: 7.45 with everything, and its 44 bytes of unused fields.
    let bytes = request(26, 0, &[7, 45, 131_072, KERNEL_FLAGS, 0xFFFF_FFFF], &[0; 44]);
    let Answer::Started(reply, session) = connection.answer(&parse(&bytes).unwrap()) else {
        panic!()
    };
    assert_eq!(reply.len(), 16 + 64);
    let out = &reply[16..];
    assert_eq!((small(out, 0), small(out, 4), small(out, 8)), (7, 40, 131_072));
    assert_eq!(small(out, 12), 1 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 30);
    assert_eq!(
        out[16..20],
        [0, 1, 192, 0],
        "256 in the background, slower from 192 on"
    );
    assert_eq!(small(out, 20), MAX_IO);
    assert_eq!(out[28..30], [0, 1], "256 pages");
    assert_eq!(small(out, 32), 1 << 7, "resend");
    assert_eq!(session.minor, 40);
    assert!(session.can_resend());
    assert_eq!(connection.session(), Some(session));

    let kept = serde_json::to_string(&session).unwrap();
    let resumed = Connection::resumed(SIZE, false, serde_json::from_str(&kept).unwrap());
    assert_eq!(resumed.session(), Some(session));
}

#[test]
fn init_with_older_kernels() {
    // Linux 5.4: 7.31, no second half of flags.
    let Answer::Started(_, session) = answer(&request(26, 0, &[7, 31, 0, 0x03FF_FFFF], &[])) else {
        panic!()
    };
    assert_eq!(session.minor, 31);
    assert_eq!(session.flags & (RESEND | INIT_EXT), 0);
    assert!(!session.can_resend());

    let Answer::Refused(reply, refusal) = answer(&request(26, 0, &[7, 22, 0, 0], &[])) else {
        panic!()
    };
    assert_eq!(reply, fuse::error(Unique(UNIQUE), Errno::PROTO));
    assert_eq!(refusal, RefusedInit { major: 7, minor: 22 });

    let newer = body(answer(&request(26, 0, &[8, 0, 0, 0], &[])));
    assert_eq!(
        (newer.len(), small(&newer, 0)),
        (64, 7),
        "the kernel comes again with 7"
    );
}

#[test]
fn init_flags_cut_off() {
    let cut = request(26, 0, &[7, 45, 0, KERNEL_FLAGS], &[]);
    assert_eq!(parse(&cut), Err(FuseError::Arguments { opcode: 26 }));
}

#[test]
fn finds_the_one_file() {
    let entry = body(answer(&request(1, ROOT, &[], b"volume\0")));
    assert_eq!(entry.len(), 128);
    assert_eq!(
        (number(&entry, 0), number(&entry, 40), number(&entry, 48)),
        (FILE_NODE, FILE_NODE, SIZE)
    );
    assert_eq!(small(&entry, 40 + 60), 0o100_600);
    assert_eq!(answer(&request(1, ROOT, &[], b"volumes\0")), failed(Errno::NOENT));
    assert_eq!(
        answer(&request(1, FILE_NODE, &[], b"volume\0")),
        failed(Errno::NOENT)
    );
}

#[test]
fn tells_attributes() {
    let file = body(answer(&request(3, FILE_NODE, &[0; 4], &[])));
    assert_eq!(file.len(), 104);
    assert_eq!(
        (number(&file, 16), number(&file, 24), number(&file, 32)),
        (FILE_NODE, SIZE, SIZE / 512)
    );
    let root = body(answer(&request(3, ROOT, &[0; 4], &[])));
    assert_eq!((number(&root, 16), small(&root, 16 + 60)), (ROOT, 0o040_500));
    assert_eq!(answer(&request(3, 3, &[0; 4], &[])), failed(Errno::NOENT));

    let mut grown = connection();
    grown.set_size(2 * SIZE);
    assert_eq!(
        number(&body(answer_by(grown, &request(3, FILE_NODE, &[0; 4], &[]))), 24),
        2 * SIZE
    );
    let read_only = Connection::new(SIZE, true);
    let attr = body(answer_by(read_only, &request(3, FILE_NODE, &[0; 4], &[])));
    assert_eq!(small(&attr, 16 + 60), 0o100_400);
}

#[test]
fn changes_no_attributes_but_times() {
    let set = |valid: u32, size: u32| answer(&request(4, FILE_NODE, &[valid, 0, 0, 0, size, 0], &[0; 64]));
    assert_eq!(body(set(1 << 4 | 1 << 5, 0)).len(), 104);
    assert_eq!(body(set(1 << 3, 1 << 30)).len(), 104, "the size it has");
    for (valid, size) in [(1 << 3, 0), (1, 0), (2, 0), (4, 0)] {
        assert_eq!(set(valid, size), failed(Errno::PERM));
    }
}

#[test]
fn opens_for_direct_io() {
    let open = body(answer(&request(14, FILE_NODE, &[2, 0], &[])));
    assert_eq!(open, [&[0; 8][..], &[0x41, 0, 0, 0, 0, 0, 0, 0]].concat());
    let read_only = || Connection::new(SIZE, true);
    assert_eq!(
        answer_by(read_only(), &request(14, FILE_NODE, &[2, 0], &[])),
        failed(Errno::ROFS)
    );
    assert_eq!(
        body(answer_by(read_only(), &request(14, FILE_NODE, &[0, 0], &[]))).len(),
        16
    );
}

#[test]
fn lists_the_directory_in_pieces() {
    let list = |offset: u32, size: u32| {
        let arguments = [0, 0, offset, 0, size, 0, 0, 0, 0, 0];
        body(answer(&request(28, ROOT, &arguments, &[])))
    };
    let whole = list(0, 4096);
    assert_eq!(whole.len(), 32 * 3);
    assert_eq!(whole[64 + 24..64 + 30], *b"volume");
    assert_eq!(
        (number(&whole, 64), number(&whole, 72), small(&whole, 64 + 20)),
        (FILE_NODE, 3, 8)
    );
    assert_eq!(list(0, 32), whole[..32]);
    assert_eq!(list(1, 64 + 31), whole[32..]);
    assert_eq!(list(3, 4096), [0u8; 0]);
    assert_eq!(list(0, 31), [0u8; 0]);
}

#[test]
fn tells_the_block_size_that_becomes_the_discard_granularity() {
    let statfs = body(answer(&request(17, ROOT, &[], &[])));
    assert_eq!(
        (statfs.len(), number(&statfs, 0), small(&statfs, 40)),
        (80, SIZE / 4096, 4096)
    );
}

fn read(offset: u64, size: u32) -> Vec<u8> {
    request(
        15,
        FILE_NODE,
        &[
            0,
            0,
            (offset & 0xFFFF_FFFF) as u32,
            (offset >> 32) as u32,
            size,
            0,
            0,
            0,
            0,
            0,
        ],
        &[],
    )
}

fn write(offset: u64, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    let offset = [(offset & 0xFFFF_FFFF) as u32, (offset >> 32) as u32];
    request(
        16,
        FILE_NODE,
        &[0, 0, offset[0], offset[1], size, 0, 0, 0, 0, 0],
        data,
    )
}

#[test]
fn reads_end_at_the_end() {
    let unique = Unique(UNIQUE);
    let data = |offset, len| Answer::Data(Data::Read { unique, offset, len });
    assert_eq!(answer(&read(4096, MAX_IO)), data(4096, MAX_IO));
    assert_eq!(answer(&read(SIZE - 4096, 8192)), data(SIZE - 4096, 4096));
    for (offset, size) in [(SIZE, 4096), (u64::MAX, 4096), (0, 0)] {
        assert_eq!(body(answer(&read(offset, size))), [0u8; 0]);
    }
    assert_eq!(answer(&read(0, MAX_IO + 1)), failed(Errno::INVAL));
    assert_eq!(answer(&request(15, ROOT, &[0; 10], &[])), failed(Errno::INVAL));
}

#[test]
fn writes_say_where_their_data_is() {
    let bytes = write(8192, b"some data");
    let Answer::Data(Data::Write {
        unique,
        offset,
        payload,
    }) = answer(&bytes)
    else {
        panic!()
    };
    assert_eq!((unique, offset), (Unique(UNIQUE), 8192));
    assert_eq!(bytes[payload], *b"some data");
    assert_eq!(answer(&write(SIZE - 4, b"12345")), failed(Errno::NOSPC));
    assert_eq!(answer(&write(u64::MAX, b"1")), failed(Errno::NOSPC));
    assert_eq!(
        answer(&write(0, &vec![0; MAX_IO as usize + 1])),
        failed(Errno::INVAL)
    );
    assert_eq!(
        answer_by(Connection::new(SIZE, true), &bytes),
        failed(Errno::ROFS)
    );
    let mut cut = write(0, b"12345");
    cut.pop();
    cut[0] -= 1;
    assert_eq!(parse(&cut), Err(FuseError::Arguments { opcode: 16 }));
}

#[test]
fn fallocate_discards_and_zeroes() {
    let unique = Unique(UNIQUE);
    let allocate = |offset: u64, length: u64, mode: u32| {
        let halves = |number: u64| [(number & 0xFFFF_FFFF) as u32, (number >> 32) as u32];
        let ([o1, o2], [l1, l2]) = (halves(offset), halves(length));
        request(43, FILE_NODE, &[0, 0, o1, o2, l1, l2, mode, 0], &[])
    };
    let (offset, len) = (4096, 8192);
    let discard = Answer::Data(Data::Discard { unique, offset, len });
    let zero = Answer::Data(Data::Zero { unique, offset, len });
    assert_eq!(answer(&allocate(4096, 8192, 3)), discard);
    assert_eq!(answer(&allocate(4096, 8192, 0x11)), zero);
    assert_eq!(answer(&allocate(4096, 8192, 0x10)), zero);
    let to_end = Answer::Data(Data::Discard {
        unique,
        offset,
        len: SIZE - 4096,
    });
    assert_eq!(answer(&allocate(4096, u64::MAX, 3)), to_end, "cut at the end");
    assert_eq!(body(answer(&allocate(SIZE, 4096, 3))), [0u8; 0]);
    assert_eq!(answer(&allocate(4096, SIZE, 0x10)), failed(Errno::NOSPC));
    for mode in [0, 1, 2, 8, 0x20, 0x40] {
        assert_eq!(
            answer(&allocate(4096, 8192, mode)),
            failed(Errno::OPNOTSUPP),
            "{mode:#x}"
        );
    }
    let read_only = Connection::new(SIZE, true);
    assert_eq!(
        answer_by(read_only, &allocate(4096, 8192, 3)),
        failed(Errno::ROFS)
    );
}

#[test]
fn the_rest() {
    let flush = Answer::Data(Data::Flush {
        unique: Unique(UNIQUE),
    });
    assert_eq!(answer(&request(20, FILE_NODE, &[0; 4], &[])), flush);
    for forget in [2, 42] {
        assert_eq!(answer(&request(forget, ROOT, &[1, 0], &[])), Answer::Nothing);
    }
    for closed in [18, 29, 30, 38] {
        assert_eq!(body(answer(&request(closed, ROOT, &[0; 6], &[]))), [0u8; 0]);
    }
    assert_eq!(body(answer(&request(27, ROOT, &[0; 2], &[]))).len(), 16);
    for change in [6, 8, 9, 10, 11, 12, 13, 35, 45, 51] {
        assert_eq!(
            answer(&request(change, ROOT, &[], b"name\0")),
            failed(Errno::PERM)
        );
    }
    // Among them FLUSH, ACCESS, GETXATTR, LISTXATTR, INTERRUPT, LSEEK, STATX and what is not known yet.
    for unknown in [25, 34, 22, 23, 36, 46, 52, 0, 4096, u32::MAX] {
        assert_eq!(
            answer(&request(unknown, FILE_NODE, &[0; 4], &[])),
            failed(Errno::NOSYS)
        );
    }
}

#[test]
fn a_resent_request_is_answered_under_the_number_it_came_with() {
    let mut bytes = read(0, 4096);
    bytes[8..16].copy_from_slice(&(UNIQUE | RESENT).to_le_bytes());
    let session = Session {
        minor: 40,
        flags: RESEND,
    };
    let Answer::Data(Data::Read { unique, .. }) =
        answer_by(Connection::resumed(SIZE, false, session), &bytes)
    else {
        panic!()
    };
    assert!(unique.is_resent());
    assert_eq!(
        fuse::read_header(unique, 4096)[8..],
        (UNIQUE | RESENT).to_le_bytes()
    );
}

#[test]
fn encodes_replies_and_notifications() {
    let unique = Unique(UNIQUE);
    let header = |length: u8, error: i32, unique: u64| {
        [
            &[length, 0, 0, 0][..],
            &error.to_le_bytes(),
            &unique.to_le_bytes(),
        ]
        .concat()
    };
    assert_eq!(fuse::done(unique)[..], header(16, 0, UNIQUE));
    assert_eq!(fuse::error(unique, Errno::IO)[..], header(16, -5, UNIQUE));
    assert_eq!(
        fuse::written(unique, 7)[..],
        [header(24, 0, UNIQUE), vec![7, 0, 0, 0, 0, 0, 0, 0]].concat()
    );
    assert_eq!(fuse::read_header(unique, 100)[..], header(116, 0, UNIQUE));
    assert_eq!(fuse::notify_resend()[..], header(16, 7, 0));
    let changed = [
        header(40, 2, 0),
        vec![2, 0, 0, 0, 0, 0, 0, 0],
        vec![0xFF; 8],
        vec![0; 8],
    ]
    .concat();
    assert_eq!(fuse::notify_attributes()[..], changed);
    assert_eq!([0, -3, 512].map(Errno::from_raw), [Errno::IO; 3]);
    assert_eq!(Errno::from_raw(28), Errno::NOSPC);
    assert_eq!(
        fuse::mount_options(9),
        "fd=9,rootmode=40000,user_id=0,group_id=0,max_read=1048576"
    );
}

#[test]
fn lengths_that_lie_are_refused() {
    assert_eq!(parse(&[0; 39]), Err(FuseError::Short(39)));
    let mut bytes = request(17, ROOT, &[], &[]);
    bytes[0] = 41;
    assert_eq!(
        parse(&bytes),
        Err(FuseError::Length {
            announced: 41,
            read: 40
        })
    );
    assert_eq!(
        parse(&request(15, FILE_NODE, &[0; 9], &[])),
        Err(FuseError::Arguments { opcode: 15 })
    );
    assert_eq!(
        parse(&request(1, ROOT, &[], b"volume")),
        Err(FuseError::Arguments { opcode: 1 })
    );
}

proptest! {
    #[test]
    fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err() || bytes.len() >= 40);
    }

    #[test]
    fn any_request_is_answered_within_the_volume(
        opcode in 0..60u32,
        node in 0..4u64,
        body in prop::collection::vec(any::<u8>(), 0..120),
        sane in any::<bool>(),
        read_only in any::<bool>(),
    ) {
        let mut body = body;
        if sane && body.len() >= 40 {
            // A handle, an offset of 31 bits and a size of 16.
            body[..16].fill(0);
            body[8..12].copy_from_slice(&0x3FFF_F000u32.to_le_bytes());
            body[18..24].fill(0);
        }
        let bytes = request(opcode, node, &[], &body);
        let Ok(request) = parse(&bytes) else { return Ok(()) };
        let write = matches!(request.operation, Operation::Write { .. });
        let mut connection = Connection::new(SIZE, read_only);
        let within = |offset: u64, len: u64| len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE);
        match connection.answer(&request) {
            Answer::Data(Data::Read { offset, len, .. }) => prop_assert!(within(offset, u64::from(len))),
            Answer::Data(Data::Write { offset, payload, .. }) => {
                prop_assert!(write && !read_only);
                prop_assert!(within(offset, payload.len() as u64));
                prop_assert!(bytes.get(payload).is_some());
            }
            Answer::Data(Data::Discard { offset, len, .. } | Data::Zero { offset, len, .. }) => {
                prop_assert!(!read_only && within(offset, len));
            }
            Answer::Data(Data::Flush { .. }) => {}
            Answer::Nothing => prop_assert!(matches!(request.operation, Operation::Forget)),
            Answer::Reply(reply) | Answer::Started(reply, _) | Answer::Refused(reply, _) => {
                prop_assert_eq!(small(&reply, 0) as usize, reply.len());
                prop_assert_eq!(number(&reply, 8), UNIQUE);
                prop_assert!(small(&reply, 4).cast_signed() <= 0);
            }
        }
    }
}
