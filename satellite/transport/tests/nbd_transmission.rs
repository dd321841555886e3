//! Requests and replies byte by byte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use proptest::prelude::*;
use stor_transport::nbd::{
    self, Command, ContextId, Cookie, ErrorCode, Export, Extent, ExtentState, NbdError, Negotiated, Refusal,
    Request, parse_request,
};

const SIMPLE: Negotiated = Negotiated {
    structured: false,
    meta_base_allocation: None,
    no_zeroes: true,
};
const FULL: Negotiated = Negotiated {
    structured: true,
    meta_base_allocation: Some(ContextId(1)),
    no_zeroes: true,
};
const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);
const SIZE: u64 = 1 << 30;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

fn wire(flags: u16, command: u16, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(COOKIE.0.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.try_into().unwrap()
}

fn request(flags: u16, command: u16, offset: u64, length: u32) -> Request {
    parse_request(&wire(flags, command, offset, length)).unwrap()
}

#[test]
fn reads_every_command() {
    let cases = [
        (0, 0, Command::Read { df: false }),
        (DF, 0, Command::Read { df: true }),
        (0, 1, Command::Write),
        (0, 2, Command::Disconnect),
        (0, 3, Command::Flush),
        (0, 4, Command::Trim),
        (0, 5, Command::Cache),
        (
            0,
            6,
            Command::WriteZeroes {
                no_hole: false,
                fast: false,
            },
        ),
        (
            NO_HOLE,
            6,
            Command::WriteZeroes {
                no_hole: true,
                fast: false,
            },
        ),
        (
            FAST_ZERO,
            6,
            Command::WriteZeroes {
                no_hole: false,
                fast: true,
            },
        ),
        (0, 7, Command::BlockStatus { req_one: false }),
        (REQ_ONE, 7, Command::BlockStatus { req_one: true }),
        (0, 8, Command::Unknown(8)),
        (0, 0xFFFF, Command::Unknown(0xFFFF)),
    ];
    for (flags, number, command) in cases {
        for fua in [false, true] {
            let request = request(flags | u16::from(fua), number, 1 << 40, 0x1234_5678);
            let expected = Request {
                cookie: COOKIE,
                command,
                fua,
                offset: 1 << 40,
                length: 0x1234_5678,
                stray_flags: 0,
            };
            assert_eq!(request, expected);
            let payload = if number == 1 { 0x1234_5678 } else { 0 };
            assert_eq!(request.payload_len(), payload);
        }
    }
}

#[test]
fn a_wrong_magic_number_is_fatal() {
    let mut bytes = wire(0, 0, 0, 4096);
    bytes[3] = 0x14;
    assert_eq!(parse_request(&bytes), Err(NbdError::RequestMagic(0x2560_9514)));
}

#[test]
fn what_may_be_done_is_let_through() {
    let export = Export {
        fast_zero: true,
        ..Export::new("vol1", SIZE)
    };
    let last = SIZE - 4096;
    for request in [
        request(FUA, 0, 0, 4096),
        request(DF, 0, last, 4096),
        request(FUA, 1, last, 4096),
        request(0, 1, 0, 32 << 20),
        request(0, 2, 7, 7),
        request(FUA, 3, 7, 7),
        request(FUA, 4, 0, 512 << 20),
        request(NO_HOLE | FAST_ZERO, 6, 0, 512 << 20),
        request(REQ_ONE, 7, 0, 1 << 30),
    ] {
        assert_eq!(request.check(&export, &FULL), Ok(()), "{request:?}");
    }
}

#[test]
fn what_may_not_be_done_has_the_error_the_protocol_wants() {
    use ErrorCode::{Invalid, NoSpace, NotPermitted, Overflow};
    let export = Export::new("vol1", SIZE);
    let read_only = Export {
        read_only: true,
        ..export.clone()
    };
    let bare = Export {
        trim: false,
        write_zeroes: false,
        ..export.clone()
    };
    let cases = [
        (&export, request(0, 0, SIZE, 4096), Invalid),
        (&export, request(0, 0, SIZE - 4096, 8192), Invalid),
        (&export, request(0, 0, u64::MAX - 4095, 4096), Invalid),
        (&export, request(0, 0, u64::MAX, u32::MAX), Invalid),
        (&export, request(0, 0, 0, 0), Invalid),
        (&export, request(0, 0, 512, 4096), Invalid),
        (&export, request(0, 0, 0, 512), Invalid),
        (&export, request(0, 0, 0, (32 << 20) + 4096), Overflow),
        (&export, request(0, 1, SIZE, 4096), NoSpace),
        (&export, request(0, 1, u64::MAX, 4096), NoSpace),
        (&export, request(0, 1, 1, 4096), Invalid),
        (&export, request(0, 1, 0, 0), Invalid),
        (&export, request(0, 1, 0, (32 << 20) + 4096), Invalid),
        (&export, request(0, 4, SIZE, 4096), Invalid),
        (&export, request(0, 6, SIZE, 4096), NoSpace),
        (&export, request(0, 6, 0, 0), Invalid),
        (&export, request(FAST_ZERO, 6, 0, 4096), Invalid),
        (&export, request(0, 7, SIZE, 4096), Invalid),
        (&export, request(0, 5, 0, 4096), Invalid),
        (&export, request(0, 8, 0, 4096), Invalid),
        (&export, request(PAYLOAD_LEN, 0, 0, 4096), Invalid),
        (&export, request(REQ_ONE, 0, 0, 4096), Invalid),
        (&export, request(DF, 1, 0, 4096), Invalid),
        (&read_only, request(0, 1, 0, 4096), NotPermitted),
        (&read_only, request(0, 1, SIZE, 4096), NotPermitted),
        (&read_only, request(0, 4, 0, 4096), NotPermitted),
        (&read_only, request(0, 6, 0, 4096), NotPermitted),
        (&bare, request(0, 4, 0, 4096), Invalid),
        (&bare, request(0, 6, 0, 4096), Invalid),
    ];
    for (export, request, error) in cases {
        let refusal = request.check(export, &FULL).unwrap_err();
        assert_eq!(refusal.error, error, "{request:?}: {}", refusal.why);
    }
    for bad in [
        request(DF, 0, 0, 4096),
        request(0, 7, 0, 4096),
        request(0, 0, 0, 64 << 20),
    ] {
        assert_eq!(bad.check(&export, &SIMPLE).unwrap_err().error, Invalid, "{bad:?}");
    }
}

#[test]
fn replies_are_those_of_the_document() {
    let cookie = COOKIE.0.to_be_bytes();
    let simple = |error: u8| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, error][..], &cookie].concat();
    let chunk = |flags: u8, kind: [u8; 2], length: u8| {
        [
            &[0x66, 0x8E, 0x33, 0xEF, 0, flags][..],
            &kind,
            &cookie,
            &[0, 0, 0, length],
        ]
        .concat()
    };
    let offset = 0x0A00u64.to_be_bytes();

    assert_eq!(nbd::success(COOKIE)[..], simple(0));
    assert_eq!(nbd::simple(COOKIE, Some(ErrorCode::Shutdown))[..], simple(108));
    assert_eq!(nbd::none(COOKIE)[..], chunk(1, [0, 0], 0));
    let data = [chunk(0, [0, 1], 8 + 100), offset.to_vec()].concat();
    assert_eq!(nbd::read_data(COOKIE, false, 0x0A00, 100)[..], data);
    let hole = [chunk(1, [0, 2], 12), offset.to_vec(), vec![0, 0, 0x10, 0]].concat();
    assert_eq!(nbd::hole(COOKIE, true, 0x0A00, 4096)[..], hole);

    let refusal = Refusal {
        error: ErrorCode::NoSpace,
        why: "full",
    };
    let mut out = Vec::new();
    nbd::refusal(&SIMPLE, COOKIE, refusal, &mut out);
    assert_eq!(out, simple(28));
    out.clear();
    nbd::refusal(&FULL, COOKIE, refusal, &mut out);
    assert_eq!(
        out,
        [chunk(1, [0x80, 1], 10), vec![0, 0, 0, 28, 0, 4], b"full".to_vec()].concat()
    );
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let mut out = Vec::new();
    nbd::failure(&FULL, COOKIE, ErrorCode::Io, &"ä".repeat(1000), &mut out);
    let message = str::from_utf8(&out[26..]).unwrap();
    assert_eq!(message, "ä".repeat(512));
    assert_eq!(out[16..20], 1030u32.to_be_bytes());
    assert_eq!(out[24..26], 1024u16.to_be_bytes());
}

