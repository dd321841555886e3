//! Sessions that insert row after row, each in a transaction of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, ensure};

use super::{Database, body};
use crate::wait;

/// What is known of one writer's rows, numbered from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The last whose commit was answered.
    known: u64,
    /// The last that was sent.
    sent: u64,
}

impl Committed {
    /// The database shows so many rows.
    pub(super) fn settle(&mut self, shown: u64) -> anyhow::Result<()> {
        ensure!(
            shown >= self.known,
            "{} rows were committed and {shown} are there",
            self.known
        );
        ensure!(
            shown <= self.sent,
            "{} rows were sent and {shown} are there",
            self.sent
        );
        (self.known, self.sent) = (shown, shown);
        Ok(())
    }
}

/// Sessions that run.
#[derive(Debug)]
pub struct Sessions {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Committed>>,
}

impl Sessions {
    /// One for each writer, from where it was.
    pub fn start(database: &dyn Database, committed: &[Committed]) -> anyhow::Result<Self> {
        let mut sessions = Self {
            stop: Arc::default(),
            commits: Arc::default(),
            threads: Vec::new(),
        };
        for (writer, known) in committed.iter().enumerate() {
            let mut client = database.client();
            client
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut child = client.spawn().context("starting the database's client")?;
            let session = Session {
                writer,
                input: child.stdin.take().context("the client takes no input")?,
                output: BufReader::new(child.stdout.take().context("the client says nothing")?),
                child,
                committed: *known,
            };
            let (stop, commits) = (Arc::clone(&sessions.stop), Arc::clone(&sessions.commits));
            sessions
                .threads
                .push(thread::spawn(move || session.run(&stop, &commits)));
        }
        Ok(sessions)
    }

    /// Waits for `more` commits from now on.
    pub fn wait_for(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.commits.load(Ordering::SeqCst) + more;
        wait::until(
            wait::LONG,
            &format!("{more} more transactions are committed"),
            || {
                ensure!(
                    !self.threads.iter().any(JoinHandle::is_finished),
                    "a session was ended by its database"
                );
                Ok(self.commits.load(Ordering::SeqCst) >= goal)
            },
        )
    }

    /// Ends them after the transactions under way; of a database that was killed, as they find out.
    pub fn stop(self) -> anyhow::Result<Vec<Committed>> {
        self.stop.store(true, Ordering::SeqCst);
        wait::until(wait::LONG, "the sessions' last transactions are over", || {
            Ok(self.threads.iter().all(JoinHandle::is_finished))
        })?;
        let commits = self.commits.load(Ordering::SeqCst);
        println!("{commits} transactions were committed");
        let ended = self
            .threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a session panicked"));
        ended.collect()
    }
}

struct Session {
    writer: usize,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    child: Child,
    committed: Committed,
}

impl Session {
    fn run(mut self, stop: &AtomicBool, commits: &AtomicU64) -> Committed {
        while !stop.load(Ordering::SeqCst) {
            // The client's end of the line is the database's: what was under way stays unknown.
            if self.transaction().is_err() {
                break;
            }
            commits.fetch_add(1, Ordering::SeqCst);
        }
        drop(self.input);
        // Killed with its database, perhaps.
        _ = self.child.kill();
        _ = self.child.wait();
        self.committed
    }

    fn transaction(&mut self) -> anyhow::Result<()> {
        let (writer, number) = (self.writer, self.committed.known + 1);
        ensure!(
            self.committed.sent < number,
            "what became of row {number} is not known"
        );
        self.committed.sent = number;
        // Asked after the commit, in a statement of its own: an answer to the insert would come before it.
        writeln!(
            self.input,
            "begin; insert into rows values ({writer}, {number}, '{}'); update tally set number = {number} where \
             writer = {writer}; commit; select 'row ' || number from tally where writer = {writer};",
            body(writer, number)
        )?;
        self.input.flush()?;
        let mut line = String::new();
        while line.trim() != format!("row {number}") {
            line.clear();
            let read = self.output.read_line(&mut line)?;
            ensure!(read > 0, "the session ended");
            ensure!(
                !line.starts_with("row ") || line.trim() == format!("row {number}"),
                "{line}"
            );
        }
        self.committed.known = number;
        Ok(())
    }
}
