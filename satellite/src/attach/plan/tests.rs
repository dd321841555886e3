//! The plan, state by state: what is there and what is wanted → the next step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod driver;
mod end;
mod fuse;
mod serve;

use std::collections::BTreeMap;

use stor_replication::ids::{ConfigSeq, Lineage, View, VolumeId};

use super::*;

const SOCKET: Access = Access {
    transport: TransportKind::Socket,
    read_only: false,
};
const FUSE: Access = Access {
    transport: TransportKind::Fuse,
    read_only: false,
};
const FUSE_READ_ONLY: Access = Access {
    transport: TransportKind::Fuse,
    read_only: true,
};
const SERVE: Goal = Goal::Serve(SOCKET);
const SERVE_FUSE: Goal = Goal::Serve(FUSE);

fn facts(goal: Goal, epoch: u64, used: u64, now: Instant) -> Facts {
    let row = VolumeRow {
        volume: VolumeId::default(),
        size: 4096,
        revision: epoch,
        view: View {
            epoch: Epoch(epoch),
            config: ConfigSeq(0),
        },
        owner: Some("k1".to_owned()),
        clean: false,
        clean_before: false,
        lineage: Lineage::default(),
        min_in_sync: 1,
        replicas: BTreeMap::new(),
    };
    Facts {
        node: "k1".to_owned(),
        goal,
        row: Some(row),
        used: Epoch(used),
        engine: Engine::Absent { not_before: now },
        device: Device::None,
        connection: false,
        waits: None,
        free: false,
        ready: false,
        connection_epoch: None,
        loop_read_only: None,
        device_behind: false,
        device_not_before: now,
        device_busy: false,
        asking: false,
        ask_not_before: now,
        clean: None,
        given_up: None,
    }
}

fn running(epoch: u64, stopping: Option<Instant>) -> Engine {
    Engine::Running {
        epoch: Epoch(epoch),
        serving: true,
        stopping,
        ended: false,
    }
}

/// What is different, how, and what is to be done then.
type Case = (&'static str, fn(&mut Facts, Instant), Step);

fn steps(facts: &Facts, now: Instant, changes: &[Case]) {
    for (what, change, expected) in changes {
        let mut facts = facts.clone();
        change(&mut facts, now);
        assert_eq!(next(&facts, now), *expected, "{what}: {facts:#?}");
    }
}
