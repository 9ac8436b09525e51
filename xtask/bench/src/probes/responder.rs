//! Who answers the probes: one nginx with one worker, on every address of a network.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::load::http::Client;
use lb_tests::process::Process;
use lb_tests::wait::wait_for;
use lb_tests::{Lab, wait};

/// Plain HTTP.
pub const HTTP: u16 = 8080;
/// HTTPS.
pub const HTTPS: u16 = 8443;
/// What it counted.
const COUNT: u16 = 8090;

/// The responder's network: every address in it is its own.
const NETWORK: &str = "10.80.0.0/16";

/// A running nginx in the namespace of `b1`.
pub struct Responder<'lab> {
    lab: &'lab Lab,
    process: Process,
    log: PathBuf,
}

/// What was asked of it so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// Requests answered.
    pub requests: u64,
    /// Connections accepted.
    pub connections: u64,
    /// TLS handshakes with and without a session resumed, of requests answered.
    pub resumed: u64,
    pub full: u64,
}

impl Asked {
    /// What came since `before`, without the question itself.
    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests - 1,
            connections: self.connections - before.connections - 1,
            resumed: self.resumed - before.resumed,
            full: self.full - before.full,
        }
    }
}

/// The `number`th address of the network.
pub fn address(number: u16) -> Ipv4Addr {
    let [high, low] = (number + 1).to_be_bytes();
    Ipv4Addr::new(10, 80, high, low)
}

impl<'lab> Responder<'lab> {
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let host = &lab.backend(1).namespace;
        host.ip(&format!("route add local {NETWORK} dev lo"))?;
        host.sysctl(&[
            ("core/somaxconn", "16384"),
            ("ipv4/tcp_max_syn_backlog", "16384"),
        ])?;
        let way = format!("route add {NETWORK} via {}", lab.backend(1).v4);
        lab.lb.namespace.ip(&way)?;
        let folder = lab.folder();
        let log = folder.join("sessions.log");
        let key = rcgen::generate_simple_self_signed(vec!["responder".to_owned()])
            .context("cannot make a certificate")?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))
                .map(|()| path)
        };
        let certificate = write("responder.pem", &key.cert.pem())?;
        let private = write("responder.key", &key.signing_key.serialize_pem())?;
        let config = format!(
            "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 60000;\npid {folder}/nginx.pid;\n\
             error_log {folder}/nginx.log;\nevents {{ worker_connections 30000; }}\nhttp {{\n\
             access_log off;\nlog_format session $ssl_session_reused;\n\
             keepalive_requests 1000000;\nkeepalive_timeout 300s;\n\
             client_body_temp_path {folder}/nginx-1;\nproxy_temp_path {folder}/nginx-2;\n\
             fastcgi_temp_path {folder}/nginx-3;\nuwsgi_temp_path {folder}/nginx-4;\n\
             scgi_temp_path {folder}/nginx-5;\n\
             server {{\nlisten {HTTP} backlog=16384;\n\
             location = /readyz {{ return 200 ok; }}\n}}\n\
             server {{\nlisten {HTTPS} ssl backlog=16384;\n\
             ssl_certificate {certificate};\nssl_certificate_key {private};\n\
             ssl_session_cache shared:all:20m;\n\
             access_log {log} session buffer=4k flush=100ms;\n\
             location = /readyz {{ return 200 ok; }}\n}}\n\
             server {{\nlisten {COUNT};\nlocation = /count {{ stub_status; }}\n}}\n}}\n",
            folder = folder.display(),
            certificate = certificate.display(),
            private = private.display(),
            log = log.display(),
        );
        let config = write("responder.conf", &config)?;
        let mut command = host.command("nginx");
        command.arg("-e").arg(folder.join("nginx.log"));
        command.arg("-p").arg(folder).arg("-c").arg(&config);
        let process = Process::spawn(&mut command, "nginx")?;
        let mut responder = Self { lab, process, log };
        wait_for("nginx to answer", SOON, || {
            let ended = responder.process.ended()?;
            ensure!(ended.is_none(), "nginx ended; see {}", config.display());
            Ok(responder.count().is_ok())
        })?;
        Ok(responder)
    }

    fn count(&self) -> Result<(u64, u64)> {
        let to = SocketAddr::new(self.lab.backend(1).v4, COUNT);
        let namespace = &self.lab.client.namespace;
        let (status, body) = namespace.within(|| Client::new(to, false).fetch("/count"))??;
        let text = String::from_utf8_lossy(&body);
        ensure!(status == 200, "nginx answers {status}: {text}");
        counters(&text).with_context(|| format!("nginx counts:\n{text}"))
    }

    /// What it has been asked until now.
    pub fn asked(&self) -> Result<Asked> {
        let (connections, requests) = self.count()?;
        // The log is behind by its buffer's time.
        wait::pause(std::time::Duration::from_millis(200))?;
        let log = std::fs::read(&self.log)
            .with_context(|| format!("cannot read {}", self.log.display()))?;
        let resumed = log.iter().filter(|byte| **byte == b'r').count() as u64;
        let full = log.iter().filter(|byte| **byte == b'.').count() as u64;
        Ok(Asked {
            requests,
            connections,
            resumed,
            full,
        })
    }
}

/// Connections accepted and requests, from the page of `stub_status`:
///
/// ```text
/// Active connections: 1
/// server accepts handled requests
///  12 12 34
/// ```
fn counters(page: &str) -> Option<(u64, u64)> {
    let mut numbers = page.lines().nth(2)?.split_whitespace();
    let accepts = numbers.next()?.parse().ok()?;
    let requests = numbers.nth(1)?.parse().ok()?;
    Some((accepts, requests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_counters_is_read() {
        let page = "Active connections: 1 \nserver accepts handled requests\n 12 12 34 \n\
                    Reading: 0 Writing: 1 Waiting: 0 \n";
        assert_eq!(counters(page), Some((12, 34)));
        assert_eq!(counters("no\n"), None);
    }

    #[test]
    fn addresses_are_in_the_network() {
        assert_eq!(address(0), Ipv4Addr::new(10, 80, 0, 1));
        assert_eq!(address(9_999), Ipv4Addr::new(10, 80, 39, 16));
    }
}
