//! The control socket's server: one request a connection, one line of JSON each way, except that
//! events come one a line.
//!
//! A client cannot hold up the agent: its request is bounded in size and time, its answers are
//! written by its own task with a deadline, and a follower that reads too slowly misses events.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::capture::{Packet, Stream};
use super::event::Event;
use super::request::{Answer, ApiError, Call, ErrorKind, Frame, Peer, Reply, Request};
use super::socket::Listener;
use super::status::Status;

/// Clients served at a time.
pub(super) const CLIENTS: usize = 64;
/// Longest request, bytes.
const REQUEST_BYTES: u64 = 64 << 10;
/// For a request to come, and for each write to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether a client still waits.
const LOOK: Duration = Duration::from_millis(250);
/// For the request of a client that is refused.
const REFUSAL: Duration = Duration::from_secs(1);
/// After an accept that failed for want of descriptors.
const BACKOFF: Duration = Duration::from_millis(100);

/// What the server needs of the agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// To the loop.
    pub calls: mpsc::Sender<Call>,
    /// [`super::Journal::followers`].
    pub events: broadcast::Sender<Arc<Event>>,
    /// The last published status, for when the loop is too busy to make a fresh one.
    pub snapshot: watch::Receiver<Arc<Status>>,
}

/// Serves the control socket until it is dropped.
pub async fn serve(listener: Listener, agent: Agent) {
    accept(listener, |stream, place| {
        let agent = agent.clone();
        async move {
            match place {
                Some(_place) => client(stream, agent).await,
                None => refuse(stream).await,
            }
        }
    })
    .await;
}

/// Accepts clients until it is dropped, each served by a task of its own; without a place if there
/// are [`CLIENTS`] already.
pub(super) async fn accept<F>(
    listener: Listener,
    serve: impl Fn(UnixStream, Option<OwnedSemaphorePermit>) -> F,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let stream = match listener.socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("{}: accepting a client: {error}", listener.key);
                tokio::time::sleep(BACKOFF).await;
                continue;
            }
        };
        let served = serve(stream, places.clone().try_acquire_owned().ok());
        let key = listener.key;
        tokio::spawn(async move {
            if let Err(error) = served.await {
                debug!("{key}: {error}");
            }
        });
    }
}

/// Says no, after the request has come: a socket that is closed with something unread in it resets
/// the connection, and the answer may be lost with it.
async fn refuse(stream: UnixStream) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut reader = BufReader::new(read.take(REQUEST_BYTES));
    // Whatever came or did not come: it is not served.
    let _ = timeout(REFUSAL, request(&mut reader)).await;
    let error = ApiError::new(
        ErrorKind::Busy,
        format!("the agent has {CLIENTS} clients already; end some of them and try again"),
    );
    Writer(write).frame(&Frame::Error(error)).await
}

async fn client(stream: UnixStream, agent: Agent) -> io::Result<()> {
    let peer = Peer::of(&stream, None)?;
    let (read, write) = stream.into_split();
    let mut writer = Writer(write);
    let mut reader = BufReader::new(read.take(REQUEST_BYTES));
    let request = match timeout(PATIENCE, request(&mut reader)).await {
        Err(_) => Err(ApiError::new(ErrorKind::Usage, "no request came in time")),
        Ok(result) => match result? {
            None => return Ok(()),
            Some(request) => request,
        },
    };
    let answer = match request {
        Ok(Request::Events {
            follow: true,
            since,
            limit,
        }) => {
            let reader = reader.into_inner().into_inner();
            return follow(reader, writer, agent, peer, since, limit).await;
        }
        Ok(request @ Request::Capture { .. }) => {
            let reader = reader.into_inner().into_inner();
            return capture(reader, writer, agent, request, peer).await;
        }
        Ok(request) => tokio::select! {
            biased;
            // Whoever has given up wants nothing done any more, least of all in an hour, when an
            // agent that hung goes on.
            () = left(&writer.0) => return Ok(()),
            answer = ask(&agent, request, peer) => answer,
        },
        Err(error) => Err(error),
    };
    match answer {
        Ok(Reply::Status(status)) => writer.frame(&Frame::Status(status)).await,
        Ok(Reply::Probe(report)) => writer.frame(&Frame::Probe(report)).await,
        Ok(Reply::Explained(explained)) => writer.frame(&Frame::Explained(explained)).await,
        Ok(Reply::Done(done)) => writer.frame(&Frame::Done(done)).await,
        Ok(Reply::Events(events)) => writer.events(events).await.map(drop),
        // Asked for above only.
        Ok(Reply::Capture(_)) => Ok(()),
        Err(error) => writer.frame(&Frame::Error(error)).await,
    }
}

/// Reads the request; `None` if the client leaves without one.
async fn request(
    reader: &mut (impl AsyncBufReadExt + Unpin),
) -> io::Result<Option<Result<Request, ApiError>>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Ok(Some(Err(ApiError::new(
            ErrorKind::Usage,
            format!("a request is one line of at most {REQUEST_BYTES} bytes"),
        ))));
    }
    Ok(Some(serde_json::from_slice(&line).map_err(|error| {
        ApiError::new(
            ErrorKind::Usage,
            format!(
                "the request is not understood: {error}; are `lb` and the agent of one version?"
            ),
        )
    })))
}

