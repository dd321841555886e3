//! The client against a fake controller: a listener that answers each connection with the next canned answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    // the canned answers are options, so that one of them can be "hang up"
    clippy::unnecessary_wraps
)]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::objects::{AttachmentSpec, Disk, Plan};

struct Fake {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

/// `None`: take the request and hang up without an answer.
async fn fake(answers: Vec<Option<(u16, String)>>) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let request = read_request(&mut socket).await;
            log.lock().unwrap().push(request);
            if let Some((status, body)) = answer {
                let text = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                socket.write_all(text.as_bytes()).await.unwrap();
            }
        }
    });
    Fake { url, seen }
}

async fn read_request(socket: &mut tokio::net::TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let n = socket.read(&mut buffer).await.unwrap();
        text.extend_from_slice(&buffer[..n]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head
                .to_lowercase()
                .lines()
                .find_map(|l| l.strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
                return so_far;
            }
        }
        assert!(n > 0, "the request ended early: {so_far}");
    }
}

fn client(urls: &[&str]) -> Client {
    Client::new(&Options {
        urls: urls.iter().map(|u| (*u).to_owned()).collect(),
        token_file: None,
        ca_file: None,
        timeout: Duration::from_secs(20),
    })
    .unwrap()
}

fn problem(status: u16, code: &str) -> Option<(u16, String)> {
    let problem = Problem {
        kind: format!("urn:stor:problem:{code}"),
        status,
        title: "what".into(),
        detail: "why".into(),
        remedy: "do".into(),
        placement: Vec::new(),
    };
    Some((status, serde_json::to_string(&problem).unwrap()))
}

fn page(names: &[&str], next: Option<&str>) -> Option<(u16, String)> {
    let items = names
        .iter()
        .map(|n| Disk {
            node: (*n).into(),
            path: "/dev/sdb".into(),
            size_bytes: 1,
            model: String::new(),
            serial: String::new(),
            rotational: false,
            in_use: String::new(),
            wipeable: false,
        })
        .collect();
    let page = Page {
        items,
        next: next.map(str::to_owned),
    };
    Some((200, serde_json::to_string(&page).unwrap()))
}

/// A port where nobody listens: bound once, then let go.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let fake = fake(vec![page(&["a", "b"], Some("b")), page(&["c"], None)]).await;
    let filter = Filter {
        node: Some("n 1".into()),
        volume: None,
    };
    let disks = client(&[&fake.url]).disks(&filter).await.unwrap();
    assert_eq!(
        disks.iter().map(|d| d.node.as_str()).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    let seen = fake.seen.lock().unwrap().clone();
    assert!(
        seen[0].starts_with("GET /api/v1/disks?node=n%201 "),
        "{}",
        seen[0]
    );
    assert!(
        seen[1].starts_with("GET /api/v1/disks?node=n%201&after=b "),
        "{}",
        seen[1]
    );
}

