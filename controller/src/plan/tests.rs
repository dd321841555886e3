use super::*;

const GIB: u64 = 1 << 30;

fn pool(name: &str) -> Pool {
    Pool {
        name: name.into(),
        revision: 7,
        tags: Vec::new(),
        promised: 0,
        replicas: 0,
        overprovision_milli: 2_000,
        report: Report::Space {
            capacity: 100 * GIB,
            free: 80 * GIB,
        },
    }
}

fn node(name: &str, properties: &[(&str, &str)]) -> Node {
    Node {
        name: name.into(),
        diskless: false,
        online: true,
        barred: None,
        properties: properties
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        pools: vec![pool("sp01")],
    }
}

fn wish(replicas: usize) -> Wish {
    Wish {
        size: 10 * GIB,
        replicas,
        ..Wish::default()
    }
}

fn nodes_of(placement: &Placement) -> Vec<&str> {
    placement.places.iter().map(|p| p.node.as_str()).collect()
}

fn reason<'a>(verdicts: &'a [Verdict], node: &str) -> &'a str {
    &verdicts.iter().find(|v| v.node == node).unwrap().reason
}

#[test]
fn ties_go_by_name_and_fewer_replicas_come_first() {
    let mut nodes = vec![node("s3", &[]), node("s1", &[]), node("s2", &[])];
    assert_eq!(nodes_of(&place(&wish(2), &nodes).unwrap()), ["s1", "s2"]);
    nodes[1].pools[0].replicas = 1;
    let placement = place(&wish(2), &nodes).unwrap();
    assert_eq!(nodes_of(&placement), ["s2", "s3"]);
    assert_eq!(reason(&placement.verdicts, "s1"), "not needed: others come first");
    assert_eq!(reason(&placement.verdicts, "s2"), "");
    assert_eq!(placement.places[0].promise_limit, 200 * GIB);
    assert_eq!(placement.places[0].pool_revision, 7);
}

#[test]
fn every_rule_names_itself() {
    type Break = fn(&mut Node, &mut Wish);
    let table: &[(&str, Break)] = &[
        ("the node is diskless", |n, _| n.diskless = true),
        ("the node has no pool", |n, _| n.pools.clear()),
        ("the node has no pool fast", |_, w| w.pool = Some("fast".into())),
        ("the pool does not carry the tag nvme", |_, w| {
            w.tags = vec!["nvme".into()];
        }),
        ("the node has no property zone", |_, w| {
            w.spread = Some("zone".into());
        }),
        ("the node has no property rack", |_, w| {
            w.together = Some("rack".into());
        }),
        ("the node is not connected", |n, _| n.online = false),
        ("the node has not reported the pool yet", |n, _| {
            n.pools[0].report = Report::None;
        }),
        ("the pool can't be used: no such directory", |n, _| {
            n.pools[0].report = Report::Failed("no such directory".into());
        }),
        ("the pool is 95 % full (admission stops at 95 %)", |n, _| {
            n.pools[0].report = Report::Space {
                capacity: 100 * GIB,
                free: 5 * GIB,
            };
        }),
        ("the pool is 100 % full (admission stops at 95 %)", |n, _| {
            n.pools[0].report = Report::Space { capacity: 0, free: 0 };
        }),
        (
            "195.0 GiB are promised already and 10.0 GiB more would pass the over-provisioning limit of 200.0 GiB",
            |n, _| n.pools[0].promised = 195 * GIB,
        ),
    ];
    for (expected, break_it) in table {
        let (mut node, mut wish) = (node("s1", &[]), wish(1));
        break_it(&mut node, &mut wish);
        let refusal = place(&wish, &[node]).unwrap_err();
        assert_eq!(reason(&refusal.verdicts, "s1"), *expected);
        assert_eq!((refusal.wanted, refusal.possible), (1, 0));
    }
}

#[test]
fn the_last_promise_fits_exactly() {
    let mut only = node("s1", &[]);
    only.pools[0].promised = 190 * GIB;
    assert!(place(&wish(1), &[only]).is_ok());
}

#[test]
fn a_refusal_names_all_nodes_even_those_that_could() {
    let mut offline = node("s2", &[]);
    offline.online = false;
    let refusal = place(&wish(2), &[node("s1", &[]), offline]).unwrap_err();
    assert_eq!((refusal.wanted, refusal.possible), (2, 1));
    assert_eq!(
        reason(&refusal.verdicts, "s1"),
        "it could hold one, but not enough others can"
    );
    assert_eq!(reason(&refusal.verdicts, "s2"), "the node is not connected");
    assert!(refusal.verdicts.iter().all(|v| !v.chosen));
}

#[test]
fn replicas_are_on_different_nodes_even_with_two_pools_each() {
    let mut first = node("s1", &[]);
    first.pools.push(pool("sp02"));
    let refusal = place(&wish(2), &[first.clone()]).unwrap_err();
    assert_eq!(refusal.possible, 1);
    let placement = place(&wish(2), &[first, node("s2", &[])]).unwrap();
    assert_eq!(nodes_of(&placement), ["s1", "s2"]);
    let second_pool = placement.verdicts.iter().find(|v| v.pool == "sp02").unwrap();
    assert_eq!(
        second_pool.reason,
        "another pool of the node holds one of the replicas"
    );
}

#[test]
fn spread_takes_one_of_each_value() {
    let nodes = [
        node("s1", &[("zone", "a")]),
        node("s2", &[("zone", "a")]),
        node("s3", &[("zone", "b")]),
    ];
    let spread = Wish {
        spread: Some("zone".into()),
        ..wish(2)
    };
    let placement = place(&spread, &nodes).unwrap();
    assert_eq!(nodes_of(&placement), ["s1", "s3"]);
    assert_eq!(reason(&placement.verdicts, "s2"), "zone=a is taken by node s1");
    let refusal = place(
        &Wish {
            replicas: 3,
            ..spread
        },
        &nodes,
    )
    .unwrap_err();
    assert_eq!(refusal.possible, 2);
    assert_eq!(reason(&refusal.verdicts, "s2"), "zone=a is taken by node s1");
}

#[test]
fn together_takes_the_group_that_holds_all_and_is_emptiest() {
    let mut nodes = vec![
        node("s1", &[("rack", "a")]),
        node("s2", &[("rack", "b")]),
        node("s3", &[("rack", "b")]),
        node("s4", &[("rack", "c")]),
        node("s5", &[("rack", "c")]),
    ];
    let together = Wish {
        together: Some("rack".into()),
        ..wish(2)
    };
    let placement = place(&together, &nodes).unwrap();
    assert_eq!(nodes_of(&placement), ["s2", "s3"]);
    assert_eq!(
        reason(&placement.verdicts, "s1"),
        "the replicas stay together in rack=b"
    );
    nodes[2].pools[0].replicas = 5;
    assert_eq!(nodes_of(&place(&together, &nodes).unwrap()), ["s4", "s5"]);
}

#[test]
fn spread_and_together_hold_at_once() {
    let nodes = [
        node("s1", &[("site", "x"), ("rack", "1")]),
        node("s2", &[("site", "x"), ("rack", "1")]),
        node("s3", &[("site", "y"), ("rack", "1")]),
        node("s4", &[("site", "y"), ("rack", "2")]),
    ];
    let both = Wish {
        together: Some("site".into()),
        spread: Some("rack".into()),
        ..wish(2)
    };
    assert_eq!(nodes_of(&place(&both, &nodes).unwrap()), ["s3", "s4"]);
}
