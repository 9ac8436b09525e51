//! `lb capture`: packets from the datapath's ring, in the operator's names, to one client.
//!
//! A task of its own reads the ring, so that the loop is not held up. There is one ring, hence one
//! capture at a time. It ends with its client: with the connection, however that ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lb_common::abi::Forwarding;
use lb_common::capture::MAX_KEPT;
use lb_common::slot::BackendIndex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::run::Agent;
use crate::api::capture::{Action, Closed, FORWARDED, Opened, Packet, Stream};
use crate::api::event::{Change, Kind, Origin};
use crate::api::{ApiError, ErrorKind, Reply, Responder};
use crate::datapath::sys::{self, Readable};
use crate::datapath::tap::{self, LEASE};
use crate::datapath::{Command, DatapathError, Tap};
use crate::model::Model;
use crate::plan::{Contents, ServiceId};

/// Packets sent on together.
const BATCH: usize = 64;
/// Batches on their way to the client; what comes beyond waits in the ring.
const BATCHES: usize = 16;

/// What the loop knows of captures.
pub struct Captures {
    place: Arc<Semaphore>,
    names: watch::Sender<Arc<Names>>,
}

impl Default for Captures {
    fn default() -> Self {
        Self {
            place: Arc::new(Semaphore::new(1)),
            names: watch::channel(Arc::default()).0,
        }
    }
}

impl Captures {
    /// Tells the capture under way, if there is one, what the numbers mean from now on.
    pub fn rename(&self, model: &Model, contents: &Contents) {
        if self.names.receiver_count() > 0 {
            self.names
                .send_replace(Arc::new(Names::new(model, contents)));
        }
    }
}

/// The operator's names for the numbers in the maps.
#[derive(Debug, Default)]
struct Names {
    services: BTreeMap<ServiceId, (String, Forwarding)>,
    backends: BTreeMap<BackendIndex, (String, SocketAddr)>,
}

impl Names {
    /// What is not configured any more is called by its address.
    fn new(model: &Model, contents: &Contents) -> Self {
        let configured = |id: &ServiceId| {
            let wanted = contents.services.get(id)?;
            let mut services = model.services.iter();
            services.find(|s| (s.address, s.protocol) == (wanted.address, wanted.protocol))
        };
        let services = contents.services.iter().map(|(id, service)| {
            let name = configured(id).map_or(service.address.to_string(), |s| s.name.to_string());
            (*id, (name, service.forwarding))
        });
        let backends = contents.backends.iter().map(|(id, backend)| {
            let service = configured(&backend.service);
            let mut known = service.iter().flat_map(|service| &service.backends);
            let name = known
                .find(|known| known.address == backend.address)
                .map_or(backend.address.to_string(), |known| known.name.to_string());
            (*id, (name, backend.address))
        });
        Self {
            services: services.collect(),
            backends: backends.collect(),
        }
    }

    fn service(&self, name: &str) -> Option<ServiceId> {
        let mut services = self.services.iter();
        services
            .find(|(_, (known, _))| known == name)
            .map(|(id, _)| *id)
    }
}

/// Starts a capture, unless there is one already.
pub fn capture(
    agent: &mut Agent,
    service: Option<String>,
    snaplen: u16,
    origin: Origin,
    responder: Responder,
) {
    match prepare(agent, service, snaplen) {
        Ok((run, what)) => {
            let (reply, tap) = oneshot::channel();
            if let Err(error) = agent.writer.send(Command::Tap(reply)) {
                return responder.send(Err(ApiError::failed(error)));
            }
            agent.core.record(Change::node(Kind::Admin, origin, what));
            tokio::spawn(async move {
                let tap = tap.await.map_err(|_| DatapathError::Ended);
                match tap.and_then(|tap| tap).map_err(ApiError::failed) {
                    Ok(tap) => run.start(tap, responder).await,
                    Err(error) => responder.send(Err(error)),
                }
            });
        }
        Err(error) => responder.send(Err(error)),
    }
}

fn prepare(
    agent: &Agent,
    service: Option<String>,
    snaplen: u16,
) -> Result<(Run, String), ApiError> {
    if !(1..=MAX_KEPT).contains(&snaplen) {
        let text = format!("snaplen {snaplen} is out of range: 1 to {MAX_KEPT}");
        return Err(ApiError::new(ErrorKind::Usage, text));
    }
    let model = &agent.core.model;
    if let Some(name) = &service
        && model.service(name).is_none()
    {
        let known = model.services.iter().map(|service| &*service.name);
        return Err(ApiError::unknown_service(name, known));
    }
    let names = Arc::new(Names::new(model, agent.core.built()));
    let id = match &service {
        None => None,
        Some(name) => Some(names.service(name).ok_or_else(|| {
            let text = format!(
                "service {name} is configured, but not yet in the data plane; try again, and see \
                 `lb status` for why it is not"
            );
            ApiError::new(ErrorKind::Busy, text)
        })?),
    };
    let place = agent.captures.place.clone().try_acquire_owned();
    let place = place.map_err(|_| {
        let text = "another capture is under way, and there can be one at a time; `lb events` \
                    tells whose it is";
        ApiError::new(ErrorKind::Busy, text)
    })?;
    let what = match &service {
        Some(name) => format!("captures the packets of service {name}"),
        None => "captures the packets of all services".to_owned(),
    };
    let attached = agent.attached.iter();
    let receiver = agent.captures.names.subscribe();
    agent.captures.names.send_replace(names);
    let run = Run {
        id,
        opened: Opened {
            service,
            snaplen,
            interfaces: attached.clone().map(|on| on.name.clone()).collect(),
        },
        interfaces: attached.map(|on| (on.index, on.name.clone())).collect(),
        names: receiver,
        _place: place,
    };
    Ok((run, what))
}

