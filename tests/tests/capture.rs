//! `lb capture` on real traffic, read by tshark.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::{Amount, Load};
use lb_tests::process::Process;
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const NAT: SocketAddr = SocketAddr::new(NAT_VIP[0], 80);
const NAT6: SocketAddr = SocketAddr::new(NAT_VIP[1], 80);
const DSR: SocketAddr = SocketAddr::new(DSR_VIP[0], HTTP);
const DEAD: SocketAddr = SocketAddr::new(NAT_VIP[0], 81);

fn start(lab: &Lab) -> Result<Agent<'_>> {
    let services = vec![
        Service::tcp(lab, "web", NAT, HTTP).patient(),
        Service::tcp(lab, "web6", NAT6, HTTP).patient(),
        Service::tcp(lab, "direct", DSR, HTTP).dsr().patient(),
        Service::tcp(lab, "dead", DEAD, HTTP)
            .only(&["b1"])
            .patient(),
    ];
    let mut agent = Agent::start(lab, &Config::new(services))?;
    agent.lb(&["disable", "dead/b1"])?.ok()?;
    agent.wait_routing("dead/b1", "out")?;
    Ok(agent)
}

fn requests(lab: &Lab, at: SocketAddr, count: u64) -> Result<()> {
    let tally = Load::http(&lab.client, at, false, Amount::requests(count))?.finish();
    tally.must_not_fail()
}

/// One SYN at least that nobody answers.
fn knock(lab: &Lab, at: SocketAddr) -> Result<()> {
    let knock = || TcpStream::connect_timeout(&at, Duration::from_millis(300));
    ensure!(lab.client.namespace.within(knock)?.is_err(), "{at} answers");
    Ok(())
}

/// An `lb capture` in the background, whose output goes into files.
struct Capture {
    process: Process,
    out: PathBuf,
    err: PathBuf,
}

impl Capture {
    fn start(lab: &Lab, agent: &mut Agent<'_>, arguments: &[&str]) -> Result<Self> {
        let [out, err] = ["capture.out", "capture.err"].map(|name| lab.folder().join(name));
        let mut command = agent.command(&["capture"]);
        command
            .args(arguments)
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        let process = Process::spawn(&mut command, "lb capture")?;
        capturing(agent, true)?;
        Ok(Self { process, out, err })
    }

    /// Waits for its end: exit code, standard output and standard error.
    fn finish(mut self) -> Result<(Option<i32>, String, String)> {
        let status = self.process.wait(SOON)?;
        let read = |path: &Path| std::fs::read_to_string(path).context("its output");
        Ok((status.code(), read(&self.out)?, read(&self.err)?))
    }
}

fn capturing(agent: &mut Agent<'_>, wanted: bool) -> Result<()> {
    agent.wait_status("the capture to begin or end", |status| {
        Ok(status.node.capturing == wanted)
    })
}

/// These fields of each packet, as Wireshark has them.
fn tshark(file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=|", "-r"]);
    command.arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().context("cannot run tshark")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {error}");
    // It tells of a damaged or unfinished file so, and goes on.
    ensure!(!error.contains("appears"), "tshark: {error}");
    let text = String::from_utf8(output.stdout)?;
    let fields = |line: &str| line.split('|').map(str::to_owned).collect();
    Ok(text.lines().map(fields).collect())
}

