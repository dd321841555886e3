//! The API under requests that nobody would send: of every operation in its document, with names, queries and bodies
//! of anything. Each is answered as the document says, none by a failure of the controller's own; what is refused and
//! what is only tried changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use stor_api::client::Client;
use stor_api::objects::{ClassSpec, VolumeState};
use stor_api::problem::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::controllers::{Controller, PATIENCE, cluster, diskless, storage, until};
use crate::dump::dump;
use crate::random::Random;
use crate::volumes::{on, spec};

const REQUESTS: u64 = 1500;
/// Far above any object there is and any problem; lists are of the few objects that come about.
const MOST_ANSWER: usize = 512 << 10;

/// Most that is said about a request, whatever it was: a placement names every node.
const MOST_SAID: usize = 4 << 10;

/// Names that can't be, and some that can.
const NAMES: [&str; 12] = [
    "",
    "..",
    "%00",
    "%FF%FE",
    "%2F",
    "x%20y",
    "default",
    "-",
    "Ünïcode",
    "🜚",
    "0",
    "db1",
];

/// What is there under the name of a field or of a part of a path, and some more that may come about.
fn sensible(of: &str) -> &'static [&'static str] {
    match of {
        "node" => &["s1", "s2", "k1", "s3"],
        "volume" => &["db1", "db1", "db2"],
        "pool" => &["sp01", "sp01", "sp02"],
        "class" => &["gold", "silver"],
        "controller" => &["c1"],
        "name" => &["s3", "k2", "db1", "db2", "db3", "sp01", "sp02", "gold", "silver"],
        "address" => &["127.0.0.1"],
        "dir" => &["/pools/a", "/pools/b"],
        "transport" => &["socket", "fuse"],
        "spread" | "together" => &["zone"],
        "size_bytes" => &["1048576", "4096"],
        "replicas" | "min_in_sync" => &["1", "2"],
        _ => &[],
    }
}

const NUMBERS: [&str; 9] = [
    "0",
    "-1",
    "1",
    "2",
    "1048576",
    "1073741824",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
];

/// An operation of the document.
#[derive(Clone, Debug)]
struct Operation {
    method: String,
    path: String,
    query: Vec<String>,
    body: Option<Value>,
}

/// All operations, and the schemas of their bodies by name.
fn operations() -> (Vec<Operation>, Value) {
    let document = serde_json::to_value(stor_controller::rest::openapi()).unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters.filter(|parameter| parameter["in"] == "query");
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            operations.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                query: query
                    .map(|one| one["name"].as_str().unwrap().to_owned())
                    .collect(),
                body: (!body.is_null()).then(|| body.clone()),
            });
        }
    }
    (operations, document["components"]["schemas"].clone())
}

struct Request {
    operation: String,
    method: String,
    path: String,
    body: Vec<u8>,
    if_match: Option<&'static str>,
}

impl Request {
    fn shown(&self) -> String {
        format!(
            "{} {:.300} {:.300}",
            self.method,
            self.path,
            String::from_utf8_lossy(&self.body)
        )
    }
}

struct Sender {
    random: Random,
    operations: Vec<Operation>,
    schemas: Value,
    /// Only try: nothing may change.
    dry: bool,
}

impl Sender {
    fn new(seed: u64, dry: bool) -> Self {
        let (operations, schemas) = operations();
        Self {
            random: Random::of(seed),
            operations,
            schemas,
            dry,
        }
    }

