//! What probes need of this host, if the configuration has such probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::packet_route::rule::RuleAttribute;

use super::Finding;
use super::checks::{fail, ok, warn};
use super::facts::{self, Facts};
use crate::model::Model;
use crate::neighbor::Problem;
use crate::probe::via::{PRIORITY, try_tun};

/// What the configuration's probes ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// VIPs that probes go by way of, with the backends that they go to.
    pub vips: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    pub sources: BTreeSet<IpAddr>,
    pub interfaces: BTreeSet<String>,
}

/// What there is of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probing {
    pub wants: Wants,
    /// Why no TUN device can be had; absent if one can, or none is wanted.
    pub no_tun: Option<String>,
    /// Priorities of routing rules that stand before that of probes by way of VIPs.
    pub rules: BTreeSet<u32>,
    /// Wanted VIPs that are this host's own.
    pub own_vips: BTreeSet<IpAddr>,
    /// Wanted source addresses that no socket can have, and why.
    pub no_source: BTreeMap<IpAddr, String>,
}

impl Wants {
    /// What a configuration asks for.
    pub fn of(model: &Model) -> Self {
        let mut wants = Self::default();
        for service in &model.services {
            let probes = service.backends.iter().flat_map(|backend| &backend.probes);
            for egress in probes.map(|probe| &probe.egress) {
                if let Some(via) = egress.via {
                    let backends = wants.vips.entry(service.address.ip).or_default();
                    backends.insert(via.backend);
                }
                wants.sources.extend(egress.source);
                wants.interfaces.extend(egress.interface.clone());
            }
        }
        wants
    }
}

/// Looks at what is wanted.
pub fn look(wants: Wants) -> anyhow::Result<Probing> {
    let mut found = Probing::default();
    if !wants.vips.is_empty() {
        found.no_tun = try_tun().err().map(|error| error.to_string());
        found.rules = rules()?;
        let backends = wants.vips.values().flatten();
        let problems = facts::unreachable(&wants.vips.keys().chain(backends).copied().collect())?;
        let is_local = |ip: &IpAddr| problems.get(ip) == Some(&Problem::Local);
        // Where the backend is this host, too, its probes are right to stay.
        let own = wants
            .vips
            .iter()
            .filter(|(vip, backends)| is_local(vip) && !backends.iter().all(is_local));
        found.own_vips = own.map(|(vip, _)| *vip).collect();
    }
    for source in &wants.sources {
        if let Err(error) = UdpSocket::bind(SocketAddr::new(*source, 0)) {
            found.no_source.insert(*source, error.to_string());
        }
    }
    Ok(Probing { wants, ..found })
}

/// The priorities of rules that are asked before the probes' own; the first, 0, is the kernel's for
/// its own addresses.
fn rules() -> anyhow::Result<BTreeSet<u32>> {
    let list = async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut found = BTreeSet::new();
        for family in [rtnetlink::IpVersion::V4, rtnetlink::IpVersion::V6] {
            let rules = handle.rule().get(family).execute();
            for rule in rules.try_collect::<Vec<_>>().await? {
                found.extend(
                    rule.attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            RuleAttribute::Priority(priority) => Some(*priority),
                            _ => None,
                        }),
                );
            }
        }
        connection.abort();
        anyhow::Ok(found)
    };
    let all = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(list)
        .context("listing the routing rules over netlink")?;
    Ok(all
        .into_iter()
        .filter(|at| (1..PRIORITY).contains(at))
        .collect())
}

