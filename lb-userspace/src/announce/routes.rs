//! The routes of announced VIPs in the kernel.
//!
//! One for each VIP, to the address alone (/32, /128), of type `blackhole`, in the configured table.
//! No rule of the kernel's asks the usual one, 108, so that such a route changes nothing for any
//! packet: it is there to be seen by routing daemons. Where the main table is configured, the table
//! of this host's own addresses still goes before it, and the rule of probes by way of VIPs too.
//!
//! An agent's routes are those of its protocol number and its metric, in whatever table: they are
//! adopted by the next agent with the same control socket, and no other agent touches them. What
//! others remove or change is put back as soon as netlink tells.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::api::DEFAULT_SOCKET;
use crate::neighbor::NeighborError;

/// Protocol number of the routes (`proto` of `ip route`), which nobody else uses
/// (/etc/iproute2/rt_protos).
pub const PROTOCOL: u8 = 108;
/// Metric of those of the agent with the usual control socket.
const METRIC: u32 = 108;
/// The others have one in this range: less than 2^24, since FRR takes what is above for a distance.
const OTHER_METRICS: std::ops::Range<u32> = 1_000..65_000;
/// The kernel's main table.
pub const MAIN_TABLE: u32 = 254;

/// Quiet time after a change by others before it is looked at: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// How often all is looked at again, lest a message was lost.
const REFRESH: Duration = Duration::from_secs(30);
/// How often that is while the kernel cannot be asked or refuses.
const RETRY: Duration = Duration::from_secs(1);

/// The routes that are to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub table: u32,
    pub vips: BTreeSet<IpAddr>,
}

/// What the keeper of the routes is told.
#[derive(Debug)]
pub struct Order {
    pub wanted: Wanted,
    /// Who waits for it to be done, or for why it is not.
    pub done: Option<oneshot::Sender<Result<(), String>>>,
}

/// What the keeper of the routes tells when it is other than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// VIPs whose routes stand.
    pub standing: BTreeSet<IpAddr>,
    /// Those of them that somebody else had removed or changed, and that were put back.
    pub put_back: BTreeSet<IpAddr>,
    /// Why the routes are not as they should be.
    pub error: Option<String>,
}

/// By which the routes of agents on one host are told apart: the metric of those of the agent with
/// this control socket.
pub fn metric(control_socket: &Path) -> u32 {
    if control_socket == Path::new(DEFAULT_SOCKET) {
        return METRIC;
    }
    let hash = lb_common::hash::name(0, control_socket.as_os_str().as_encoded_bytes());
    let room = OTHER_METRICS.end - OTHER_METRICS.start;
    OTHER_METRICS.start + (hash % u64::from(room)) as u32
}

/// VIPs whose routes an agent with this metric has left.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn adopt(metric: u32) -> Result<BTreeSet<IpAddr>, NeighborError> {
    let kernel = Kernel::connect(metric)?;
    let routes = kernel.own().await?;
    Ok(routes.into_iter().map(|route| route.vip).collect())
}

/// Removes all routes of the agent with this metric.
///
/// # Errors
/// The kernel cannot be asked, or refuses.
pub async fn remove_all(metric: u32) -> Result<(), NeighborError> {
    let kernel = Kernel::connect(metric)?;
    for route in kernel.own().await? {
        kernel.remove(route).await?;
    }
    Ok(())
}

/// Keeps the routes as ordered, from the first order on, until nobody orders any more; those to the
/// `adopted` VIPs stand already. When the kernel cannot be asked, it is asked again after a second;
/// meanwhile the routes stay as they are.
pub async fn keep(
    metric: u32,
    adopted: BTreeSet<IpAddr>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    report: mpsc::UnboundedSender<Report>,
) {
    let Some(order) = orders.recv().await else {
        return;
    };
    let mut keeper = Keeper {
        metric,
        wanted: order.wanted,
        waiting: order.done.into_iter().collect(),
        last: Report {
            standing: adopted,
            ..Report::default()
        },
        report,
    };
    while let Err(error) = keeper.watch(&mut orders).await {
        warn!("routes of announced VIPs: {error}; trying again");
        keeper.failed(error.to_string());
        tokio::time::sleep(RETRY).await;
    }
}

struct Keeper {
    metric: u32,
    wanted: Wanted,
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    last: Report,
    report: mpsc::UnboundedSender<Report>,
}

