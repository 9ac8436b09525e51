//! The way to each backend: next hop, MAC addresses, interface and source address, asked of the
//! kernel over netlink and kept current. The packet path reads the result and looks nothing up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

mod links;
mod resolve;

use crate::plan::Path;
pub use links::{Down, Links, keep_watching_links};
use resolve::{Resolver, neighbour_of};

/// Quiet time after a change before the paths are worked out again: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// How often all is worked out again, and the neighbours' entries kept from growing stale.
const REFRESH: Duration = Duration::from_secs(30);
/// How often that is while a neighbour is missing.
const RETRY: Duration = Duration::from_secs(1);

/// The kernel cannot be asked.
#[derive(Debug, Error)]
pub enum NeighborError {
    #[error("netlink: {0}")]
    Io(#[from] std::io::Error),
    #[error("netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error("the netlink connection has ended")]
    Ended,
}

/// Ways to the backends, by address.
pub type Paths = BTreeMap<IpAddr, Path>;

/// What the kernel says of the ways to the backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    pub paths: Arc<Paths>,
    /// What is wrong with the ways to others, or with those.
    pub problems: BTreeMap<IpAddr, Problem>,
}

/// Why packets cannot be sent to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The kernel has no way there; in its words.
    NoRoute(String),
    /// The address is one of this host.
    Local,
    /// The next hop has not answered ARP or neighbour discovery.
    NoAnswer { next_hop: IpAddr, interface: String },
    /// The interface has no MAC addresses.
    NotEthernet { interface: String },
    /// The interface stands on another one, and native XDP cannot send out of it. There is a path,
    /// which generic mode can use.
    Stacked { interface: String, kind: String },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRoute(why) => f.write_str(why),
            Self::Local => f.write_str(
                "it is an address of this host; by forwarding = \"nat\" a backend must be on \
                     another",
            ),
            Self::NoAnswer {
                next_hop,
                interface,
            } => {
                write!(
                    f,
                    "{next_hop} on {interface} does not answer ARP or neighbour discovery"
                )
            }
            Self::NotEthernet { interface } => {
                write!(f, "{interface} is no Ethernet interface")
            }
            Self::Stacked { interface, kind } => write!(
                f,
                "it is reached by the {kind} device {interface}, out of which native XDP cannot \
                 send; reach it by a physical interface, or set xdp_mode = \"generic\""
            ),
        }
    }
}

/// Reports the ways to `targets` whenever they change, and has the next hops of those that are
/// `silent` confirmed. When the kernel cannot be asked, it is asked
/// again after a second; meanwhile the ways last reported stay in use.
pub async fn keep_watching(
    targets: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    mut silent: mpsc::UnboundedReceiver<IpAddr>,
    report: mpsc::UnboundedSender<Arc<Ways>>,
) {
    while let Err(error) = watch(targets.clone(), &mut silent, report.clone()).await {
        warn!("watching neighbours: {error}; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

/// Reports the ways to `targets` whenever they change, until nobody listens. The next hops of those
/// that are `silent` are confirmed.
pub async fn watch(
    mut targets: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    silent: &mut mpsc::UnboundedReceiver<IpAddr>,
    report: mpsc::UnboundedSender<Arc<Ways>>,
) -> Result<(), NeighborError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    let mut resolver = Resolver::new(handle);
    let mut known: Option<Arc<Ways>> = None;
    let mut doubts = Doubts::default();
    let mut wake = Instant::now();
    let mut doubted = BTreeSet::new();
    let mut confirm = wake;
    let result = loop {
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    break Ok(());
                }
                wake = Instant::now();
            }
            message = messages.next() => {
                let Some((message, _)) = message else { break Err(NeighborError::Ended) };
                if matters(&message.payload, &resolver) {
                    wake = wake.min(Instant::now() + SETTLE);
                }
            }
            Some(target) = silent.recv() => {
                if doubted.is_empty() {
                    confirm = Instant::now() + SETTLE;
                }
                doubted.insert(target);
            }
            () = sleep_until(confirm), if !doubted.is_empty() => {
                if let Err(error) = resolver.confirm(&std::mem::take(&mut doubted)).await {
                    break Err(error);
                }
            }
            () = sleep_until(wake) => {
                let wanted = targets.borrow_and_update().clone();
                let ways = match resolver.resolve(&wanted).await {
                    Ok(ways) => ways,
                    Err(error) => break Err(error),
                };
                let missing = wanted.iter().any(|target| !ways.paths.contains_key(target));
                wake = Instant::now() + if missing { RETRY } else { REFRESH };
                for (target, problem) in doubts.lasting(&ways.problems) {
                    warn!(%target, "the way to a backend: {problem}");
                }
                if known.as_deref() != Some(&ways) {
                    note_changes(known.as_deref(), &ways);
                    let ways = Arc::new(ways);
                    known = Some(ways.clone());
                    if report.send(ways).is_err() {
                        break Ok(());
                    }
                }
            }
        }
    };
    connection.abort();
    result
}

