//! The scenes: each makes something happen, waits for what was expected, and measures it.

use std::time::Duration;

use anyhow::Result;
use lb_tests::load::download::Download;
use lb_tests::server::Order;
use lb_tests::status::Service;
use lb_tests::{Server, wait_for};

use super::stage::{Stage, WEB, eject_budget, readmit_budget, web};

/// How long a scene waits before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Budget of what the agent does at once.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Requests to `web` that may be under way: one of each worker.
const UNDER_WAY: u64 = 2;
const MIB: u64 = 1 << 20;

fn is(service: &Service, backend: &str, routing: &str) -> bool {
    let mut backends = service.backends.iter();
    backends.any(|found| found.name == backend && found.routing == routing)
}

fn all_active(service: &Service) -> bool {
    !service.panic
        && service
            .backends
            .iter()
            .all(|backend| backend.routing == "active")
}

/// Traffic spreads over all backends.
pub fn spread(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "Traffic spreads",
        &["Each request is a new connection, hashed to a backend by its addresses and ports."],
    );
    let mark = stage.mark();
    stage.watch(Duration::from_secs(5))?;
    stage.tell(&mark);
    let tally = stage.web_since(&mark);
    let all = tally.requests().max(1);
    let smallest = WEB
        .iter()
        .map(|name| tally.of(name) * 100 / all)
        .min()
        .unwrap_or(0);
    let measured = format!("{smallest} %");
    stage.report.expect(
        smallest >= 25,
        "smallest share of web",
        &measured,
        "33 %, at least 25 %",
    );
    let failed = stage.failed_since(&mark);
    stage.report.expect_at_most("failed requests", failed, 0);
    Ok(())
}

/// A backend dies and is out within its budget.
pub fn death(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "A backend is killed",
        &[
            "b1 gets SIGKILL: its ports refuse connections. Three probes in a row must see",
            "it; until then the requests that hash to b1 fail.",
        ],
    );
    let mark = stage.mark();
    stage.servers[0].kill()?;
    let out = stage.until(&mark, PATIENCE, |service| is(service, "b1", "out"))?;
    // Requests that were under way at that moment may still fail.
    stage.watch(Duration::from_millis(200))?;
    let after = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&mark);
    stage.quote("ejected")?;
    stage
        .report
        .expect_within("out of rotation after", out, eject_budget());
    let failed = stage.web_since(&after).failed;
    stage
        .report
        .expect_at_most("failed requests once it is out", failed, 0);

    stage
        .report
        .note("b1 is started again; two good probes must bring it back.");
    stage.servers[0] = Server::start(stage.lab.backend(1))?;
    let mark = stage.mark();
    let back = stage.until(&mark, PATIENCE, all_active)?;
    stage.quote("readmitted")?;
    stage
        .report
        .expect_within("back in rotation after", back, readmit_budget());
    Ok(())
}

/// A backend that answers 503 is drained; its long download completes.
pub fn drain(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "A backend answers 503 and is drained",
        &[
            "A client downloads 16 MiB from b2, slowly. Then b2's /readyz answers 503: no",
            "new connections for b2, but the download must complete, byte for byte.",
        ],
    );
    let download = Download::from_backend(&stage.lab.client, web(), "b2", 16 * MIB, 3 * MIB)?;
    let mark = stage.mark();
    stage.servers[1].order(Order::Unready)?;
    let draining = stage.until(&mark, PATIENCE, |service| is(service, "b2", "draining"))?;
    let drained = stage.mark();
    stage.quote("draining")?;
    let got = download.received() / MIB;
    stage
        .report
        .note(&format!("the download stands at {got} MiB of 16"));
    wait_for("the download", PATIENCE, || {
        stage.tick(&mark)?;
        Ok(download.ended())
    })?;
    let whole = download.finish();
    stage.tell(&mark);
    stage
        .report
        .expect_within("draining after", draining, eject_budget());
    let new = stage.web_since(&drained).of("b2");
    stage
        .report
        .expect_at_most("new requests to b2 since", new, UNDER_WAY);
    let words = whole
        .as_ref()
        .map_or_else(|error| format!("{error:#}"), |()| "complete".into());
    stage
        .report
        .expect(whole.is_ok(), "the download", &words, "complete and right");
    let failed = stage.failed_since(&mark);
    stage.report.expect_at_most("failed requests", failed, 0);
    Ok(())
}

/// Most backends fail: panic.
pub fn panic(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "Most backends fail: panic",
        &[
            "b3 answers 503 as well, though both still serve. One of three is healthy, less",
            "than the panic threshold of 50 %: health is ignored, all three get traffic.",
        ],
    );
    let mark = stage.mark();
    stage.servers[2].order(Order::Unready)?;
    let panic = stage.until(&mark, PATIENCE, |service| service.panic)?;
    let inside = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&inside);
    stage.quote("panic_entered")?;
    stage
        .report
        .expect_within("panic after", panic, eject_budget());
    let tally = stage.web_since(&inside);
    let fewest = WEB.iter().map(|name| tally.of(name)).min().unwrap_or(0);
    let what = "requests of the least used backend";
    stage
        .report
        .expect(fewest > 0, what, &fewest.to_string(), "more than 0");
    let failed = stage.failed_since(&mark);
    stage.report.expect_at_most("failed requests", failed, 0);
    Ok(())
}

/// All recover; panic ends by itself.
pub fn recovery(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "All recover",
        &["b2 and b3 answer 200 again. Panic must end by itself."],
    );
    let mark = stage.mark();
    for server in &mut stage.servers[1..3] {
        server.order(Order::Ready)?;
    }
    let back = stage.until(&mark, PATIENCE, all_active)?;
    stage.watch(Duration::from_secs(1))?;
    stage.tell(&mark);
    stage.quote("panic_left")?;
    stage
        .report
        .expect_within("all active after", back, readmit_budget());
    let failed = stage.failed_since(&mark);
    stage.report.expect_at_most("failed requests", failed, 0);
    Ok(())
}

/// An operator takes a backend out of service and puts it back.
pub fn operator(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .report
        .scene("An operator drains a backend", &["$ lb drain web/b3"]);
    let mark = stage.mark();
    stage.agent.lb(&["drain", "web/b3"])?.ok()?;
    let draining = stage.until(&mark, PATIENCE, |service| is(service, "b3", "draining"))?;
    let drained = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&mark);
    stage.quote("draining")?;
    stage
        .report
        .expect_within("draining after", draining, AT_ONCE);
    let new = stage.web_since(&drained).of("b3");
    stage
        .report
        .expect_at_most("new requests to b3 since", new, UNDER_WAY);

    stage.report.note("$ lb enable web/b3");
    let enabled = stage.mark();
    stage.agent.lb(&["enable", "web/b3"])?.ok()?;
    let back = stage.until(&enabled, PATIENCE, all_active)?;
    stage
        .report
        .expect_within("active again after", back, AT_ONCE);
    let failed = stage.failed_since(&mark);
    stage.report.expect_at_most("failed requests", failed, 0);
    Ok(())
}

/// `lb detach` takes everything off the host.
pub fn detach(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene("Curtain", &["$ lb detach"]);
    stage.agent.lb(&["detach"])?.ok()?;
    let traces = stage.agent.traces()?;
    let told = if traces.is_empty() {
        "nothing".into()
    } else {
        traces.join(", ")
    };
    stage
        .report
        .expect(traces.is_empty(), "left on the balancer", &told, "nothing");
    Ok(())
}
