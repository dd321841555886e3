//! Whom this node has heard of lately, in either direction, and for how long no leader could be heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Application, Node, PeerInfo};

/// When members were last heard.
#[derive(Debug, Clone)]
pub(crate) struct Contacts {
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug)]
struct Heard {
    /// Members that answered a call or made one, by id.
    members: BTreeMap<u64, Instant>,
    /// When a leader last sent entries or a heartbeat; at first, when the node was opened.
    led: Instant,
}

impl Default for Contacts {
    fn default() -> Self {
        let heard = Heard {
            members: BTreeMap::new(),
            led: Instant::now(),
        };
        Self {
            heard: Arc::new(Mutex::new(heard)),
        }
    }
}

impl Contacts {
    /// A member answered, or asked. Members are few, and their ids never used again.
    pub(crate) fn heard(&self, id: u64) {
        self.lock().members.insert(id, Instant::now());
    }

    /// The leader sent something that was accepted.
    pub(crate) fn led(&self, leader: u64) {
        let now = Instant::now();
        let mut heard = self.lock();
        heard.members.insert(leader, now);
        heard.led = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        // A panic while it was held can't have left a time half written.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn silent(&self, id: u64, patience: Duration) -> bool {
        self.members
            .get(&id)
            .is_none_or(|heard| heard.elapsed() >= patience)
    }
}

impl<A: Application> Node<A> {
    /// The voters this node has not heard for so long that an election would be over, when the rest is no majority
    /// and no leader is heard either: nothing can be decided until some of them are back. `None` while a leader is
    /// heard or may still be elected.
    pub fn cut_off(&self) -> Option<Vec<PeerInfo>> {
        let patience = self.inner.options.timing.patience();
        let view = self.inner.leadership.borrow().clone();
        let voters: Vec<PeerInfo> = self
            .members()
            .into_iter()
            .filter(|member| member.voter)
            .map(|member| member.peer)
            .collect();
        let heard = self.inner.contacts.lock();
        if !view.is_self && heard.led.elapsed() < patience {
            return None;
        }
        let all = voters.len();
        let silent: Vec<PeerInfo> = voters
            .into_iter()
            .filter(|peer| peer.id != self.me().id && heard.silent(peer.id, patience))
            .collect();
        // A former voter may be alone with others it does not count among itself.
        let reached = all - silent.len();
        (all > 0 && reached * 2 <= all).then_some(silent)
    }

    /// Whether this node knows a leader that it has heard lately, or leads with a majority itself.
    pub fn is_led(&self) -> bool {
        let view = self.inner.leadership.borrow().clone();
        if view.is_self {
            return self.cut_off().is_none();
        }
        let silence = self.inner.contacts.lock().led.elapsed();
        view.leader.is_some() && silence < self.inner.options.timing.patience()
    }
}
