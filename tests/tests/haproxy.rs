//! The socket for HAProxy's commands, beside a real HAProxy with the same backends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::process::Process;
use lb_tests::server::Order;
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

/// Sends a line; all that comes until the other end closes.
fn ask(socket: &Path, line: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
    stream.set_read_timeout(Some(SOON))?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn socket(lab: &Lab) -> PathBuf {
    lab.folder().join("haproxy.sock")
}

/// An agent with the socket and a service `web` of all backends.
fn agent<'lab>(lab: &'lab Lab) -> Result<Agent<'lab>> {
    let web = SocketAddr::new(NAT_VIP[0], 80);
    let mut config = Config::new(vec![Service::tcp(lab, "web", web, HTTP)]);
    config.node = format!("haproxy_socket = {:?}", socket(lab));
    Agent::start(lab, &config)
}

/// HAProxy with the same service, and its socket. `None` if it is not installed.
fn haproxy(lab: &Lab) -> Result<Option<(Process, PathBuf)>> {
    let found = lab.lb.namespace.command("haproxy").arg("-v").output();
    if found.is_err() {
        println!("the comparison is left out: `haproxy` is not installed");
        return Ok(None);
    }
    let socket = lab.folder().join("real.sock");
    let mut config = format!(
        "global\n stats socket {} level admin\n nbthread 1\n\
         defaults\n mode tcp\n timeout connect 1s\n timeout client 9s\n timeout server 9s\n\
         listen web\n bind 127.0.0.1:18080\n option httpchk GET /readyz\n\
         default-server check inter 300ms weight 100\n",
        socket.display()
    );
    for host in &lab.backends {
        config += &format!(" server {} {}:{HTTP}\n", host.name, host.v4);
    }
    let file = lab.folder().join("haproxy.cfg");
    std::fs::write(&file, config)?;
    let mut command = lab.lb.namespace.command("haproxy");
    command.args(["-db", "-f"]).arg(&file);
    let process = Process::spawn(&mut command, "haproxy")?;
    wait_for("HAProxy's socket", SOON, || {
        Ok(UnixStream::connect(&socket).is_ok())
    })?;
    Ok(Some((process, socket)))
}

/// The fields of a line of CSV; quotes hold one together that has commas.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    for (part, text) in line.split('"').enumerate() {
        if part % 2 == 1 {
            fields.last_mut().expect("one at least").push_str(text);
            continue;
        }
        let mut outside = text.split(',');
        let rest = outside.next().unwrap_or_default();
        fields.last_mut().expect("one at least").push_str(rest);
        fields.extend(outside.map(str::to_owned));
    }
    fields
}

/// The lines of `show stat` by `svname`, each with its columns by name, as scripts read them.
fn stat(socket: &Path) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let text = ask(socket, "show stat")?;
    let mut lines = text.lines();
    let header = lines.next().and_then(|line| line.strip_prefix("# "));
    let header: Vec<&str> = header.context("no header")?.split(',').collect();
    let mut rows = BTreeMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let fields = fields(line);
        ensure!(fields.len() == header.len(), "{line}");
        let row: BTreeMap<String, String> = (header.iter().zip(fields))
            .map(|(name, field)| ((*name).to_owned(), field))
            .collect();
        rows.insert(row["svname"].clone(), row);
    }
    Ok(rows)
}

/// A line of `show servers state` for each server, by its name.
fn states(socket: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = ask(socket, "show servers state web")?;
    let lines = text.lines().skip(2).filter(|line| !line.is_empty());
    let rows = lines.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    Ok(rows.map(|row| (row[3].clone(), row)).collect())
}

/// Columns of `show stat` that both must fill alike. Those of the checks count while a server is not
/// in maintenance: HAProxy does not check it then.
const ALIKE: [&str; 13] = [
    "pxname", "svname", "status", "weight", "uweight", "act", "bck", "pid", "iid", "sid", "type",
    "addr", "mode",
];
const CHECKS: [&str; 3] = ["check_status", "check_code", "check_desc"];

/// Waits until both say the same of every server.
fn wait_alike(when: &str, lb: &Path, real: &Path) -> Result<()> {
    let mut different = String::new();
    let alike = wait_for(&format!("both to be alike {when}"), SOON, || {
        different.clear();
        let (ours, theirs) = (stat(lb)?, stat(real)?);
        ensure!(ours.keys().eq(theirs.keys()), "{ours:?}\n{theirs:?}");
        for (name, row) in &theirs {
            let checked = match row["status"].as_str() {
                "MAINT" => &[][..],
                _ => &CHECKS,
            };
            for column in ALIKE.iter().chain(checked) {
                let (ours, theirs) = (&ours[name][*column], &row[*column]);
                if ours != theirs {
                    different += &format!("{name} {column}: {ours:?}, HAProxy: {theirs:?}\n");
                }
            }
        }
        let (ours, theirs) = (states(lb)?, states(real)?);
        ensure!(ours.keys().eq(theirs.keys()), "{ours:?}\n{theirs:?}");
        for (name, row) in &theirs {
            ensure!(row.len() == ours[name].len(), "{row:?}\n{:?}", ours[name]);
            // Up to the weights; in maintenance HAProxy keeps the check's last outcome.
            let checked = if row[6] == "1" { 0..0 } else { 10..12 };
            for place in (0..9).chain(checked).chain(15..25) {
                let (ours, theirs) = (&ours[name][place], &row[place]);
                if ours != theirs {
                    different += &format!("{name} state {place}: {ours}, HAProxy: {theirs}\n");
                }
            }
        }
        Ok(different.is_empty())
    });
    alike.with_context(|| different)
}

