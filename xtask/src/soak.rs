//! `cargo xtask soak`: real applications through every change, for as long as one likes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lb_tests::applications::{BACKENDS, Mode, Scenario, Until, missing};
use lb_tests::{Lab, interrupt};

/// Plays the scenario of the test `applications` for this long, in whole rounds, and prints what
/// became of the connections.
///
/// # Errors
/// If it cannot run here, or a connection broke that should not have; the table is then part of
/// the error.
pub fn run(minutes: u64, modes: &[Mode]) -> Result<()> {
    if let Some(reason) = missing() {
        bail!("cannot run here: {reason}");
    }
    interrupt::watch()?;
    lb_tests::binaries::lb()?;
    lb_tests::binaries::helper()?;
    let lab = Lab::new(BACKENDS)?;
    let mut scenario = Scenario::start(&lab, modes)?;
    scenario.tell_log(false);
    let started = Instant::now();
    let report = scenario.play(Until::Time(Duration::from_secs(60 * minutes)), |change| {
        println!("{:>7.1} s  {change}", started.elapsed().as_secs_f64());
    })?;
    println!("\n{report}");
    Ok(())
}
