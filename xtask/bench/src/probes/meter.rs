//! What a process has used, from /proc.

use anyhow::{Context, Result};

/// Processor time of a process so far, user and kernel, threads that have ended included, in
/// seconds.
pub fn cpu(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    seconds(&text).with_context(|| format!("{path} is not as proc(5) says"))
}

/// `utime` and `stime`, the 14th and 15th fields; the unit is 1/100 s on every architecture
/// (USER_HZ). The name, in brackets, may have spaces.
fn seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some((user + kernel) as f64 / 100.0)
}

/// Memory of a process in use, bytes: its own (anonymous), without files and shared mappings such
/// as the tables of the data plane.
pub fn memory(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    anonymous(&text).with_context(|| format!("{path} is not as proc(5) says"))
}

fn anonymous(status: &str) -> Option<f64> {
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_kernel_time_are_added() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 4 0 5";
        assert_eq!(seconds(stat), Some(2.0));
        assert_eq!(seconds("7 (x) S 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t     512 kB\n";
        assert_eq!(anonymous(status), Some(524_288.0));
        assert_eq!(anonymous("VmRSS: 1 kB\n"), None);
    }
}
