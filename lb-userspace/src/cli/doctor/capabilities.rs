//! What this process may do, against what the agent must.

use super::Finding;
use super::checks::{fail, ok, warn};
use super::facts::Facts;
use crate::model::Node;

const MEND: &str = "run lb (and this check) as root; packaging/lb.service gives it what it needs, \
                    which it gives up after its start as far as it can";

/// Capabilities by their numbers (linux/capability.h).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Capability {
    NetBindService = 10,
    NetAdmin = 12,
    NetRaw = 13,
    SysChroot = 18,
    SysAdmin = 21,
    Perfmon = 38,
    Bpf = 39,
}

use Capability::{Bpf, NetAdmin, NetBindService, NetRaw, Perfmon, SysAdmin, SysChroot};

impl Facts {
    fn holds(&self, capability: Capability) -> bool {
        self.capabilities & 1 << capability as u8 != 0
    }
}

/// All findings on capabilities.
pub fn judge(facts: &Facts, node: Option<&Node>) -> Vec<Finding> {
    let mut findings = vec![needed(facts), sys_admin(facts)];
    if !facts.probing.wants.vips.is_empty() {
        findings.push(if facts.holds(NetRaw) {
            ok("cap_net_raw").what("CAP_NET_RAW is held, for probes by way of VIPs")
        } else {
            fail("cap_net_raw", "Every probe with via = \"vip\" fails.")
                .what("this process lacks CAP_NET_RAW")
                .mend(MEND)
        });
    }
    let listens = |key, address: Option<std::net::SocketAddr>| Some((key, address?.port()));
    let ports = node.map(|node| [listens("http", node.http), listens("grpc", node.grpc)]);
    let low = |(_, port): &(_, u16)| (1..facts.unprivileged_port).contains(port);
    for (key, port) in ports.into_iter().flatten().flatten().filter(low) {
        findings.push(if facts.holds(NetBindService) {
            ok("cap_net_bind_service")
                .what(format!("CAP_NET_BIND_SERVICE is held, for port {port}"))
        } else {
            fail(
                "cap_net_bind_service",
                "The agent does not start without it.",
            )
            .what(format!(
                "this process lacks CAP_NET_BIND_SERVICE, and node.{key} has port {port}"
            ))
            .mend(format!(
                "another port from {} on, or: {MEND}",
                facts.unprivileged_port
            ))
        });
    }
    findings
}

fn needed(facts: &Facts) -> Finding {
    let needed = [
        ("CAP_NET_ADMIN", NetAdmin),
        ("CAP_PERFMON", Perfmon),
        ("CAP_BPF", Bpf),
    ];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(_, capability)| !facts.holds(*capability))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return ok("capabilities").what("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held");
    }
    fail(
        "capabilities",
        "The program can be neither loaded nor attached without them.",
    )
    .what(format!("this process lacks {}", missing.join(", ")))
    .mend(MEND)
}

/// What only the start of an agent needs.
fn sys_admin(facts: &Facts) -> Finding {
    let check = "cap_sys_admin";
    if facts.own_mounts && !(facts.holds(SysAdmin) && facts.holds(SysChroot)) {
        // Said before the next, which it implies.
        return warn(
            check,
            "What the agent pins is seen by nobody else, and gone with the last process there.",
        )
        .what(
            "this process has mounts of its own, and lacks CAP_SYS_ADMIN or CAP_SYS_CHROOT to join \
             the host's",
        )
        .mend(MEND);
    }
    if facts.holds(SysAdmin) {
        return ok(check).what("CAP_SYS_ADMIN is held, for the agent's start");
    }
    let lacks = "this process lacks CAP_SYS_ADMIN";
    if facts.pinned {
        fail(
            check,
            "The agent cannot take over the tables that are pinned: it opens them by their numbers.",
        )
        .what(format!("{lacks}, and an agent before has left its data plane pinned"))
        .mend(MEND)
    } else if !facts.bpffs {
        fail(
            check,
            "The agent cannot mount the BPF file system, and there is none.",
        )
        .what(format!("{lacks}, and no bpffs is mounted"))
        .mend(format!("mount -t bpf bpf {}; {MEND}", super::facts::BPFFS))
    } else {
        warn(
            check,
            "This agent starts, but the next cannot take over what it pins.",
        )
        .what(lacks)
        .mend(MEND)
    }
}
