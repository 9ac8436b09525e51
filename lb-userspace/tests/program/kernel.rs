//! A datapath of its own for each test, pinned like the real one and removed at the end.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{
    Affinity, BackendState, DEFAULT_RESET_RATE, Forwarding, Fragment, GUE_PORT, Hop,
};
use lb_common::slot::{Slot, TABLE_SIZES};
use lb_common::verdict::Verdict;
use lb_userspace::datapath::sys::{TestRun, test_run};
use lb_userspace::datapath::{Datapath, PinDirectory, detach, enter_bpffs};
use lb_userspace::model::{Endpoint, Node, OnDeath, OnExit, Ports, Protocol, XdpMode};
use lb_userspace::plan::{Backend, Contents, Path, Service, SnatPorts, Tunnel, plan};

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const TX: u32 = 3;
pub const REDIRECT: u32 = 4;

/// A test run's packets come in by the loopback interface.
pub const INGRESS: u32 = 1;

pub const VIP4: &str = "203.0.113.10:80";
pub const VIP6: &str = "[2001:db8::10]:80";
pub const SOURCE4: &str = "10.0.0.1";
pub const SOURCE6: &str = "fd00::1";

pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];

pub struct Kernel {
    pub datapath: Datapath,
    pub contents: Contents,
    /// What the pins are named after.
    pub socket: PathBuf,
    pins: PinDirectory,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        detach(&self.pins).unwrap();
    }
}

/// A datapath with no services; `None`, with a word about it, where there is no root.
pub fn kernel(test: &str) -> Option<Kernel> {
    kernel_for(test, 4096)
}

/// The same with room for so many flows.
pub fn kernel_for(test: &str, flow_entries: u32) -> Option<Kernel> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // SAFETY: always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED {test}: needs root to load the XDP program");
        return None;
    }
    enter_bpffs().unwrap();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let socket = PathBuf::from(format!("/test/{}/{number}", std::process::id()));
    let pins = PinDirectory::of(&socket);
    let datapath = Datapath::open(pins.clone(), flow_entries).unwrap();
    let mut kernel = Kernel {
        datapath,
        contents: Contents::default(),
        socket,
        pins,
    };
    let ports = SnatPorts {
        first: 20_000,
        count: 10_000,
    };
    kernel.want(Contents {
        ports: Some(ports),
        reset_rate: DEFAULT_RESET_RATE,
        ..Contents::default()
    });
    Some(kernel)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Like `203.0.113.10:80`, `203.0.113.10:8000-8099` or `203.0.113.10:*`.
pub fn endpoint(text: &str) -> Endpoint {
    let (host, ports) = text.rsplit_once(':').unwrap();
    let ports = match ports.split_once('-') {
        None if ports == "*" => Ports::Any,
        None => Ports::One(ports.parse().unwrap()),
        Some((first, last)) => Ports::Range(first.parse().unwrap(), last.parse().unwrap()),
    };
    Endpoint {
        ip: ip(host.trim_matches(['[', ']'])),
        ports,
    }
}

/// The way to backend `id`, whose MAC address ends in its number.
pub fn path(id: u16, v4: bool, ifindex: u32) -> Path {
    let mut dst = BACKEND_MAC;
    dst[4..].copy_from_slice(&id.to_be_bytes());
    Path {
        hop: Hop::new(dst, LB_MAC, ifindex),
        source: ip(if v4 { SOURCE4 } else { SOURCE6 }),
        mtu: 1500,
        tunnel: Tunnel::default(),
    }
}

/// A node with the defaults.
pub fn node() -> Node {
    Node {
        interfaces: vec!["eth0".into()],
        xdp_mode: XdpMode::Auto,
        control_socket: "/run/lb/lb.sock".into(),
        http: None,
        http_token_file: None,
        grpc: None,
        haproxy_socket: None,
        shutdown_grace: std::time::Duration::ZERO,
        state_dir: "/var/lib/lb".into(),
        on_exit: OnExit::Keep,
        snat_ports: 20_000..=29_999,
        flow_entries: 4096,
        reset_rate: DEFAULT_RESET_RATE,
        chain: None,
        answer_ping: true,
        allow_exec: false,
        dns_servers: None,
        dns_max_ttl: std::time::Duration::from_secs(60),
        announce_table: 108,
        certificate_warning: std::time::Duration::from_secs(14 * 86_400),
        probes_in_flight: None,
        probes_per_second: None,
        gue_port: GUE_PORT,
        tunnel_source4: None,
        tunnel_source6: None,
    }
}

impl Kernel {
    /// Brings the maps to these contents, step by step.
    pub fn want(&mut self, wanted: Contents) {
        for op in plan(&self.contents, &wanted) {
            self.datapath.apply(&op).unwrap();
            op.note(&mut self.contents);
        }
        assert_eq!(self.contents, wanted);
    }

