//! Judgements on [`Facts`]: pure.

use std::net::IpAddr;

use super::capabilities;
use super::drivers;
use super::facts::{BPFFS, Facts};
use super::links::Link;
use super::probing;
use super::{Finding, Level};
use crate::model::{Model, Node, XdpMode};
use crate::neighbor::Problem;

const OLDEST: (u32, u32) = (6, 1);

/// All checks. `node`: the configuration's, if there is one.
pub fn judge(facts: &Facts, node: Option<&Node>) -> Vec<Finding> {
    let mut findings = vec![kernel(facts)];
    findings.extend(capabilities::judge(facts, node));
    findings.extend([jit(facts), bpffs(facts), memlock(facts)]);
    findings.extend(program(facts));
    findings.extend(facts.other_layout.map(layout));
    findings.extend(node.map(|node| source_ports(facts, node)));
    for name in &facts.missing {
        findings.push(
            fail("interface", "The agent does not start without it.")
                .what("does not exist")
                .mend(
                    "correct node.interfaces in the configuration; `ip link` lists those there are",
                )
                .on(name),
        );
    }
    for (backend, problem) in &facts.unreachable {
        findings.extend(way(backend, problem, node));
    }
    if facts.links.is_empty() && facts.missing.is_empty() {
        findings.push(
            warn("interface", "There is nothing to attach to.")
                .what("no interface is up besides loopback")
                .mend("ip link set dev IF up"),
        );
    }
    for link in &facts.links {
        findings.extend(interface(facts, node, link));
    }
    findings.extend(probing::judge(facts));
    findings
}

/// A backend that packets cannot be sent to.
fn way(backend: &IpAddr, problem: &Problem, node: Option<&Node>) -> Option<Finding> {
    let mend = match problem {
        // Generic mode can.
        Problem::Stacked { .. } if node.map(|node| node.xdp_mode) == Some(XdpMode::Generic) => {
            return None;
        }
        Problem::Stacked { .. } | Problem::NotEthernet { .. } => {
            "give the host a route to it by a physical interface"
        }
        Problem::Local => "put the backend on another host, or use forwarding = \"dsr\"",
        Problem::NoRoute(_) | Problem::NoAnswer { .. } => "look at `ip route get` and `ip neigh`",
    };
    let finding = warn(
        "backend_way",
        "Packets to it are dropped and counted (drop_no_neighbor).",
    );
    Some(
        finding
            .what(format!("backend {backend}: {problem}"))
            .mend(mend),
    )
}

fn kernel(facts: &Facts) -> Finding {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    let what = format!("Linux {}", facts.kernel);
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => ok("kernel").what(what),
        (Some(_), Some(_)) => fail("kernel", "lb needs helpers and links of Linux 6.1.")
            .what(what)
            .mend("upgrade the kernel to 6.1 or later"),
        _ => warn(
            "kernel",
            "lb needs Linux 6.1 or later; this version is not understood.",
        )
        .what(what),
    }
}

/// Whether the kernel takes the program, which is the proof of all features that it needs.
fn program(facts: &Facts) -> Option<Finding> {
    Some(match facts.program.as_ref()? {
        Ok(()) => ok("program").what("the kernel verifies the program"),
        Err(why) => fail("program", "The agent does not start.")
            .what(format!("the kernel refuses the program: {why}"))
            .mend(
                "a kernel 6.1 or later with CONFIG_BPF_SYSCALL and CONFIG_BPF_JIT; if this is one, \
                 report it",
            ),
    })
}

/// What another version has pinned.
fn layout(found: u32) -> Finding {
    fail(
        "layout",
        "The agent does not start: it does not touch what it cannot read.",
    )
    .what(format!("the pinned maps have another layout ({found})"))
    .mend("lb run --migrate, which breaks the established flows of nat")
}

