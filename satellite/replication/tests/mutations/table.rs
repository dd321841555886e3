//! The table of what catches what, in the document: read, written, and held to what it says.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stor_replication::defect::Defect;

/// Whatever the tests do, they use up their processor time by then.
const GIVEN_UP: Duration = Duration::from_mins(20);

const BEGIN: &str = "<!-- mutations: begin -->";
const END: &str = "<!-- mutations: end -->";

/// What caught a defect.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Caught {
    /// Tests that fail with it.
    pub(crate) tests: Vec<String>,
    /// The first seed that goes wrong with it, and how.
    pub(crate) seed: Option<(u64, String)>,
}

pub(crate) fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/replication.md")
}

/// The rows of the table as they stand: cells between the bars.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(document()).unwrap();
    let (_, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (table, _) = rest.split_once(END).expect("the table's end");
    table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

/// Writes the table: anew what was looked for, as it stands the rest.
pub(crate) fn write(found: &[(Defect, Caught)]) {
    let text = std::fs::read_to_string(document()).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (before, tail) = rest.split_once(END).expect("the table's end");
    let mut table = String::from("\n\n| rule | defect | tests that fail | simulation |\n|---|---|---|---|\n");
    for defect in Defect::ALL {
        let stands = || {
            before
                .lines()
                .find(|line| line.contains(&format!("| `{}`:", defect.name())))
        };
        let line = found
            .iter()
            .find(|(of, _)| of == defect)
            .map(|(_, caught)| row(*defect, caught))
            .or_else(|| stands().map(str::to_owned));
        if let Some(line) = line {
            table.push_str(&line);
            table.push('\n');
        }
    }
    std::fs::write(document(), format!("{head}{BEGIN}{table}\n{END}{tail}")).unwrap();
}

fn row(defect: Defect, caught: &Caught) -> String {
    let shown = caught.tests.iter().take(2).map(|test| format!("`{test}`"));
    let mut tests = shown.collect::<Vec<_>>().join(", ");
    if caught.tests.len() > 2 {
        write!(tests, " and {} more", caught.tests.len() - 2).unwrap();
    }
    let seed = caught.seed.as_ref().map_or("-".into(), |(seed, wrong)| {
        format!("seed {seed}: {}", brief(wrong))
    });
    let tests = if tests.is_empty() { "-".into() } else { tests };
    let (rule, name, what) = (defect.rule(), defect.name(), defect.what());
    format!("| {rule} | `{name}`: {what} | {tests} | {seed} |")
}

/// What went wrong, in few words: numbers differ from run to run.
fn brief(wrong: &str) -> String {
    let text = wrong.replace(['|', '\n', '`'], " ");
    let end = [": long gone", "; known", ": Value", "; row"]
        .iter()
        .filter_map(|end| text.find(end))
        .min();
    let text: String = text.chars().take(end.unwrap_or(usize::MAX).min(110)).collect();
    text.trim().to_owned()
}

/// Runs tests of this program with a defect on; the names of those that fail.
#[expect(clippy::disallowed_methods, reason = "waits for a process")]
pub(crate) fn failing(defect: Defect, filters: &[&str]) -> Vec<String> {
    let mut out = tempfile::tempfile().unwrap();
    // What never ends uses up its processor time; a slow machine does not end it.
    let mut process = Command::new("sh")
        .args(["-c", "ulimit -t 60 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .env("STOR_DEFECT", defect.name())
        .args(["--test-threads=1", "--skip=rules::", "--skip=random::"])
        .args(filters)
        .stdout(out.try_clone().unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        match process.try_wait().unwrap() {
            None if begun.elapsed() > GIVEN_UP => {
                process.kill().unwrap();
                panic!("{} with {filters:?} waits for something", defect.name());
            }
            None => std::thread::sleep(Duration::from_millis(5)),
            Some(status) => break status,
        }
    };
    let mut text = String::new();
    out.rewind().unwrap();
    out.read_to_string(&mut text).unwrap();
    let mut failed: Vec<String> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("test ")?
                .strip_suffix(" ... FAILED")
                .map(str::to_owned)
        })
        .collect();
    // A test that takes the process with it, or is not over in time, is named without a verdict.
    if !status.success() && failed.is_empty() {
        failed.extend(
            text.lines()
                .last()
                .and_then(|line| Some(line.strip_prefix("test ")?.split(' ').next()?.to_owned())),
        );
    }
    failed
}

/// The tests a row names.
fn tests_of(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_defect_has_a_line_and_each_line_a_defect() {
    let named: Vec<String> = rows()
        .iter()
        .map(|row| row[1].split('`').nth(1).unwrap_or_default().to_owned())
        .collect();
    let all: Vec<String> = Defect::ALL
        .iter()
        .map(|defect| defect.name().to_owned())
        .collect();
    assert_eq!(named, all, "make the table anew");
    for (row, defect) in rows().iter().zip(Defect::ALL) {
        assert_eq!(row[0], defect.rule());
        assert!(
            row[1].ends_with(defect.what()),
            "{}: make the table anew",
            defect.name()
        );
    }
}

#[test]
fn each_defect_is_caught_by_what_its_line_names() {
    let mut missed = Vec::new();
    for row in rows() {
        let name = row[1].split('`').nth(1).unwrap_or_default().to_owned();
        let defect = Defect::named(&name).unwrap_or_else(|| panic!("{name} is no defect"));
        let tests = tests_of(&row[2]);
        let by_test = tests
            .first()
            .is_some_and(|test| !failing(defect, &["--exact", test]).is_empty());
        if !by_test && !by_simulation(defect, &row[3]) {
            missed.push(format!("{name}: neither {tests:?} nor the simulation fails"));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The seed a line names is the first to be tried. A change of the code changes what it does: then one of
/// the next few hundred has to catch it.
fn by_simulation(defect: Defect, cell: &str) -> bool {
    let seed = cell
        .strip_prefix("seed ")
        .and_then(|rest| rest.split(':').next()?.parse::<u64>().ok());
    let Some(seed) = seed else { return false };
    super::hunt::first_wrong(defect, std::iter::once(seed).chain(1..400)).is_some()
}