/// Judges what was found.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let found = &facts.probing;
    let mut findings = Vec::new();
    if !found.wants.vips.is_empty() {
        findings.push(match &found.no_tun {
            None => ok("tun").what("TUN devices can be made, for probes by way of VIPs"),
            Some(why) => fail("tun", "Every probe with via = \"vip\" fails.")
                .what(format!("/dev/net/tun cannot be used: {why}"))
                .mend("modprobe tun; in a container, give it the device /dev/net/tun"),
        });
        findings.push(if found.rules.is_empty() {
            ok("probe_rule").what(format!(
                "no routing rule is before that of probes ({PRIORITY})"
            ))
        } else {
            warn(
                "probe_rule",
                "If one of them takes a probe's packet, it does not go the way of the service.",
            )
            .what(format!(
                "routing rules stand before that of probes ({PRIORITY}): {}",
                list(&found.rules)
            ))
            .mend("look at `ip rule` and `ip -6 rule`; give them priorities above 108")
        });
    }
    for vip in &found.own_vips {
        findings.push(
            fail(
                "probe_vip",
                "Its probes with via = \"vip\" would stay on this host.",
            )
            .what(format!("this host owns the VIP {vip}"))
            .mend("take the address off this host, or leave out via"),
        );
    }
    for source in &found.wants.sources {
        findings.push(match found.no_source.get(source) {
            None => ok("probe_source").what(format!("probes can come from {source}")),
            Some(why) => fail("probe_source", "Every probe with this source fails.")
                .what(format!("probes cannot come from {source}: {why}"))
                .mend(format!("ip address add {source} dev IF, or correct source")),
        });
    }
    for name in &found.wants.interfaces {
        findings.push(
            match facts.all.iter().find(|link| link.name == *name) {
                Some(link) if link.up => {
                    ok("probe_interface").what("is up, for the probes bound to it")
                }
                Some(_) => fail("probe_interface", "Every probe that is bound to it fails.")
                    .what("is down")
                    .mend(format!("ip link set dev {name} up")),
                None => fail("probe_interface", "Every probe that is bound to it fails.")
                    .what("does not exist")
                    .mend(
                        "correct interface in the configuration; `ip link` lists those there are",
                    ),
            }
            .on(name),
        );
    }
    findings
}

fn list(numbers: &BTreeSet<u32>) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::links::Link;
    use super::*;

    fn judged(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Level, String)> {
        let link = Link {
            name: "eth0".into(),
            up: true,
            ..Link::default()
        };
        let mut facts = Facts {
            all: vec![link],
            ..Facts::default()
        };
        let wants = &mut facts.probing.wants;
        let vip = "203.0.113.20".parse().unwrap();
        wants.vips.insert(vip, BTreeSet::new());
        wants.sources.insert("10.0.0.2".parse().unwrap());
        wants.interfaces.insert("eth0".into());
        change(&mut facts);
        let findings = judge(&facts).into_iter();
        findings
            .filter(|finding| finding.level > Level::Ok)
            .map(|finding| {
                assert!(!finding.why.is_empty());
                (
                    finding.check,
                    finding.level,
                    finding.mend.unwrap_or_default(),
                )
            })
            .collect()
    }

    #[test]
    fn each_need_of_probes_is_judged() {
        assert_eq!(judged(|_| {}), []);
        type Damage = fn(&mut Facts);
        let table: &[(&str, Level, &str, Damage)] = &[
            ("tun", Level::Fail, "modprobe tun", |f| {
                f.probing.no_tun = Some("no such file".into());
            }),
            ("probe_rule", Level::Warn, "ip rule", |f| {
                f.probing.rules.insert(100);
            }),
            ("probe_vip", Level::Fail, "off this host", |f| {
                f.probing.own_vips = f.probing.wants.vips.keys().copied().collect();
            }),
            (
                "probe_source",
                Level::Fail,
                "ip address add 10.0.0.2",
                |f| {
                    let source = "10.0.0.2".parse().unwrap();
                    f.probing.no_source.insert(source, "not available".into());
                },
            ),
            ("probe_interface", Level::Fail, "eth0 up", |f| {
                f.all[0].up = false
            }),
            ("probe_interface", Level::Fail, "ip link", |f| f.all.clear()),
        ];
        for (check, level, mend, damage) in table {
            let found = judged(damage);
            assert_eq!(found.len(), 1, "{check}: {found:?}");
            assert_eq!((found[0].0, found[0].1), (*check, *level));
            assert!(found[0].2.contains(mend), "{found:?}");
        }
        assert_eq!(judge(&Facts::default()), []);
    }
}
