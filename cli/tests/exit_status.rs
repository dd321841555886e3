//! Exit statuses and streams of the real binary against a fake controller: scripts depend on them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use stor_api::objects::{
    Attachment, AttachmentState, Counters, PlacementVerdict, Replica, ReplicaState, Volume, VolumeState,
};
use stor_api::problem::Problem;

/// Answers request after request; the last answer is repeated.
struct Fake {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

fn fake(answers: Vec<(u16, String)>) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for turn in 0_usize.. {
            let (mut socket, _) = listener.accept().unwrap();
            let mut text = String::new();
            let mut buffer = [0_u8; 4096];
            let body_is_whole = |text: &str| {
                text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                    let head = head.to_lowercase();
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                    body.len() >= length.map_or(0, |l| l.parse().unwrap())
                })
            };
            while !body_is_whole(&text) {
                let n = socket.read(&mut buffer).unwrap();
                assert!(n > 0, "the request ended early: {text}");
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
            log.lock().unwrap().push(text.lines().next().unwrap().to_owned());
            let (status, body) = &answers[turn.min(answers.len() - 1)];
            let head = format!(
                "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    Fake { url, seen }
}

fn storctl(url: &str, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_storctl"))
        .args(arguments.split_whitespace())
        .env("STOR_URL", url)
        .env_remove("STOR_TOKEN_FILE")
        .env_remove("STOR_CA_FILE")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn problem(status: u16) -> Problem {
    Problem {
        kind: "urn:stor:problem:x".into(),
        status,
        title: "volume db1 is attached".into(),
        detail: "Node k1 has it.".into(),
        remedy: "detach it first".into(),
        placement: Vec::new(),
    }
}

fn refused(status: u16) -> Vec<(u16, String)> {
    vec![(status, serde_json::to_string(&problem(status)).unwrap())]
}

fn volume(state: VolumeState) -> Volume {
    Volume {
        name: "db1".into(),
        id: "0191d5b4-0000-7000-8000-000000000001".into(),
        size_bytes: 1 << 30,
        class: None,
        state,
        reason: String::new(),
        epoch: 0,
        config: 0,
        min_in_sync: 1,
        growing_to_bytes: None,
        scrub: None,
        replicas: vec![Replica {
            leaving: false,
            replaces: None,
            volume: "db1".into(),
            id: 1,
            node: "s1".into(),
            pool: "sp01".into(),
            state: ReplicaState::InSync,
            in_sync: true,
            reason: String::new(),
            allocated_bytes: 0,
            resync_percent: None,
            resync_left_bytes: None,
        }],
        attachments: Vec::new(),
        created: "2026-01-01T00:00:00Z".into(),
        revision: 1,
    }
}

fn answer(state: VolumeState) -> (u16, String) {
    (200, serde_json::to_string(&volume(state)).unwrap())
}

#[test]
fn what_the_controller_says_becomes_the_status() {
    for (http, status) in [
        (404, 3),
        (409, 4),
        (412, 4),
        (401, 5),
        (403, 5),
        (400, 2),
        (422, 2),
        (500, 1),
    ] {
        let fake = fake(refused(http));
        let output = storctl(&fake.url, "volume describe db1");
        assert_eq!(output.status.code(), Some(status), "{http}");
        assert_eq!(
            err(&output),
            "error: volume db1 is attached\n  Node k1 has it.\nhelp: detach it first\n"
        );
        assert_eq!(out(&output), "");
    }
}

#[test]
fn usage_is_2() {
    for line in [
        "volume",
        "volume create DB1 1Gi",
        "volume create db1 0",
        "volume create db1 100Ti",
        "volume create db1 -- -5",
        "volume create db1 4Ki",
        "volume create all 1Gi",
        "node create s1 127.0.0.1 --property zone",
        "--url https://c1 status",
        "--timeout never status",
        "pool set sp01 --node s1",
    ] {
        let output = storctl("http://127.0.0.1:9", line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", err(&output));
        assert!(
            err(&output).starts_with("error: ") || line == "volume",
            "{line}: {}",
            err(&output)
        );
    }
}

#[test]
fn an_empty_name_is_none() {
    let output = Command::new(env!("CARGO_BIN_EXE_storctl"))
        .args(["--url", "http://127.0.0.1:9", "volume", "describe", ""])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("a name is missing"), "{}", err(&output));
}

#[test]
fn nobody_there_is_6_and_names_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = storctl(&url, "status");
    assert_eq!(output.status.code(), Some(6), "{}", err(&output));
    assert!(
        err(&output).contains(&url) && err(&output).contains("help: "),
        "{}",
        err(&output)
    );
}

#[test]
fn no_majority_is_6_too() {
    let mut cut_off = problem(503);
    cut_off.kind = "urn:stor:problem:no-quorum".into();
    cut_off.title = "no quorum: controller c1 cannot reach c2, c3".into();
    let fake = fake(vec![(503, serde_json::to_string(&cut_off).unwrap())]);
    let output = storctl(&fake.url, "status --timeout 20s");
    assert_eq!(output.status.code(), Some(6), "{}", err(&output));
    assert!(
        err(&output).contains("no majority") && err(&output).contains("cannot reach c2, c3"),
        "{}",
        err(&output)
    );
    let output = storctl(&fake.url, "status --timeout 20s -o json");
    let document: serde_json::Value = serde_json::from_str(&err(&output)).unwrap();
    assert_eq!(document["type"], "urn:stor:problem:unreachable");
}

/// The volume is not made and won't be; the deadline is far away.
#[test]
fn a_replica_that_can_t_be_made_is_1_with_its_reason() {
    let mut creating = volume(VolumeState::Creating);
    creating.reason = "waits: node s1: the file system of /p is full".into();
    creating.replicas[0].state = ReplicaState::Failed;
    let fake = fake(vec![(200, serde_json::to_string(&creating).unwrap())]);
    let output = storctl(&fake.url, "volume create db1 1Gi --timeout 10m");
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let said = err(&output);
    assert!(
        said.contains("/p is full") && said.contains("storctl volume delete db1"),
        "{said}"
    );
    assert!(said.contains("0 of 1 there"), "{said}");
}

#[test]
fn waiting_too_long_is_7() {
    let fake = fake(vec![answer(VolumeState::Creating)]);
    let output = storctl(&fake.url, "volume create db1 1Gi --timeout 300ms");
    assert_eq!(output.status.code(), Some(7), "{}", err(&output));
    assert!(
        err(&output).contains("volume db1 is not done after 300 ms"),
        "{}",
        err(&output)
    );
}

#[test]
fn create_waits_and_json_is_the_object_alone() {
    let fake = fake(vec![
        answer(VolumeState::Creating),
        answer(VolumeState::Creating),
        answer(VolumeState::Healthy),
    ]);
    let output = storctl(&fake.url, "-o json volume create db1 1Gi");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let shown: Volume = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown, volume(VolumeState::Healthy));
    assert_eq!(fake.seen.lock().unwrap()[0], "POST /api/v1/volumes HTTP/1.1");
}

