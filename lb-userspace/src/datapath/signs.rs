//! The counters of the backends, many of them read with one system call: often, and beside the thread
//! that writes the maps, which may be busy.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use lb_common::abi::{MAX_BACKENDS, Traffic};
use lb_common::slot::BackendIndex;

use super::maps::AccessError;
use super::sys;

/// Entries read with one system call. Each takes memory for every CPU.
const CHUNK: usize = 256;

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

    /// Gives the counters of these backends, by their numbers, to `each`.
    pub fn read(
        &mut self,
        backends: Range<usize>,
        mut each: impl FnMut(BackendIndex, Traffic),
    ) -> Result<(), AccessError> {
        let end = backends.end.min(MAX_BACKENDS as usize);
        for first in (backends.start..end).step_by(CHUNK) {
            let count = CHUNK.min(end - first);
            self.keys.resize(count, 0);
            self.values.resize(count * self.cpus, Traffic::default());
            let map = self.map.as_fd();
            sys::lookup_many(map, first as u32, &mut self.keys, &mut self.values).map_err(
                |source| AccessError::System {
                    name: "TRAFFIC",
                    source,
                },
            )?;
            for (place, cpus) in self.values.chunks_exact(self.cpus).enumerate() {
                let index = (first + place) as BackendIndex;
                each(index, cpus.iter().fold(Traffic::default(), sum));
            }
        }
        Ok(())
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
