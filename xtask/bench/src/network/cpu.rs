//! Processor time of the whole machine: a balancer in the kernel has no process to ask.

use anyhow::{Context, Result};

/// Busy time of all processors since boot, in seconds: neither idle, nor waiting for a disk, nor
/// stolen by the hypervisor.
pub fn busy() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    seconds(&text).context("/proc/stat has no line that begins with cpu")
}

/// The unit of /proc/stat is 1/100 s on every architecture (USER_HZ).
fn seconds(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq (proc(5)).
    let &[user, nice, system, _, _, irq, softirq, ..] = fields.as_slice() else {
        return None;
    };
    Some((user + nice + system + irq + softirq) as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_left_out() {
        let text = "cpu  100 10 50 9999 77 5 35 8 0 0\ncpu0 1 1 1 1 1 1 1\n";
        assert_eq!(seconds(text), Some(2.0));
        assert_eq!(seconds("intr 1 2 3\n"), None);
    }
}
