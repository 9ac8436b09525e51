//! iperf3 as a client: one test after the other, in both directions, with a bounded rate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::excuse::Excuses;
use super::session::{Record, lock};

/// Length of one test in seconds.
const SECONDS: u64 = 6;
/// Rest after a test that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between two lines of its report, in seconds.
const INTERVAL: f64 = 0.5;

/// Repeats tests until told to stop; the one under way then is given up and not judged. `logs` are
/// those of the servers, by backend.
pub(super) fn repeat(
    to: SocketAddr,
    logs: &[(String, PathBuf)],
    excuses: &Excuses,
    record: &Mutex<Record>,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::SeqCst) {
        let started = Instant::now();
        let before: Vec<usize> = logs.iter().map(|(_, log)| accepted(log)).collect();
        let result = test(to, stop);
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let now = Instant::now();
        match result {
            Ok(outcome) => {
                let mut record = lock(record);
                record.connections += 1;
                record.progress(outcome.bytes, outcome.stall);
            }
            Err(error) => {
                std::thread::sleep(PAUSE);
                // The servers' logs tell which of them had the test.
                let pairs = logs.iter().zip(&before);
                let server = pairs
                    .filter(|((_, log), before)| accepted(log) > **before)
                    .map(|((backend, _), _)| backend)
                    .next_back();
                let expected = server.is_some_and(|name| excuses.broke(name, started, now))
                    || excuses.failed(started, now) && server.is_none();
                let age = now - started;
                lock(record).end(expected, || {
                    format!("of {server:?}, {age:.1?} old: {error:#}")
                });
            }
        }
    }
}

fn accepted(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.matches("Accepted connection").count()
}

struct Outcome {
    bytes: u64,
    stall: Duration,
}

fn test(to: SocketAddr, stop: &AtomicBool) -> Result<Outcome> {
    let mut command = Command::new("iperf3");
    command
        .args(["--client", &to.ip().to_string()])
        .args(["--port", &to.port().to_string()])
        .args(["--time", &SECONDS.to_string()])
        .args(["--interval", &INTERVAL.to_string()])
        .args(["--bidir", "--bitrate", "4M", "--parallel", "2", "--json"])
        .args(["--connect-timeout", "5000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start iperf3")?;
    // Its report is far longer than a pipe holds, so it is read while it is written.
    let mut output = child.stdout.take().context("no standard output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut output));
    let limit = Instant::now() + Duration::from_secs(SECONDS) + 6 * crate::load::TIMEOUT;
    let mut late = false;
    while child.try_wait().context("waiting for iperf3")?.is_none() {
        late = Instant::now() > limit;
        if late || stop.load(Ordering::SeqCst) {
            child.kill().context("cannot end iperf3")?;
            child.wait().context("waiting for iperf3")?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = reader
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .context("reading from iperf3")?;
    ensure!(!late, "iperf3 hangs");
    outcome(&text)
}

fn outcome(text: &str) -> Result<Outcome> {
    let report: Value = serde_json::from_str(text).context("iperf3 ended without a report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let intervals = report["intervals"]
        .as_array()
        .filter(|intervals| !intervals.is_empty())
        .context("the report of iperf3 has no intervals")?;
    let (mut bytes, mut stall) = (0, 0.0_f64);
    for direction in ["sum", "sum_bidir_reverse"] {
        let mut silent = 0.0;
        for interval in intervals {
            let moved = interval[direction]["bytes"]
                .as_u64()
                .with_context(|| format!("the report of iperf3 has no {direction}"))?;
            bytes += moved;
            silent = if moved == 0 { silent + INTERVAL } else { 0.0 };
            stall = stall.max(silent);
        }
    }
    let stall = Duration::from_secs_f64(stall);
    ensure!(stall < crate::load::TIMEOUT, "no data for {stall:?}");
    Ok(Outcome { bytes, stall })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(out: u64, back: u64) -> String {
        format!(r#"{{"sum":{{"bytes":{out}}},"sum_bidir_reverse":{{"bytes":{back}}}}}"#)
    }

    #[test]
    fn silence_in_one_direction_is_a_stall() -> Result<()> {
        let intervals = [
            interval(9, 9),
            interval(0, 9),
            interval(0, 9),
            interval(9, 0),
        ];
        let report = format!(r#"{{"intervals":[{}]}}"#, intervals.join(","));
        let outcome = outcome(&report)?;
        assert_eq!(outcome.bytes, 45);
        assert_eq!(outcome.stall, Duration::from_secs(1));
        Ok(())
    }

    #[test]
    fn an_error_and_a_lost_test_are_errors() {
        assert!(outcome(r#"{"intervals":[],"error":"the server has terminated"}"#).is_err());
        assert!(outcome("").is_err());
        let silent = vec![interval(0, 0); 10].join(",");
        assert!(outcome(&format!(r#"{{"intervals":[{silent}]}}"#)).is_err());
    }
}
