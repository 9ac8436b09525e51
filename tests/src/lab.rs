//! The laboratory's network.
//!
//! ```text
//!   client                lb                 b1      b2      b3  …
//!   10.77.0.100      10.77.0.2          10.77.0.11     .12     .13
//!      eth0             eth0 (XDP)         eth0       eth0    eth0
//!       │                 │                 │          │       │
//!       └───────────── bridge in the namespace `net` ──────────┘
//! ```
//! IPv6 the same in fd77::/64 (fd77::11 for b1). The client routes the VIPs' networks via the
//! balancer; the backends do not know them, except that each owns the DSR VIPs on its loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::namespace::{self, Namespace};
use crate::nics;
use crate::server_handle::Server;
use crate::skip;

/// VIPs of services that rewrite addresses.
pub const NAT_VIP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10)),
];
/// VIPs that every backend owns on its loopback, for direct server return.
pub const DSR_VIP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x20)),
];

/// Last part of the addresses: decimal in IPv4, the same digits in IPv6.
const LB: u8 = 2;
const CLIENT: u8 = 100;
const FIRST_BACKEND: u8 = 11;

/// Laboratories of one process run one after the other: they share two cores and time limits.
static ONE: Mutex<()> = Mutex::new(());

/// A host of the laboratory: a namespace with one interface, `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its role: `client`, `lb`, `b1`, ….
    pub name: String,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
    /// Whether it owns the DSR VIPs.
    pub owns_vips: bool,
    /// Last part of its addresses.
    pub(crate) last: u8,
}

impl Host {
    /// Its address of the family that `like` has.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// The network; everything is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // In the order of dropping: hosts before the switch, the folder last.
    /// Where requests come from.
    pub client: Host,
    /// Where `lb` runs.
    pub lb: Host,
    /// `b1`, `b2`, ….
    pub backends: Vec<Host>,
    switch: Namespace,
    folder: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Lab {
    /// Builds the network with this many backends.
    pub fn new(backends: u8) -> Result<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        namespace::remove_leftovers()?;
        let folder = tempfile::Builder::new()
            .prefix(&namespace::prefix())
            .tempdir()
            .context("cannot make a temporary folder")?;
        let mut switch = Namespace::new("net")?;
        switch.isolate_mounts()?;
        // No multicast snooping: IPv6's neighbour discovery must not wait for a querier.
        switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0\nlink set br0 up")?;
        quiet(&switch)?;
        let client = host(&switch, "client", CLIENT)?;
        // A load generator that does not keep connections must not run out of ports.
        client.namespace.sysctl(&[
            ("ipv4/ip_local_port_range", "10000 65000"),
            ("ipv4/tcp_tw_reuse", "1"),
        ])?;
        let mut lb = host(&switch, "lb", LB)?;
        lb.namespace.isolate_mounts()?;
        if !nics::given() {
            // Frames that `lb` sends back with XDP_TX wait in the other end's ring until that polls,
            // and the kernel (seen: 6.18) wakes it only if it has an XDP program of its own.
            switch.attach_passing_xdp("lb")?;
        }
        let backend = |index| {
            let mut host = host(&switch, &format!("b{}", index + 1), FIRST_BACKEND + index)?;
            own_dsr_vips(&host.namespace)?;
            host.owns_vips = true;
            Ok(host)
        };
        let backends = (0..backends).map(backend).collect::<Result<Vec<_>>>()?;
        client.namespace.ip(&format!(
            "route add 203.0.113.0/24 via {}\nroute add 2001:db8:77::/64 via {}",
            lb.v4, lb.v6
        ))?;
        Ok(Self {
            client,
            lb,
            backends,
            switch,
            folder,
            _one: one,
        })
    }

    /// Adds a host whose addresses end in `last`, without servers.
    pub(crate) fn add_host(&self, name: &str, last: u8) -> Result<Host> {
        host(&self.switch, name, last)
    }

