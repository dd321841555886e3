//! Making members equal that may differ (R8).

use crate::engine::{honours, say_view, settle};
use crate::io::{begin, may_lock};
use crate::protocol::{Protocol, Step, is_open};
use crate::rules::Rule;
use crate::state::{NOBODY, Op, OpKind, Phase, State, bit, each};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let copying = of.ops.iter().any(|op| op.kind == OpKind::Repair);
    if of.phase != Phase::Active || !of.unequal || copying || !may_lock(model, of, OpKind::Repair) {
        return;
    }
    let usable = |replica: usize| of.isr & bit(replica) != 0 && honours(of, replica);
    let best = each(of.isr)
        .filter(|replica| usable(*replica))
        .map(|replica| of.loss[replica])
        .min();
    for source in each(of.isr) {
        let chosen = of.source != NOBODY && usable(of.source.into());
        let fits = if !model.on(Rule::Source) {
            true
        } else if chosen {
            usize::from(of.source) == source
        } else {
            usable(source) && Some(of.loss[source]) == best
        };
        if fits && is_open(state, engine, source) {
            steps.push(Step::Repair { engine, source });
        }
    }
}

/// The source is read, the copy goes out to the others.
pub(crate) fn repair(model: &Protocol, state: &mut State, engine: usize, source: usize) {
    let value = state.replicas[source].value;
    let of = &mut state.engines[engine];
    of.source = u8::try_from(source).unwrap_or(NOBODY);
    if of.loss[source] != 0 {
        say_view(of, source);
    }
    let op = Op {
        kind: OpKind::Repair,
        value,
        awaited: of.isr & !bit(source),
        ..Op::default()
    };
    of.tracked = true;
    begin(of, op);
    settle(model, state, engine);
}
