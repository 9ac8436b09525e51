//! A client behind a router, from which on packets may be no longer than a certain size.
//!
//! ```text
//!   far                    router                 bridge of the laboratory
//!   10.99.0.2 ─────── 10.99.0.1   10.77.0.50 ───────────┴─── lb, b1, b2 …
//!   MTU 1500        MTU given
//! ```
//! IPv6 the same in fd99::/64. The client asks for segments of full size, and whatever is too large
//! for it is answered by the router: "fragmentation needed", "packet too big".

use anyhow::Result;

use crate::lab::{Host, Lab, quiet};
use crate::namespace::Namespace;

const ROUTER: u8 = 50;

/// The two hosts; removed when dropped, which must be before the laboratory is.
#[derive(Debug)]
pub struct Beyond {
    /// Where requests come from.
    pub client: Host,
    /// Kept for its namespace.
    _router: Host,
}

impl Beyond {
    /// Adds them to a laboratory, whose backends learn the way.
    pub fn new(lab: &Lab, mtu: u16) -> Result<Self> {
        let router = lab.add_host("router", ROUTER)?;
        let far = Namespace::new("far")?;
        quiet(&far)?;
        far.ip(&format!(
            "link add eth0 type veth peer name far netns {}",
            router.namespace.name()
        ))?;
        for (side, interface) in [(&far, "eth0"), (&router.namespace, "far")] {
            side.run("ethtool", &["-K", interface, "tx", "off"])?;
        }
        router
            .namespace
            .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        router.namespace.ip(&format!(
            "link set far mtu {mtu}\n\
             addr add 10.99.0.1/24 dev far\n\
             addr add fd99::1/64 dev far nodad\n\
             link set far up\n\
             route add 203.0.113.0/24 via {}\n\
             route add 2001:db8:77::/64 via {}",
            lab.lb.v4, lab.lb.v6
        ))?;
        far.ip("addr add 10.99.0.2/24 dev eth0\n\
             addr add fd99::2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.99.0.1\n\
             route add ::/0 via fd99::1")?;
        for backend in &lab.backends {
            backend.namespace.ip(&format!(
                "route add 10.99.0.0/24 via {}\nroute add fd99::/64 via {}",
                router.v4, router.v6
            ))?;
        }
        Ok(Self {
            client: Host {
                namespace: far,
                name: "far".into(),
                v4: "10.99.0.2".parse()?,
                v6: "fd99::2".parse()?,
                owns_vips: false,
                last: 2,
            },
            _router: router,
        })
    }
}
