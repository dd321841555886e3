//! Requests that are wrong in themselves or against what is there.

use anyhow::ensure;
use serde_json::{Value, json};
use stor_tests::cluster::{self, Cluster};
use stor_tests::http;
use stor_tests::volume::{self, Volume};

use super::{catalogue, shortened};

/// A request, the status it has to get, and what its problem has to say.
struct Request {
    method: &'static str,
    path: String,
    body: String,
    status: u16,
    says: Vec<String>,
}

fn refused(method: &'static str, path: &str, body: &Value, status: u16, says: &[&str]) -> Request {
    Request {
        method,
        path: path.to_owned(),
        body: body.to_string(),
        status,
        says: says.iter().map(|word| (*word).to_owned()).collect(),
    }
}

/// Names nothing may have.
fn names() -> Vec<(String, &'static str)> {
    let mut names: Vec<(String, &'static str)> = [
        ("", "empty"),
        ("DB1", "'D'"),
        ("db 1", "' '"),
        ("db_1", "'_'"),
        ("dü1", "'ü'"),
        ("db/1", "'/'"),
        ("../db1", "'/'"),
        ("db1\n", "not allowed"),
        ("$(reboot)", "'$'"),
        ("-db1", "begin and end"),
        ("db1-", "begin and end"),
        ("db..1", "begin and end"),
        ("..", "begin and end"),
        ("all", "reserved"),
        ("none", "reserved"),
        ("self", "reserved"),
        ("new", "reserved"),
    ]
    .into_iter()
    .map(|(name, says)| (name.to_owned(), says))
    .collect();
    names.push(("a".repeat(64), "64 characters"));
    names.push(("a".repeat(100_000), "100000 characters"));
    names
}

fn bad_names() -> Vec<Request> {
    let mut requests = Vec::new();
    for (name, says) in names() {
        let bodies = [
            ("volumes", json!({ "name": name, "size_bytes": 1 << 20 })),
            (
                "nodes",
                json!({ "name": name, "address": "127.0.0.1", "kind": "diskless" }),
            ),
            (
                "pools",
                json!({ "name": name, "node": "s1", "dir": "/var/tmp/nowhere" }),
            ),
            ("classes", json!({ "name": name })),
        ];
        for (what, body) in bodies {
            requests.push(refused("POST", &format!("/api/v1/{what}"), &body, 422, &[says]));
        }
    }
    requests
}

fn bad_sizes() -> Vec<Request> {
    let sizes = [
        (json!(0), 422, "smallest is 1 MiB"),
        (json!(1), 422, "smallest is 1 MiB"),
        (json!((1 << 20) - 4096), 422, "smallest is 1 MiB"),
        (json!((64_u64 << 40) + 1), 422, "largest 64 TiB"),
        (json!(u64::MAX), 422, "largest 64 TiB"),
        (json!(-1), 422, "size_bytes"),
        (json!(1.5), 422, "size_bytes"),
        (json!("1Gi"), 422, "size_bytes"),
        (Value::Null, 422, "size_bytes"),
    ];
    sizes
        .into_iter()
        .map(|(size, status, says)| {
            let body = json!({ "name": "bad", "size_bytes": size });
            refused("POST", "/api/v1/volumes", &body, status, &[says])
        })
        .collect()
}

/// Against the volume `db1` and the nodes and pools of every cluster.
fn bad_references() -> Vec<Request> {
    let volume = |more: Value| {
        let mut body = json!({ "name": "bad", "size_bytes": 1 << 20 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let attach = |node: &str, transport: &str| json!({ "node": node, "transport": transport });
    vec![
        // Duplicates.
        refused(
            "POST",
            "/api/v1/volumes",
            &json!({ "name": "db1", "size_bytes": 2 << 20 }),
            409,
            &["db1"],
        ),
        refused(
            "POST",
            "/api/v1/nodes",
            &json!({ "name": "s1", "address": "127.0.0.9", "kind": "storage" }),
            409,
            &["s1"],
        ),
        refused(
            "POST",
            "/api/v1/pools",
            &json!({ "name": "sp01", "node": "s1", "dir": "/var/tmp/elsewhere" }),
            409,
            &["sp01", "s1"],
        ),
        // What is not there.
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "class": "nope" })),
            404,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "pool": "nope" })),
            422,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "tags": ["nope"] })),
            422,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "replicas": 4 })),
            422,
            &["4"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "replicas": 0 })),
            422,
            &["replica"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "replicas": 200 })),
            422,
            &["replica"],
        ),
        refused(
            "POST",
            "/api/v1/volumes",
            &volume(json!({ "replicas": 2, "min_in_sync": 3 })),
            422,
            &["in-sync"],
        ),
        refused(
            "POST",
            "/api/v1/pools",
            &json!({ "name": "sp01", "node": "nope", "dir": "/var/tmp/nowhere" }),
            404,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/pools",
            &json!({ "name": "sp01", "node": "k1", "dir": "/var/tmp/nowhere" }),
            409,
            &["k1"],
        ),
        refused(
            "POST",
            "/api/v1/pools",
            &json!({ "name": "sp02", "node": "s1", "dir": "relative/path" }),
            422,
            &["relative/path"],
        ),
        refused(
            "POST",
            "/api/v1/pools",
            &json!({ "name": "sp02", "node": "s1", "dir": "/var/tmp/../.." }),
            422,
            &["absolute"],
        ),
        refused(
            "POST",
            "/api/v1/volumes/nope/attachments",
            &attach("k1", "socket"),
            404,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/volumes/db1/attachments",
            &attach("nope", "socket"),
            404,
            &["nope"],
        ),
        refused(
            "POST",
            "/api/v1/volumes/db1/attachments",
            &attach("k1", "pigeon"),
            422,
            &["pigeon", "socket"],
        ),
        refused(
            "DELETE",
            "/api/v1/volumes/db1/attachments/k1",
            &Value::Null,
            404,
            &["db1"],
        ),
        refused("DELETE", "/api/v1/volumes/nope", &Value::Null, 404, &["nope"]),
        refused("DELETE", "/api/v1/nodes/nope", &Value::Null, 404, &["nope"]),
        refused("DELETE", "/api/v1/classes/nope", &Value::Null, 404, &["nope"]),
        refused("GET", "/api/v1/volumes/nope", &Value::Null, 404, &["nope"]),
        refused("GET", "/api/v1/volumes/..%2F..%2Fetc", &Value::Null, 404, &[]),
        refused("GET", "/api/v1/nothing", &Value::Null, 404, &[]),
        refused("DELETE", "/api/v1/volumes", &Value::Null, 405, &[]),
        // What is in use.
        refused("DELETE", "/api/v1/nodes/s1", &Value::Null, 409, &["s1"]),
        refused(
            "DELETE",
            "/api/v1/pools/sp01/nodes/s1",
            &Value::Null,
            409,
            &["sp01"],
        ),
    ]
}

