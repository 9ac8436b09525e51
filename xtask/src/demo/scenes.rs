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
const MIB: u64 = 1 << 20;

fn routing(service: &Service, backend: &str) -> String {
    let found = service.backends.iter().find(|found| found.name == backend);
    found.map(|found| found.routing.clone()).unwrap_or_default()
}

fn all_active(service: &Service) -> bool {
    !service.panic
        && service
            .backends
            .iter()
            .all(|backend| backend.routing == "active")
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("not at all".into(), |time| {
        format!("{:.2} s", time.as_secs_f64())
    })
}

fn zero(stage: &mut Stage<'_>, what: &str, count: u64) {
    stage
        .report
        .expect(count == 0, what, &count.to_string(), "0");
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
    stage.report.expect(
        smallest >= 25,
        "smallest share of a web backend",
        &format!("{smallest} %"),
        "33 %, at least 25",
    );
    let failed = tally.failed + stage.others_failed(&mark);
    zero(stage, "failed requests", failed);
    Ok(())
}

/// A backend dies and is out within its budget.
pub fn death(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "A backend is killed",
        &[
            "b1 gets SIGKILL: its port refuses connections. Three probes in a row must see it,",
            "until then the requests that hash to b1 fail; nobody else's may.",
        ],
    );
    let mark = stage.mark();
    stage.servers[0].kill()?;
    let out = stage.until(&mark, PATIENCE, |service| routing(service, "b1") == "out")?;
    // Requests that were under way at that moment may still fail.
    stage.watch(Duration::from_millis(200))?;
    let after = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&mark);
    let budget = eject_budget();
    let in_time = out.is_some_and(|out| out <= budget);
    let expected = format!("at most {}", seconds(Some(budget)));
    stage
        .report
        .expect(in_time, "out of rotation after", &seconds(out), &expected);
    let failed = stage.web_since(&after).failed;
    zero(stage, "failed requests once it is out", failed);
    stage
        .report
        .note("b1 is started again and must be readmitted by two good probes.");
    let mark = stage.mark();
    stage.servers[0] = Server::start(stage.lab.backend(1))?;
    let back = stage.until(&mark, PATIENCE, all_active)?;
    // Starting the servers is part of the time: half a second is granted for it.
    let budget = readmit_budget() + Duration::from_millis(500);
    let expected = format!("at most {}", seconds(Some(budget)));
    stage.report.expect(
        back.is_some_and(|back| back <= budget),
        "back in rotation after",
        &seconds(back),
        &expected,
    );
    Ok(())
}

/// A backend that answers 503 is drained; its long download completes.
pub fn drain(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "A backend answers 503 and is drained",
        &[
            "A client downloads 16 MiB from b2, slowly. Then b2's /readyz answers 503:",
            "no new connections for b2, but the download must complete, byte for byte.",
        ],
    );
    let download = Download::from_backend(&stage.lab.client, web(), "b2", 16 * MIB, 3 * MIB)?;
    let mark = stage.mark();
    stage.servers[1].order(Order::Unready)?;
    let draining = stage.until(&mark, PATIENCE, |service| {
        routing(service, "b2") == "draining"
    })?;
    let drained = stage.mark();
    let got = download.received() / MIB;
    stage.report.note(&format!(
        "b2 is draining; the download stands at {got} MiB of 16"
    ));
    wait_for("the download", PATIENCE, || {
        stage.tick(&mark)?;
        Ok(download.ended())
    })?;
    let whole = download.finish();
    stage.tell(&mark);
    let expected = format!("at most {}", seconds(Some(eject_budget())));
    let in_time = draining.is_some_and(|time| time <= eject_budget());
    stage
        .report
        .expect(in_time, "draining after", &seconds(draining), &expected);
    // At most one request of each worker was under way when the drain began.
    let new = stage.web_since(&drained).of("b2");
    stage.report.expect(
        new <= 2,
        "new requests to b2 while it drains",
        &new.to_string(),
        "0 (2 under way)",
    );
    let words = whole
        .as_ref()
        .map_or_else(|error| format!("{error:#}"), |()| "complete".into());
    stage
        .report
        .expect(whole.is_ok(), "the download", &words, "complete and right");
    let failed = stage.web_since(&mark).failed + stage.others_failed(&mark);
    zero(stage, "failed requests", failed);
    Ok(())
}

/// Most backends fail: panic.
pub fn panic(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.scene(
        "Most backends fail: panic",
        &[
            "b3 answers 503 as well, though both still serve. One of three is healthy, below the",
            "panic threshold of 50 %: probes are more likely wrong than two servers at once, so",
            "health is ignored and all three get traffic.",
        ],
    );
    let mark = stage.mark();
    stage.servers[2].order(Order::Unready)?;
    let panic = stage.until(&mark, PATIENCE, |service| service.panic)?;
    let inside = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&inside);
    let expected = format!("at most {}", seconds(Some(eject_budget())));
    stage.report.expect(
        panic.is_some_and(|time| time <= eject_budget()),
        "panic after",
        &seconds(panic),
        &expected,
    );
    let tally = stage.web_since(&inside);
    let fewest = WEB.iter().map(|name| tally.of(name)).min().unwrap_or(0);
    stage.report.expect(
        fewest > 0,
        "requests of the least used backend",
        &fewest.to_string(),
        "more than 0",
    );
    let failed = stage.web_since(&mark).failed + stage.others_failed(&mark);
    zero(stage, "failed requests", failed);
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
    let expected = format!("at most {}", seconds(Some(readmit_budget())));
    stage.report.expect(
        back.is_some_and(|back| back <= readmit_budget()),
        "all active after",
        &seconds(back),
        &expected,
    );
    let failed = stage.web_since(&mark).failed + stage.others_failed(&mark);
    zero(stage, "failed requests", failed);
    Ok(())
}

/// An operator takes a backend out of service and puts it back.
pub fn operator(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .report
        .scene("An operator drains a backend", &["$ lb drain web/b3"]);
    let mark = stage.mark();
    stage.agent.lb(&["drain", "web/b3"])?.ok()?;
    let draining = stage.until(&mark, PATIENCE, |service| {
        routing(service, "b3") == "draining"
    })?;
    let drained = stage.mark();
    stage.watch(Duration::from_secs(3))?;
    stage.tell(&mark);
    stage.report.expect(
        draining.is_some(),
        "draining after",
        &seconds(draining),
        "at once",
    );
    let new = stage.web_since(&drained).of("b3");
    stage.report.expect(
        new <= 2,
        "new requests to b3 while it drains",
        &new.to_string(),
        "0 (2 under way)",
    );
    stage.report.note("$ lb enable web/b3");
    stage.agent.lb(&["enable", "web/b3"])?.ok()?;
    let enabled = stage.mark();
    let back = stage.until(&enabled, PATIENCE, all_active)?;
    stage.report.expect(
        back.is_some(),
        "active again after",
        &seconds(back),
        "at once",
    );
    let failed = stage.web_since(&mark).failed + stage.others_failed(&mark);
    zero(stage, "failed requests", failed);
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
