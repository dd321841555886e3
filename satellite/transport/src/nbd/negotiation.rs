//! The options of the handshake: their numbers, their data and the replies to them.
//!
//! Says nothing of order or state; that is `handshake`.

use super::export::Export;

/// Longest option that is read, bytes of data. The longest a client has reason to send is an export name and a
/// few context queries. A longer one is read over and answered with `NBD_REP_ERR_TOO_BIG`.
pub const MAX_OPTION: usize = 4096;

/// Longest option that is read over, bytes of data; beyond it the connection is closed.
pub const MAX_SKIPPED_OPTION: u32 = 1 << 20;

/// Name of the one metadata context there is.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The id under which `base:allocation` is selected. Any would do; not zero, which lists use.
const BASE_ALLOCATION_ID: ContextId = ContextId(1);

/// Id of a metadata context on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextId(pub u32);

/// What both sides agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Reads are answered in structured replies, and only so.
    pub structured: bool,
    /// `BLOCK_STATUS` may be asked for, and is answered under this id.
    pub meta_base_allocation: Option<ContextId>,
    /// The 124 zeroes after `EXPORT_NAME` were left out. Of no more use once the handshake is over.
    pub no_zeroes: bool,
}

/// `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;

/// `NBD_OPT_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionKind {
    ExportName,
    Abort,
    List,
    StartTls,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    /// `EXTENDED_HEADERS` and whatever comes after it.
    Unknown,
}

impl From<u32> for OptionKind {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            _ => Self::Unknown,
        }
    }
}

/// `NBD_REP_ERR_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionError {
    Unsupported,
    Policy,
    Invalid,
    Unknown,
    TooBig,
}

impl OptionError {
    fn number(self) -> u32 {
        let number = match self {
            Self::Unsupported => 1,
            Self::Policy => 2,
            Self::Invalid => 3,
            Self::Unknown => 6,
            Self::TooBig => 9,
        };
        (1 << 31) | number
    }
}

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// Replies to one option.
pub(crate) struct Replies<'a> {
    pub(crate) option: u32,
    pub(crate) out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        // All parts are our own and short (names are checked, messages are literals).
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend(REPLY_MAGIC.to_be_bytes());
        self.out.extend(self.option.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out
            .extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    /// The option is done.
    pub(crate) fn ack(&mut self) {
        self.reply(ACK, &[]);
    }

    /// The option is refused, and why.
    pub(crate) fn error(&mut self, error: OptionError, why: &str) {
        self.reply(error.number(), &[why.as_bytes()]);
    }

    /// One entry of a list of exports.
    pub(crate) fn server(&mut self, export: &Export) {
        let length = u32::try_from(export.name.len()).unwrap_or(u32::MAX);
        self.reply(
            SERVER,
            &[
                &length.to_be_bytes(),
                export.name.as_bytes(),
                export.description.as_bytes(),
            ],
        );
    }

    /// A metadata context, under its id when it was selected and zero in a list.
    pub(crate) fn base_allocation(&mut self, id: Option<ContextId>) {
        let id = id.map_or(0, |id| id.0);
        self.reply(META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()]);
    }

    /// All that `INFO` and `GO` tell: the export always, the rest when asked for. Block sizes are told
    /// unasked as well, which the protocol allows and clients that ask for nothing ignore.
    pub(crate) fn info(&mut self, export: &Export, asked: &InfoRequest<'_>, structured: bool) {
        let flags = export.transmission_flags(structured);
        let size = export.size.to_be_bytes();
        self.reply(INFO, &[&INFO_EXPORT.to_be_bytes(), &size, &flags.to_be_bytes()]);
        if asked.wants(INFO_NAME) {
            self.reply(INFO, &[&INFO_NAME.to_be_bytes(), export.name.as_bytes()]);
        }
        if asked.wants(INFO_DESCRIPTION) && !export.description.is_empty() {
            self.reply(
                INFO,
                &[&INFO_DESCRIPTION.to_be_bytes(), export.description.as_bytes()],
            );
        }
        let sizes = [export.min_block, export.preferred_block, export.max_block].map(u32::to_be_bytes);
        self.reply(INFO, &[&INFO_BLOCK_SIZE.to_be_bytes(), sizes.as_flattened()]);
    }
}

/// The data of `INFO` and `GO`.
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a [u8],
    /// Big-endian numbers of two bytes.
    wanted: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// `None` when lengths do not add up.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = counted(data)?;
        let (count, wanted) = rest.split_first_chunk()?;
        let count = usize::from(u16::from_be_bytes(*count));
        (wanted.len() == 2 * count).then_some(Self { name, wanted })
    }

    fn wants(&self, info: u16) -> bool {
        self.wanted
            .chunks_exact(2)
            .any(|number| number == info.to_be_bytes())
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`, reduced to what matters.
pub(crate) struct ContextRequest<'a> {
    pub(crate) name: &'a [u8],
    /// No query at all: everything in a list, nothing in a selection.
    pub(crate) is_empty: bool,
    /// A query is `base:allocation`.
    exact: bool,
    /// A query is `base:`.
    wildcard: bool,
}

impl<'a> ContextRequest<'a> {
    /// `None` when lengths do not add up. Queries of other namespaces and of other names «MUST» be ignored.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = counted(data)?;
        let (count, mut rest) = rest.split_first_chunk()?;
        let count = u32::from_be_bytes(*count);
        let mut request = Self {
            name,
            is_empty: count == 0,
            exact: false,
            wildcard: false,
        };
        // Ends with the data at the latest: each query takes four bytes of it or more.
        for _ in 0..count {
            let query;
            (query, rest) = counted(rest)?;
            request.exact |= query == BASE_ALLOCATION.as_bytes();
            request.wildcard |= query == b"base:";
        }
        rest.is_empty().then_some(request)
    }

    /// Whether a list has `base:allocation`.
    pub(crate) fn lists(&self) -> bool {
        self.is_empty || self.exact || self.wildcard
    }

    /// The context a selection selects; the wildcard «MUST» select none.
    pub(crate) fn selects(&self) -> Option<ContextId> {
        self.exact.then_some(BASE_ALLOCATION_ID)
    }
}

/// A string with its length before it, and what follows.
fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}
