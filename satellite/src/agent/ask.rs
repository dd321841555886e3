//! Questions to the catalogue and their answers.
//!
//! A question lives until it is answered or until whoever asked no longer wants to know: the session asks
//! it again on every new connection. Every question may be asked twice without harm, because a change
//! names the state it expects.

use stor_proto::satellite as proto;
use stor_replication::catalogue::Change;
use stor_replication::ids::VolumeId;
use tokio::sync::{mpsc, oneshot};

use super::row::{self, RowError, Volume};

/// Questions on their way to the session; each volume has a few at most, so that a full queue means that
/// no controller answers, and waiting is right.
const QUEUE: usize = 64;

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Done: the row now.
    Row(Box<Volume>),
    /// Not done.
    Refused {
        /// Kebab-case.
        code: String,
        /// For people.
        message: String,
        /// The row as it is, where there is one.
        volume: Option<Box<Volume>>,
    },
}

/// A question on its way.
#[derive(Debug)]
pub struct Ask {
    /// About which volume.
    pub volume: VolumeId,
    /// The change to make.
    pub change: Change,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

impl Ask {
    /// The message that asks it.
    pub fn message(&self, id: u64) -> Result<proto::Request, RowError> {
        use proto::request::Kind;
        let kind = Kind::Change(row::change_message(self.volume, &self.change)?);
        Ok(proto::Request { id, kind: Some(kind) })
    }
}

/// The session has ended, and with it the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the agent ends")]
pub struct Ending;

/// Where questions are asked.
#[derive(Clone, Debug)]
pub struct Asker {
    queue: mpsc::Sender<Ask>,
}

/// Makes an [`Asker`] and the end that answers.
pub fn channel() -> (Asker, mpsc::Receiver<Ask>) {
    let (queue, asks) = mpsc::channel(QUEUE);
    (Asker { queue }, asks)
}

impl Asker {
    /// Asks and waits for the answer, endlessly: what is asked here cannot be guessed, and whoever asks
    /// has nothing better to do than to wait. Cancel-safe: the question is withdrawn.
    pub async fn ask(&self, volume: VolumeId, change: Change) -> Result<Reply, Ending> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            volume,
            change,
            reply,
        };
        self.queue.send(ask).await.map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }
}
