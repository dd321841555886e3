//! Generic netlink, as far as commands of one family need it: requests that are acknowledged, and the
//! family's notices.
//!
//! Only the kernel is talked to. Every wait has a deadline; what cannot be read is an error, never a panic.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::libc;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

/// The kernel answers at once; it may wait for a lock that a device is being made or taken down under.
const ANSWER: Duration = Duration::from_secs(30);
/// Messages read for one answer before it is given up.
const MAX_MESSAGES: usize = 4096;
/// Far above the longest answer of the families used.
const ROOM: usize = 64 << 10;

const MESSAGE_HEADER: usize = 16;
const COMMAND_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
const ERROR: u16 = 2;
const REQUEST_AND_ACK: u16 = 1 | 4;
/// In the kind of an attribute: what is in it, and how. Not part of its number.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;

/// The family of families.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_MAX_ATTRIBUTE: u16 = 5;
const FAMILY_GROUPS: u16 = 7;
const GROUP_ID: u16 = 2;

/// Attributes of a message, being written.
#[derive(Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    fn add(&mut self, kind: u16, bytes: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + bytes.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn u32(mut self, kind: u16, value: u32) -> Self {
        self.add(kind, &value.to_ne_bytes());
        self
    }

    pub(crate) fn u64(mut self, kind: u16, value: u64) -> Self {
        self.add(kind, &value.to_ne_bytes());
        self
    }

    pub(crate) fn text(mut self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.add(kind, &bytes);
        self
    }

    pub(crate) fn nested(mut self, kind: u16, inner: &Self) -> Self {
        self.add(kind | NESTED, &inner.0);
        self
    }
}

/// Attributes as they came, with their kinds. Ends at the first that makes no sense.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(ATTRIBUTE_HEADER..length) else {
            break;
        };
        found.push((kind & KIND, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .into_iter()
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_ne_bytes(*bytes))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A family as this kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Family {
    pub(crate) id: u16,
    /// Its first group of notices.
    pub(crate) group: Option<u32>,
    /// The highest attribute it knows.
    pub(crate) max_attribute: u32,
}

/// A socket for one family.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    pub(crate) family: Family,
}

