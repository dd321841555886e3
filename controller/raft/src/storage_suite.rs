//! openraft's own suite over our log and state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use sqlx::SqliteConnection;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::application::Application;
use crate::database::{self, CATALOGUE};
use crate::entry::TypeConfig;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::opening::start_log;
use crate::snapshot::Shelf;
use crate::{log_file, state};

struct Nothing;

impl Application for Nothing {
    type Command = ();
    type Reply = ();

    fn migrator() -> &'static sqlx::migrate::Migrator {
        static NONE: sqlx::migrate::Migrator = sqlx::migrate::Migrator::DEFAULT;
        &NONE
    }

    async fn apply(_: &mut SqliteConnection, _: u64, (): &()) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Nothing>, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine<Nothing>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (hold, _released) = mpsc::channel(1);
        let log = dir.path().join("log.db");
        let (conn, log_state) = log_file::open(&log, 1).await.unwrap();
        let store = start_log(&log, conn, &log_state, hold.clone());
        let catalogue = dir.path().join("catalogue.db");
        let mut conn = database::open(&catalogue, CATALOGUE).await.unwrap();
        database::migrate(&mut conn, &catalogue, Nothing::migrator())
            .await
            .unwrap();
        state::create(&mut conn).await.unwrap();
        let applied = state::load(&mut conn).await.unwrap();
        let snapshots = dir.path().join("snapshots");
        std::fs::create_dir(&snapshots).unwrap();
        let shelf = Arc::new(Shelf::open(&snapshots).await.unwrap());
        Ok((dir, store, Machine::new(conn, catalogue, shelf, applied, hold)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}
