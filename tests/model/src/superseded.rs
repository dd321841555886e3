//! What an engine that was superseded still remembers and can never use again is forgotten, so that states
//! that differ in nothing else are one state. It must not take away anything that could still happen.

use crate::catalogue::end;
use crate::protocol::is_live;
use crate::state::{Asked, Flush, OpKind, Phase, REPLICAS, State, bit};

pub(crate) fn forget(state: &mut State) {
    for engine in 0..state.engines.len() {
        let of = &state.engines[engine];
        if is_live(of) && of.epoch < state.catalogue.epoch {
            forget_of(state, engine);
        }
    }
}

fn forget_of(state: &mut State, engine: usize) {
    let epoch = state.engines[engine].epoch;
    // Replicas that refuse it for good.
    let gone = (0..REPLICAS)
        .filter(|replica| state.replicas[*replica].fence > epoch)
        .fold(0, |mask, replica| mask | bit(replica));
    let of = &mut state.engines[engine];
    for replica in (0..REPLICAS).filter(|replica| gone & bit(*replica) != 0) {
        of.tell[replica] = 0;
        of.loss[replica] = 0;
    }
    of.clean &= !gone;
    of.sync.clear &= !gone;
    of.unflushed &= !gone;
    of.reached &= !gone;
    of.changed &= !gone;
    of.lost &= !gone;
    // The lease of a member that is not needed for anything changes nothing.
    if gone & of.isr != of.isr {
        return;
    }
    // Nothing of it reaches a member any more: what is left is to answer what they all had done before.
    let undecided = of.proposal.stage != Asked::No;
    for op in &mut of.ops {
        let answerable = op.kind == OpKind::Write && !op.answered && op.done & of.isr == of.isr;
        if !answerable && !undecided {
            *op = crate::state::Op::default();
        }
        op.accepted = op.done;
    }
    if of.flush.done & of.isr != of.isr && !undecided {
        of.flush = Flush::default();
    }
    of.flush.since = 0;
    let open = (0..REPLICAS).any(|replica| state.replicas[replica].session == epoch);
    let waits = of.flush.on || undecided || of.ops.iter().any(|op| op.kind != OpKind::None);
    if !waits && !open {
        end(state, engine, Phase::Ended);
    }
}
