//! Tests that need what not every machine has. A skip says what is missing, and is counted: its line goes to
//! the file named by `STOR_TESTS_SKIPPED`, when there is one. `tests/run` names one, and ends with what is in it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for the output of tests"
)]

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that a test, or a part of it, was not run.
pub fn skipped(test: &str, missing: impl Display) {
    let line = format!("SKIPPED {test}: {missing}").replace('\n', " ");
    println!("{line}");
    if let Some(path) = std::env::var_os("STOR_TESTS_SKIPPED") {
        let noted = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = noted.and_then(|mut file| writeln!(file, "{line}")) {
            eprintln!("the skip could not be noted in {}: {error}", path.display());
        }
    }
}
