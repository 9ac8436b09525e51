//! Typed access to the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use lb_common::abi::{
    self, Addr, Backend, Filter, FlowKey, Forwarding, Hop, LAYOUT_VERSION, MAX_BACKENDS, Params,
    ServiceKey, Traffic,
};
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot, TABLE_SIZES};
use lb_common::verdict::{VERDICT_STRIDE, Verdict};
use thiserror::Error;

use super::sys::{self, Mapped, Plain, Raw};
use super::tap::Tap;
use crate::model::Protocol;
use crate::plan::{self, Contents, ServiceId, SnatPorts};

/// Names of the maps, which are also their pins' names.
pub const NAMES: [&str; 15] = [
    "PARAMS",
    "FILTER",
    "VIPS",
    "SERVICES",
    "BACKENDS",
    "TABLES_S",
    "TABLES_M",
    "TABLES_L",
    "FLOWS",
    "TRAFFIC",
    "VERDICTS",
    "OPENING",
    "CAPTURE",
    "HELD",
    "CAPTURE_LOST",
];

/// Why a map cannot be read or written.
#[derive(Debug, Error)]
pub enum AccessError {
    #[error("the BPF object has no map {0}")]
    Missing(&'static str),
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: MapError,
    },
    #[error("map {name}: {source}")]
    System {
        name: &'static str,
        source: io::Error,
    },
    #[error("map {name} holds what this version never writes: {what}")]
    Content { name: &'static str, what: String },
}

/// The maps of one data plane.
pub struct Maps {
    params: Mapped<Params>,
    filter: Mapped<Filter>,
    vips: HashMap<MapData, Raw<Addr>, Raw<u32>>,
    services: HashMap<MapData, Raw<ServiceKey>, Raw<abi::Service>>,
    backends: Mapped<Backend>,
    tables: [ArrayOfMaps<MapData>; TABLE_SIZES.len()],
    table_fds: [OwnedFd; TABLE_SIZES.len()],
    pub(super) flows: HashMap<MapData, Raw<FlowKey>, Raw<abi::Flow>>,
    pub(super) flow_fd: OwnedFd,
    /// The coarse clock's reading when these maps were opened. While no agent ran it may have stood
    /// still, and flows that were alive all the time look as if they had been silent since.
    pub(super) opened: u32,
    traffic: PerCpuArray<MapData, Raw<Traffic>>,
    verdicts: PerCpuArray<MapData, Raw<u64>>,
    /// What a [`Tap`] is made of.
    params_fd: OwnedFd,
    capture_fd: OwnedFd,
    lost_fd: OwnedFd,
}

fn map_error(name: &'static str) -> impl FnOnce(MapError) -> AccessError {
    move |source| AccessError::Map { name, source }
}

fn system_error(name: &'static str) -> impl FnOnce(io::Error) -> AccessError {
    move |source| AccessError::System { name, source }
}

fn descriptor(map: &Map, name: &'static str) -> Result<OwnedFd, AccessError> {
    let (Map::Array(data)
    | Map::ArrayOfMaps(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)) = map
    else {
        return Err(AccessError::Content {
            name,
            what: format!("{map:?}"),
        });
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(system_error(name))
}

fn mapped<T: Plain>(map: &Map, name: &'static str, entries: u32) -> Result<Mapped<T>, AccessError> {
    Mapped::new(descriptor(map, name)?.as_fd(), entries).map_err(system_error(name))
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, AccessError> {
        let mut fds = Vec::new();
        for name in TABLES {
            let map = ebpf.map(name).ok_or(AccessError::Missing(name))?;
            fds.push(descriptor(map, name)?);
        }
        let table_fds = fds.try_into().map_err(|_| AccessError::Missing("TABLES"))?;
        let mut take = |name| ebpf.take_map(name).ok_or(AccessError::Missing(name));
        let flows = take("FLOWS")?;
        let params = take("PARAMS")?;
        Ok(Self {
            params_fd: descriptor(&params, "PARAMS")?,
            capture_fd: descriptor(&take("CAPTURE")?, "CAPTURE")?,
            lost_fd: descriptor(&take("CAPTURE_LOST")?, "CAPTURE_LOST")?,
            params: mapped(&params, "PARAMS", 1)?,
            filter: mapped(&take("FILTER")?, "FILTER", 1)?,
            vips: take("VIPS")?.try_into().map_err(map_error("VIPS"))?,
            services: take("SERVICES")?
                .try_into()
                .map_err(map_error("SERVICES"))?,
            backends: mapped(&take("BACKENDS")?, "BACKENDS", MAX_BACKENDS)?,
            tables: [
                take("TABLES_S")?
                    .try_into()
                    .map_err(map_error("TABLES_S"))?,
                take("TABLES_M")?
                    .try_into()
                    .map_err(map_error("TABLES_M"))?,
                take("TABLES_L")?
                    .try_into()
                    .map_err(map_error("TABLES_L"))?,
            ],
            table_fds,
            flow_fd: descriptor(&flows, "FLOWS")?,
            opened: sys::monotonic().as_secs() as u32,
            flows: flows.try_into().map_err(map_error("FLOWS"))?,
            traffic: take("TRAFFIC")?.try_into().map_err(map_error("TRAFFIC"))?,
            verdicts: take("VERDICTS")?
                .try_into()
                .map_err(map_error("VERDICTS"))?,
        })
    }

    /// Entries that the flow table has room for.
    pub fn flow_capacity(&self) -> Result<u32, AccessError> {
        let fd = self.flow_fd.try_clone().map_err(system_error("FLOWS"))?;
        let map = MapData::from_fd(fd).map_err(map_error("FLOWS"))?;
        Ok(map.info().map_err(map_error("FLOWS"))?.max_entries())
    }

    /// A place to capture packets from.
    pub fn tap(&self) -> Result<Tap, AccessError> {
        let open = |fd: &OwnedFd, name| {
            let fd = fd.try_clone().map_err(system_error(name))?;
            MapData::from_fd(fd).map_err(map_error(name))
        };
        let params = Mapped::new(self.params_fd.as_fd(), 1).map_err(system_error("PARAMS"))?;
        let ring = Map::RingBuf(open(&self.capture_fd, "CAPTURE")?);
        let ring = RingBuf::try_from(ring).map_err(map_error("CAPTURE"))?;
        let lost = Map::PerCpuArray(open(&self.lost_fd, "CAPTURE_LOST")?);
        let lost = PerCpuArray::try_from(lost).map_err(map_error("CAPTURE_LOST"))?;
        Ok(Tap::new(params, ring, lost))
    }

    /// Whether packets are captured.
    pub fn is_captured(&self) -> bool {
        self.params.get(0).capture != 0
    }

    /// Ends the capture of an agent that no longer lives.
    pub fn end_capture(&mut self) {
        self.params.set_field(0, offset_of!(Params, capture), 0u32);
    }

    /// The coarse clock that the packet path keeps idle times by.
    pub fn tick(&self) -> u32 {
        self.params.get(0).tick
    }

    pub fn set_tick(&mut self, seconds: u32) {
        self.params.set_field(0, offset_of!(Params, tick), seconds);
    }

    /// Declares the maps filled, with these NAT ports.
    pub fn set_ports(&mut self, ports: SnatPorts, seed: u32) {
        self.params
            .set_field(0, offset_of!(Params, snat_seed), seed);
        // First and count are two halves of a word: one store, so that no packet sees one of them
        // without the other.
        let word = if cfg!(target_endian = "little") {
            u32::from(ports.first) | u32::from(ports.count) << 16
        } else {
            u32::from(ports.first) << 16 | u32::from(ports.count)
        };
        self.params
            .set_field(0, offset_of!(Params, snat_first), word);
        self.params
            .set_field(0, offset_of!(Params, version), LAYOUT_VERSION);
    }

    /// Writes the destination filter, and which addresses are a service's.
    pub fn set_filter(&mut self, addresses: &BTreeMap<IpAddr, bool>) -> Result<(), AccessError> {
        let mut filter = Filter([0; abi::FILTER_WORDS]);
        let mut vips = BTreeSet::new();
        for (address, is_vip) in addresses {
            let address = Addr::from(*address);
            let bit = hash::filter_bit(&address);
            filter.0[(bit >> 6) as usize] |= 1 << (bit & 63);
            if *is_vip {
                vips.insert(address);
                self.vips
                    .insert(Raw(address), Raw(1), 0)
                    .map_err(map_error("VIPS"))?;
            }
        }
        for (index, word) in filter.0.into_iter().enumerate() {
            self.filter.set_field(0, index * size_of::<u64>(), word);
        }
        let known: Result<Vec<_>, _> = self.vips.keys().collect();
        for known in known.map_err(map_error("VIPS"))? {
            if !vips.contains(&known.0) {
                self.vips.remove(&known).map_err(map_error("VIPS"))?;
            }
        }
        Ok(())
    }

    /// Writes the entry of a backend that no packet knows yet.
    pub fn add_backend(
        &mut self,
        id: BackendIndex,
        backend: &plan::Backend,
    ) -> Result<(), AccessError> {
        let zeros = per_cpu("TRAFFIC", Traffic::default())?;
        self.traffic
            .set(id.into(), zeros, 0)
            .map_err(map_error("TRAFFIC"))?;
        self.backends.set(
            id.into(),
            Backend {
                state: backend.state as u8,
                family: if backend.address.is_ipv4() { 4 } else { 6 },
                port: backend.address.port().to_be(),
                service: backend.service,
                hops: [backend.path.map_or(Hop::default(), |path| path.hop); 2],
                addr: backend.address.ip().into(),
                source: backend
                    .path
                    .map_or(Addr::default(), |path| path.source.into()),
                ..Backend::default()
            },
        );
        Ok(())
    }

    /// Changes the way to a backend: the spare hop is written, then put in force.
    pub fn set_path(&mut self, id: BackendIndex, path: Option<plan::Path>) {
        let index = usize::from(id);
        let spare = 1 - (self.backends.get(index).hop & 1);
        let hop = path.map_or(Hop::default(), |path| path.hop);
        let offset = offset_of!(Backend, hops) + usize::from(spare) * size_of::<Hop>();
        self.backends.set_field(index, offset, hop);
        if let Some(path) = path {
            // Read only when a flow is opened, from an address that has been, or will be, ours.
            self.backends
                .set_field(index, offset_of!(Backend, source), Addr::from(path.source));
        }
        self.backends
            .set_field(index, offset_of!(Backend, hop), spare);
    }

    pub fn set_state(&mut self, id: BackendIndex, state: abi::BackendState) {
        self.backends
            .set_field(id.into(), offset_of!(Backend, state), state as u8);
    }

    pub fn remove_backend(&mut self, id: BackendIndex) {
        self.backends.set(id.into(), Backend::default());
    }

    /// Builds a table aside and swaps it in. Returns when no packet uses the old one any more.
    pub fn set_table(&mut self, id: ServiceId, slots: &[Slot]) -> Result<(), AccessError> {
        let class = class_of(slots.len())?;
        let entries = slots.len() as u32;
        let table = sys::create_table(entries).map_err(system_error("table"))?;
        let mut words =
            Mapped::<u32>::new(table.as_fd(), entries).map_err(system_error("table"))?;
        for (index, slot) in slots.iter().enumerate() {
            words.set(index, slot.0);
        }
        let table = MapData::from_fd(table).map_err(map_error("table"))?;
        self.tables[class]
            .set(id.into(), &table, 0)
            .map_err(map_error(TABLES[class]))
    }

    fn table(&self, id: ServiceId, class: usize) -> Result<Vec<Slot>, AccessError> {
        let table = self.tables[class]
            .get(&id.into(), 0)
            .map_err(map_error(TABLES[class]))?;
        let words = Mapped::<u32>::new(table.fd().as_fd(), TABLE_SIZES[class])
            .map_err(system_error(TABLES[class]))?;
        Ok((0..words.entries())
            .map(|index| Slot(words.get(index)))
            .collect())
    }

    pub fn remove_table(&mut self, id: ServiceId, size: usize) -> Result<(), AccessError> {
        let class = class_of(size)?;
        match sys::map_delete(self.table_fds[class].as_fd(), id.into()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system_error(TABLES[class])(error))
            }
            _ => Ok(()),
        }
    }

