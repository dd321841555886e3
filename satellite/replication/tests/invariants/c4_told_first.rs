//= docs/replication.md#C4
//! The catalogue hears of what was found before it is mended, and of everything before its cursor passes it, once.

use stor_replication::catalogue::Change;
use stor_replication::digest::Unit;
use stor_replication::engine;
use stor_replication::scrub::{MOST_FOUND, ScrubEnd, ScrubReport};
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, C, Rig, SIZE, row};

fn reports(rig: &Rig) -> Vec<ScrubReport> {
    let report = |(_, change): &(u64, Change)| match change {
        Change::Scrubbed { report, .. } => Some(report.clone()),
        _ => None,
    };
    rig.proposed.iter().filter_map(report).collect()
}

#[test]
fn nothing_is_mended_before_it_was_heard_of() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.units(B, 20, Unit::of(b"other"));
    rig.ask_scrub(Some(1), 0);
    rig.run(5000);
    assert_eq!(rig.copied_to, [], "mended in silence");
    let [report] = &reports(&rig)[..] else {
        panic!("not one report");
    };
    assert_eq!((report.cursor, report.findings.len(), report.end), (0, 1, None));
    assert_eq!(
        (report.findings[0].offset, report.findings[0].length),
        (20 * 4096, 4096)
    );
    assert_eq!(
        (report.findings[0].right, report.findings[0].wrong.as_slice()),
        (Some(A), &[B][..])
    );
    rig.decide();
    rig.run(100);
    assert_eq!(rig.copied_to, [B]);
}

#[test]
fn it_ends_when_all_was_compared_and_says_so_once() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 0);
    rig.run(3000);
    let [report] = &reports(&rig)[..] else {
        panic!("not one report: {:?}", rig.proposed);
    };
    assert_eq!(
        (report.cursor, report.reports, report.end),
        (SIZE, 0, Some(ScrubEnd::Complete))
    );
    rig.decide();
    rig.run(3000);
    assert_eq!(rig.proposed, [], "the same scrub again");
    rig.ask_scrub(Some(2), 0);
    rig.run(3000);
    assert_eq!(reports(&rig).len(), 1, "the next one");
}

#[test]
fn the_next_engine_goes_on_where_the_catalogue_was_told() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 5 << 20);
    let first = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Digest)
        .unwrap();
    assert_eq!(first.header.offset, 5 << 20);
}

#[test]
fn one_that_is_not_wanted_any_more_ends_in_the_middle() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 0);
    assert_eq!(rig.waiting(Kind::Digest), [A, B]);
    rig.ask_scrub(None, 0);
    rig.write(1, super::bench::block(0));
    assert_eq!(rig.waiting(Kind::Write), [A, B], "its lock stays");
    rig.run(3000);
    assert_eq!(rig.proposed, []);
}

#[test]
fn a_refused_report_ends_it_until_something_else_is_asked_for() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.units(B, 20, Unit::of(b"other"));
    rig.ask_scrub(Some(1), 0);
    rig.run(1000);
    rig.refuse_change();
    rig.run(3000);
    assert_eq!((rig.copied_to.clone(), rig.proposed.len()), (vec![], 0));
    // An older configuration, then what the catalogue knows.
    rig.ask_scrub(Some(1), 0);
    rig.run(1000);
    assert_eq!(reports(&rig).len(), 0, "the same report again");
    rig.reports = 1;
    rig.ask_scrub(Some(1), 64 << 10);
    rig.run(1000);
    assert_eq!(reports(&rig).len(), 1, "what the catalogue knows is gone on with");
}

#[test]
fn very_much_that_differs_is_the_end() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    for sector in (0..SIZE / 4096).step_by(2) {
        rig.units(B, sector, Unit::of(b"other"));
    }
    rig.ask_scrub(Some(1), 0);
    rig.scrub(60_000);
    assert_eq!(rig.ended, Some(ScrubEnd::TooMuch));
    assert!(rig.found.len() >= MOST_FOUND as usize && rig.found.len() < MOST_FOUND as usize + 16);
}

#[test]
fn what_most_held_is_not_turned_round_when_one_of_them_goes() {
    let mut rig = Rig::new(row(&[A, B, C], &[], 1), true, Some(A));
    rig.run(200);
    rig.units(A, 20, Unit::of(b"other"));
    rig.ask_scrub(Some(1), 0);
    rig.run(100);
    let told = reports(&rig)[0].findings[0].clone();
    assert_eq!((told.wrong.as_slice(), told.agree), (&[A][..], 2));
    // Who is to be copied from leaves before that was heard.
    let mut less = rig.row.clone();
    less.replicas.remove(&told.right.unwrap());
    less.view.config = less.view.config.next();
    less.revision += 1;
    rig.row = less.clone();
    rig.step(engine::Event::Row(less));
    rig.decide();
    rig.run(10_000);
    let sound = if told.right == Some(B) { C } else { B };
    assert!(!rig.copied_to.contains(&sound), "what was right is overwritten");
}

#[test]
fn nobody_is_removed_for_a_range_it_does_not_know() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 0);
    let asked = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Digest)
        .unwrap()
        .clone();
    rig.refuse(&asked, Status::Invalid);
    rig.run(500);
    assert!(
        rig.proposed
            .iter()
            .all(|(_, change)| !matches!(change, Change::Remove { .. })),
        "{:?}",
        rig.proposed
    );
    assert_eq!(rig.closed, []);
    rig.run(3000);
    assert_eq!(reports(&rig).len(), 1, "it does not go on");
}
