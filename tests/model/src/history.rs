//! A history in words.

use stateright::Model;

use crate::properties::broken;
use crate::protocol::{Protocol, Step};
use crate::state::{Asked, OpKind, Phase, State, each};

/// Name of a replica.
fn name(replica: usize) -> char {
    ['A', 'B', 'C'].get(replica).copied().unwrap_or('?')
}

/// Names of replicas.
fn names(mask: u8) -> String {
    each(mask).map(name).collect()
}

/// One line for each step; the last says what is broken.
pub fn lines(model: &Protocol, start: &State, steps: &[Step]) -> Vec<String> {
    let mut state = *start;
    let mut lines = Vec::new();
    for step in steps {
        let mut line = words(&state, *step);
        if let Some(next) = model.next_state(&state, *step) {
            line.push_str(&changes(&state, &next));
            state = next;
        }
        lines.push(line);
    }
    if let Some(broken) = broken(&state) {
        lines.push(format!("-> {broken}"));
    }
    lines
}

/// What followed at once from a step, where its words do not say it.
fn changes(before: &State, after: &State) -> String {
    let mut parts = Vec::new();
    for (old, new) in before.engines.iter().zip(&after.engines) {
        if new.phase == Phase::Failed && old.phase != Phase::Failed {
            parts.push(format!("; e{}: the device is lost", old.epoch));
        }
        for (was, is) in old
            .ops
            .iter()
            .zip(&new.ops)
            .filter(|(was, _)| was.kind == OpKind::Write && !was.answered)
        {
            if is.answered || (is.kind != OpKind::Write && after.ghost.acked >= was.value) {
                parts.push(format!("; v{} is answered", was.value));
            }
        }
        if old.flush.on && !new.flush.on && after.ghost.flushed >= old.flush.covers && new.phase == old.phase
        {
            parts.push("; the flush is answered".to_owned());
        }
        if new.proposal.stage == Asked::Made && old.proposal.stage == Asked::No {
            parts.push("; it does".to_owned());
        }
        if new.unequal && !old.unequal && old.phase == Phase::Active {
            parts.push("; what is dirty is unequal from here on".to_owned());
        }
    }
    parts.concat()
}

/// A step in words, as seen before it.
pub fn words(state: &State, step: Step) -> String {
    match step {
        Step::Attach { inherited } => {
            let whose = if inherited {
                "the same client"
            } else {
                "a new client"
            };
            format!("e{} begins, for {whose}", state.catalogue.epoch + 1)
        }
        Step::Restore => "the catalogue is restored from its first copy; no engine is left".to_owned(),
        Step::DiskDone { replica, slot } => {
            let pending = state.replicas[replica].disk[slot];
            let copy = if pending.copy { "the copy of v" } else { "v" };
            let unheard = if pending.orphan {
                ", of a connection that is gone"
            } else {
                ""
            };
            format!(
                "{}: {copy}{} of e{} is written{unheard}",
                name(replica),
                pending.value,
                pending.epoch
            )
        }
        Step::Power { replica, value } => {
            let had = state.replicas[replica].value;
            format!("{}: power is cut, v{value} is left of v{had}", name(replica))
        }
        Step::Restart { replica } => format!("{}: its process starts again", name(replica)),
        _ => of_engine(state, step),
    }
}

fn of_engine(state: &State, step: Step) -> String {
    let (engine, what) = match step {
        Step::Promise { engine, replica } => (engine, format!("{} promises", name(replica))),
        Step::Notice { engine, replica } => {
            (engine, format!("{} finds that it lost its cache", name(replica)))
        }
        Step::Fence { engine, replica } => (engine, format!("{} stores the fence", name(replica))),
        Step::Activate { engine, source } => {
            let unequal = each(state.engines[engine].isr).any(|member| state.replicas[member].dirty);
            let source = if unequal {
                format!(", source {}", name(source.into()))
            } else {
                String::new()
            };
            (engine, format!("serves{source}"))
        }
        Step::LeaseEnds { engine, replica } => (engine, format!("its lease at {} ends", name(replica))),
        Step::Tell { engine, replica } => {
            let whole = if state.engines[engine].tell[replica] == 2 {
                ", and that it is right"
            } else {
                ""
            };
            (engine, format!("{} stores the view{whole}", name(replica)))
        }
        Step::Break { engine, replica } => (engine, format!("its connection to {} breaks", name(replica))),
        Step::Remove { engine, who } => (engine, format!("asks the catalogue to remove {}", names(who))),
        Step::Learn { engine } => (engine, learned(state, engine)),
        Step::Repair { engine, source } => {
            let value = state.replicas[source].value;
            (engine, format!("repairs from {}: v{value}", name(source)))
        }
        Step::HandBegin { engine } => (engine, "is to hand over".to_owned()),
        Step::HandClean { engine } => (engine, "calls all clean".to_owned()),
        Step::HandOver { engine } => (engine, format!("hands over to e{}", state.catalogue.epoch + 1)),
        _ => return of_io(state, step),
    };
    format!("e{}: {what}", state.engines[engine].epoch)
}

