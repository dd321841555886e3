//! The client of the REST API, as `storctl` and the Kubernetes bridge use it.
//!
//! Takes the base URLs of several controllers; any of them answers everything. Promises:
//!
//! * A request that found no controller, or one that is between leaders (503, 504), goes to the next URL, until
//!   its deadline. Every request may be sent twice: creates are idempotent by name, and a delete whose first
//!   answer was lost takes "not found" for done.
//! * Each call ends within the timeout given at the start, with a typed [`Error`].
//!
//! Does not wait for what a request began (a volume's replicas, an engine): callers look again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::objects::Page;
use crate::problem::Problem;

mod download;
mod error;
mod events;
mod read;
mod wish;
mod write;

pub use download::DownloadError;
pub use error::{Error, SetupError, Tried};
pub use events::EventStream;
pub use wish::Wish;

/// Where a controller listens when nothing else is said.
pub const DEFAULT_URL: &str = "http://127.0.0.1:3370";

/// Rounds over all URLs before a call gives up, deadline or not.
const MAX_ROUNDS: u32 = 64;
/// Pause after the first fruitless round; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A controller that does not take the connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// One that took the request and does not answer in this time is passed over too, where there is another.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 20;
/// Pages of one list; the server's pages hold at least a hundred objects.
const MAX_PAGES: usize = 100_000;
const NO_SCHEME: &str = "it does not begin with http://";

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://host:port` of one or more controllers.
    pub urls: Vec<String>,
    /// File with a bearer token.
    pub token_file: Option<PathBuf>,
    /// File with the certificate of the cluster's CA.
    pub ca_file: Option<PathBuf>,
    /// Each call ends within this time.
    pub timeout: Duration,
}

/// A client; cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not `http`: its default headers hold the token.
        f.debug_struct("Client")
            .field("urls", &self.urls)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Which events, volumes or replicas a list is about. Empty fields do not narrow it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// Of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Of this volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

