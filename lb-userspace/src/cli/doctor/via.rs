//! Probes by way of the VIP (`via = "vip"`): whether their answers reach this host. What they need to
//! leave it is looked at by [`super::probing`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context;

use super::Finding;
use super::checks::{fail, ok};
use super::facts::Facts;
use crate::model::Model;
use crate::neighbor::{self, Problem};

/// A VIP that is probed by way of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    vip: IpAddr,
    backend: IpAddr,
    /// The probes have a source address of their own.
    sourced: bool,
}

/// What this host has for such probes.
#[derive(Debug, Default)]
pub struct Means {
    /// The interface by which packets to an address leave.
    pub routes: BTreeMap<IpAddr, Result<u32, Problem>>,
}

/// Who is probed so.
pub fn probed(model: &Model) -> BTreeSet<Probed> {
    let backends = model.services.iter().flat_map(|service| &service.backends);
    let probes = backends.flat_map(|backend| &backend.probes);
    let probed = probes.filter_map(|probe| {
        Some(Probed {
            vip: probe.target.ip(),
            backend: probe.egress.via?.backend,
            sourced: probe.egress.source.is_some(),
        })
    });
    probed.collect()
}

/// Looks at the host.
pub fn gather(probed: &BTreeSet<Probed>) -> anyhow::Result<Means> {
    let addresses = probed.iter().flat_map(|one| [one.vip, one.backend]);
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    let routes = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(neighbor::routes(&addresses))
        .context("asking for the routes to VIPs over netlink")?;
    Ok(Means { routes })
}

/// What keeps them from working; nothing if there are none.
pub fn judge(facts: &Facts, probed: &BTreeSet<Probed>, means: &Means) -> Vec<Finding> {
    if probed.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut told = BTreeSet::new();
    for one in probed {
        let finding = way(facts, one, means);
        findings.extend(finding.filter(|finding| told.insert(finding.what.clone())));
    }
    if findings.is_empty() {
        findings.push(ok("via_vip").what("answers to probes by way of VIPs arrive"));
    }
    findings
}

