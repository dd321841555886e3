//! An engine gets its promises, begins to serve, loses a connection.

use crate::catalogue::end;
use crate::membership::may_lose;
use crate::protocol::{Protocol, Step, is_live, is_open, open_of};
use crate::replica::{end_session, has_older_lease};
use crate::rules::Rule;
use crate::state::{
    AbsentMap, Asked, Engine, Flush, NOBODY, Op, OpKind, Phase, REPLICAS, Replica, Stage, State, UNKNOWN,
    bit, each,
};
use crate::{io, resync};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    for replica in 0..model.scope.replicas {
        let at = &state.replicas[replica];
        let opens = matches!(of.phase, Phase::Starting | Phase::Active | Phase::Stopping);
        if opens && at.fence < of.epoch {
            steps.push(Step::Fence { engine, replica });
        }
        if opens && may_promise(model, state, engine, replica) {
            steps.push(Step::Promise { engine, replica });
            // That it finds out and that the engine hears of it are two things only if another may come between.
            if !at.kept && each(of.isr).any(|other| other != replica && !state.replicas[other].kept) {
                steps.push(Step::Notice { engine, replica });
            }
        }
        if of.tell[replica] != 0 && is_open(state, engine, replica) {
            steps.push(Step::Tell { engine, replica });
        }
        // Only where somebody waits for it.
        if of.leased & bit(replica) != 0 && at.fence > of.epoch {
            steps.push(Step::LeaseEnds { engine, replica });
        }
    }
    let ready = of.proposal.stage == Asked::No && open_of(state, engine, of.isr) == of.isr;
    if of.phase == Phase::Starting && ready {
        for source in sources_at_start(model, state, engine) {
            steps.push(Step::Activate { engine, source });
        }
    }
}

/// Who may be the source of the regions that are dirty at the start.
fn sources_at_start(model: &Protocol, state: &State, engine: usize) -> Vec<u8> {
    let of = &state.engines[engine];
    if !each(of.isr).any(|replica| state.replicas[replica].dirty) {
        return vec![NOBODY];
    }
    let best = each(of.isr).map(|replica| of.loss[replica]).min();
    each(of.isr)
        .filter(|replica| !model.on(Rule::Source) || Some(of.loss[*replica]) == best)
        .filter_map(|replica| u8::try_from(replica).ok())
        .collect()
}

/// A replica that has nothing to wait for promises at once.
pub(crate) fn fence(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let (epoch, isr) = (state.engines[engine].epoch, state.engines[engine].isr);
    let at = &mut state.replicas[replica];
    at.fence = epoch;
    at.blind = false;
    end_session(at);
    if isr & bit(replica) == 0 {
        forget(at);
    }
    if may_promise(model, state, engine, replica) {
        promise(model, state, engine, replica);
    }
}

/// It is not a member: it does not claim to be one, nor to know what others miss (R13).
fn forget(replica: &mut Replica) {
    replica.members = 0;
    replica.maps = Default::default();
}

fn may_promise(model: &Protocol, state: &State, engine: usize, replica: usize) -> bool {
    let of = &state.engines[engine];
    let at = &state.replicas[replica];
    let undecided = of.proposal.stage != Asked::No
        && of.proposal.add
        && of.proposal.who & bit(replica) != 0
        && of.isr & bit(replica) == 0;
    if at.fence != of.epoch || at.session == of.epoch || at.failed || undecided {
        return false;
    }
    let waits = |own: bool| {
        if own {
            model.on(Rule::Reopen)
        } else {
            model.on(Rule::Drain)
        }
    };
    let drained = at
        .disk
        .iter()
        .all(|pending| !pending.busy || !waits(pending.epoch == of.epoch));
    let leased = model.on(Rule::LeaseWait) && !at.blind && has_older_lease(state, replica);
    // Refused before, for a reason that lasts.
    let pointless = of.fault & bit(replica) != 0 && refuses(model, state, engine, replica);
    drained && !leased && !pointless
}

/// A member that can't be used as it is (R9, R11).
fn refuses(model: &Protocol, state: &State, engine: usize, replica: usize) -> bool {
    let of = &state.engines[engine];
    if of.isr & bit(replica) == 0 {
        return false;
    }
    let vouches = state.replicas[replica].members & bit(replica) != 0 || !model.on(Rule::Vouch);
    let nobody = !each(of.isr).any(|member| member != replica && honours(of, member));
    !vouches || (cache_lost(model, of, replica) && (may_lose(model, of, replica) || nobody))
}

