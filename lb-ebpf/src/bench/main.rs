//! Programs for `cargo xtask bench`, an object of its own. The driver varies the flow, restores
//! the frame and tail-calls the program under test, so that `BPF_PROG_TEST_RUN` can repeat it
//! without ever seeing the same packet twice; the time of the same run into [`bench_pass`] is
//! what the driver itself costs.
#![no_std]
#![no_main]

#[allow(dead_code, reason = "user space names all of it")]
mod drive;
mod floor;
#[path = "../maps.rs"]
#[allow(dead_code, reason = "the product's maps; the floor uses some of them")]
mod maps;
#[path = "../packet.rs"]
#[allow(dead_code, reason = "the product's access to packets")]
mod packet;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action};
use aya_ebpf::btf_maps::{Array, HashMap, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::hash;

use drive::{Drive, FRAME_LEN, FloorKey, MAX_TUPLES, Order, Tuple};
use packet::Packet;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
static DRIVE: Array<Drive, 1, MMAPABLE> = Array::new();

#[btf_map]
static TUPLES: Array<Tuple, MAX_TUPLES, MMAPABLE> = Array::new();

/// Numbers of services as the floor finds them: in the kernel's hash map, as balancers commonly do.
#[btf_map]
pub static FLOOR_SERVICES: HashMap<FloorKey, u32, 16> = HashMap::new();

/// By `drive::Target`.
#[btf_map]
static TARGETS: ProgramArray<5> = ProgramArray::new();

#[xdp]
pub fn bench_drive(ctx: XdpContext) -> u32 {
    if let Some(target) = prepare(&Packet::new(&ctx)) {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TARGETS.tail_call(&ctx, target) };
    }
    // Not reached unless something is missing; user space checks the action.
    xdp_action::XDP_ABORTED
}

#[xdp]
pub fn bench_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp]
pub fn bench_floor_dsr(ctx: XdpContext) -> u32 {
    floor::dsr(&Packet::new(&ctx)).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp]
pub fn bench_floor_ipip(ctx: XdpContext) -> u32 {
    floor::ipip(&Packet::new(&ctx)).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp]
pub fn bench_floor_gue(ctx: XdpContext) -> u32 {
    floor::gue(&Packet::new(&ctx)).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Restores the frame and puts the run's flow into it; gives the target.
#[inline(always)]
fn prepare(packet: &Packet) -> Option<u32> {
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: runs follow one another, and user space writes only between them.
    let drive = unsafe { &mut *drive };
    let run = drive.next;
    drive.next = run.wrapping_add(1);
    let first;
    let packet = if drive.grows != 0 {
        first = packet.grow(FRAME_LEN as i32 - packet.len() as i32)?;
        &first
    } else {
        packet
    };
    let bytes = packet.window::<FRAME_LEN>(packet.start())?;
    macro_rules! restore {
        ($($word:literal)+) => { $(bytes.set_u32::<{ $word * 4 }>(drive.frame[$word]);)+ };
    }
    restore!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);

    let flow = if drive.order == Order::Fresh as u32 {
        run as u32
    } else {
        hash::slot((hash::mix(run) >> 32) as u32, drive.flows)
    };
    if drive.order == Order::Table as u32 {
        let tuple = TUPLES.get(flow)?;
        bytes.set_u32::<26>(tuple.src);
        bytes.set_u32::<30>(tuple.dst);
        bytes.set_u32::<34>(tuple.ports);
    } else if drive.v6 != 0 {
        let (client, port) = drive::client(u32::from_be(bytes.u32::<34>()), flow);
        bytes.set_u32::<34>(client.to_be());
        bytes.set_u16::<54>(port.to_be());
    } else {
        let (client, port) = drive::client(u32::from_be(bytes.u32::<26>()), flow);
        bytes.set_u32::<26>(client.to_be());
        bytes.set_u16::<34>(port.to_be());
    }
    Some(drive.target)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
