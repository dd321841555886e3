//! The kernel's requests on a ublk device.
//!
//! The kernel keeps the data of a request until it is asked for, so that requests that have to wait their turn cost nothing
//! here. An engine that dies leaves them to the next: the kernel gives everything unanswered again, once the
//! agent has let it. By then no request of the old engine can be begun any more, as its process has ended.

use std::collections::VecDeque;

use stor_device::ublk::{self, INVALID, IO_ERROR, Operation, Queue, UblkError};
use stor_device::{BufPool, Completion, Fd, Reactor};
use stor_replication::engine::Request;
use stor_replication::range::{ByteRange, SECTOR};
use stor_replication::time::Time;

use super::request::{Answer, Asker, Outcome as Done};
use crate::data::Data;

/// See the module.
#[derive(Debug)]
pub(super) struct Ublk {
    fd: Fd,
    queue: Queue,
    token: u64,
    /// Tags whose requests wait for others to end.
    waiting: VecDeque<u16>,
    /// Tags that the kernel has taken back: the device is stopped, or going to be.
    ended: u16,
    /// Since when all are.
    gone: Option<Time>,
}

/// What came of a tag.
pub(super) enum Came {
    /// A request for the volume.
    Request(Asker, Request<Data>),
    /// Nothing to do.
    Nothing,
}

impl Ublk {
    /// Takes the device's queue and fetches all its tags. `token`: to which a tag is added.
    pub(super) fn open(index: u32, mark: u64, token: u64, reactor: &mut Reactor) -> Result<Self, UblkError> {
        let queue = Queue::open(index, mark)?;
        let system = |source| UblkError::System {
            doing: "use",
            path: format!("/dev/ublkc{index}").into(),
            source,
        };
        let fd = queue.descriptor().and_then(|fd| reactor.register(fd));
        let fd = fd.map_err(system)?;
        // All are given to the kernel by the next wait, in one call: nothing else is under way yet.
        for tag in 0..queue.depth() {
            reactor.driver(fd, ublk::fetch(tag), token | u64::from(tag));
        }
        Ok(Self {
            fd,
            queue,
            token,
            waiting: VecDeque::new(),
            ended: 0,
            gone: None,
        })
    }

    /// A tag's operation completed. `full`: its request has to wait.
    pub(super) fn completed(
        &mut self,
        completion: &Completion,
        full: bool,
        now: Time,
        reactor: &mut Reactor,
        pool: &BufPool,
    ) -> Came {
        let tag = u16::try_from(completion.token & !self.token).unwrap_or(u16::MAX);
        match &completion.result {
            Ok(_) if full || !self.waiting.is_empty() => {
                self.waiting.push_back(tag);
                Came::Nothing
            }
            Ok(_) => self.request(tag, reactor, pool),
            Err(error) => {
                if error.raw_os_error() != Some(NO_DEVICE) {
                    tracing::error!(tag, %error, "the kernel refuses a fetch or an answer");
                }
                self.ended += 1;
                if self.ended >= self.queue.depth() {
                    tracing::info!("the device is gone");
                    self.gone.get_or_insert(now);
                }
                Came::Nothing
            }
        }
    }

    /// A request that had to wait.
    pub(super) fn next(&mut self, reactor: &mut Reactor, pool: &BufPool) -> Option<Came> {
        let tag = self.waiting.pop_front()?;
        Some(self.request(tag, reactor, pool))
    }

    /// Since when the kernel sends nothing any more and never will.
    pub(super) fn gone(&self) -> Option<Time> {
        self.gone
    }

    fn request(&mut self, tag: u16, reactor: &mut Reactor, pool: &BufPool) -> Came {
        let Some(asked) = self.queue.request(tag) else {
            tracing::error!(tag, "a request where there can be none");
            return Came::Nothing;
        };
        let range = ByteRange::new(asked.offset, asked.len);
        let done = |request, what| Came::Request(Asker::Ublk { tag, what }, request);
        // A flush is of no place.
        let placed = asked.operation != Operation::Flush;
        if placed && (!asked.offset.is_multiple_of(SECTOR) || !asked.len.is_multiple_of(SECTOR)) {
            self.answer(tag, INVALID, reactor);
            return Came::Nothing;
        }
        match asked.operation {
            Operation::Read => done(Request::Read(range), Answer::Read { offset: asked.offset }),
            Operation::Write { fua } => {
                let len = u32::try_from(asked.len).unwrap_or(u32::MAX);
                let mut buf = pool.take(len as usize);
                if let Err(error) = self.queue.read_data(tag, &mut buf) {
                    tracing::error!(tag, %error, "the data of a write cannot be had");
                    self.answer(tag, IO_ERROR, reactor);
                    return Came::Nothing;
                }
                let data = Data::whole(buf.into());
                done(Request::Write { range, data, fua }, Answer::Written { len })
            }
            Operation::Flush => done(Request::Flush, Answer::Done),
            Operation::Discard => {
                let (discard, fua) = (true, false);
                done(Request::Zero { range, discard, fua }, Answer::Done)
            }
            Operation::Zero { keep, fua } => {
                let discard = !keep;
                done(Request::Zero { range, discard, fua }, Answer::Done)
            }
            Operation::Unknown(code) => {
                tracing::error!(code, "the kernel asks for what is not known");
                self.answer(tag, INVALID, reactor);
                Came::Nothing
            }
        }
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, tag: u16, what: Answer, outcome: Done, reactor: &mut Reactor) {
        let result = match (outcome, what) {
            (Ok(Some(data)), Answer::Read { .. }) => self.give(tag, &data),
            (Ok(_), Answer::Written { len }) => i32::try_from(len).unwrap_or(IO_ERROR),
            (Ok(_), _) => 0,
            (Err(_), _) => IO_ERROR,
        };
        self.answer(tag, result, reactor);
    }

    fn give(&self, tag: u16, data: &Data) -> i32 {
        let bytes = data.buffer.get(data.range.clone()).unwrap_or_default();
        match self.queue.write_data(tag, bytes) {
            Ok(()) => i32::try_from(bytes.len()).unwrap_or(IO_ERROR),
            Err(error) => {
                // The device was stopped by force meanwhile.
                tracing::debug!(tag, %error, "the data of a read is not taken");
                IO_ERROR
            }
        }
    }

    fn answer(&self, tag: u16, result: i32, reactor: &mut Reactor) {
        reactor.driver(self.fd, ublk::commit(tag, result), self.token | u64::from(tag));
    }
}

/// ENODEV.
const NO_DEVICE: i32 = 19;
