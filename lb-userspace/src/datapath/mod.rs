//! The kernel's side of the load balancer: the only user of aya.
//!
//! A [`Datapath`] is the loaded program with its maps, all pinned, so that packets keep flowing by
//! the last verdict when the agent ends, and the next agent takes over what stands.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::abi::{Flow, FlowKey, LAYOUT_VERSION, Traffic};
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;
use thiserror::Error;
use tracing::{info, warn};

mod attach;
mod chain;
mod contents;
pub mod decap;
mod flow_table;
mod flows;
pub mod interface;
mod maps;
mod migrate;
mod pace;
mod pin;
mod server_ids;
mod services;
mod signs;
pub mod sys;
pub mod tap;
mod writer;

pub use attach::{AttachError, Attached};
pub use chain::ChainError;
pub use flow_table::Inconsistency;
pub use flows::Sweep;
pub use maps::AccessError;
pub use pin::{PinDirectory, PinError};
pub use signs::Signs;
pub use tap::Tap;
pub use writer::{Command, Counters, Explained, Notice, Opened, Want, Writer};

use crate::model::XdpMode;
use crate::plan::explain::{self, Explanation, Tuple};
use crate::plan::{Contents, Op, ServiceId};
use maps::Maps;
use migrate::Migration;

/// The XDP program and its maps, as built from `lb-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb.bpf.o"));

/// Kernel name of the program.
pub const PROGRAM: &str = "lb_xdp";