    fn request(&mut self) -> Request {
        let mut operation = self.random.one_of(&self.operations).clone();
        // Changes are fewer and have more to go wrong.
        if operation.method == "GET" {
            operation = self.random.one_of(&self.operations).clone();
        }
        let mut path = String::new();
        for part in operation.path.split('/').skip(1) {
            path.push('/');
            let name = part
                .strip_prefix('{')
                .map(|name| self.name(name.trim_end_matches('}')));
            path.push_str(&name.unwrap_or_else(|| part.to_owned()));
        }
        if self.random.once_in(20) {
            path = format!("{path}/{}", self.name(""));
        }
        let mut query = self.query(&operation);
        let method = if self.random.once_in(20) {
            (*self
                .random
                .one_of(&["PUT", "PATCH", "OPTIONS", "BREW", "DELETE", "POST", "HEAD"]))
            .to_owned()
        } else {
            operation.method.clone()
        };
        if self.dry && method != "GET" {
            query.retain(|part| !part.starts_with("dry_run"));
            query.push("dry_run=1".into());
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = match &operation.body {
            Some(schema) => self.body(&schema.clone()),
            None if self.random.once_in(8) => self.bytes(),
            None => Vec::new(),
        };
        let tags = ["*", "\"1\"", "\"2\"", "3", "x", "99999999999999999999", "\"\""];
        Request {
            operation: format!("{} {}", operation.method, operation.path),
            method,
            path,
            body,
            if_match: self.random.once_in(8).then(|| *self.random.one_of(&tags)),
        }
    }

    fn name(&mut self, of: &str) -> String {
        let sensible = sensible(of);
        if !sensible.is_empty() && !self.random.once_in(8) {
            return (*self.random.one_of(sensible)).to_owned();
        }
        if self.random.once_in(30) {
            return "long".repeat(self.random.below(400) as usize);
        }
        (*self.random.one_of(&NAMES)).to_owned()
    }

    fn query(&mut self, operation: &Operation) -> Vec<String> {
        let mut query = Vec::new();
        for name in &operation.query {
            if self.random.once_in(6) {
                let values = [
                    "",
                    "=",
                    "=1",
                    "=-1",
                    "=true",
                    "=99999999999999999999",
                    "=%FF",
                    "=s1",
                    "=db1",
                ];
                query.push(format!("{name}{}", self.random.one_of(&values)));
            }
        }
        if self.random.once_in(20) {
            query.push(
                (*self
                    .random
                    .one_of(&["a[]=1", "%00", "=", "force", "limit=5", "&&"]))
                .to_owned(),
            );
        }
        query
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.random.below(300))
            .map(|_| self.random.below(256) as u8)
            .collect()
    }

    fn body(&mut self, schema: &Value) -> Vec<u8> {
        match self.random.below(12) {
            0 => self.bytes(),
            1 => self.anything(3).into_bytes(),
            2 => {
                let mut text = self.like("", schema, 4).into_bytes();
                text.truncate(self.random.below(text.len() as u64 + 1) as usize);
                text
            }
            3 => {
                let mut text = self.like("", schema, 4).into_bytes();
                let at = self.random.below(text.len() as u64) as usize;
                text[at] ^= 1 << self.random.below(8);
                text
            }
            _ => self.like("", schema, 4).into_bytes(),
        }
    }

    /// JSON that the schema allows for the field `of`, or nearly.
    fn like(&mut self, of: &str, schema: &Value, depth: u32) -> String {
        if depth == 0 || self.random.once_in(25) {
            return self.anything(depth);
        }
        if let Some(name) = schema["$ref"].as_str() {
            let named = self.schemas[name.rsplit('/').next().unwrap()].clone();
            return self.like(of, &named, depth);
        }
        if let Some(values) = schema["enum"].as_array() {
            return self.random.one_of(values).to_string();
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = self.random.one_of(choices).clone();
            return self.like(of, &choice, depth);
        }
        let is = |kind: &str| {
            schema["type"] == kind
                || schema["type"]
                    .as_array()
                    .is_some_and(|all| all.contains(&kind.into()))
        };
        if is("object") {
            self.object(schema, depth)
        } else if is("array") {
            let items: Vec<String> = (0..self.random.below(3))
                .map(|_| self.like(of, &schema["items"], depth - 1))
                .collect();
            format!("[{}]", items.join(","))
        } else if is("string") {
            Value::from(self.name(of)).to_string()
        } else if is("integer") || is("number") {
            let numbers = if self.random.once_in(4) { &[] } else { sensible(of) };
            let numbers = if numbers.is_empty() { &NUMBERS } else { numbers };
            (*self.random.one_of(numbers)).to_owned()
        } else if is("boolean") {
            (*self.random.one_of(&["true", "false"])).to_owned()
        } else {
            "null".to_owned()
        }
    }

