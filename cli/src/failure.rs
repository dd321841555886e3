//! How a command fails: what, why, what to do, and the exit status scripts branch on.

use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use stor_api::client::{Error, SetupError};
use stor_api::objects::PlacementVerdict;
use stor_api::problem::Problem;

use crate::args::Format;
use crate::output::{json, yaml};
use crate::table::{Cell, Column, Table, Tone};

/// The pinned exit statuses, but for 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Unauthorized = 5,
    Unreachable = 6,
    TimedOut = 7,
}

/// A command that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What.
    pub(crate) what: String,
    /// Why; may be empty.
    pub(crate) why: String,
    /// What to do; may be empty.
    pub(crate) help: String,
    /// For refused placements: every node and its rule.
    pub(crate) placement: Vec<PlacementVerdict>,
    /// The reader of our output is gone: nothing to say.
    quiet: bool,
    /// What a controller answered, when it was one that refused.
    problem: Option<Box<Problem>>,
}

/// A failure for programs: the API's problem where a controller refused, the same shape where it was us.
#[derive(Debug, Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    title: &'a str,
    detail: &'a str,
    remedy: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    placement: &'a [PlacementVerdict],
    exit_status: u8,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            why: String::new(),
            help: String::new(),
            placement: Vec::new(),
            quiet: false,
            problem: None,
        }
    }

    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    #[must_use]
    pub(crate) fn why(self, why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            ..self
        }
    }

    #[must_use]
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: help.into(),
            ..self
        }
    }

    /// What was being done when it happened, put before the rest.
    #[must_use]
    pub(crate) fn during(mut self, doing: &str) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// The text for standard error, with colours.
    pub(crate) fn render(&self) -> String {
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let cyan = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
        let mut text = format!("{red}error:{red:#} {}\n", self.what.trim_end());
        for line in self.why.lines() {
            text.extend([format!("  {line}\n")]);
        }
        if !self.placement.is_empty() {
            text.push('\n');
            for line in placement_table(&self.placement).render(None).lines() {
                text.extend([format!("  {line}\n")]);
            }
            text.push('\n');
        }
        if !self.help.is_empty() {
            text.extend([format!("{cyan}help:{cyan:#} {}\n", self.help)]);
        }
        text
    }

    /// The one document on standard error of a command whose output is JSON or YAML.
    fn document(&self) -> Document<'_> {
        let problem = self.problem.as_deref();
        Document {
            kind: match problem {
                Some(problem) => problem.kind.clone(),
                None => format!("urn:stor:problem:{}", self.exit.word()),
            },
            status: problem.map(|problem| problem.status),
            title: self.what.trim_end(),
            detail: problem.map_or(self.why.as_str(), |problem| problem.detail.as_str()),
            remedy: &self.help,
            placement: &self.placement,
            exit_status: self.exit as u8,
        }
    }

    /// Says it on standard error in the form that was asked for.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        let text = match format {
            Format::Table => self.render(),
            // The document has nothing that could fail to become one.
            Format::Json => json(&self.document()).map_or_else(|_| self.render(), |text| text + "\n"),
            Format::Yaml => yaml(&self.document()).unwrap_or_else(|_| self.render()),
        };
        if !self.quiet && anstream::stderr().write_all(text.as_bytes()).is_err() {
            // Nobody reads standard error; the exit status still tells.
        }
        ExitCode::from(self.exit as u8)
    }
}

impl Exit {
    /// The last part of a problem's type.
    fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Unauthorized => "unauthorized",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
        }
    }
}