fn learned(state: &State, engine: usize) -> String {
    match state.engines[engine].proposal.stage {
        Asked::Made => "learns that it is done".to_owned(),
        Asked::Refused => "learns that it is refused, ends".to_owned(),
        Asked::Open | Asked::No => "takes it for done".to_owned(),
    }
}

fn of_io(state: &State, step: Step) -> String {
    let (engine, what) = match step {
        Step::Write { engine } => (engine, format!("write v{} begins", state.ghost.next)),
        Step::Accept { engine, op, replica } => {
            let op = state.engines[engine].ops[op];
            let copy = if op.kind == OpKind::Write {
                ""
            } else {
                "the copy of "
            };
            (engine, format!("{} takes {copy}v{}", name(replica), op.value))
        }
        Step::Read { engine, replica } => (
            engine,
            format!(
                "a read gives v{} of {}",
                state.replicas[replica].value,
                name(replica)
            ),
        ),
        Step::Flush { engine } => (engine, "a flush begins".to_owned()),
        Step::FlushAt { engine, replica } => (engine, format!("{} flushes", name(replica))),
        Step::FlushFails { engine, replica } => (engine, format!("the flush fails at {}", name(replica))),
        Step::Clean { engine } => (engine, "calls the region clean".to_owned()),
        Step::CleanAt { engine, replica } => {
            let busy = state.replicas[replica].disk.iter().any(|pending| pending.busy);
            let lowers = if busy {
                "keeps its dirty bit"
            } else {
                "lowers its dirty bit"
            };
            (engine, format!("{} {lowers}", name(replica)))
        }
        _ => return of_resync(state, step),
    };
    format!("e{}: {what}", state.engines[engine].epoch)
}

fn of_resync(state: &State, step: Step) -> String {
    let target = |engine: usize| name(state.engines[engine].sync.target.into());
    let (engine, what) = match step {
        Step::SyncBegin { engine, target } => {
            let says = if state.replicas[target].dirty {
                "dirty"
            } else {
                "clean"
            };
            (
                engine,
                format!(
                    "begins to bring {} up to date, which says it is {says}",
                    name(target)
                ),
            )
        }
        Step::SyncMissed { engine, source } => {
            let map = state.replicas[source].maps[usize::from(state.engines[engine].sync.target)];
            let says = match (map.since, map.missed) {
                (0, _) => "has no map",
                (_, true) => "says it missed the block",
                (_, false) => "says it missed nothing",
            };
            (engine, format!("{} {says}", name(source)))
        }
        Step::SyncHand { engine, source } => (
            engine,
            format!("{} is given {}'s maps of others", target(engine), name(source)),
        ),
        Step::SyncCopy { engine, source } => {
            let value = state.replicas[source].value;
            (
                engine,
                format!("copies v{value} of {} to {}", name(source), target(engine)),
            )
        }
        Step::SyncCheckpoint { engine } => (engine, format!("{} flushes what was copied", target(engine))),
        Step::SyncClearAt { engine, replica } => (engine, format!("{} clears its map", name(replica))),
        Step::SyncJoint { engine } => (engine, format!("{}'s answer counts from here on", target(engine))),
        Step::SyncFlush { engine } => (engine, format!("{} is flushed", target(engine))),
        Step::SyncJoin { engine } => (engine, format!("{} stores the view as a member", target(engine))),
        Step::SyncPropose { engine } => (engine, format!("asks the catalogue to add {}", target(engine))),
        Step::SnapBegin { engine } => (engine, "a snapshot is asked for, the gate closes".to_owned()),
        Step::SnapFlush { engine } => (engine, "its flush begins".to_owned()),
        Step::SnapAt {
            engine,
            replica,
            value,
        } => {
            let value = match state.replicas[replica].snapshot {
                0 => value,
                there => there - 1,
            };
            (engine, format!("{} has the snapshot, of v{value}", name(replica)))
        }
        Step::SnapReady { engine } => (engine, "the snapshot is ready".to_owned()),
        Step::SnapAbort { engine } => (engine, "the snapshot is given up".to_owned()),
        _ => return format!("{step:?}"),
    };
    format!("e{}: {what}", state.engines[engine].epoch)
}
