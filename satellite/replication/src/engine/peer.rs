//! One replica as the engine sees it: its connection, what was sent and not answered, its lease.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::connection::RECONNECT_FIRST;
use super::message::{Purpose, Sent};
use super::resync::Sync;
use super::{Command, LinkId, REQUEST_DEADLINE, SILENCE, UNREACHABLE_AFTER};
use crate::catalogue::EjectReason;
use crate::ids::{CacheId, Loss, OpId, ReplicaId};
use crate::info::Info;
use crate::right::RightRefusal;
use crate::time::Time;
use crate::wire::Kind;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    Down {
        since: Time,
        retry_at: Time,
    },
    Connecting {
        link: LinkId,
        since: Time,
    },
    /// Waits for the promise.
    Opening {
        link: LinkId,
        /// As for the others: when it was last of use.
        since: Time,
        /// When the connection was made.
        made: Time,
        /// It has answered something on this connection: somebody is there and considers the promise.
        alive: bool,
    },
    Open {
        link: LinkId,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Peer<P> {
    /// Its bit in masks of acknowledgements.
    pub(super) bit: u16,
    pub(super) link: Link,
    pub(super) retry: Duration,
    pub(super) sent: BTreeMap<OpId, Sent<P>>,
    pub(super) lease: Time,
    /// When it last answered anything.
    pub(super) heard: Time,
    /// Told when it promised.
    pub(super) info: Option<Info>,
    /// It has been reached in this epoch, with this volatile state.
    pub(super) cache: Option<CacheId>,
    /// Moments (counted in acknowledged writes) for R9: acknowledged, and covered by a flush.
    pub(super) acked: u64,
    pub(super) flushed: u64,
    /// It lost acknowledged writes of this epoch and has not been made good yet (R9).
    pub(super) lost: bool,
    /// Its own dirty map, once read after a promise.
    pub(super) dirty: Option<crate::bitmap::Bitmap>,
    /// A reason to remove it that reconnecting does not cure.
    pub(super) fault: Option<EjectReason>,
    /// It refused this engine's right when it was last asked (R14). That passes: the right is renewed, its node
    /// hears of a key. Until then it is no more use than one that is away.
    pub(super) barred: Option<RightRefusal>,
    /// It had no room, and has taken no write since.
    pub(super) full: bool,
    /// It is being brought up to date.
    pub(super) sync: Option<Sync>,
    /// Not before this; and how long next time (case 18).
    pub(super) sync_at: Time,
    pub(super) hold: Duration,
    /// When it last joined the set under this engine.
    pub(super) joined: Option<Time>,
    /// Its dirty map while it is being read.
    pub(super) reading: Option<crate::bitmap::Bitmap>,
}

impl<P> Peer<P> {
    pub(super) fn new(now: Time, bit: u16) -> Self {
        Self {
            bit,
            link: Link::Down {
                since: now,
                retry_at: now,
            },
            retry: RECONNECT_FIRST,
            sent: BTreeMap::new(),
            lease: Time::default(),
            heard: now,
            info: None,
            cache: None,
            acked: 0,
            flushed: 0,
            lost: false,
            dirty: None,
            fault: None,
            barred: None,
            full: false,
            sync: None,
            sync_at: Time::default(),
            hold: Duration::ZERO,
            joined: None,
            reading: None,
        }
    }

    /// Promised, and its dirty map is known.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.link, Link::Open { .. }) && self.dirty.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// It has everything that was ever acknowledged while it was in the set.
    pub(super) fn is_right(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.loss == Loss::NONE)
    }

    /// How good a source for what members may differ in: the longer ago a member lost anything, the better.
    //= docs/replication.md#R8
    pub(super) fn worth(&self) -> Option<Reverse<Loss>> {
        if defect!(AnySource) {
            return None;
        }
        self.info.as_ref().map(|info| Reverse(info.loss))
    }

    /// It had no room for writes that are still to be done.
    pub(super) fn waits_for_room(&self) -> bool {
        self.full
            && self
                .sent
                .values()
                .any(|sent| matches!(sent.kind, Kind::Write | Kind::Zero))
    }

    /// Needs looking after more often than once a second.
    pub(super) fn is_moving(&self) -> bool {
        !self.is_open() || self.sync.is_some() || self.fault.is_some()
    }

    /// It can't be reached for `grace`. A replica that considers its promise is not away: it waits for I/O or
    /// a lease of an older epoch to end. A connection alone does not say that it does: the kernel makes those
    /// for a process that is stopped, too. One that refused the right may hear of the key it is signed with a
    /// moment later.
    pub(super) fn is_away(&self, now: Time, grace: Duration) -> bool {
        let grace = self.barred.map_or(grace, |_| grace.max(REQUEST_DEADLINE));
        match self.link {
            Link::Down { since, .. } | Link::Connecting { since, .. } => now.since(since) >= grace,
            Link::Opening {
                made, alive: true, ..
            } => now.since(made) >= REQUEST_DEADLINE,
            Link::Opening { since, made, .. } => {
                now.since(since) >= grace && now.since(made) >= UNREACHABLE_AFTER
            }
            Link::Open { .. } => false,
        }
    }

    /// When it is lost, if it goes on being silent though asked.
    pub(super) fn silent_at(&self) -> Option<Time> {
        let asked = |sent: &Sent<P>| matches!(sent.purpose, Purpose::Ping | Purpose::Knock);
        self.sent.values().any(asked).then(|| self.heard + SILENCE)
    }

    /// Since when it can't be reached.
    pub(super) fn down_since(&self) -> Option<Time> {
        match self.link {
            Link::Down { since, .. } | Link::Connecting { since, .. } | Link::Opening { since, .. } => {
                Some(since)
            }
            Link::Open { .. } => None,
        }
    }

    /// Writes it acknowledged may not be durable on it.
    pub(super) fn has_unflushed(&self) -> bool {
        self.acked > self.flushed
    }

    /// Writes of earlier epochs may not be durable on it.
    pub(super) fn assume_unflushed(&mut self) {
        self.acked += 1;
    }

    pub(super) fn close(&mut self, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        if let Some(link) = self.link_id() {
            out.push(Command::Disconnect { replica, link });
        }
        let since = self.down_since().unwrap_or(self.heard);
        self.link = Link::Down {
            since,
            retry_at: since,
        };
        self.sent.clear();
    }

    pub(super) fn link_id(&self) -> Option<LinkId> {
        match self.link {
            Link::Down { .. } => None,
            Link::Connecting { link, .. } | Link::Opening { link, .. } | Link::Open { link } => Some(link),
        }
    }
}