    fn object(&mut self, schema: &Value, depth: u32) -> String {
        let mut members = Vec::new();
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            let is_wanted = required.contains(&name.as_str());
            if (is_wanted && !self.random.once_in(25)) || (!is_wanted && self.random.once_in(6)) {
                members.push(format!("\"{name}\":{}", self.like(name, of, depth - 1)));
            }
        }
        if schema["additionalProperties"].is_object() && !self.random.once_in(4) {
            let value = self.random.below(3);
            members.push(format!("\"zone\":\"{value}\""));
        }
        if self.random.once_in(15) {
            let name = Value::from(self.name(""));
            members.push(format!("{name}:{}", self.anything(depth - 1)));
        }
        format!("{{{}}}", members.join(","))
    }

    fn anything(&mut self, depth: u32) -> String {
        match self.random.below(if depth == 0 { 8 } else { 10 }) {
            0 => "null".to_owned(),
            1 => "true".to_owned(),
            2 | 3 => (*self.random.one_of(&NUMBERS)).to_owned(),
            4 => "\"\\u0000\\ud800\"".to_owned(),
            5 => format!("\"{}\"", "y".repeat(self.random.below(30_000) as usize)),
            6 => "[".repeat(self.random.below(2000) as usize),
            7 => Value::from(self.name("")).to_string(),
            8 => format!("[{},{}]", self.anything(depth - 1), self.anything(depth - 1)),
            _ => format!("{{\"name\":{}}}", self.anything(depth - 1)),
        }
    }
}

/// A cluster with something to name: db1 in use, a class, three nodes with satellites.
struct Inhabited {
    _root: tempfile::TempDir,
    controllers: Vec<Controller>,
    client: Client,
    _satellites: Vec<crate::satellite::Satellite>,
}