    /// A folder that lives as long as the laboratory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the servers of every backend.
    pub fn serve(&self) -> Result<Vec<Server>> {
        self.backends.iter().map(Server::start).collect()
    }

    /// The backend `b<number>`.
    pub fn backend(&self, number: usize) -> &Host {
        &self.backends[number - 1]
    }

    /// Gives a backend another MAC address, as when another machine takes over its address. The
    /// backend announces it with gratuitous ARP and an unsolicited neighbour advertisement.
    pub fn change_mac(&self, backend: &Host) -> Result<()> {
        let last: u8 = backend.name.bytes().fold(0, u8::wrapping_add);
        backend
            .namespace
            .ip(&format!("link set eth0 address 02:00:00:00:77:{last:02x}"))
            .with_context(|| format!("cannot change the MAC address of {}", backend.name))
    }

    /// Takes a host's interface out and puts in another with the same name and addresses, as when a
    /// machine is rebuilt: it has another number and another MAC address.
    pub fn replace_interface(&self, host: &Host) -> Result<()> {
        self.remove_interface(host)?;
        self.insert_interface(host)
    }

    /// The first half: the host has no interface any more.
    pub fn remove_interface(&self, host: &Host) -> Result<()> {
        host.namespace.ip("link del eth0")
    }

    /// The second half.
    pub fn insert_interface(&self, host: &Host) -> Result<()> {
        connect(&self.switch, &host.namespace, &host.name, host.last)?;
        if host.name == self.lb.name {
            self.switch.attach_passing_xdp(&host.name)?;
        }
        Ok(())
    }

    /// A client of its own behind a second interface of the balancer, `eth1`. The balancer routes
    /// between its two networks, and the backends answer the client through it.
    ///
    /// ```text
    ///   client (10.78.0.100, fd78::100) ─── eth1 (10.78.0.2, fd78::2) lb eth0 ─── bridge
    /// ```
    pub fn far_client(&self) -> Result<Host> {
        let mut namespace = Namespace::new("far")?;
        namespace.isolate_mounts()?;
        quiet(&namespace)?;
        let lb = &self.lb.namespace;
        lb.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        namespace.ip(&format!(
            "link add eth0 type veth peer name eth1 netns {}",
            lb.name()
        ))?;
        for (side, interface) in [(&namespace, "eth0"), (lb, "eth1")] {
            side.run("ethtool", &["-K", interface, "tx", "off", "gro", "on"])?;
        }
        namespace.ip("addr add 10.78.0.100/24 dev eth0\n\
             addr add fd78::100/64 dev eth0 nodad\n\
             link set eth0 up")?;
        lb.ip("addr add 10.78.0.2/24 dev eth1\n\
             addr add fd78::2/64 dev eth1 nodad\n\
             link set eth1 up")?;
        namespace.attach_passing_xdp("eth0")?;
        namespace.ip("route add default via 10.78.0.2\nroute add default via fd78::2")?;
        for backend in &self.backends {
            backend.namespace.ip(&format!(
                "route add 10.78.0.0/24 via {}\nroute add fd78::/64 via {}",
                self.lb.v4, self.lb.v6
            ))?;
        }
        Ok(Host {
            namespace,
            name: "far".into(),
            v4: "10.78.0.100".parse()?,
            v6: "fd78::100".parse()?,
            owns_vips: false,
            last: CLIENT,
        })
    }

    /// Cuts a host's cable, or mends it: the bridge's end of its veth goes down or up.
    pub fn plug(&self, host: &Host, connected: bool) -> Result<()> {
        // A downed bridge port drops frames silently without the host noticing more than a carrier
        // loss; taking it out of the bridge keeps the carrier, which is a dead switch port.
        let command = if connected { "master br0" } else { "nomaster" };
        self.switch.ip(&format!("link set {} {command}", host.name))
    }
}

