//! Handshakes byte by byte, against the sequences of the protocol's document.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use proptest::prelude::*;
use stor_transport::nbd::{
    Abort, ContextId, Export, ExportError, Handshake, MAX_OPTION, MAX_OPTIONS, MAX_SKIPPED_OPTION, NbdError,
    Negotiated, Progress,
};

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const REPLY_MAGIC: [u8; 8] = [0, 3, 0xE8, 0x89, 4, 0x55, 0x65, 0xA9];
const SIZE: u64 = 1 << 30;
/// `HAS_FLAGS | FLUSH | FUA | TRIM | WRITE_ZEROES`.
const FLAGS: u16 = 0b110_1101;
const DF: u16 = 1 << 7;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_POLICY: u32 = (1 << 31) + 2;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;

fn export() -> Export {
    Export::new("vol1", SIZE)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn counted(string: &[u8]) -> Vec<u8> {
    [&u32::try_from(string.len()).unwrap().to_be_bytes(), string].concat()
}

fn go(number: u32, name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    option(number, &data)
}

fn contexts(number: u32, name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query.as_bytes())));
    option(number, &data)
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [
        &REPLY_MAGIC[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length,
        data,
    ]
    .concat()
}

/// The option and kind of each reply, without its data.
fn reply_kinds(mut bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], REPLY_MAGIC);
        let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        kinds.push((field(8), field(12)));
        bytes = &bytes[20 + field(16) as usize..];
    }
    kinds
}

/// All after the greeting and the client's flags.
fn haggle(export: &Export, options: &[Vec<u8>]) -> (Vec<u8>, Result<Progress, NbdError>) {
    let input = [&3u32.to_be_bytes()[..], &options.concat()].concat();
    let mut out = Vec::new();
    let mut handshake = Handshake::new(export).unwrap();
    let result = handshake.feed(&input, &mut out);
    assert!(out.starts_with(GREETING));
    if let Ok((consumed, _)) = result {
        assert_eq!(consumed, input.len());
    }
    (
        out.split_off(GREETING.len()),
        result.map(|(_, progress)| progress),
    )
}

fn kinds(options: &[Vec<u8>]) -> Vec<(u32, u32)> {
    reply_kinds(&haggle(&export(), options).0)
}

fn negotiated(structured: bool, context: bool) -> Progress {
    Progress::Ready(Negotiated {
        structured,
        meta_base_allocation: context.then_some(ContextId(1)),
        no_zeroes: true,
    })
}

#[test]
fn greets_before_the_client_says_anything() {
    let mut out = Vec::new();
    let mut handshake = Handshake::new(&export()).unwrap();
    assert_eq!(handshake.feed(&[], &mut out), Ok((0, Progress::NeedMore)));
    assert_eq!(out, GREETING);
    assert_eq!(handshake.feed(&[], &mut out), Ok((0, Progress::NeedMore)));
    assert_eq!(out, GREETING, "once");
}

