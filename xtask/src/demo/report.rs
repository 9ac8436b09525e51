//! What the viewer of the demo reads: scenes, measurements, expectations, a summary.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use lb_tests::load::Tally;

/// Width of the scene's rule.
const WIDTH: usize = 72;

/// Time that seeing a change may add to the time that it took: the status is read in turns.
const SLACK: Duration = Duration::from_millis(300);

/// Prints the demo and remembers what was not as expected.
#[derive(Debug, Default)]
pub struct Report {
    scene: String,
    scenes: u32,
    met: u32,
    missed: Vec<String>,
    live: bool,
}

impl Report {
    /// Opens a scene: its title and what is about to happen.
    pub fn scene(&mut self, title: &str, happening: &[&str]) {
        self.scenes += 1;
        self.scene = format!("{}. {title}", self.scenes);
        let rule = "─".repeat(WIDTH.saturating_sub(self.scene.chars().count() + 4));
        say(&format!("\n── {} {rule}", self.scene));
        for line in happening {
            self.note(line);
        }
    }

    /// A plain line.
    pub fn note(&mut self, line: &str) {
        self.clear();
        say(&format!("   {line}"));
    }

    /// An expectation: what, what was measured, and what had been expected.
    pub fn expect(&mut self, met: bool, what: &str, measured: &str, expected: &str) {
        self.clear();
        let mark = if met { '✓' } else { '✗' };
        say(&format!(
            "   {mark} {what:<34} {measured:<16} expected {expected}"
        ));
        if met {
            self.met += 1;
        } else {
            self.missed.push(format!(
                "{}: {what}: {measured}, expected {expected}",
                self.scene
            ));
        }
    }

    /// Expects a time within a budget; `None` is a thing that never came.
    pub fn expect_within(&mut self, what: &str, time: Option<Duration>, budget: Duration) {
        let text = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let measured = time.map_or("not at all".into(), text);
        let met = time.is_some_and(|time| time <= budget + SLACK);
        self.expect(met, what, &measured, &format!("at most {}", text(budget)));
    }

    /// Expects that something was counted at most this often.
    pub fn expect_at_most(&mut self, what: &str, count: u64, most: u64) {
        let expected = match most {
            0 => "0".into(),
            most => format!("at most {most}, under way"),
        };
        self.expect(count <= most, what, &count.to_string(), &expected);
    }

    /// The requests of a scene.
    pub fn tally(&mut self, what: &str, tally: &Tally) {
        let by_backend = tally
            .answered
            .iter()
            .map(|(name, count)| format!("{name} {count:<6}"));
        let by_backend: String = by_backend.collect::<Vec<_>>().join(" ");
        let (sent, failed) = (tally.requests(), tally.failed);
        self.note(&format!(
            "{what:<9} {sent:>6} requests, {failed:>3} failed   {by_backend}"
        ));
        if let Some(failure) = tally.failures.first() {
            self.note(&format!("          such as: {failure}"));
        }
    }

    /// A line that the next one overwrites, where the output is a terminal.
    pub fn live(&mut self, line: &str) {
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K   {line}");
            self.live = true;
            flush();
        }
    }

    fn clear(&mut self) {
        if self.live {
            print!("\r\x1b[K");
            self.live = false;
        }
    }

    /// The end: the count, and an error if anything was not as expected.
    pub fn summary(&mut self, requests: &Tally, took: Duration) -> Result<()> {
        self.clear();
        say(&format!("\n── Summary {}", "─".repeat(WIDTH - 11)));
        self.note(&format!(
            "{} scenes in {:.0} s, {} requests sent, {} failed",
            self.scenes,
            took.as_secs_f64(),
            requests.requests(),
            requests.failed
        ));
        let all = self.met as usize + self.missed.len();
        if self.missed.is_empty() {
            self.note(&format!("✓ all {all} expectations met"));
            return Ok(());
        }
        for line in self.missed.clone() {
            self.note(&format!("✗ {line}"));
        }
        bail!("{} of {all} expectations were not met", self.missed.len())
    }
}

fn say(line: &str) {
    println!("{line}");
    flush();
}

fn flush() {
    // A reader that has gone is not the demo's to mend; it must still clean up.
    drop(std::io::stdout().flush());
}