/// The descriptors of a reply to `BLOCK_STATUS`.
fn status(request: &Request, extents: &[(u64, ExtentState)]) -> Vec<(u32, u32)> {
    let mut out = Vec::new();
    let extents = extents.iter().map(|(length, state)| Extent {
        length: *length,
        state: *state,
    });
    nbd::block_status(ContextId(1), request, extents, &mut out);
    assert_eq!(out[..8], [0x66, 0x8E, 0x33, 0xEF, 0, 1, 0, 5]);
    assert_eq!(out[8..16], COOKIE.0.to_be_bytes());
    assert_eq!(
        u32::from_be_bytes(out[16..20].try_into().unwrap()) as usize,
        out.len() - 20
    );
    assert_eq!(out[20..24], [0, 0, 0, 1]);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    out[24..]
        .chunks(8)
        .map(|pair| (number(&pair[..4]), number(&pair[4..])))
        .collect()
}

#[test]
fn block_status_joins_and_cuts() {
    use ExtentState::{Data, Hole, Zero};
    let all = request(0, 7, 0, 1 << 20);
    let extents = [
        (4096, Data),
        (4096, Data),
        (8192, Hole),
        (0, Zero),
        (4096, Hole),
        (4096, Zero),
        (1 << 40, Data),
    ];
    let rest = (1 << 20) - 24576;
    assert_eq!(
        status(&all, &extents),
        [(8192, 0), (12288, 3), (4096, 2), (rest, 0)]
    );
    assert_eq!(status(&request(REQ_ONE, 7, 0, 1 << 20), &extents), [(8192, 0)]);
    assert_eq!(status(&request(REQ_ONE, 7, 0, 4096), &extents), [(4096, 0)]);
    assert_eq!(status(&all, &[]), [(1 << 20, 0)]);
    // Ends although its extents do not.
    let mut out = Vec::new();
    let endless = std::iter::repeat(Extent {
        length: 4096,
        state: Hole,
    });
    nbd::block_status(ContextId(1), &all, endless, &mut out);
    assert_eq!(out[24..], [0, 0x10, 0, 0, 0, 0, 0, 3]);
    let many: Vec<_> = (0..10_000)
        .map(|at| (4096, if at % 2 == 0 { Data } else { Hole }))
        .collect();
    assert_eq!(status(&request(0, 7, 0, 1 << 29), &many).len(), nbd::MAX_EXTENTS);
}