fn cache_lost(model: &Protocol, of: &Engine, replica: usize) -> bool {
    model.on(Rule::CacheId) && of.changed & of.unflushed & of.isr & bit(replica) != 0
}

/// It has everything its client holds an acknowledgement for.
pub(crate) fn honours(of: &Engine, replica: usize) -> bool {
    of.lost & bit(replica) == 0 && (of.loss[replica] == 0 || !of.inherited)
}

/// Unequal, and a member may lack what was acknowledged.
pub(crate) fn in_doubt(of: &Engine) -> bool {
    of.unequal && each(of.isr).any(|replica| of.loss[replica] != 0)
}

fn serves(of: &Engine) -> bool {
    matches!(of.phase, Phase::Active | Phase::Stopping)
}

/// A promise is given, and the engine looks at what it says of the replica.
pub(crate) fn promise(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let me = bit(replica);
    if state.replicas[replica].config > state.engines[engine].config && model.on(Rule::Behind) {
        return end(state, engine, Phase::Failed);
    }
    notice_loss(model, state, engine, replica);
    let refused = refuses(model, state, engine, replica);
    let of = &mut state.engines[engine];
    let member = of.isr & me != 0;
    if cache_lost(model, of, replica) {
        of.loss[replica] = UNKNOWN;
        of.lost |= me;
        if !refused {
            doubt(model, of, replica);
        }
    }
    if refused {
        of.fault |= me;
        return settle(model, state, engine);
    }
    of.reached |= me;
    of.changed &= !me;
    of.fault &= !me;
    of.leased |= me;
    let at = &mut state.replicas[replica];
    at.session = of.epoch;
    of.loss[replica] = at.doubt;
    if !member {
        forget(at);
        return;
    }
    if serves(of) && at.dirty {
        of.tracked = true;
        of.covered = false;
    }
    // The view is the first thing it is told on the new connection.
    say_view(of, replica);
    tell(model, state, engine, replica);
}

/// The replica finds that its volatile state is another one, and stores that before it promises (R8).
pub(crate) fn notice_loss(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let found = |replica: &Replica| replica.doubt;
    let newest = state.replicas.iter().map(found).max().unwrap_or(0);
    let epoch = state.engines[engine].epoch;
    let at = &mut state.replicas[replica];
    if !at.kept && model.on(Rule::CacheId) && model.on(Rule::Doubt) {
        at.doubt = if model.on(Rule::LossOrder) {
            newest + 1
        } else {
            epoch
        };
    }
    at.kept = true;
}

/// What was dirty when a member lost its cache is unequal from here on (R9).
fn doubt(model: &Protocol, of: &mut Engine, replica: usize) {
    of.unequal |= of.tracked && model.on(Rule::Repair);
    of.source = NOBODY;
    let unanswered = |op: &&mut Op| op.kind == OpKind::Write && !op.answered;
    if model.on(Rule::RecallWrites) {
        for op in of.ops.iter_mut().filter(unanswered) {
            op.done &= !bit(replica);
            op.accepted &= !bit(replica);
        }
    }
    for op in of.ops.iter_mut().filter(|op| op.kind == OpKind::Repair) {
        op.stale = model.on(Rule::RecallCopies);
    }
    if model.on(Rule::Recall) {
        of.flush = Flush::default();
        if of.snapping == 2 {
            of.snapping = 1;
        }
    }
}

/// The view goes out to a member, with the word that what it holds is right if it is.
pub(crate) fn say_view(of: &mut Engine, replica: usize) {
    let whole = serves(of) && (!of.unequal || usize::from(of.source) == replica);
    of.tell[replica] = of.tell[replica].max(if whole { 2 } else { 1 });
    if whole {
        of.lost &= !bit(replica);
        of.loss[replica] = 0;
    }
}

/// A replica stores the view, with the maps of those who left (R10).
pub(crate) fn tell(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let of = &mut state.engines[engine];
    let whole = of.tell[replica] == 2;
    of.tell[replica] = 0;
    of.gate = false;
    let (isr, since, config) = (of.isr, of.since, of.config);
    store_view(
        &mut state.replicas[replica],
        isr,
        since,
        config,
        model.on(Rule::MapStart),
    );
    if whole {
        state.replicas[replica].doubt = 0;
    }
    settle(model, state, engine);
}

