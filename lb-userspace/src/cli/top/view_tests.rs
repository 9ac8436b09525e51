use jiff::ToSpan;

use super::*;
use crate::api::status::tests::sample;

/// A status and the one a second later.
fn second() -> (Status, Status) {
    let before = sample();
    let mut now = sample();
    now.node.at = before.node.at + 1.second();
    let web = &mut now.services[0];
    for (backend, packets) in web.backends.iter_mut().zip([1500, 20]) {
        backend.packets += packets;
        backend.bytes += packets * 800;
        backend.new_flows += packets / 10;
    }
    *web.verdicts.entry("reset_backend_out".into()).or_default() += 4;
    now.node.verdicts.insert("drop_fragment".into(), 2);
    let mut dns = now.services[0].clone();
    dns.name = "dns".into();
    dns.backends.truncate(1);
    dns.verdicts.clear();
    let mut earlier = dns.clone();
    dns.backends[0].packets += 7_000_000;
    dns.backends[0].active_flows = 1;
    earlier.name = dns.name.clone();
    now.services.push(dns);
    let mut before = before;
    before.services.push(earlier);
    (before, now)
}

fn shown(view: View, size: Size) -> Vec<String> {
    let (before, now) = second();
    let pair = Pair {
        before: Some(&before),
        now: &now,
    };
    render(pair, None, now.node.at, view, size, Palette::PLAIN)
}

#[test]
fn a_frame_has_what_happens_each_second() {
    insta::assert_snapshot!(shown(View::default(), None).join("\n"));
}

#[test]
fn without_an_earlier_status_there_are_no_rates() {
    let now = sample();
    let pair = Pair {
        before: None,
        now: &now,
    };
    let lines = render(
        pair,
        Some("no agent listens"),
        now.node.at,
        View::default(),
        None,
        Palette::PLAIN,
    );
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_are_sorted_by_what_was_chosen() {
    let order = |sort| -> Vec<String> {
        let view = View {
            sort,
            ..View::default()
        };
        let lines = shown(view, None);
        let names = ["web", "  web-1", "  web-2", "dns"];
        let name = |line: &String| {
            let mut names = names.iter().rev();
            let found = names.find(|name| line.starts_with(&format!("{name} ")));
            found.map(|name| name.trim().to_owned())
        };
        lines.iter().filter_map(name).collect()
    };
    assert_eq!(
        order(Sort::Config),
        ["web", "web-1", "web-2", "dns", "web-1"]
    );
    assert_eq!(
        order(Sort::Packets),
        ["dns", "web-1", "web", "web-1", "web-2"]
    );
    assert_eq!(
        order(Sort::Bytes),
        ["web", "web-1", "web-2", "dns", "web-1"]
    );
    assert_eq!(
        order(Sort::Flows),
        ["web", "web-1", "web-2", "dns", "web-1"]
    );
}

#[test]
fn sorting_goes_in_a_circle() {
    let mut sort = Sort::default();
    for wanted in ["packets", "bytes", "new", "flows", "config"] {
        sort = sort.turn(1);
        assert_eq!(sort.name(), wanted);
    }
    assert_eq!(sort.turn(-1), Sort::Flows);
}

#[test]
fn a_frame_fits_into_the_terminal() {
    let whole = shown(View::default(), None);
    for (width, height) in [(80, 24), (20, 5), (1, 1), (0, 0)] {
        let lines = shown(View::default(), Some((width, height)));
        assert_eq!(lines.len(), whole.len().min(height));
        for (line, whole) in lines.iter().zip(&whole) {
            let cut: String = whole.chars().take(width).collect();
            assert_eq!(*line, cut);
        }
    }
}

#[test]
fn scrolling_keeps_the_head_and_stops_at_the_end() {
    let whole = shown(View::default(), None);
    let scrolled = |scroll| {
        let view = View {
            scroll,
            ..View::default()
        };
        shown(view, Some((200, 5)))
    };
    assert_eq!(scrolled(0), whole[..5]);
    let head = 3;
    assert_eq!(scrolled(1)[..head], whole[..head]);
    assert_eq!(scrolled(1)[head..], whole[head + 1..head + 3]);
    assert_eq!(scrolled(100)[head..], whole[whole.len() - 2..]);
}

#[test]
fn what_is_wrong_is_shouted() {
    let (_, mut now) = second();
    now.services[0].panic = true;
    now.services[1].backends[0].routing = Routing::Out;
    now.services[1].backends[0].unresolved = true;
    now.node.datapath_error = Some("EPERM\x1b[2J".into());
    let pair = Pair {
        before: None,
        now: &now,
    };
    let later = now.node.at + 60.seconds();
    let paused = View {
        paused: true,
        ..View::default()
    };
    let text = |view| render(pair, None, later, view, None, Palette::PLAIN).join("\n");
    for wanted in [
        "PANIC",
        "NO BACKEND",
        "NO NEXT HOP",
        "!! this status is 1m0s old",
        "!! the data plane does not follow the verdicts: EPERM\u{fffd}[2J",
    ] {
        assert!(text(View::default()).contains(wanted), "{wanted}");
    }
    assert!(text(paused).contains("PAUSED"));
    assert!(!text(paused).contains("this status is"));
}