#[test]
fn go_tells_export_and_block_sizes_and_leaves_the_first_request() {
    let mut input = [&3u32.to_be_bytes()[..], &go(GO, "vol1", &[3])].concat();
    let handshake_bytes = input.len();
    input.extend(b"request");
    let mut out = Vec::new();
    let mut handshake = Handshake::new(&export()).unwrap();
    assert_eq!(
        handshake.feed(&input, &mut out),
        Ok((handshake_bytes, negotiated(false, false)))
    );
    let expected = [
        GREETING.to_vec(),
        reply(
            GO,
            3,
            &[&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat(),
        ),
        reply(GO, 3, &[0, 3, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]),
        reply(GO, ACK, &[]),
    ];
    assert_eq!(out, expected.concat());
    assert_eq!(handshake.feed(b"request", &mut out), Err(NbdError::Over));
}

#[test]
fn go_tells_name_and_description_when_asked() {
    let export = Export {
        description: "two replicas".into(),
        ..export()
    };
    let (out, progress) = haggle(&export, &[go(GO, "", &[1, 2, 77])]);
    assert_eq!(progress, Ok(negotiated(false, false)));
    let name = reply(GO, 3, b"\x00\x01vol1");
    let description = reply(GO, 3, b"\x00\x02two replicas");
    for told in [name, description] {
        assert!(out.windows(told.len()).any(|window| window == told));
    }
}

#[test]
fn flags_say_what_the_export_can_do() {
    let flags = |export: &Export, options: &[Vec<u8>]| {
        let (out, _) = haggle(export, options);
        // The reply's header, the information's number and the size come before.
        let at = out.len() - (20 + 14) - 20 - 2;
        u16::from_be_bytes(out[at..at + 2].try_into().unwrap())
    };
    let go = go(GO, "", &[]);
    assert_eq!(flags(&export(), std::slice::from_ref(&go)), FLAGS);
    let structured = [option(STRUCTURED_REPLY, &[]), go.clone()];
    assert_eq!(flags(&export(), &structured), FLAGS | DF);
    let read_only = Export {
        read_only: true,
        fast_zero: true,
        ..export()
    };
    assert_eq!(flags(&read_only, std::slice::from_ref(&go)), 0b1111);
    let every = Export {
        multi_conn: true,
        fast_zero: true,
        ..export()
    };
    assert_eq!(flags(&every, std::slice::from_ref(&go)), FLAGS | 1 << 8 | 1 << 11);
    let none = Export {
        trim: false,
        write_zeroes: false,
        fast_zero: true,
        ..export()
    };
    assert_eq!(flags(&none, std::slice::from_ref(&go)), 0b1101);
}

#[test]
fn export_name_has_its_own_reply() {
    let size_and_flags = [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
    for name in [&b"vol1"[..], b""] {
        assert_eq!(
            haggle(&export(), &[option(EXPORT_NAME, name)]),
            (size_and_flags.clone(), Ok(negotiated(false, false)))
        );
    }
    for client_flags in [0u32, 1] {
        let input = [&client_flags.to_be_bytes()[..], &option(EXPORT_NAME, b"vol1")].concat();
        let mut out = Vec::new();
        let (_, progress) = Handshake::new(&export()).unwrap().feed(&input, &mut out).unwrap();
        assert_eq!(out, [GREETING, &size_and_flags, &[0; 124]].concat());
        let expected = Negotiated {
            structured: false,
            meta_base_allocation: None,
            no_zeroes: false,
        };
        assert_eq!(progress, Progress::Ready(expected));
    }
    let unknown = haggle(&export(), &[option(EXPORT_NAME, b"vol2")]);
    assert_eq!(unknown, (vec![], Ok(Progress::Closed(Abort::UnknownExport))));
}

#[test]
fn list_names_the_export() {
    let (out, progress) = haggle(&export(), &[option(LIST, &[]), option(ABORT, b"ignored")]);
    let expected = [
        reply(LIST, 2, b"\x00\x00\x00\x04vol1"),
        reply(LIST, ACK, &[]),
        reply(ABORT, ACK, &[]),
    ];
    assert_eq!(out, expected.concat());
    assert_eq!(progress, Ok(Progress::Closed(Abort::ByClient)));
}

#[test]
fn contexts_are_listed_and_selected() {
    let structured = option(STRUCTURED_REPLY, &[]);
    let context = |number, id: u32| reply(number, 4, &[&id.to_be_bytes()[..], b"base:allocation"].concat());
    let list = |queries: &[&str]| {
        let (out, _) = haggle(
            &export(),
            &[structured.clone(), contexts(LIST_META_CONTEXT, "vol1", queries)],
        );
        out[20..].to_vec()
    };
    let listed = [context(LIST_META_CONTEXT, 0), reply(LIST_META_CONTEXT, ACK, &[])].concat();
    for queries in [
        &[][..],
        &["base:"],
        &["base:allocation"],
        &["qemu:dirty-bitmap:", "base:"],
    ] {
        assert_eq!(list(queries), listed, "{queries:?}");
    }
    assert_eq!(
        list(&["x-stor:", "base:other"]),
        reply(LIST_META_CONTEXT, ACK, &[])
    );

    let select = |queries: &[&str]| {
        let options = [
            structured.clone(),
            contexts(SET_META_CONTEXT, "", queries),
            go(GO, "vol1", &[]),
        ];
        let (out, progress) = haggle(&export(), &options);
        (
            reply_kinds(&out)
                .iter()
                .filter(|kind| **kind == (SET_META_CONTEXT, 4))
                .count(),
            progress,
        )
    };
    assert_eq!(
        select(&["base:allocation", "base:allocation"]),
        (1, Ok(negotiated(true, true)))
    );
    assert_eq!(
        select(&["base:"]),
        (0, Ok(negotiated(true, false))),
        "the wildcard selects nothing"
    );
    assert_eq!(select(&[]), (0, Ok(negotiated(true, false))));
}

#[test]
fn a_failed_selection_drops_the_one_before() {
    let options = |second: Vec<u8>| {
        [
            option(STRUCTURED_REPLY, &[]),
            contexts(SET_META_CONTEXT, "", &["base:allocation"]),
            second,
            go(GO, "", &[]),
        ]
    };
    for second in [
        option(SET_META_CONTEXT, b"junk"),
        contexts(SET_META_CONTEXT, "vol2", &["base:allocation"]),
        option(SET_META_CONTEXT, &vec![0; MAX_OPTION + 1]),
    ] {
        assert_eq!(haggle(&export(), &options(second)).1, Ok(negotiated(true, false)));
    }
}

#[test]
fn refuses_and_stays_in_step() {
    let (structured, list) = (option(STRUCTURED_REPLY, &[]), option(LIST, &[]));
    let cases = [
        (option(STARTTLS, &[]), ERR_POLICY),
        (option(STARTTLS, b"x"), ERR_INVALID),
        (option(EXTENDED_HEADERS, &[]), ERR_UNSUP),
        (option(4, b"name"), ERR_UNSUP),
        (option(0xFFFF_FFFF, b"name"), ERR_UNSUP),
        (option(LIST, b"x"), ERR_INVALID),
        (option(STRUCTURED_REPLY, b"x"), ERR_INVALID),
        (go(INFO, "vol2", &[]), ERR_UNKNOWN),
        (go(GO, "vol2", &[]), ERR_UNKNOWN),
        (go(GO, "vol1\0", &[]), ERR_UNKNOWN),
        (option(GO, &[]), ERR_INVALID),
        (option(GO, &[0, 0, 0, 9, 0, 0]), ERR_INVALID),
        (option(GO, &[0, 0, 0, 0, 0, 1]), ERR_INVALID),
        (option(GO, &[0, 0, 0, 0, 0, 0, 0]), ERR_INVALID),
        (option(GO, &[0xFF; 4096]), ERR_INVALID),
        (option(GO, &[0; 4097]), ERR_TOO_BIG),
        (option(99, &vec![0; 70_000]), ERR_TOO_BIG),
        (contexts(SET_META_CONTEXT, "vol2", &[]), ERR_UNKNOWN),
        (
            option(SET_META_CONTEXT, &[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
            ERR_INVALID,
        ),
        (
            option(LIST_META_CONTEXT, &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ERR_INVALID,
        ),
    ];
    for (bad, error) in cases {
        let number = u32::from_be_bytes(bad[8..12].try_into().unwrap());
        let kinds = kinds(&[structured.clone(), bad, list.clone()]);
        assert_eq!(
            kinds,
            [(STRUCTURED_REPLY, ACK), (number, error), (LIST, 2), (LIST, ACK)]
        );
    }
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let kinds = kinds(&[contexts(number, "vol1", &["base:allocation"]), list.clone()]);
        assert_eq!(
            kinds,
            [(number, ERR_INVALID), (LIST, 2), (LIST, ACK)],
            "needs structured replies"
        );
    }
}

#[test]
fn info_does_not_start() {
    let (out, progress) = haggle(&export(), &[go(INFO, "vol1", &[0, 3])]);
    assert_eq!(reply_kinds(&out), [(INFO, 3), (INFO, 3), (INFO, ACK)]);
    assert_eq!(progress, Ok(Progress::NeedMore));
}

#[test]
fn closes_on_what_is_no_handshake() {
    let feed = |input: &[u8]| {
        let mut handshake = Handshake::new(&export()).unwrap();
        let error = handshake.feed(input, &mut Vec::new()).unwrap_err();
        assert_eq!(handshake.feed(&[], &mut Vec::new()), Err(NbdError::Over));
        error
    };
    assert_eq!(feed(&7u32.to_be_bytes()), NbdError::ClientFlags(7));
    assert_eq!(feed(b"GET "), NbdError::ClientFlags(0x4745_5420));
    assert_eq!(
        feed(b"\0\0\0\x01GET / HT"),
        NbdError::OptionMagic(u64::from_be_bytes(*b"GET / HT"))
    );
    assert_eq!(
        feed(&[&[0; 4][..], &option(GO, &[])].concat()),
        NbdError::NotFixedNewstyle(GO)
    );
    let mut long = option(LIST, &[]);
    long[12..16].copy_from_slice(&(MAX_SKIPPED_OPTION + 1).to_be_bytes());
    let length = NbdError::OptionLength {
        option: LIST,
        length: MAX_SKIPPED_OPTION + 1,
    };
    assert_eq!(feed(&[&[0, 0, 0, 1][..], &long].concat()), length);
    let endless = [
        &[0, 0, 0, 1][..],
        &option(LIST, &[]).repeat(usize::from(MAX_OPTIONS) + 1),
    ]
    .concat();
    assert_eq!(feed(&endless), NbdError::TooManyOptions);
    let endless = [&[0, 0, 0, 1][..], &option(99, &[0; MAX_OPTION + 1]).repeat(257)].concat();
    assert_eq!(feed(&endless), NbdError::TooManyOptions);
}

#[test]
fn long_export_name_and_abort_still_end_the_handshake() {
    let long = vec![b'a'; MAX_OPTION + 1];
    assert_eq!(
        haggle(&export(), &[option(EXPORT_NAME, &long)]),
        (vec![], Ok(Progress::Closed(Abort::UnknownExport)))
    );
    assert_eq!(
        haggle(&export(), &[option(ABORT, &long)]),
        (reply(ABORT, ACK, &[]), Ok(Progress::Closed(Abort::ByClient)))
    );
}

#[test]
fn exports_that_break_the_protocol_are_not_served() {
    let sizes = |min, preferred, max| {
        let export = Export {
            min_block: min,
            preferred_block: preferred,
            max_block: max,
            size: 0,
            ..export()
        };
        export.check().err()
    };
    for (min, preferred, max) in [
        (0, 4096, 1 << 20),
        (3, 4096, 1 << 20),
        (1 << 17, 1 << 17, 1 << 20),
        (4096, 512, 1 << 20),
        (1, 256, 512),
    ] {
        assert_eq!(
            sizes(min, preferred, max),
            Some(ExportError::BlockSizes { min, preferred, max })
        );
    }
    assert_eq!(
        sizes(512, 4096, 2048),
        Some(ExportError::BlockSizes {
            min: 512,
            preferred: 4096,
            max: 2048
        })
    );
    assert_eq!(sizes(1, 512, 512), None);
    let odd = Export::new("vol1", 4097);
    assert_eq!(
        odd.check(),
        Err(ExportError::Size {
            size: 4097,
            min_block: 4096
        })
    );
    assert_eq!(
        Export::new("n".repeat(257), 0).check(),
        Err(ExportError::Name(257))
    );
    assert!(Handshake::new(&odd).is_err());
}

/// Feeds in pieces as a socket would: what is not consumed stays in front of the next piece.
fn in_pieces(
    export: &Export,
    input: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Vec<u8>, Result<Progress, NbdError>) {
    let mut handshake = Handshake::new(export).unwrap();
    let (mut out, mut pending, mut rest) = (Vec::new(), Vec::new(), input);
    let mut cuts = cuts.iter().copied().chain([usize::MAX]);
    loop {
        match handshake.feed(&pending, &mut out) {
            Ok((consumed, Progress::NeedMore)) => {
                pending.drain(..consumed);
            }
            Ok((consumed, progress)) => {
                pending.drain(..consumed);
                pending.extend(rest);
                return (out, pending, Ok(progress));
            }
            Err(error) => return (out, vec![], Err(error)),
        }
        if rest.is_empty() {
            return (out, pending, Ok(Progress::NeedMore));
        }
        let (piece, after) = rest.split_at(cuts.next().unwrap_or(usize::MAX).clamp(1, rest.len()));
        pending.extend(piece);
        rest = after;
    }
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = || prop_oneof![Just(""), Just("vol1"), Just("vol2")];
    let query = prop_oneof![Just("base:"), Just("base:allocation"), Just("x-a:b"), Just("")];
    prop_oneof![
        (0..13u32, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, data)| option(number, &data)),
        (6..8u32, name(), prop::collection::vec(0..5u16, 0..4))
            .prop_map(|(o, name, infos)| go(o, name, &infos)),
        (9..11u32, name(), prop::collection::vec(query, 0..4))
            .prop_map(|(o, name, queries)| contexts(o, name, &queries)),
        Just(option(STRUCTURED_REPLY, &[])),
        (4090..4200usize).prop_map(|length| option(LIST, &vec![1; length])),
    ]
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same(
        input in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(1..20usize, 0..60),
    ) {
        prop_assert_eq!(in_pieces(&export(), &input, &cuts), in_pieces(&export(), &input, &[]));
    }

    #[test]
    fn options_in_any_pieces_give_the_same(
        client_flags in 0..4u8,
        options in prop::collection::vec(any_option(), 0..8),
        cut_off in 0..30usize,
        cuts in prop::collection::vec(1..300usize, 0..100),
    ) {
        let mut input = [&[0, 0, 0, client_flags][..], &options.concat()].concat();
        input.truncate(input.len() - cut_off.min(input.len()));
        let whole = in_pieces(&export(), &input, &[]);
        prop_assert!(whole.1.len() <= 16 + MAX_OPTION || whole.2 != Ok(Progress::NeedMore));
        prop_assert_eq!(in_pieces(&export(), &input, &cuts), whole);
    }
}