proptest! {
    #[test]
    fn any_request_is_judged(bytes in any::<[u8; 28]>(), magic in any::<bool>(), low_command in any::<bool>()) {
        let mut bytes = bytes;
        if magic {
            bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        }
        if low_command {
            bytes[6] = 0;
            bytes[7] %= 9;
        }
        let export = Export::new("vol1", SIZE);
        match parse_request(&bytes) {
            Err(error) => prop_assert!(!magic, "{error}"),
            Ok(request) => {
                let verdict = request.check(&export, &FULL);
                let ranged = !matches!(request.command, Command::Flush | Command::Disconnect);
                if verdict.is_ok() && ranged {
                    prop_assert!(request.offset + u64::from(request.length) <= SIZE);
                    prop_assert_eq!((request.offset % 4096, request.length % 4096), (0, 0));
                    prop_assert!(request.length > 0);
                }
            }
        }
    }

    #[test]
    fn block_status_never_exceeds_the_request(
        length in 1..u32::MAX,
        req_one in any::<bool>(),
        extents in prop::collection::vec((any::<u64>(), 0..3u8), 0..50),
    ) {
        let request = request(if req_one { REQ_ONE } else { 0 }, 7, 0, length);
        let extents: Vec<_> = extents
            .into_iter()
            .map(|(length, state)| {
                (length >> 30, [ExtentState::Data, ExtentState::Hole, ExtentState::Zero][usize::from(state)])
            })
            .collect();
        let descriptors = status(&request, &extents);
        prop_assert!(!descriptors.is_empty());
        prop_assert!(!req_one || descriptors.len() == 1);
        prop_assert!(descriptors.iter().all(|(length, _)| *length > 0));
        prop_assert!(descriptors.iter().map(|(length, _)| u64::from(*length)).sum::<u64>() <= u64::from(length));
    }
}
