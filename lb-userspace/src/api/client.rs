//! The other end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::request::{Frame, Request};

/// Beyond what the server itself waits for the loop.
const GRACE: Duration = Duration::from_secs(5);

/// Why an agent was not asked.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error(
        "no agent listens on {0}; start one with `lb run --config FILE`, or name its socket with \
         --socket PATH or LB_SOCKET"
    )]
    NoAgent(PathBuf),
    #[error(
        "no permission for the agent's socket {0}; run as root, or as a member of the socket's \
         group"
    )]
    Permission(PathBuf),
    #[error("talking to the agent on {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the agent on {0} closed the connection without an answer; its log may say why")]
    Closed(PathBuf),
    #[error("the agent on {0} gives no answer; its log may say why")]
    Silent(PathBuf),
    #[error(
        "the answer of the agent on {path} is not understood: {source}; are both of one version?"
    )]
    Version {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// A request under way.
#[derive(Debug)]
pub struct Answers {
    path: PathBuf,
    lines: BufReader<OwnedReadHalf>,
    /// The line being read.
    line: Vec<u8>,
    /// Open for as long as answers are wanted: the server takes its end for ours.
    open: OwnedWriteHalf,
    patience: Option<Duration>,
}

/// Sends `request` to the agent on `path`.
pub async fn send(path: &Path, request: &Request) -> Result<Answers, ClientError> {
    let failed = |source| ClientError::Io {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoAgent(path.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission(path.to_owned()),
            _ => failed(error),
        })?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    match write.write_all(&line).await {
        // A server that is full has answered and closed already: its answer says so.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.map_err(failed)?,
    }
    let patience = match request {
        Request::Events { follow: true, .. } | Request::Capture { .. } => None,
        request => Some(request.patience() + GRACE),
    };
    Ok(Answers {
        path: path.to_owned(),
        lines: BufReader::new(read),
        line: Vec::new(),
        open: write,
        patience,
    })
}

impl Answers {
    /// The next line; `None` at the end. Cancel safe: what was read of a line is kept.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        let read = self.lines.read_until(b'\n', &mut self.line);
        let read = match self.patience {
            None => read.await,
            Some(patience) => timeout(patience, read)
                .await
                .map_err(|_| ClientError::Silent(self.path.clone()))?,
        };
        read.map_err(|source| ClientError::Io {
            path: self.path.clone(),
            source,
        })?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let frame = serde_json::from_slice(&line).map_err(|source| ClientError::Version {
            path: self.path.clone(),
            source,
        })?;
        Ok(Some(frame))
    }

    /// Whether something has come that [`Self::next`] need not wait for.
    pub fn has_more(&self) -> bool {
        !self.lines.buffer().is_empty()
    }

    /// Says that no more is wanted; what is under way still comes.
    pub async fn finish(&mut self) -> Result<(), ClientError> {
        match self.open.shutdown().await {
            // The agent has ended the connection already; `next` tells how.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result.map_err(|source| ClientError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// The only line.
    pub async fn one(mut self) -> Result<Frame, ClientError> {
        match self.next().await? {
            Some(frame) => Ok(frame),
            None => Err(ClientError::Closed(self.path)),
        }
    }
}
