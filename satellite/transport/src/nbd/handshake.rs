//! Fixed newstyle negotiation as a state machine.
//!
//! ```text
//!   Greet ──► Flags ──► Options ◄──► Skip
//!                          │
//!                          ▼
//!                        Over
//! ```
//!
//! Promises that the bytes of a handshake give the same replies however they are cut into pieces, and that
//! a refused option leaves the next one readable. Keeps no input: what it does not consume is to be given
//! again with more behind it, so that a buffer of 16 bytes and [`MAX_OPTION`](super::MAX_OPTION) always
//! suffices. Sets no deadline: a client that says nothing is the caller's to drop.

use super::NbdError;
use super::export::{Export, ExportError};
use super::negotiation::{
    ContextId, ContextRequest, InfoRequest, MAX_OPTION, MAX_SKIPPED_OPTION, Negotiated, OPTION_MAGIC,
    OptionError, OptionKind, Replies,
};

/// Most options in one handshake. A client sends about six.
pub const MAX_OPTIONS: u16 = 256;

/// `NBDMAGIC`.
const INIT_PASSWORD: u64 = 0x4E42_444D_4147_4943;

/// `FIXED_NEWSTYLE`, the same bit in the server's and the client's flags.
const FIXED_NEWSTYLE: u32 = 1;
/// `NO_ZEROES`, likewise.
const NO_ZEROES: u32 = 1 << 1;

/// How far a handshake is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Send what is in the output buffer, keep what was not consumed, come back with more.
    NeedMore,
    /// Send what is in the output buffer; what was not consumed is the first request.
    Ready(Negotiated),
    /// Send what is in the output buffer and close.
    Closed(Abort),
}

/// Why a handshake ended without an export; no fault of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// The client wished to end, as `nbdinfo --list` does.
    ByClient,
    /// `EXPORT_NAME` with a name that is not ours: the protocol has no way to say so but to close.
    UnknownExport,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Greet,
    Flags,
    Options,
    /// Reads over the data of an option that is too long.
    Skip {
        option: u32,
        left: u32,
    },
    Over,
}

/// One client's handshake.
#[derive(Clone, Debug)]
pub struct Handshake {
    export: Export,
    state: State,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    allocation: Option<ContextId>,
    options: u16,
}

impl Handshake {
    /// A client has connected. The greeting comes out of the first [`Handshake::feed`], for which there is
    /// no input yet.
    pub fn new(export: &Export) -> Result<Self, ExportError> {
        export.check()?;
        Ok(Self {
            export: export.clone(),
            state: State::Greet,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            allocation: None,
            options: 0,
        })
    }

