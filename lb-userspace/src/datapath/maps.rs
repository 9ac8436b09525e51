//! Typed access to the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem::offset_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use lb_common::abi::{
    self, Addr, Backend, Filter, Hop, LAYOUT_VERSION, MAX_BACKENDS, MAX_SOURCES, Params,
    SERVICE_PLACES, SourceIndex, Traffic, service_flag,
};
use lb_common::flow_table::reply_lines;
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot, TABLE_SIZES};
use lb_common::verdict::{VERDICT_STRIDE, Verdict};
use thiserror::Error;

use super::chain::Chain;
use super::flow_table::FlowTable;
use super::server_ids::ServerIds;
use super::services::Services;
use super::signs::{self, Signs};
use super::sys::{self, Mapped, Plain, Raw};
use super::tap::Tap;
use crate::model::{Endpoint, OnDeath, Protocol};
use crate::plan::{self, ServiceId, SnatPorts};

/// Names of the maps, which are also their pins' names.
pub const NAMES: [&str; 23] = [
    "PARAMS",
    "FILTER",
    "VIPS",
    "SERVICES",
    "RANGES",
    "QUIC_IDS",
    "BACKENDS",
    "TABLES_S",
    "TABLES_M",
    "TABLES_L",
    "SOURCES",
    "FLOWS",
    "REPLIES",
    "FRAGMENTS",
    "FRAGMENT_IDS",
    "TRAFFIC",
    "VERDICTS",
    "OPENING",
    "CHAIN",
    "CAPTURE",
    "HELD",
    "CAPTURE_LOST",
    "RESETS",
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
    pub(super) params: Mapped<Params>,
    pub(super) filter: Mapped<Filter>,
    pub(super) vips: HashMap<MapData, Raw<Addr>, Raw<u32>>,
    pub(super) services: Services,
    server_ids: ServerIds,
    pub(super) backends: Mapped<Backend>,
    pub(super) sources: Mapped<Addr>,
    tables: [ArrayOfMaps<MapData>; TABLE_SIZES.len()],
    table_fds: [OwnedFd; TABLE_SIZES.len()],
    pub(super) flows: FlowTable,
    pub(super) chain: Chain,
    traffic: PerCpuArray<MapData, Raw<Traffic>>,
    traffic_fd: OwnedFd,
    verdicts: PerCpuArray<MapData, Raw<u64>>,
    /// What a [`Tap`] is made of.
    params_fd: OwnedFd,
    capture_fd: OwnedFd,
    lost_fd: OwnedFd,
}

pub(super) fn map_error(name: &'static str) -> impl FnOnce(MapError) -> AccessError {
    move |source| AccessError::Map { name, source }
}

fn system_error(name: &'static str) -> impl FnOnce(io::Error) -> AccessError {
    move |source| AccessError::System { name, source }
}

