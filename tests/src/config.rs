//! Configurations for the agent under test, written as the TOML a user would write.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::lab::{Host, Lab};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `native`, `generic` or `auto`.
    pub xdp_mode: &'static str,
    /// Where the program goes.
    pub interfaces: &'static [&'static str],
    /// Further lines of `[node]`.
    pub node: String,
    /// Its services.
    pub services: Vec<Service>,
}

/// A `[[service]]`.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// VIP and port.
    pub address: SocketAddr,
    /// Ports as they are written, such as `8000-8099` or `*`, where it has several; its backends
    /// then keep them.
    pub ports: Option<&'static str>,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// `nat`, `dsr`, `ipip` or `gue`.
    pub forwarding: &'static str,
    /// Further lines of `[[service]]`.
    pub options: String,
    /// Lines of `[service.health]`.
    pub health: String,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// A `[[service.backend]]`.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address and port.
    pub address: SocketAddr,
    /// Further lines.
    pub options: String,
}

/// A quick HTTP probe: out within `3 × 300 ms + 250 ms`, and a jitter of 5 %.
const QUICK: &str = "interval = \"300ms\"\ntimeout = \"250ms\"";
/// One that bears with a busy machine, for tests in which nothing fails.
const PATIENT: &str = "interval = \"2s\"\ntimeout = \"1900ms\"";

fn probe(pace: &str) -> String {
    let port = crate::server_handle::HTTP;
    format!("probe = \"http\"\npath = \"/readyz\"\nport = {port}\n{pace}")
}

impl Service {
    /// A TCP service in NAT mode over all backends of the laboratory, on `port` of each, with the
    /// quick HTTP probe of their HTTP server.
    pub fn tcp(lab: &Lab, name: &str, address: SocketAddr, port: u16) -> Self {
        Self {
            name: name.into(),
            address,
            ports: None,
            protocol: "tcp",
            forwarding: "nat",
            options: "drain_deadline = \"20s\"".into(),
            health: probe(QUICK),
            backends: backends(&lab.backends, address.ip(), port),
        }
    }

    /// The same by direct server return; the VIP must be one of [`crate::lab::DSR_VIP`].
    pub fn dsr(self) -> Self {
        Self {
            forwarding: "dsr",
            ..self
        }
    }

    /// The same forwarded in another way; but for `nat` the VIP must be one of
    /// [`crate::lab::DSR_VIP`].
    pub fn forwarded(self, forwarding: &'static str) -> Self {
        Self { forwarding, ..self }
    }

    /// The same with the backends' addresses of the family that `like` has.
    pub fn over(self, lab: &Lab, like: IpAddr) -> Self {
        Self {
            backends: backends(&lab.backends, like, self.address.port()),
            ..self
        }
    }

    /// The same over UDP.
    pub fn udp(self) -> Self {
        Self {
            protocol: "udp",
            ..self
        }
    }

    /// The same with a probe that bears with backends that are slow to answer.
    pub fn patient(self) -> Self {
        Self {
            health: probe(PATIENT),
            ..self
        }
    }

    /// The same with other health settings.
    pub fn health(self, health: &str) -> Self {
        Self {
            health: health.into(),
            ..self
        }
    }

    /// The same with other service options.
    pub fn options(self, options: &str) -> Self {
        Self {
            options: options.into(),
            ..self
        }
    }

    /// The same with several ports.
    pub fn ports(self, ports: &'static str) -> Self {
        Self {
            ports: Some(ports),
            ..self
        }
    }

    /// The same with only these backends of the laboratory.
    pub fn only(mut self, names: &[&str]) -> Self {
        self.backends
            .retain(|backend| names.contains(&backend.name.as_str()));
        self
    }
}

fn backends(hosts: &[Host], like: IpAddr, port: u16) -> Vec<Backend> {
    let backend = |host: &Host| Backend {
        name: host.name.clone(),
        address: SocketAddr::new(host.address(like), port),
        options: String::new(),
    };
    hosts.iter().map(backend).collect()
}

fn written(address: SocketAddr, ports: Option<&str>) -> String {
    match (address, ports) {
        (_, None) => address.to_string(),
        (SocketAddr::V4(v4), Some(ports)) => format!("{}:{ports}", v4.ip()),
        (SocketAddr::V6(v6), Some(ports)) => format!("[{}]:{ports}", v6.ip()),
    }
}

impl Config {
    /// A configuration of these services.
    pub fn new(services: Vec<Service>) -> Self {
        Self {
            xdp_mode: "native",
            interfaces: &["eth0"],
            node: String::new(),
            services,
        }
    }

    /// The TOML, for an agent that keeps its socket and state in `folder`.
    pub fn toml(&self, folder: &Path) -> String {
        let mut text = format!(
            "[node]\ninterfaces = {3:?}\nxdp_mode = \"{2}\"\n\
             control_socket = \"{0}/lb.sock\"\nstate_dir = \"{0}/state\"\n{1}\n",
            folder.display(),
            self.node,
            self.xdp_mode,
            self.interfaces
        );
        for service in &self.services {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n[[service]]\nname = \"{}\"\naddress = \"{}\"\nprotocol = \"{}\"\n\
                 forwarding = \"{}\"\n{}\n\n[service.health]\n{}\n",
                service.name,
                written(service.address, service.ports),
                service.protocol,
                service.forwarding,
                service.options,
                service.health
            );
            for backend in &service.backends {
                let _ = write!(
                    text,
                    "\n[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n{}\n",
                    backend.name,
                    written(backend.address, service.ports.map(|_| "*")),
                    backend.options
                );
            }
        }
        text
    }
}
