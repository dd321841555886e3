//! The server's side of NBD for one export; and, in [`client`], a small client.
//!
//! Source: the protocol's own document, `doc/proto.md` of `NetworkBlockDevice/nbd`; names in quotes below
//! are that document's.
//!
//! A connection runs through two phases:
//!
//! ```text
//!  connected ──► Handshake::feed ──► Progress::Ready(Negotiated)   requests may already follow
//!                     │    ▲              │
//!                     └────┘              ▼
//!                   NeedMore         28 bytes ──► parse_request ──► Request
//!                     │                                 │              │ payload_len() bytes follow
//!                     ▼                                 ▼              ▼
//!              Closed, NbdError                     NbdError     Request::check ──► do it, or refuse it
//! ```
//!
//! Offered: fixed newstyle with `EXPORT_NAME`, `GO`, `INFO`, `LIST`, `ABORT`, `STRUCTURED_REPLY`,
//! `LIST_META_CONTEXT` and `SET_META_CONTEXT` for `base:allocation`; `FLUSH`, `FUA`, `TRIM`,
//! `WRITE_ZEROES`, `BLOCK_STATUS`, `DF`, `CAN_MULTI_CONN`.
//!
//! Left out: oldstyle negotiation, TLS (the socket is local, answered with a policy error), extended
//! headers, `CACHE` and `RESIZE`. One server has one export, found under its name and under the empty name.
//!
//! Promises: any bytes in any pieces give the same answer as the same bytes at once, memory stays
//! bounded ([`MAX_OPTION`]), and a refused option or request leaves the stream in step.

pub mod client;
mod export;
mod handshake;
mod negotiation;
mod reply;
mod request;

pub use export::{Export, ExportError, MAX_EXPORT_NAME};
pub use handshake::{Abort, Handshake, MAX_OPTIONS, Progress};
pub use negotiation::{BASE_ALLOCATION, ContextId, MAX_OPTION, MAX_SKIPPED_OPTION, Negotiated};
pub use reply::{
    Extent, ExtentState, MAX_EXTENTS, block_status, failure, hole, none, read_data, refusal, simple, success,
};
pub use request::{Command, Cookie, ErrorCode, REQUEST_BYTES, Refusal, Request, parse_request};

/// The peer does not speak the protocol: send what is in the output buffer, then close the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NbdError {
    /// «the server MUST close the TCP connection if it does not recognize the client's flags».
    #[error("the client set handshake flags {0:#010x}, which were not offered")]
    ClientFlags(u32),
    /// An option does not begin with `IHAVEOPT`.
    #[error("an option began with {0:#018x} in place of its magic number")]
    OptionMagic(u64),
    /// Without fixed newstyle there is no way to refuse an option, and only `EXPORT_NAME` is allowed.
    #[error("the client sent option {0} without having agreed to fixed newstyle negotiation")]
    NotFixedNewstyle(u32),
    /// An option longer than anybody's, which is not worth reading to its end.
    #[error(
        "option {option} announces {length} bytes, more than the {MAX_SKIPPED_OPTION} which are read over"
    )]
    OptionLength {
        /// Its number.
        option: u32,
        /// Its announced length.
        length: u32,
    },
    /// A client that haggles without end.
    #[error("the client sent more than {MAX_OPTIONS} options without choosing an export")]
    TooManyOptions,
    /// [`Handshake::feed`] after it answered [`Progress::Ready`], [`Progress::Closed`] or an error.
    #[error("the handshake is over")]
    Over,
    /// A request does not begin with its magic number: the stream is out of step.
    #[error("a request began with {0:#010x} in place of its magic number")]
    RequestMagic(u32),
}
