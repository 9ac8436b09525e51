//! Real applications, each way to forward, while backends are killed, drained, added and removed,
//! and the agent dies. The same for longer: `cargo xtask soak`.

use anyhow::Result;
use lb_tests::Lab;
use lb_tests::applications::{BACKENDS, Mode, Scenario, Until, missing};

fn applications_survive(name: &str, mode: Mode) -> Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED {name}: {reason}");
        return Ok(());
    }
    let lab = Lab::new(BACKENDS)?;
    let scenario = Scenario::start(&lab, &[mode])?;
    let report = scenario.play(Until::Rounds(1), |change| println!("{change}"))?;
    println!("{report}");
    Ok(())
}

#[test]
fn applications_survive_all_changes_by_nat() -> Result<()> {
    applications_survive("applications_survive_all_changes_by_nat", Mode::Nat)
}

#[test]
fn applications_survive_all_changes_by_ipip() -> Result<()> {
    applications_survive("applications_survive_all_changes_by_ipip", Mode::Ipip)
}

#[test]
fn applications_survive_all_changes_by_gue() -> Result<()> {
    applications_survive("applications_survive_all_changes_by_gue", Mode::Gue)
}

#[test]
fn applications_survive_all_changes_by_dsr() -> Result<()> {
    applications_survive("applications_survive_all_changes_by_dsr", Mode::Dsr)
}