/// Why the data plane does not do what it is told.
#[derive(Debug, Error)]
pub enum DatapathError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(
        "the maps pinned in {path} have layout {found}, this version writes layout \
         {LAYOUT_VERSION}. Nothing was changed: the old version goes on forwarding. To change over, \
         start with `lb run --migrate`, which breaks the established flows of nat; or run \
         `lb detach` and start again, which also serves nobody in between"
    )]
    Layout { path: String, found: u32 },
    #[error("loading the BPF program: {0}; it needs root (CAP_BPF, CAP_NET_ADMIN) and Linux 6.1")]
    Load(#[source] Box<EbpfError>),
    #[error("loading the BPF program: {0}; it needs root (CAP_BPF, CAP_NET_ADMIN) and Linux 6.1")]
    Verify(#[source] Box<ProgramError>),
    #[error("the BPF object holds no XDP program {0}")]
    NoProgram(&'static str),
    #[error("netlink: {0}")]
    Interface(#[from] interface::InterfaceError),
    #[error("starting the datapath thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("the datapath thread has ended")]
    Ended,
    #[error("pinning the program: {0}")]
    PinProgram(#[source] aya::pin::PinError),
}

/// Where the program belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// These interfaces and no others.
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    /// Whether another XDP program there may be replaced.
    pub replace: bool,
    /// Pin of the program that gets what is left to the host.
    pub chain: Option<PathBuf>,
}

/// The loaded program with its maps.
pub struct Datapath {
    /// Whether nothing was pinned before, and nothing has been attached yet.
    new: bool,
    pins: PinDirectory,
    /// While maps of another layout are in force.
    migration: Option<Migration>,
    ebpf: Ebpf,
    maps: Maps,
}

impl Datapath {
    /// Loads the program. Maps that are pinned are taken over with all they hold; the others are
    /// made, with room for `flow_entries` flows, and pinned. Packets see nothing of it until
    /// [`Self::attach`].
    ///
    /// The calling thread must have been through [`enter_bpffs`].
    pub fn open(pins: PinDirectory, flow_entries: u32) -> Result<Self, DatapathError> {
        migrate::recover(&pins)?;
        check_layout(&pins)?;
        Self::make(pins, flow_entries)
    }

    /// The same, but where what is pinned has another layout, new maps are made beside it, which
    /// are in force from [`Self::attach`] on.
    pub fn open_or_migrate(pins: PinDirectory, flow_entries: u32) -> Result<Self, DatapathError> {
        migrate::recover(&pins)?;
        match check_layout(&pins) {
            Err(DatapathError::Layout { .. }) => {
                let migration = Migration::begin(&pins)?;
                let datapath = Self::make(migration.next().clone(), flow_entries)?;
                Ok(Self {
                    migration: Some(migration),
                    ..datapath
                })
            }
            other => {
                other?;
                Self::make(pins, flow_entries)
            }
        }
    }

    /// Where maps of another layout are in force: whether they are in a driver.
    pub fn migrates(&self) -> Result<Option<bool>, DatapathError> {
        let migration = self.migration.as_ref();
        migration.map(Migration::is_native).transpose()
    }

    fn make(pins: PinDirectory, flow_entries: u32) -> Result<Self, DatapathError> {
        let new = !pins.exists();
        pins.create()?;
        match Self::load(&pins, flow_entries) {
            Ok(datapath) => Ok(Self { new, ..datapath }),
            Err(error) => {
                if new {
                    // Nothing was pinned before, so nothing stays.
                    pins.remove()?;
                }
                Err(error)
            }
        }
    }

    fn load(pins: &PinDirectory, flow_entries: u32) -> Result<Self, DatapathError> {
        let buckets = flow_table::buckets_for(flow_entries);
        let mut loader = loader(buckets);
        for name in maps::NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| DatapathError::Load(error.into()))?;
        xdp(&mut ebpf)?
            .load()
            .map_err(|error| DatapathError::Verify(error.into()))?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.end_capture();
        if maps.flows.buckets() != buckets as usize {
            warn!(
                "the flow table keeps its room for {} flows; {flow_entries} take effect after \
                 `lb detach` and a new start",
                maps.flows.capacity()
            );
        }
        match std::fs::remove_file(pins.program()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(PinError::directory(pins.path(), error).into());
            }
            _ => {}
        }
        xdp(&mut ebpf)?
            .pin(pins.program())
            .map_err(DatapathError::PinProgram)?;
        Ok(Self {
            new: false,
            pins: pins.clone(),
            migration: None,
            ebpf,
            maps,
        })
    }

    /// Puts the program where it belongs, and takes it off interfaces that it was on besides. If
    /// one cannot be had, or the chained program cannot be, all is left as it was.
    pub fn attach(&mut self, place: &Place) -> Result<Vec<Attached>, DatapathError> {
        let before = match self.set_chain(place.chain.as_deref()) {
            Ok(before) => before,
            Err(error) => {
                self.forget_new()?;
                return Err(error);
            }
        };
        let program = xdp(&mut self.ebpf)?;
        let pins = self.migration.as_ref().map_or(&self.pins, Migration::old);
        let mut done: Vec<Attached> = Vec::new();
        // Those first that may well be refused: what stands is replaced when all others are had.
        let mut names: Vec<&String> = place.interfaces.iter().collect();
        names.sort_by_key(|name| pins.link(name).exists());
        for name in names {
            match attach::attach(program, pins, name, place.mode, place.replace) {
                Ok(attached) => done.push(attached),
                Err(error) => {
                    let (new, adopted): (Vec<_>, Vec<_>) = done.iter().partition(|on| on.new);
                    for attached in new {
                        attach::detach(pins, &attached.name)?;
                    }
                    if let Some(migration) = &self.migration {
                        migration.undo(adopted.into_iter().map(|on| &*on.name))?;
                    }
                    self.maps.chain.restore(before)?;
                    self.forget_new()?;
                    return Err(error.into());
                }
            }
        }
        done.sort_by_key(|on| place.interfaces.iter().position(|name| *name == on.name));
        self.new = false;
        for name in pins.links()? {
            if !place.interfaces.contains(&name) {
                info!(
                    interface = name,
                    "not configured any more, or gone: taking the program off"
                );
                attach::detach(pins, &name)?;
            }
        }
        if let Some(migration) = self.migration.take() {
            self.pins = migration.finish()?;
            info!("the new maps are in force");
        }
        Ok(done)
    }

    /// Puts the program on one interface that has come back.
    pub fn attach_again(&mut self, name: &str, mode: XdpMode) -> Result<Attached, DatapathError> {
        let program = xdp(&mut self.ebpf)?;
        Ok(attach::attach(program, &self.pins, name, mode, false)?)
    }

    /// Hands what is left to the host to the program pinned at `path`, or to none.
    fn set_chain(&mut self, path: Option<&Path>) -> Result<chain::Before, DatapathError> {
        let own = sys::program_info(self.program()?).map_err(ChainError::Asking)?;
        Ok(self.maps.chain.set(path, own.id)?)
    }

    /// Removes what was pinned if nothing was before.
    fn forget_new(&self) -> Result<(), DatapathError> {
        if self.new {
            self.pins.remove()?;
        }
        Ok(())
    }

    /// What the maps hold.
    pub fn contents(&self) -> Result<Contents, DatapathError> {
        Ok(self.maps.contents()?)
    }

    /// Carries out one step.
    pub fn apply(&mut self, op: &Op) -> Result<(), DatapathError> {
        let maps = &mut self.maps;
        match op {
            Op::Filter(addresses) => maps.set_filter(addresses)?,
            Op::AnswerPing(answer) => maps.set_answer_ping(*answer),
            Op::ResetRate(rate) => maps.set_reset_rate(*rate),
            Op::Ports(ports) => maps.set_ports(*ports),
            Op::AddBackend(id, backend) => maps.add_backend(*id, backend)?,
            Op::Path(id, path) => maps.set_path(*id, *path)?,
            Op::ServerId(id, server_id) => maps.set_server_id(*id, *server_id)?,
            Op::WatchHttp(id, watches) => maps.watch_http(*id, *watches),
            Op::Table(id, slots) => maps.set_table(*id, slots)?,
            Op::Service(id, service) => maps.set_service(*id, service)?,
            Op::State(id, state) => maps.set_state(*id, *state),
            Op::RemoveService(id, address, protocol) => {
                maps.remove_service(*address, *protocol)?;
                maps.clear_verdicts(*id)?;
            }
            Op::RemoveTable(id, size) => maps.remove_table(*id, *size)?,
            Op::RemoveBackend(id) => maps.remove_backend(*id)?,
            Op::Sources(sources) => maps.retain_sources(sources),
        }
        Ok(())
    }

    /// A backend's counters.
    pub fn traffic(&self, id: BackendIndex) -> Result<Traffic, DatapathError> {
        Ok(self.maps.traffic(id)?)
    }

    /// A service's counters by verdict; service 0 counts packets that are for none.
    pub fn verdicts(&self, id: ServiceId) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        Ok(self.maps.verdicts(id)?)
    }

    /// Sets the packet path's coarse clock, in seconds of CLOCK_MONOTONIC.
    pub fn tick(&mut self) {
        self.maps.set_tick(sys::monotonic().as_secs() as u32);
    }

    /// Sets the packet path's clock so many seconds ahead; for tests of what time does to flows.
    pub fn advance(&mut self, seconds: u32) {
        let now = sys::monotonic().as_secs() as u32;
        self.maps.set_tick(now.saturating_add(seconds));
    }

    /// Goes over all flows once: counts them, and removes those that are over or whose backend is
    /// one of `gone`.
    pub fn sweep(&mut self, contents: &Contents, gone: &BTreeSet<BackendIndex>) -> Sweep {
        self.maps.sweep(contents, gone)
    }

    /// What becomes of a flow's packets while the maps hold `contents`; `None` if no service is at
    /// its destination.
    pub fn explain(&self, contents: &Contents, tuple: Tuple) -> Option<Explanation> {
        explain::explain(contents, tuple, &self.maps)
    }

    /// Flows that the flow table has room for.
    pub fn flow_capacity(&self) -> u32 {
        self.maps.flows.capacity()
    }

    /// The record of a flow, by its client's packets.
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        explain::Flows::find(&self.maps, key)
    }

    /// A place to capture packets from; at most one may be in use at a time.
    pub fn tap(&self) -> Result<Tap, DatapathError> {
        Ok(self.maps.tap()?)
    }

    /// A reader of the backends' counters that needs nothing else of this.
    pub fn signs(&self) -> Result<Signs, DatapathError> {
        Ok(self.maps.signs()?)
    }

    /// Whether the program captures packets.
    pub fn is_captured(&self) -> bool {
        self.maps.is_captured()
    }

    /// What is wrong with the flow table; for tests, while nothing else uses it.
    pub fn check_flows(&self) -> Vec<Inconsistency> {
        self.maps.check_flows()
    }

    /// The program, for test runs.
    pub fn program(&mut self) -> Result<BorrowedFd<'_>, DatapathError> {
        let fd = xdp(&mut self.ebpf)?.fd();
        Ok(fd
            .map_err(|error| DatapathError::Verify(error.into()))?
            .as_fd())
    }

    /// Instructions that the verifier went through to accept the program.
    pub fn verified_instructions(&mut self) -> Result<Option<u32>, DatapathError> {
        let info = xdp(&mut self.ebpf)?.info();
        Ok(info
            .map_err(|error| DatapathError::Verify(error.into()))?
            .verified_instruction_count())
    }
}

