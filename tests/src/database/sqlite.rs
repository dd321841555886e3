//! SQLite by its shell, with a write-ahead log and every commit synced.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::ensure;

use super::{Database, TABLES, ask};

/// See the module. There is no server: its sessions are the database.
#[derive(Debug)]
pub struct Sqlite {
    file: PathBuf,
    /// Read by each client first.
    settings: PathBuf,
}

impl Database for Sqlite {
    fn missing() -> Option<String> {
        let found = Command::new("sqlite3")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        found.err().map(|_| "sqlite3 (package sqlite3)".to_owned())
    }

    fn make(tree: &Path) -> anyhow::Result<Self> {
        let made = Self {
            file: tree.join("rows.db"),
            settings: tree.join("settings"),
        };
        std::fs::write(&made.settings, ".timeout 120000\npragma synchronous = full;\n")?;
        let mode = ask(&made, "pragma journal_mode = wal;")?;
        ensure!(mode.trim() == "wal", "the journal is {mode}");
        ask(&made, TABLES)?;
        for writer in 0..super::WRITERS {
            ask(&made, &format!("insert into tally values ({writer}, 0);"))?;
        }
        Ok(made)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn kill(&mut self) {}

    fn client(&self) -> Command {
        // Into a pipe it would speak by pages, not by lines.
        let mut client = Command::new("stdbuf");
        client.args(["-oL", "sqlite3", "-batch", "-bail", "-init"]);
        client.arg(&self.settings).arg(&self.file);
        client
    }

    fn check(&self) -> anyhow::Result<()> {
        let said = ask(self, "pragma integrity_check;")?;
        ensure!(said.trim() == "ok", "integrity_check: {said}");
        Ok(())
    }
}
