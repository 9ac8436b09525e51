//! A probe's socket: how its packets leave this host.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockAddr, SockRef};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::connect;
use super::failure::Failure;
use super::trace::Trace;
use super::via::{Carrier, Ticket};
use super::{proxy_protocol, text};
use crate::model::{ProbeSpec, ProxyProtocol};

/// What must have left by then is taken not to leave at all: the first packet of a connection is on
/// its way when the call that opens it returns.
const UNDERWAY: Duration = Duration::from_millis(500);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Opens connections to where probes ask.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    carrier: Option<Arc<Carrier>>,
}

/// Begins a connection with the PROXY protocol's header.
async fn introduce(
    stream: &TcpStream,
    version: ProxyProtocol,
    local: SocketAddr,
    spec: &ProbeSpec,
    trace: &mut Trace,
) -> Result<(), Failure> {
    let header = proxy_protocol::header(version, local, spec.target);
    let mut rest = header.as_slice();
    while !rest.is_empty() {
        let writable = stream.writable().await;
        match writable.and_then(|()| stream.try_write(rest)) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Failure::connecting(&error)),
        }
    }
    trace.step("proxy", format!("\"{}\"", text::excerpt(&header)));
    Ok(())
}

impl Dialer {
    pub const fn new(carrier: Arc<Carrier>) -> Self {
        Self {
            carrier: Some(carrier),
        }
    }

    /// Connects to the probe's target.
    pub async fn connect(&self, spec: &ProbeSpec, trace: &mut Trace) -> Result<TcpStream, Failure> {
        self.connect_with(spec, trace, |_| Ok(())).await
    }

    /// As [`Dialer::connect`], from a socket that `prepare` has changed.
    pub async fn connect_with(
        &self,
        spec: &ProbeSpec,
        trace: &mut Trace,
        prepare: impl FnOnce(&TcpSocket) -> io::Result<()>,
    ) -> Result<TcpStream, Failure> {
        let socket = connect::open(spec.target)
            .and_then(|socket| prepare(&socket).map(|()| socket))
            .map_err(|error| Failure::connecting(&error))?;
        let ticket = self.leave(SockRef::from(&socket), TCP, spec).await?;
        if let Some(via) = spec.egress.via {
            let how = via.forwarding.name();
            trace.step("via", format!("{how} to {}", via.backend));
        }
        let connecting = connect::connect(socket, spec.target);
        let (stream, local) = self.watched(ticket, spec, connecting).await?;
        trace.step("connect", format_args!("{} from {local}", spec.target));
        if let Some(version) = spec.egress.proxy_protocol {
            // Apart, as above.
            Box::pin(introduce(&stream, version, local, spec, trace)).await?;
        }
        Ok(stream)
    }

    /// A socket that exchanges datagrams with the probe's target only. `None` in the place of the
    /// ticket: its packets leave as the kernel routes them.
    pub async fn datagrams(
        &self,
        spec: &ProbeSpec,
    ) -> Result<(UdpSocket, Option<Ticket>), Failure> {
        let open = || -> io::Result<UdpSocket> {
            let domain = socket2::Domain::for_address(spec.target);
            let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket.into())
        };
        let socket = open().map_err(|error| Failure::connecting(&error))?;
        let ticket = self.leave(SockRef::from(&socket), UDP, spec).await?;
        // Connected, so that only the target's datagrams and ICMP errors come in.
        let connected = socket.connect(spec.target).await;
        connected.map_err(|error| Failure::connecting(&error))?;
        Ok((socket, ticket))
    }

    /// Sets what decides on the way of a socket's packets.
    async fn leave(
        &self,
        socket: SockRef<'_>,
        protocol: u8,
        spec: &ProbeSpec,
    ) -> Result<Option<Ticket>, Failure> {
        let egress = &spec.egress;
        if let Some(via) = egress.via {
            let Some(carrier) = &self.carrier else {
                return Err(Failure::internal(
                    "via = \"vip\" needs the ways that the agent knows; run `lb probe` without --config",
                ));
            };
            // Apart, since every probe in flight would be as large; likewise below.
            return Box::pin(carrier.admit(socket, protocol, spec, via)).await;
        }
        let set = |what: &str, result: io::Result<()>| {
            result.map_err(|error| Failure::internal(format!("cannot send {what}: {error}")))
        };
        if let Some(mark) = egress.mark {
            set(&format!("with mark {mark}"), socket.set_mark(mark))?;
        }
        if let Some(name) = &egress.interface {
            let bound = socket.bind_device(Some(name.as_bytes()));
            set(&format!("by interface {name}"), bound)?;
        }
        if let Some(source) = egress.source {
            let at = SockAddr::from(SocketAddr::new(source, 0));
            set(&format!("from {source}"), socket.bind(&at))?;
        }
        Ok(None)
    }

    /// The end of `connecting`, unless its packets turn out not to take the way that they should.
    async fn watched<T>(
        &self,
        ticket: Option<Ticket>,
        spec: &ProbeSpec,
        connecting: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some(ticket) = ticket else {
            return connecting.await;
        };
        let mut connecting = std::pin::pin!(connecting);
        let soon = UNDERWAY.min(spec.timeout / 2);
        let result = match tokio::time::timeout(soon, &mut connecting).await {
            Ok(result) => result,
            Err(_) if ticket.used() => connecting.await,
            Err(_) => Err(Failure::internal("")),
        };
        self.verify(&ticket).await?;
        result
    }

    /// Says so if nothing has gone the way of the ticket.
    pub async fn verify(&self, ticket: &Ticket) -> Result<(), Failure> {
        if ticket.used() {
            return Ok(());
        }
        if let Some(carrier) = &self.carrier {
            Box::pin(carrier.doubt()).await;
        }
        Err(Failure::internal(
            "the probe's packets did not come to lb's device: is the VIP an address of this host, or \
             was a rule of `ip rule` put before that of priority 108?",
        ))
    }
}