    /// Adds a service whose slots all look like `slot`, with these active backends.
    pub fn serve(
        &mut self,
        vip: &str,
        protocol: Protocol,
        forwarding: Forwarding,
        slot: Slot,
        backends: &[(u16, &str)],
    ) -> u16 {
        let mut wanted = self.contents.clone();
        let id = wanted.services.len() as u16 + 1;
        let address = endpoint(vip);
        for (backend, address) in backends {
            let address = at(address);
            let path = path(*backend, address.is_ipv4(), INGRESS);
            let path = path.through(forwarding, &node()).unwrap();
            if forwarding == Forwarding::Nat {
                wanted.sources.insert(path.source);
            }
            let state = BackendState::Active;
            wanted.backends.insert(
                *backend,
                Backend {
                    service: id,
                    address,
                    server_id: None,
                    watches_http: false,
                    state,
                    path: Some(path),
                },
            );
        }
        let slots = Arc::new(vec![slot; TABLE_SIZES[0] as usize]);
        let affinity = Affinity::Flow;
        wanted.services.insert(
            id,
            Service {
                address,
                protocol,
                forwarding,
                affinity,
                on_death: OnDeath::Rehash,
                syn_rescue: false,
                server_id_length: 0,
                slots,
            },
        );
        self.want(wanted);
        id
    }

    /// Adds a service with one backend, which has all slots.
    pub fn serve_one(
        &mut self,
        vip: &str,
        protocol: Protocol,
        forwarding: Forwarding,
        (backend, address): (u16, &str),
    ) -> u16 {
        let slot = Slot::settled(backend);
        self.serve(vip, protocol, forwarding, slot, &[(backend, address)])
    }

    pub fn set_state(&mut self, backend: u16, state: BackendState) {
        let mut wanted = self.contents.clone();
        wanted.backends.get_mut(&backend).unwrap().state = state;
        self.want(wanted);
    }

    pub fn set_slots(&mut self, service: u16, slot: Slot) {
        let mut wanted = self.contents.clone();
        let service = wanted.services.get_mut(&service).unwrap();
        service.slots = Arc::new(vec![slot; service.slots.len()]);
        self.want(wanted);
    }

    /// The pin of this name.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.pins.map(name)
    }

    /// Loads the program again on what is pinned, as the next agent does.
    pub fn reopen(&mut self) {
        self.datapath = Datapath::open(self.pins.clone(), 4096).unwrap();
    }

    /// Makes what is known of datagrams under way so many seconds older.
    pub fn age_fragments(&mut self, seconds: u32) {
        let data = MapData::from_pin(self.pins.map("FRAGMENTS")).unwrap();
        let mut map: HashMap<_, [u8; 40], [u8; size_of::<Fragment>()]> =
            Map::LruHashMap(data).try_into().unwrap();
        let entries: Vec<_> = map.iter().map(Result::unwrap).collect();
        assert!(!entries.is_empty());
        for (key, mut value) in entries {
            let at = std::mem::offset_of!(Fragment, seen);
            let seen = u32::from_ne_bytes(value[at..at + 4].try_into().unwrap());
            value[at..at + 4].copy_from_slice(&seen.wrapping_sub(seconds).to_ne_bytes());
            map.insert(key, value, 0).unwrap();
        }
    }

    pub fn run(&mut self, frame: &[u8]) -> TestRun {
        test_run(self.datapath.program().unwrap(), frame, 1).unwrap()
    }

    /// The counters that are not zero, over all services.
    pub fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for id in std::iter::once(&0).chain(self.contents.services.keys()) {
            for (verdict, count) in self.datapath.verdicts(*id).unwrap() {
                if count > 0 {
                    *sum.entry(verdict.label()).or_default() += count;
                }
            }
        }
        sum
    }

    /// Runs a packet that must come to this verdict and no other.
    pub fn expect(&mut self, frame: &[u8], verdict: Verdict) -> TestRun {
        let mut expected = self.verdicts();
        *expected.entry(verdict.label()).or_default() += 1;
        let result = self.run(frame);
        assert_eq!(self.verdicts(), expected, "{verdict:?}");
        result
    }

    /// Runs a packet that must be forwarded to this backend.
    pub fn forwards(&mut self, frame: &[u8], backend: u16) -> Vec<u8> {
        let before = self.datapath.traffic(backend).unwrap();
        let verdicts = self.verdicts();
        let result = self.run(frame);
        let after = self.datapath.traffic(backend).unwrap();
        assert_eq!(self.verdicts(), verdicts, "not forwarded");
        assert_eq!(after.packets, before.packets + 1);
        assert_eq!(after.bytes, before.bytes + frame.len() as u64);
        assert_eq!(result.action, TX);
        assert_eq!(result.frame[..4], BACKEND_MAC[..4]);
        assert_eq!(result.frame[4..6], backend.to_be_bytes());
        assert_eq!(result.frame[6..12], LB_MAC);
        result.frame
    }
}
