//! The counters of all backends, read with one system call: often, and beside the thread that writes
//! the maps, which may be busy.

use std::os::fd::{AsFd, OwnedFd};

use lb_common::abi::{MAX_BACKENDS, Traffic};
use lb_common::slot::BackendIndex;

use super::maps::AccessError;
use super::sys;

/// Reads the backends' counters.
pub struct Signs {
    map: OwnedFd,
    /// Possible CPUs.
    cpus: usize,
    keys: Vec<u32>,
    values: Vec<Traffic>,
}

impl Signs {
    pub(super) const fn new(map: OwnedFd, cpus: usize) -> Self {
        Self {
            map,
            cpus,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Reads the counters of the backends up to this number.
    pub fn read(&mut self, last: BackendIndex) -> Result<(), AccessError> {
        let count = (usize::from(last) + 1).min(MAX_BACKENDS as usize);
        self.keys.resize(count, 0);
        self.values.resize(count * self.cpus, Traffic::default());
        let map = self.map.as_fd();
        sys::lookup_first(map, &mut self.keys, &mut self.values).map_err(|source| {
            AccessError::System {
                name: "TRAFFIC",
                source,
            }
        })
    }

    /// A backend's counters when they were last read.
    pub fn get(&self, index: BackendIndex) -> Traffic {
        let first = usize::from(index) * self.cpus;
        let cpus = self.values.get(first..first + self.cpus);
        cpus.into_iter().flatten().fold(Traffic::default(), sum)
    }
}

/// Of two CPUs, or of more.
pub(super) fn sum(sum: Traffic, cpu: &Traffic) -> Traffic {
    Traffic {
        packets: sum.packets.wrapping_add(cpu.packets),
        bytes: sum.bytes.wrapping_add(cpu.bytes),
        by_previous: sum.by_previous.wrapping_add(cpu.by_previous),
        flows: sum.flows.wrapping_add(cpu.flows),
        answered: sum.answered.wrapping_add(cpu.answered),
        refused: sum.refused.wrapping_add(cpu.refused),
        repeated: sum.repeated.wrapping_add(cpu.repeated),
        unreachable: sum.unreachable.wrapping_add(cpu.unreachable),
        http_ok: sum.http_ok.wrapping_add(cpu.http_ok),
        http_errors: sum.http_errors.wrapping_add(cpu.http_errors),
        timed: sum.timed.wrapping_add(cpu.timed),
        timed_nanos: sum.timed_nanos.wrapping_add(cpu.timed_nanos),
        // Of one CPU each.
        timing_port: 0,
        timing_tick: 0,
        timing_since: 0,
    }
}