fn bad_bodies() -> Vec<Request> {
    let texts = [
        ("", 400, ""),
        ("{", 400, ""),
        ("[]", 422, "object"),
        ("{\"name\":\"bad\",\"size_bytes\":1048576} {}", 400, "JSON"),
        ("{}", 422, "name"),
        (
            "{\"name\":\"bad\",\"size_bytes\":1048576,\"tags\":\"nvme\"}",
            422,
            "tags",
        ),
        (
            "{\"name\":\"bad\",\"size_bytes\":1048576,\"tags\":[\"a b\"]}",
            422,
            "a b",
        ),
        (
            "{\"name\":\"bad\",\"size_bytes\":1048576,\"tags\":[\"x\",\"x\"]}",
            422,
            "twice",
        ),
    ];
    let mut requests: Vec<Request> = texts
        .into_iter()
        .map(|(text, status, says)| Request {
            method: "POST",
            path: "/api/v1/volumes".into(),
            body: text.into(),
            status,
            says: vec![says.to_owned()],
        })
        .collect();
    requests.push(Request {
        method: "POST",
        path: "/api/v1/volumes".into(),
        body: format!("{{\"name\":\"{}\"}}", "x".repeat(3 << 20)),
        status: 413,
        says: vec!["1 MiB".into()],
    });
    requests
}

fn ask(cluster: &Cluster, request: &Request) -> anyhow::Result<()> {
    let response = http::request(cluster.port("c2")?, request.method, &request.path, &request.body)?;
    ensure!(
        response.status == request.status,
        "status {}, not {}: {}",
        response.status,
        request.status,
        response.body
    );
    let problem = response.problem()?;
    println!(
        "{} {} {}\n    {} {} | {} | {}",
        request.method,
        request.path,
        shortened(&request.body),
        problem.status,
        problem.title,
        problem.detail,
        problem.remedy
    );
    let text = format!(
        "{} {} {} {:?}",
        problem.title, problem.detail, problem.remedy, problem.placement
    );
    for word in &request.says {
        ensure!(text.contains(word), "it does not say {word:?}: {}", response.body);
    }
    ensure!(text.len() < 4000, "a problem of {} characters", text.len());
    Ok(())
}

#[test]
fn wrong_requests_get_one_clear_error_and_change_nothing() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        Volume::create(cluster, "db1", 1 << 20, &["s1", "s2"])?;
        let before = catalogue(cluster)?;
        let requests = [bad_names(), bad_sizes(), bad_references(), bad_bodies()].concat_all();
        let mut wrong = Vec::new();
        for request in &requests {
            if let Err(error) = ask(cluster, request) {
                wrong.push(format!(
                    "{} {} {}: {error:#}",
                    request.method,
                    request.path,
                    shortened(&request.body)
                ));
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} of {} are wrong:\n{}",
            wrong.len(),
            requests.len(),
            wrong.join("\n")
        );
        let after = catalogue(cluster)?;
        ensure!(after == before, "before: {before:?}\nafter: {after:?}");
        unaligned_sizes_are_rounded_up(cluster)?;
        cluster.wait_healthy()
    })
}

trait ConcatAll<T> {
    fn concat_all(self) -> Vec<T>;
}

impl<T, const N: usize> ConcatAll<T> for [Vec<T>; N] {
    fn concat_all(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}

fn unaligned_sizes_are_rounded_up(cluster: &Cluster) -> anyhow::Result<()> {
    let made = cluster.run(
        cluster
            .client()
            .create_volume(&volume::spec("odd", (1 << 20) + 1)),
    )?;
    ensure!(made.size_bytes == (1 << 20) + 4096, "{} bytes", made.size_bytes);
    let again = cluster.run(
        cluster
            .client()
            .create_volume(&volume::spec("odd", (1 << 20) + 1)),
    )?;
    ensure!(again.id == made.id, "another volume");
    Ok(cluster.run(cluster.client().delete_volume("odd", false))?)
}
