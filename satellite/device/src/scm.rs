//! Messages with descriptors attached, over unix sockets (`SCM_RIGHTS`).
//!
//! A stream socket keeps no message boundaries: frame what you send. The descriptors arrive together with the
//! first byte of the message they were sent with. A non-blocking socket answers `WouldBlock` as usual.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors in one message.
pub const MAX_FDS: usize = 4;

/// What came in.
#[derive(Debug)]
pub struct Received {
    /// Bytes received; 0 is the end of the stream.
    pub count: usize,
    /// Descriptors that came along, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends bytes with descriptors; answers how many bytes went. The descriptors went with the first of them, so
/// send the rest, if any, without.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "descriptors need a byte and are four at most",
        ));
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no room for the descriptors",
        ));
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Sends all bytes, the descriptors with the first of them. For blocking sockets.
pub fn send_all(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = retry(|| send(socket.as_fd(), bytes, fds))?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += retry(|| send(socket.as_fd(), rest, &[]))?;
    }
    Ok(())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Receives bytes and the descriptors that came with them.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(into)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors were lost: too many in one message",
        ));
    }
    Ok(Received {
        count: got.bytes,
        fds,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut inner, passed) = UnixStream::pair().unwrap();
        send_all(&ours, b"hello", &[passed.as_fd()]).unwrap();
        send_all(&ours, b" there", &[]).unwrap();
        drop((ours, passed));
        let mut text = [0; 5];
        let got = receive(&theirs, &mut text).unwrap();
        assert_eq!((got.count, got.fds.len(), &text), (5, 1, b"hello"));
        inner.write_all(b"through").unwrap();
        drop(inner);
        let mut through = String::new();
        UnixStream::from(got.fds.into_iter().next().unwrap())
            .read_to_string(&mut through)
            .unwrap();
        assert_eq!(through, "through");
        let mut rest = [0; 100];
        let got = receive(&theirs, &mut rest).unwrap();
        assert_eq!((&rest[..got.count], got.fds.len()), (&b" there"[..], 0));
        assert_eq!(receive(&theirs, &mut rest).unwrap().count, 0);
    }

    #[test]
    fn a_long_message_goes_out_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let bytes = vec![7; 3 << 20];
        let expected = bytes.clone();
        let sender = std::thread::spawn(move || send_all(&ours, &bytes, &[ours.as_fd()]));
        let (mut all, mut fds, mut part) = (Vec::new(), 0, vec![0; 65_536]);
        while all.len() < expected.len() {
            let got = receive(&theirs, &mut part).unwrap();
            assert!(got.count > 0);
            all.extend_from_slice(&part[..got.count]);
            fds += got.fds.len();
        }
        sender.join().unwrap().unwrap();
        assert!(all == expected);
        assert_eq!(fds, 1);
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let many = [ours.as_fd(); MAX_FDS + 1];
        assert_eq!(
            send(&ours, b"x", &many).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            send(&ours, b"", &many[..1]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
