//! A backend's servers, seen from the laboratory.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};

use crate::binaries;
use crate::lab::{DSR_VIP, Host};
use crate::process::Process;
use crate::server::Order;

/// Port of the HTTP server on a backend.
pub const HTTP: u16 = 8080;
/// Port of the gRPC server.
pub const GRPC: u16 = 50051;
/// Port of the WebSocket echo.
pub const WEBSOCKET: u16 = 7002;
/// Port of the TCP echo.
pub const TCP_ECHO: u16 = 7000;
/// Port of the UDP echo.
pub const UDP_ECHO: u16 = 7001;

/// A running process with all servers of a backend, on its addresses and on the DSR VIPs.
#[derive(Debug)]
pub struct Server {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
}

impl Server {
    /// Starts the servers of `host` and waits until they listen.
    pub fn start(host: &Host) -> Result<Self> {
        let mut command = host.namespace.command(binaries::helper()?);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .args(["--name", &host.name]);
        // Linux binds [::] for IPv4 as well.
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        for (option, port) in [
            ("--http", HTTP),
            ("--grpc", GRPC),
            ("--websocket", WEBSOCKET),
            ("--tcp", TCP_ECHO),
        ] {
            command.args([option, &SocketAddr::new(any, port).to_string()]);
        }
        let vips = DSR_VIP.into_iter().filter(|_| host.owns_vips);
        for address in [host.v4, host.v6].into_iter().chain(vips) {
            command.args(["--udp", &SocketAddr::new(address, UDP_ECHO).to_string()]);
        }
        let mut process = Process::spawn(&mut command, &format!("the servers of {}", host.name))?;
        let orders = process.child().stdin.take().context("no standard input")?;
        let answers = process
            .child()
            .stdout
            .take()
            .context("no standard output")?;
        let answers = BufReader::new(answers);
        let mut server = Self {
            process,
            orders,
            answers,
            name: host.name.clone(),
        };
        server.answered()?;
        Ok(server)
    }

    /// Makes the servers behave otherwise; true for all requests that come after the return.
    pub fn order(&mut self, order: Order) -> Result<()> {
        writeln!(self.orders, "{}", order.word())
            .with_context(|| format!("cannot give an order to {}", self.name))?;
        self.answered()
    }

    fn answered(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .with_context(|| format!("the servers of {} do not answer", self.name))?;
        if line.trim_end() != "ok" {
            bail!("the servers of {} ended or answered {line:?}", self.name);
        }
        Ok(())
    }

    /// SIGKILL: the kernel closes its sockets and refuses new connections.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Stops the process without ending it: connections are accepted by the kernel, and nobody
    /// answers.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(libc::SIGSTOP)
    }

    /// Ends [`Server::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(libc::SIGCONT)
    }
}
