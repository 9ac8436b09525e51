//! The agent's own endpoints: gRPC health, the token of detailed answers, and the grace of its end.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::http::Client;
use lb_tests::server::Order;
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const ENDPOINTS: &str = "http = \"127.0.0.1:9400\"\ngrpc = \"127.0.0.1:9401\"";

fn config(lab: &Lab, node: &str) -> Config {
    let web = SocketAddr::new(NAT_VIP[0], 80);
    let mut config = Config::new(vec![Service::tcp(lab, "web", web, HTTP)]);
    config.node = format!("{ENDPOINTS}\n{node}");
    config
}

/// Status and body of an HTTP endpoint.
fn get(lab: &Lab, path: &str) -> Result<(u16, String)> {
    let mut client = Client::new(SocketAddr::from(([127, 0, 0, 1], 9400)), false);
    let (status, body) = lab.lb.namespace.within(|| client.fetch(path))??;
    Ok((status, String::from_utf8(body)?))
}

/// What lb's own gRPC probe says of a service of the agent's.
fn grpc(lab: &Lab, agent: &Agent<'_>, service: &str) -> Result<String> {
    let file = lab.folder().join("probe.toml");
    let text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n\
         [[service]]\nname = \"lb\"\naddress = \"203.0.113.99:1\"\n\
         [service.health]\nprobe = \"grpc\"\nservice = \"{service}\"\n\
         interval = \"40s\"\ntimeout = \"30s\"\n\
         [[service.backend]]\nname = \"lb\"\naddress = \"127.0.0.1:9401\"\n"
    );
    std::fs::write(&file, text)?;
    let file = file.to_str().context("a path of text")?;
    let answer = agent
        .lb(&["probe", "--config", file, "lb/lb", "--json"])?
        .ok()?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    Ok(format!("{} {}", answer["outcome"], answer["detail"]))
}

fn wait_grpc(lab: &Lab, agent: &Agent<'_>, service: &str, said: &str) -> Result<()> {
    let mut last = String::new();
    let found = wait_for(&format!("gRPC to say {said} of {service:?}"), SOON, || {
        last = grpc(lab, agent, service)?;
        Ok(last.contains(said))
    });
    found.context(last)
}

#[test]
fn grpc_health_follows_each_service() -> Result<()> {
    with_lab(|lab, servers| {
        let mut config = config(lab, "");
        config.services[0].options += "\npanic_threshold = 0";
        let mut agent = Agent::start(lab, &config)?;
        wait_grpc(lab, &agent, "", "success")?;
        wait_grpc(lab, &agent, "web", "success")?;
        wait_grpc(lab, &agent, "wbe", "NOT_FOUND")?;
        for server in servers.iter_mut() {
            server.order(Order::Unready)?;
        }
        wait_grpc(lab, &agent, "web", "NOT_SERVING")?;
        wait_grpc(lab, &agent, "", "success")?;
        for server in servers.iter_mut() {
            server.order(Order::Ready)?;
        }
        wait_grpc(lab, &agent, "web", "success")?;
        agent.settled()?;
        Ok(())
    })
}

#[test]
fn told_to_end_it_fails_readiness_first_and_goes_on_for_its_grace() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &config(lab, "shutdown_grace = \"1h\""))?;
        wait_grpc(lab, &agent, "web", "success")?;
        ensure!(get(lab, "/readyz")?.0 == 200);
        agent.begin_to_end()?;
        wait_for("readiness to fail", SOON, || {
            Ok(get(lab, "/readyz")?.0 == 503)
        })?;
        wait_grpc(lab, &agent, "", "NOT_SERVING")?;
        wait_grpc(lab, &agent, "web", "NOT_SERVING")?;
        ensure!(get(lab, "/livez")?.0 == 200);
        agent.wait_event("stopping", "goes on for 3600s")?;
        // It goes on probing and deciding.
        servers[0].kill()?;
        agent.wait_routing("web/b1", "out")?;
        ensure!(agent.runs()?, "log:\n{}", agent.log());
        // A second one ends it.
        ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());

        // A short grace ends by itself.
        agent.configure(&config(lab, "shutdown_grace = \"300ms\""))?;
        agent.run(&[], &[])?;
        agent.wait_routing("web/b2", "active")?;
        agent.begin_to_end()?;
        ensure!(agent.wait_end(SOON)?.success(), "log:\n{}", agent.log());
        ensure!(agent.log().matches("told to end; goes on").count() == 2);
        Ok(())
    })
}

