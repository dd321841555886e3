//! Clients of every controller read and write at the same time, while leaders are killed, paused until there is
//! another one that they know nothing of, and cut off from the others in both ways or in one. What the clients were
//! answered must be linearizable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use stor_api::objects::Node;
use stor_tests::cluster::{self, CONTROLLERS, Cluster, STORAGE, machine_of};
use stor_tests::network::{self, API_PORT, Cut, Network, Traffic};
use stor_tests::{http, process, skip, wait};

use crate::register::{self, Did, Operation};

/// Writers and readers of each register.
const CLIENTS: usize = 2;
/// A controller that is paused answers nothing; its clients do not wait for it.
const SILENT: Duration = Duration::from_secs(4);
/// Between two faults: long enough for an election and some work.
const BETWEEN: Duration = Duration::from_secs(3);
/// How long, unless `STOR_LINEAR_SECONDS` says otherwise.
const USUAL: u64 = 30;
/// What a history must have had of each, to say anything.
const LEAST: usize = 5;
/// Writes tried before it ends, on all registers together: a busy machine is given longer.
const TRIED: u64 = 100;

struct Shared {
    clock: AtomicU64,
    stop: AtomicBool,
    values: AtomicU64,
}

/// One client: it reads, then writes in place of what it read; each time at another controller.
fn client(shared: &Shared, addresses: &[String], register: &str, number: usize) -> Vec<Operation> {
    let path = format!("/api/v1/nodes/{register}");
    let mut history = Vec::new();
    let mut turn = number;
    while !shared.stop.load(Ordering::SeqCst) {
        turn += 1;
        let began = shared.clock.fetch_add(1, Ordering::SeqCst);
        let answer = http::request_within(SILENT, &addresses[turn % addresses.len()], "GET", &path, "", "");
        let Some((revision, value)) = answer.ok().as_ref().and_then(shown) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let ended = shared.clock.fetch_add(1, Ordering::SeqCst);
        let did = Did::Read { revision, value };
        history.push(Operation { began, ended, did });
        // Some only read.
        if number.is_multiple_of(CLIENTS) && turn.is_multiple_of(2) {
            continue;
        }
        turn += 1;
        let value = format!("v{}", shared.values.fetch_add(1, Ordering::SeqCst));
        let head = format!("if-match: \"{revision}\"\r\n");
        let body = format!("{{\"properties\":{{\"register\":\"{value}\"}}}}");
        let began = shared.clock.fetch_add(1, Ordering::SeqCst);
        let address = &addresses[turn % addresses.len()];
        let answer = http::request_within(SILENT, address, "PATCH", &path, &head, &body);
        let ended = shared.clock.fetch_add(1, Ordering::SeqCst);
        let expected = revision;
        let did = match answer {
            // Refused, or nothing was done.
            Ok(refused) if matches!(refused.status, 412 | 503) => continue,
            Ok(done) if done.status == 200 => match shown(&done) {
                // The answer is the object as it is, which may have been written again by then.
                Some((revision, now)) if now == value => Did::Wrote {
                    expected,
                    revision,
                    value,
                },
                Some((revision, now)) => {
                    let did = Did::Read { revision, value: now };
                    history.push(Operation { began, ended, did });
                    Did::Maybe { expected, value }
                }
                None => Did::Maybe { expected, value },
            },
            _ => Did::Maybe { expected, value },
        };
        history.push(Operation { began, ended, did });
    }
    history
}

fn shown(response: &http::Response) -> Option<(u64, String)> {
    let node: Node = serde_json::from_str(&response.body).ok()?;
    let value = node.properties.get("register").cloned().unwrap_or_default();
    (response.status == 200).then_some((node.revision, value))
}

