//! The applications of one backend: nginx and HAProxy in front of the laboratory's own servers,
//! which speak HTTP, gRPC and WebSocket, and iperf3.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::service::Mode;
use crate::lab::{Host, Lab};
use crate::pattern;
use crate::process::Process;
use crate::server::Order;
use crate::server_handle::{HTTP, Server, WEBSOCKET};

pub use crate::server_handle::GRPC;

/// Port of nginx: `/` names the backend, `/pattern` is a file, `/websocket` goes on to the
/// laboratory's server, and so does `/readyz`.
pub const NGINX: u16 = 8081;
/// Port of HAProxy, which sends all on to the laboratory's HTTP server.
pub const HAPROXY: u16 = 8082;
/// Port of the first iperf3 server.
pub const IPERF: u16 = 5201;

/// Size of the file that nginx serves, in bytes.
pub const FILE: u64 = 2 << 20;
/// What a download may take per second, in bytes: it shall last, not load the machine.
pub const RATE: u64 = 256 << 10;

/// The running applications of one backend; killed when dropped.
#[derive(Debug)]
pub struct Applications {
    server: Server,
    processes: Vec<Process>,
}

impl Applications {
    /// Starts them; whether they listen is for the probes to find out.
    pub fn start(lab: &Lab, host: &Host, modes: &[Mode]) -> Result<Self> {
        let folder = lab.folder().join(&host.name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let file = lab.folder().join("pattern");
        if !file.exists() {
            write(&file, &bytes(FILE))?;
        }
        let server = Server::start(host)?;
        let mut processes = vec![nginx(host, &folder, &file)?, haproxy(host, &folder)?];
        for mode in modes {
            processes.push(iperf(host, &folder, mode.iperf_port())?);
        }
        Ok(Self { server, processes })
    }

    /// SIGKILL for all of them: the kernel closes their connections.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()?;
        self.processes.iter_mut().try_for_each(Process::kill)
    }

    /// Makes every probe be answered with "not ready", or well again.
    pub fn ready(&mut self, ready: bool) -> Result<()> {
        let (http, grpc) = if ready {
            (Order::Ready, Order::Serving)
        } else {
            (Order::Unready, Order::NotServing)
        };
        self.server.order(http)?;
        self.server.order(grpc)
    }
}

/// Where a backend's iperf3 server writes what it does.
pub(super) fn iperf_log(lab: &Lab, host: &str, port: u16) -> PathBuf {
    lab.folder().join(host).join(format!("iperf3-{port}.log"))
}

fn bytes(length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        bytes.extend_from_slice(&pattern::chunk(
            bytes.len() as u64,
            length - bytes.len() as u64,
        ));
    }
    bytes
}

fn nginx(host: &Host, folder: &Path, file: &Path) -> Result<Process> {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.display()))
        .concat();
    // One process, so that nothing is left when it is killed.
    let text = format!(
        r#"daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
{temporary}    access_log off;
    sendfile on;
    sendfile_max_chunk 16k;
    keepalive_requests 100000000;
    keepalive_time 24h;
    keepalive_timeout 1h;
    server {{
        listen [::]:{NGINX} ipv6only=off backlog=1024;
        add_header x-backend {name} always;
        location = / {{ return 200 "{name}"; }}
        location = /pattern {{ alias {file}; limit_rate {RATE}; }}
        location = /readyz {{ proxy_pass http://127.0.0.1:{HTTP}; }}
        location = /websocket {{
            proxy_pass http://127.0.0.1:{WEBSOCKET};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
        }}
    }}
}}
"#,
        folder = folder.display(),
        file = file.display(),
        name = host.name,
    );
    let config = folder.join("nginx.conf");
    write(&config, text.as_bytes())?;
    let mut command = host.namespace.command("nginx");
    command.args(["-e", "stderr", "-p"]).arg(folder);
    command.arg("-c").arg(config);
    logged(command, &folder.join("nginx.log"), "nginx")
}

fn haproxy(host: &Host, folder: &Path) -> Result<Process> {
    let text = format!(
        "global\n    maxconn 512\n    nbthread 1\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 1h\n    \
         timeout server 1h\n    timeout http-keep-alive 1h\n\
         frontend lab\n    bind :::{HAPROXY} v4v6\n    default_backend lab\n\
         backend lab\n    server lab 127.0.0.1:{HTTP}\n"
    );
    let config = folder.join("haproxy.cfg");
    write(&config, text.as_bytes())?;
    let mut command = host.namespace.command("haproxy");
    command.args(["-db", "-f"]).arg(config);
    logged(command, &folder.join("haproxy.log"), "haproxy")
}

fn iperf(host: &Host, folder: &Path, port: u16) -> Result<Process> {
    let mut command = host.namespace.command("iperf3");
    command.args(["--server", "--forceflush", "--port", &port.to_string()]);
    let log = folder.join(format!("iperf3-{port}.log"));
    logged(command, &log, "the iperf3 server")
}

/// Starts a program with a log of its own, which goes on where an earlier one of that name ended.
fn logged(mut command: Command, log: &Path, name: &str) -> Result<Process> {
    let open = || File::options().create(true).append(true).open(log);
    let file = open().with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    Process::spawn(&mut command, name)
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