#[test]
fn a_volume_that_was_there_is_not_called_created() {
    let fake = fake(vec![answer(VolumeState::Healthy)]);
    let output = storctl(&fake.url, "volume create db1 1Gi");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(
        out(&output),
        "volume db1 was there already, nothing was changed: 1.0 GiB on s1\n"
    );
}

#[test]
fn no_wait_returns_at_once() {
    let fake = fake(vec![answer(VolumeState::Creating)]);
    let output = storctl(&fake.url, "volume create db1 1Gi --no-wait");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "volume db1 is being created: 1.0 GiB on s1\n");
    assert_eq!(fake.seen.lock().unwrap().len(), 1);
}

#[test]
fn a_volume_that_fails_is_1_with_its_reason() {
    let mut failed = volume(VolumeState::Failed);
    failed.reason = "pool sp01 on s1 is full".into();
    let fake = fake(vec![
        answer(VolumeState::Creating),
        (200, serde_json::to_string(&failed).unwrap()),
    ]);
    let output = storctl(&fake.url, "volume create db1 1Gi");
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(
        err(&output).contains("pool sp01 on s1 is full"),
        "{}",
        err(&output)
    );
}

#[test]
fn a_delete_asks_where_it_can_and_refuses_where_it_cannot() {
    let fake = fake(vec![answer(VolumeState::Healthy)]);
    let output = storctl(&fake.url, "volume delete db1");
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("--yes"), "{}", err(&output));
    assert!(
        fake.seen.lock().unwrap().iter().all(|r| r.starts_with("GET ")),
        "nothing was deleted"
    );

    let gone = self::fake(vec![
        (200, "{}".into()),
        answer(VolumeState::Deleting),
        refused(404)[0].clone(),
    ]);
    let output = storctl(&gone.url, "volume delete db1 --yes");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "volume db1 deleted\n");
    assert_eq!(
        gone.seen.lock().unwrap()[0],
        "DELETE /api/v1/volumes/db1 HTTP/1.1"
    );
}

