//! Requests as a stranger sends them: any method, path and body, past the API's own client.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::problem::{CONTENT_TYPE, Problem};

/// Longer than any request may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Head, lower case.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Response {
    /// The problem it is; an error when it is none, or says too little.
    pub fn problem(&self) -> anyhow::Result<Problem> {
        ensure!(
            self.head.contains(&format!("content-type: {CONTENT_TYPE}")),
            "not a problem: {self:?}"
        );
        let problem: Problem = serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))?;
        ensure!(problem.status == self.status, "another status inside: {self:?}");
        ensure!(!problem.title.is_empty(), "it does not say what: {self:?}");
        ensure!(
            problem.kind.starts_with("urn:stor:problem:"),
            "of no known type: {self:?}"
        );
        Ok(problem)
    }
}

/// Sends one request to the API on `port`.
pub fn request(port: u16, method: &str, path: &str, body: &str) -> anyhow::Result<Response> {
    request_within(DEADLINE, &format!("127.0.0.1:{port}"), method, path, "", body)
}

/// The same at any address, with further lines of the head, each ended by CR LF, and another deadline for a silent
/// server.
pub fn request_within(
    deadline: Duration,
    address: &str,
    method: &str,
    path: &str,
    head: &str,
    body: &str,
) -> anyhow::Result<Response> {
    let place = address
        .to_socket_addrs()?
        .next()
        .with_context(|| format!("{address} is no address"))?;
    let mut stream = TcpStream::connect_timeout(&place, deadline)?;
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: stor\r\nconnection: close\r\ncontent-type: application/json\r\n\
         {head}content-length: {length}\r\n\r\n{body}"
    )?;
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading the answer to {method} {path}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Response {
        status: status.with_context(|| format!("no status in {head}"))?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}