impl Socket {
    /// Opens one. `None`: the kernel has no such family now.
    pub(crate) fn open(name: &str) -> io::Result<Option<Self>> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER))?;
        let mut socket = Self {
            fd,
            sequence: 0,
            family: Family {
                id: CONTROL,
                group: None,
                max_attribute: 0,
            },
        };
        let asked = Attributes::default().text(FAMILY_NAME, name);
        let answer = match socket.ask(GET_FAMILY, &asked) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        let family = |answer: &[u8]| {
            let groups = attribute(answer, FAMILY_GROUPS)
                .map(attributes)
                .unwrap_or_default();
            let group = groups
                .first()
                .and_then(|(_, group)| u32_at(attribute(group, GROUP_ID)?, 0));
            Some(Family {
                id: u16_at(attribute(answer, FAMILY_ID)?, 0)?,
                group,
                max_attribute: u32_at(attribute(answer, FAMILY_MAX_ATTRIBUTE)?, 0)?,
            })
        };
        socket.family = family(&answer).ok_or_else(strange)?;
        Ok(Some(socket))
    }

    /// Says a command, and waits until it is acknowledged. Returns the attributes of the answer, if one came
    /// before the acknowledgement.
    pub(crate) fn ask(&mut self, command: u8, attributes: &Attributes) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = MESSAGE_HEADER + COMMAND_HEADER + attributes.0.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
        message.extend_from_slice(&self.family.id.to_ne_bytes());
        message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(&[command, 1, 0, 0]);
        message.extend_from_slice(&attributes.0);
        send(&self.fd, &message, SendFlags::empty())?;
        let mut answer = Vec::new();
        for _ in 0..MAX_MESSAGES {
            for message in self.receive()? {
                if message.sequence != self.sequence {
                    continue;
                }
                if message.kind != ERROR {
                    answer = message.attributes().to_vec();
                    continue;
                }
                return match u32_at(&message.body, 0).ok_or_else(strange)?.cast_signed() {
                    0 => Ok(answer),
                    error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                };
            }
        }
        Err(strange())
    }

    /// Takes the family's notices from now on. Commands should not be said on this socket any more.
    pub(crate) fn subscribe(&self, group: u32) -> io::Result<()> {
        const SOL_NETLINK: i32 = 270;
        const ADD_MEMBERSHIP: i32 = 1;
        // SAFETY: the option takes a u32, of which the address and the size are given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                SOL_NETLINK,
                ADD_MEMBERSHIP,
                (&raw const group).cast(),
                4,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// How long [`Socket::notices`] waits.
    pub(crate) fn set_wait(&self, wait: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(
            &self.fd,
            sockopt::Timeout::Recv,
            Some(wait),
        )?)
    }

    /// Commands and attributes of notices that came; none when nothing came in time.
    pub(crate) fn notices(&self) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let messages = match self.receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            other => other?,
        };
        let ours = messages
            .into_iter()
            .filter(|message| message.kind == self.family.id);
        Ok(ours
            .filter_map(|message| Some((*message.body.first()?, message.attributes().to_vec())))
            .collect())
    }

    fn receive(&self) -> io::Result<Vec<Message>> {
        let mut room = vec![0_u8; ROOM];
        let count = loop {
            match recv(&self.fd, room.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other?.1,
            }
        };
        let mut bytes = room.get(..count).ok_or_else(strange)?;
        let mut found = Vec::new();
        while let (Some(length), Some(kind), Some(sequence)) =
            (u32_at(bytes, 0), u16_at(bytes, 4), u32_at(bytes, 8))
        {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let body = bytes.get(MESSAGE_HEADER..length).ok_or_else(strange)?.to_vec();
            found.push(Message { kind, sequence, body });
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(found)
    }
}

#[derive(Debug)]
struct Message {
    kind: u16,
    sequence: u32,
    body: Vec<u8>,
}

impl Message {
    fn attributes(&self) -> &[u8] {
        self.body.get(COMMAND_HEADER..).unwrap_or_default()
    }
}

fn strange() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "an answer of the kernel that makes no sense",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().u32(1, 7).text(2, "abc");
        let outer = Attributes::default().u64(4, 1 << 40).nested(9, &inner);
        assert_eq!(outer.0.len() % 4, 0);
        assert_eq!(
            attribute(&outer.0, 4),
            Some((1_u64 << 40).to_ne_bytes().as_slice())
        );
        let nested = attribute(&outer.0, 9).unwrap();
        assert_eq!(attribute(nested, 1).and_then(|value| u32_at(value, 0)), Some(7));
        assert_eq!(attribute(nested, 2), Some(b"abc\0".as_slice()));
        assert_eq!(attribute(nested, 3), None);
    }

    #[test]
    fn what_makes_no_sense_is_no_attribute() {
        // Shorter than its own header, longer than what is there, cut off.
        for bytes in [&[2, 0, 1, 0, 0, 0, 0, 0][..], &[200, 0, 1, 0, 9], &[8, 0, 1]] {
            assert!(attributes(bytes).is_empty(), "{bytes:?}");
        }
        let mut good = Attributes::default().u32(1, 7).0;
        good.extend_from_slice(&[0, 0, 0, 0]);
        assert_eq!(attributes(&good).len(), 1);
    }

    #[test]
    fn a_family_that_every_kernel_has_is_found_and_one_that_none_has_is_not() {
        let control = Socket::open("nlctrl").unwrap().unwrap();
        assert_eq!(control.family.id, CONTROL);
        assert!(control.family.group.is_some());
        assert!(Socket::open("stor-nothing").unwrap().is_none());
    }
}