/// What both answer with the same bytes, in this order.
const SAME: &[&str] = &[
    "show backend",
    "get weight web/b1",
    "set server web/b1 weight 50",
    "get weight web/b1",
    "set weight web/b1 25%",
    "get weight web/b1; get weight web/b2",
    "set weight web/b1 0",
    "get weight #2/#1",
    "set server web/b1 weight 100%",
    "get weight web/b1",
    "set server #2/#1 state drain",
    "set server web/b1 state ready",
    "disable server web/b1",
    "disable server web/b1",
    "enable server web/b1",
    "enable health web/b1",
    "  get   weight  web/b1 ",
    "quit",
    "get weight web/b1;quit;get weight web/b1",
    "set server",
    "set server web state ready",
    "set server nope/b1 state ready",
    "set server web/nope state ready",
    "set server web/b1 state",
    "set server web/b1 state bogus",
    "set server web/b1 weight",
    "set server web/b1 weight -5%",
    "set server web/b1 health bogus",
    "set weight web 3",
    "set weight nope/b1 3",
    "set weight web/nope 3",
    "set weight web/b1",
    "get weight",
    "get weight web/nope",
    "enable health web/nope",
    "disable health",
    "disable health web/nope",
    "disable health web/b1",
    "disable health web/b1",
    "set server web/b1 health down",
    "set server web/b1 health stopping",
    "set server web/b1 health up",
    "set server web/b1 health",
    "enable health web/b1",
    "disable server nope/b1",
    "show servers state nope",
    "show servers conn nope",
];

/// What both begin with the same words: the rest names what each has.
const BEGIN: &[(&str, &str)] = &[
    ("bogus", "Unknown command"),
    (
        "",
        "Unknown command. Please enter one of the following commands only:\n",
    ),
    (
        "show servers",
        "Unknown command, but maybe one of the following ones is a better match:\n",
    ),
    ("help", "The following commands are valid at this level:\n"),
    ("set server web/b1", "usage: set server <backend>/<server> "),
    (
        "set server web/b1 weight 70000",
        "Absolute weight can only be between 0 and ",
    ),
    (
        "set server web/b1 weight abc",
        "Empty weight string empty or preceded by garbage\n",
    ),
    (
        "set server web/b1 weight 5x",
        "Trailing garbage in weight string\n",
    ),
    ("show info", "Name: HAProxy\nVersion: "),
    ("show servers state", "1\n# be_id be_name srv_id "),
    (
        "show servers conn",
        "# bkname/svname bkid/svid addr port - purge_delay used_cur",
    ),
];

#[test]
fn answers_have_the_shape_of_haproxys() -> Result<()> {
    with_lab(|lab, servers| {
        let _agent = agent(lab)?;
        let Some((_process, real)) = haproxy(lab)? else {
            return Ok(());
        };
        let lb = socket(lab);
        wait_alike("at first", &lb, &real)?;
        for line in SAME {
            let (ours, theirs) = (ask(&lb, line)?, ask(&real, line)?);
            ensure!(ours == theirs, "{line}: {ours:?}, HAProxy: {theirs:?}");
        }
        for (line, begin) in BEGIN {
            for socket in [&lb, &real] {
                let answer = ask(socket, line)?;
                ensure!(answer.starts_with(begin), "{line}: {answer:?}");
            }
        }
        // Headers, up to where HAProxy ends what it promises.
        for line in ["show stat", "show servers state", "show servers conn"] {
            let head = |socket| -> Result<String> {
                let answer = ask(socket, line)?;
                let head: Vec<&str> = answer.split('\n').take(2).collect();
                let head = if line == "show stat" {
                    head[0]
                } else {
                    &head.join("\n")
                };
                let promised = head.split(",-,").next().unwrap_or_default();
                Ok(promised
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .collect())
            };
            ensure!(head(&lb)? == head(&real)?, "{line}: {}", head(&lb)?);
        }
        let both = |line: &str| -> Result<()> {
            ask(&lb, line)?;
            ask(&real, line)?;
            Ok(())
        };
        both("set server web/b1 state drain;set server web/b2 weight 30")?;
        wait_alike("with one drained", &lb, &real)?;
        both("set server web/b1 state maint")?;
        wait_alike("with one in maintenance", &lb, &real)?;
        both("set server web/b1 state ready;set server web/b2 weight 100%")?;
        wait_alike("again", &lb, &real)?;
        // Health by word: it stands while nobody asks.
        both("disable health web/b1")?;
        wait_alike("with one that is not checked", &lb, &real)?;
        for health in ["down", "stopping", "up"] {
            both(&format!("set server web/b1 health {health}"))?;
            wait_alike(&format!("with one that is set to {health}"), &lb, &real)?;
        }
        servers[0].order(Order::Unready)?;
        servers[1].order(Order::Unready)?;
        wait_alike("with two that answer 503, one unseen", &lb, &real)?;
        ensure!(stat(&lb)?["b1"]["status"] == "no check");
        both("set server web/b1 health down;enable health web/b1")?;
        for server in &mut servers[..2] {
            server.order(Order::Ready)?;
        }
        wait_alike("with all checked again", &lb, &real)?;
        // Else the checks have the next word.
        both("set server web/b1 health down")?;
        wait_for("both to have it back", SOON, || {
            let is_up = |socket| -> Result<bool> { Ok(stat(socket)?["b1"]["status"] == "UP") };
            Ok(is_up(&lb)? && is_up(&real)?)
        })?;
        servers[0].order(Order::Unready)?;
        wait_alike("with one that answers 503", &lb, &real)?;
        servers[0].kill()?;
        wait_alike("with one that is dead", &lb, &real)?;
        Ok(())
    })
}