/// A capture under way.
struct Run {
    id: Option<ServiceId>,
    opened: Opened,
    interfaces: BTreeMap<u32, String>,
    names: watch::Receiver<Arc<Names>>,
    _place: OwnedSemaphorePermit,
}

impl Run {
    async fn start(mut self, mut tap: Tap, responder: Responder) {
        let started = tap.start(self.id, self.opened.snaplen);
        let readable = match started.and_then(|()| tap.readable()) {
            Ok(readable) => readable,
            Err(error) => return responder.send(Err(ApiError::failed(error))),
        };
        let (sender, packets) = mpsc::channel(BATCHES);
        let (stop, mut stopped) = oneshot::channel();
        let (last, closed) = oneshot::channel();
        responder.send(Ok(Reply::Capture(Box::new(Stream {
            opened: self.opened.clone(),
            packets,
            stop,
            closed,
        }))));
        let ended = self
            .forward(&mut tap, &readable, &sender, &mut stopped)
            .await;
        tap.stop();
        let reason = match ended {
            Ok(reason) => self.rest(&mut tap, &sender).await.err().or(reason),
            Err(error) => Some(error),
        };
        drop(sender);
        let lost = tap.lost().unwrap_or_else(|error| {
            warn!("capture: {error}");
            0
        });
        // A client that has left needs no last word.
        let _ = last.send(Closed { lost, reason });
    }

    /// Sends packets on until the client wants no more; why it ended otherwise.
    async fn forward(
        &mut self,
        tap: &mut Tap,
        readable: &Readable,
        sender: &mpsc::Sender<Vec<Packet>>,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Result<Option<String>, String> {
        let mut lease = interval(LEASE / 5);
        lease.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ready = async {
                // Without room for a batch nothing is read: the ring is the place to wait in,
                // where what is lost is counted.
                let permit = sender.reserve().await.ok()?;
                Some((permit, readable.ready().await))
            };
            tokio::select! {
                _ = &mut *stopped => return Ok(None),
                ready = ready => {
                    let Some((permit, ready)) = ready else {
                        return Ok(None);
                    };
                    let mut ready = ready.map_err(|error| error.to_string())?;
                    let batch = self.batch(tap)?;
                    if batch.len() < BATCH {
                        ready.clear_ready();
                    }
                    if !batch.is_empty() {
                        permit.send(batch);
                    }
                }
                _ = lease.tick() => tap.renew(),
                changed = self.names.changed() => {
                    if changed.is_err() {
                        return Ok(Some("the agent is ending".to_owned()));
                    }
                    if let (Some(id), Some(name)) = (self.id, &self.opened.service)
                        && self.names.borrow().service(name) != Some(id)
                    {
                        return Ok(Some(format!("service {name} is no longer what it was")));
                    }
                }
            }
        }
    }

    /// Sends on what was captured before the capture was ended.
    async fn rest(
        &mut self,
        tap: &mut Tap,
        sender: &mpsc::Sender<Vec<Packet>>,
    ) -> Result<(), String> {
        loop {
            let batch = self.batch(tap)?;
            if batch.is_empty() || sender.send(batch).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Up to [`BATCH`] packets; fewer if there are no more.
    fn batch(&self, tap: &mut Tap) -> Result<Vec<Packet>, String> {
        let mut batch = Vec::new();
        let names = self.names.borrow();
        let (wall, now) = (Timestamp::now(), sys::monotonic());
        while batch.len() < BATCH {
            let Some(packet) = tap.take().map_err(|error| error.to_string())? else {
                break;
            };
            batch.push(self.name(&names, packet, wall, now));
        }
        Ok(batch)
    }

    fn name(&self, names: &Names, packet: tap::Packet, wall: Timestamp, now: Duration) -> Packet {
        let ago = SignedDuration::try_from(now.saturating_sub(packet.time));
        let at = ago.ok().and_then(|ago| wall.checked_sub(ago).ok());
        let service = names.services.get(&packet.service);
        let backend = names.backends.get(&packet.backend);
        let number = |number: u16| (number != 0).then(|| format!("#{number}"));
        Packet {
            at: at.unwrap_or(wall),
            interface: match self.interfaces.get(&packet.ifindex) {
                Some(name) => name.clone(),
                None => format!("#{}", packet.ifindex),
            },
            length: packet.length,
            service: match service {
                Some((name, _)) => Some(name.clone()),
                None => number(packet.service),
            },
            forwarding: service.map(|(_, forwarding)| forwarding.name().to_owned()),
            backend: match backend {
                Some((name, _)) => Some(name.clone()),
                None => number(packet.backend),
            },
            address: backend.map(|(_, address)| *address),
            verdict: packet
                .verdict
                .map_or(FORWARDED, |verdict| verdict.label())
                .to_owned(),
            action: Action::of(packet.action),
            data: packet.data,
            sent: packet.sent,
        }
    }
}
