//! The load generator.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::Host;

use super::cpu;

/// Connections that wrk keeps busy.
pub const CONNECTIONS: u32 = 64;

/// One run of wrk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub requests_per_second: f64,
    /// Processor time of the whole machine for each request, microseconds.
    pub cpu: f64,
    /// 99th percentile of the latency, milliseconds.
    pub p99: f64,
}

/// Requests for `time`, each on a new connection or not.
///
/// # Errors
/// If wrk cannot be run, or any request failed: then the figures mean nothing.
pub fn run(client: &Host, to: SocketAddr, time: Duration, reconnect: bool) -> Result<Load> {
    let (connections, seconds) = (CONNECTIONS.to_string(), format!("{}s", time.as_secs()));
    let url = format!("http://{to}/");
    let mut words = vec!["-t1", "-c", &connections, "-d", &seconds, "--latency"];
    if reconnect {
        words.extend(["-H", "Connection: close"]);
    }
    words.push(&url);
    let before = cpu::busy()?;
    let output = client.namespace.run("wrk", &words)?;
    let busy = cpu::busy()? - before;
    let report = Report::read(&output).with_context(|| format!("wrk printed:\n{output}"))?;
    ensure!(report.clean, "requests to {to} failed:\n{output}");
    Ok(Load {
        requests_per_second: report.rate,
        cpu: busy * 1e6 / report.requests,
        p99: report.p99,
    })
}

#[derive(Debug, PartialEq)]
struct Report {
    requests: f64,
    rate: f64,
    p99: f64,
    clean: bool,
}

impl Report {
    fn read(output: &str) -> Option<Self> {
        let after = |start: &str| {
            output
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(start))
        };
        let requests = output
            .lines()
            .find_map(|line| line.trim_start().split_once(" requests in "))?;
        Some(Self {
            requests: requests.0.parse().ok()?,
            rate: after("Requests/sec:")?.trim().parse().ok()?,
            p99: milliseconds(after("99%")?.trim())?,
            clean: after("Socket errors:").is_none() && after("Non-2xx").is_none(),
        })
    }
}

/// wrk writes `950.00us`, `1.20ms` or `1.05s`.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1000.0)
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 2s test @ http://10.0.0.1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.61ms  226.11us   4.21ms   78.05%
  Latency Distribution
     50%    1.56ms
     99%    2.40ms
  78942 requests in 2.00s, 8.51MB read
Requests/sec:  39440.12
Transfer/sec:      4.25MB
";

    #[test]
    fn a_report_is_read() {
        let report = Report::read(OUTPUT).unwrap();
        assert_eq!(report.requests, 78942.0);
        assert_eq!(report.rate, 39440.12);
        assert_eq!(report.p99, 2.4);
        assert!(report.clean);
        assert_eq!(Report::read("wrk: unable to connect"), None);
    }

    #[test]
    fn failed_requests_are_seen() {
        let failed = format!("{OUTPUT}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(!Report::read(&failed).unwrap().clean);
        let failed = format!("{OUTPUT}  Non-2xx or 3xx responses: 12\n");
        assert!(!Report::read(&failed).unwrap().clean);
    }

    #[test]
    fn latencies_have_three_units() {
        assert_eq!(milliseconds("500.00us"), Some(0.5));
        assert_eq!(milliseconds("1.50ms"), Some(1.5));
        assert_eq!(milliseconds("1.50s"), Some(1500.0));
        assert_eq!(milliseconds("x"), None);
    }
}
