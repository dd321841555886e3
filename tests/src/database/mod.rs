//! Databases on a volume, used through their own command-line clients: sessions that insert row after row and note
//! what was committed outside of the volume, and the check that all of it is there, whole, and nothing else.
//!
//! Each transaction inserts a row and counts it in another table: half of one would be seen.

mod postgres;
mod session;
mod sqlite;

use std::path::Path;

use anyhow::{Context as _, ensure};

pub use postgres::Postgres;
pub use session::{Committed, Sessions};
pub use sqlite::Sqlite;

/// A database program.
pub trait Database {
    /// What this machine lacks for it; `None` when it lacks nothing.
    fn missing() -> Option<String>
    where
        Self: Sized;

    /// Makes an empty one in `tree`, and starts it.
    fn make(tree: &Path) -> anyhow::Result<Self>
    where
        Self: Sized;

    /// Starts it where it was made; after a crash it recovers first.
    fn start(&mut self) -> anyhow::Result<()>;

    /// Ends it in order.
    fn stop(&mut self) -> anyhow::Result<()>;

    /// Ends it as a power cut does.
    fn kill(&mut self);

    /// A client that reads statements from its input, one on a line, and says what comes of them line by line.
    fn client(&self) -> std::process::Command;

    /// Its own check of all it holds, while it runs.
    fn check(&self) -> anyhow::Result<()>;
}

/// Writers of a database.
pub const WRITERS: usize = 3;

/// Words of the tables, the same for all.
const TABLES: &str = "create table rows (writer int, number int, body text, primary key (writer, number)); \
                      create table tally (writer int primary key, number int);";

/// Runs statements in a client of their own and returns what it says. An error when the client fails.
fn ask(database: &dyn Database, statements: &str) -> anyhow::Result<String> {
    let mut client = database.client();
    client
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = client.spawn().context("starting the database's client")?;
    let mut stdin = child.stdin.take().context("the client takes no input")?;
    std::io::Write::write_all(&mut stdin, format!("{statements}\n").as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.is_empty(), "{statements}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a row must hold: some fit many on a page, some take pages of their own.
fn body(writer: usize, number: u64) -> String {
    let words = if number.is_multiple_of(16) {
        180
    } else {
        2 * (number % 16)
    };
    let mut state = (writer as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03)
        | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    };
    (0..words).map(|_| word()).collect()
}

/// Checks that the database holds every row that was committed, whole, and of those whose commit was never answered
/// all or nothing. From then on they are known.
pub fn holds(database: &dyn Database, committed: &mut [Committed]) -> anyhow::Result<()> {
    for (writer, known) in committed.iter_mut().enumerate() {
        let rows = ask(
            database,
            &format!("select number || ' ' || body from rows where writer = {writer} order by number;"),
        )?;
        let mut last = 0;
        for line in rows.lines().filter(|line| !line.is_empty()) {
            let (number, text) = line.split_once(' ').with_context(|| format!("a row {line:?}"))?;
            let number: u64 = number.parse().with_context(|| format!("a row {line:?}"))?;
            ensure!(
                number == last + 1,
                "writer {writer}: row {number} follows row {last}"
            );
            ensure!(
                text == body(writer, number),
                "writer {writer}: row {number} holds {text:?}"
            );
            last = number;
        }
        let tally = ask(
            database,
            &format!("select number from tally where writer = {writer};"),
        )?;
        ensure!(
            tally.trim() == last.to_string(),
            "writer {writer}: {last} rows, and {tally:?} counted"
        );
        known.settle(last).with_context(|| format!("writer {writer}"))?;
    }
    database.check()
}
