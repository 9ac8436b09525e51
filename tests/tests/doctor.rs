//! `lb doctor` on hosts with one fault each.

use anyhow::{Context, Result, ensure};
use lb_tests::lab::DSR_VIP;
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, with_lab};
use serde_json::Value;
use std::net::SocketAddr;

const DEAD: &str = "fail";
const SLOW: &str = "warn";

/// What `lb doctor` finds, run without these capabilities.
fn findings(lab: &Lab, agent: &Agent<'_>, without: &[&str]) -> Result<Vec<Value>> {
    let drop: Vec<String> = without.iter().map(|name| format!("-{name}")).collect();
    let bounds = format!("--bounding-set={}", drop.join(","));
    let mut command = lab.lb.namespace.command("setpriv");
    if !without.is_empty() {
        command.arg(bounds);
    }
    command.arg("--inh-caps=-all").arg(agent.binary());
    command
        .args(["doctor", "--json", "--config"])
        .arg(agent.config_path());
    let output = command.output().context("cannot run setpriv")?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let findings = report["checks"].as_array().context("no checks")?.clone();
    let fails = findings.iter().any(|finding| finding["level"] == DEAD);
    let code = output.status.code();
    ensure!(code == Some(i32::from(fails)), "{code:?} with {findings:?}");
    ensure!(report["ok"] == !fails, "{report}");
    Ok(findings)
}

/// Of a finding: its level, and its mend.
fn level(findings: &[Value], check: &str) -> Result<(String, String)> {
    let found = findings.iter().find(|finding| finding["check"] == check);
    let found = found.with_context(|| format!("no {check} in {findings:?}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    if found["level"] != "ok" {
        ensure!(
            !text("why").is_empty() && !text("mend").is_empty(),
            "{found}"
        );
    }
    Ok((text("level"), text("mend")))
}

/// What is not well of these checks.
fn only(findings: &[Value], check: &str, wanted: &str, mend: &str) -> Result<()> {
    let (is, mends) = level(findings, check)?;
    ensure!(
        is == wanted && mends.contains(mend),
        "{check}: {is}, {mends}"
    );
    Ok(())
}

/// A service whose probes need all that probes may need.
fn demanding(lab: &Lab) -> Config {
    let service = |name: &str, port: u16| {
        Service::tcp(lab, name, SocketAddr::new(DSR_VIP[0], port), port).dsr()
    };
    let by_vip = service("by-vip", HTTP).health("probe = \"tcp\"\nvia = \"vip\"");
    let bound = service("bound", HTTP + 1).health(&format!(
        "probe = \"tcp\"\nsource = \"{}\"\ninterface = \"eth0\"\nmark = 7",
        lab.lb.v4
    ));
    Config {
        node: "http = \"127.0.0.1:81\"".into(),
        ..Config::new(vec![by_vip, bound])
    }
}

#[test]
fn each_fault_of_the_host_is_named_with_its_mend() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::prepare(lab, &demanding(lab))?;
        let host = &lab.lb.namespace;
        let sound = findings(lab, &agent, &[])?;
        for finding in &sound {
            ensure!(finding["level"] != DEAD, "{finding}");
        }
        for check in [
            "kernel",
            "capabilities",
            "cap_sys_admin",
            "cap_net_raw",
            "cap_net_bind_service",
            "program",
            "other_xdp",
            "tun",
            "probe_rule",
            "probe_source",
            "probe_interface",
        ] {
            let (is, _) = level(&sound, check)?;
            ensure!(is == "ok", "{check}: {is}");
        }
        // The laboratory's is its own, which can only be told where those of the first process are seen.
        let (is, mend) = level(&sound, "bpffs")?;
        ensure!(is == "ok" || mend.contains("nsenter"), "{is}, {mend}");
        let lacking = |name| findings(lab, &agent, &[name]);
        let weak = lacking("bpf")?;
        only(&weak, "capabilities", DEAD, "as root")?;
        ensure!(level(&weak, "program").is_err(), "loaded without CAP_BPF");
        only(&lacking("net_raw")?, "cap_net_raw", DEAD, "as root")?;
        let check = "cap_net_bind_service";
        only(
            &lacking("net_bind_service")?,
            check,
            DEAD,
            "another port from",
        )?;

        host.run("mount", &["--bind", "/dev/null", "/dev/net/tun"])?;
        only(&findings(lab, &agent, &[])?, "tun", DEAD, "modprobe tun")?;
        host.run("umount", &["/dev/net/tun"])?;
        host.ip("rule add priority 100 to 192.0.2.0/24 lookup main")?;
        only(&findings(lab, &agent, &[])?, "probe_rule", SLOW, "ip rule")?;
        host.ip("rule del priority 100")?;
        host.ip(&format!("addr add {}/32 dev lo", DSR_VIP[0]))?;
        only(
            &findings(lab, &agent, &[])?,
            "probe_vip",
            DEAD,
            "off this host",
        )?;
        host.ip(&format!("addr del {}/32 dev lo", DSR_VIP[0]))?;
        host.ip(&format!("addr del {}/24 dev eth0", lab.lb.v4))?;
        only(
            &findings(lab, &agent, &[])?,
            "probe_source",
            DEAD,
            "ip address add",
        )?;
        host.ip(&format!("addr add {}/24 dev eth0", lab.lb.v4))?;
        host.ip("link set eth0 down")?;
        let down = findings(lab, &agent, &[])?;
        only(&down, "probe_interface", DEAD, "ip link set dev eth0 up")?;
        only(&down, "interface", DEAD, "ip link set dev eth0 up")?;
        host.ip("link set eth0 up")?;
        host.sysctl(&[("ipv4/ip_local_port_range", "20000 60999")])?;
        only(
            &findings(lab, &agent, &[])?,
            "snat_ports",
            DEAD,
            "reserved_ports",
        )?;
        host.sysctl(&[("ipv4/ip_local_port_range", "32768 60999")])?;

        host.attach_passing_xdp("eth0")?;
        only(
            &findings(lab, &agent, &[])?,
            "other_xdp",
            SLOW,
            "node.chain",
        )?;
        host.ip("link set eth0 xdp off")?;
        host.run("mount", &["-t", "tmpfs", "none", "/sys/fs/bpf"])?;
        only(&findings(lab, &agent, &[])?, "bpffs", SLOW, "mount -t bpf")?;
        host.run("umount", &["/sys/fs/bpf"])?;

        // What an agent has left is taken over only with CAP_SYS_ADMIN, and it is so.
        agent.configure(&Config::new(vec![Service::tcp(
            lab,
            "web",
            SocketAddr::new(DSR_VIP[0], HTTP),
            HTTP,
        )]))?;
        agent.run(&[], &[])?;
        agent.settled()?;
        agent.terminate()?;
        let left = findings(lab, &agent, &["sys_admin"])?;
        only(&left, "cap_sys_admin", DEAD, "as root")?;
        let mut command = host.command("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-all"]);
        command.arg(agent.binary()).args(["run", "--config"]);
        let output = command.arg(agent.config_path()).output()?;
        ensure!(
            !output.status.success(),
            "an agent has taken over without it"
        );
        only(&findings(lab, &agent, &[])?, "cap_sys_admin", "ok", "")
    })
}