#[tokio::test]
async fn the_next_controller_is_asked_when_one_is_gone_or_without_leader() {
    let dead = nobody().await;
    let leaderless = fake(vec![problem(503, "no-leader")]).await;
    let good = fake(vec![page(&["a"], None)]).await;
    let disks = client(&[&dead, &leaderless.url, &good.url])
        .disks(&Filter::default())
        .await
        .unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(leaderless.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cluster_without_quorum_is_not_waited_for() {
    let dead = nobody().await;
    let alone = fake(vec![problem(503, "no-quorum"); 200]).await;
    let patient = Client::new(&Options {
        urls: vec![dead, alone.url.clone()],
        token_file: None,
        ca_file: None,
        // Longer than the test may run.
        timeout: Duration::from_hours(1),
    })
    .unwrap();
    let error = patient.disks(&Filter::default()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_is_done_when_the_object_is_gone() {
    let fake = fake(vec![None, problem(404, "not-found")]).await;
    client(&[&fake.url]).delete_volume("db1", true).await.unwrap();
    let seen = fake.seen.lock().unwrap().clone();
    assert!(
        seen[0].starts_with("DELETE /api/v1/volumes/db1?force=true "),
        "{}",
        seen[0]
    );
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_delete_of_nothing_is_not_found() {
    let fake = fake(vec![problem(404, "not-found")]).await;
    let error = client(&[&fake.url])
        .delete_volume("db1", false)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::NotFound { retried: false, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, expected) in [
        (400, "Invalid"),
        (401, "Unauthorized"),
        (403, "Unauthorized"),
        (404, "NotFound"),
        (409, "Conflict"),
        (412, "Conflict"),
        (422, "Invalid"),
        (500, "Failed"),
    ] {
        let fake = fake(vec![problem(status, "x")]).await;
        let error = client(&[&fake.url]).volume("db1").await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{status}: {error:?}");
        assert_eq!(error.problem().unwrap().remedy, "do");
        assert_eq!(error.to_string(), "what: why");
    }
}

#[tokio::test]
async fn something_that_is_no_controller_is_told_as_such() {
    let fake = fake(vec![Some((404, "<html>nginx</html>".into()))]).await;
    let error = client(&[&fake.url]).status().await.unwrap_err();
    assert!(error.problem().unwrap().remedy.contains("URL"), "{error:?}");
    let other = self::fake(vec![Some((200, "hello".into()))]).await;
    assert!(matches!(
        client(&[&other.url]).status().await,
        Err(Error::Answer { .. })
    ));
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_names_every_url() {
    let (one, two) = (nobody().await, nobody().await);
    let short = client(&[&one, &two]).with_timeout(Duration::from_millis(300));
    let error = short.status().await.unwrap_err();
    assert!(
        matches!(error, Error::Unreachable { .. } | Error::TimedOut { .. }),
        "{error:?}"
    );
    let long = client(&[&one, &two]).status().await.unwrap_err();
    let Error::Unreachable { tried } = long else {
        panic!("{long:?}")
    };
    assert_eq!(
        tried.iter().map(|t| t.url.as_str()).collect::<Vec<_>>(),
        [one.as_str(), two.as_str()]
    );
}

#[tokio::test]
async fn a_controller_that_never_answers_is_a_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let error = client(&[&url])
        .with_timeout(Duration::from_millis(200))
        .status()
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_plan_is_the_same_request_with_dry_run() {
    let plan = Plan {
        steps: vec!["make replica".into()],
        placement: Vec::new(),
    };
    let fake = fake(vec![Some((200, serde_json::to_string(&plan).unwrap()))]).await;
    let spec = AttachmentSpec {
        node: "k1".into(),
        transport: None,
        read_only: false,
        force: false,
    };
    let got = client(&[&fake.url])
        .plan(&Wish::Attach {
            volume: "db1",
            spec: &spec,
        })
        .await
        .unwrap();
    assert_eq!(got, plan);
    let seen = fake.seen.lock().unwrap()[0].clone();
    assert!(
        seen.starts_with("POST /api/v1/volumes/db1/attachments?dry_run=true "),
        "{seen}"
    );
    assert!(seen.ends_with(&serde_json::to_string(&spec).unwrap()), "{seen}");
}

#[tokio::test]
async fn the_token_goes_along_and_is_not_shown() {
    let dir = std::env::temp_dir().join(format!("stor-api-token-{}", std::process::id()));
    std::fs::write(&dir, "s3cret\n").unwrap();
    let fake = fake(vec![page(&[], None)]).await;
    let options = Options {
        urls: vec![format!("{}/", fake.url)],
        token_file: Some(dir.clone()),
        ca_file: None,
        timeout: Duration::from_secs(20),
    };
    let client = Client::new(&options).unwrap();
    std::fs::remove_file(dir).unwrap();
    client.disks(&Filter::default()).await.unwrap();
    let seen = fake.seen.lock().unwrap()[0].to_lowercase();
    assert!(seen.contains("authorization: bearer s3cret\r\n"), "{seen}");
    assert!(!format!("{client:?}").contains("s3cret"));
}

#[test]
fn urls_are_checked() {
    let of = |url: &str| check_url(url).map_err(|e| e.to_string());
    assert_eq!(of("http://127.0.0.1:3370/"), Ok("http://127.0.0.1:3370".into()));
    assert!(of("https://c1:3370").unwrap_err().contains("TLS"));
    assert!(of("127.0.0.1:3370").unwrap_err().contains("begin with http://"));
    assert!(of("http://c1:3370/api/v1").unwrap_err().contains("HOST:PORT"));
    assert!(of("ftp://c1").unwrap_err().contains("http://"));
}

#[test]
fn a_segment_stays_one() {
    assert_eq!(wish::segment("db-1.x_y~"), "db-1.x_y~");
    assert_eq!(wish::segment("../a?b#c d/ä"), "..%2Fa%3Fb%23c%20d%2F%C3%A4");
    assert_eq!(wish::segment(".."), "%2E%2E");
}

#[tokio::test]
async fn events_go_on_where_they_stopped_on_another_controller() {
    let event = |seq: u64| {
        format!(
            "id: {seq}\ndata: {{\"seq\":{seq},\"time\":\"2026-01-01T00:00:00Z\",\"severity\":\"info\",\"kind\":\"k\",\"object\":\"o\",\"message\":\"m\"}}\n\n"
        )
    };
    let first = fake(vec![Some((200, format!(": hello\n\n{}{}", event(5), event(6))))]).await;
    let second = fake(vec![Some((200, format!("{}{}", event(6), event(7))))]).await;
    let mut stream = client(&[&first.url, &second.url]).follow_events(4);
    for expected in [5, 6, 7] {
        assert_eq!(stream.next().await.unwrap().seq, expected);
    }
    assert!(first.seen.lock().unwrap()[0].starts_with("GET /api/v1/events?watch=1&after=4 "));
    assert!(second.seen.lock().unwrap()[0].starts_with("GET /api/v1/events?watch=1&after=6 "));
}
