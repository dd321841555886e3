//! Takes a request on any controller and sees to it that the leader answers it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use stor_raft::{ForwardError, Header, HttpRequest, HttpResponse, PeerHandler};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::ServiceExt;

use super::problem::{Failure, OUTCOME, Outcome};
use super::{MAX_BODY, watch};
use crate::cluster::Cluster;

/// A request without an outcome by then fails: long enough for an election and the retry after it. It fails sooner
/// when no election can succeed.
const DEADLINE: Duration = Duration::from_secs(15);
/// Between attempts that had no outcome.
const PAUSE: Duration = Duration::from_millis(100);
const NO_LEADER_SINCE: &str =
    "The leading controller went while it had the request, and there is no new one.";
/// Largest answer of a handler: a page of the largest objects is far below.
const MAX_ANSWER: usize = 64 << 20;
/// Streams open at the same time on one controller.
const WATCHERS: usize = 256;
/// What of a request's headers the handlers look at.
const PASSED: [HeaderName; 3] = [header::CONTENT_TYPE, header::IF_MATCH, header::ACCEPT];

/// The entrance of the API.
pub struct Front {
    pub(super) cluster: Arc<Cluster>,
    router: Router,
    pub(super) watchers: Arc<Semaphore>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

impl Front {
    /// In front of a cluster.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        let router = super::router(Arc::clone(&cluster));
        Self {
            cluster,
            router,
            watchers: Arc::new(Semaphore::new(WATCHERS)),
        }
    }

