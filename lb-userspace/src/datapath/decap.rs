//! The program of `lb decap`, which takes outer headers off on a backend. It has the object with the
//! balancer's program in common, and nothing else: neither loads the other's program.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{Addr, Stripped};

use super::sys::{Raw, XdpLink};
use super::{AccessError, AttachError, DatapathError, OBJECT, attach, interface, maps, program};
use crate::model::XdpMode;

/// Kernel name of the program.
pub const PROGRAM: &str = "lb_decap";

/// The loaded program with its maps; nothing is pinned.
pub struct Program {
    ebpf: Ebpf,
    addresses: HashMap<MapData, Raw<Addr>, Raw<u32>>,
    counters: PerCpuArray<MapData, Raw<[u64; 2]>>,
    known: BTreeSet<IpAddr>,
    gue_port: u16,
}

/// A program on an interface. Dropped, or with the process, it ends.
pub struct Attached {
    program: Program,
    index: u32,
    native: bool,
    _link: XdpLink,
}

/// Packets and bytes, from the Ethernet header on, outer headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

impl Program {
    /// Loads the program. It takes nothing off before [`Self::set_addresses`].
    pub fn load(gue_port: u16) -> Result<Self, DatapathError> {
        let mut loader = EbpfLoader::new();
        // The balancer's maps come with the object, but no program here uses them.
        for name in maps::NAMES {
            loader.map_max_entries(name, 1);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| DatapathError::Load(error.into()))?;
        program(&mut ebpf, PROGRAM)?
            .load()
            .map_err(|error| DatapathError::Verify(error.into()))?;
        let mut take = |name| ebpf.take_map(name).ok_or(AccessError::Missing(name));
        Ok(Self {
            addresses: take("DECAP")?.try_into().map_err(failed("DECAP"))?,
            counters: take("STRIPPED")?.try_into().map_err(failed("STRIPPED"))?,
            ebpf,
            known: BTreeSet::new(),
            gue_port,
        })
    }

    /// Has packets to just these addresses taken out of their outer headers.
    pub fn set_addresses(&mut self, wanted: BTreeSet<IpAddr>) -> Result<(), DatapathError> {
        for address in wanted.difference(&self.known) {
            let port = Raw(u32::from(self.gue_port.to_be()));
            self.addresses
                .insert(Raw(Addr::from(*address)), port, 0)
                .map_err(failed("DECAP"))?;
        }
        for address in self.known.difference(&wanted) {
            self.addresses
                .remove(&Raw(Addr::from(*address)))
                .map_err(failed("DECAP"))?;
        }
        self.known = wanted;
        Ok(())
    }

    /// The program, for test runs.
    pub fn fd(&mut self) -> Result<BorrowedFd<'_>, DatapathError> {
        let fd = program(&mut self.ebpf, PROGRAM)?.fd();
        Ok(fd
            .map_err(|error| DatapathError::Verify(error.into()))?
            .as_fd())
    }

    pub fn count(&self, what: Stripped) -> Result<Counter, DatapathError> {
        let values = self
            .counters
            .get(&(what as u32), 0)
            .map_err(failed("STRIPPED"))?;
        let sum = |at: usize| values.iter().map(|Raw(cpu)| cpu[at]).sum();
        Ok(Counter {
            packets: sum(0),
            bytes: sum(1),
        })
    }
}

impl Attached {
    /// Puts the program on an interface that has none.
    pub fn new(name: &str, mode: XdpMode, gue_port: u16) -> Result<Self, DatapathError> {
        let found = interface::query(name)?;
        if let Some(other) = found.program {
            return Err(AttachError::Taken {
                interface: name.to_owned(),
                program: attach::program_name(other.id),
                id: other.id,
            }
            .into());
        }
        let mut loaded = Program::load(gue_port)?;
        loaded.set_addresses(interface::addresses(found.index)?)?;
        let xdp = program(&mut loaded.ebpf, PROGRAM)?;
        let (link, native) = attach::create(xdp, name, found.index, mode)?;
        Ok(Self {
            program: loaded,
            index: found.index,
            native,
            _link: link,
        })
    }

    /// Whether it runs in the driver, rather than in the kernel's generic path.
    pub fn native(&self) -> bool {
        self.native
    }

    /// Addresses it answers to.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.program.known
    }

    /// Follows the interface's addresses; whether they have changed.
    pub fn refresh(&mut self) -> Result<bool, DatapathError> {
        let now = interface::addresses(self.index)?;
        let changed = now != self.program.known;
        self.program.set_addresses(now)?;
        Ok(changed)
    }

    /// See [`Program::count`].
    pub fn count(&self, what: Stripped) -> Result<Counter, DatapathError> {
        self.program.count(what)
    }
}

fn failed(name: &'static str) -> impl FnOnce(MapError) -> AccessError {
    move |source| AccessError::Map { name, source }
}