/// No duplicate address detection, no router solicitation, no reverse path filter: the network is
/// ours and must be ready at once.
pub(crate) fn quiet(namespace: &Namespace) -> Result<()> {
    for scope in ["all", "default"] {
        namespace.sysctl(&[
            (&format!("ipv4/conf/{scope}/rp_filter"), "0"),
            (&format!("ipv4/conf/{scope}/arp_notify"), "1"),
            (&format!("ipv6/conf/{scope}/accept_dad"), "0"),
            (&format!("ipv6/conf/{scope}/router_solicitations"), "0"),
            (&format!("ipv6/conf/{scope}/disable_ipv6"), "0"),
            (&format!("ipv6/conf/{scope}/ndisc_notify"), "1"),
        ])?;
    }
    namespace.sysctl(&[("ipv4/ping_group_range", "0 0")])
}

fn host(switch: &Namespace, name: &str, last: u8) -> Result<Host> {
    let namespace = Namespace::new(name)?;
    quiet(&namespace)?;
    connect(switch, &namespace, name, last)?;
    let (v4, v6) = (
        format!("10.77.0.{last}").parse()?,
        format!("fd77::{last}").parse()?,
    );
    Ok(Host {
        namespace,
        name: name.into(),
        v4,
        v6,
        owns_vips: false,
        last,
    })
}

/// Gives a namespace its `eth0`, whose other end `name` is in the bridge.
fn connect(switch: &Namespace, namespace: &Namespace, name: &str, last: u8) -> Result<()> {
    if name == "lb" && nics::given() {
        nics::hand_over(namespace.name(), switch.name())?;
    } else {
        namespace.ip(&format!(
            "link add eth0 type veth peer name {name} netns {}",
            switch.name()
        ))?;
    }
    // Sender's checksum offload would hand XDP frames with half-made checksums; and what XDP sends
    // through a veth is only taken where the other end can poll (NAPI), which GRO brings.
    for (side, interface) in [(namespace, "eth0"), (switch, name)] {
        side.run("ethtool", &["-K", interface, "tx", "off", "gro", "on"])?;
    }
    switch.ip(&format!("link set {name} master br0 up"))?;
    namespace.ip(&format!(
        "addr add 10.77.0.{last}/24 dev eth0\n\
         addr add fd77::{last}/64 dev eth0 nodad\n\
         link set eth0 up"
    ))
}

/// Gives a host the VIPs of direct server return, as a backend has them.
pub fn own_dsr_vips(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("ipv4/conf/all/arp_ignore", "1"),
        ("ipv4/conf/all/arp_announce", "2"),
    ])?;
    let [v4, v6] = DSR_VIP;
    namespace.ip(&format!(
        "addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"
    ))
}

impl Lab {
    /// Whether `from` reaches `to` with an ICMP echo request.
    pub fn ping(&self, from: &Host, to: IpAddr, limit: Duration) -> Result<bool> {
        from.namespace.within(|| -> Result<bool> {
            let socket =
                crate::sys::ping_socket(to.is_ipv6()).context("cannot make a ping socket")?;
            socket.connect((to, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let end = Instant::now() + limit;
            let request = if to.is_ipv6() { 128 } else { 8 };
            while Instant::now() < end {
                socket.send(&[request, 0, 0, 0, 0, 0, 0, 1])?;
                let mut answer = [0; 64];
                if socket.recv(&mut answer).is_ok() {
                    return Ok(true);
                }
            }
            Ok(false)
        })?
    }
}

/// Runs a test with three backends and their servers, or says why it is skipped.
pub fn with_lab<T>(test: T) -> Result<()>
where
    T: FnOnce(&Lab, &mut [Server]) -> Result<()>,
{
    // The closure's type is named after the test that contains it.
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    if skip::skipped(name) {
        return Ok(());
    }
    let lab = Lab::new(3)?;
    let mut servers = lab.serve()?;
    test(&lab, &mut servers)
}