#[test]
fn details_need_the_token_of_the_file_as_last_loaded() -> Result<()> {
    with_lab(|lab, _servers| {
        let file = lab.folder().join("token");
        let node = format!("http_token_file = {file:?}");
        let mut agent = Agent::prepare(lab, &config(lab, &node))?;
        agent.run(&[], &[])?;
        let end = agent.wait_end(SOON)?;
        ensure!(!end.success(), "started without its token");
        let named = format!("node.http_token_file {}: No such file", file.display());
        ensure!(agent.log().contains(&named), "{}", agent.log());

        std::fs::write(&file, "0123456789abcdef-first\n")?;
        agent.run(&[], &[])?;
        agent.settled()?;
        let curl = |path: &str, token: &str| -> Result<u16> {
            let header = format!("Authorization: Bearer {token}\r\n");
            let answer = lab.lb.namespace.within(|| fetch(path, &header))??;
            let code = answer.split(' ').nth(1).context("no status")?;
            Ok(code.parse()?)
        };
        for path in ["/metrics", "/", "/healthz?verbose"] {
            ensure!(get(lab, path)?.0 == 401, "{path}");
            ensure!(curl(path, "0123456789abcdef-wrong")? == 401, "{path}");
            ensure!(curl(path, "0123456789abcdef-first")? == 200, "{path}");
        }
        for path in ["/livez", "/startupz", "/readyz", "/healthz"] {
            ensure!(get(lab, path)?.0 == 200, "{path}");
        }
        std::fs::write(&file, "0123456789abcdef-second\n")?;
        agent.lb(&["reload"])?.ok()?;
        ensure!(curl("/metrics", "0123456789abcdef-first")? == 401);
        ensure!(curl("/metrics", "0123456789abcdef-second")? == 200);
        // Without its token a configuration is refused whole.
        std::fs::remove_file(&file)?;
        let refused = agent.lb(&["reload"])?;
        ensure!(
            refused.code == Some(1) && refused.err.contains(&named),
            "{refused:?}"
        );
        ensure!(curl("/metrics", "0123456789abcdef-second")? == 200);
        Ok(())
    })
}

/// A request with this header; the whole answer.
fn fetch(path: &str, header: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", 9400))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n{header}\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn failed_probes_are_events_where_that_is_wanted() -> Result<()> {
    with_lab(|lab, servers| {
        let mut config = config(lab, "");
        let mut quiet = config.services[0].clone();
        (quiet.name, quiet.address) = ("quiet".into(), SocketAddr::new(NAT_VIP[0], 81));
        config.services[0].health += "\nunhealthy_threshold = 1000\nalways_log_failures = true";
        quiet.health += "\nunhealthy_threshold = 1000";
        config.services.push(quiet);
        let mut agent = Agent::start(lab, &config)?;
        servers[0].order(Order::Unready)?;
        let failed = |agent: &Agent<'_>| -> Result<Vec<serde_json::Value>> {
            let mut events = agent.events()?;
            events.retain(|event| event["kind"] == "probe_failed");
            Ok(events)
        };
        wait_for("several failures to be told", SOON, || {
            Ok(failed(&agent)?.len() >= 3)
        })?;
        for event in failed(&agent)? {
            ensure!(
                event["service"] == "web" && event["backend"] == "b1",
                "{event}"
            );
            ensure!(event["evidence"]["probe_class"] == "status", "{event}");
            ensure!(
                event["reason"]
                    .as_str()
                    .is_some_and(|why| why.contains("503")),
                "{event}"
            );
        }
        ensure!(agent.status()?.backend("web/b1")?.health == "healthy");

        // What changes a verdict is measured until the data plane follows.
        agent.wait_status("all to be in force", |_| Ok(true))?;
        let status = agent.raw_status()?;
        let counts = &status["node"]["verdict_gap"]["counts"];
        let counts = counts.as_array().context("no histogram")?;
        ensure!(
            counts
                .iter()
                .filter_map(|count| count.as_u64())
                .sum::<u64>()
                > 0,
            "{status}"
        );
        wait_for("the metric of the same", SOON, || {
            let text = get(lab, "/metrics")?.1;
            let count = text
                .lines()
                .find_map(|line| line.strip_prefix("lb_verdict_gap_seconds_count "));
            Ok(count.is_some_and(|count| count != "0"))
        })?;
        Ok(())
    })
}