/// Takes the program off its interfaces and removes all that is pinned. Whether there was anything.
pub fn detach(pins: &PinDirectory) -> Result<bool, DatapathError> {
    migrate::recover(pins)?;
    for name in pins.links()? {
        attach::detach(pins, &name)?;
    }
    let existed = pins.exists();
    pins.remove()?;
    Ok(existed)
}

/// Loads the program with small maps, pins and attaches nothing, and lets go of it: whether the kernel
/// takes it. It needs the capabilities that a running agent keeps.
pub fn try_program() -> Result<(), DatapathError> {
    let mut ebpf = loader(flow_table::buckets_for(1))
        .load(OBJECT)
        .map_err(|error| DatapathError::Load(error.into()))?;
    xdp(&mut ebpf)?
        .load()
        .map_err(|error| DatapathError::Verify(error.into()))
}

/// A loader that makes a flow table of so many buckets.
fn loader(buckets: u32) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("FLOWS", buckets);
    loader.map_max_entries("REPLIES", flow_table::reply_lines(buckets));
    loader
}

/// See [`pin::enter_bpffs`].
pub fn enter_bpffs() -> Result<(), DatapathError> {
    Ok(pin::enter_bpffs()?)
}

/// See [`pin::is_the_hosts`].
pub fn is_the_hosts_bpffs(own: &str, host: &str) -> bool {
    pin::is_the_hosts(own, host)
}

/// The layout of the maps that are pinned, if it is not this version's.
pub fn other_layout(pins: &PinDirectory) -> Result<Option<u32>, DatapathError> {
    match check_layout(pins) {
        Err(DatapathError::Layout { found, .. }) => Ok(Some(found)),
        other => other.map(|()| None),
    }
}

fn check_layout(pins: &PinDirectory) -> Result<(), DatapathError> {
    match maps::pinned_version(&pins.map("PARAMS"))? {
        None | Some(0 | LAYOUT_VERSION) => Ok(()),
        Some(found) => Err(DatapathError::Layout {
            path: pins.path().display().to_string(),
            found,
        }),
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, DatapathError> {
    program(ebpf, PROGRAM)
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Xdp, DatapathError> {
    let program = ebpf
        .program_mut(name)
        .ok_or(DatapathError::NoProgram(name))?;
    program
        .try_into()
        .map_err(|error: ProgramError| DatapathError::Verify(error.into()))
}