/// Ends when the client has closed its socket; one that has closed its sending side only still
/// waits for the answer.
pub(super) async fn left(write: &OwnedWriteHalf) {
    while write.writable().await.is_ok() {
        // The kernel's own word, since what the runtime knows may be older: EPIPE, also for nothing
        // at all, if and only if the other end takes no more (unix_stream_sendmsg).
        match write.try_write(&[]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Asks the loop.
pub(super) async fn ask(agent: &Agent, request: Request, peer: Peer) -> Answer {
    let patience = request.patience();
    let only = match &request {
        Request::Status { service } => service.clone(),
        _ => None,
    };
    let is_status = matches!(request, Request::Status { .. });
    let (call, answer) = Call::new(request, peer);
    let asked = timeout(patience, async {
        agent.calls.send(call).await.ok()?;
        answer.await.ok()
    });
    let reply = match asked.await {
        Ok(Some(answer)) => answer?,
        Ok(None) => return Err(ApiError::failed("the agent is ending")),
        // Its age is in it (`node.at`), and an old answer is better than none.
        Err(_) if is_status => Reply::Status(agent.snapshot.borrow().clone()),
        Err(_) => {
            return Err(ApiError::new(
                ErrorKind::Busy,
                format!("the agent gave no answer within {patience:?}; its log may say why"),
            ));
        }
    };
    match (reply, only) {
        (Reply::Status(status), Some(service)) => {
            let status = Status::clone(&status).only(&service)?;
            Ok(Reply::Status(Arc::new(status)))
        }
        (reply, _) => Ok(reply),
    }
}

/// Past events, then all that come, until the client leaves.
async fn follow(
    mut reader: OwnedReadHalf,
    mut writer: Writer,
    agent: Agent,
    peer: Peer,
    since: Option<u64>,
    limit: Option<usize>,
) -> io::Result<()> {
    // Subscribed before the past is asked for: an event in between is in both, and left out of the
    // second by its number.
    let mut coming = agent.events.subscribe();
    // Only subscribers are needed from here on: the loop's end must end the followers.
    let past = Request::Events {
        follow: false,
        since,
        limit,
    };
    let past = ask(&agent, past, peer).await;
    drop(agent);
    let mut last = match past {
        Ok(Reply::Events(events)) => writer.events(events).await?,
        Ok(_) => 0,
        Err(error) => return writer.frame(&Frame::Error(error)).await,
    };
    let mut ignored = [0; 256];
    loop {
        tokio::select! {
            event = coming.recv() => match event {
                Ok(event) if event.id <= last => {}
                Ok(event) => {
                    last = event.id;
                    writer.frame(&Frame::Event(event)).await?;
                }
                Err(RecvError::Lagged(missed)) => writer.frame(&Frame::Missed(missed)).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            read = reader.read(&mut ignored) => if read? == 0 {
                return Ok(());
            },
        }
    }
}

/// Captured packets, until the client wants no more. Dropped at any point, it ends the capture.
async fn capture(
    mut reader: OwnedReadHalf,
    mut writer: Writer,
    agent: Agent,
    request: Request,
    peer: Peer,
) -> io::Result<()> {
    let reply = ask(&agent, request, peer).await;
    drop(agent);
    let Stream {
        opened,
        mut packets,
        stop,
        closed,
    } = match reply {
        Ok(Reply::Capture(stream)) => *stream,
        Ok(_) => return Ok(()),
        Err(error) => return writer.frame(&Frame::Error(error)).await,
    };
    writer.frame(&Frame::Capturing(opened)).await?;
    let mut stop = Some(stop);
    let mut ignored = [0; 256];
    loop {
        tokio::select! {
            batch = packets.recv() => match batch {
                Some(batch) => writer.packets(batch).await?,
                None => break,
            },
            read = reader.read(&mut ignored), if stop.is_some() => if read? == 0 {
                stop = None;
            },
        }
    }
    match closed.await {
        Ok(closed) => writer.frame(&Frame::Captured(closed)).await,
        // The agent is ending.
        Err(_) => Ok(()),
    }
}

/// The way to a client, with a deadline on every write.
struct Writer(OwnedWriteHalf);

impl Writer {
    async fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let mut line = serde_json::to_vec(frame)?;
        line.push(b'\n');
        self.lines(&line).await
    }

    async fn lines(&mut self, lines: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.0.write_all(lines))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a client does not read"))?
    }

    /// Writes packets, many at a time.
    async fn packets(&mut self, packets: Vec<Packet>) -> io::Result<()> {
        let mut lines = Vec::new();
        for packet in packets {
            serde_json::to_writer(&mut lines, &Frame::Packet(packet.into()))?;
            lines.push(b'\n');
        }
        self.lines(&lines).await
    }

    /// Writes events; the number of the last one.
    async fn events(&mut self, events: Vec<Arc<Event>>) -> io::Result<u64> {
        let mut last = 0;
        for event in events {
            last = event.id;
            self.frame(&Frame::Event(event)).await?;
        }
        Ok(last)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
