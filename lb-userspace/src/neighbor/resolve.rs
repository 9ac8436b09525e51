//! One look at the kernel's links, routes and neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use lb_common::abi::Hop;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tracing::{debug, warn};

use super::{NeighborError, Paths};
use crate::plan::{Path, Tunnel};

type Mac = [u8; 6];

/// No IP packet is longer, though a loopback's MTU is.
const LONGEST: u32 = 65_535;

/// An interface that frames leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    mac: Mac,
    mtu: u32,
}

/// The kernel's choice for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    hop: NextHop,
    source: IpAddr,
    /// The route's own, where it is less than the link's: configured, or found out.
    mtu: Option<u32>,
}

/// Where packets to a target go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NextHop {
    ifindex: u32,
    address: IpAddr,
}

/// A neighbour's entry as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    hop: NextHop,
    /// Absent while it is not resolved.
    mac: Option<Mac>,
    /// Whether the kernel has confirmed it lately, or never needs to.
    fresh: bool,
}

/// Asks the kernel, and remembers the last answer for each next hop.
pub struct Resolver {
    handle: Handle,
    next_hops: BTreeMap<NextHop, Option<Mac>>,
    last: Paths,
    unreachable: BTreeSet<IpAddr>,
}

impl Resolver {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            next_hops: BTreeMap::new(),
            last: Paths::new(),
            unreachable: BTreeSet::new(),
        }
    }

    /// Whether a neighbour's news is about a next hop in use, and new.
    pub fn differs(&self, found: &Neighbour) -> bool {
        match self.next_hops.get(&found.hop) {
            Some(known) => found.mac.is_some() && *known != found.mac,
            None => false,
        }
    }

    /// The ways to all targets. A next hop that no longer answers keeps its last MAC address: it
    /// is for the probes to say whether a backend lives.
    pub async fn resolve(&mut self, targets: &BTreeSet<IpAddr>) -> Result<Paths, NeighborError> {
        let links = self.links().await?;
        let neighbours = self.neighbours().await?;
        let mut paths = Paths::new();
        self.next_hops.clear();
        for target in targets {
            let Some(Route { hop, source, mtu }) = self.route(*target).await? else {
                if let Some(path) = self.last.get(target) {
                    paths.insert(*target, *path);
                }
                continue;
            };
            let neighbour = neighbours.get(&hop);
            let mac = neighbour.and_then(|neighbour| neighbour.mac);
            self.next_hops.insert(hop, mac);
            if neighbour.is_none_or(|neighbour| !neighbour.fresh) {
                self.ask_for(hop).await;
            }
            let mac = mac.or_else(|| self.last_mac(*target, hop));
            if let (Some(dst), Some(link)) = (mac, links.get(&hop.ifindex)) {
                let hop = Hop {
                    dst_mac: mac_words(dst),
                    src_mac: mac_words(link.mac),
                    ifindex: hop.ifindex,
                };
                let path = Path {
                    hop,
                    source,
                    mtu: mtu.unwrap_or(u32::MAX).min(link.mtu).min(LONGEST),
                    tunnel: Tunnel::default(),
                };
                paths.insert(*target, path);
            }
        }
        self.last = paths.clone();
        Ok(paths)
    }

    fn last_mac(&self, target: IpAddr, hop: NextHop) -> Option<Mac> {
        let path = self
            .last
            .get(&target)
            .filter(|path| path.hop.ifindex == hop.ifindex)?;
        Some(mac_bytes(&path.hop.dst_mac))
    }

    async fn links(&self) -> Result<BTreeMap<u32, Link>, NeighborError> {
        let mut found = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            let mac = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Address(address) => Mac::try_from(address.as_slice()).ok(),
                    _ => None,
                });
            let mtu = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            if let (Some(mac), Some(mtu)) = (mac, mtu) {
                found.insert(link.header.index, Link { mac, mtu });
            }
        }
        Ok(found)
    }

    async fn neighbours(&self) -> Result<BTreeMap<NextHop, Neighbour>, NeighborError> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut dump = self
                .handle
                .neighbours()
                .get()
                .set_address_family(family)
                .execute();
            while let Some(message) = dump.try_next().await? {
                if let Some(neighbour) = neighbour_of(&message) {
                    found.insert(neighbour.hop, neighbour);
                }
            }
        }
        Ok(found)
    }

    /// The kernel's choice; `None` where there is no way.
    async fn route(&mut self, target: IpAddr) -> Result<Option<Route>, NeighborError> {
        let message = match target {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut routes = self.handle.route().get(message).execute();
        let problem = match routes.try_next().await {
            Ok(Some(route)) if route.header.kind == RouteType::Unicast => {
                let found = next_hop(&route, target);
                if found.is_some() {
                    self.unreachable.remove(&target);
                    return Ok(found);
                }
                "its route names no interface or source address".to_owned()
            }
            Ok(Some(route)) if route.header.kind == RouteType::Local => {
                "it is an address of this host; a backend must be on another".to_owned()
            }
            Ok(Some(route)) => format!("its route is of kind {:?}", route.header.kind),
            Ok(None) => "there is no route".to_owned(),
            Err(rtnetlink::Error::NetlinkError(error)) => error.to_io().to_string(),
            Err(error) => return Err(error.into()),
        };
        if self.unreachable.insert(target) {
            warn!(%target, "no way to a backend: {problem}");
        }
        Ok(None)
    }

    /// Has the kernel resolve a neighbour, or confirm it.
    async fn ask_for(&self, hop: NextHop) {
        let request = self
            .handle
            .neighbours()
            .add(hop.ifindex, hop.address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if let Err(error) = request.execute().await {
            debug!(address = %hop.address, "asking for a neighbour: {error}");
        }
    }
}

/// What a neighbour message says, if it is about an IP neighbour.
pub fn neighbour_of(message: &NeighbourMessage) -> Option<Neighbour> {
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    let (usable, fresh) = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => {
            (true, true)
        }
        NeighbourState::Delay | NeighbourState::Probe => (true, true),
        NeighbourState::Stale => (true, false),
        NeighbourState::Incomplete => (false, true),
        _ => (false, false),
    };
    Some(Neighbour {
        hop: NextHop {
            ifindex: message.header.ifindex,
            address: address?,
        },
        mac: mac.filter(|_| usable),
        fresh,
    })
}

