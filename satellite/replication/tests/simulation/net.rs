//! Connections: in order each way, delayed, stalled by a cut, ended with messages under way lost or not.

use stor_replication::body::Body;
use stor_replication::engine::{self, LinkId};
use stor_replication::ids::{ConnId, ReplicaId};
use stor_replication::replica;
use stor_replication::right::Authorised;
use stor_replication::wire::{Header, Kind, WireError};

use super::disk::Data;
use super::frames::Frame;
use super::world::{Conn, Dir, MS, Packet, Pipe, SECOND, Satellite, What, World};

impl World {
    fn delay(&mut self) -> u64 {
        let slow = self.plan.slow_net;
        if self.rng.chance(slow) {
            self.rng.spread(MS, 200 * MS)
        } else {
            self.rng.between(20, 400)
        }
    }

    pub(crate) fn connect(&mut self, engine: u64, replica: ReplicaId, link: LinkId) {
        let from = self.engines[&engine].node;
        let node = self
            .nodes
            .iter()
            .position(|n| n.store.as_ref().is_some_and(|(id, _)| *id == replica));
        // An address of a replica that was replaced: nobody answers.
        let Some(mut node) = node else { return };
        // The address is another's by now.
        let misrouted = self.rng.chance(self.plan.misrouted);
        if misrouted {
            node = self.rng.index(self.plan.copies);
        }
        let id = self.id();
        self.conns.insert(
            id,
            Conn {
                engine,
                link,
                replica,
                from,
                node,
                misrouted,
                process: None,
                engine_side: true,
                to_replica: Pipe::default(),
                to_engine: Pipe::default(),
            },
        );
        self.engines.get_mut(&engine).unwrap().links.insert(link, id);
        let delay = self.delay();
        self.after(delay, What::Syn(id));
    }

