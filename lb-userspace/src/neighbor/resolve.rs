//! One look at the kernel's links, routes and neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures::TryStreamExt;
use lb_common::abi::Hop;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Handle, NeighbourAddRequest, RouteMessageBuilder};
use tracing::debug;

use super::{NeighborError, Paths, Problem, Ways};
use crate::plan::{Path, Tunnel};

type Mac = [u8; 6];

/// No IP packet is longer, though a loopback's MTU is.
const LONGEST: u32 = 65_535;

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
    /// Whether the kernel can be asked to confirm it at once.
    can_be_doubted: bool,
}

/// What matters of an interface.
struct Interface {
    name: String,
    /// Absent where it is no Ethernet interface.
    mac: Option<Mac>,
    /// Longest packet, bytes from the IP header on.
    mtu: u32,
    /// Its kind, if it stands on another interface and has no way out for XDP of its own.
    stacked: Option<String>,
}

/// rtnetlink kinds without `ndo_xdp_xmit`: what native XDP redirects there is lost (Linux 6.18).
const STACKED: [&str; 24] = [
    "bridge",
    "dummy",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "hsr",
    "ifb",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "ipvlan",
    "macsec",
    "macvlan",
    "sit",
    "team",
    "vlan",
    "vrf",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
];

impl Interface {
    /// Why packets cannot leave by it.
    fn problem(&self) -> Option<Problem> {
        let interface = self.name.clone();
        match (&self.mac, &self.stacked) {
            (None, _) => Some(Problem::NotEthernet { interface }),
            (Some(_), Some(kind)) => Some(Problem::Stacked {
                interface,
                kind: kind.clone(),
            }),
            (Some(_), None) => None,
        }
    }
}

