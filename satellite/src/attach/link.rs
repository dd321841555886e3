//! The connection to an engine's control socket (see [`crate::control`]).
//!
//! A link dials until the engine listens, reads its messages and passes them on, and says when it is
//! lost. It has no opinion of what they mean. When the engine does not read (it is stopped, or hangs), the
//! queue fills up and the link is given up; the volume's task never waits for an engine.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stor_device::scm;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::control::{FromEngine, MAX_MESSAGE, ToEngine};

/// First pause between attempts to connect: an engine listens a few milliseconds after its start.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The longest pause. Dialling goes on as long as the process is there.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Messages to an engine that does not read.
const OUTGOING: usize = 64;

/// Read at once.
const CHUNK: usize = 16 << 10;

/// What a link says. `link` tells a link from the one before it.
#[derive(Debug)]
pub struct LinkEvent {
    /// Number of the link.
    pub link: u64,
    /// What happened.
    pub news: News,
}

/// See [`LinkEvent`].
#[derive(Debug)]
pub enum News {
    /// Connected.
    Up {
        /// The process at the other end.
        pid: i32,
    },
    /// A message, with the descriptor that came with it.
    Message(Box<FromEngine>, Option<OwnedFd>),
    /// Gone.
    Lost(LinkError),
}

/// Why a link is lost.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The engine ended, or closed it.
    #[error("the engine closed its control socket")]
    Closed,
    /// The system said no.
    #[error("control socket: {0}")]
    System(#[from] io::Error),
    /// A length above the limit.
    #[error("a message of {0} bytes from the engine, above the limit")]
    TooLong(usize),
    /// Not JSON, or of another release.
    #[error("a message from the engine cannot be read: {0}")]
    Unreadable(#[source] serde_json::Error),
}

/// A link; ends when dropped.
#[derive(Debug)]
pub struct Link {
    number: u64,
    outgoing: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Begins to dial `socket`; everything that follows is told to `events`.
    pub fn start(number: u64, socket: PathBuf, events: mpsc::Sender<LinkEvent>) -> Self {
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let task = tokio::spawn(run(number, socket, queue, events)).abort_handle();
        Self {
            number,
            outgoing,
            task,
        }
    }

    /// Number given at the start.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sends a message. `false`: the engine does not read, the link should be given up.
    pub fn send(&self, message: &ToEngine) -> bool {
        let Ok(text) = serde_json::to_vec(message) else {
            tracing::error!("a message to an engine that cannot be written");
            return false;
        };
        let Ok(length) = u32::try_from(text.len()) else {
            tracing::error!(bytes = text.len(), "a message to an engine that is too long");
            return false;
        };
        let mut frame = Vec::with_capacity(4 + text.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&text);
        self.outgoing.try_send(frame).is_ok()
    }
}

async fn run(link: u64, socket: PathBuf, queue: mpsc::Receiver<Vec<u8>>, events: mpsc::Sender<LinkEvent>) {
    let stream = Arc::new(dial(&socket).await);
    let tell = |news| events.send(LinkEvent { link, news });
    let pid =
        rustix::net::sockopt::socket_peercred(&*stream).map_or(0, |peer| peer.pid.as_raw_nonzero().get());
    if tell(News::Up { pid }).await.is_err() {
        return;
    }
    let mut reader = Reader {
        stream: Arc::clone(&stream),
        bytes: Vec::new(),
        descriptor: None,
    };
    let error = tokio::select! {
        error = write(&stream, queue) => error,
        error = async {
            loop {
                match reader.next().await {
                    Ok((message, descriptor)) => {
                        if tell(News::Message(Box::new(message), descriptor)).await.is_err() {
                            return LinkError::Closed;
                        }
                    }
                    Err(error) => return error,
                }
            }
        } => error,
    };
    // The task of the volume is gone when this fails: nobody to tell.
    // The volume's task is gone when this fails, and with it the interest.
    drop(tell(News::Lost(error)).await);
}

/// Dials until it is heard; whoever started the link ends it when the process is gone.
async fn dial(socket: &Path) -> UnixStream {
    let mut pause = FIRST_PAUSE;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::trace!(socket = %socket.display(), %error, "the engine does not listen yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Writes what is queued until nobody queues any more. A failed write ends nothing: what the engine said
/// before it went is still to be read, and the reader sees the end after it.
async fn write(stream: &UnixStream, mut queue: mpsc::Receiver<Vec<u8>>) -> LinkError {
    while let Some(frame) = queue.recv().await {
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let written = stream
                .async_io(Interest::WRITABLE, || stream.try_write(rest))
                .await;
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => {
                    tracing::debug!(%error, "the engine takes no more messages");
                    return std::future::pending().await;
                }
            }
        }
    }
    LinkError::Closed
}

struct Reader {
    stream: Arc<UnixStream>,
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Reader {
    async fn next(&mut self) -> Result<(FromEngine, Option<OwnedFd>), LinkError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok((message, self.descriptor.take()));
            }
            let mut chunk = vec![0; CHUNK];
            let received = self
                .stream
                .async_io(Interest::READABLE, || scm::receive(&*self.stream, &mut chunk))
                .await?;
            if received.count == 0 {
                return Err(LinkError::Closed);
            }
            self.bytes
                .extend_from_slice(chunk.get(..received.count).unwrap_or_default());
            self.descriptor = received.fds.into_iter().last().or(self.descriptor.take());
        }
    }

    fn take(&mut self) -> Result<Option<FromEngine>, LinkError> {
        let Some(head) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(LinkError::TooLong(length));
        }
        let Some(text) = self.bytes.get(4..4 + length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(text).map_err(LinkError::Unreadable)?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }
}