    pub fn set_service(
        &mut self,
        id: ServiceId,
        service: &plan::Service,
    ) -> Result<(), AccessError> {
        let value = abi::Service {
            id,
            forwarding: service.forwarding as u8,
            affinity: service.affinity as u8,
            table_class: class_of(service.slots.len())? as u8,
            pad: [0; 3],
        };
        let key = service_key(service.address, service.protocol);
        self.services
            .insert(Raw(key), Raw(value), 0)
            .map_err(map_error("SERVICES"))
    }

    pub fn remove_service(
        &mut self,
        at: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), AccessError> {
        match self.services.remove(&Raw(service_key(at, protocol))) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_error("SERVICES")(error)),
        }
    }

    /// Sets a service's verdict counters to zero.
    pub fn clear_verdicts(&mut self, id: ServiceId) -> Result<(), AccessError> {
        for verdict in 0..VERDICT_STRIDE {
            let index = u32::from(id) * VERDICT_STRIDE + verdict;
            let zeros = per_cpu("VERDICTS", 0)?;
            self.verdicts
                .set(index, zeros, 0)
                .map_err(map_error("VERDICTS"))?;
        }
        Ok(())
    }

    /// A backend's counters, summed over the CPUs.
    pub fn traffic(&self, id: BackendIndex) -> Result<Traffic, AccessError> {
        let values = self
            .traffic
            .get(&id.into(), 0)
            .map_err(map_error("TRAFFIC"))?;
        Ok(values
            .iter()
            .fold(Traffic::default(), |sum, Raw(cpu)| Traffic {
                packets: sum.packets.wrapping_add(cpu.packets),
                bytes: sum.bytes.wrapping_add(cpu.bytes),
                by_previous: sum.by_previous.wrapping_add(cpu.by_previous),
                flows: sum.flows.wrapping_add(cpu.flows),
            }))
    }

    /// A service's counters by verdict, summed over the CPUs; service 0 counts what is for none.
    pub fn verdicts(&self, id: ServiceId) -> Result<Vec<(Verdict, u64)>, AccessError> {
        let count = |verdict: &Verdict| {
            let index = u32::from(id) * VERDICT_STRIDE + *verdict as u32;
            let values = self
                .verdicts
                .get(&index, 0)
                .map_err(map_error("VERDICTS"))?;
            Ok((
                *verdict,
                values
                    .iter()
                    .fold(0, |sum: u64, Raw(cpu)| sum.wrapping_add(*cpu)),
            ))
        };
        Verdict::ALL.iter().map(count).collect()
    }

    /// What the maps hold. Entries that refer to nothing are left out; the next plan covers them.
    pub fn contents(&self) -> Result<Contents, AccessError> {
        let mut contents = Contents::default();
        let params = self.params.get(0);
        if params.version == LAYOUT_VERSION {
            contents.ports = Some(SnatPorts {
                first: params.snat_first,
                count: params.snat_count,
            });
        }
        for entry in self.services.iter() {
            let (Raw(key), Raw(value)) = entry.map_err(map_error("SERVICES"))?;
            contents
                .services
                .insert(value.id, self.service(key, value)?);
        }
        for index in 1..self.backends.entries() {
            let Some(backend) = backend(&self.backends.get(index))? else {
                continue;
            };
            let service = contents.services.get(&backend.service);
            if service.is_some_and(|service| service.forwarding == Forwarding::Nat) {
                contents
                    .sources
                    .extend(backend.path.map(|path| path.source));
            }
            contents.backends.insert(index as BackendIndex, backend);
        }
        Ok(contents)
    }

    fn service(&self, key: ServiceKey, value: abi::Service) -> Result<plan::Service, AccessError> {
        let content = |what: String| AccessError::Content {
            name: "SERVICES",
            what,
        };
        let class = usize::from(value.table_class);
        if class >= TABLE_SIZES.len() {
            return Err(content(format!("table class {class}")));
        }
        Ok(plan::Service {
            address: SocketAddr::new(key.addr.into(), u16::from_be(key.port)),
            protocol: [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .find(|protocol| protocol.number() == key.protocol)
                .ok_or_else(|| content(format!("protocol {}", key.protocol)))?,
            forwarding: [Forwarding::Nat, Forwarding::Dsr]
                .into_iter()
                .find(|forwarding| *forwarding as u8 == value.forwarding)
                .ok_or_else(|| content(format!("forwarding {}", value.forwarding)))?,
            affinity: [abi::Affinity::Flow, abi::Affinity::Client]
                .into_iter()
                .find(|affinity| *affinity as u8 == value.affinity)
                .ok_or_else(|| content(format!("affinity {}", value.affinity)))?,
            slots: Arc::new(self.table(value.id, class)?),
        })
    }
}