#[test]
fn wireshark_shows_each_packet_with_its_backend_or_the_reason() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let file = lab.folder().join("all.pcapng");
        let path = file.to_str().context("a path")?;
        let began = SystemTime::now();
        let capture = Capture::start(lab, &mut agent, &["--all", "-w", path, "-s", "4096"])?;
        for at in [NAT, NAT6, DSR] {
            requests(lab, at, 20)?;
        }
        knock(lab, DEAD)?;
        let nobody = SocketAddr::new(NAT_VIP[0], 9);
        // The host itself answers where no service is, or nobody does.
        let knocked = || TcpStream::connect_timeout(&nobody, Duration::from_millis(300)).is_err();
        ensure!(lab.client.namespace.within(knocked)?);
        capture.process.signal(libc::SIGINT)?;
        let (code, out, err) = capture.finish()?;
        ensure!(code == Some(0) && out.is_empty(), "{code:?} {out}{err}");
        ensure!(err.contains("none lost"), "{err}");
        capturing(&mut agent, false)?;

        let fields = [
            "frame.comment",
            "ip.dst",
            "frame.verdict.ebpf_xdp",
            "frame.interface_name",
            "frame.time_epoch",
            "tcp.checksum.status",
            "http.request.method",
            "frame.packet_flags_direction",
        ];
        let packets = tshark(&file, &fields)?;
        let told = format!("lb: {} packets captured", packets.len());
        ensure!(err.contains(&told[4..]), "{err} of {}", packets.len());
        let with = |start: &str, end: &str| {
            let mut comments = packets.iter().map(|fields| &fields[0]);
            comments
                .any(|comment| comment.starts_with(start) && comment.contains(end))
                .then_some(())
                .with_context(|| format!("no {start:?} with {end:?} in {packets:#?}"))
        };
        for number in 1..=3 {
            let at = lab.backend(number);
            let (name, v4, v6) = (&at.name, at.v4, at.v6);
            let [lb4, lb6] = [lab.lb.v4, lab.lb.v6];
            let to4 = format!("by nat, as {lb4}:");
            with(&format!("to web/{name} ({v4}:{HTTP}) "), &to4)?;
            with(
                &format!("to web6/{name} ([{v6}]:{HTTP}) "),
                &format!("as [{lb6}]:"),
            )?;
            with(&format!("to direct/{name} ({v4}:{HTTP}) by dsr"), "")?;
            let client = format!("as {NAT} > {}:", lab.client.v4);
            with(&format!("nat_reply from web/{name} ({v4}:{HTTP})"), &client)?;
        }
        with("drop_no_backend, dead", "The service has no backend")?;
        with("pass_no_service, no service", "no service has this port")?;
        let since = began.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        for fields in &packets {
            let [comment, dst, verdict, interface, at, ..] = &fields[..] else {
                anyhow::bail!("{fields:?}");
            };
            // As they came in: from the client to the VIP, and from a backend to the balancer.
            let vip = !comment.starts_with("nat_reply");
            let own = *dst == lab.lb.v4.to_string() || dst.is_empty();
            ensure!(dst.is_empty() || vip != own, "{fields:?}");
            let action = match comment.split('_').next() {
                Some("drop") => "1",
                Some("pass") => "2",
                _ => "3",
            };
            ensure!(verdict.contains(action), "{fields:?}");
            ensure!(interface == "eth0", "{fields:?}");
            let at: f64 = at.parse().context("a time")?;
            ensure!((since - 1.0..since + 600.0).contains(&at), "{fields:?}");
        }
        ensure!(
            packets.iter().any(|fields| fields[6] == "GET"),
            "the requests themselves are in the file"
        );
        Ok(())
    })
}

#[test]
fn a_service_is_captured_in_lines_and_in_json() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let capture = Capture::start(lab, &mut agent, &["web", "--count", "30"])?;
        // Of two services one is wanted.
        requests(lab, DSR, 10)?;
        requests(lab, NAT, 20)?;
        let (code, out, err) = capture.finish()?;
        ensure!(code == Some(0), "{err}");
        ensure!(err.contains("30 packets captured, none lost"), "{err}");
        let lines: Vec<&str> = out.lines().collect();
        ensure!(lines.len() == 30, "{out}");
        for line in &lines {
            let to = line.contains("to web/b") && line.contains(&format!(" > {NAT}  tcp "));
            ensure!(to || line.contains("nat_reply from web/b"), "{line}");
        }
        capturing(&mut agent, false)?;

        let capture = Capture::start(lab, &mut agent, &["dead", "--json", "-n", "1"])?;
        knock(lab, DEAD)?;
        let (code, out, err) = capture.finish()?;
        ensure!(code == Some(0), "{err}");
        let packet: serde_json::Value = serde_json::from_str(&out)?;
        ensure!(packet["verdict"] == "drop_no_backend", "{packet}");
        ensure!(packet["service"] == "dead", "{packet}");
        Ok(())
    })
}

#[test]
fn a_capture_ends_with_its_client_and_with_its_agent() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let unknown = agent.lb(&["capture", "wbe"])?;
        ensure!(unknown.code == Some(2), "{unknown:?}");
        ensure!(unknown.err.contains("did you mean \"web\"?"), "{unknown:?}");
        ensure!(agent.lb(&["capture"])?.code == Some(2), "of what?");

        let mut first = Capture::start(lab, &mut agent, &["web"])?;
        let second = agent.lb(&["capture", "web"])?;
        ensure!(second.code == Some(1), "{second:?}");
        ensure!(second.err.contains("another capture"), "{second:?}");
        first.process.kill()?;
        capturing(&mut agent, false)?;

        let third = Capture::start(lab, &mut agent, &["web"])?;
        agent.kill()?;
        let (code, _, err) = third.finish()?;
        ensure!(code == Some(1), "{err}");
        ensure!(err.contains("the agent ended"), "{err}");
        // What the dead agent left behind is over with the next one, at the latest.
        agent.run(&[], &[])?;
        capturing(&mut agent, false)?;
        let events = agent.events()?;
        let captures = events.iter().filter(|event| {
            let reason = event["reason"].as_str().unwrap_or_default();
            reason.starts_with("captures the packets of service web")
        });
        ensure!(captures.count() == 2, "{events:#?}");
        wait_for("requests to be answered", SOON, || {
            Ok(requests(lab, NAT, 20).is_ok())
        })
    })
}