/// Maps of replicas that are back end; those of members that left begin with what is dirty.
pub(crate) fn store_view(at: &mut Replica, isr: u8, since: [u8; REPLICAS], config: u8, from_dirty: bool) {
    for (absent, map) in at.maps.iter_mut().enumerate() {
        let away = since[absent] != 0 && isr & bit(absent) == 0;
        if !away || map.since != since[absent] {
            *map = AbsentMap::default();
        }
        if away && at.members & bit(absent) != 0 {
            let missed = map.missed || (at.dirty && from_dirty);
            *map = AbsentMap {
                since: since[absent],
                missed,
                stored: missed,
            };
        }
    }
    at.config = config;
    at.members = isr;
}

pub(crate) fn activate(model: &Protocol, state: &mut State, engine: usize, source: u8) {
    let of = &mut state.engines[engine];
    if source != NOBODY {
        let right = of.loss[usize::from(source)] == 0;
        if of.inherited && !right && model.on(Rule::LoseDevice) {
            return end(state, engine, Phase::Failed);
        }
        of.unequal = model.on(Rule::Repair);
        of.source = source;
        of.tracked = true;
        of.covered = false;
        of.unflushed |= of.isr;
    }
    of.phase = Phase::Active;
    if of.unequal && of.loss[usize::from(source)] != 0 {
        say_view(of, source.into());
    }
    settle(model, state, engine);
}

/// What an engine does at once after anything happened.
pub(crate) fn settle(model: &Protocol, state: &mut State, engine: usize) {
    for op in 0..state.engines[engine].ops.len() {
        io::answer(model, state, engine, op);
        retire(state, engine, op);
    }
    io::flush_answer(model, state, engine);
    let of = &mut state.engines[engine];
    if !is_live(of) {
        return;
    }
    let nobody = !each(of.isr).any(|replica| honours(of, replica));
    if of.unequal && of.isr.count_ones() <= 1 && !nobody {
        of.unequal = false;
    }
    let lose = model.on(Rule::LoseDevice) && serves(of) && of.unequal && nobody;
    if lose || (of.isr != 0 && of.fault & of.isr == of.isr) {
        return end(state, engine, Phase::Failed);
    }
    if serves(of) && !of.unequal {
        of.source = NOBODY;
        for replica in each(open_of(state, engine, state.engines[engine].isr)) {
            let of = &mut state.engines[engine];
            if of.loss[replica] != 0 {
                say_view(of, replica);
            }
        }
    }
}

/// A request that nobody owes any more is over.
fn retire(state: &mut State, engine: usize, op: usize) {
    let of = &mut state.engines[engine];
    let Op {
        kind,
        awaited,
        done,
        answered,
        stale,
        ..
    } = of.ops[op];
    let complete = awaited & !done == 0;
    let over = match kind {
        OpKind::None => false,
        OpKind::Write => answered && complete,
        OpKind::Repair | OpKind::Resync => complete,
    };
    if !over {
        return;
    }
    of.ops[op] = Op::default();
    match kind {
        OpKind::Repair => of.unequal &= stale,
        OpKind::Resync => {
            of.sync.need = false;
            of.sync.copied = true;
        }
        OpKind::None | OpKind::Write => {}
    }
    if kind != OpKind::Resync {
        of.covered = false;
        of.flush.touched = of.flush.on;
    }
}

/// A connection is gone. What a member was sent is sent again, what another was sent is forgotten.
pub(crate) fn link_down(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let me = bit(replica);
    let of = &mut state.engines[engine];
    for op in &mut of.ops {
        op.accepted &= !me | op.done;
    }
    of.tell[replica] = 0;
    of.clean &= !me;
    of.sync.clear &= !me;
    if of.isr & me == 0 {
        if usize::from(of.sync.target) == replica {
            resync::give_up(of);
        }
        if of.proposal.stage == Asked::No || !of.proposal.add || of.proposal.who & me == 0 {
            write_off(of, replica);
        }
    }
    settle(model, state, engine);
}

/// What a replica outside the set owes is of no account any more.
pub(crate) fn write_off(of: &mut Engine, replica: usize) {
    for op in &mut of.ops {
        op.awaited &= !bit(replica);
        op.accepted &= !bit(replica);
        op.done &= !bit(replica);
    }
    of.flush.done &= !bit(replica);
}

/// The replica whose answer counts though it is not in the set yet (R3).
pub(crate) fn joining(of: &Engine) -> u8 {
    if of.proposal.stage != Asked::No && of.proposal.add {
        of.proposal.who
    } else if of.sync.target != NOBODY && of.sync.stage >= Stage::Joint {
        1 << of.sync.target
    } else {
        0
    }
}