/// Layout of the maps pinned with a parameter map at `path`; `None` where nothing is pinned.
pub fn pinned_version(path: &std::path::Path) -> Result<Option<u32>, AccessError> {
    if !path.exists() {
        return Ok(None);
    }
    let data = MapData::from_pin(path).map_err(map_error("PARAMS"))?;
    let params = Mapped::<Params>::new(data.fd().as_fd(), 1).map_err(system_error("PARAMS"))?;
    Ok(Some(params.get(0).version))
}

const TABLES: [&str; TABLE_SIZES.len()] = ["TABLES_S", "TABLES_M", "TABLES_L"];

fn class_of(size: usize) -> Result<usize, AccessError> {
    let class = TABLE_SIZES.iter().position(|class| *class as usize == size);
    class.ok_or_else(|| AccessError::Content {
        name: "table",
        what: format!("{size} slots"),
    })
}

fn service_key(at: SocketAddr, protocol: Protocol) -> ServiceKey {
    ServiceKey {
        addr: at.ip().into(),
        port: at.port().to_be(),
        protocol: protocol.number(),
        pad: 0,
    }
}

fn backend(entry: &Backend) -> Result<Option<plan::Backend>, AccessError> {
    use abi::BackendState::{Active, Draining, Out, Unset};
    let state = [Unset, Active, Draining, Out]
        .into_iter()
        .find(|state| *state as u8 == entry.state)
        .ok_or_else(|| AccessError::Content {
            name: "BACKENDS",
            what: format!("state {}", entry.state),
        })?;
    if state == Unset {
        return Ok(None);
    }
    let hop = entry.hops[usize::from(entry.hop & 1)];
    let path = (hop.ifindex != 0).then(|| plan::Path {
        hop,
        source: entry.source.into(),
    });
    Ok(Some(plan::Backend {
        service: entry.service,
        address: SocketAddr::new(entry.addr.into(), u16::from_be(entry.port)),
        state,
        path,
    }))
}

fn per_cpu<T: Plain>(name: &'static str, value: T) -> Result<PerCpuValues<Raw<T>>, AccessError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| system_error(name)(error))?;
    PerCpuValues::try_from(vec![Raw(value); cpus]).map_err(system_error(name))
}