/// What is wrong with the probes of one VIP by one backend.
fn way(facts: &Facts, probed: &Probed, means: &Means) -> Option<Finding> {
    let vip = probed.vip;
    let route = |address| means.routes.get(address);
    let link = |index: u32| facts.all.iter().find(|link| link.index == index);
    // To a backend that is this host itself nothing leaves.
    if matches!(route(&probed.backend), Some(Err(Problem::Local))) {
        return None;
    }
    let arrives = match route(&probed.backend) {
        Some(Ok(index)) => link(*index),
        Some(Err(_)) | None => None,
    };
    let filter = arrives.map_or(0, |link| link.rp_filter);
    let name = arrives.map_or("IF", |link| link.name.as_str());
    // There is no such filter for IPv6.
    let filtered = vip.is_ipv4() && filter > 0;
    match route(&vip)? {
        // `probe_vip` tells.
        Err(Problem::Local) => None,
        Err(_) if !probed.sourced && vip.is_ipv4() != probed.backend.is_ipv4() => Some(
            fail(
                "via_vip",
                "The kernel has no source address for packets to it.",
            )
            .what(format!(
                "no route to the VIP {vip}, whose backends are of the other family"
            ))
            .mend(format!("ip route add {vip} dev {name}, or health.source")),
        ),
        Err(_) if filtered => Some(
            fail(
                "via_vip",
                "The kernel drops the answers: the backends look dead.",
            )
            .what(format!(
                "no route to the VIP {vip}, and rp_filter is {filter} on {name}"
            ))
            .mend(format!("ip route add {vip} dev {name}")),
        ),
        Ok(leaves) if filtered && filter == 1 && arrives.is_some_and(|on| on.index != *leaves) => {
            let other = link(*leaves).map_or("another interface", |link| link.name.as_str());
            Some(
                fail(
                    "via_vip",
                    "The kernel drops the answers: the backends look dead.",
                )
                .what(format!(
                    "answers of the VIP {vip} arrive on {name}, the route to it is by {other}, \
                         and rp_filter is strict"
                ))
                .mend(format!(
                    "sysctl -w net.ipv4.conf.{}.rp_filter=2 (loose), or ip route add {vip} dev \
                         {name}",
                    name.replace('.', "/")
                )),
            )
        }
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::links::Link;
    use super::*;

    const VIP: &str = "203.0.113.10";
    const BACKEND: &str = "10.0.0.11";

    /// Findings where VIP and backend are routed so, and eth0 (2) and eth1 (3) are strict or not.
    fn findings(
        vip: Result<u32, Problem>,
        backend: Result<u32, Problem>,
        rp_filter: u32,
    ) -> String {
        let link = |name: &str, index| Link {
            name: name.into(),
            index,
            rp_filter,
            ..Link::default()
        };
        let facts = Facts {
            capabilities: u64::MAX,
            all: vec![link("eth0", 2), link("eth1", 3)],
            ..Facts::default()
        };
        let (vip_address, backend_address) = (VIP.parse().unwrap(), BACKEND.parse().unwrap());
        let probed = BTreeSet::from([Probed {
            vip: vip_address,
            backend: backend_address,
            sourced: false,
        }]);
        let means = Means {
            routes: BTreeMap::from([(vip_address, vip), (backend_address, backend)]),
        };
        let [finding] = &judge(&facts, &probed, &means)[..] else {
            panic!("more than one");
        };
        assert_eq!(finding.level == Level::Ok, finding.mend.is_none());
        match &finding.mend {
            None => "ok".to_owned(),
            Some(mend) => format!("{}; {mend}", finding.what),
        }
    }

    #[test]
    fn what_makes_such_probes_impossible_is_named_with_its_mend() {
        assert_eq!(findings(Ok(2), Ok(2), 1), "ok");
        assert_eq!(findings(Ok(3), Ok(2), 2), "ok", "loose");
        assert_eq!(findings(Ok(3), Ok(2), 0), "ok", "off");
        let no_route = || Err(Problem::NoRoute("none".to_owned()));
        assert_eq!(findings(no_route(), Ok(2), 0), "ok");
        assert_eq!(findings(Err(Problem::Local), Err(Problem::Local), 1), "ok");
        assert_eq!(
            findings(Err(Problem::Local), Ok(2), 0),
            "ok",
            "told elsewhere"
        );
        assert_eq!(
            findings(Ok(3), Ok(2), 1),
            "answers of the VIP 203.0.113.10 arrive on eth0, the route to it is by eth1, and \
             rp_filter is strict; sysctl -w net.ipv4.conf.eth0.rp_filter=2 (loose), or ip route add \
             203.0.113.10 dev eth0"
        );
        assert_eq!(
            findings(no_route(), Ok(2), 2),
            "no route to the VIP 203.0.113.10, and rp_filter is 2 on eth0; ip route add \
             203.0.113.10 dev eth0"
        );
    }

    #[test]
    fn a_vip_of_the_other_family_needs_a_route_or_a_source() {
        let vip: IpAddr = "2001:db8::10".parse().unwrap();
        let backend: IpAddr = BACKEND.parse().unwrap();
        let means = Means {
            routes: BTreeMap::from([
                (vip, Err(Problem::NoRoute("none".to_owned()))),
                (backend, Ok(2)),
            ]),
        };
        let count = |sourced| {
            let probed = BTreeSet::from([Probed {
                vip,
                backend,
                sourced,
            }]);
            let findings = judge(&Facts::default(), &probed, &means);
            findings
                .iter()
                .filter(|found| found.level != Level::Ok)
                .count()
        };
        assert_eq!((count(false), count(true)), (1, 0));
        assert!(judge(&Facts::default(), &BTreeSet::new(), &means).is_empty());
    }

    #[test]
    fn only_probes_by_way_of_the_vip_are_looked_at() {
        let text = |via: &str| {
            format!(
                "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
                 address = \"{VIP}:80\"\nforwarding = \"dsr\"\n[service.health]\nprobe = \"tcp\"\n\
                 via = \"{via}\"\n[[service.backend]]\naddress = \"{BACKEND}:80\"\n"
            )
        };
        let found = |via| probed(&crate::config::parse(&text(via), "lb.toml").unwrap());
        assert!(found("direct").is_empty());
        let one = Probed {
            vip: VIP.parse().unwrap(),
            backend: BACKEND.parse().unwrap(),
            sourced: false,
        };
        assert_eq!(found("vip"), BTreeSet::from([one]));
    }
}