    /// Answers a request, here or by the leader. Cancel-safe: what was begun may be done.
    pub(super) async fn answer(&self, request: HttpRequest) -> HttpResponse {
        let deadline = Instant::now() + DEADLINE;
        // Set once an attempt may have been carried out.
        let mut ambiguous = false;
        loop {
            let mut response = self.attempt_while_led(&request, deadline).await;
            let outcome = take_outcome(&mut response);
            ambiguous |= outcome == Some(Outcome::Unknown);
            let lost = self.no_quorum();
            let again = match outcome {
                None => false,
                Some(_) => {
                    repeatable(&request, ambiguous)
                        && !self.cluster.stopping.is_cancelled()
                        && Instant::now() + PAUSE < deadline
                        && lost.is_none()
                }
            };
            if !again {
                // The object an earlier attempt may have removed is gone: that is what was asked for.
                if ambiguous && request.method == Method::DELETE.as_str() && response.status == 404 {
                    return HttpResponse {
                        status: 204,
                        headers: Vec::new(),
                        body: Vec::new(),
                    };
                }
                if ambiguous && outcome == Some(Outcome::NotDone) {
                    // Not this time; an attempt before may have been.
                    let mut undecided = packed(Failure::undecided(NO_LEADER_SINCE).into_response()).await;
                    take_outcome(&mut undecided);
                    return undecided;
                }
                if outcome == Some(Outcome::NotDone)
                    && let Some(failure) = lost
                {
                    response = packed(failure.into_response()).await;
                    take_outcome(&mut response);
                }
                return response;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Why no leader can be elected, once that is clear.
    pub(super) fn no_quorum(&self) -> Option<Failure> {
        let silent = self.cluster.raft.cut_off()?;
        Some(Failure::no_quorum(&self.cluster.raft.me().name, &silent))
    }

    /// One attempt. A read is not waited for once it is clear that there is no leader; a change may be under way.
    async fn attempt_while_led(&self, request: &HttpRequest, deadline: Instant) -> HttpResponse {
        let cut_off = async {
            loop {
                match self.no_quorum() {
                    Some(failure) => return failure,
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        if let Some(failure) = self.no_quorum() {
            return packed(failure.into_response()).await;
        }
        let attempt = self.attempt(request.clone(), deadline);
        if request.method != Method::GET.as_str() {
            return attempt.await;
        }
        tokio::select! {
            response = attempt => response,
            failure = cut_off => packed(failure.into_response()).await,
        }
    }

    async fn attempt(&self, request: HttpRequest, deadline: Instant) -> HttpResponse {
        if self.cluster.leads() {
            return match tokio::time::timeout_at(deadline, self.handle(request)).await {
                Ok(response) => response,
                Err(_) => packed(Failure::undecided("It took too long.").into_response()).await,
            };
        }
        let is_read = request.method == Method::GET.as_str();
        let left = deadline.saturating_duration_since(Instant::now());
        match self.cluster.raft.forward_within(request, left).await {
            Ok(response) => response,
            Err(ForwardError::LeadsItself | ForwardError::NoLeader { .. }) => {
                packed(Failure::no_leader().into_response()).await
            }
            // A read has nothing to be undecided about.
            Err(ForwardError::Interrupted { .. }) if is_read => {
                packed(Failure::no_leader().into_response()).await
            }
            Err(error @ ForwardError::Interrupted { .. }) => {
                packed(Failure::undecided(error.to_string()).into_response()).await
            }
        }
    }

    /// Handles a request as the leader.
    async fn handle(&self, request: HttpRequest) -> HttpResponse {
        let mut builder = axum::http::Request::builder()
            .method(request.method.as_str())
            .uri(request.path_and_query.as_str());
        for header in request.headers {
            builder = builder.header(header.name, header.value);
        }
        let response = match builder.body(Body::from(request.body)) {
            Ok(request) => match self.router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(error) => Failure::invalid(format!("the request is malformed: {error}")).into_response(),
        };
        packed(response).await
    }
}

impl PeerHandler for Front {
    fn forward(&self, request: HttpRequest) -> Pin<Box<dyn Future<Output = HttpResponse> + Send + '_>> {
        Box::pin(self.handle(request))
    }
}

/// A change that depends on a revision must not be repeated when it may have been done: it would be refused
/// because of itself.
fn repeatable(request: &HttpRequest, ambiguous: bool) -> bool {
    let conditional = request
        .headers
        .iter()
        .any(|header| header.name == header::IF_MATCH.as_str());
    !(ambiguous && conditional)
}

/// What an answer without outcome has done; the header stays inside.
fn take_outcome(response: &mut HttpResponse) -> Option<Outcome> {
    let at = response
        .headers
        .iter()
        .position(|header| header.name == OUTCOME)?;
    Outcome::from_word(&response.headers.swap_remove(at).value)
}

async fn packed(response: Response) -> HttpResponse {
    let (parts, body) = response.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_ANSWER).await else {
        tracing::error!("an answer was larger than {MAX_ANSWER} bytes");
        return HttpResponse {
            status: 500,
            headers: Vec::new(),
            body: Vec::new(),
        };
    };
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| Header {
            name: name.as_str().to_owned(),
            value: value.as_bytes().to_vec(),
        })
        .collect();
    HttpResponse {
        status: u32::from(parts.status.as_u16()),
        headers,
        body: body.to_vec(),
    }
}

pub(super) fn unpacked(packed: HttpResponse) -> Response {
    let mut response = Response::new(Body::from(packed.body));
    *response.status_mut() = u16::try_from(packed.status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::BAD_GATEWAY);
    for header in packed.headers {
        // The length is that of this response.
        if header.name == header::CONTENT_LENGTH.as_str() {
            continue;
        }
        // They were headers before.
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(header.name),
            HeaderValue::try_from(header.value),
        ) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// Takes any request below `/api/v1/`.
pub(super) async fn take(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return Failure::too_large().into_response();
    };
    let mut path_and_query = parts.uri.path().to_owned();
    if let Some(query) = parts.uri.query() {
        path_and_query = format!("{path_and_query}?{query}");
    }
    let headers = PASSED
        .iter()
        .filter_map(|name| {
            let value = parts.headers.get(name)?.as_bytes().to_vec();
            Some(Header {
                name: name.as_str().to_owned(),
                value,
            })
        })
        .collect();
    let request = HttpRequest {
        method: parts.method.as_str().to_owned(),
        path_and_query,
        headers,
        body: body.to_vec(),
    };
    if parts.method == Method::GET
        && let Some(request) = watch::wanted(&request)
    {
        return watch::stream(front, request).await;
    }
    unpacked(front.answer(request).await)
}