fn interface(link: &LinkMessage) -> Interface {
    let mut found = Interface {
        name: String::new(),
        mac: None,
        mtu: u32::MAX,
        stacked: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(address) => found.mac = Mac::try_from(address.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                found.stacked = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => {
                        Some(kind.to_string()).filter(|kind| STACKED.contains(&kind.as_str()))
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    found
}

/// Asks the kernel, and remembers the last answer for each next hop.
pub struct Resolver {
    handle: Handle,
    next_hops: BTreeMap<NextHop, Option<Mac>>,
    /// Each target's.
    hops: BTreeMap<IpAddr, NextHop>,
    last: Arc<Paths>,
}

impl Resolver {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            next_hops: BTreeMap::new(),
            hops: BTreeMap::new(),
            last: Arc::default(),
        }
    }

    /// Whether a neighbour's news is about a next hop in use, and new: another address, or none any
    /// more, so that it is to be asked for.
    pub fn differs(&self, found: &Neighbour) -> bool {
        match self.next_hops.get(&found.hop) {
            Some(known) if found.mac.is_some() => *known != found.mac,
            Some(known) => known.is_some() && !found.fresh,
            None => false,
        }
    }

    /// The ways to all targets. A next hop that no longer answers keeps its last MAC address: it
    /// is for the probes to say whether a backend lives.
    pub async fn resolve(&mut self, targets: &BTreeSet<IpAddr>) -> Result<Ways, NeighborError> {
        let interfaces = self.interfaces().await?;
        let neighbours = self.neighbours().await?;
        let (mut paths, mut problems) = (Paths::new(), BTreeMap::new());
        self.next_hops.clear();
        self.hops.clear();
        for target in targets {
            let Route { hop, source, mtu } = match self.route(*target).await? {
                Ok(found) => found,
                Err(problem) => {
                    // Not every service can use that one.
                    let local = (problem == Problem::Local).then(|| Path::local(*target));
                    if let Some(path) = local.or_else(|| self.last.get(target).copied()) {
                        paths.insert(*target, path);
                    }
                    problems.insert(*target, problem);
                    continue;
                }
            };
            let neighbour = neighbours.get(&hop);
            let mac = neighbour.and_then(|neighbour| neighbour.mac);
            self.next_hops.insert(hop, mac);
            self.hops.insert(*target, hop);
            if neighbour.is_none_or(|neighbour| !neighbour.fresh) {
                self.ask_for(hop).await;
            }
            // One that has gone meanwhile is news to come.
            let Some(interface) = interfaces.get(&hop.ifindex) else {
                continue;
            };
            let mac = mac.or_else(|| self.last_mac(*target, hop));
            let problem = match (mac, interface.mac) {
                (_, None) => interface.problem(),
                (None, Some(_)) => Some(Problem::NoAnswer {
                    next_hop: hop.address,
                    interface: interface.name.clone(),
                }),
                (Some(dst), Some(src)) => {
                    let path = Path {
                        hop: Hop::new(dst, src, hop.ifindex),
                        source,
                        mtu: mtu.unwrap_or(u32::MAX).min(interface.mtu).min(LONGEST),
                        tunnel: Tunnel::default(),
                    };
                    paths.insert(*target, path);
                    interface.problem()
                }
            };
            problems.extend(problem.map(|problem| (*target, problem)));
        }
        // Whoever has the last ones then has the same.
        if *self.last != paths {
            self.last = Arc::new(paths);
        }
        Ok(Ways {
            paths: self.last.clone(),
            problems,
        })
    }

    /// What is wrong with the ways to these targets, as far as it shows without asking a neighbour.
    pub async fn survey(
        &self,
        targets: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Problem>, NeighborError> {
        let interfaces = self.interfaces().await?;
        let mut problems = BTreeMap::new();
        for target in targets {
            let problem = match self.route(*target).await? {
                Err(problem) => Some(problem),
                Ok(route) => interfaces
                    .get(&route.hop.ifindex)
                    .and_then(Interface::problem),
            };
            problems.extend(problem.map(|problem| (*target, problem)));
        }
        Ok(problems)
    }

    /// By which interface packets to these targets leave.
    pub async fn routes(
        &self,
        targets: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Result<u32, Problem>>, NeighborError> {
        let mut routes = BTreeMap::new();
        for target in targets {
            let route = self.route(*target).await?;
            routes.insert(*target, route.map(|route| route.hop.ifindex));
        }
        Ok(routes)
    }

    fn last_mac(&self, target: IpAddr, hop: NextHop) -> Option<Mac> {
        let path = self
            .last
            .get(&target)
            .filter(|path| path.hop.ifindex == hop.ifindex)?;
        Some(path.hop.dst_mac())
    }

    async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, NeighborError> {
        let mut interfaces = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            interfaces.insert(link.header.index, interface(&link));
        }
        Ok(interfaces)
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

    /// The kernel's choice, or why there is none.
    async fn route(&self, target: IpAddr) -> Result<Result<Route, Problem>, NeighborError> {
        let message = match target {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut routes = self.handle.route().get(message).execute();
        let why = match routes.try_next().await {
            Ok(Some(route)) if route.header.kind == RouteType::Unicast => {
                match next_hop(&route, target) {
                    Some(found) => return Ok(Ok(found)),
                    None => "its route names no interface or source address".to_owned(),
                }
            }
            Ok(Some(route)) if route.header.kind == RouteType::Local => {
                return Ok(Err(Problem::Local));
            }
            Ok(Some(route)) => format!("its route is of kind {:?}", route.header.kind),
            Ok(None) => "there is no route".to_owned(),
            Err(rtnetlink::Error::NetlinkError(error)) => {
                format!("there is no route: {}", error.to_io())
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Err(Problem::NoRoute(why)))
    }

    /// Has the kernel confirm the next hops of targets that are silent. It believes an entry for up
    /// to 45 seconds (base_reachable_time, RFC 4861, section 6.3.2), also where another machine has
    /// taken the address over and did not announce it.
    pub async fn confirm(&self, targets: &BTreeSet<IpAddr>) -> Result<(), NeighborError> {
        let neighbours = self.neighbours().await?;
        let hops: BTreeSet<&NextHop> = targets.iter().filter_map(|t| self.hops.get(t)).collect();
        for hop in hops {
            if neighbours
                .get(hop)
                .is_some_and(|found| found.can_be_doubted)
            {
                let request = self.handle.neighbours().add(hop.ifindex, hop.address);
                tell(hop, request.state(NeighbourState::Probe)).await;
            }
        }
        Ok(())
    }

    /// Has the kernel resolve a neighbour, or confirm it when it has not done so for long.
    async fn ask_for(&self, hop: NextHop) {
        let request = self.handle.neighbours().add(hop.ifindex, hop.address);
        let request = request.state(NeighbourState::None);
        tell(&hop, request.flags(NeighbourFlags::Use)).await;
    }
}

async fn tell(hop: &NextHop, request: NeighbourAddRequest) {
    if let Err(error) = request.replace().execute().await {
        debug!(address = %hop.address, "asking for a neighbour: {error}");
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
        can_be_doubted: matches!(
            message.header.state,
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay
        ),
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

/// `02:00:5e:10:00:01`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_survive_the_round_trip() {
        let mac = [2, 0, 0x5e, 0x10, 0, 1];
        let hop = Hop::new(mac, [2, 0, 0, 0, 0, 9], 1);
        assert_eq!(hop.dst_mac(), mac);
        assert_eq!(mac_text(mac), "02:00:5e:10:00:01");
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
