//! Probes that go the way of the service's traffic (`via = "vip"`): to the VIP, by the backend's MAC
//! address or inside its tunnel, so that a backend that does not own the VIP or take its tunnel apart
//! is found.
//!
//! ```text
//!   probe's socket ──▶ routing: mark ──▶ TUN device ──▶ carrier: whose flow? ──▶ packet socket
//!   (kernel's TCP)     rule, table                      next hop, outer header   Ethernet frame
//!        ▲                                                                            │
//!        └─────────────── the kernel, as any packet for this host ◀── backend ◀───────┘
//! ```
//!
//! The kernel's own TCP speaks with the VIP; only its way out is changed. All probes share one mark,
//! one rule and one table, which has a route for each probed VIP and nothing else. The device lives
//! as long as its descriptor, so a killed agent leaves no route behind, and the rule that it leaves
//! leads to an empty table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tracing::{debug, info};

use super::failure::Failure;
use crate::model::{Node, ProbeKind, ProbeSpec, Via};
use crate::plan::Path;

mod frame;
mod routes;
mod sys;

use frame::Flow;
pub use routes::{PRIORITY, RouteError, TABLE, remove_rules};
use sys::PacketSocket;
pub use sys::try_tun;

/// Longest packet into the device, bytes: what every link must carry (RFC 8200, section 5). With any
/// outer header it still fits links of 1,340 bytes, so no probe is too long for its way.
const MTU: u32 = 1280;
/// A closed connection's last packets are still carried for so long.
const LINGER: Duration = Duration::from_secs(10);

/// Carries packets of probes to backends the way their services' traffic goes.
#[derive(Debug)]
pub struct Carrier {
    shared: Arc<Shared>,
    /// Absent until the first probe wants it, and after it has turned out not to work.
    device: tokio::sync::Mutex<Option<Device>>,
}

#[derive(Debug)]
struct Shared {
    socket: io::Result<PacketSocket>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    flows: BTreeMap<Flow, Entry>,
    paths: Arc<BTreeMap<IpAddr, Path>>,
    node: Option<Node>,
}

#[derive(Debug)]
struct Entry {
    via: Via,
    until: Instant,
    /// How much longer after each packet.
    lifetime: Duration,
    carried: Arc<AtomicU64>,
}

/// The TUN device; it goes with this value.
#[derive(Debug)]
struct Device {
    index: u32,
    /// VIPs that have a route.
    vips: BTreeSet<IpAddr>,
    reader: AbortHandle,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A socket whose packets are carried.
#[derive(Debug)]
pub struct Ticket {
    carried: Arc<AtomicU64>,
}

impl Ticket {
    /// Whether any packet has come by.
    pub fn used(&self) -> bool {
        self.carried.load(Ordering::Relaxed) > 0
    }
}

impl Carrier {
    /// Opens the socket that frames leave by, which takes `CAP_NET_RAW`: to be called before
    /// capabilities are given up. If it cannot be opened, each probe that needs it says why.
    pub fn open() -> Self {
        Self {
            shared: Arc::new(Shared {
                socket: PacketSocket::open(),
                state: Mutex::default(),
            }),
            device: tokio::sync::Mutex::default(),
        }
    }

    /// Sets what outer headers are made with.
    pub fn set_node(&self, node: &Node) {
        self.shared.state().node = Some(node.clone());
    }

    /// Sets the ways to backends: those that the data plane uses.
    pub fn set_paths(&self, paths: Arc<BTreeMap<IpAddr, Path>>) {
        self.shared.state().paths = paths;
    }

    /// Has the packets of a socket that is not yet bound carried: gives it a mark and an address.
    /// `protocol`: that of the IP header. `None`: the backend is this host, where packets to the VIP
    /// stay anyway.
    pub async fn admit(
        &self,
        socket: SockRef<'_>,
        protocol: u8,
        spec: &ProbeSpec,
        via: Via,
    ) -> Result<Option<Ticket>, Failure> {
        let is_local = |path: &Path| path.is_local();
        if (self.shared.state().paths.get(&via.backend)).is_some_and(is_local) {
            return Ok(None);
        }
        if let Err(error) = &self.shared.socket {
            return Err(Failure::internal(format!(
                "via = \"vip\" needs a packet socket (CAP_NET_RAW at the agent's start): {error}"
            )));
        }
        let source = source_of(spec, via)?;
        self.prepare(spec.target.ip()).await?;
        let bound = socket
            .set_mark(routes::MARK)
            .and_then(|()| socket.bind(&SockAddr::from(SocketAddr::new(source, 0))))
            .and_then(|()| socket.local_addr())
            .map_err(|error| Failure::internal(format!("cannot send from {source}: {error}")))?;
        let Some(local) = bound.as_socket() else {
            return Err(Failure::internal("the kernel gave the socket no address"));
        };
        let flow = Flow {
            protocol,
            source: (local.ip(), local.port()),
            target: (spec.target.ip(), spec.target.port()),
        };
        let carried = Arc::new(AtomicU64::new(0));
        let now = Instant::now();
        let lifetime = lifetime(spec) + LINGER;
        let entry = Entry {
            via,
            until: now + lifetime,
            lifetime,
            carried: carried.clone(),
        };
        let mut state = self.shared.state();
        state.flows.retain(|_, entry| now < entry.until);
        state.flows.insert(flow, entry);
        Ok(Some(Ticket { carried }))
    }

