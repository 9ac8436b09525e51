//! The product's data plane, filled for the bench, and the driver beside it on the same maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramInfo, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{Addr, Affinity, BackendState, FlowKey, Forwarding, GUE_PORT, Hop};
use lb_common::slot::{Slot, TABLE_SIZES};
use lb_common::verdict::Verdict;
use lb_userspace::datapath::sys::{TestRun, test_run};
use lb_userspace::datapath::{Datapath, PinDirectory, detach, enter_bpffs};
use lb_userspace::model::{OnDeath, Protocol};
use lb_userspace::plan::{self, Contents, Op, SnatPorts};

use super::drive::{self, Drive, FRAME_LEN, FloorKey, Target, Tuple};
use super::frames::CLIENT4;

#[path = "../../../../lb-ebpf/toolchain.rs"]
#[expect(
    dead_code,
    reason = "the product's own build script takes a prebuilt object"
)]
pub mod toolchain;

/// VIPs; each service listens on [`PORT`].
pub const NAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const DSR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
pub const DSR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20);
/// All slots of this service are in transition.
pub const MOVING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
pub const IPIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 40);
pub const GUE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
pub const PORT: u16 = 80;

const SOURCE4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
/// Backends of each service.
const BACKENDS: u16 = 100;
/// Interface that test runs come in by: the loopback, so that answers leave by `XDP_TX`.
const INGRESS: u32 = 1;

/// Maps of the product that the floor programs use too.
const SHARED: [&str; 3] = ["BACKENDS", "TABLES_M", "TRAFFIC"];

// SAFETY: integers without padding, see its definition.
unsafe impl aya::Pod for Drive {}
// SAFETY: as above.
unsafe impl aya::Pod for Tuple {}
// SAFETY: as above.
unsafe impl aya::Pod for FloorKey {}

/// Everything loaded; unpinned when dropped.
pub struct Kernel {
    pub datapath: Datapath,
    contents: Contents,
    pins: PinDirectory,
    driver: Ebpf,
    drive: Array<MapData, Drive>,
    tuples: Array<MapData, Tuple>,
    // The programs stay in the array only as long as it is held.
    _targets: ProgramArray<MapData>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.pins) {
            eprintln!("bench: {error}");
        }
    }
}

impl Kernel {
    /// Loads the product with room for this many flow entries, and the driver.
    pub fn load(flow_entries: u32) -> Result<Self> {
        enter_bpffs()?;
        let pins = PinDirectory::of(&PathBuf::from(format!("/bench/{}", std::process::id())));
        let loaded = Self::load_pinned(&pins, flow_entries);
        if loaded.is_err() {
            detach(&pins)?;
        }
        loaded
    }

    fn load_pinned(pins: &PinDirectory, flow_entries: u32) -> Result<Self> {
        let mut datapath = Datapath::open(pins.clone(), flow_entries)?;
        let wanted = contents();
        for op in plan::plan(&Contents::default(), &wanted) {
            datapath
                .apply(&op)
                .with_context(|| format!("step {}", Op::name(&op)))?;
        }
        let object = build_driver()?;
        let mut loader = EbpfLoader::new();
        for name in SHARED {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut driver = loader
            .load_file(&object)
            .context("cannot load the driver's object")?;
        let mut take = |name| {
            driver
                .take_map(name)
                .with_context(|| format!("no map {name}"))
        };
        let drive = Array::try_from(take("DRIVE")?)?;
        let tuples = Array::try_from(take("TUPLES")?)?;
        let mut targets = ProgramArray::try_from(take("TARGETS")?)?;
        let mut services: HashMap<_, FloorKey, u32> = take("FLOOR_SERVICES")?.try_into()?;
        for (target, name) in [
            (Target::Pass, "bench_pass"),
            (Target::FloorDsr, "bench_floor_dsr"),
            (Target::FloorIpip, "bench_floor_ipip"),
            (Target::FloorGue, "bench_floor_gue"),
        ] {
            let program = xdp(&mut driver, name)?;
            program.load().with_context(|| format!("loading {name}"))?;
            targets.set(target as u32, program.fd()?, 0)?;
        }
        xdp(&mut driver, "bench_drive")?
            .load()
            .context("loading bench_drive")?;
        let product = ProgramInfo::from_pin(pins.program())?.fd()?;
        targets.set(Target::Lb as u32, &product, 0)?;
        for (id, service) in &wanted.services {
            let key = FloorKey {
                addr: service.address.ip().into(),
                port: PORT.to_be(),
                protocol: service.protocol.number().into(),
                pad: 0,
            };
            services
                .insert(key, u32::from(*id), 0)
                .context("map FLOOR_SERVICES")?;
        }
        Ok(Self {
            datapath,
            contents: wanted,
            pins: pins.clone(),
            driver,
            drive,
            tuples,
            _targets: targets,
        })
    }

    /// Runs a scenario `repeat` times.
    pub fn run(&mut self, drive: &Drive, repeat: u32) -> Result<TestRun> {
        self.drive.set(0, *drive, 0).context("map DRIVE")?;
        let program = xdp(&mut self.driver, "bench_drive")?;
        test_run(program.fd()?.as_fd(), &[0; FRAME_LEN], repeat).context("BPF_PROG_TEST_RUN")
    }

    /// Packets forwarded so far, in either direction.
    pub fn forwarded(&self) -> Result<u64> {
        let mut sum = 0;
        for id in self.contents.backends.keys() {
            sum += self.datapath.traffic(*id)?.packets;
        }
        for id in self.contents.services.keys() {
            let verdicts = self.datapath.verdicts(*id)?;
            let replies = verdicts
                .iter()
                .filter(|(verdict, _)| *verdict == Verdict::NatReply);
            sum += replies.map(|(_, count)| count).sum::<u64>();
        }
        Ok(sum)
    }

    /// Fills the tuple table with the replies to the first `flows` NAT flows, which must be open.
    pub fn tabulate_replies(&mut self, flows: u32) -> Result<()> {
        for number in 0..flows {
            let (client, port) = drive::client(u32::from(CLIENT4), number);
            let key = FlowKey {
                src: Addr::from(IpAddr::from(Ipv4Addr::from(client))),
                dst: Addr::from(IpAddr::from(NAT)),
                sport: port.to_be(),
                dport: PORT.to_be(),
                protocol: 6,
            };
            let flow = self.datapath.flow(&key);
            let flow = flow.with_context(|| {
                let wrong = self.datapath.check_flows();
                format!("NAT flow {number} is not open; wrong in the table: {wrong:?}")
            })?;
            let backend = &self.contents.backends[&flow.backend];
            let tuple = Tuple {
                src: Addr::from(backend.address.ip()).last_word(),
                dst: Addr::from(IpAddr::from(SOURCE4)).last_word(),
                ports: words([backend.address.port().to_be(), flow.nat_port]),
                pad: 0,
            };
            self.tuples.set(number, tuple, 0).context("map TUPLES")?;
        }
        Ok(())
    }
}

/// Two ports as they lie one behind the other.
fn words([first, second]: [u16; 2]) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn build_driver() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.ancestors().nth(2).unwrap_or(own);
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root.join(target),
        None => root.join("target"),
    };
    toolchain::build(
        &root.join("lb-ebpf"),
        &target.join("bench-ebpf"),
        "bench",
        &[],
    )
    .map_err(|error| anyhow!(error))
}