fn jit(facts: &Facts) -> Finding {
    match facts.jit {
        None => ok("jit").what("BPF JIT: no switch to read, the kernel compiles by default"),
        Some(0) => warn("jit", "The program is interpreted, several times slower.")
            .what("BPF JIT is off")
            .mend("sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => ok("jit").what("BPF JIT is on"),
    }
}

fn bpffs(facts: &Facts) -> Finding {
    if !facts.bpffs {
        return warn(
            "bpffs",
            "The agent mounts it itself, which needs CAP_SYS_ADMIN.",
        )
        .what(format!("no bpffs on {BPFFS}"))
        .mend(format!("mount -t bpf bpf {BPFFS}"));
    }
    if facts.own_bpffs {
        return warn(
            "bpffs",
            "What the agent pins there, and all forwarding with it, is gone when the agent is.",
        )
        .what(format!("{BPFFS} is this process's own and not the host's"))
        .mend(format!(
            "start lb where it sees the host's {BPFFS}: in a network namespace by `nsenter \
             --net=/run/netns/NAME` in place of `ip netns exec`, in a container with {BPFFS} of \
             the host"
        ));
    }
    ok("bpffs").what(format!("bpffs is mounted on {BPFFS}"))
}

fn memlock(facts: &Facts) -> Finding {
    // Since 5.11 BPF memory is charged to the cgroup (cap on memory.max), not to RLIMIT_MEMLOCK.
    let what = match facts.memlock {
        None => "locked memory is unlimited".to_owned(),
        Some(bytes) => {
            format!(
                "the locked memory limit ({bytes} bytes) does not count for BPF since Linux 5.11"
            )
        }
    };
    ok("memlock").what(what)
}

/// Ports that the host gives to its own connections must not be those lb uses for NAT.
fn source_ports(facts: &Facts, node: &Node) -> Finding {
    let (first, last) = (*node.snat_ports.start(), *node.snat_ports.end());
    let (low, high) = facts.local_ports;
    let clash = first.max(low)..=last.min(high);
    let what = format!("NAT source ports {first}-{last}, ip_local_port_range {low}-{high}");
    if clash.is_empty() || clash.clone().all(|port| reserved(facts, port)) {
        return ok("snat_ports").what(what);
    }
    let mut ranges: Vec<String> = facts
        .reserved_ports
        .iter()
        .map(|(first, last)| format!("{first}-{last}"))
        .collect();
    ranges.push(format!("{first}-{last}"));
    fail(
        "snat_ports",
        "Replies to the host's own connections would be taken for those of NAT flows.",
    )
    .what(format!("{what}: they overlap"))
    .mend(format!(
        "sysctl -w net.ipv4.ip_local_reserved_ports={}",
        ranges.join(",")
    ))
}

fn reserved(facts: &Facts, port: u16) -> bool {
    let ranges = &facts.reserved_ports;
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&port))
}

fn interface(facts: &Facts, node: Option<&Node>, link: &Link) -> Vec<Finding> {
    let mut findings = vec![state(link), native(node, link), other_program(facts, link)];
    findings.extend(lro(link));
    findings.extend(mtu(link));
    findings.extend(queues(facts, link));
    findings.extend(reverse_path(facts, link));
    if link.kind.as_deref() == Some("veth") {
        findings.push(veth_napi(facts, link));
        findings.push(veth_checksum(facts, link));
    }
    findings
        .into_iter()
        .map(|finding| finding.on(&link.name))
        .collect()
}

fn state(link: &Link) -> Finding {
    if !link.up {
        return fail("interface", "No packet comes in.")
            .what("is down")
            .mend(format!("ip link set dev {} up", link.name));
    }
    if !link.carrier {
        return warn("interface", "No packet comes in.")
            .what("is up but has no carrier")
            .mend("check the cable or the switch's port");
    }
    ok("interface").what(format!("is up, MTU {}", link.mtu))
}