    /// Takes the device away, and the rule if there is one.
    ///
    /// # Errors
    /// The rule cannot be removed; it leads nowhere.
    pub async fn close(&self) -> Result<(), routes::RouteError> {
        match self.device.lock().await.take() {
            Some(device) => {
                device.reader.abort();
                drop(device);
                routes::remove_rules().await
            }
            None => Ok(()),
        }
    }

    /// Has everything set up anew for the next probe: some other program may have removed it.
    pub async fn doubt(&self) {
        *self.device.lock().await = None;
    }

    /// Makes the device if there is none, and the VIP's route.
    async fn prepare(&self, vip: IpAddr) -> Result<(), Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::internal(format!("via = \"vip\": {what}: {error}"))
        };
        let mut device = self.device.lock().await;
        let device = match &mut *device {
            Some(device) => device,
            absent => {
                let (file, name) =
                    sys::open_tun().map_err(|error| failed("opening /dev/net/tun", &error))?;
                let index = routes::set_up(&name, MTU)
                    .await
                    .map_err(|error| failed(&name, &error))?;
                info!(interface = name, "probes by way of VIPs leave by it");
                let reader = tokio::spawn(carry(self.shared.clone(), file)).abort_handle();
                absent.insert(Device {
                    index,
                    vips: BTreeSet::new(),
                    reader,
                })
            }
        };
        if !device.vips.contains(&vip) {
            routes::lead(vip, device.index)
                .await
                .map_err(|error| failed("setting its rule and route", &error))?;
            device.vips.insert(vip);
        }
        Ok(())
    }
}

/// How long a connection may be silent before further packets.
fn lifetime(spec: &ProbeSpec) -> Duration {
    let kept = match &*spec.kind {
        ProbeKind::Http(http) => http.reuse.map_or(Duration::ZERO, |reuse| reuse.max_age),
        ProbeKind::Grpc { watch: true, .. } => super::grpc::watch::UNUSED,
        _ => Duration::ZERO,
    };
    spec.timeout + kept
}

/// The address that a probe comes from: as configured, else that of this host on the way to the
/// backend, else, where that is of the other family, on the way to the VIP.
fn source_of(spec: &ProbeSpec, via: Via) -> Result<IpAddr, Failure> {
    if let Some(source) = spec.egress.source {
        return Ok(source);
    }
    let vip = spec.target.ip();
    let toward = if via.backend.is_ipv4() == vip.is_ipv4() {
        via.backend
    } else {
        vip
    };
    let found = chosen(toward).map_err(|error| {
        Failure::internal(format!(
            "this host has no address for packets to {toward} ({error}); set health.source"
        ))
    })?;
    if found == vip {
        return Err(Failure::internal(format!(
            "the VIP {vip} is an address of this host, where its packets stay; remove it from its \
             interface"
        )));
    }
    Ok(found)
}

/// The kernel's choice of a source address for packets to `target`. Nothing is sent.
fn chosen(target: IpAddr) -> io::Result<IpAddr> {
    let any = match target {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // The port is not used: connecting a datagram socket asks for a route.
    socket.connect((target, 9))?;
    Ok(socket.local_addr()?.ip())
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a packet of the device on. What belongs to no probe is dropped: the kernel's own
    /// neighbour discovery, or another program's traffic with the same mark.
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let Some(flow) = Flow::of(packet) else {
            return Ok(());
        };
        let (path, via) = {
            let mut state = self.state();
            let Some(entry) = state.flows.get_mut(&flow) else {
                return Ok(());
            };
            entry.until = Instant::now() + entry.lifetime;
            entry.carried.fetch_add(1, Ordering::Relaxed);
            let via = entry.via;
            let path = state.paths.get(&via.backend).copied();
            let path = path.zip(state.node.as_ref());
            // Without a way the service's own packets are dropped, too.
            let Some((path, node)) = path else {
                return Ok(());
            };
            let Some(path) = path.through(via.forwarding, node) else {
                return Ok(());
            };
            (path, via)
        };
        let wrapped;
        let bytes = match frame::wrap(packet, flow.entropy(), via, &path) {
            None => packet,
            Some(outer) => {
                wrapped = outer;
                &wrapped
            }
        };
        match &self.socket {
            Ok(socket) => socket.send(bytes, &path.hop),
            Err(_) => Ok(()),
        }
    }
}

/// Reads the device for as long as it lives.
async fn carry(shared: Arc<Shared>, device: AsyncFd<std::fs::File>) {
    let mut buffer = vec![0; MTU as usize];
    loop {
        let read = device
            .async_io(tokio::io::Interest::READABLE, |mut file| {
                io::Read::read(&mut file, &mut buffer)
            })
            .await;
        match read {
            Ok(length) => {
                if let Err(error) = shared.send(&buffer[..length]) {
                    debug!("a probe's packet was not sent: {error}");
                }
            }
            Err(error) => {
                tracing::error!("the device of probes by way of VIPs: {error}");
                return;
            }
        }
    }
}