fn attached(state: AttachmentState) -> (u16, String) {
    let mut volume = volume(VolumeState::Healthy);
    volume.attachments.push(Attachment {
        volume: "db1".into(),
        node: "k1".into(),
        transport: "fuse".into(),
        read_only: false,
        device: "/dev/stor/db1".into(),
        nbd_uri: String::new(),
        epoch: 1,
        state,
        reason: String::new(),
        counters: Counters::default(),
    });
    (200, serde_json::to_string(&volume).unwrap())
}

#[test]
fn force_says_who_is_cut_off_and_asks() {
    for line in [
        "volume delete db1 --force",
        "volume detach db1 --force",
        "volume detach db1 --node k1 --force",
    ] {
        let fake = fake(vec![attached(AttachmentState::Attached)]);
        let output = storctl(&fake.url, line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", err(&output));
        for word in ["node k1", "/dev/stor/db1", "is lost", "--force --yes"] {
            assert!(err(&output).contains(word), "{line}: {word}: {}", err(&output));
        }
        assert!(fake.seen.lock().unwrap().iter().all(|r| r.starts_with("GET ")));
    }
}

#[test]
fn a_node_that_is_away_is_cut_off_without_a_question() {
    let fake = fake(vec![
        attached(AttachmentState::Unknown),
        (200, "{}".into()),
        answer(VolumeState::Healthy),
    ]);
    let output = storctl(&fake.url, "volume detach db1 --node k1 --force");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn controllers_and_classes_are_not_taken_away_unasked() {
    let class = r#"{"name":"fast","replicas":2,"tags":[],"volumes":3,"revision":1}"#;
    for (line, body, word) in [
        ("controller remove c1", r#"{"items":[]}"#, "for good"),
        ("class delete fast", class, "3 volumes"),
    ] {
        let fake = fake(vec![(200, body.into())]);
        let output = storctl(&fake.url, line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", err(&output));
        assert!(err(&output).contains(word), "{line}: {}", err(&output));
        assert!(fake.seen.lock().unwrap().iter().all(|r| r.starts_with("GET ")));
    }
}

#[test]
fn what_is_gone_is_one_document_too() {
    let gone = refused(404)[0].clone();
    let deleted = fake(vec![(200, "{}".into()), gone]);
    let output = storctl(&deleted.url, "volume delete db1 --yes -o json");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        shown,
        serde_json::json!({"kind": "volume", "name": "db1", "result": "deleted"})
    );
    let detached = fake(vec![(200, "{}".into()), answer(VolumeState::Healthy)]);
    let output = storctl(&detached.url, "volume detach db1 --node k1 -o json");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        shown,
        serde_json::json!({"kind": "volume", "name": "db1", "node": "k1", "result": "detached"})
    );
}

#[test]
fn a_list_of_a_node_that_is_not_there_is_3_and_of_an_empty_one_says_so() {
    let away = fake(refused(404));
    let output = storctl(&away.url, "volume list --node nope");
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    let node = r#"{"name":"k1","address":"a","kind":"diskless","state":"online","properties":{},"transports":[],"revision":1}"#;
    let empty = fake(vec![(200, node.into()), (200, r#"{"items":[]}"#.into())]);
    let output = storctl(&empty.url, "volume list --node k1");
    assert_eq!(
        (output.status.code(), err(&output).as_str()),
        (Some(0), "no volumes on node k1\n")
    );
}

#[test]
fn the_usage_line_has_nothing_from_the_environment() {
    let output = storctl("http://127.0.0.1:9", "volume attach");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("Usage: storctl volume attach"),
        "{}",
        err(&output)
    );
    assert!(!err(&output).contains("--url"), "{}", err(&output));
}

#[test]
fn a_quickstart_has_no_dry_run() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("q");
    let output = storctl(
        "http://127.0.0.1:9",
        &format!("quickstart --dry-run --dir {}", place.display()),
    );
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(!place.exists());
}

#[test]
fn a_dry_run_changes_nothing_and_shows_the_plan() {
    let plan = r#"{"steps":["create volume db1"],"placement":[{"node":"s1","pool":"sp01","chosen":true,"reason":""}]}"#;
    let fake = fake(vec![(200, plan.into())]);
    let output = storctl(&fake.url, "volume create db1 1Gi --dry-run");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(
        out(&output).starts_with("would create volume db1\n"),
        "{}",
        out(&output)
    );
    assert_eq!(
        *fake.seen.lock().unwrap(),
        ["POST /api/v1/volumes?dry_run=true HTTP/1.1"]
    );
}

#[test]
fn a_refused_placement_names_every_node() {
    let mut problem = problem(422);
    problem.kind = "urn:stor:problem:no-placement".into();
    problem.title = "no room for volume db1".into();
    problem.placement = vec![PlacementVerdict {
        node: "s2".into(),
        pool: "sp01".into(),
        chosen: false,
        reason: "no tag nvme".into(),
    }];
    let fake = fake(vec![(422, serde_json::to_string(&problem).unwrap())]);
    let output = storctl(&fake.url, "volume create db1 1Gi --tag nvme");
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(
        err(&output).contains("  s2    sp01  no      no tag nvme\n"),
        "{}",
        err(&output)
    );
}

#[test]
fn detach_finds_the_node_itself() {
    let fake = fake(vec![answer(VolumeState::Healthy)]);
    let output = storctl(&fake.url, "volume detach db1");
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    assert_eq!(err(&output), "error: volume db1 is not attached\n");
}

#[test]
fn a_list_in_json_is_a_page_and_an_empty_table_is_silent() {
    let fake = fake(vec![(200, r#"{"items":[]}"#.into())]);
    let output = storctl(&fake.url, "volume list -o json");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(),
        serde_json::json!({"items": []})
    );
    assert_eq!(err(&output), "");
    let output = storctl(&fake.url, "volume list");
    assert_eq!((out(&output).as_str(), output.status.code()), ("", Some(0)));
    assert!(err(&output).contains("storctl volume create"), "{}", err(&output));
}

#[test]
fn no_colour_off_a_terminal() {
    let fake = fake(vec![(
        200,
        serde_json::json!({"items": [volume(VolumeState::Healthy)]}).to_string(),
    )]);
    let output = storctl(&fake.url, "volume list");
    assert!(!out(&output).contains('\u{1b}'), "{}", out(&output));
    assert!(out(&output).contains("healthy"), "{}", out(&output));
}

#[test]
fn completion_scripts_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = storctl("http://127.0.0.1:9", &format!("completion {shell}"));
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        assert!(out(&output).contains("storctl"), "{shell}");
    }
}

#[test]
fn a_failure_in_json_is_one_document_on_standard_error() {
    let mut problem = problem(409);
    problem.kind = "urn:stor:problem:in-use".into();
    problem.title = "volume db1 is in use".into();
    problem.remedy = "detach it first".into();
    let fake = fake(vec![(409, serde_json::to_string(&problem).unwrap())]);
    let document = |line: &str| {
        let output = storctl(&fake.url, line);
        assert_eq!(out(&output), "", "{line}");
        let document: serde_json::Value = serde_json::from_str(&err(&output)).unwrap();
        assert_eq!(document["exit_status"], output.status.code().unwrap(), "{line}");
        document
    };
    let refused = document("volume delete db1 --yes -o json");
    assert_eq!(
        (&refused["type"], &refused["status"]),
        (&problem.kind.into(), &409.into())
    );
    assert_eq!(refused["remedy"], "detach it first");
    assert_eq!(refused["exit_status"], 4);
    let usage = document("volume create -o json db1");
    assert_eq!(usage["type"], "urn:stor:problem:usage");
    assert!(usage.get("status").is_none(), "nobody was asked: {usage}");
    assert_eq!(usage["remedy"], "try '--help'", "{usage}");
    let twice = document("node set s1 --property a=1 --property a=2 --output=json");
    assert_eq!(twice["title"], "--property a is given more than once");
    let yaml = storctl(&fake.url, "volume create db1 0 -o yaml");
    assert!(
        err(&yaml).starts_with("type: urn:stor:problem:usage\n"),
        "{}",
        err(&yaml)
    );
}
