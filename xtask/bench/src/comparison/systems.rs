//! The balancers, each set up as its manual has it for the same checks at the same pace.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::lab::NAT_VIP;
use lb_tests::process::Process;
use lb_tests::server_handle::HTTP;
use lb_tests::wait::wait_for;
use lb_tests::{Agent, Config, Lab, Service, agent::SOON};

/// Where requests go.
pub const VIP: IpAddr = NAT_VIP[0];
pub const PORT: u16 = 80;

/// The probe of `lb`: 1 s, 500 ms once one has failed, 400 ms for each, 3 to eject and 2 to return.
const PROBE: &str = "probe = \"http\"\npath = \"/readyz\"\nport = 8080\ninterval = \"1s\"\n\
                     fast_interval = \"500ms\"\ntimeout = \"400ms\"\nunhealthy_threshold = 3\n\
                     healthy_threshold = 2";
/// Further lines of the service of `lb`.
const OPTIONS: &str = "drain_deadline = \"5s\"\npassive_http = \"eject\"";
/// The same check of HAProxy.
const CHECK: &str = "option httpchk\n  http-check send meth GET uri /readyz ver HTTP/1.1 \
                     hdr Host web.example hdr Connection close\n  http-check expect status 200\n  \
                     timeout check 400ms\n  \
                     default-server inter 1s fastinter 500ms fall 3 rise 2 check";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Lb,
    HaproxyTcp,
    HaproxyHttp,
    Nginx,
}

impl System {
    pub const ALL: [Self; 4] = [Self::Lb, Self::HaproxyTcp, Self::HaproxyHttp, Self::Nginx];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Lb => "lb, NAT",
            Self::HaproxyTcp => "HAProxy, TCP mode",
            Self::HaproxyHttp => "HAProxy, HTTP mode",
            Self::Nginx => "nginx, HTTP",
        }
    }

    /// Starts it and waits until it serves.
    pub fn start(self, lab: &Lab) -> Result<Running<'_>> {
        let at = SocketAddr::new(VIP, PORT);
        match self {
            Self::Lb => {
                let service = Service::tcp(lab, "web", at, HTTP)
                    .health(PROBE)
                    .options(OPTIONS);
                // An earlier run's ejections would count.
                match std::fs::remove_dir_all(lab.folder().join("state")) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).context("removing the state of an earlier run");
                    }
                    _ => {}
                }
                let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
                agent.tell_log = false;
                Ok(Running::Lb(agent))
            }
            Self::HaproxyTcp | Self::HaproxyHttp => {
                own_vip(lab, true)?;
                let file = write(lab, "haproxy.cfg", &self.haproxy(lab))?;
                let mut command = lab.lb.namespace.command("haproxy");
                command.args(["-db", "-q", "-f"]).arg(&file);
                let socket = lab.folder().join("haproxy.sock");
                Running::proxy(
                    lab,
                    Process::spawn(&mut command, "haproxy")?,
                    Sign::Stat(socket),
                )
            }
            Self::Nginx => {
                own_vip(lab, true)?;
                let file = write(lab, "nginx.conf", &nginx(lab))?;
                let log = lab.folder().join("nginx.log");
                std::fs::write(&log, "")
                    .with_context(|| format!("cannot empty {}", log.display()))?;
                let mut command = lab.lb.namespace.command("nginx");
                command.arg("-p").arg(lab.folder()).arg("-e").arg(&log);
                command.arg("-c").arg(&file);
                Running::proxy(lab, Process::spawn(&mut command, "nginx")?, Sign::Log(log))
            }
        }
    }

    fn haproxy(self, lab: &Lab) -> String {
        // What the requests themselves show is looked at too where HAProxy reads them.
        let (mode, observe) = match self {
            Self::HaproxyHttp => ("http", " observe layer7 error-limit 10 on-error mark-down"),
            Self::HaproxyTcp | Self::Lb | Self::Nginx => ("tcp", ""),
        };
        let mut text = format!(
            "global\n  nbthread 1\n  maxconn 4096\n  stats socket {}/haproxy.sock\n\
             defaults\n  mode {mode}\n  timeout connect 1s\n  timeout client 10s\n  \
             timeout server 2s\n  retries 3\n  option redispatch 1\n\
             frontend in\n  bind {VIP}:{PORT}\n  default_backend web\n\
             backend web\n  balance roundrobin\n  {CHECK}{observe}\n",
            lab.folder().display()
        );
        for host in &lab.backends {
            text.push_str(&format!("  server {} {}:{HTTP}\n", host.name, host.v4));
        }
        text
    }
}

