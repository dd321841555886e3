//! Failures of requests as `application/problem+json`: what, why, what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use stor_api::objects::PlacementVerdict;
use stor_api::problem::{CONTENT_TYPE, Problem};
use stor_replication::catalogue::Refusal;

use crate::catalogue::Refused;
use crate::catalogue::outcome::Kind;
use crate::cluster::Trouble;

/// Header of answers the front may try again; never leaves the cluster.
pub(super) const OUTCOME: &str = "x-stor-outcome";

/// What a request that failed for lack of a leader has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing.
    NotDone,
    /// Everything or nothing.
    Unknown,
}

impl Outcome {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::NotDone => "not-done",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn from_word(word: &[u8]) -> Option<Self> {
        [Self::NotDone, Self::Unknown]
            .into_iter()
            .find(|outcome| outcome.word().as_bytes() == word)
    }
}

/// Code of [`Failure::not_found`].
pub(super) const NOT_FOUND: &str = "not-found";
/// Most of a title, characters: what is wrong with a request may be quoted from it, and that may be long.
const TITLE: usize = 500;

/// A request that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    problem: Box<Problem>,
    outcome: Option<Outcome>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: &str, title: impl Into<String>) -> Self {
        let mut title: String = title.into();
        if let Some((end, _)) = title.char_indices().nth(TITLE) {
            title.truncate(end);
            title.push('…');
        }
        Self {
            problem: Box::new(Problem {
                kind: format!("urn:stor:problem:{code}"),
                status: status.as_u16(),
                title,
                detail: String::new(),
                remedy: String::new(),
                placement: Vec::new(),
            }),
            outcome: None,
        }
    }

    pub(super) fn because(mut self, detail: impl Into<String>) -> Self {
        self.problem.detail = detail.into();
        self
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.problem.remedy = remedy.into();
        self
    }

    pub(super) fn placement(mut self, placement: Vec<PlacementVerdict>) -> Self {
        self.problem.placement = placement;
        self
    }

    /// Whoever asked can't help it.
    pub(super) fn is_ours(&self) -> bool {
        self.outcome.is_some() || self.problem.status >= 500
    }

    /// What and why, in words.
    pub(super) fn words(&self) -> String {
        let Problem { title, detail, .. } = self.problem.as_ref();
        if detail.is_empty() {
            return title.clone();
        }
        format!("{title}: {detail}")
    }

    pub(super) fn code(&self) -> &str {
        self.problem.code()
    }

    fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The change was made, and what came of it could not be read: asked again with the same condition it would be
    /// refused because of itself.
    pub(super) fn after_change(mut self) -> Self {
        if self.outcome == Some(Outcome::NotDone) {
            self.outcome = Some(Outcome::Unknown);
        }
        self
    }

    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        let what = what.to_string();
        let remedy = match what.split(' ').next() {
            Some(
                noun
                @ ("node" | "pool" | "class" | "volume" | "snapshot" | "controller" | "replica" | "disk"),
            ) => {
                format!("`storctl {noun} list` shows what there is")
            }
            Some("attachment") => "`storctl volume list` shows what is attached where".to_owned(),
            _ => String::new(),
        };
        Self::new(StatusCode::NOT_FOUND, NOT_FOUND, format!("there is no {what}")).remedy(remedy)
    }

    pub(super) fn conflict(code: &str, title: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, title)
    }

    /// The catalogue is older than the data of a volume, or may be.
    pub(super) fn behind(volume: &str, why: &str) -> Self {
        Self::conflict(
            "catalogue-behind",
            format!("volume {volume} is locked: the catalogue may be older than its data"),
        )
        .because(why)
        .remedy(format!(
            "bring all nodes back; `storctl status` says what is still to be heard, `storctl volume adopt {volume} \
             --dry-run` what its replicas say"
        ))
    }

    pub(super) fn invalid(title: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title.to_string())
    }

    pub(super) fn no_leader() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-leader",
            "no controller leads the cluster",
        )
        .because("A majority of the controllers must be running and reach each other.")
        .remedy("start the controllers that are down; volumes in use go on meanwhile")
        .outcome(Outcome::NotDone)
    }

    /// The controller `me` hears no leader, and without `silent` there is no majority to elect one.
    pub(super) fn no_quorum(me: &str, silent: &[stor_raft::PeerInfo]) -> Self {
        let mut names: Vec<&str> = silent.iter().map(|peer| peer.name.as_str()).collect();
        names.sort_unstable();
        let names = names.join(", ");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-quorum",
            format!("no quorum: controller {me} cannot reach {names}"),
        )
        .because("A majority of the controllers must be running and reach each other.")
        .remedy(format!(
            "start the controllers that are down ({names}) or repair the network between them; volumes in use go on \
             meanwhile"
        ))
        .outcome(Outcome::NotDone)
    }

    pub(super) fn into_problem(self) -> Problem {
        *self.problem
    }

    pub(super) fn title(&self) -> &str {
        &self.problem.title
    }

    pub(super) fn undecided(why: impl Into<String>) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "undecided",
            "the request has no known outcome",
        )
        .because(why)
        .remedy("look whether it was done, or ask again: every request may be repeated")
        .outcome(Outcome::Unknown)
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the controller failed",
        )
        .remedy("look into the controller's log")
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotLeader => Self::no_leader(),
            Trouble::Undecided(why) => Self::undecided(why),
            Trouble::TooLarge(_) => Self::too_large(),
            Trouble::Database(source) => {
                tracing::error!(error = %source, "reading the catalogue for a request failed");
                Self::internal()
            }
        }
    }
}

