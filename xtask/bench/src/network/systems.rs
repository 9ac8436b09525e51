//! What the requests go through. Each is set up for its turn alone and taken down after it: an
//! XDP program on the interface, or a connection tracker, slows down even what it does not serve.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::process::Process;
use lb_tests::server_handle::HTTP;
use lb_tests::wait::wait_for;
use lb_tests::{Agent, Config, Lab, Service, agent::SOON};

/// A probe that weighs nothing beside the load.
const PROBE: &str =
    "probe = \"http\"\npath = \"/readyz\"\ninterval = \"5s\"\ntimeout = \"2s\"\nport = 8080";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Direct,
    LbDsr,
    LbNat,
    Nftables,
    Haproxy,
}

impl System {
    pub const ALL: [Self; 5] = [
        Self::Direct,
        Self::LbDsr,
        Self::LbNat,
        Self::Nftables,
        Self::Haproxy,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::LbDsr => "lb, DSR",
            Self::LbNat => "lb, NAT",
            Self::Nftables => "nftables, DNAT + masquerade",
            Self::Haproxy => "HAProxy, TCP mode",
        }
    }

    /// Sets the system up, does `work` with the address to send to, and takes it down.
    pub fn with<T>(self, lab: &Lab, work: impl FnOnce(SocketAddr) -> Result<T>) -> Result<T> {
        match self {
            Self::Direct => work(SocketAddr::new(lab.backend(1).v4, HTTP)),
            Self::LbDsr => {
                let vip = SocketAddr::new(DSR_VIP[0], HTTP);
                with_lb(lab, Service::tcp(lab, "web", vip, HTTP).dsr(), work)
            }
            Self::LbNat => {
                let vip = SocketAddr::new(NAT_VIP[0], 80);
                with_lb(lab, Service::tcp(lab, "web", vip, HTTP), work)
            }
            Self::Nftables => with_nftables(lab, SocketAddr::new(NAT_VIP[0], 80), work),
            Self::Haproxy => with_haproxy(lab, NAT_VIP[0], work),
        }
    }
}

fn with_lb<T>(
    lab: &Lab,
    service: Service,
    work: impl FnOnce(SocketAddr) -> Result<T>,
) -> Result<T> {
    let vip = service.address;
    let mut agent = Agent::start(lab, &Config::new(vec![service.health(PROBE)]))?;
    let result = work(vip);
    agent.tell_log = result.is_err();
    agent.terminate()?;
    agent.lb(&["detach"])?.ok()?;
    let traces = agent.traces()?;
    ensure!(traces.is_empty(), "lb left behind: {traces:?}");
    result
}

fn with_nftables<T>(
    lab: &Lab,
    vip: SocketAddr,
    work: impl FnOnce(SocketAddr) -> Result<T>,
) -> Result<T> {
    let host = &lab.lb.namespace;
    host.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ])?;
    let backend = SocketAddr::new(lab.backend(1).v4, HTTP);
    let rules = format!(
        "table ip bench {{\n\
         chain to {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {} tcp dport {} dnat to {backend}\n}}\n\
         chain from {{ type nat hook postrouting priority srcnat;\n\
         ip daddr {} tcp dport {} masquerade\n}}\n}}\n",
        vip.ip(),
        vip.port(),
        backend.ip(),
        backend.port()
    );
    let file = lab.folder().join("bench.nft");
    std::fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    host.run("nft", &["-f", &file.to_string_lossy()])?;
    let result = work(vip);
    host.run("nft", &["delete", "table", "ip", "bench"])?;
    host.sysctl(&[("ipv4/ip_forward", "0")])?;
    result
}

fn with_haproxy<T>(
    lab: &Lab,
    vip: IpAddr,
    work: impl FnOnce(SocketAddr) -> Result<T>,
) -> Result<T> {
    let host = &lab.lb.namespace;
    let at = SocketAddr::new(vip, 80);
    let config = format!(
        "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  \
         timeout server 1m\nfrontend in\n  bind {at}\n  default_backend out\nbackend out\n  \
         server b1 {}\n",
        SocketAddr::new(lab.backend(1).v4, HTTP)
    );
    let file = lab.folder().join("haproxy.cfg");
    std::fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let own = format!("{vip}/32");
    host.run("ip", &["addr", "add", &own, "dev", "lo"])?;
    let result = (|| {
        let mut command = host.command("haproxy");
        command.args(["-db", "-q", "-f"]).arg(&file);
        let mut process = Process::spawn(&mut command, "haproxy")?;
        wait_for("HAProxy to listen", SOON, || {
            ensure!(process.ended()?.is_none(), "HAProxy ended");
            Ok(host.run("ss", &["-Hltn"])?.contains(&at.to_string()))
        })?;
        let result = work(at);
        process.kill()?;
        result
    })();
    host.run("ip", &["addr", "del", &own, "dev", "lo"])?;
    result
}