/// nginx's own means: failures of requests (`max_fails`), which it sends on to the next server. It
/// counts a 500 as one only if it is told to.
fn nginx(lab: &Lab) -> String {
    let servers = lab
        .backends
        .iter()
        .map(|host| format!("server {}:{HTTP} max_fails=3 fail_timeout=10s;\n", host.v4));
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\n\
         error_log {folder}/nginx.log warn;\nevents {{ worker_connections 4096; }}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {folder}/nginx-1;\n\
         proxy_temp_path {folder}/nginx-2;\nfastcgi_temp_path {folder}/nginx-3;\n\
         uwsgi_temp_path {folder}/nginx-4;\nscgi_temp_path {folder}/nginx-5;\n\
         upstream web {{\n{servers}}}\n\
         server {{\nlisten {VIP}:{PORT};\nlocation / {{\nproxy_pass http://web;\n\
         proxy_connect_timeout 1s;\nproxy_read_timeout 2s;\n\
         proxy_next_upstream error timeout http_500;\n}}\n}}\n}}\n",
        folder = lab.folder().display(),
        servers = servers.collect::<String>()
    )
}

/// A proxy ends the clients' connections, so the VIP is its host's own.
fn own_vip(lab: &Lab, own: bool) -> Result<()> {
    let word = if own { "add" } else { "del" };
    let line = format!("addr {word} {VIP}/32 dev lo");
    lab.lb.namespace.ip(&line)
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.folder().join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// By what a proxy shows that it has ejected a backend.
pub enum Sign {
    /// HAProxy's statistics.
    Stat(PathBuf),
    /// nginx's error log.
    Log(PathBuf),
}

/// A balancer at work.
pub enum Running<'lab> {
    Lb(Agent<'lab>),
    Proxy {
        lab: &'lab Lab,
        process: Process,
        sign: Sign,
    },
}

impl<'lab> Running<'lab> {
    fn proxy(lab: &'lab Lab, process: Process, sign: Sign) -> Result<Self> {
        let host = &lab.lb.namespace;
        let mut running = Self::Proxy { lab, process, sign };
        let at = format!("{VIP}:{PORT}");
        wait_for("the proxy to listen", SOON, || {
            if let Self::Proxy { process, .. } = &mut running {
                ensure!(process.ended()?.is_none(), "the proxy ended");
            }
            Ok(host.run("ss", &["-Hltn"])?.contains(&at))
        })?;
        Ok(running)
    }

    /// Whether it sends nothing to `b1` any more, by its own word.
    pub fn ejected(&self) -> Result<bool> {
        match self {
            Self::Lb(agent) => {
                let status = agent.status()?;
                let routing = &status.backend("web/b1")?.routing;
                Ok(routing == "out" || routing == "draining")
            }
            Self::Proxy { sign, .. } => match sign {
                Sign::Stat(socket) => {
                    let statistics = ask(socket, "show stat\n")?;
                    let line = statistics.lines().find(|line| line.starts_with("web,b1,"));
                    let line = line.context("HAProxy tells nothing of b1")?;
                    Ok(line.split(',').any(|field| field == "DOWN"))
                }
                Sign::Log(path) => {
                    let log = std::fs::read_to_string(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    Ok(log.contains("temporarily disabled"))
                }
            },
        }
    }

    /// Ends it, and takes off all that it has made.
    pub fn end(self) -> Result<()> {
        match self {
            Self::Lb(mut agent) => {
                agent.terminate()?;
                agent.lb(&["detach"])?.ok().map(drop)
            }
            Self::Proxy {
                lab, mut process, ..
            } => {
                process.kill()?;
                own_vip(lab, false)
            }
        }
    }
}

/// One command to HAProxy's socket.
fn ask(socket: &PathBuf, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(command.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