impl Failure {
    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "the request is larger than 1 MiB",
        )
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Trouble::from(error).into()
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let title = refused.to_string();
        match refused {
            Refused::NoSuch { object } => Self::not_found(object),
            Refused::Exists { object, .. } => Self::conflict("exists", title).remedy(match object.kind {
                Kind::Attachment => {
                    "detach it first, or attach it as it is; with force its engine starts anew"
                }
                Kind::Pool => {
                    "choose another name and a directory of its own, or ask for exactly what is there"
                }
                Kind::Node
                | Kind::Class
                | Kind::Volume
                | Kind::Snapshot
                | Kind::Cluster
                | Kind::Controller => "choose another name, or ask for exactly what is there",
            }),
            Refused::InUse { object, .. } => {
                let name = &object.name;
                Self::conflict("in-use", title).remedy(match object.kind {
                    Kind::Node => format!(
                        "see what it has with `storctl volume list --node {name}` and `storctl pool list`; with force, \
                         a node that is gone loses its pools without replicas"
                    ),
                    Kind::Pool => "delete the volumes that have replicas in it; with force, what is left there of \
                                   deleted volumes is left behind"
                        .to_owned(),
                    Kind::Volume => format!("detach it first: storctl volume detach {name}"),
                    Kind::Snapshot => "ask again when that is done".to_owned(),
                    Kind::Class | Kind::Attachment | Kind::Cluster | Kind::Controller => String::new(),
                })
            }
            Refused::Revision { .. } => Self::new(StatusCode::PRECONDITION_FAILED, "changed", title)
                .remedy("read it again and decide anew"),
            Refused::State { .. } => Self::conflict("state", title),
            Refused::Behind { object } => {
                Self::behind(&object.name, "Not all that may know more of it was heard.")
            }
            Refused::PlacementStale { .. } => {
                Self::conflict("busy", title).remedy("ask again: others were placed at the same time")
            }
            Refused::View {
                refusal: Refusal::Attached { node },
                ..
            } => Self::conflict("attached", title)
                .because(format!("Node {node} has the right to use it."))
                .remedy("detach it there, or attach with force, which fences that node's engine"),
            Refused::View {
                refusal: Refusal::TooFewInSync { .. },
                ..
            } => Self::conflict("too-few-in-sync", title)
                .because(
                    "I/O waits rather than go on with fewer copies than the volume's least (min_in_sync).",
                )
                .remedy("add a replica first and wait until it is in sync; or bring the others back"),
            Refused::View {
                refusal: Refusal::TooManyReplicas { .. },
                ..
            } => Self::conflict("too-many", title).remedy("take another one away first"),
            Refused::View {
                refusal: Refusal::Smaller { .. },
                ..
            } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "smaller", title)
                .because("Nobody knows whether the part that would go is used.")
                .remedy("make a smaller volume and copy what is in it"),
            Refused::View { .. } => Self::conflict("changed", title).remedy("ask again"),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(*self.problem)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(outcome) = self.outcome {
            response
                .headers_mut()
                .insert(OUTCOME, HeaderValue::from_static(outcome.word()));
        }
        response
    }
}