impl Client {
    /// Reads the files and checks the URLs; sends nothing yet.
    pub fn new(options: &Options) -> Result<Self, SetupError> {
        let urls: Vec<String> = options
            .urls
            .iter()
            .map(|url| check_url(url))
            .collect::<Result<_, SetupError>>()?;
        if urls.is_empty() {
            return Err(SetupError::NoUrl);
        }
        if let Some(path) = &options.ca_file {
            let content = std::fs::read(path).map_err(|source| SetupError::CaFile {
                path: path.clone(),
                source,
            })?;
            if !content.trim_ascii().is_empty() {
                return Err(SetupError::NoTls {
                    what: path.display().to_string(),
                });
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(path) = &options.token_file {
            headers.insert(AUTHORIZATION, bearer(path)?);
        }
        // No proxy: a proxy from the environment would be asked for addresses only the cluster's network knows.
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("stor/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()
            .map_err(|source| SetupError::Http { source })?;
        Ok(Self {
            http,
            urls,
            timeout: options.timeout,
        })
    }

    /// The same client with another time limit for each call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// The base URLs, in the order in which they are tried.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = self.call(&reqwest::Method::GET, path, None).await?;
        answer.read(path)
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, filter: &Filter) -> Result<Vec<T>, Error> {
        let mut query = String::new();
        for (key, value) in [("node", &filter.node), ("volume", &filter.volume)] {
            if let Some(value) = value {
                query = format!("{query}&{key}={}", wish::segment(value));
            }
        }
        let mut items = Vec::new();
        let mut after = String::new();
        for _ in 0..MAX_PAGES {
            let separator = if query.is_empty() && after.is_empty() {
                ""
            } else {
                "?"
            };
            let rest = format!("{query}{after}");
            let page: Page<T> = self
                .get(&format!("{path}{separator}{}", rest.trim_start_matches('&')))
                .await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = format!("&after={}", wish::segment(&next)),
                None => return Ok(items),
            }
        }
        Err(Error::Endless {
            path: path.to_owned(),
        })
    }

    async fn send<T: DeserializeOwned>(&self, wish: &Wish<'_>, dry_run: bool) -> Result<T, Error> {
        let request = wish.request(dry_run);
        let answer = self.call(&request.method, &request.path, request.body).await?;
        answer.read(&request.path)
    }

    async fn send_unit(&self, wish: &Wish<'_>) -> Result<Answer, Error> {
        let request = wish.request(false);
        self.call(&request.method, &request.path, request.body).await
    }

    async fn send_delete(&self, wish: &Wish<'_>) -> Result<(), Error> {
        match self.send_unit(wish).await {
            // An earlier attempt of this very call may have done it.
            Err(Error::NotFound { retried: true, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// One request, sent until somebody answers it. Cancel-safe: what was sent may have been done, and may be
    /// asked for again.
    async fn call(
        &self,
        method: &reqwest::Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut tried: Vec<Tried> = Vec::new();
        let mut ambiguous = false;
        let mut pause = FIRST_PAUSE;
        for _ in 0..MAX_ROUNDS {
            let mut round: Vec<Tried> = Vec::new();
            for url in &self.urls {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let last = if round.is_empty() { tried } else { round };
                    return Err(Error::ended(path, self.timeout, last));
                }
                let limit = if self.urls.len() > 1 {
                    left.min(ATTEMPT_TIMEOUT)
                } else {
                    left
                };
                match self.attempt(method, url, path, body.clone(), limit).await {
                    Ok(answer) if matches!(answer.status, 503 | 504) => {
                        // 504: it was passed on, and what became of it is not known.
                        ambiguous |= answer.status == 504;
                        round.push(Tried::busy(url, &answer));
                    }
                    Ok(answer) => return answer.check(ambiguous),
                    Err(Failure { error, sent }) => {
                        ambiguous |= sent;
                        round.push(Tried::failed(url, &error));
                    }
                }
            }
            tried = round;
            let left = deadline.saturating_duration_since(Instant::now());
            let after = self.timeout.saturating_sub(left);
            if tried.iter().all(|t| t.refused) && after >= REFUSED_FOR {
                return Err(Error::ended(path, after, tried));
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Error::ended(path, self.timeout, tried))
    }

    async fn attempt(
        &self,
        method: &reqwest::Method,
        url: &str,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = self
            .http
            .request(method.clone(), format!("{url}{path}"))
            .timeout(limit);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut response = request.send().await.map_err(Failure::from)?;
        let status = response.status().as_u16();
        let mut content = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::from)? {
            if content.len() + chunk.len() > MAX_ANSWER {
                return Ok(Answer {
                    status: 502,
                    content: b"the answer is too long".to_vec(),
                });
            }
            content.extend_from_slice(&chunk);
        }
        Ok(Answer { status, content })
    }
}

/// When every URL refuses connections, or says that there is no quorum, for this long, nobody is there; waiting for the deadline says no more.
/// Long enough for a controller that is just being restarted.
const REFUSED_FOR: Duration = Duration::from_secs(2);

struct Answer {
    status: u16,
    content: Vec<u8>,
}

impl Answer {
    fn check(self, retried: bool) -> Result<Self, Error> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(Error::from_problem(self.problem(), retried))
    }

    fn problem(&self) -> Problem {
        serde_json::from_slice(&self.content).unwrap_or_else(|_| Problem {
            kind: "urn:stor:problem:unknown".to_owned(),
            status: self.status,
            title: format!("the server answered {}", self.status),
            detail: String::from_utf8_lossy(&self.content).chars().take(400).collect(),
            remedy: "check that the URL is that of a Stor controller".to_owned(),
            placement: Vec::new(),
        })
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        serde_json::from_slice(&self.content).map_err(|source| Error::Answer {
            path: path.to_owned(),
            source,
        })
    }
}

/// An attempt without an answer.
struct Failure {
    error: reqwest::Error,
    /// The request may have arrived.
    sent: bool,
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self {
            sent: !error.is_connect() && !error.is_builder(),
            error,
        }
    }
}

fn check_url(given: &str) -> Result<String, SetupError> {
    let url = given.trim().trim_end_matches('/');
    let parsed = reqwest::Url::parse(url).map_err(|source| SetupError::Url {
        url: given.to_owned(),
        // "relative URL without a base" helps nobody who left it out.
        why: if url.contains("://") {
            source.to_string()
        } else {
            NO_SCHEME.to_owned()
        },
    })?;
    match parsed.scheme() {
        "http" => {}
        "https" => {
            return Err(SetupError::NoTls {
                what: given.to_owned(),
            });
        }
        _ => {
            let why = NO_SCHEME.to_owned();
            return Err(SetupError::Url {
                url: given.to_owned(),
                why,
            });
        }
    }
    if parsed.path() != "/" || parsed.query().is_some() || parsed.fragment().is_some() {
        let why = "it has more than http://HOST:PORT".to_owned();
        return Err(SetupError::Url {
            url: given.to_owned(),
            why,
        });
    }
    Ok(url.to_owned())
}

fn bearer(path: &std::path::Path) -> Result<HeaderValue, SetupError> {
    let token = std::fs::read_to_string(path).map_err(|source| SetupError::TokenFile {
        path: path.to_owned(),
        source,
    })?;
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| SetupError::Token {
            path: path.to_owned(),
        })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
