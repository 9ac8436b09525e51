//! A backend as HAProxy sees a server.

use super::Refused;
use crate::api::request::BackendName;
use crate::api::status::{Admin, BackendStatus, Health, Routing, ServiceStatus, Status};

/// Number of the first service: HAProxy's own first proxy is that of its socket.
pub const FIRST: usize = 2;

/// The words of `status` in `show stat`, as far as lb has states for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Up,
    /// Up, and not probed, or not for now.
    NoCheck,
    /// Gets no new flows because it asks for that itself.
    NoLb,
    Drain,
    Down,
    Maint,
}

/// A backend with its place.
#[derive(Clone, Copy)]
pub struct Server<'s> {
    pub service: &'s ServiceStatus,
    pub backend: &'s BackendStatus,
    /// From 1, in its service.
    pub number: usize,
}

/// What is needed of a server to change it.
pub struct Name {
    pub name: BackendName,
    pub initial_weight: u32,
    pub probed: bool,
}

impl Server<'_> {
    /// Its state in HAProxy's words.
    pub fn state(&self) -> State {
        let backend = self.backend;
        match (backend.admin, backend.routing) {
            (Admin::Disabled, _) => State::Maint,
            (Admin::Drain, _) if backend.health == Health::Healthy => State::Drain,
            (_, Routing::Active | Routing::Standby) if !self.is_probed() => State::NoCheck,
            (_, Routing::Active | Routing::Standby) => State::Up,
            (_, Routing::Draining | Routing::Out) if backend.cause == "leaving" => State::NoLb,
            // In panic it gets flows all the same, but nobody believes it to be well.
            (_, Routing::Draining | Routing::Out | Routing::Panic) => State::Down,
        }
    }

    /// `srv_op_state`: SRV_ST_STOPPED, STARTING, RUNNING or STOPPING of HAProxy.
    pub fn operational(&self) -> u8 {
        match self.state() {
            State::Down | State::Maint => 0,
            State::Up | State::NoCheck | State::Drain if self.backend.share < 100 => 1,
            State::Up | State::NoCheck | State::Drain => 2,
            State::NoLb => 3,
        }
    }

    /// `srv_admin_state`: SRV_ADMF_FMAINT and SRV_ADMF_FDRAIN of HAProxy.
    pub const fn administrative(&self) -> u8 {
        match self.backend.admin {
            Admin::Enabled => 0,
            Admin::Disabled => 0x01,
            Admin::Drain => 0x08,
        }
    }

    /// Whether it is probed now.
    pub const fn is_probed(&self) -> bool {
        self.backend.probe.is_some() && self.backend.paused_since.is_none()
    }

    /// Whether it is for when others fail.
    pub const fn is_backup(&self) -> bool {
        self.backend.tier > 0
    }

    /// Whether it could take flows.
    pub fn is_usable(&self) -> bool {
        matches!(self.state(), State::Up | State::NoCheck)
    }

    pub fn initial_weight(&self) -> u32 {
        let backend = self.backend;
        backend.configured_weight.unwrap_or(backend.weight)
    }

    /// Times it went from up to down. Verdicts alternate, so half of those that turned, and the odd
    /// one is the last.
    pub const fn downs(&self) -> u64 {
        let flaps = self.backend.probes.flaps;
        match self.backend.health {
            Health::Unhealthy => flaps.div_ceil(2),
            Health::Healthy | Health::Unknown => flaps / 2,
        }
    }

    /// Address and port, without what the two stand between.
    pub fn address(&self) -> (&str, &str) {
        let address = &self.backend.address;
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        (host.trim_matches(['[', ']']), port)
    }

    pub fn identity(&self) -> Name {
        Name {
            name: BackendName {
                service: self.service.name.clone(),
                backend: self.backend.name.to_string(),
            },
            initial_weight: self.initial_weight(),
            probed: self.backend.probe.is_some(),
        }
    }
}

/// The servers of a service.
pub fn servers(service: &ServiceStatus) -> impl Iterator<Item = Server<'_>> {
    let backends = service.backends.iter().enumerate();
    backends.map(move |(index, backend)| Server {
        service,
        backend,
        number: index + 1,
    })
}

/// Services with their numbers.
pub fn services(status: &Status) -> impl Iterator<Item = (usize, &ServiceStatus)> {
    let services = status.services.iter().enumerate();
    services.map(|(index, service)| (index + FIRST, service))
}

/// Whether a service or server is called so: by its name, or by `#` and its number.
pub fn is_called(text: &str, name: &str, number: usize) -> bool {
    text == name
        || text
            .strip_prefix('#')
            .is_some_and(|n| n.parse() == Ok(number))
}

/// The server of this name, in HAProxy's words if there is none.
pub fn find<'s>(status: &'s Status, text: Option<&str>) -> Result<Server<'s>, Refused> {
    let parts = text.and_then(|text| text.split_once('/'));
    let (service, server) = parts.ok_or("Require 'backend/server'.")?;
    let (_, service) = services(status)
        .find(|(number, known)| is_called(service, &known.name, *number))
        .ok_or("No such backend.")?;
    let found = servers(service).find(|known| is_called(server, &known.backend.name, known.number));
    found.ok_or_else(|| "No such server.".into())
}