/// Kills the leader, or pauses it until another one was elected and has worked for a while.
fn break_leader(cluster: &Cluster, kill: bool) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    if kill {
        cluster.kill(&[&leader])?;
        thread::sleep(BETWEEN);
        return cluster.start_again(&[&leader]);
    }
    let pid = cluster.pid(&leader).context("no leader")?;
    process::pause(pid, &cluster.dir())?;
    let others: Vec<&str> = CONTROLLERS.into_iter().filter(|name| *name != leader).collect();
    let other = cluster.client_of(others[0])?;
    wait::that(wait::LONG, "another controller leads", || {
        Ok(match cluster.run(other.with_timeout(SILENT).catalogue()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
    })?;
    thread::sleep(BETWEEN);
    process::resume(pid, &cluster.dir())
}

/// Cuts the leader's machine off from the others, or one direction of it, until another one leads.
fn cut_leader(cluster: &Cluster, fault: u64) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let machine = machine_of(&leader);
    let network = cluster.network()?;
    let others: Vec<&str> = network
        .machines()
        .into_iter()
        .filter(|other| *other != machine)
        .collect();
    let cuts = match fault % 3 {
        0 => network::isolate(&machine, &others, Traffic::All),
        // It hears the others and is not heard, or the other way round.
        1 => others
            .iter()
            .map(|other| Cut::between(&machine, other, Traffic::All))
            .collect(),
        _ => others
            .iter()
            .map(|other| Cut::between(other, &machine, Traffic::All))
            .collect(),
    };
    let cut = network.cut(cuts)?;
    thread::sleep(BETWEEN * 2);
    network.heal(cut)
}

/// Clients of these addresses while `fault` is done again and again.
fn play(addresses: &[String], mut fault: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let seconds = std::env::var("STOR_LINEAR_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(USUAL);
    let shared = Arc::new(Shared {
        clock: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        values: AtomicU64::new(0),
    });
    let clients: Vec<_> = STORAGE
        .iter()
        .flat_map(|register| (0..=CLIENTS).map(move |number| (*register, number)))
        .map(|(register, number)| {
            let (shared, addresses) = (Arc::clone(&shared), addresses.to_vec());
            let thread = thread::spawn(move || client(&shared, &addresses, register, number));
            (register, thread)
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut faults = 0;
    let mut broken = Ok(());
    let longest = end + wait::LONG;
    let enough = || shared.values.load(Ordering::SeqCst) >= TRIED || Instant::now() > longest;
    while !(Instant::now() >= end && enough()) && broken.is_ok() {
        thread::sleep(BETWEEN);
        broken = fault(faults);
        faults += 1;
    }
    thread::sleep(BETWEEN);
    shared.stop.store(true, Ordering::SeqCst);
    let mut histories = BTreeMap::<&str, Vec<Operation>>::new();
    for (register, client) in clients {
        histories
            .entry(register)
            .or_default()
            .extend(client.join().unwrap());
    }
    broken?;
    for (register, history) in &histories {
        let count = |kind: fn(&Did) -> bool| history.iter().filter(|one| kind(&one.did)).count();
        let (reads, writes, unknown) = (
            count(|did| matches!(did, Did::Read { .. })),
            count(|did| matches!(did, Did::Wrote { .. })),
            count(|did| matches!(did, Did::Maybe { .. })),
        );
        println!("{register}: {reads} reads, {writes} writes, {unknown} without outcome, {faults} faults");
        register::check(history).with_context(|| format!("register {register}"))?;
        ensure!(
            reads >= LEAST && writes >= LEAST,
            "too little happened on {register}"
        );
    }
    Ok(())
}

#[test]
fn answers_are_linearizable_while_leaders_are_killed_and_paused() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let ports = CONTROLLERS.iter().map(|name| cluster.port(name));
        let addresses: Vec<String> = ports
            .map(|port| port.map(|port| format!("127.0.0.1:{port}")))
            .collect::<Result<_, _>>()?;
        play(&addresses, |number| {
            break_leader(cluster, number.is_multiple_of(2))
        })
    })
}

#[test]
fn answers_are_linearizable_while_leaders_are_cut_off() -> anyhow::Result<()> {
    if let Some(missing) = Network::missing() {
        skip::skipped("controllers cut off from each other", &missing);
        return Ok(());
    }
    cluster::with_machines(|cluster| {
        let network = cluster.network()?;
        let addresses: Vec<String> = CONTROLLERS
            .iter()
            .map(|name| {
                network
                    .address(&machine_of(name))
                    .map(|host| format!("{host}:{API_PORT}"))
            })
            .collect::<Result<_, _>>()?;
        play(&addresses, |number| cut_leader(cluster, number))
    })
}