#[test]
fn a_script_for_haproxy_drains_a_backend_and_the_events_say_who() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = agent(lab)?;
        let lb = socket(lab);
        ensure!(ask(&lb, "set server web/b1 state drain")? == "\n");
        agent.wait_routing("web/b1", "draining")?;
        ensure!(ask(&lb, "set server web/b1 state maint; set weight web/b2 30")? == "\n\n");
        agent.wait_routing("web/b1", "out")?;
        agent.wait_status("both words", |status| {
            let (b1, b2) = (status.backend("web/b1")?, status.backend("web/b2")?);
            Ok(b1.admin == "disabled" && b2.weight == 30)
        })?;
        // Answered when it is kept, so it outlives the agent.
        agent.kill()?;
        agent.run(&[], &[])?;
        agent.wait_status("the words of before", |status| {
            let (b1, b2) = (status.backend("web/b1")?, status.backend("web/b2")?);
            Ok(b1.admin == "disabled" && b2.weight == 30)
        })?;
        ensure!(ask(&lb, "enable server web/b1;set weight web/b2 100%")? == "\n\n");
        agent.settled()?;
        // So does a server's health, and lb's own commands take it back.
        ensure!(ask(&lb, "disable health web/b3; set server web/b3 health down")? == "\n\n");
        agent.wait_status("one that is set down", |status| {
            let b3 = status.backend("web/b3")?;
            Ok(b3.health == "unhealthy" && b3.routing != "active")
        })?;
        agent.kill()?;
        agent.run(&[], &[])?;
        agent.wait_status("the others to be back", |status| {
            let (b1, b3) = (status.backend("web/b1")?, status.backend("web/b3")?);
            Ok(b1.routing == "active" && b3.reason.contains("set to unhealthy by the operator"))
        })?;
        let text = agent.lb(&["status", "web"])?.ok()?;
        ensure!(text.contains("NOT PROBED for "), "{text}");
        ensure!(text.contains("probing   paused for "), "{text}");
        let done = agent.lb(&["probes", "resume", "web/b3"])?.ok()?;
        ensure!(done == "the probes of web/b3 go on\n", "{done}");
        agent.settled()?;
        let done = agent.lb(&["probes", "set", "web/b3", "leaving"])?.ok()?;
        ensure!(done == "web/b3 is set to leaving\n", "{done}");
        agent.settled()?;

        let events = agent.events()?;
        let told = |backend: &str| -> Vec<_> {
            let events = events.iter().filter(|event| event["kind"] == "admin");
            events.filter(|event| event["backend"] == backend).collect()
        };
        ensure!(told("b1").len() == 3 && told("b2").len() == 2, "{events:?}");
        for event in told("b1").into_iter().chain(told("b2")) {
            let origin = &event["origin"];
            ensure!(origin["by"] == "operator", "{origin}");
            ensure!(origin["via"] == "haproxy_socket", "{origin}");
            ensure!(origin["pid"] == std::process::id(), "{origin}");
        }
        let text = agent.lb(&["events"])?.ok()?;
        ensure!(
            text.contains("by drain on the HAProxy socket (uid 0"),
            "{text}"
        );

        let info = ask(&lb, "show info")?;
        let pid = agent.process_id().context("it runs")?;
        ensure!(info.contains(&format!("\nPid: {pid}\n")), "{info}");
        ensure!(info.contains("\nUptime_sec: "), "{info}");
        Ok(())
    })
}