    pub(crate) fn syn(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, node, replica) = (conn.from, conn.node, conn.replica);
        if !conn.engine_side {
            self.conns.remove(&id);
            return;
        }
        let delay = self.delay();
        if !self.nodes[node].up || self.cut[from][node] {
            // The engine gives up by itself, or the kernel does.
            if self.rng.chance(30) {
                let delay = self.rng.between(SECOND, 5 * SECOND);
                self.after(delay, What::ConnectFailed(id));
            }
            return;
        }
        let serves = self.nodes[node]
            .store
            .as_ref()
            .is_some_and(|(id, _)| *id == replica);
        let serves = serves || self.conns[&id].misrouted;
        match self.nodes[node].satellite.as_mut().filter(|_| serves) {
            None => self.after(delay, What::ConnectFailed(id)),
            Some(satellite) => {
                satellite.conns.insert(ConnId(id), id);
                self.conns.get_mut(&id).unwrap().process = Some(satellite.process);
                self.after(delay, What::Accepted(id));
            }
        }
    }

    pub(crate) fn accepted(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, node, engine, replica, link) =
            (conn.from, conn.node, conn.engine, conn.replica, conn.link);
        if self.cut[node][from] {
            return self.after(50 * MS, What::Accepted(id));
        }
        if conn.engine_side {
            self.engine_event(engine, engine::Event::Connected { replica, link });
        }
    }

    /// Sends a message: as bytes, if they are damaged on the way.
    pub(crate) fn put_message(&mut self, id: u64, dir: Dir, header: Header, body: Body<Data>) {
        let mut frame = Frame::new(&header, &body);
        match frame.read() {
            Ok((same, _)) if same == header => {}
            other => return self.violate(format!("{header:?} comes back as {other:?}")),
        }
        let damaged = self.plan.damaged;
        if self.rng.below(10_000) < damaged {
            frame.damage(&mut self.rng);
            return self.put(id, dir, Packet::Damaged(frame));
        }
        self.put(id, dir, Packet::Message(header, body));
    }

    pub(crate) fn put(&mut self, id: u64, dir: Dir, packet: Packet) {
        let delay = self.delay();
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let pipe = match dir {
            Dir::ToReplica => &mut conn.to_replica,
            Dir::ToEngine => &mut conn.to_engine,
        };
        pipe.last = pipe.last.max(now + delay);
        let at = pipe.last;
        pipe.packets.push_back((at, packet));
        if !pipe.pumping {
            pipe.pumping = true;
            self.at(at, What::Pump(id, dir));
        }
    }

    pub(crate) fn pump(&mut self, id: u64, dir: Dir) {
        let now = self.now;
        let cut = {
            let Some(conn) = self.conns.get(&id) else { return };
            match dir {
                Dir::ToReplica => self.cut[conn.from][conn.node],
                Dir::ToEngine => self.cut[conn.node][conn.from],
            }
        };
        if cut {
            return self.after(30 * MS, What::Pump(id, dir));
        }
        let conn = self.conns.get_mut(&id).unwrap();
        let (engine, node, process, link, replica) =
            (conn.engine, conn.node, conn.process, conn.link, conn.replica);
        let pipe = match dir {
            Dir::ToReplica => &mut conn.to_replica,
            Dir::ToEngine => &mut conn.to_engine,
        };
        let Some((at, packet)) = pipe.packets.pop_front() else {
            pipe.pumping = false;
            return;
        };
        if at > now {
            pipe.packets.push_front((at, packet));
            return self.at(at, What::Pump(id, dir));
        }
        let next = pipe.packets.front().map(|(at, _)| *at);
        pipe.pumping = next.is_some();
        if let Some(next) = next {
            self.at(next, What::Pump(id, dir));
        }
        let packet = match packet {
            Packet::Damaged(frame) => match frame.read() {
                Ok((header, body)) => Packet::Message(header, body),
                Err(error) => return self.refuse_damaged(id, dir, &error),
            },
            other => other,
        };
        match (dir, packet) {
            (Dir::ToReplica, packet) => {
                let here = self.nodes[node].satellite.as_ref();
                if here.is_none_or(|s| Some(s.process) != process || !s.conns.contains_key(&ConnId(id))) {
                    // Nobody there: the machine, if it is up, says so.
                    if self.nodes[node].up {
                        self.put(id, Dir::ToEngine, Packet::End);
                    }
                    return;
                }
                match packet {
                    Packet::Message(header, body) => {
                        let conn = ConnId(id);
                        self.note_whole(id, engine, node, &header);
                        let event = if header.kind == Kind::Open {
                            let authorised = granted(&header);
                            replica::Event::Open {
                                conn,
                                header,
                                authorised,
                            }
                        } else {
                            replica::Event::Request { conn, header, body }
                        };
                        self.replica_event(node, event);
                    }
                    Packet::Damaged(_) => {}
                    Packet::End => {
                        self.nodes[node]
                            .satellite
                            .as_mut()
                            .unwrap()
                            .conns
                            .remove(&ConnId(id));
                        self.replica_event(node, replica::Event::Gone { conn: ConnId(id) });
                        self.forget_conn(id);
                    }
                }
            }
            (Dir::ToEngine, Packet::Damaged(_)) => {}
            (Dir::ToEngine, Packet::End) => self.end_at_engine(id),
            (Dir::ToEngine, Packet::Message(header, body)) => {
                if self.conns[&id].engine_side {
                    self.engine_event(
                        engine,
                        engine::Event::Answer {
                            replica,
                            link,
                            header,
                            body,
                        },
                    );
                }
            }
        }
    }

    /// Bytes that are no message end their connection, on both sides.
    fn refuse_damaged(&mut self, id: u64, dir: Dir, error: &WireError) {
        self.log(|| format!("c{id} {dir:?}: {error}"));
        let Some(conn) = self.conns.get(&id) else { return };
        let node = conn.node;
        match dir {
            Dir::ToReplica => {
                let known = |satellite: &Satellite| satellite.conns.contains_key(&ConnId(id));
                if self.nodes[node].satellite.as_ref().is_some_and(known) {
                    self.close_at_replica(id);
                    self.replica_event(node, replica::Event::Gone { conn: ConnId(id) });
                }
            }
            Dir::ToEngine => {
                let lost = self.rng.chance(50);
                if lost && let Some(conn) = self.conns.get_mut(&id) {
                    conn.to_replica.packets.clear();
                }
                self.put(id, Dir::ToReplica, Packet::End);
                self.end_at_engine(id);
            }
        }
    }

    /// The engine learns that a connection is gone.
    pub(crate) fn end_at_engine(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut conn.engine_side) {
            let (engine, replica, link) = (conn.engine, conn.replica, conn.link);
            if let Some(process) = self.engines.get_mut(&engine) {
                process.links.remove(&link);
            }
            self.engine_event(engine, engine::Event::Lost { replica, link });
        }
        self.forget_conn(id);
    }

    /// The engine, or its kernel, closes a connection: what it sent may still arrive.
    pub(crate) fn close_at_engine(&mut self, id: u64) {
        let lost = self.rng.chance(50);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.engine_side = false;
        if lost {
            let kept = self.rng.index(conn.to_replica.packets.len() + 1);
            conn.to_replica.packets.truncate(kept);
        }
        self.put(id, Dir::ToReplica, Packet::End);
    }

    /// The replica's side closes.
    pub(crate) fn close_at_replica(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let node = conn.node;
        if let Some(satellite) = &mut self.nodes[node].satellite {
            satellite.conns.remove(&ConnId(id));
        }
        self.put(id, Dir::ToEngine, Packet::End);
    }

    /// The connection breaks: each side learns it some time, what is under way is partly lost.
    pub(crate) fn break_conn(&mut self, id: u64) {
        for dir in [Dir::ToReplica, Dir::ToEngine] {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let pipe = match dir {
                Dir::ToReplica => &mut conn.to_replica,
                Dir::ToEngine => &mut conn.to_engine,
            };
            let kept = self.rng.index(pipe.packets.len() + 1);
            pipe.packets.truncate(kept);
            let late = self.rng.spread(MS, 4 * SECOND);
            pipe.last = pipe.last.max(self.now + late);
            self.put(id, dir, Packet::End);
        }
    }

    fn forget_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let there = self.nodes[conn.node]
            .satellite
            .as_ref()
            .is_some_and(|satellite| satellite.conns.contains_key(&ConnId(id)));
        if !conn.engine_side && !there && conn.to_replica.packets.is_empty() {
            self.conns.remove(&id);
        }
    }
}

/// Engines of this world have their epochs from its catalogue, and with them the right to them.
#[expect(
    clippy::disallowed_methods,
    reason = "the world stands for the shell that checked"
)]
fn granted(header: &Header) -> Authorised {
    Authorised::checked(header.volume, header.view.epoch)
}