fn native(node: Option<&Node>, link: &Link) -> Finding {
    let (driver, kind) = (link.driver.as_deref(), link.kind.as_deref());
    let name = driver.or(kind).unwrap_or("unknown");
    if drivers::is_native(driver, kind) {
        return ok("native_xdp").what(format!("driver {name} has native XDP"));
    }
    let what = format!("driver {name} is not known for native XDP");
    match node.map(|node| node.xdp_mode) {
        Some(XdpMode::Native) => fail(
            "native_xdp",
            "With xdp_mode = \"native\" the agent does not start if the driver refuses.",
        )
        .what(what)
        .mend("set node.xdp_mode = \"auto\", or use a NIC with native XDP"),
        Some(XdpMode::Generic) => ok("native_xdp").what(format!("{what}; generic is configured")),
        Some(XdpMode::Auto) | None => warn(
            "native_xdp",
            "lb tries, and else uses generic XDP: correct, but several times slower.",
        )
        .what(what)
        .mend("use a NIC whose driver has native XDP"),
    }
}

fn other_program(facts: &Facts, link: &Link) -> Finding {
    match link.xdp {
        None => ok("other_xdp").what("no XDP program is on it"),
        Some(xdp) if facts.agent => ok("other_xdp").what(format!(
            "XDP program {} is on it, and an lb agent runs",
            xdp.id
        )),
        Some(xdp) => warn(
            "other_xdp",
            "Unless it is lb's own, kept from an agent before, the agent will not replace it.",
        )
        .what(format!(
            "XDP program {} is on it ({})",
            xdp.id,
            if xdp.native { "native" } else { "generic" }
        ))
        .mend(format!(
            "look with `bpftool prog show id {0}`. To keep it behind lb: `bpftool prog pin id {0} \
             /sys/fs/bpf/other`, `ip link set dev {1} xdp off`, node.chain = \
             \"/sys/fs/bpf/other\". To be rid of it: take it off, or run `lb run --replace`",
            xdp.id, link.name
        )),
    }
}

fn lro(link: &Link) -> Option<Finding> {
    match link.offloads.lro? {
        false => Some(ok("lro").what("LRO is off")),
        true => Some(
            fail(
                "lro",
                "It merges packets before XDP: drivers refuse XDP beside it.",
            )
            .what("LRO is on")
            .mend(format!("ethtool -K {} lro off", link.name)),
        ),
    }
}

/// Most drivers give a native XDP program one page a packet.
fn mtu(link: &Link) -> Option<Finding> {
    // A page of 4096 less headroom (256), skb_shared_info (320) and the Ethernet and VLAN headers.
    const ONE_PAGE: u32 = 3498;
    (link.mtu > ONE_PAGE && link.driver.is_some()).then(|| {
        warn(
            "mtu",
            "Many drivers refuse native XDP above about 3500 bytes: a packet must fit in a page.",
        )
        .what(format!("MTU is {}", link.mtu))
        .mend(format!(
            "ip link set dev {} mtu 1500, if lb reports that native mode was refused",
            link.name
        ))
    })
}

/// Whether the longest packet of an ordinary client fits into the tunnels.
pub fn tunnel_mtu(facts: &Facts, model: Option<&Model>) -> Vec<Finding> {
    const ORDINARY: u32 = 1500;
    let services = model.into_iter().flat_map(|model| &model.services);
    let overhead = services.flat_map(|service| {
        let outer = service.backends.iter().map(|backend| backend.address);
        outer.map(|outer| service.forwarding.overhead(outer.is_ipv4()))
    });
    let needed = ORDINARY + u32::from(overhead.max().unwrap_or(0));
    let short = |link: &&Link| needed > ORDINARY && link.mtu < needed;
    let finding = |link: &Link| {
        warn(
            "tunnel_mtu",
            "Clients are told by ICMP to send shorter packets; where that does not reach them, uploads hang.",
        )
        .what(format!("MTU is {}, tunnels need {needed}", link.mtu))
        .mend(format!(
            "ip link set dev {} mtu {needed}, here and on the way to the backends",
            link.name
        ))
        .on(&link.name)
    };
    facts.links.iter().filter(short).map(finding).collect()
}