    /// Takes what the client sent and appends what it is to be sent. Returns how many bytes of `input` were
    /// consumed. After anything but [`Progress::NeedMore`] the handshake is over.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Progress), NbdError> {
        let mut rest = input;
        loop {
            match self.advance(&mut rest, out) {
                Ok(None) => {}
                Ok(Some(progress)) => {
                    if progress != Progress::NeedMore {
                        self.state = State::Over;
                    }
                    return Ok((input.len() - rest.len(), progress));
                }
                Err(error) => {
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
    }

    /// One step; `None` when there may be another.
    fn advance(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Progress>, NbdError> {
        match self.state {
            State::Greet => {
                out.extend(INIT_PASSWORD.to_be_bytes());
                out.extend(OPTION_MAGIC.to_be_bytes());
                out.extend([0, 0b11]);
                self.state = State::Flags;
                Ok(None)
            }
            State::Flags => {
                let Some((flags, after)) = rest.split_first_chunk() else {
                    return Ok(Some(Progress::NeedMore));
                };
                *rest = after;
                let flags = u32::from_be_bytes(*flags);
                if flags & !(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
                    return Err(NbdError::ClientFlags(flags));
                }
                self.fixed_newstyle = flags & FIXED_NEWSTYLE != 0;
                self.no_zeroes = flags & NO_ZEROES != 0;
                self.state = State::Options;
                Ok(None)
            }
            State::Options => self.next_option(rest, out),
            State::Skip { option, left } => Ok(self.skip(option, left, rest, out)),
            State::Over => Err(NbdError::Over),
        }
    }

    fn next_option(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Progress>, NbdError> {
        let Some((magic, after)) = rest.split_first_chunk() else {
            return Ok(Some(Progress::NeedMore));
        };
        let magic = u64::from_be_bytes(*magic);
        if magic != OPTION_MAGIC {
            return Err(NbdError::OptionMagic(magic));
        }
        let Some((option, after)) = after.split_first_chunk() else {
            return Ok(Some(Progress::NeedMore));
        };
        let Some((length, after)) = after.split_first_chunk() else {
            return Ok(Some(Progress::NeedMore));
        };
        let (option, length) = (u32::from_be_bytes(*option), u32::from_be_bytes(*length));
        if !self.fixed_newstyle && OptionKind::from(option) != OptionKind::ExportName {
            return Err(NbdError::NotFixedNewstyle(option));
        }
        if length > MAX_SKIPPED_OPTION {
            return Err(NbdError::OptionLength { option, length });
        }
        if usize::try_from(length).map_or(true, |length| length > MAX_OPTION) {
            *rest = after;
            self.count_option()?;
            self.state = State::Skip { option, left: length };
            return Ok(None);
        }
        let Some((data, after)) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
        else {
            return Ok(Some(Progress::NeedMore));
        };
        *rest = after;
        self.count_option()?;
        Ok(self.answer(option, data, out))
    }

    fn count_option(&mut self) -> Result<(), NbdError> {
        if self.options == MAX_OPTIONS {
            return Err(NbdError::TooManyOptions);
        }
        self.options += 1;
        Ok(())
    }

    fn skip(&mut self, option: u32, left: u32, rest: &mut &[u8], out: &mut Vec<u8>) -> Option<Progress> {
        let here = u32::try_from(rest.len()).unwrap_or(u32::MAX).min(left);
        *rest = usize::try_from(here)
            .ok()
            .and_then(|here| rest.get(here..))
            .unwrap_or_default();
        if here < left {
            self.state = State::Skip {
                option,
                left: left - here,
            };
            return Some(Progress::NeedMore);
        }
        self.state = State::Options;
        let mut replies = Replies { option, out };
        match OptionKind::from(option) {
            OptionKind::ExportName => Some(Progress::Closed(Abort::UnknownExport)),
            // «a server SHOULD ignore any data sent by the client».
            OptionKind::Abort => {
                replies.ack();
                Some(Progress::Closed(Abort::ByClient))
            }
            OptionKind::SetMetaContext => {
                // «replaces all previously-set metadata contexts (including when this command fails)».
                self.allocation = None;
                replies.error(OptionError::TooBig, "the option is too long");
                None
            }
            OptionKind::List
            | OptionKind::StartTls
            | OptionKind::Info
            | OptionKind::Go
            | OptionKind::StructuredReply
            | OptionKind::ListMetaContext
            | OptionKind::Unknown => {
                replies.error(OptionError::TooBig, "the option is too long");
                None
            }
        }
    }

    fn answer(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Option<Progress> {
        let kind = OptionKind::from(option);
        if kind == OptionKind::ExportName {
            return Some(self.export_name(data, out));
        }
        let mut replies = Replies { option, out };
        match kind {
            OptionKind::ExportName => None,
            OptionKind::Abort => {
                replies.ack();
                Some(Progress::Closed(Abort::ByClient))
            }
            OptionKind::List => {
                if data.is_empty() {
                    replies.server(&self.export);
                    replies.ack();
                } else {
                    replies.error(OptionError::Invalid, "LIST takes no data");
                }
                None
            }
            OptionKind::StartTls => {
                if data.is_empty() {
                    replies.error(OptionError::Policy, "TLS is not offered on this socket");
                } else {
                    replies.error(OptionError::Invalid, "STARTTLS takes no data");
                }
                None
            }
            OptionKind::Info => {
                self.info(data, &mut replies);
                None
            }
            OptionKind::Go => self
                .info(data, &mut replies)
                .then(|| Progress::Ready(self.negotiated())),
            OptionKind::StructuredReply => {
                if data.is_empty() {
                    self.structured = true;
                    replies.ack();
                } else {
                    replies.error(OptionError::Invalid, "STRUCTURED_REPLY takes no data");
                }
                None
            }
            OptionKind::ListMetaContext => {
                if let Some(request) = self.context_request(data, &mut replies) {
                    if request.lists() {
                        replies.base_allocation(None);
                    }
                    replies.ack();
                }
                None
            }
            OptionKind::SetMetaContext => {
                self.allocation = None;
                if let Some(request) = self.context_request(data, &mut replies) {
                    self.allocation = request.selects();
                    if self.allocation.is_some() {
                        replies.base_allocation(self.allocation);
                    }
                    replies.ack();
                }
                None
            }
            OptionKind::Unknown => {
                replies.error(OptionError::Unsupported, "this option is not known here");
                None
            }
        }
    }

    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> Progress {
        if !self.export.is_called(name) {
            return Progress::Closed(Abort::UnknownExport);
        }
        out.extend(self.export.size.to_be_bytes());
        out.extend(self.export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Progress::Ready(self.negotiated())
    }

    /// Whether it was answered with an `ACK`.
    fn info(&self, data: &[u8], replies: &mut Replies<'_>) -> bool {
        let Some(request) = InfoRequest::parse(data) else {
            replies.error(OptionError::Invalid, "lengths in the option do not add up");
            return false;
        };
        if !self.export.is_called(request.name) {
            replies.error(OptionError::Unknown, "there is no export of that name here");
            return false;
        }
        replies.info(&self.export, &request, self.structured);
        replies.ack();
        true
    }

    fn context_request<'a>(&self, data: &'a [u8], replies: &mut Replies<'_>) -> Option<ContextRequest<'a>> {
        if !self.structured {
            replies.error(
                OptionError::Invalid,
                "metadata contexts need STRUCTURED_REPLY first",
            );
            return None;
        }
        let Some(request) = ContextRequest::parse(data) else {
            replies.error(OptionError::Invalid, "lengths in the option do not add up");
            return None;
        };
        if !self.export.is_called(request.name) {
            replies.error(OptionError::Unknown, "there is no export of that name here");
            return None;
        }
        Some(request)
    }

    fn negotiated(&self) -> Negotiated {
        Negotiated {
            structured: self.structured,
            meta_base_allocation: self.allocation,
            no_zeroes: self.no_zeroes,
        }
    }
}