fn next_hop(route: &RouteMessage, target: IpAddr) -> Option<Route> {
    let mut mtu = None;
    let mut ifindex = None;
    let mut address = target;
    let mut source = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(gateway) => address = ip(gateway)?,
            RouteAttribute::PrefSource(preferred) => source = ip(preferred),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route {
        hop: NextHop {
            ifindex: ifindex?,
            address,
        },
        source: source?,
        mtu,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// In the words that the packet path writes.
fn mac_words(mac: Mac) -> [u16; 3] {
    [0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]]))
}

fn mac_bytes(words: &[u16; 3]) -> Mac {
    let [a, b, c] = words.map(u16::to_ne_bytes);
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

/// `02:00:5e:10:00:01`.
pub fn mac_text(words: &[u16; 3]) -> String {
    mac_bytes(words).map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_survive_the_round_trip() {
        let mac = [2, 0, 0x5e, 0x10, 0, 1];
        assert_eq!(mac_bytes(&mac_words(mac)), mac);
        assert_eq!(mac_text(&mac_words(mac)), "02:00:5e:10:00:01");
    }

    #[test]
    fn a_route_tells_its_interface_source_and_mtu() {
        let gateway: Ipv4Addr = [10, 0, 0, 1].into();
        let own: Ipv4Addr = [10, 0, 0, 2].into();
        let target = IpAddr::V4([10, 1, 0, 9].into());
        let mut route = RouteMessage::default();
        route.attributes = vec![
            RouteAttribute::Oif(7),
            RouteAttribute::PrefSource(RouteAddress::Inet(own)),
        ];
        let found = next_hop(&route, target).unwrap();
        assert_eq!((found.hop.address, found.mtu), (target, None));
        route.attributes.extend([
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Metrics(vec![RouteMetric::Advmss(900), RouteMetric::Mtu(1400)]),
        ]);
        let expected = Route {
            hop: NextHop {
                ifindex: 7,
                address: gateway.into(),
            },
            source: own.into(),
            mtu: Some(1400),
        };
        assert_eq!(next_hop(&route, target), Some(expected));
    }
}
