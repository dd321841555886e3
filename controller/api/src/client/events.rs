//! Events as they happen: server-sent events, read across the loss of controllers.

use std::time::Duration;

use super::{Client, Error, Tried};
use crate::objects::Event;

/// Longest line of the stream that is kept.
const MAX_LINE: usize = 1 << 20;
/// The server writes a comment at least every 15 s; silence means that it is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// Rounds over all URLs without one event or comment before the stream ends with an error.
const MAX_ROUNDS: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// Events in order, each once. Made by [`Client::follow_events`].
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    after: u64,
    /// URL to ask next.
    turn: usize,
    open: Option<Open>,
}

struct Open {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(client: Client, after: u64) -> Self {
        Self {
            client,
            after,
            turn: 0,
            open: None,
        }
    }

    /// The next event. Cancel-safe: an event is either returned or comes again.
    pub async fn next(&mut self) -> Result<Event, Error> {
        let mut tried: Vec<Tried> = Vec::new();
        let mut fruitless = 0;
        loop {
            match self.read().await {
                Ok(Some(event)) if event.seq > self.after => {
                    self.after = event.seq;
                    return Ok(event);
                }
                Ok(Some(_)) => {} // seen before the connection changed
                Ok(None) => self.open = None,
                Err(error) => {
                    self.open = None;
                    if !matches!(error, Error::Unreachable { .. } | Error::TimedOut { .. }) {
                        return Err(error);
                    }
                    if let Error::Unreachable { tried: one } = error {
                        tried.extend(one);
                    }
                }
            }
            if self.open.is_some() {
                fruitless = 0;
                tried.clear();
                continue;
            }
            self.turn = (self.turn + 1) % self.client.urls.len();
            if self.turn == 0 {
                fruitless += 1;
                if fruitless >= MAX_ROUNDS {
                    return Err(Error::Unreachable { tried });
                }
                tried.clear();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// The next event of the open connection; `None` when it is at its end.
    async fn read(&mut self) -> Result<Option<Event>, Error> {
        if self.open.is_none() {
            self.open = Some(self.connect().await?);
        }
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        loop {
            while let Some(end) = open.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = open.buffer.drain(..=end).collect();
                if let Some(event) = parse(&line)? {
                    return Ok(Some(event));
                }
            }
            // However it ended: it is opened again where it was.
            let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, open.response.chunk()).await else {
                return Ok(None);
            };
            if open.buffer.len() + chunk.len() > MAX_LINE {
                return Ok(None);
            }
            open.buffer.extend_from_slice(&chunk);
        }
    }

    async fn connect(&self) -> Result<Open, Error> {
        let Some(url) = self.client.urls.get(self.turn) else {
            return Err(Error::Unreachable { tried: Vec::new() });
        };
        let path = format!("/api/v1/events?watch=1&after={}", self.after);
        let request = self
            .client
            .http
            .get(format!("{url}{path}"))
            .header("accept", "text/event-stream");
        let unreachable = |tried: Tried| Error::Unreachable { tried: vec![tried] };
        let sent = tokio::time::timeout(self.client.timeout, request.send()).await;
        let response = sent
            .map_err(|_| Error::TimedOut {
                path,
                after: self.client.timeout,
                tried: Vec::new(),
            })?
            .map_err(|e| unreachable(Tried::failed(url, &e)))?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(Open {
                response,
                buffer: Vec::new(),
            });
        }
        let content = tokio::time::timeout(SILENCE, response.bytes()).await;
        // Without its text the status alone says what it is.
        let content = content.ok().and_then(Result::ok).map(|bytes| bytes.to_vec());
        let content = content.unwrap_or_default();
        let answer = super::Answer { status, content };
        if status == 503 {
            return Err(unreachable(Tried::busy(url, &answer)));
        }
        Err(Error::from_problem(answer.problem(), false))
    }
}

/// One line of the stream. Stor's events are one `data:` line each; everything else (`id:`, `event:`, comments,
/// empty lines) carries nothing that is not in the event.
fn parse(line: &[u8]) -> Result<Option<Event>, Error> {
    let Some(data) = line.strip_prefix(b"data:") else {
        return Ok(None);
    };
    let data = data.trim_ascii();
    if data.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(data)
        .map(Some)
        .map_err(|source| Error::Answer {
            path: "/api/v1/events".to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Severity;

    #[test]
    fn only_data_lines_are_events() {
        for line in [": keep-alive\n", "id: 7\n", "event: event\n", "\n", "data:\n"] {
            assert!(matches!(parse(line.as_bytes()), Ok(None)), "{line:?}");
        }
        let line = br#"data: {"seq":7,"time":"2026-01-01T00:00:00Z","severity":"warning","kind":"node-offline","object":"node/s1","message":"m"}"#;
        let event = parse(line).unwrap().unwrap();
        assert_eq!(
            (event.seq, event.severity, event.object.as_str()),
            (7, Severity::Warning, "node/s1")
        );
        assert!(matches!(parse(b"data: {nonsense\n"), Err(Error::Answer { .. })));
    }
}