/// Every node of a placement, and the rule that spoke.
pub(crate) fn placement_table(verdicts: &[PlacementVerdict]) -> Table {
    let columns = [
        Column::left("NODE"),
        Column::left("POOL"),
        Column::left("CHOSEN"),
        Column::left("REASON"),
    ];
    let mut table = Table::new(&columns);
    for verdict in verdicts {
        let chosen = if verdict.chosen {
            Cell::new("yes", Tone::Good)
        } else {
            Cell::new("no", Tone::Warn)
        };
        table.row([
            verdict.node.clone().into(),
            verdict.pool.clone().into(),
            chosen,
            verdict.reason.clone().into(),
        ]);
    }
    table
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::NotFound { .. } => Exit::NotFound,
            Error::Conflict(_) => Exit::Conflict,
            // A placement that no node satisfies is not a mistake in the command's form.
            Error::Invalid(problem) if problem.code() != "no-placement" => Exit::Usage,
            Error::Unauthorized(_) => Exit::Unauthorized,
            Error::Unreachable { .. } => Exit::Unreachable,
            // The cluster as such is what can't be reached: waiting longer would not have helped.
            Error::TimedOut { tried, .. } if has_no_majority(tried) => Exit::Unreachable,
            Error::TimedOut { .. } => Exit::TimedOut,
            Error::Invalid(_) | Error::Failed(_) | Error::Answer { .. } | Error::Endless { .. } => {
                Exit::Failed
            }
        };
        if let Some(problem) = error.problem() {
            let mut failure = Self::new(exit, problem.title.clone());
            failure.help.clone_from(&problem.remedy);
            failure.placement.clone_from(&problem.placement);
            failure.problem = Some(Box::new(problem.clone()));
            // The detail of a refused placement is the table in one sentence.
            if problem.placement.is_empty() {
                failure.why.clone_from(&problem.detail);
            }
            return failure;
        }
        let tried = |tried: &[stor_api::client::Tried]| {
            tried
                .iter()
                .map(|t| format!("{}: {}", t.url, t.outcome))
                .collect::<Vec<_>>()
                .join("\n")
        };
        match &error {
            Error::Unreachable { tried: list } => Self::new(exit, "no controller can be reached")
                .why(tried(list))
                .help("check --url or STOR_URL, and that a controller runs there"),
            // Some were reached, and know why they have no answer.
            Error::TimedOut { tried: list, .. } if has_no_majority(list) => {
                Self::new(exit, "the controllers have no majority")
                    .why(tried(list))
                    .help("start the controllers that are down or repair the network between them; volumes in use go on meanwhile")
            }
            Error::TimedOut {
                after, tried: list, ..
            } => Self::new(exit, format!("no answer within {}", crate::wait::seconds(*after)))
                .why(tried(list))
                .help(
                    "look at the controllers' logs; `storctl controller list` at each URL shows what it sees",
                ),
            other => Self::new(exit, other.to_string())
                .help("compare `storctl --version` with the controllers' version in `storctl status`"),
        }
    }
}

/// A controller was reached that knows it is cut off from the others.
fn has_no_majority(tried: &[stor_api::client::Tried]) -> bool {
    tried.iter().any(|one| one.outcome.starts_with("no quorum"))
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let help = match &error {
            SetupError::NoUrl | SetupError::Url { .. } | SetupError::NoTls { .. } => {
                "give --url or STOR_URL as http://HOST:PORT, one for each controller"
            }
            SetupError::CaFile { .. } => "check --ca-file or STOR_CA_FILE",
            SetupError::TokenFile { .. } | SetupError::Token { .. } => {
                "check --token-file or STOR_TOKEN_FILE"
            }
            SetupError::Http { .. } => "",
        };
        Self::new(Exit::Usage, error.to_string()).help(help)
    }
}

/// Writing our own output failed.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // `storctl volume list | head -1`: the reader has what it wanted.
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self {
            quiet,
            ..Self::failed(format!("the answer can't be written: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_placement_is_a_table_of_nodes() {
        let verdict = |node: &str, pool: &str, chosen, reason: &str| PlacementVerdict {
            node: node.into(),
            pool: pool.into(),
            chosen,
            reason: reason.into(),
        };
        let failure = Failure {
            placement: vec![
                verdict("s1", "sp01", true, ""),
                verdict("s2", "sp01", false, "pool sp01 has not the tag nvme"),
                verdict("k1", "", false, "the node has no pool"),
            ],
            ..Failure::failed("no room for volume db1").why("2 replicas are asked for, 1 node qualifies")
        }
        .help("add a pool with `storctl pool create`, or ask for fewer replicas");
        insta::assert_snapshot!(anstream::adapter::strip_str(&failure.render()).to_string());
    }
}
