//! The API as HTTP: statuses, problems, ETags, pages, streams, documents.

use reqwest::{Method, StatusCode};
use stor_api::objects::{Event, NodeKind, Page, Volume};
use stor_api::problem::Problem;
use tokio_stream::StreamExt;

use crate::controllers::{PATIENCE, cluster, node, storage, until};
use crate::volumes::spec;

#[test]
fn the_document_is_this() {
    insta::assert_json_snapshot!("openapi", stor_controller::rest::openapi());
}

#[test]
fn every_operation_has_a_name_of_its_own() {
    let document = serde_json::to_value(stor_controller::rest::openapi()).unwrap();
    let mut names: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert!(all > 20 && names.len() == all, "{names:?}");
}

async fn problem(response: reqwest::Response) -> Problem {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(
        !response.headers().contains_key("x-stor-outcome"),
        "that is the cluster's own"
    );
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status);
    assert!(!problem.title.is_empty());
    problem
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_is_a_problem() {
    let (_root, controllers) = cluster(3).await;
    let http = reqwest::Client::new();
    // By the leader and through a follower alike.
    for controller in &controllers[..2] {
        let ask = |method: Method, path: &str, body: &str| {
            let request = http
                .request(method, format!("{}{path}", controller.url()))
                .body(body.to_owned());
            async move { problem(request.send().await.unwrap()).await }
        };
        let is = |problem: Problem, status: u16, code: &str| {
            assert_eq!((problem.status, problem.code()), (status, code), "{problem:?}");
        };
        is(ask(Method::GET, "/", "").await, 404, "no-such-path");
        is(ask(Method::GET, "/api/v1/tapes", "").await, 404, "no-such-path");
        is(ask(Method::GET, "/api/v2/nodes", "").await, 404, "no-such-path");
        is(
            ask(Method::PUT, "/api/v1/nodes", "{}").await,
            405,
            "method-not-allowed",
        );
        is(ask(Method::GET, "/api/v1/nodes/s9", "").await, 404, "not-found");
        is(ask(Method::GET, "/api/v1/nodes/%FF", "").await, 422, "invalid");
        is(
            ask(Method::GET, "/api/v1/pools/p/nodes/s9", "").await,
            404,
            "not-found",
        );
        is(
            ask(Method::DELETE, "/api/v1/volumes/v9", "").await,
            404,
            "not-found",
        );
        is(
            ask(Method::GET, "/api/v1/disks?node=s9", "").await,
            404,
            "not-found",
        );
        is(
            ask(Method::GET, "/api/v1/nodes?limit=many", "").await,
            422,
            "invalid",
        );
        for path in [
            "/api/v1/nodes?limit=0",
            "/api/v1/nodes?limit=1001",
            "/api/v1/events?limit=0",
            "/api/v1/events?foo=1",
            "/api/v1/events?watch=1&foo=1",
            "/api/v1/events?watch=1&limit=5",
            "/api/v1/nodes?watch=1&foo=1",
            "/api/v1/volumes?nodes=s1",
            "/api/v1/volumes/v1?foo=1",
            "/api/v1/status?foo=1",
        ] {
            is(ask(Method::GET, path, "").await, 422, "invalid");
        }
        let typo = ask(Method::POST, "/api/v1/volumes?dryrun=true", "{}").await;
        assert!(typo.title.contains("dryrun"), "{typo:?}");
        is(typo, 422, "invalid");
        let body = r#"{"name":"w","size_bytes":1048576,"bogus":1}"#;
        let typo = ask(Method::POST, "/api/v1/volumes", body).await;
        assert!(typo.title.contains("bogus"), "{typo:?}");
        is(typo, 422, "invalid");
        for path in ["/api/v1/nope?watch=1", "/api/v1/volumes/v9?watch=1"] {
            assert_eq!(ask(Method::GET, path, "").await.status, 404, "{path}");
        }
        is(
            ask(Method::GET, "/api/v1/events?watch=1&after=x", "").await,
            422,
            "invalid",
        );
        is(
            ask(Method::POST, "/api/v1/nodes?dry_run=perhaps", "{}").await,
            422,
            "invalid",
        );
        is(ask(Method::POST, "/api/v1/nodes", "").await, 400, "bad-json");
        is(
            ask(Method::POST, "/api/v1/nodes", "{\"name\":").await,
            400,
            "bad-json",
        );
        is(
            ask(Method::POST, "/api/v1/nodes", "{\"name\":\"s1\"}").await,
            422,
            "invalid",
        );
        is(ask(Method::POST, "/api/v1/nodes", "[1]").await, 422, "invalid");
        is(
            ask(Method::POST, "/api/v1/nodes", &"x".repeat((1 << 20) + 1)).await,
            413,
            "too-large",
        );
    }
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_are_etags() {
    let (_root, controllers) = cluster(3).await;
    let client = controllers[0].client();
    client.create_node(&node("s1", NodeKind::Storage)).await.unwrap();
    // Through a follower: the header has to survive.
    let (http, url) = (
        reqwest::Client::new(),
        format!("{}/api/v1/nodes/s1", controllers[2].url()),
    );
    let tag = http.get(&url).send().await.unwrap().headers()["etag"].clone();
    let set = |tag: &reqwest::header::HeaderValue, value: &str| {
        let body = format!("{{\"properties\":{{\"zone\":\"{value}\"}}}}");
        http.patch(&url).header("if-match", tag).body(body).send()
    };
    let changed = set(&tag, "a").await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(changed.headers()["etag"], tag);
    assert_eq!(problem(set(&tag, "b").await.unwrap()).await.code(), "changed");
    assert_eq!(client.node("s1").await.unwrap().properties["zone"], "a");
    let stale = http.delete(&url).header("if-match", &tag).send().await.unwrap();
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    let nonsense = http
        .delete(&url)
        .header("if-match", "today")
        .send()
        .await
        .unwrap();
    assert_eq!(nonsense.status(), StatusCode::UNPROCESSABLE_ENTITY);
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let _satellites = storage(&controllers, 2).await;
    for n in 0..5 {
        client.create_volume(&spec(&format!("v{n}"))).await.unwrap();
    }
    for (path, all) in [
        ("volumes", 5),
        ("nodes", 2),
        ("pools", 2),
        ("replicas", 10),
        ("disks", 2),
        ("volumes/v1/replicas", 2),
        ("controllers", 1),
        ("classes", 0),
        ("attachments", 0),
        ("volumes?node=s1", 5),
        ("replicas?node=s1", 5),
        ("replicas?volume=v1", 2),
    ] {
        let (mut seen, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let url = format!("{}/api/v1/{path}{separator}limit=1", controllers[0].url());
            let url = reqwest::Url::parse_with_params(&url, [("after", &after)]).unwrap();
            let page: Page<serde_json::Value> = reqwest::get(url).await.unwrap().json().await.unwrap();
            assert!(page.items.len() <= 1);
            seen.extend(page.items);
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(seen.len(), all, "{path}: {seen:?}");
        assert_eq!(pages, all.max(1), "{path}");
        let whole: Page<serde_json::Value> = reqwest::get(format!("{}/api/v1/{path}", controllers[0].url()))
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(whole.items.len(), all, "{path}");
    }
    for controller in controllers {
        controller.running.stop().await;
    }
}

/// The data of a stream, one event after the other.
async fn next<T: serde::de::DeserializeOwned>(
    stream: &mut (impl tokio_stream::Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin),
    buffer: &mut String,
) -> T {
    loop {
        if let Some((event, rest)) = buffer.split_once("\n\n") {
            let data = event
                .lines()
                .find_map(|line| line.strip_prefix("data: "))
                .map(str::to_owned);
            *buffer = String::from(rest);
            if let Some(data) = data {
                return serde_json::from_str(&data).unwrap();
            }
            continue;
        }
        let chunk = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        buffer.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_streamed_by_any_controller() {
    let (_root, controllers) = cluster(3).await;
    let client = controllers[0].client();
    let _satellites = storage(&controllers, 2).await;
    client.create_volume(&spec("db1")).await.unwrap();
    let follower = controllers[1].url();
    let (mut volumes, mut text) = (
        reqwest::get(format!("{follower}/api/v1/volumes/db1?watch=1"))
            .await
            .unwrap()
            .bytes_stream(),
        String::new(),
    );
    let first: Volume = next(&mut volumes, &mut text).await;
    assert_eq!(first.name, "db1");
    client.delete_volume("db1", false).await.unwrap();
    let mut last = first;
    loop {
        // The stream ends with the problem that there is no such volume.
        let value: serde_json::Value = next(&mut volumes, &mut text).await;
        let Ok(volume) = serde_json::from_value::<Volume>(value.clone()) else {
            let problem: Problem = serde_json::from_value(value).unwrap();
            assert_eq!(problem.code(), "not-found");
            break;
        };
        last = volume;
    }
    assert!(last.revision > 0);

    let events = client.events(0).await.unwrap();
    let (mut stream, mut text) = (
        reqwest::get(format!("{follower}/api/v1/events?watch=1&after=2"))
            .await
            .unwrap()
            .bytes_stream(),
        String::new(),
    );
    for expected in &events[2..] {
        let event: Event = next(&mut stream, &mut text).await;
        assert_eq!(&event, expected);
    }
    client.create_node(&node("s7", NodeKind::Storage)).await.unwrap();
    let event: Event = next(&mut stream, &mut text).await;
    assert_eq!(
        (event.kind.as_str(), event.seq),
        ("node-registered", events.last().unwrap().seq + 1)
    );
    drop((stream, volumes));
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_tells_of_itself() {
    let (_root, controllers) = cluster(1).await;
    let _satellites = storage(&controllers, 1).await;
    let get = |path: &str| {
        let url = format!("{}{path}", controllers[0].url());
        async move { reqwest::get(url).await.unwrap() }
    };
    assert_eq!(get("/healthz").await.status(), 200);
    assert_eq!(get("/readyz").await.status(), 200);
    let document: serde_json::Value = get("/api/v1/openapi.json").await.json().await.unwrap();
    assert!(document["paths"]["/api/v1/volumes/{volume}"]["delete"].is_object());
    until("the metrics show the node", async || {
        let text = get("/metrics").await.text().await.unwrap();
        text.contains("stor_controller_is_leader 1\n") && text.contains("stor_node_online{node=\"s1\"} 1\n")
    })
    .await;
    for controller in controllers {
        controller.running.stop().await;
    }
}
