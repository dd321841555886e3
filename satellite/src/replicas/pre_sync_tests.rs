use super::*;

#[test]
fn the_state_is_kept_once_and_before_the_engine_goes_on() {
    let mut keeper = Keeper::new(false);
    assert_eq!(keeper.next(true, false), Next::Wait, "served as a member");
    assert_eq!(keeper.next(true, true), Next::Take);
    assert_eq!(keeper.next(true, true), Next::Wait, "the engine waits");
    keeper.taken(true);
    assert_eq!(keeper.next(true, true), Next::GoOn);
    assert_eq!(
        keeper.next(false, false),
        Next::Wait,
        "opened: not in sync any more"
    );
    // The resync is interrupted and begins again, by this process or the next.
    assert_eq!(keeper.next(false, true), Next::GoOn);
    assert_eq!(Keeper::new(true).next(false, true), Next::GoOn);
    // In sync again, and not taken for one that was just kept.
    assert_eq!(keeper.next(true, false), Next::Drop);
    assert_eq!(keeper.next(true, true), Next::Wait, "while it is removed");
    keeper.dropped();
    assert_eq!(keeper.next(true, true), Next::Take, "the next resync");
}

#[test]
fn what_was_never_in_sync_has_nothing_to_keep() {
    assert_eq!(Keeper::new(false).next(false, true), Next::GoOn);
}

#[test]
fn an_engine_goes_on_when_nothing_could_be_kept() {
    let mut keeper = Keeper::new(false);
    assert_eq!(keeper.next(true, true), Next::Take);
    keeper.taken(false);
    assert_eq!(keeper.next(true, true), Next::GoOn);
    assert_eq!(keeper.next(false, false), Next::Wait);
    assert_eq!(keeper.next(true, false), Next::Wait, "nothing to remove");
}

#[test]
fn it_goes_when_the_opening_came_to_nothing() {
    let mut keeper = Keeper::new(false);
    assert_eq!(keeper.next(true, true), Next::Take);
    keeper.taken(true);
    assert_eq!(keeper.next(true, true), Next::GoOn);
    assert_eq!(
        keeper.next(true, false),
        Next::Drop,
        "still in sync: the engine was refused"
    );
}

#[test]
fn it_goes_when_a_pool_is_full() {
    let mut keeper = Keeper::new(true);
    assert_eq!(keeper.next(false, false), Next::Wait);
    keeper.make_room();
    assert_eq!(keeper.next(false, false), Next::Drop);
    let mut without = Keeper::new(false);
    without.make_room();
    assert_eq!(without.next(false, false), Next::Wait);
}

#[test]
fn without_reflink_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    if file::supports_reflink(dir.path()).unwrap() {
        return stor_skip::skipped(
            "pre_sync without_reflink",
            format_args!("{} has reflink", dir.path().display()),
        );
    }
    let data = dir.path().join("r1.data");
    fs::write(&data, [1; 4096]).unwrap();
    // What an attempt left that was cut short.
    fs::write(dir.path().join("r1.data.pre-sync.unfinished"), "half").unwrap();
    assert!(exists(&data));
    let outcome = take(&data).unwrap();
    assert!(matches!(outcome, Taken::NoReflink | Taken::NoRoom), "{outcome:?}");
    assert!(!exists(&data));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
