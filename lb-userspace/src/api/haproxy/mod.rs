//! `node.haproxy_socket`: runtime commands of HAProxy, for scripts that were written for it.
//!
//! Words, answers and errors are those of HAProxy 2.6 (management guide, section 9.3), as far as they
//! mean something here. A change is one of the agent's own requests, as from the control socket; only
//! its origin is another.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::event::Via;
use super::request::{ApiError, BackendName, ErrorKind, Peer, ProbesOrder, Reply, Request};
use super::server::{self, Agent, CLIENTS};
use super::socket::Listener;
use super::status::Status;
use crate::health::SetHealth;

mod check;
mod command;
mod info;
mod server_view;
mod servers;
mod stat;

use command::{Line, Verb};
use server_view::Name;

/// Longest line, bytes: HAProxy's buffer (`tune.bufsize`).
const LINE_BYTES: u64 = 16 << 10;
/// For a line to come, and for an answer to be taken: HAProxy's `stats timeout`.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the next line of a person at the prompt.
const PROMPT_PATIENCE: Duration = Duration::from_secs(300);
/// For the line of a client that is refused.
const REFUSAL: Duration = Duration::from_secs(1);
/// What lb has instead of a number that only HAProxy keeps, in tables whose columns are places.
const NONE: &str = "-";

/// Serves the socket until it is dropped.
pub async fn serve(listener: Listener, agent: Agent) {
    server::accept(listener, |stream, place| {
        let agent = agent.clone();
        async move {
            match place {
                Some(_place) => Session::new(stream, agent)?.run().await,
                None => refuse(stream).await,
            }
        }
    })
    .await;
}

async fn refuse(stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    // Read first: a socket that is closed with something unread in it resets the connection.
    let _ = timeout(REFUSAL, line(&mut BufReader::new(read))).await;
    let text = format!("The agent has {CLIENTS} clients already.\n\n");
    send(&mut write, &text).await
}

/// One client.
struct Session {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    client: Client,
    /// Whether it asked for a prompt, and so for more than one line.
    prompt: bool,
}

/// Who asks whom.
struct Client {
    agent: Agent,
    peer: Peer,
}

impl Session {
    fn new(stream: UnixStream, agent: Agent) -> io::Result<Self> {
        let peer = Peer::of(&stream, Some(Via::HaproxySocket))?;
        let (read, writer) = stream.into_split();
        Ok(Self {
            reader: BufReader::new(read),
            writer,
            client: Client { agent, peer },
            prompt: false,
        })
    }

    async fn run(mut self) -> io::Result<()> {
        loop {
            let patience = match self.prompt {
                true => PROMPT_PATIENCE,
                false => PATIENCE,
            };
            let Ok(read) = timeout(patience, line(&mut self.reader)).await else {
                return Ok(());
            };
            let line = match read? {
                Read::Line(line) => line,
                Read::TooLong => {
                    let text = format!("A line has at most {LINE_BYTES} bytes.\n\n");
                    return send(&mut self.writer, &text).await;
                }
                Read::End => return Ok(()),
            };
            for words in command::split(&line) {
                if !self.command(&words).await? {
                    return Ok(());
                }
            }
            // Without a prompt it is one line, or those that came with it.
            if !self.prompt && !self.reader.buffer().contains(&b'\n') {
                return Ok(());
            }
        }
    }

    /// Does one command and answers it; whether there may be more.
    async fn command(&mut self, words: &[String]) -> io::Result<bool> {
        let mut answer = match command::parse(words) {
            Line::Known(Verb::Quit, _) => return Ok(false),
            Line::Known(Verb::Prompt, _) => {
                self.prompt = !self.prompt;
                String::new()
            }
            Line::Known(Verb::Help, rest) => command::help(rest),
            Line::Unknown => command::unknown(words),
            Line::Known(verb, rest) => tokio::select! {
                biased;
                // Whoever has given up wants nothing done any more.
                () = server::left(&self.writer) => return Ok(false),
                answer = self.client.answer(verb, rest) => {
                    answer.unwrap_or_else(|refused| format!("{}\n", refused.0.trim_end()))
                }
            },
        };
        // The end of an answer is an empty line.
        answer.push('\n');
        if self.prompt {
            answer.push_str("> ");
        }
        send(&mut self.writer, &answer).await?;
        Ok(true)
    }
}

/// What is answered instead: HAProxy's own words where it would refuse, too.
struct Refused(String);

impl From<&str> for Refused {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        match error.kind {
            ErrorKind::Unknown => Self::from("No such server."),
            ErrorKind::Usage | ErrorKind::Config | ErrorKind::Busy | ErrorKind::Failed => {
                Self(error.message)
            }
        }
    }
}

