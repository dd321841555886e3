//! What handlers take from requests, with problems instead of axum's plain texts.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

use super::MAX_BODY;
use super::problem::Failure;

/// The JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
            .await
            .map_err(|_| Failure::too_large())?;
        read(&bytes).map(Body)
    }
}

/// An object out of JSON; what is wrong in it is named by its field.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    // serde takes an array for an object whose fields have no names.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Failure::invalid(
            "the body is an array; a JSON object is expected",
        ));
    }
    let bad = |field: String, error: serde_json::Error| {
        if !error.is_data() {
            let title = format!("the body is not JSON: {error}");
            return Failure::new(StatusCode::BAD_REQUEST, "bad-json", title);
        }
        // A field that is missing is nowhere, and is named by the error itself.
        let place = if field == "." {
            String::new()
        } else {
            format!("{field}: ")
        };
        Failure::invalid(format!("the body is not what is expected here: {place}{error}"))
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let object = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| bad(error.path().to_string(), error.into_inner()))?;
    json.end().map_err(|error| bad(String::from("."), error))?;
    Ok(object)
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        query(&parts.uri).map(Self)
    }
}

/// The query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let Query(query) = Query::try_from_uri(uri)
        .map_err(|error| Failure::invalid(format!("the query is not understood: {}", error.body_text())))?;
    Ok(query)
}

/// The names in the path.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(names) = Path::from_request_parts(parts, state).await.map_err(|error| {
            Failure::invalid(format!("the path is not understood: {}", error.body_text()))
        })?;
        Ok(Self(names))
    }
}

/// The revision in `If-Match`: change only what the caller has seen.
pub(super) struct IfMatch(pub(super) Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self(None));
        };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let revision = text.trim_matches('"').parse();
        revision
            .map(|revision| Self(Some(revision)))
            .map_err(|_| Failure::invalid("If-Match must hold the ETag of the object"))
    }
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Manner {
    /// Only say what would happen: answers a Plan.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = bool, required = false)]
    pub(super) dry_run: bool,
    /// Do it although something is in the way.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = bool, required = false)]
    pub(super) force: bool,
}

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    /// At most this many, up to 1000.
    #[serde(default, deserialize_with = "limit")]
    #[param(value_type = u64, minimum = 1, maximum = 1000, required = false)]
    limit: Option<u64>,
    /// Only those after this one: `next` of the page before.
    #[serde(default)]
    #[param(required = false)]
    pub(super) after: String,
    /// Only those of this node.
    #[param(required = false)]
    pub(super) node: Option<String>,
    /// Only those of this volume.
    #[param(required = false)]
    pub(super) volume: Option<String>,
}

impl List {
    /// Objects of a page, unless the caller wants another number.
    const USUAL: u64 = 500;

    pub(super) fn limit(&self) -> u64 {
        self.limit.unwrap_or(Self::USUAL)
    }
}

/// For requests that take no parameters: a wrong one is refused rather than passed over.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Largest page.
const MOST: u64 = 1_000;

/// How many objects a page may have.
pub(super) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse() {
        Ok(limit @ 1..=MOST) => Ok(Some(limit)),
        _ => Err(serde::de::Error::custom(format!(
            "limit={text}: expected a number from 1 to {MOST}"
        ))),
    }
}

/// `?x`, `?x=1` and `?x=true` are true.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(serde::de::Error::custom("expected true or false")),
    }
}
