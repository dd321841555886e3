//! Message headers for the kernel, at addresses that stay while it may read them.

use nix::libc;

use super::op::OpId;
use super::piece::{Outgoing, PARTS_AT_ONCE};

/// Message headers kept for later sends.
const SPARE_GATHERS: usize = 16;

/// A message header with room for its parts, at an address that stays.
pub(super) struct Gather {
    pub(super) message: libc::msghdr,
    pub(super) parts: [libc::iovec; PARTS_AT_ONCE],
}

impl Gather {
    fn empty() -> Box<Self> {
        // SAFETY: both are plain C structs of integers and pointers, for which all zeroes is a valid value.
        Box::new(unsafe { std::mem::zeroed() })
    }

    /// Points at the parts that go next; answers how many they are.
    pub(super) fn fill(&mut self, out: &Outgoing) -> usize {
        let mut count = 0;
        for (place, part) in self.parts.iter_mut().zip(out.remaining()) {
            *place = libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            };
            count += 1;
        }
        self.message.msg_iov = self.parts.as_mut_ptr();
        self.message.msg_iovlen = count;
        count
    }
}

/// The gathers of all operations under way, each kept until its completion was reaped.
#[derive(Default)]
pub(super) struct Gathers {
    /// By operation index.
    used: Vec<Option<Box<Gather>>>,
    #[expect(clippy::vec_box, reason = "they move to `used` without a copy of a kilobyte")]
    spare: Vec<Box<Gather>>,
}

impl Gathers {
    /// The gather of an operation. Never `None`: that is only what the index check leaves open.
    pub(super) fn of(&mut self, id: OpId) -> Option<&mut Gather> {
        let index = id.index as usize;
        if self.used.len() <= index {
            self.used.resize_with(index + 1, || None);
        }
        let spare = &mut self.spare;
        let place = self.used.get_mut(index)?;
        Some(place.get_or_insert_with(|| spare.pop().unwrap_or_else(Gather::empty)))
    }

    /// Takes the gather of an operation back, if it has one.
    pub(super) fn release(&mut self, id: OpId) {
        if let Some(gather) = self.used.get_mut(id.index as usize).and_then(Option::take)
            && self.spare.len() < SPARE_GATHERS
        {
            self.spare.push(gather);
        }
    }
}
