//! Errors as `application/problem+json` (RFC 9457): what, why, and what to do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::objects::PlacementVerdict;

/// Content type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:stor:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// HTTP status.
    pub status: u16,
    /// What: "volume db1 is attached".
    pub title: String,
    /// Why, in a sentence or two.
    pub detail: String,
    /// What to do; empty when there is nothing.
    #[serde(default)]
    pub remedy: String,
    /// For refused placements: every node with its rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placement: Vec<PlacementVerdict>,
}

impl Problem {
    /// The last part of `type`: `not-found`, `conflict`, …
    pub fn code(&self) -> &str {
        self.kind.rsplit(':').next().unwrap_or_default()
    }
}
