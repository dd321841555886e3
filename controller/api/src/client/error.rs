//! Why a call did not do what was asked: typed, because callers act on the difference (exit statuses of
//! `storctl`, gRPC codes of the Kubernetes bridge).

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error as ThisError;

use super::Answer;
use crate::problem::Problem;

/// A client could not be made.
#[derive(Debug, ThisError)]
pub enum SetupError {
    /// No URL given.
    #[error("no URL of a controller is given")]
    NoUrl,
    /// Not a URL of a controller.
    #[error("{url:?} is not the URL of a controller: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// TLS was asked for.
    #[error("{what}: this version speaks plain HTTP only, TLS comes with a later one")]
    NoTls {
        /// The URL or file.
        what: String,
    },
    /// The CA file can't be read.
    #[error("the CA file {} can't be read: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token file can't be read.
    #[error("the token file {} can't be read: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token file holds something else.
    #[error("the token file {} holds characters that no token has", path.display())]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// The HTTP client could not start.
    #[error("the HTTP client can't start: {source}")]
    Http {
        /// Why.
        source: reqwest::Error,
    },
}

/// What one URL did in the last round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The base URL.
    pub url: String,
    /// What happened, in words.
    pub outcome: String,
    /// Nobody listens there, or whoever does has found out that there is no quorum.
    pub(super) refused: bool,
    /// Somebody took the request, or was too slow to.
    pub(super) slow: bool,
}

impl Tried {
    pub(super) fn silent(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            outcome: "no answer in time".to_owned(),
            refused: false,
            slow: true,
        }
    }

    pub(super) fn failed(url: &str, error: &reqwest::Error) -> Self {
        let refused = error.is_connect() && !error.is_timeout();
        Self {
            url: url.to_owned(),
            outcome: innermost(error),
            refused,
            slow: error.is_timeout(),
        }
    }

    pub(super) fn busy(url: &str, answer: &Answer) -> Self {
        let problem = answer.problem();
        let no_quorum = problem.code() == "no-quorum";
        let outcome = if problem.detail.is_empty() {
            problem.title
        } else {
            format!("{}: {}", problem.title, problem.detail)
        };
        Self {
            url: url.to_owned(),
            outcome,
            refused: no_quorum,
            slow: true,
        }
    }
}

/// A call that failed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// No such object (404).
    #[error("{}", told(problem))]
    NotFound {
        /// What the controller said.
        problem: Box<Problem>,
        /// An earlier attempt of the same call may have been done.
        retried: bool,
    },
    /// The state of the cluster forbids it (409, 412).
    #[error("{}", told(.0))]
    Conflict(Box<Problem>),
    /// The request is wrong in itself (400, 413, 422).
    #[error("{}", told(.0))]
    Invalid(Box<Problem>),
    /// The token is missing, wrong or not allowed this (401, 403).
    #[error("{}", told(.0))]
    Unauthorized(Box<Problem>),
    /// The controller failed, or answered something unexpected.
    #[error("{}", told(.0))]
    Failed(Box<Problem>),
    /// No controller could be reached.
    #[error("no controller could be reached ({})", list(tried))]
    Unreachable {
        /// What each URL did last.
        tried: Vec<Tried>,
    },
    /// A controller was there, and no answer came in time.
    #[error("no answer to {path} within {} s ({})", after.as_secs(), list(tried))]
    TimedOut {
        /// What was asked.
        path: String,
        /// The time limit.
        after: Duration,
        /// What each URL did last.
        tried: Vec<Tried>,
    },
    /// The answer is not what this version understands.
    #[error("the answer to {path} is not understood: {source}")]
    Answer {
        /// What was asked.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A list that never came to its end.
    #[error("the list {path} has no end")]
    Endless {
        /// What was asked.
        path: String,
    },
}

impl Error {
    /// What the controller said, where it was one that refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::NotFound { problem, .. }
            | Self::Conflict(problem)
            | Self::Invalid(problem)
            | Self::Unauthorized(problem)
            | Self::Failed(problem) => Some(problem),
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Answer { .. } | Self::Endless { .. } => {
                None
            }
        }
    }

    pub(super) fn from_problem(problem: Problem, retried: bool) -> Self {
        let problem = Box::new(problem);
        match problem.status {
            404 => Self::NotFound { problem, retried },
            409 | 412 => Self::Conflict(problem),
            400 | 413 | 422 => Self::Invalid(problem),
            401 | 403 => Self::Unauthorized(problem),
            _ => Self::Failed(problem),
        }
    }

    pub(super) fn ended(path: &str, after: Duration, tried: Vec<Tried>) -> Self {
        if tried.iter().any(|t| t.slow) || tried.is_empty() {
            Self::TimedOut {
                path: path.to_owned(),
                after,
                tried,
            }
        } else {
            Self::Unreachable { tried }
        }
    }
}

fn told(problem: &Problem) -> String {
    if problem.detail.is_empty() {
        problem.title.clone()
    } else {
        format!("{}: {}", problem.title, problem.detail)
    }
}

fn list(tried: &[Tried]) -> String {
    let each: Vec<String> = tried
        .iter()
        .map(|t| format!("{}: {}", t.url, t.outcome))
        .collect();
    if each.is_empty() {
        "the time was over before one was asked".to_owned()
    } else {
        each.join("; ")
    }
}

/// reqwest's own text repeats the URL and says "error sending request"; the cause is at the bottom.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
