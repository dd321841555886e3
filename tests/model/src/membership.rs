//! The in-sync set as an engine sees it: removing members, taking over what the catalogue decided.

use crate::catalogue::{decide, end};
use crate::engine::{link_down, say_view, settle, write_off};
use crate::properties::excuse;
use crate::protocol::{Protocol, Step, is_open, open_of};
use crate::replica::end_session;
use crate::rules::Rule;
use crate::state::{Asked, Engine, NOBODY, Phase, Proposal, Resync, State, bit, each};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let room = state.catalogue.config < model.scope.configs;
    if room && matches!(of.phase, Phase::Starting | Phase::Active | Phase::Stopping) {
        for who in 1..8 {
            if may_remove(model, state, engine, who) {
                steps.push(Step::Remove { engine, who });
            }
        }
    }
    let knows = match of.proposal.stage {
        Asked::Made | Asked::Refused => true,
        Asked::Open => !model.on(Rule::UnknownWaits),
        Asked::No => false,
    };
    if knows {
        steps.push(Step::Learn { engine });
    }
}

fn least(model: &Protocol) -> u32 {
    if model.on(Rule::Minimum) {
        model.scope.minimum.into()
    } else {
        1
    }
}

/// The set may do without this member, and without those that are to go anyway (R16).
pub(crate) fn may_lose(model: &Protocol, of: &Engine, replica: usize) -> bool {
    (of.isr & !of.fault & !bit(replica)).count_ones() >= least(model)
}

fn may_remove(model: &Protocol, state: &State, engine: usize, who: u8) -> bool {
    let of = &state.engines[engine];
    let left = of.isr & !who;
    let away = of.isr & who == who && open_of(state, engine, who) == 0;
    if of.proposal.stage != Asked::No || !away || left.count_ones() < least(model) {
        return false;
    }
    if of.phase == Phase::Starting && (state.catalogue.restored || !grace_over(model, state, engine)) {
        return false;
    }
    open_of(state, engine, left) != 0
}

/// A new engine waits longer than a lease lasts before it removes anybody: none is left where it is known.
fn grace_over(model: &Protocol, state: &State, engine: usize) -> bool {
    let epoch = state.engines[engine].epoch;
    let fenced = |replica: usize| state.replicas[replica].fence >= epoch;
    let held = state.engines[..engine]
        .iter()
        .any(|older| each(older.leased).any(fenced));
    !held || !model.on(Rule::Grace)
}

pub(crate) fn remove(model: &Protocol, state: &mut State, engine: usize, who: u8) {
    let of = &mut state.engines[engine];
    if model.on(Rule::CommitFirst) {
        of.proposal = Proposal {
            stage: Asked::Open,
            add: false,
            who,
        };
        // What happens between the question and the decision could as well happen before.
        if model.on(Rule::UnknownWaits) {
            decide(model, state, engine);
        }
    } else {
        let (isr, since, config) = (of.isr & !who, of.since, of.config);
        adopt(model, state, engine, isr, since, config);
        state.engines[engine].gate = false;
    }
}

/// The outcome is known.
pub(crate) fn learn(model: &Protocol, state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    let proposal = std::mem::take(&mut of.proposal);
    if proposal.stage == Asked::Refused {
        // Whatever it wanted, the row is a newer engine's.
        return end(state, engine, Phase::Ended);
    }
    let (mut isr, mut since, config) = (of.isr, of.since, of.config + 1);
    if proposal.add {
        isr |= proposal.who;
    } else {
        isr &= !proposal.who;
    }
    for replica in each(proposal.who) {
        since[replica] = if proposal.add { 0 } else { config };
    }
    adopt(model, state, engine, isr, since, config);
    excuse(state);
}

fn adopt(model: &Protocol, state: &mut State, engine: usize, isr: u8, since: [u8; 3], config: u8) {
    let of = &mut state.engines[engine];
    let (gone, new) = (of.isr & !isr, isr & !of.isr);
    of.gate |= gone != 0;
    (of.isr, of.since, of.config) = (isr, since, config);
    for replica in each(isr) {
        if is_open(state, engine, replica) {
            say_view(&mut state.engines[engine], replica);
        }
    }
    for replica in each(gone) {
        left(model, state, engine, replica);
    }
    for replica in each(new) {
        let dirty = state.replicas[replica].dirty;
        let of = &mut state.engines[engine];
        of.covered = false;
        of.flush.touched = of.flush.on;
        of.tracked |= dirty;
        of.sync = Resync::default();
    }
    settle(model, state, engine);
}

/// A member was removed: it owes nothing and comes back as one that must catch up.
fn left(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let open = is_open(state, engine, replica);
    if open {
        end_session(&mut state.replicas[replica]);
    }
    let of = &mut state.engines[engine];
    if usize::from(of.source) == replica {
        of.source = NOBODY;
    }
    of.fault &= !bit(replica);
    of.snapped &= !bit(replica);
    write_off(of, replica);
    link_down(model, state, engine, replica);
}
