//! Commands that ask the agent.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Probes;
use super::output::{self, Palette};
use super::probe::Wish;
use super::{Failure, events, explain, status};
use crate::announce::routes;
use crate::api::client::{self, ClientError};
use crate::api::request::{Frame, ProbesOrder};
use crate::api::{self, ApiError, BackendName, Request};
use crate::datapath::{self, PinDirectory};
use crate::model::{ConnectionId, Protocol};
use crate::plan::explain::Tuple;
use crate::probe::via;

/// `lb status`.
pub fn status(socket: &Path, service: Option<String>, json: bool) -> Result<u8, Failure> {
    match ask(socket, &Request::Status { service })? {
        Frame::Status(status) if json => output::print_json(&*status)?,
        Frame::Status(status) => {
            output::print(&status::render(&status, api::now(), Palette::of_stdout()))?;
        }
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

/// `lb drain`.
pub fn drain(
    socket: &Path,
    backend: BackendName,
    deadline: Option<Duration>,
) -> Result<u8, Failure> {
    let deadline_ms = match deadline {
        None => None,
        Some(deadline) => Some(
            u64::try_from(deadline.as_millis())
                .map_err(|_| Failure::Usage("--deadline is too long".to_owned()))?,
        ),
    };
    tell(
        socket,
        &Request::Drain {
            backend,
            deadline_ms,
        },
    )
}

/// `lb enable`.
pub fn enable(socket: &Path, backend: BackendName) -> Result<u8, Failure> {
    tell(socket, &Request::Enable { backend })
}

/// `lb disable`.
pub fn disable(socket: &Path, backend: BackendName) -> Result<u8, Failure> {
    tell(socket, &Request::Disable { backend })
}

/// `lb promote`.
pub fn promote(socket: &Path, backend: BackendName) -> Result<u8, Failure> {
    tell(socket, &Request::Promote { backend })
}

/// `lb probes`.
pub fn probes(socket: &Path, probes: Probes) -> Result<u8, Failure> {
    let (backend, order) = match probes {
        Probes::Pause { backend } => (backend, ProbesOrder::Pause),
        Probes::Resume { backend } => (backend, ProbesOrder::Resume),
        Probes::Set { backend, health } => (backend, ProbesOrder::Set(health)),
    };
    tell(socket, &Request::Probes { backend, order })
}

/// `lb weight`.
pub fn weight(socket: &Path, backend: BackendName, weight: u32) -> Result<u8, Failure> {
    tell(socket, &Request::Weight { backend, weight })
}

/// `lb reload`.
pub fn reload(socket: &Path) -> Result<u8, Failure> {
    tell(socket, &Request::Reload)
}

/// `lb detach`: by the agent, or without one in its place.
pub fn detach(socket: &Path) -> Result<u8, Failure> {
    match tell(socket, &Request::Detach) {
        Err(Failure::Client(ClientError::NoAgent(_))) => {}
        result => return result,
    }
    datapath::enter_bpffs().context("detaching without an agent; run as root")?;
    // The agent's own is absolute, and where it pins follows from it.
    let socket = std::path::absolute(socket).context("the path of the socket")?;
    let pins = PinDirectory::of(&socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // First of all: what is not served must not be announced.
    (runtime.block_on(routes::remove_all(routes::metric(&socket))))
        .context("removing the routes of announced VIPs")?;
    let existed = datapath::detach(&pins).context("detaching")?;
    // What a killed agent has left.
    (runtime.block_on(via::remove_rules()))
        .context("removing the rule for probes by way of VIPs")?;
    if existed {
        output::print(
            "detached: the program is off all interfaces and nothing is pinned (no agent was \
             running)\n",
        )?;
        return Ok(0);
    }
    let mut text = format!(
        "nothing to detach: nothing is pinned by an agent with the socket {}, and none runs\n",
        socket.display()
    );
    for (path, interfaces) in pins.others().context("looking for other agents' pins")? {
        text += &format!(
            "on {} is the program of an agent with another socket (pinned in {}): name that with \
             --socket\n",
            interfaces.join(", "),
            path.display()
        );
    }
    output::print(&text)?;
    Ok(0)
}

/// `lb probe` by the agent.
pub(super) fn probe(socket: &Path, wish: Wish<'_>) -> Result<u8, Failure> {
    let request = Request::Probe {
        backend: wish.name.clone(),
        probe: wish.only.map(str::to_owned),
    };
    match ask(socket, &request)? {
        Frame::Probe(report) => wish.print(&report.json, &report.text),
        other => Err(unexpected(&other)),
    }
}

/// `lb explain`.
pub fn explain(
    socket: &Path,
    src: SocketAddr,
    dst: SocketAddr,
    protocol: Protocol,
    connection_id: Option<ConnectionId>,
    json: bool,
) -> Result<u8, Failure> {
    // Wrong without asking anybody.
    Tuple::new(src, dst, protocol).map_err(|error| Failure::Usage(error.to_string()))?;
    let request = Request::Explain {
        src,
        dst,
        protocol,
        connection_id,
    };
    match ask(socket, &request)? {
        Frame::Explained(found) if json => output::print_json(&*found)?,
        Frame::Explained(found) => output::print(&explain::render(&found, Palette::of_stdout()))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

/// `lb events`. Ends well on Ctrl-C, and when the agent ends.
pub fn events(
    socket: &Path,
    follow: bool,
    since: Option<u64>,
    limit: usize,
    json: bool,
) -> Result<u8, Failure> {
    let request = Request::Events {
        follow,
        since,
        limit: (limit > 0).then_some(limit),
    };
    let palette = Palette::of_stdout();
    block_on(async {
        // From here on Ctrl-C is the way to end well, whenever it comes.
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
        let print_all = async {
            let mut answers = client::send(socket, &request).await?;
            while let Some(frame) = answers.next().await? {
                match frame {
                    Frame::Event(event) if json => {
                        let mut line = serde_json::to_string(&*event)
                            .context("an event does not become JSON")?;
                        line.push('\n');
                        output::print(&line)?;
                    }
                    Frame::Event(event) => output::print(&events::render(&event, palette))?,
                    Frame::Missed(count) => output::complain(&format!(
                        "{count} events were left out: this reader was too slow. They are in \
                         `lb events` still"
                    )),
                    Frame::Error(error) => return Err(Failure::Api(error)),
                    other => return Err(unexpected(&other)),
                }
            }
            Ok(0)
        };
        tokio::select! {
            result = print_all => result,
            _ = interrupt.recv() => Ok(0),
        }
    })
}

/// Asks for something to be done and prints what was.
fn tell(socket: &Path, request: &Request) -> Result<u8, Failure> {
    match ask(socket, request)? {
        Frame::Done(done) => output::print(&format!("{}\n", output::tame(&done.message)))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

/// The agent's one answer.
fn ask(socket: &Path, request: &Request) -> Result<Frame, Failure> {
    let frame = block_on(async { Ok(client::send(socket, request).await?.one().await?) })?;
    match frame {
        Frame::Error(error) => Err(Failure::Api(error)),
        frame => Ok(frame),
    }
}

pub(super) fn unexpected(frame: &Frame) -> Failure {
    let kind = match frame {
        Frame::Status(_) => "a status",
        Frame::Event(_) => "an event",
        Frame::Missed(_) => "a gap",
        Frame::Probe(_) => "a probe's result",
        Frame::Explained(_) => "an explanation",
        Frame::Capturing(_) | Frame::Packet(_) | Frame::Captured(_) => "a capture",
        Frame::Done(_) => "a confirmation",
        Frame::Error(error) => return Failure::Api(ApiError::clone(error)),
    };
    Failure::Other(anyhow::anyhow!(
        "the agent answered with {kind}, which was not asked for; are both of one version?"
    ))
}

pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}
