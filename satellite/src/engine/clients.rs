//! The engine's clients: NBD connections, the kernel's FUSE, a ublk device.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stor_device::{Completion, Outcome};
use stor_replication::engine::{Event, Request};
use stor_replication::extents::{Extent, MAX_RANGE};
use stor_replication::range::ByteRange;
use stor_transport::nbd;

use super::nbd::Client;
use super::request::{Answer, Asker};
use super::shell::{ACCEPT, CLIENT_RECV, CLIENT_SEND, MAX_CLIENTS, Shell, now};
use super::{fuse, guest, ublk};
use crate::control::Transport;
use crate::data::Data;

/// Pause after a client could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Shell {
    pub(super) fn accepted(&mut self, completion: Completion) {
        match completion.result {
            Ok(Outcome::Accepted(fd)) if self.clients.len() < MAX_CLIENTS => {
                let id = self.next_client;
                self.next_client += 1;
                let tokens = (CLIENT_RECV | id, CLIENT_SEND | id);
                match Client::new(fd, &self.export, tokens, &mut self.reactor, &self.pool) {
                    Ok(client) => {
                        self.clients.insert(id, client);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the volume can't be exported");
                        self.reactor.close(fd);
                    }
                }
            }
            Ok(Outcome::Accepted(fd)) => {
                if let Some(times) = self.quiet.say(now(), "a client is refused") {
                    tracing::warn!(
                        limit = MAX_CLIENTS,
                        times,
                        "a client is refused: there are too many"
                    );
                }
                self.reactor.close(fd);
            }
            Ok(_) => {}
            Err(error) => {
                if let Some(times) = self.quiet.say(now(), &error.to_string()) {
                    tracing::warn!(%error, times, "a client could not be accepted");
                }
                // Out of descriptors, mostly: at once it would fail again, and keep the thread from I/O.
                self.accept_at = Some(now() + ACCEPT_AGAIN);
                return;
            }
        }
        if let Some(listener) = self.listener {
            self.reactor.accept(listener, ACCEPT);
        }
    }

    pub(super) fn client_received(&mut self, id: u64, completion: Completion) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let pause = self.requests.is_full() || client.is_stuffed();
        self.paused |= pause;
        let mut came = Vec::new();
        let received = client.received(
            completion,
            pause,
            &mut self.reactor,
            &self.pool,
            &mut came,
            &self.export,
        );
        if !self.answered.contains(&id) {
            self.answered.push(id);
        }
        if !came.is_empty() && self.has_given_up(id) {
            tracing::debug!(
                client = id,
                "requests of a connection that the kernel has given up are not begun"
            );
            self.drop_client(id);
            return;
        }
        if !came.is_empty() && !std::mem::replace(&mut self.guest_noted, true) {
            guest::note(&self.control);
        }
        for (request, payload) in came {
            let range = ByteRange::new(request.offset, u64::from(request.length));
            let fua = request.fua;
            let (what, asked) = match (request.command, payload) {
                (nbd::Command::Read { .. }, _) => {
                    (Answer::Read { offset: range.offset }, Request::Read(range))
                }
                (nbd::Command::Write, Some(payload)) => (
                    Answer::Done,
                    Request::Write {
                        range,
                        data: Data::whole(payload.into()),
                        fua,
                    },
                ),
                (nbd::Command::Trim, _) => (
                    Answer::Done,
                    Request::Zero {
                        range,
                        discard: true,
                        fua,
                    },
                ),
                (nbd::Command::WriteZeroes { no_hole, .. }, _) => (
                    Answer::Done,
                    Request::Zero {
                        range,
                        discard: !no_hole,
                        fua,
                    },
                ),
                (nbd::Command::BlockStatus { .. }, _) => {
                    // The reply may be of less than was asked for.
                    let len = range.len.min(u64::from(MAX_RANGE));
                    let range = ByteRange::new(range.offset, len);
                    (Answer::Extents(request), Request::Extents(range))
                }
                _ => (Answer::Done, Request::Flush),
            };
            self.submit(
                Asker::Nbd {
                    client: id,
                    cookie: request.cookie,
                    what,
                },
                asked,
            );
        }
        if let Err(error) = received {
            tracing::debug!(client = id, %error, "client dropped");
            self.drop_client(id);
        }
    }

    /// Whether the kernel has given a connection up. It sends what was unanswered on another one then, before
    /// anything new: a request that is begun now could come after one that was sent later. What was begun
    /// before cannot, because overlapping requests are done in the order in which they were begun.
    fn has_given_up(&mut self, id: u64) -> bool {
        if !matches!(self.config.transport, Transport::Nbd { .. }) {
            return false;
        }
        let fd = self.clients.get(&id).map(Client::fd);
        fd.and_then(|fd| self.reactor.descriptor(fd))
            .is_none_or(is_hung_up)
    }

    /// Only NBD clients ask for these.
    pub(super) fn tell_extents(&mut self, asker: Asker, extents: &[Extent]) {
        if let Asker::Nbd {
            client,
            what: Answer::Extents(request),
            ..
        } = asker
            && let Some(to) = self.clients.get_mut(&client)
        {
            to.extents(&request, extents);
            if !self.answered.contains(&client) {
                self.answered.push(client);
            }
        }
    }

    pub(super) fn drop_client(&mut self, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            self.reactor.close(client.fd());
        }
    }

    pub(super) fn fuse_read(&mut self, completion: Completion) {
        let pause = self.requests.is_full();
        self.paused |= pause;
        let Some(fuse) = &mut self.fuse else { return };
        match fuse.read(completion, pause, &mut self.reactor, &self.pool) {
            fuse::Came::Request(asker, request) => self.submit(asker, request),
            fuse::Came::Nothing => {}
        }
    }

    pub(super) fn ublk_completed(&mut self, completion: &Completion) {
        let full = self.requests.is_full();
        self.paused |= full;
        let Some(ublk) = &mut self.ublk else { return };
        let came = ublk.completed(completion, full, now(), &mut self.reactor, &self.pool);
        self.ublk_came(came);
    }

    /// Takes in what had to wait, as far as there is room.
    pub(super) fn resume_ublk(&mut self) {
        loop {
            let Some(ublk) = &mut self.ublk else { return };
            if self.requests.is_full() {
                self.paused = true;
                return;
            }
            match ublk.next(&mut self.reactor, &self.pool) {
                Some(came) => self.ublk_came(came),
                None => return,
            }
        }
    }

    fn ublk_came(&mut self, came: ublk::Came) {
        if let ublk::Came::Request(asker, request) = came {
            if !std::mem::replace(&mut self.guest_noted, true) {
                guest::note(&self.control);
            }
            self.submit(asker, request);
        }
    }

    pub(super) fn submit(&mut self, asker: Asker, request: Request<Data>) {
        for (io, request) in self.requests.add(asker, request) {
            self.step(Event::Submit { io, request });
        }
    }
}

/// Whether both directions of a unix socket are shut down.
fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    // What cannot be asked is taken for dead: the kernel sends again what is not answered.
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    poll(&mut asked, Some(&Timespec::default())).is_err()
        || asked.iter().any(|asked| asked.revents().intersects(gone))
}