async fn inhabited() -> Inhabited {
    let (root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let mut satellites = storage(&controllers, 2).await;
    satellites.push(diskless(&controllers, "k1").await);
    let class: ClassSpec = serde_json::from_str(r#"{"name":"gold"}"#).unwrap();
    client.create_class(&class).await.unwrap();
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    until("it is in use", async || {
        client.volume("db1").await.unwrap().state == VolumeState::Healthy
    })
    .await;
    Inhabited {
        _root: root,
        controllers,
        client,
        _satellites: satellites,
    }
}

/// Sends a request and judges the form of its answer; its status, and whether the request got to a handler.
async fn send(http: &reqwest::Client, url: &str, request: &Request) -> (StatusCode, bool) {
    let shown = request.shown();
    let method = Method::from_bytes(request.method.as_bytes()).unwrap();
    let mut sent = http.request(method.clone(), format!("{url}{}", request.path));
    if let Some(tag) = request.if_match {
        sent = sent.header("if-match", tag);
    }
    let response: Response = match sent.body(request.body.clone()).send().await {
        Ok(response) => response,
        Err(error) => panic!("{shown}: {error}"),
    };
    let status = response.status();
    let kind = response.headers().get("content-type").cloned();
    let answer = response
        .bytes()
        .await
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(!status.is_server_error(), "{shown}: {status} {answer:?}");
    assert!(answer.len() <= MOST_ANSWER, "{shown}: {} bytes", answer.len());
    if !status.is_client_error() {
        return (status, true);
    }
    assert_eq!(kind.unwrap(), "application/problem+json", "{shown}: {answer:?}");
    if method == Method::HEAD {
        return (status, false);
    }
    let problem: Problem = serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert_eq!(problem.status, status.as_u16(), "{shown}");
    assert!(
        !problem.title.is_empty() && answer.len() < MOST_SAID,
        "{shown}: {answer:?}"
    );
    (
        status,
        !["no-such-path", "method-not-allowed"].contains(&problem.code()),
    )
}

/// Each operation was tried, most of them with success, and each kind of refusal was met. Otherwise nothing but the
/// first line of defence was seen.
fn enough(met: &BTreeMap<String, BTreeSet<u16>>, least: usize) {
    let all = operations().0.len();
    assert_eq!(met.len(), all, "operations that were reached: {met:?}");
    let done = met
        .values()
        .filter(|statuses| statuses.iter().any(|status| *status < 300))
        .count();
    assert!(done >= least, "{done} of {all} ever succeeded: {met:?}");
    for status in [400, 404, 409, 412, 422] {
        assert!(
            met.values().any(|statuses| statuses.contains(&status)),
            "never {status}: {met:?}"
        );
    }
}

async fn send_many(controller: &Controller, mut sender: Sender) -> BTreeMap<String, BTreeSet<u16>> {
    let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let mut met: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for _ in 0..REQUESTS {
        let request = sender.request();
        let (status, reached) = send(&http, &controller.url(), &request).await;
        if reached {
            met.entry(request.operation).or_default().insert(status.as_u16());
        }
    }
    met
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_makes_a_controller_fail() {
    let Inhabited {
        _root,
        controllers,
        client,
        _satellites,
    } = inhabited().await;
    let met = send_many(&controllers[0], Sender::new(1, false)).await;
    let all = operations().0.len();
    enough(&met, all * 2 / 3);
    client.status().await.unwrap();
    for controller in controllers {
        controller.running.stop().await;
    }
}

async fn catalogue(controller: &Controller) -> String {
    let mut look = controller.running.cluster().look().await.unwrap();
    // How far the log is moves with entries that change nothing.
    dump(look.rows(), |table| table.starts_with("stor_raft")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_or_only_tried_changes_nothing() {
    let Inhabited {
        _root,
        controllers,
        client,
        _satellites,
    } = inhabited().await;
    let before = catalogue(&controllers[0]).await;
    assert!(before.contains("db1") && before.contains("gold"));
    let met = send_many(&controllers[0], Sender::new(2, true)).await;
    assert!(met.len() > 20, "{met:?}");
    assert_eq!(catalogue(&controllers[0]).await, before);
    client.delete_volume("db1", false).await.unwrap_err();
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_is_hung_up_on() {
    let (_root, controllers) = cluster(1).await;
    let address = controllers[0].running.api();
    let mut random = Random::of(3);
    let parts: [&[u8]; 14] = [
        b"GET ",
        b"POST ",
        b"/api/v1/nodes",
        b" HTTP/1.1",
        b" HTTP/9",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"host: a",
        b"content-length: 99999999999999999999",
        b"content-length: 10",
        b"transfer-encoding: chunked",
        b"fffffffffffffffff\r\n",
        b"\x00\xff\x16\x03\x01",
    ];
    for _ in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..random.below(20) {
            let part: &&[u8] = random.one_of(&parts);
            bytes.extend_from_slice(part);
        }
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        // It may have hung up in the middle.
        let _sent = connection.write_all(&bytes).await;
        let _told = connection.shutdown().await;
        let mut answer = Vec::new();
        let reading = connection.read_to_end(&mut answer);
        let _ended = tokio::time::timeout(PATIENCE, reading)
            .await
            .unwrap_or_else(|_| panic!("kept open after {:?}", String::from_utf8_lossy(&bytes)));
        assert!(
            !answer.starts_with(b"HTTP/1.1 5"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    controllers[0].client().status().await.unwrap();
    for controller in controllers {
        controller.running.stop().await;
    }
}
