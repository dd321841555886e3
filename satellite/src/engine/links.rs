//! The engine's connections to replicas.

use std::net::SocketAddr;

use stor_device::{Completion, Fd};
use stor_replication::engine::{Event, LinkId};
use stor_replication::ids::ReplicaId;

use super::shell::{CONNECT, LINK_RECV, LINK_SEND, Shell, now};
use crate::channel::Channel;

/// A connection, or the attempt at one.
pub(super) struct Link {
    pub(super) replica: ReplicaId,
    pub(super) fd: Fd,
    pub(super) channel: Option<Channel>,
}

impl Shell {
    pub(super) fn connect(&mut self, replica: ReplicaId, link: LinkId) {
        let address = self
            .config
            .addresses
            .iter()
            .find(|(of, _)| *of == replica)
            .map(|(_, address)| address);
        // Names were resolved when the configuration came.
        let Some(address) = address.and_then(|address| address.parse::<SocketAddr>().ok()) else {
            // The engine finds the attempt silent and tries again.
            return tracing::debug!(%replica, link = link.0, "its node's address is not known");
        };
        let fd = self.reactor.connect(address, CONNECT | link.0);
        self.links.insert(
            link.0,
            Link {
                replica,
                fd,
                channel: None,
            },
        );
    }

    pub(super) fn connected(&mut self, id: u64, completion: Completion) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let replica = link.replica;
        match completion.result {
            Ok(_) => {
                let fd = link.fd;
                link.channel = Some(Channel::new(
                    fd,
                    LINK_RECV | id,
                    LINK_SEND | id,
                    &mut self.reactor,
                    &self.pool,
                ));
                self.step(Event::Connected {
                    replica,
                    link: LinkId(id),
                });
            }
            Err(error) => {
                tracing::debug!(%replica, %error, "no connection");
                self.links.remove(&id);
                self.step(Event::Lost {
                    replica,
                    link: LinkId(id),
                });
            }
        }
    }

    pub(super) fn link_received(&mut self, id: u64, completion: Completion) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let replica = link.replica;
        let Some(channel) = &mut link.channel else { return };
        let mut messages = Vec::new();
        let received = channel.received(completion, &mut self.reactor, &self.pool, &mut messages);
        for (header, body) in messages {
            self.step(Event::Answer {
                replica,
                link: LinkId(id),
                header,
                body,
            });
        }
        if let Err(error) = received {
            self.link_lost(id, &error.to_string());
        }
    }

    pub(super) fn link_lost(&mut self, id: u64, why: &str) {
        if let Some(link) = self.links.remove(&id) {
            // One that takes connections and ends them is dialled for as long as the volume is attached.
            if let Some(times) = self.quiet.say(now(), &format!("{} {why}", link.replica)) {
                tracing::info!(replica = %link.replica, why, times, "connection to a replica lost");
            }
            self.reactor.close(link.fd);
            self.step(Event::Lost {
                replica: link.replica,
                link: LinkId(id),
            });
        }
    }
}
