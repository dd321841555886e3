//! Standard output: a table for people or one document for programs, never both.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;
use stor_api::objects::{Page, Plan, Tombstone};

use crate::args::Format;
use crate::failure::{Failure, placement_table};
use crate::table::Table;

/// What a command without an object has done.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Done<'a> {
    /// Of what: `volume`, `node`.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: &'a str,
    /// Where, when the name alone does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<&'a str>,
    /// One word for scripts, such as `deleted`.
    pub(crate) result: &'static str,
    /// Of a volume deleted by force: what nodes still have of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_behind: Option<&'a [Tombstone]>,
}

impl<'a> Done<'a> {
    pub(crate) fn new(kind: &'static str, name: &'a str, result: &'static str) -> Self {
        Self {
            kind,
            name,
            node: None,
            result,
            left_behind: None,
        }
    }

    pub(crate) fn on(self, node: &'a str) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }
}

/// Where and how answers are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
}

impl Output {
    /// One object of the API.
    pub(crate) fn object<T: Serialize>(
        self,
        object: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&text(object)),
            Format::Json => print(&format!("{}\n", json(object)?)),
            Format::Yaml => print(&yaml(object)?),
        }
    }

    /// A list of the API, in JSON as the REST API shows it: `{"items": […]}`. `none` is said on standard
    /// error, where it does not disturb who counts lines.
    pub(crate) fn list<T: Serialize>(
        self,
        items: Vec<T>,
        none: &str,
        table: impl FnOnce(&[T]) -> Table,
    ) -> Result<(), Failure> {
        if self.format != Format::Table {
            return self.object(&Page { items, next: None }, |_| String::new());
        }
        let table = table(&items);
        if table.is_empty() {
            note(none);
            return Ok(());
        }
        print(&table.render(width()))
    }

    /// Something to know beside the answer. Programs find it in the document.
    pub(crate) fn remark(self, text: &str) {
        if self.format == Format::Table {
            note(&format!("note: {text}"));
        }
    }

    /// What a dry run found.
    pub(crate) fn plan(self, plan: &Plan) -> Result<(), Failure> {
        self.object(plan, |plan| {
            let steps: Vec<String> = plan.steps.iter().map(|step| format!("would {step}\n")).collect();
            let mut text = steps.concat();
            if text.is_empty() {
                text.push_str("nothing would change\n");
            }
            if !plan.placement.is_empty() {
                text.extend([format!("\n{}", placement_table(&plan.placement).render(width()))]);
            }
            text
        })
    }

    /// What became of an object that can't be shown any more, or has no answer of its own: a line for people,
    /// one document for programs.
    pub(crate) fn done(self, done: &Done<'_>, text: &str) -> Result<(), Failure> {
        self.object(done, |_| format!("{text}\n"))
    }
}

/// One JSON document, on one line when `compact`.
pub(crate) fn json<T: Serialize>(object: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(object).map_err(|e| Failure::failed(format!("the answer is no JSON: {e}")))
}

pub(crate) fn yaml<T: Serialize>(object: &T) -> Result<String, Failure> {
    serde_yaml_ng::to_string(object).map_err(|e| Failure::failed(format!("the answer is no YAML: {e}")))
}

/// Writes `text` as it is; colours only where they can be seen.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A remark on standard error.
pub(crate) fn note(text: &str) {
    if writeln!(anstream::stderr(), "{text}").is_err() {
        // Nobody reads it; what was asked for is on standard output or in the exit status.
    }
}

/// Columns of the terminal, when standard output is one.
pub(crate) fn width() -> Option<usize> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Asks before something is lost. Without a terminal to ask on, the answer is no.
pub(crate) fn confirm(question: &str, command: &str) -> Result<(), Failure> {
    use crate::failure::Exit;
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, format!("{command} needs a confirmation"))
                .why(format!("{question} There is no terminal to ask on."))
                .help(format!("say `{command} --yes`")),
        );
    }
    let mut err = anstream::stderr();
    write!(err, "{question} Really? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::failed("not confirmed, nothing was changed"))
    }
}