impl Client {
    /// The lines of the answer, each with its end; none where it was done.
    async fn answer(&self, verb: Verb, rest: &[String]) -> Result<String, Refused> {
        let argument = |index: usize| rest.get(index).map(String::as_str);
        match verb {
            Verb::ShowServersState => servers::state(&*self.status().await?, argument(0)),
            Verb::ShowServersConn => servers::conn(&*self.status().await?, argument(0)),
            Verb::ShowStat => stat::table(&*self.status().await?, &stat::Filter::new(rest)?),
            Verb::ShowInfo => match argument(0) {
                None => Ok(info::lines(&*self.status().await?)),
                Some(_) => Err("'show info' is answered without options only.".into()),
            },
            Verb::ShowVersion => Ok(concat!(env!("CARGO_PKG_VERSION"), "\n").to_owned()),
            Verb::ShowBackend => Ok(servers::backends(&*self.status().await?)),
            Verb::GetWeight => {
                let status = self.status().await?;
                let server = server_view::find(&status, argument(0))?;
                let weight = server.backend.weight;
                Ok(format!("{weight} (initial {})\n", server.initial_weight()))
            }
            Verb::SetWeight => self.set_weight(argument(0), argument(1)).await,
            Verb::SetServer => self.set_server(rest).await,
            Verb::EnableServer => self.set_state(argument(0), Some("ready")).await,
            Verb::DisableServer => self.set_state(argument(0), Some("maint")).await,
            Verb::EnableHealth => {
                let Name { name, probed, .. } = self.find(argument(0)).await?;
                if !probed {
                    let text = "Health check was not configured on this server, cannot enable.";
                    return Err(text.into());
                }
                self.probes(name, ProbesOrder::Resume).await
            }
            Verb::DisableHealth => {
                let Name { name, probed, .. } = self.find(argument(0)).await?;
                match probed {
                    true => self.probes(name, ProbesOrder::Pause).await,
                    false => Ok(String::new()),
                }
            }
            // Answered by the session.
            Verb::Help | Verb::Prompt | Verb::Quit => Ok(String::new()),
        }
    }

    async fn set_server(&self, rest: &[String]) -> Result<String, Refused> {
        let argument = |index: usize| rest.get(index).map(String::as_str);
        let Name { name, .. } = self.find(argument(0)).await?;
        match argument(1) {
            Some("state") => self.set_state(argument(0), argument(2)).await,
            Some("weight") => self.set_weight(argument(0), argument(2)).await,
            Some("health") => {
                let health = match argument(2) {
                    Some("up") => SetHealth::Healthy,
                    Some("stopping") => SetHealth::Leaving,
                    Some("down") => SetHealth::Unhealthy,
                    _ => {
                        let text = "'set server <srv> health' expects 'up', 'stopping', or 'down'.";
                        return Err(text.into());
                    }
                };
                self.probes(name, ProbesOrder::Set(health)).await
            }
            Some("agent") => Err(Refused(format!(
                "'set server <srv> agent' is not supported: its agent speaks for itself. Use \
                 'set server {name} state'."
            ))),
            Some(
                word @ ("addr" | "agent-addr" | "agent-port" | "agent-send" | "check-addr"
                | "check-port" | "fqdn" | "ssl"),
            ) => Err(Refused(format!(
                "'set server <srv> {word}' is not supported: change the configuration and run \
                 'lb reload'."
            ))),
            _ => Err("usage: set server <backend>/<server> health | state | weight".into()),
        }
    }

    async fn set_state(&self, name: Option<&str>, state: Option<&str>) -> Result<String, Refused> {
        let Name { name: backend, .. } = self.find(name).await?;
        let request = match state {
            Some("ready") => Request::Enable { backend },
            Some("drain") => Request::Drain {
                backend,
                deadline_ms: None,
            },
            Some("maint") => Request::Disable { backend },
            _ => {
                let text = "'set server <srv> state' expects 'ready', 'drain' and 'maint'.";
                return Err(text.into());
            }
        };
        self.done(request).await
    }

    async fn set_weight(&self, name: Option<&str>, text: Option<&str>) -> Result<String, Refused> {
        let Name {
            name: backend,
            initial_weight,
            ..
        } = self.find(name).await?;
        let text = text.ok_or("Require <weight> or <weight%>.")?;
        let weight = command::weight(text, initial_weight)?;
        self.done(Request::Weight { backend, weight }).await
    }

    async fn probes(&self, backend: BackendName, order: ProbesOrder) -> Result<String, Refused> {
        self.done(Request::Probes { backend, order }).await
    }

    /// Has the loop do something, which is answered with nothing.
    async fn done(&self, request: Request) -> Result<String, Refused> {
        server::ask(&self.agent, request, self.peer).await?;
        Ok(String::new())
    }

    /// The status as it is now.
    async fn status(&self) -> Result<std::sync::Arc<Status>, Refused> {
        match server::ask(&self.agent, Request::Status { service: None }, self.peer).await? {
            Reply::Status(status) => Ok(status),
            _ => Err("The agent gave no status.".into()),
        }
    }

    /// The server of this name, to be changed. Who it is, the last published status tells as a rule,
    /// so that a thousand changes do not ask for a thousand new ones. Numbers may have moved since.
    async fn find(&self, text: Option<&str>) -> Result<Name, Refused> {
        if text.is_some_and(|text| !text.contains('#')) {
            let known = self.agent.snapshot.borrow().clone();
            if let Ok(server) = server_view::find(&known, text) {
                return Ok(server.identity());
            }
        }
        Ok(server_view::find(&*self.status().await?, text)?.identity())
    }
}

/// What has come.
enum Read {
    Line(String),
    TooLong,
    /// The client sends no more; what it has sent since the last line is no command.
    End,
}

async fn line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Read> {
    let mut bytes = Vec::new();
    let read = reader
        .take(LINE_BYTES)
        .read_until(b'\n', &mut bytes)
        .await?;
    Ok(match bytes.last() {
        Some(b'\n') => Read::Line(String::from_utf8_lossy(&bytes).into_owned()),
        _ if read as u64 == LINE_BYTES => Read::TooLong,
        _ => Read::End,
    })
}

async fn send(writer: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    timeout(PATIENCE, writer.write_all(text.as_bytes()))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a client does not read"))?
}

#[cfg(test)]
mod tests;