/// A hundred backends behind each of six services with 65,537 slots.
fn contents() -> Contents {
    let mut contents = Contents {
        ports: Some(SnatPorts {
            first: 20_000,
            count: 40_000,
        }),
        sources: [IpAddr::from(SOURCE4), IpAddr::from(SOURCE6)].into(),
        ..Contents::default()
    };
    let services: [(IpAddr, Forwarding, bool); 6] = [
        (NAT.into(), Forwarding::Nat, false),
        (DSR.into(), Forwarding::Dsr, false),
        (DSR6.into(), Forwarding::Dsr, false),
        (MOVING.into(), Forwarding::Dsr, true),
        (IPIP.into(), Forwarding::Ipip, false),
        (GUE.into(), Forwarding::Gue, false),
    ];
    for (number, (vip, forwarding, moving)) in (0..).zip(services) {
        let id = number + 1;
        let first = 1 + number * BACKENDS;
        let slot = |slot: u32| {
            let owner = |shift| first + ((slot + shift) % u32::from(BACKENDS)) as u16;
            if moving {
                Slot::transition(owner(0), owner(1))
            } else {
                Slot::settled(owner(0))
            }
        };
        let slots: Vec<Slot> = (0..TABLE_SIZES[1]).map(slot).collect();
        contents.services.insert(
            id,
            plan::Service {
                address: SocketAddr::new(vip, PORT).into(),
                protocol: Protocol::Tcp,
                forwarding,
                affinity: Affinity::Flow,
                on_death: match forwarding {
                    Forwarding::Nat => OnDeath::Reset,
                    Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => OnDeath::Rehash,
                },
                syn_rescue: forwarding == Forwarding::Nat,
                server_id_length: 0,
                slots: Arc::new(slots),
            },
        );
        contents
            .backends
            .extend(backends(id, first, vip.is_ipv4(), forwarding));
    }
    contents
}

fn backends(
    service: u16,
    first: u16,
    v4: bool,
    forwarding: Forwarding,
) -> BTreeMap<u16, plan::Backend> {
    let gue_port = match forwarding {
        Forwarding::Nat | Forwarding::Dsr | Forwarding::Ipip => 0,
        Forwarding::Gue => GUE_PORT,
    };
    let backend = |index: u16| {
        let last = index - first;
        let (address, source): (IpAddr, IpAddr) = if v4 {
            let [high, low] = (first + last).to_be_bytes();
            (Ipv4Addr::new(10, 1, high, low).into(), SOURCE4.into())
        } else {
            (
                Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 1, last).into(),
                SOURCE6.into(),
            )
        };
        let [high, low] = index.to_be_bytes();
        let hop = Hop::new([2, 0, 0, 1, high, low], [2, 0, 0, 0, 0, 1], INGRESS);
        let backend = plan::Backend {
            service,
            address: SocketAddr::new(address, 8080),
            server_id: None,
            watches_http: false,
            state: BackendState::Active,
            path: Some(plan::Path {
                hop,
                source,
                mtu: 1500,
                tunnel: plan::Tunnel {
                    gue_port,
                    source_bits: 0,
                },
            }),
        };
        (index, backend)
    };
    (first..first + BACKENDS).map(backend).collect()
}

/// The action that each run of a scenario must end in.
pub fn expect(result: &TestRun, action: u32, what: &str) -> Result<()> {
    if result.action != action {
        bail!(
            "{what}: the last packet ended in action {}, not {action}",
            result.action
        );
    }
    Ok(())
}
