//! Services with one active backend: the fence, the operator's hand, and what is remembered. That no
//! packet reaches the old primary is shown by `split_brain_on_promotion` in `failures.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lb_tests::lab::NAT_VIP;
use lb_tests::load::idle::Idle;
use lb_tests::server_handle::TCP_ECHO;
use lb_tests::sniff::Sniffer;
use lb_tests::{Agent, Config, Lab, Server, Service, with_lab};

const VIP: SocketAddr = SocketAddr::new(NAT_VIP[0], TCP_ECHO);

/// A fence that writes down how it is called and ends as a file says.
struct Fence(PathBuf);

impl Fence {
    fn new(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().to_path_buf();
        let script = "echo \"$LB_SERVICE $LB_BACKEND $LB_ADDRESS:$LB_PORT $LB_REASON\" \
                      >> \"$1/calls\"; echo not today; exit \"$(cat \"$1/status\")\"";
        std::fs::write(folder.join("fence.sh"), script)?;
        let fence = Self(folder);
        fence.ends_with(0)?;
        Ok(fence)
    }

    fn ends_with(&self, status: u8) -> Result<()> {
        // Moved into place: the agent may be running it at this moment.
        std::fs::write(self.0.join("status.new"), status.to_string())?;
        Ok(std::fs::rename(
            self.0.join("status.new"),
            self.0.join("status"),
        )?)
    }

    /// The lines written so far.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn config(&self, lab: &Lab, more: &str) -> Config {
        let folder = self.0.display();
        let service = Service::tcp(lab, "db", VIP, TCP_ECHO).options(&format!(
            "mode = \"active_passive\"\npromote_after = \"500ms\"\n\
             fence = [\"/bin/sh\", \"{folder}/fence.sh\", \"{folder}\"]\n{more}"
        ));
        let mut config = Config::new(vec![service]);
        config.node = "allow_exec = true".into();
        config
    }
}

/// Waits until the service's handover stands so, and `backend` is the active one.
fn wait_primary(agent: &mut Agent<'_>, backend: &str, state: &str) -> Result<()> {
    let agent_ = &*agent;
    lb_tests::wait_for(
        &format!("{backend} to be {state}"),
        lb_tests::agent::SOON,
        || {
            // An agent that starts does not answer yet.
            let Ok(status) = agent_.raw_status() else {
                return Ok(false);
            };
            let primary = &status["services"][0]["primary"];
            Ok(primary["backend"] == backend && primary["state"] == state)
        },
    )?;
    if state == "serving" {
        agent.wait_routing(&format!("db/{backend}"), "active")?;
    }
    Ok(())
}

fn serves(lab: &Lab, backend: &str) -> Result<Idle> {
    let idle = Idle::open(&lab.client, VIP)?;
    ensure!(idle.backend == backend, "{} serves", idle.backend);
    Ok(idle)
}

#[test]
fn nobody_is_promoted_before_the_fence_has_succeeded() -> Result<()> {
    with_lab(|lab, servers| {
        let fence = Fence::new(lab)?;
        fence.ends_with(1)?;
        let mut agent = Agent::prepare(lab, &fence.config(lab, ""))?;
        agent.run(&[], &[])?;
        wait_primary(&mut agent, "b1", "serving")?;
        agent.wait_routing("db/b2", "standby")?;
        let _flow = serves(lab, "b1")?;
        let standby = [2, 3].map(|number| Sniffer::start(lab.backend(number), TCP_ECHO));
        let standby = standby.into_iter().collect::<Result<Vec<_>>>()?;
        servers[0].kill()?;
        wait_primary(&mut agent, "b1", "fence_failed")?;
        agent.wait_event("fencing", "b1 is unhealthy")?;
        agent.wait_event("fence_failed", "exit status 1: \"not today\"")?;
        let shown = agent.lb(&["status"])?.ok()?;
        ensure!(shown.contains("FENC"), "{shown}");
        ensure!(Idle::open(&lab.client, VIP).is_err(), "somebody serves");
        let packets: u64 = standby.iter().map(Sniffer::packets).sum();
        ensure!(packets == 0, "{packets} packets before the fence");

        fence.ends_with(0)?;
        wait_primary(&mut agent, "b2", "serving")?;
        agent.wait_event("promoted", "b1 is unhealthy")?;
        let calls = fence.calls();
        let expected = format!("db b1 {}:{TCP_ECHO} failed", lab.backend(1).v4);
        ensure!(
            calls.len() > 1 && calls.iter().all(|call| *call == expected),
            "{calls:?}"
        );
        serves(lab, "b2")?;
        // Back, but not in use.
        servers[0] = Server::start(lab.backend(1))?;
        agent.wait_routing("db/b1", "standby")?;
        serves(lab, "b2")?;
        Ok(())
    })
}

#[test]
fn the_operator_promotes_and_a_crash_and_a_reload_change_nothing() -> Result<()> {
    with_lab(|lab, _servers| {
        let fence = Fence::new(lab)?;
        let mut agent = Agent::prepare(lab, &fence.config(lab, ""))?;
        agent.run(&[], &[])?;
        wait_primary(&mut agent, "b1", "serving")?;
        agent.wait_routing("db/b3", "standby")?;
        let mut old = serves(lab, "b1")?;
        agent.lb(&["promote", "db/b3"])?.ok()?;
        wait_primary(&mut agent, "b3", "serving")?;
        ensure!(old.exchange().is_err(), "a flow of the old primary goes on");
        let mut flow = serves(lab, "b3")?;
        let again = agent.lb(&["promote", "db/b3"])?.ok()?;
        ensure!(again.contains("already"), "{again}");

        agent.kill()?;
        agent.run(&[], &[])?;
        wait_primary(&mut agent, "b3", "serving")?;
        agent.lb(&["reload"])?.ok()?;
        wait_primary(&mut agent, "b3", "serving")?;
        let since = |agent: &Agent<'_>| -> Result<String> {
            let status = agent.raw_status()?;
            let since = status["services"][0]["primary"]["since"].as_str();
            Ok(since.context("no time")?.to_owned())
        };
        let before = since(&agent)?;
        // Also when the maps are gone: the state file knows.
        agent.lb(&["detach"])?.ok()?;
        agent.wait_end(lb_tests::agent::SOON)?;
        agent.run(&[], &[])?;
        wait_primary(&mut agent, "b3", "serving")?;
        ensure!(since(&agent)? == before);
        ensure!(flow.exchange().is_err(), "a flow outlived the maps");
        agent.wait_routing("db/b1", "standby")?;

        // Whoever cannot take over is refused, and the word of the operator needs no hold-down.
        agent.lb(&["disable", "db/b2"])?.ok()?;
        let refused = agent.lb(&["promote", "db/b2"])?;
        ensure!(
            refused.code == Some(2) && refused.err.contains("disabled"),
            "{refused:?}"
        );
        agent.lb(&["disable", "db/b3"])?.ok()?;
        wait_primary(&mut agent, "b1", "serving")?;
        serves(lab, "b1")?;
        let reasons: Vec<String> = fence.calls();
        ensure!(
            reasons.iter().all(|call| call.ends_with("operator")) && reasons.len() == 2,
            "{reasons:?}"
        );
        // One that leaves the configuration hands over, too.
        let mut config = fence.config(lab, "");
        config.services[0].backends.remove(0);
        agent.configure(&config)?;
        agent.lb(&["enable", "db/b2"])?.ok()?;
        agent.wait_routing("db/b2", "standby")?;
        agent.lb(&["reload"])?.ok()?;
        wait_primary(&mut agent, "b2", "serving")?;
        serves(lab, "b2")?;
        Ok(())
    })
}