fn descriptor(map: &Map, name: &'static str) -> Result<OwnedFd, AccessError> {
    let (Map::Array(data)
    | Map::ArrayOfMaps(data)
    | Map::ProgramArray(data)
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

fn entries(map: &Map, name: &'static str) -> Result<u32, AccessError> {
    let data = MapData::from_fd(descriptor(map, name)?).map_err(map_error(name))?;
    Ok(data.info().map_err(map_error(name))?.max_entries())
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
        let params_map = take("PARAMS")?;
        let traffic = take("TRAFFIC")?;
        let mut params = mapped::<Params>(&params_map, "PARAMS", 1)?;
        let (flows, replies) = (take("FLOWS")?, take("REPLIES")?);
        let buckets = entries(&flows, "FLOWS")?;
        let sources = mapped(&take("SOURCES")?, "SOURCES", MAX_SOURCES)?;
        let backends = mapped(&take("BACKENDS")?, "BACKENDS", MAX_BACKENDS)?;
        if params.get(0).flow_buckets == 0 {
            let seed = RandomState::new().hash_one(buckets) as u32;
            params.set_field(0, offset_of!(Params, seed), seed);
            params.set_field(0, offset_of!(Params, flow_buckets), buckets);
        }
        Ok(Self {
            flows: FlowTable::new(
                mapped(&flows, "FLOWS", buckets)?,
                mapped(&replies, "REPLIES", reply_lines(buckets))?,
                params.get(0).seed,
                sys::monotonic().as_secs() as u32,
            ),
            params_fd: descriptor(&params_map, "PARAMS")?,
            capture_fd: descriptor(&take("CAPTURE")?, "CAPTURE")?,
            lost_fd: descriptor(&take("CAPTURE_LOST")?, "CAPTURE_LOST")?,
            params,
            sources,
            filter: mapped(&take("FILTER")?, "FILTER", 1)?,
            vips: take("VIPS")?.try_into().map_err(map_error("VIPS"))?,
            services: Services::new(
                mapped(&take("SERVICES")?, "SERVICES", SERVICE_PLACES)?,
                take("RANGES")?.try_into().map_err(map_error("RANGES"))?,
            )?,
            server_ids: ServerIds::new(
                take("QUIC_IDS")?
                    .try_into()
                    .map_err(map_error("QUIC_IDS"))?,
            ),
            backends,
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
            chain: Chain::new(descriptor(&take("CHAIN")?, "CHAIN")?),
            traffic_fd: descriptor(&traffic, "TRAFFIC")?,
            traffic: traffic.try_into().map_err(map_error("TRAFFIC"))?,
            verdicts: take("VERDICTS")?
                .try_into()
                .map_err(map_error("VERDICTS"))?,
        })
    }

    /// A reader of the backends' counters.
    pub fn signs(&self) -> Result<Signs, AccessError> {
        let map = self
            .traffic_fd
            .try_clone()
            .map_err(system_error("TRAFFIC"))?;
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| system_error("TRAFFIC")(source))?;
        Ok(Signs::new(map, cpus))
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

    /// Sets how many RSTs each CPU may send in a second.
    pub fn set_reset_rate(&mut self, rate: u32) {
        self.params
            .set_field(0, offset_of!(Params, reset_rate), rate);
    }

    /// Declares the maps filled, with these NAT ports.
    pub fn set_ports(&mut self, ports: SnatPorts) {
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

    pub fn set_answer_ping(&mut self, answer: bool) {
        self.params
            .set_field(0, offset_of!(Params, answer_ping), u32::from(answer));
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
        let source = backend.path.map(|path| path.source);
        let source_index = source.map_or(Ok(0), |source| self.source(source))?;
        let zeros = per_cpu("TRAFFIC", Traffic::default())?;
        self.traffic
            .set(id.into(), zeros, 0)
            .map_err(map_error("TRAFFIC"))?;
        let tunnel = backend.path.map(|path| path.tunnel).unwrap_or_default();
        if let Some(server_id) = backend.server_id {
            self.server_ids.set(backend.service, server_id, id)?;
        }
        self.backends.set(
            id.into(),
            Backend {
                state: backend.state as u8,
                family: if backend.address.is_ipv4() { 4 } else { 6 },
                port: backend.address.port().to_be(),
                service: backend.service,
                hops: [backend.path.map_or(Hop::default(), |path| path.hop); 2],
                addr: backend.address.ip().into(),
                source_index,
                source: source.map_or(Addr::default(), Addr::from),
                mtu: backend.path.map_or(0, |path| path.mtu),
                source_bits: tunnel.source_bits,
                gue_port: tunnel.gue_port.to_be(),
                has_server_id: backend.server_id.is_some().into(),
                server_id: backend.server_id.unwrap_or(0),
                watches_http: backend.watches_http.into(),
                ..Backend::default()
            },
        );
        Ok(())
    }

    /// Changes the way to a backend: the spare hop is written, then put in force.
    pub fn set_path(
        &mut self,
        id: BackendIndex,
        path: Option<plan::Path>,
    ) -> Result<(), AccessError> {
        let index = usize::from(id);
        let spare = 1 - (self.backends.get(index).hop & 1);
        let hop = path.map_or(Hop::default(), |path| path.hop);
        let offset = offset_of!(Backend, hops) + usize::from(spare) * size_of::<Hop>();
        self.backends.set_field(index, offset, hop);
        if let Some(path) = path {
            // NAT reads the source only when a flow is opened, from an address that has been, or
            // will be, ours. The rest changes word by word, each good with old and new alike.
            let number = self.source(path.source)?;
            let source = Addr::from(path.source);
            let bits = path.tunnel.source_bits;
            let port = path.tunnel.gue_port.to_be();
            let entry = &mut self.backends;
            entry.set_field(index, offset_of!(Backend, source_index), number);
            entry.set_field(index, offset_of!(Backend, source_bits), bits);
            entry.set_field(index, offset_of!(Backend, source), source);
            entry.set_field(index, offset_of!(Backend, mtu), path.mtu);
            entry.set_field(index, offset_of!(Backend, gue_port), port);
        }
        self.backends
            .set_field(index, offset_of!(Backend, hop), spare);
        Ok(())
    }

    /// Number of a source address, which gets one if it has none.
    fn source(&mut self, address: IpAddr) -> Result<SourceIndex, AccessError> {
        let address = Addr::from(address);
        let place = |wanted: Addr| {
            (1..=SourceIndex::MAX).find(|index| self.sources.get((*index).into()) == wanted)
        };
        if let Some(known) = place(address) {
            return Ok(known);
        }
        let free = place(Addr::default()).ok_or_else(|| AccessError::Content {
            name: "SOURCES",
            what: format!("{} addresses, as many as it has room for", MAX_SOURCES - 1),
        })?;
        self.sources.set(free.into(), address);
        Ok(free)
    }

    /// Forgets the source addresses that are not among these and that no backend has.
    pub fn retain_sources(&mut self, keep: &BTreeSet<IpAddr>) {
        let backends = (1..self.backends.entries()).map(|index| self.backends.get(index));
        let used: BTreeSet<SourceIndex> = backends.map(|backend| backend.source_index).collect();
        for index in 1..=SourceIndex::MAX {
            let address = self.sources.get(index.into());
            if !used.contains(&index) && !keep.contains(&IpAddr::from(address)) {
                self.sources.set(index.into(), Addr::default());
            }
        }
    }

    pub fn set_state(&mut self, id: BackendIndex, state: abi::BackendState) {
        self.backends
            .set_field(id.into(), offset_of!(Backend, state), state as u8);
    }

    /// Gives a backend another server ID, or none. The new one is there before the old one goes.
    pub fn set_server_id(
        &mut self,
        id: BackendIndex,
        server_id: Option<u64>,
    ) -> Result<(), AccessError> {
        let index = usize::from(id);
        let known = self.backends.get(index);
        if let Some(server_id) = server_id {
            self.server_ids.set(known.service, server_id, id)?;
        }
        if known.has_server_id != 0 && server_id != Some(known.server_id) {
            self.server_ids.remove(known.service, known.server_id, id)?;
        }
        let has = u16::from(server_id.is_some());
        self.backends
            .set_field(index, offset_of!(Backend, has_server_id), has);
        let number = server_id.unwrap_or(0);
        self.backends
            .set_field(index, offset_of!(Backend, server_id), number);
        Ok(())
    }

    pub fn watch_http(&mut self, id: BackendIndex, watches: bool) {
        self.backends.set_field(
            id.into(),
            offset_of!(Backend, watches_http),
            u64::from(watches),
        );
    }

    pub fn remove_backend(&mut self, id: BackendIndex) -> Result<(), AccessError> {
        self.set_server_id(id, None)?;
        self.backends.set(id.into(), Backend::default());
        Ok(())
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

    pub(super) fn table(&self, id: ServiceId, class: usize) -> Result<Vec<Slot>, AccessError> {
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
            flags: flags(service),
            server_id_length: service.server_id_length,
            pad: 0,
        };
        self.services.set(service.address, service.protocol, value)
    }

    pub fn remove_service(&mut self, at: Endpoint, protocol: Protocol) -> Result<(), AccessError> {
        self.services.remove(at, protocol)
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
            .fold(Traffic::default(), |sum, Raw(cpu)| signs::sum(sum, cpu)))
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

fn flags(service: &plan::Service) -> u8 {
    let reset = match service.on_death {
        OnDeath::Reset => service_flag::RESET_DEAD,
        OnDeath::Rehash => 0,
    };
    let rescue = if service.syn_rescue {
        service_flag::SYN_RESCUE
    } else {
        0
    };
    reset | rescue
}

fn per_cpu<T: Plain>(name: &'static str, value: T) -> Result<PerCpuValues<Raw<T>>, AccessError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| system_error(name)(error))?;
    PerCpuValues::try_from(vec![Raw(value); cpus]).map_err(system_error(name))
}
