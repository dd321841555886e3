//! What must hold, and what clients were told.

use crate::state::{Bad, Ghost, State, bit, each};

/// A value may be older than what clients of before were told: those who held it are gone.
fn is_excused(ghost: &Ghost, client: u8) -> bool {
    ghost.excused && ghost.told < client
}

/// Which property a read of `value` by this engine's client breaks.
pub(crate) fn verdict(state: &State, engine: usize, value: u8) -> Bad {
    let ghost = &state.ghost;
    let client = state.engines[engine].client;
    if value < ghost.flushed {
        Bad::FlushedLost
    } else if is_excused(ghost, client) {
        Bad::No
    } else if value < ghost.acked {
        Bad::AckedLost
    } else if value < ghost.seen {
        Bad::ReadWentBack
    } else {
        Bad::No
    }
}

/// What a flush that begins now will vouch for.
pub(crate) fn known_written(state: &State, engine: usize) -> u8 {
    let ghost = &state.ghost;
    if is_excused(ghost, state.engines[engine].client) {
        ghost.flushed
    } else {
        ghost.floor()
    }
}

/// A client is told something by this engine.
fn told(state: &mut State, engine: usize) {
    let (epoch, client) = (state.engines[engine].epoch, state.engines[engine].client);
    let ghost = &mut state.ghost;
    if is_excused(ghost, client) {
        ghost.excused = false;
        ghost.acked = ghost.flushed;
        ghost.seen = ghost.flushed;
    }
    ghost.top = ghost.top.max(epoch);
    ghost.told = ghost.told.max(client);
}

/// A write is answered. An engine that was superseded may answer what all its members had done before; if
/// power was cut since, that is as if the answer had come first.
pub(crate) fn acknowledged(state: &mut State, engine: usize, value: u8) {
    let superseded = state.engines[engine].epoch < state.catalogue.epoch;
    let held = each(state.catalogue.isr).any(|replica| state.replicas[replica].value >= value);
    if superseded && !held {
        return;
    }
    told(state, engine);
    if value > state.ghost.floor() {
        // What was lost before excuses nothing of this.
        state.ghost.excused = false;
    }
    state.ghost.acked = state.ghost.acked.max(value);
    // A member may have lost it between its answer and the client's.
    excuse(state);
}

/// A read is answered.
pub(crate) fn seen(state: &mut State, engine: usize, value: u8) {
    told(state, engine);
    state.ghost.seen = state.ghost.seen.max(value);
}

/// After a loss of power or a removal: if no in-sync replica is left that holds what clients were told and
/// kept power since it got it, a newer client may find an older value.
pub(crate) fn excuse(state: &mut State) {
    let floor = state.ghost.floor();
    let holds = |replica: usize| {
        let of = &state.replicas[replica];
        of.value >= floor && of.solid
    };
    if floor > state.ghost.flushed && !each(state.catalogue.isr).any(holds) {
        state.ghost.excused = true;
    }
}

/// Two in-sync replicas call the region clean and differ.
pub(crate) fn members_differ(state: &State) -> bool {
    let mut clean = each(state.catalogue.isr).filter(|replica| !state.replicas[*replica].dirty);
    let first = clean.next();
    first.is_some_and(|first| clean.any(|other| state.replicas[other].value != state.replicas[first].value))
        && !state.catalogue.restored
}

/// What a flush was answered for is not on the disk of every in-sync replica.
pub(crate) fn flushed_is_missing(state: &State) -> bool {
    let least = |replica: usize| state.replicas[replica].durable.trailing_zeros();
    let lacks = |replica: usize| least(replica) < state.ghost.flushed.into();
    each(state.catalogue.isr).any(lacks) && !state.catalogue.restored
}

/// The members of a ready snapshot do not agree, or lack what was acknowledged before it was asked for.
pub(crate) fn snapshots_differ(state: &State) -> bool {
    let mut held = each(state.catalogue.snapshot).map(|replica| state.replicas[replica].snapshot);
    let Some(first) = held.next() else { return false };
    first <= state.ghost.snapshot || held.any(|other| other != first)
}

/// The property a state breaks, in words.
pub fn broken(state: &State) -> Option<&'static str> {
    let words = match state.ghost.bad {
        Bad::FlushedLost => "a flushed write is lost",
        Bad::AckedLost => "an acknowledged write is lost",
        Bad::ReadWentBack => "a read goes back behind another",
        Bad::TwoEpochs => "an older epoch answers after a newer",
        Bad::TooFewCopies => "answered with fewer copies than the minimum",
        Bad::No if flushed_is_missing(state) => "a flushed write is not on every in-sync disk",
        Bad::No if members_differ(state) => "in-sync members differ where clean",
        Bad::No if snapshots_differ(state) => "a ready snapshot differs between members or lacks a write",
        Bad::No => return None,
    };
    Some(words)
}

/// Whether a replica is in sync.
pub fn is_member(state: &State, replica: usize) -> bool {
    state.catalogue.isr & bit(replica) != 0
}
