//! What every part of a controller shares: the Raft node with the catalogue, what satellites report, and
//! their sessions.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Sqlite, SqliteConnection, Transaction};
use stor_raft::{Node, ProposeError};
use stor_right::Signer;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalogue::{Action, Catalogue, Command, Reply, load};
use crate::observed::{Observations, Observed};
use crate::policy::Policy;
use crate::session::Sessions;

/// A proposal without an outcome by then is reported as undecided.
const PROPOSE_WITHIN: Duration = Duration::from_secs(8);
/// A read that can't be made linearizable by then fails.
const LINEARIZE_WITHIN: Duration = Duration::from_secs(5);

/// A new leader takes nobody for lost before all had the time to dial it.
const SETTLE: Duration = Duration::from_secs(6);
/// Until it settled, it looks again after this time even without news.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A controller's shared state.
#[derive(Debug)]
pub struct Cluster {
    /// The Raft node.
    pub raft: Node<Catalogue>,
    /// What satellites report.
    pub observed: Observed,
    /// Their sessions.
    pub sessions: Sessions,
    /// Signs rights to attach.
    pub signer: Signer,
    /// What it does by itself.
    pub policy: Policy,
    /// Term and beginning of the present leadership.
    leading: Mutex<Option<(u64, Instant)>>,
    /// Cancelled when this controller is told to stop.
    pub stopping: CancellationToken,
}

/// Why the cluster could not answer.
#[derive(Debug, Error)]
pub enum Trouble {
    /// Another controller leads, or none. Nothing was done.
    #[error("this controller does not lead the cluster")]
    NotLeader,
    /// The command may be done now, later or never.
    #[error("the outcome is not known: {0}")]
    Undecided(String),
    /// More than Raft carries in one entry.
    #[error("the change has {0} bytes, too many for one entry of the log")]
    TooLarge(usize),
    /// This controller's database failed.
    #[error("the catalogue could not be read")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        match error {
            // This controller is stopping, or has more to do than it can: another one may answer.
            sqlx::Error::PoolClosed | sqlx::Error::PoolTimedOut => Self::NotLeader,
            error => Self::Database(error),
        }
    }
}

/// A consistent look at everything: rows from one moment, and the observations.
pub struct Look {
    transaction: Transaction<'static, Sqlite>,
    /// What satellites report.
    pub seen: Observations,
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Look")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Look {
    /// Ends the transaction; the observations stay.
    pub fn end(self) -> Observations {
        self.seen
    }

    /// For the functions of [`crate::catalogue::load`].
    pub fn rows(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

impl Cluster {
    /// Around a Raft node.
    pub fn new(raft: Node<Catalogue>, signer: Signer, policy: Policy) -> Self {
        Self {
            raft,
            observed: Observed::default(),
            sessions: Sessions::default(),
            signer,
            policy,
            leading: Mutex::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// Proposes a change. Cancel-safe in that nothing is left half done: the change may still happen.
    pub async fn propose(&self, action: Action) -> Result<Reply, Trouble> {
        let command = Command { at: now(), action };
        match self.raft.propose_within(command, PROPOSE_WITHIN).await {
            Ok(reply) => Ok(reply),
            Err(ProposeError::NotLeader { .. } | ProposeError::NoLeader { .. }) => Err(Trouble::NotLeader),
            Err(ProposeError::TooLarge { size }) => Err(Trouble::TooLarge(size)),
            Err(
                error @ (ProposeError::OutcomeUnknown { .. }
                | ProposeError::Stopped { .. }
                | ProposeError::Encoding { .. }),
            ) => Err(Trouble::Undecided(error.to_string())),
        }
    }

    /// Everything that was answered to anybody before this call. Leader only. Cancel-safe.
    pub async fn look(&self) -> Result<Look, Trouble> {
        match self.raft.linearize_within(LINEARIZE_WITHIN).await {
            Ok(()) => {
                let mut look = self.look_local().await?;
                look.seen = look.seen.listened(self.led_for());
                if !self.settled() {
                    let online = load::nodes_online(look.rows()).await?;
                    look.seen = look.seen.presuming(online);
                }
                Ok(look)
            }
            // A read that failed did nothing, whatever the reason: it can be asked again elsewhere.
            Err(_) => Err(Trouble::NotLeader),
        }
    }

    /// What this controller has, which may be behind. Cancel-safe.
    pub async fn look_local(&self) -> Result<Look, Trouble> {
        let transaction = self.raft.reader().begin().await?;
        Ok(Look {
            transaction,
            seen: self.observed.look(),
        })
    }

    /// A leadership begins: what was heard in an earlier one says nothing about now.
    pub fn begin_leading(&self) {
        let term = self.raft.leadership().borrow().term;
        self.observed.clear();
        *self.leading() = Some((term, Instant::now()));
    }

    /// Whether this leader has led long enough to take a node that is not heard for lost.
    pub fn settled(&self) -> bool {
        self.led_for() >= SETTLE
    }

    /// How long this leader has led; nothing on others.
    pub fn led_for(&self) -> Duration {
        let term = self.raft.leadership().borrow().term;
        let leading = self.leading().filter(|(of, _)| *of == term);
        leading.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// For whoever found in `seen` that a node is missing: when some are still presumed to come, waits for the next
    /// report (or a moment) and answers that it is worth to look again. Cancel-safe.
    pub async fn may_still_come(&self, seen: &Observations, reports: &mut watch::Receiver<u64>) -> bool {
        if !seen.awaits() {
            return false;
        }
        // Either way there is reason to look again.
        let _changed = tokio::time::timeout(LOOK_AGAIN, reports.changed()).await;
        true
    }

    fn leading(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this controller believes that it leads.
    pub fn leads(&self) -> bool {
        self.raft.leadership().borrow().is_self
    }
}

/// The time as events and commands carry it: RFC 3339, UTC, milliseconds.
pub fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