impl Keeper {
    /// Makes the routes so now, and whenever they are not.
    async fn watch(
        &mut self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), NeighborError> {
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        let _connection = Task(tokio::spawn(connection));
        let kernel = Kernel::connect(self.metric)?;
        let mut wake = Instant::now();
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some(Order { wanted, done }) = order else { return Ok(()) };
                    self.wanted = wanted;
                    self.waiting.extend(done);
                    wake = Instant::now();
                }
                message = messages.next() => {
                    let Some((message, _)) = message else { return Err(NeighborError::Ended) };
                    if self.concerns(&message.payload) {
                        wake = wake.min(Instant::now() + SETTLE);
                    }
                }
                () = sleep_until(wake) => {
                    let done = self.set(&kernel).await?;
                    wake = Instant::now() + if done { REFRESH } else { RETRY };
                }
            }
        }
    }

    /// Whether a message may be about one of the routes: it is about a VIP, or some were lost.
    fn concerns(&self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        match payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => destination(route).is_some_and(|vip| self.wanted.vips.contains(&vip)),
            NetlinkPayload::InnerMessage(_) => false,
            _ => true,
        }
    }

    /// Adds what is missing, removes what is too much; whether the kernel has refused nothing.
    async fn set(&mut self, kernel: &Kernel) -> Result<bool, NeighborError> {
        let found = kernel.own().await?;
        let mut refused = None;
        let mut standing = BTreeSet::new();
        let mut put_back = BTreeSet::new();
        for vip in self.wanted.vips.clone() {
            let route = Route {
                vip,
                table: self.wanted.table,
                kind: RouteType::BlackHole,
            };
            if found.contains(&route) {
                standing.insert(vip);
                continue;
            }
            match kernel.put(route).await {
                Ok(()) => {
                    if self.last.standing.contains(&vip) {
                        put_back.insert(vip);
                    }
                    standing.insert(vip);
                }
                Err(error) => refused = Some(format!("the route to {vip}: {error}")),
            }
        }
        // Only now, so that a VIP that moves to another table is announced all the time.
        for route in found {
            // One of another type there was replaced above.
            if route.table == self.wanted.table && self.wanted.vips.contains(&route.vip) {
                continue;
            }
            if let Err(error) = kernel.remove(route).await {
                refused = Some(format!("removing the route to {}: {error}", route.vip));
            }
        }
        let result = refused.clone().map_or(Ok(()), Err);
        let done = result.is_ok();
        for waiting in self.waiting.drain(..) {
            // Who has left does not care.
            let _ = waiting.send(result.clone());
        }
        self.tell(Report {
            standing,
            put_back,
            error: refused,
        });
        Ok(done)
    }

    fn failed(&mut self, why: String) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(why.clone()));
        }
        self.tell(Report {
            standing: self.last.standing.clone(),
            put_back: BTreeSet::new(),
            error: Some(why),
        });
    }

    fn tell(&mut self, report: Report) {
        if report != self.last {
            self.last = Report {
                put_back: BTreeSet::new(),
                ..report.clone()
            };
            // The agent ends.
            let _ = self.report.send(report);
        }
    }
}

/// A route of the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    vip: IpAddr,
    table: u32,
    kind: RouteType,
}

/// A connection to the kernel's routing, with the metric of this agent's routes.
struct Kernel {
    handle: Handle,
    metric: u32,
    _task: Task,
}

/// A task that ends with this value.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Kernel {
    /// Has the kernel give only what is asked for: its tables may have a million routes.
    fn connect(metric: u32) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self {
            handle,
            metric,
            _task: Task(tokio::spawn(connection)),
        })
    }

    /// The agent's own routes, in whatever table.
    async fn own(&self) -> Result<Vec<Route>, NeighborError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessage::default();
            wanted.header.address_family = family;
            wanted.header.protocol = RouteProtocol::Other(PROTOCOL);
            let mut routes = self.handle.route().get(wanted).execute();
            loop {
                match routes.try_next().await {
                    Ok(Some(route)) => found.extend(owned(&route, self.metric)),
                    Ok(None) => break,
                    // This kernel has no IPv6.
                    Err(Error::NetlinkError(error))
                        if matches!(
                            error.to_io().raw_os_error(),
                            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                        ) =>
                    {
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(found)
    }

    /// Sets a route, in the place of what else stands there with this agent's metric.
    async fn put(&self, route: Route) -> Result<(), NeighborError> {
        let message = self.message(route);
        Ok(self.handle.route().add(message).replace().execute().await?)
    }

    async fn remove(&self, route: Route) -> Result<(), NeighborError> {
        match self.handle.route().del(self.message(route)).execute().await {
            // Somebody else was quicker.
            Err(Error::NetlinkError(error))
                if error.to_io().raw_os_error() == Some(libc::ESRCH) =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn message(&self, route: Route) -> RouteMessage {
        let Route { vip, table, kind } = route;
        let protocol = RouteProtocol::Other(PROTOCOL);
        match vip {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .table_id(table)
                .kind(kind)
                .protocol(protocol)
                .priority(self.metric)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .table_id(table)
                .kind(kind)
                .protocol(protocol)
                .priority(self.metric)
                .build(),
        }
    }
}

/// The route, if it is one of the agent with this metric.
fn owned(route: &RouteMessage, metric: u32) -> Option<Route> {
    let mut table = u32::from(route.header.table);
    let mut found = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => found = Some(*priority),
            _ => {}
        }
    }
    let own = found == Some(metric) && route.header.protocol == RouteProtocol::Other(PROTOCOL);
    Some(Route {
        vip: destination(route).filter(|_| own)?,
        table,
        kind: route.header.kind,
    })
}

/// The address that a route is to, if it is to one alone.
fn destination(route: &RouteMessage) -> Option<IpAddr> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        })?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    (route.header.destination_prefix_length == whole).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_with_other_control_sockets_have_other_metrics() {
        let of = |socket: &str| metric(Path::new(socket));
        assert_eq!(of(DEFAULT_SOCKET), METRIC);
        assert_ne!(of("/run/a.sock"), of("/run/b.sock"));
        assert_eq!(of("/run/a.sock"), of("/run/a.sock"));
        assert!(OTHER_METRICS.contains(&of("/run/a.sock")));
        assert!(!OTHER_METRICS.contains(&METRIC));
    }

    #[test]
    fn only_routes_of_its_protocol_and_metric_are_an_agents_own() {
        let vip = IpAddr::from([203, 0, 113, 10]);
        let found = |(metric, protocol): (u32, u8), own: u32| {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(203, 0, 113, 10), 32)
                .table_id(1_000)
                .kind(RouteType::BlackHole)
                .priority(metric)
                .build();
            message.header.protocol = RouteProtocol::Other(protocol);
            owned(&message, own)
        };
        let route = Route {
            vip,
            table: 1_000,
            kind: RouteType::BlackHole,
        };
        assert_eq!(found((METRIC, PROTOCOL), METRIC), Some(route));
        assert_eq!(found((METRIC + 1, PROTOCOL), METRIC), None);
        assert_eq!(found((METRIC, 12), METRIC), None);
    }
}
