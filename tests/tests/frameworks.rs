//! Applications made with usual frameworks are restarted one backend after the other, as a
//! deployment does, and no request is lost.

use anyhow::{Context, Result};
use lb_tests::agent::SOON;
use lb_tests::frameworks::{Application, Framework, missing};
use lb_tests::load::{Load, Tally};
use lb_tests::{Agent, Config, Lab, wait_for};

const BACKENDS: u8 = 2;

/// Probes by a stream: nothing but what the server says, or that the stream ends, could be noticed
/// within the time of this test.
const WATCH: &str = "probe = \"grpc\"\nservice = \"lab.Echo\"\nwatch = true\n\
                     interval = \"10m\"\nfast_interval = \"1s\"\ndown_interval = \"1s\"\n\
                     timeout = \"900ms\"\nunhealthy_threshold = 1";

/// Waits until each load has had this many more answers, of any or of one backend.
fn wait_answers(loads: &[(String, Load)], backend: Option<&str>, more: u64) -> Result<()> {
    let answers = |tally: &Tally| match backend {
        Some(name) => tally.of(name),
        None => tally.requests(),
    };
    let before: Vec<u64> = loads
        .iter()
        .map(|(_, load)| answers(&load.tally()))
        .collect();
    let late = || {
        let mut pairs = loads.iter().zip(&before);
        let late = pairs.find(|((_, load), before)| answers(&load.tally()) < **before + more);
        late.map(|((kind, load), _)| (kind.clone(), load.tally()))
    };
    wait_for("answers", SOON, || Ok(late().is_none()))
        .with_context(|| format!("{more} of {backend:?} to {:?}", late()))
}

fn must_not_fail(loads: &[(String, Load)]) -> Result<()> {
    for (kind, load) in loads {
        load.tally().must_not_fail().with_context(|| kind.clone())?;
    }
    Ok(())
}

#[test]
fn a_rolling_restart_loses_no_request() -> Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED a_rolling_restart_loses_no_request: {reason}");
        return Ok(());
    }
    let lab = Lab::new(BACKENDS)?;
    let start = |host| {
        let each = Framework::ALL.into_iter();
        each.map(|framework| Application::start(&lab, host, framework))
            .collect::<Result<Vec<_>>>()
    };
    let mut applications = lab.backends.iter().map(start).collect::<Result<Vec<_>>>()?;
    let services = Framework::ALL.map(|framework| framework.service(&lab));
    let mut agent = Agent::prepare(&lab, &Config::new(services.to_vec()))?;
    agent.run(&[], &[])?;
    let logs = || {
        let all = applications.iter().flatten();
        all.map(Application::log).collect::<String>()
    };
    agent.settled().with_context(logs)?;
    let mut loads = Vec::new();
    for framework in Framework::ALL {
        loads.extend(framework.load(&lab.client)?);
    }
    wait_answers(&loads, None, 4)?;

    for (host, running) in lab.backends.iter().zip(&mut applications) {
        for application in running.iter() {
            application.terminate()?;
        }
        // Draining, if it did as it should; else its lost requests tell.
        agent.wait_status("the restarting backend to be out of use", |status| {
            let mut services = status.services.iter().flat_map(|service| &service.backends);
            Ok(services.all(|backend| backend.name != host.name || backend.routing != "active"))
        })?;
        must_not_fail(&loads).with_context(|| format!("{} has stopped", host.name))?;
        for application in running.iter_mut() {
            application.wait(SOON)?;
        }
        wait_answers(&loads, None, 2).context("while one is gone")?;
        *running = start(host)?;
        agent.settled()?;
        // New connections fall to the backend again; kept ones stay where they are.
        let new: Vec<_> = loads
            .extract_if(.., |(kind, _)| !kind.contains("kept"))
            .collect();
        let served = wait_answers(&new, Some(&host.name), 2);
        loads.extend(new);
        served.with_context(|| format!("{} is back", host.name))?;
    }
    for (kind, load) in &loads {
        println!("{kind}: {:?}", load.tally().answered);
    }
    must_not_fail(&loads)
}

/// The health service of Python's gRPC pushes what it says over a kept stream; a stream that breaks is
/// followed by a fresh probe.
#[test]
fn what_a_grpc_server_says_takes_effect_at_once() -> Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED what_a_grpc_server_says_takes_effect_at_once: {reason}");
        return Ok(());
    }
    let lab = Lab::new(BACKENDS)?;
    let start = |host| Application::start(&lab, host, Framework::Grpc);
    let mut applications = lab.backends.iter().map(start).collect::<Result<Vec<_>>>()?;
    let service = Framework::Grpc.service(&lab).health(WATCH);
    // Nobody asks it but its probes.
    let mut agent = Agent::prepare(&lab, &Config::new(vec![service]))?;
    agent.run(&[], &[])?;
    let logs = || {
        applications
            .iter()
            .map(Application::log)
            .collect::<String>()
    };
    agent.settled().with_context(logs)?;
    wait_for("a probe by the stream", SOON, || {
        let probe = agent.lb(&["probe", "grpc/b1"])?.ok()?;
        Ok(probe.contains("the kept stream lives"))
    })?;

    let [(first, b1), (second, b2)] = {
        let mut pairs = applications.iter_mut().zip(&lab.backends);
        let mut next = || pairs.next().context("too few applications");
        [next()?, next()?]
    };
    first.terminate()?;
    agent.wait_event("draining", "NOT_SERVING")?;
    first.kill()?;
    *first = start(b1)?;
    agent.settled()?;
    // One that dies says nothing, but its stream ends: by that, or by the probe that follows.
    second.kill()?;
    agent.wait_routing("grpc/b2", "out")?;
    // Its successor is asked afresh, and watched again.
    *second = start(b2)?;
    agent.settled()?;
    second.terminate()?;
    agent.wait_routing("grpc/b2", "draining")
}
