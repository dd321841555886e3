//! What a send is made of: parts that lie in different places and leave in one message.

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;

use crate::buffer::Shared;

/// Longest part kept inside a [`Piece`] itself: a frame header fits, and a piece stays at two cache lines.
pub const INLINE_MAX: usize = 119;

/// Parts handed to the kernel in one go; more follow when these have left.
pub(super) const PARTS_AT_ONCE: usize = 64;

/// One part of a message.
#[derive(Clone)]
pub enum Piece {
    /// A few bytes kept in the piece; made by [`Piece::copy`].
    Inline(Inline),
    /// Bytes of its own.
    Bytes(Box<[u8]>),
    /// A range of a buffer that others may be sending as well.
    Shared(Shared, Range<usize>),
}

impl Piece {
    /// A piece that holds a copy of these bytes, without an allocation up to [`INLINE_MAX`] of them.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut data = [0; INLINE_MAX];
        match (data.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(bytes);
                Self::Inline(Inline { len, data })
            }
            _ => Self::Bytes(bytes.into()),
        }
    }

    /// The whole of a shared buffer.
    pub fn whole(shared: Shared) -> Self {
        let end = shared.len();
        Self::Shared(shared, 0..end)
    }

    /// The bytes of this piece; nothing if its range lies outside its buffer (refused before a send).
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline(inline) => inline.data.get(..usize::from(inline.len)).unwrap_or_default(),
            Self::Bytes(bytes) => bytes,
            Self::Shared(shared, range) => shared.get(range.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Inline(_) | Self::Bytes(_) => true,
            Self::Shared(shared, range) => shared.get(range.clone()).is_some(),
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(inline) => write!(f, "Inline({} bytes)", inline.len),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Shared(_, range) => write!(f, "Shared({range:?})"),
        }
    }
}

/// Bytes stored in the piece itself.
#[derive(Clone, Copy)]
pub struct Inline {
    len: u8,
    data: [u8; INLINE_MAX],
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inline({} bytes)", self.len)
    }
}

/// Pieces on their way, and how far they have got.
#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: Vec<Piece>,
    /// First piece with bytes left, and how many of its bytes have gone.
    piece: usize,
    within: usize,
    left: usize,
    total: usize,
}

impl Outgoing {
    /// `None` if a piece lies outside its buffer.
    pub(super) fn new(pieces: Vec<Piece>) -> Option<Self> {
        let total = pieces.iter().map(|piece| piece.as_slice().len()).sum();
        pieces.iter().all(Piece::is_valid).then_some(Self {
            pieces,
            piece: 0,
            within: 0,
            left: total,
            total,
        })
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Number of pieces not yet gone.
    pub(super) fn parts(&self) -> usize {
        self.pieces.len() - self.piece
    }

    pub(super) fn advance(&mut self, mut sent: usize) {
        self.left = self.left.saturating_sub(sent);
        while let Some(piece) = self.pieces.get(self.piece) {
            let rest = piece.as_slice().len() - self.within;
            if sent < rest {
                self.within += sent;
                return;
            }
            sent -= rest;
            self.piece += 1;
            self.within = 0;
        }
    }

    /// The next bytes to go, part by part.
    pub(super) fn remaining(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.within;
        self.pieces
            .iter()
            .skip(self.piece)
            .enumerate()
            .map(move |(nth, piece)| {
                let skip = if nth == 0 { first } else { 0 };
                piece.as_slice().get(skip..).unwrap_or_default()
            })
    }

    /// Fills in the next parts and answers how many.
    pub(super) fn slices<'a>(&'a self, into: &mut [IoSlice<'a>; PARTS_AT_ONCE]) -> usize {
        let mut count = 0;
        for (place, part) in into.iter_mut().zip(self.remaining()) {
            *place = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// The emptied vector, for another send.
    pub(super) fn recycle(self) -> Vec<Piece> {
        let mut pieces = self.pieces;
        pieces.clear();
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_crosses_pieces() {
        let pieces = vec![
            Piece::copy(b"abc"),
            Piece::copy(b""),
            Piece::Bytes((*b"defg").into()),
            Piece::copy(b"h"),
        ];
        let mut out = Outgoing::new(pieces).unwrap();
        for sent in [1, 3, 0, 2, 2] {
            out.advance(sent);
        }
        assert_eq!((out.left(), out.parts(), out.total()), (0, 0, 8));
        let mut out = Outgoing::new(vec![Piece::copy(b"abc"), Piece::copy(b"defg")]).unwrap();
        out.advance(4);
        assert_eq!(out.remaining().collect::<Vec<_>>(), [b"efg"]);
    }

    #[test]
    fn a_range_outside_the_buffer_is_refused() {
        let shared = Shared::from(crate::Buf::new(10));
        assert!(Outgoing::new(vec![Piece::Shared(shared.clone(), 5..11)]).is_none());
        assert!(Outgoing::new(vec![Piece::whole(shared)]).is_some());
    }

    #[test]
    fn short_copies_stay_inline() {
        assert!(matches!(Piece::copy(&[1; INLINE_MAX]), Piece::Inline(_)));
        assert!(matches!(Piece::copy(&[1; INLINE_MAX + 1]), Piece::Bytes(_)));
        assert!(size_of::<Piece>() <= 128);
    }
}