/// What is wrong with the ways to these targets, seen once and without sending anything.
pub async fn survey(
    targets: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<IpAddr, Problem>, NeighborError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = Resolver::new(handle).survey(targets).await;
    connection.abort();
    result
}

/// By which interface packets to these targets leave, seen once and without sending anything.
pub async fn routes(
    targets: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<IpAddr, Result<u32, Problem>>, NeighborError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = Resolver::new(handle).routes(targets).await;
    connection.abort();
    result
}

/// Whether a netlink message may change a path.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>, resolver: &Resolver) -> bool {
    let NetlinkPayload::InnerMessage(message) = payload else {
        return true;
    };
    match message {
        RouteNetlinkMessage::NewNeighbour(neighbour)
        | RouteNetlinkMessage::DelNeighbour(neighbour) => {
            neighbour_of(neighbour).is_some_and(|found| resolver.differs(&found))
        }
        _ => true,
    }
}

/// Which problems are worth a line of the log, each once.
#[derive(Default)]
struct Doubts {
    last: BTreeMap<IpAddr, Problem>,
    told: BTreeMap<IpAddr, Problem>,
}

impl Doubts {
    /// Those that are new. A next hop that was asked only now has had no time to answer: that one
    /// does not is told when it is so the second time.
    fn lasting(&mut self, now: &BTreeMap<IpAddr, Problem>) -> Vec<(IpAddr, Problem)> {
        let before = std::mem::replace(&mut self.last, now.clone());
        self.told
            .retain(|target, problem| now.get(target) == Some(problem));
        let new = now.iter().filter(|(target, problem)| {
            let lasts = before.get(*target) == Some(*problem);
            // Told where it is one: in the status of the backends by NAT.
            **problem != Problem::Local
                && (lasts || !matches!(problem, Problem::NoAnswer { .. }))
                && self.told.get(*target) != Some(*problem)
        });
        let new: Vec<_> = new
            .map(|(target, problem)| (*target, problem.clone()))
            .collect();
        self.told.extend(new.iter().cloned());
        new
    }
}

fn note_changes(before: Option<&Ways>, after: &Ways) {
    for (target, path) in after.paths.iter() {
        let known = before.and_then(|before| before.paths.get(target));
        if known != Some(path) && path.is_local() {
            info!(%target, "path: this host itself");
        } else if known != Some(path) {
            let mac = resolve::mac_text(path.hop.dst_mac());
            info!(%target, mac, interface = path.hop.ifindex, source = %path.source, "path");
        }
    }
    let lost = before.into_iter().flat_map(|before| before.paths.keys());
    for target in lost.filter(|target| !after.paths.contains_key(target)) {
        warn!(%target, "no path any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_has_the_time_to_answer_before_it_is_complained_about() {
        let target = IpAddr::from([10, 0, 0, 11]);
        let with = |problem: Problem| BTreeMap::from([(target, problem)]);
        let silent = with(Problem::NoAnswer {
            next_hop: target,
            interface: "eth0".to_owned(),
        });
        let nothing = BTreeMap::new();
        let mut doubts = Doubts::default();
        let mut told = |now: &BTreeMap<_, _>| doubts.lasting(now).len();
        assert_eq!(told(&silent), 0);
        assert_eq!(told(&nothing), 0);
        assert_eq!(told(&silent), 0);
        assert_eq!(told(&silent), 1);
        assert_eq!(told(&silent), 0, "once");
        assert_eq!(told(&nothing), 0);
        assert_eq!(told(&silent), 0);
        // What is certain is told at once, but for what the status tells.
        assert_eq!(told(&with(Problem::NoRoute("none".to_owned()))), 1);
        assert_eq!(told(&with(Problem::Local)), 0);
    }
}