fn queues(facts: &Facts, link: &Link) -> Option<Finding> {
    (link.driver.is_some() && link.rx_queues == 1 && facts.cpus > 1).then(|| {
        warn("queues", "One CPU does all the work.")
            .what(format!("1 receive queue for {} CPUs", facts.cpus))
            .mend(format!(
                "ethtool -L {} combined {}, if the NIC has more",
                link.name, facts.cpus
            ))
    })
}

fn reverse_path(facts: &Facts, link: &Link) -> Option<Finding> {
    // XDP comes before the check: only what is left to the host meets it.
    (link.rp_filter == 1 && facts.links.len() > 1).then(|| {
        warn(
            "rp_filter",
            "A probe that leaves by one interface and is answered on another is dropped: the \
             backend looks dead.",
        )
        .what("strict reverse path filter, and lb uses several interfaces")
        .mend(format!(
            "sysctl -w net.ipv4.conf.{0}.rp_filter=2 (loose; also net.ipv4.conf.all.rp_filter)",
            link.name.replace('.', "/")
        ))
    })
}

fn peer<'f>(facts: &'f Facts, link: &Link) -> Option<&'f Link> {
    let index = link.peer?;
    facts.all.iter().find(|other| other.index == index)
}

/// Frames sent back or redirected into a veth are taken by its peer only through NAPI.
fn veth_napi(facts: &Facts, link: &Link) -> Finding {
    const WHY: &str = "Packets that XDP sends back out of a veth wait until the other end polls, \
                       and the kernel wakes it only if it has an XDP program of its own.";
    const MEND: &str = "attach one there that passes everything, for example with xdp-loader";
    match peer(facts, link) {
        Some(peer) if peer.xdp.is_some() => {
            ok("veth_napi").what(format!("its other end {} has an XDP program", peer.name))
        }
        Some(peer) => fail("veth_napi", WHY)
            .what(format!("its other end {} has no XDP program", peer.name))
            .mend(MEND),
        None => warn("veth_napi", WHY)
            .what("its other end is in another namespace and cannot be looked at")
            .mend(MEND),
    }
}

/// A checksum left to hardware that a veth does not have is lost when XDP sends the packet on.
fn veth_checksum(facts: &Facts, link: &Link) -> Finding {
    const WHY: &str = "A veth's other end leaves checksums undone; what XDP forwards of it then \
                       arrives with a wrong checksum and is dropped.";
    match peer(facts, link) {
        Some(peer) if peer.offloads.tx_checksum == Some(false) => {
            ok("veth_checksum").what(format!("its other end {} does its checksums", peer.name))
        }
        Some(peer) => warn("veth_checksum", WHY)
            .what(format!("its other end {} offloads checksums", peer.name))
            .mend(format!("ethtool -K {} tx off", peer.name)),
        None => warn("veth_checksum", WHY)
            .what("its other end is in another namespace and cannot be looked at")
            .mend("there: ethtool -K PEER tx off"),
    }
}

pub(super) fn ok(check: &'static str) -> Finding {
    finding(check, Level::Ok, "")
}

pub fn warn(check: &'static str, why: &'static str) -> Finding {
    finding(check, Level::Warn, why)
}

pub(super) fn fail(check: &'static str, why: &'static str) -> Finding {
    finding(check, Level::Fail, why)
}

fn finding(check: &'static str, level: Level, why: &'static str) -> Finding {
    Finding {
        check,
        interface: None,
        level,
        what: String::new(),
        why,
        mend: None,
    }
}

impl Finding {
    pub(super) fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    pub(super) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    pub fn on(mut self, interface: &str) -> Self {
        self.interface = Some(interface.to_owned());
        self
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
