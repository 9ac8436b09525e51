use proptest::prelude::*;

use super::*;
use crate::config::check::check;
use crate::probe::Class;

/// A service "web" of backends b0, b1, …; interval 5 s, timeout 2 s, ejected after 3, back after 2,
/// drained for 30 s.
fn model(service: &str, backends: &[&str]) -> Model {
    let mut text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n\
         [[service]]\nname = \"web\"\naddress = \"203.0.113.10:80\"\ndrain_deadline = \"30s\"\n\
         {service}\n[service.health]\nprobe = \"tcp\"\ninterval = \"5s\"\ntimeout = \"2s\"\n\
         unhealthy_threshold = 3\nhealthy_threshold = 2\n"
    );
    for (n, more) in backends.iter().enumerate() {
        text += &format!(
            "[[service.backend]]\nname = \"b{n}\"\naddress = \"10.0.0.{}:80\"\n{more}\n",
            n + 1
        );
    }
    check(&text, "test")
        .unwrap_or_else(|error| panic!("{error}"))
        .model
}

/// `(seconds, backend, outcome, detail)` as lines of a trace.
fn trace(outcomes: &[(u64, usize, &str, &str)]) -> String {
    let line = |&(at, n, outcome, detail): &(u64, usize, &str, &str)| {
        let line = serde_json::json!({
            "at_ms": at * 1000, "backend": format!("web/b{n}"), "outcome": outcome,
            "detail": detail,
        });
        format!("{line}\n")
    };
    outcomes.iter().map(line).collect()
}

/// The changes as `seconds backend health routing`.
fn changes(model: &Model, outcomes: &[(u64, usize, &str, &str)]) -> Vec<String> {
    let trace = parse(trace(outcomes).as_bytes(), model).unwrap();
    let told = |line: ChangeLine| {
        let at = Duration::from_millis(line.at_ms).as_secs_f64();
        format!("{at} {} {} {}", line.backend, line.health, line.routing)
    };
    replay(model, &trace).into_iter().map(told).collect()
}

const OK: (&str, &str) = ("success", "HTTP 200");
const BAD: (&str, &str) = ("failure", "HTTP 503");
const DEAD: (&str, &str) = ("failure", "Connection refused");
const SILENT: (&str, &str) = ("timeout", "no answer within 2s");

/// Outcomes of several backends at the same time.
fn at(
    seconds: u64,
    outcomes: &[(&'static str, &'static str)],
) -> Vec<(u64, usize, &'static str, &'static str)> {
    let outcomes = outcomes.iter().enumerate();
    outcomes
        .map(|(n, (outcome, detail))| (seconds, n, *outcome, *detail))
        .collect()
}

#[test]
fn the_third_bad_answer_drains_and_the_deadline_puts_out() {
    let model = model("panic_threshold = 0", &["", ""]);
    let outcomes = [
        at(1, &[OK, OK]),
        at(5, &[BAD, OK]),
        at(10, &[BAD, OK]),
        // An opposite outcome starts the count anew.
        at(15, &[OK, OK]),
        at(20, &[BAD, OK]),
        at(25, &[BAD, OK]),
        at(30, &[BAD, OK]),
    ];
    assert_eq!(
        changes(&model, &outcomes.concat()),
        [
            "1 web/b0 healthy active",
            "1 web/b1 healthy active",
            "30 web/b0 unhealthy draining",
            "60 web/b0 unhealthy out",
        ]
    );
}

#[test]
fn one_that_gives_no_answer_is_out_at_once_and_comes_back_after_two() {
    for dead in [
        DEAD,
        SILENT,
        ("failure", "connection RESET by peer"),
        ("failure", "host unreachable"),
    ] {
        let model = model("panic_threshold = 0", &["", ""]);
        let outcomes = [
            at(0, &[OK, OK]),
            at(5, &[dead]),
            at(10, &[dead]),
            at(15, &[dead]),
            at(20, &[OK]),
            at(25, &[OK]),
        ];
        assert_eq!(
            changes(&model, &outcomes.concat())[2..],
            [
                "15 web/b0 unhealthy out".to_owned(),
                "25 web/b0 healthy active".to_owned(),
            ],
            "{dead:?}"
        );
    }
}

#[test]
fn one_that_falls_silent_while_it_drains_is_out_before_the_deadline() {
    let model = model("panic_threshold = 0", &["", ""]);
    let mut outcomes = at(0, &[OK, OK]);
    for (seconds, outcome) in [(5, BAD), (10, BAD), (15, BAD), (20, DEAD), (25, DEAD)] {
        outcomes.extend(at(seconds, &[outcome]));
    }
    outcomes.extend(at(30, &[SILENT]));
    assert_eq!(
        changes(&model, &outcomes)[2..],
        ["15 web/b0 unhealthy draining", "30 web/b0 unhealthy out"]
    );
}

#[test]
fn panic_is_entered_and_left() {
    // A third of the weight healthy is under 50 %, two thirds are 10 % over it.
    let model = model("panic_threshold = 50", &["", "", ""]);
    let mut outcomes = at(0, &[OK, OK, OK]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[SILENT, SILENT, OK]));
    }
    outcomes.extend(at(20, &[OK]));
    outcomes.extend(at(25, &[OK]));
    assert_eq!(
        changes(&model, &outcomes)[3..],
        [
            "15 web/b0 unhealthy out",
            "15 web/b0 unhealthy panic",
            "15 web/b1 unhealthy panic",
            "25 web/b0 healthy active",
            "25 web/b1 unhealthy out",
        ]
    );
}

#[test]
fn one_active_backend_is_followed_by_another_after_the_hold_down() {
    let mode = "mode = \"active_passive\"\npromote_after = \"12s\"";
    let model = model(mode, &["", "", ""]);
    let mut outcomes = at(0, &[OK, OK, OK]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[DEAD, OK, OK]));
    }
    outcomes.extend(at(40, &[OK]));
    outcomes.extend(at(45, &[OK]));
    assert_eq!(
        changes(&model, &outcomes),
        [
            "0 web/b0 healthy active",
            "0 web/b1 healthy standby",
            "0 web/b2 healthy standby",
            "15 web/b0 unhealthy out",
            "27 web/b1 healthy active",
            "45 web/b0 healthy standby",
        ]
    );
}

#[test]
fn panic_at_the_border_ends_by_time_alone() {
    let model = model("panic_threshold = 50", &["", ""]);
    let mut outcomes = at(0, &[OK, OK]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[SILENT, SILENT]));
    }
    outcomes.extend(at(20, &[OK]));
    outcomes.extend(at(25, &[OK]));
    // Exactly half, for one interval.
    assert_eq!(
        changes(&model, &outcomes)[2..],
        [
            "15 web/b0 unhealthy out",
            "15 web/b0 unhealthy panic",
            "15 web/b1 unhealthy panic",
            "25 web/b0 healthy active",
            "30 web/b1 unhealthy out",
        ]
    );
}

#[test]
fn the_lower_tier_takes_over_and_stands_by_again() {
    let model = model("", &["", "tier = 1"]);
    let mut outcomes = at(0, &[OK, OK]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[DEAD, OK]));
    }
    outcomes.extend(at(20, &[OK]));
    outcomes.extend(at(25, &[OK]));
    assert_eq!(
        changes(&model, &outcomes),
        [
            "0 web/b0 healthy active",
            "0 web/b1 healthy standby",
            "15 web/b0 unhealthy out",
            "15 web/b1 healthy active",
            "25 web/b0 healthy active",
            "25 web/b1 healthy standby",
        ]
    );
}

#[test]
fn a_service_nobody_tells_of_fails_open_after_a_round() {
    let model = model("", &["", ""]);
    assert_eq!(
        changes(&model, &[]),
        ["7 web/b0 unknown active", "7 web/b1 unknown active"]
    );
}

#[test]
fn a_deadline_comes_before_an_outcome_of_the_same_moment() {
    let model = model("panic_threshold = 0", &["", ""]);
    let mut outcomes = at(0, &[OK, OK]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[BAD]));
    }
    outcomes.extend(at(40, &[OK]));
    outcomes.extend(at(45, &[OK]));
    assert_eq!(
        changes(&model, &outcomes)[2..],
        [
            "15 web/b0 unhealthy draining",
            "45 web/b0 unhealthy out",
            "45 web/b0 healthy active",
        ]
    );
}

#[test]
fn slow_start_comes_to_an_end_and_is_no_change() {
    let model = model("panic_threshold = 0\nslow_start = \"60s\"", &["", ""]);
    let mut outcomes = at(0, &[OK, OK]);
    for (seconds, outcome) in [(5, DEAD), (10, DEAD), (15, DEAD), (20, OK), (25, OK)] {
        outcomes.extend(at(seconds, &[outcome]));
    }
    assert_eq!(
        changes(&model, &outcomes)[2..],
        ["15 web/b0 unhealthy out", "25 web/b0 healthy active"]
    );
}

/// Three at a time fail for good, one after the other; the first one recovers.
#[test]
fn an_ejection_too_many_waits_for_a_place() {
    let service = "panic_threshold = 0\nmax_ejection_percent = 40";
    let model = model(service, &["", "", "", "", ""]);
    let mut outcomes = at(0, &[OK; 5]);
    for seconds in [5, 10, 15] {
        outcomes.extend(at(seconds, &[DEAD, DEAD, BAD]));
    }
    outcomes.extend(at(20, &[OK]));
    outcomes.extend(at(25, &[OK]));
    assert_eq!(
        changes(&model, &outcomes)[5..],
        [
            "15 web/b0 unhealthy out",
            "15 web/b1 unhealthy out",
            "15 web/b2 unhealthy active",
            "25 web/b0 healthy active",
            "25 web/b2 unhealthy draining",
            "55 web/b2 unhealthy out",
        ]
    );
}

#[test]
fn a_higher_tier_is_given_back_late() {
    let model = model("failback_after = \"1m\"", &["", "tier = 1"]);
    let mut outcomes = at(0, &[OK, OK]);
    for (seconds, outcome) in [(5, DEAD), (10, DEAD), (15, DEAD), (20, OK), (25, OK)] {
        outcomes.extend(at(seconds, &[outcome]));
    }
    assert_eq!(
        changes(&model, &outcomes)[2..],
        [
            "15 web/b0 unhealthy out",
            "15 web/b1 healthy active",
            "25 web/b0 healthy active",
            "85 web/b1 healthy standby",
        ]
    );
}

#[test]
fn assumed_to_be_up_the_first_outcome_decides() {
    let text = "panic_threshold = 0\n[service.health]\nprobe = \"tcp\"\nassume = \"up\"\n";
    let text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         address = \"203.0.113.10:80\"\n{text}\
         [[service.backend]]\nname = \"b0\"\naddress = \"10.0.0.1:80\"\n\
         [[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.2:80\"\n"
    );
    let model = check(&text, "test").unwrap().model;
    // Both had traffic before: that is no change.
    assert_eq!(
        changes(&model, &at(1, &[OK, DEAD])),
        ["1 web/b0 healthy active", "1 web/b1 unhealthy out"]
    );
}

#[test]
fn a_line_is_the_contract() {
    let model = model("", &[""]);
    let trace = parse(trace(&[(2, 0, "success", "HTTP 200")]).as_bytes(), &model).unwrap();
    assert_eq!(
        serde_json::to_string(&replay(&model, &trace)).unwrap(),
        r#"[{"at_ms":2000,"backend":"web/b0","health":"healthy","routing":"active","reason":"first probe: HTTP 200"}]"#
    );
}

#[test]
fn details_tell_the_class() {
    let model = model("", &[""]);
    let class = |outcome: &str, detail: &str| {
        let trace = parse(trace(&[(0, 0, outcome, detail)]).as_bytes(), &model).unwrap();
        trace[0].outcome.class
    };
    assert_eq!(class("success", "HTTP 200"), Class::Ok);
    assert_eq!(class("failure", "HTTP 503"), Class::Status);
    assert_eq!(class("failure", "connection refused"), Class::Refused);
    assert_eq!(class("failure", "Reset by peer"), Class::Reset);
    assert_eq!(class("failure", "host unreachable"), Class::Unreachable);
    assert_eq!(class("timeout", "refused?"), Class::Timeout);
}

/// Lines say which of several probes they are about; a degraded backend stays healthy.
#[test]
fn several_probes_are_replayed() {
    let text = "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         address = \"203.0.113.10:80\"\n\
         [[service.health]]\nprobe = \"http\"\npath = \"/readyz\"\nunhealthy_threshold = 2\n\
         [[service.health]]\nname = \"db\"\nprobe = \"tcp\"\nport = 5432\nunhealthy_threshold = 1\n\
         hold_down = \"60s\"\n\
         [[service.backend]]\nname = \"b0\"\naddress = \"10.0.0.1:80\"\n\
         [[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.2:80\"\n";
    let model = crate::config::parse(text, "lb.toml").unwrap();
    let mut lines = String::new();
    for backend in ["b0", "b1"] {
        for (at, probe) in [(0, "http"), (1, "db")] {
            lines += &format!(
                "{{\"at_ms\": {at}, \"backend\": \"web/{backend}\", \"outcome\": \"success\", \
                 \"probe\": \"{probe}\"}}\n"
            );
        }
    }
    let mut sorted: Vec<&str> = lines.lines().collect();
    sorted.sort_unstable();
    let mut trace = sorted.join("\n");
    let mut say = |at: u64, outcome: &str, probe: &str| {
        trace += &format!(
            "\n{{\"at_ms\": {at}, \"backend\": \"web/b0\", \"outcome\": \"{outcome}\"{probe}}}"
        );
    };
    say(5000, "degraded", "");
    say(10_000, "failure", "");
    say(
        11_000,
        "failure",
        ", \"probe\": \"db\", \"detail\": \"connection refused\"",
    );
    for at in [20_000, 30_000, 60_000, 75_000] {
        say(at, "success", ", \"probe\": \"db\"");
    }
    let trace = parse(trace.as_bytes(), &model).unwrap();
    let changes: Vec<String> = replay(&model, &trace)
        .iter()
        .filter(|line| line.backend == "web/b0")
        .map(|line| {
            format!(
                "{} {} {}: {}",
                line.at_ms, line.health, line.routing, line.reason
            )
        })
        .collect();
    assert_eq!(
        changes,
        [
            "1 healthy active: db: first probe: success",
            "11000 unhealthy draining: unhealthy: db: 1 failure: connection refused; \
             ejection 1, held down for 60s",
            "41000 unhealthy out: unhealthy: db: 1 failure: connection refused; \
             ejection 1, held down for 60s",
            "75000 healthy active: db: 4 consecutive successes; weight 50 %: degraded",
        ]
    );
    let wrong = r#"{"at_ms": 1, "backend": "web/b0", "outcome": "success", "probe": "dbb"}"#;
    let (_, fault) = parse(wrong.as_bytes(), &model).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "web/b0 has no probe \"dbb\"; it has http, db"
    );
}

#[test]
fn what_is_wrong_with_a_trace_is_told_with_its_line() {
    let mut model = model("", &["", ""]);
    let good = r#"{"at_ms": 2000, "backend": "web/b0", "outcome": "success"}"#;
    let cases = [
        ("at_ms: 3", "not an outcome: expected value (column 1)"),
        (
            r#"{"at_ms": 3000, "backend": "web/b0"}"#,
            "not an outcome: missing field `outcome` (column 36)",
        ),
        (
            r#"{"at_ms": 3000, "backend": "web/b0", "outcome": "sucess"}"#,
            "unknown variant `sucess`, expected one of `success`, `degraded`, `drain`, `failure`, `timeout`",
        ),
        (
            r#"{"at_ms": 3000, "backend": "web/b0", "outcome": "failure", "detial": ""}"#,
            "unknown field `detial`",
        ),
        (
            r#"{"at_ms": 3000, "\u001b[2J": 1}"#,
            "unknown field `\u{fffd}[2J`",
        ),
        (
            r#"{"at_ms": -1, "backend": "web/b0", "outcome": "failure"}"#,
            "invalid value: integer `-1`",
        ),
        (
            r#"{"at_ms": 3000, "backend": "web/bo", "outcome": "failure"}"#,
            "the configuration has no backend \"web/bo\"; did you mean \"web/b0\"?",
        ),
        (
            r#"{"at_ms": 3000, "backend": "elsewhere", "outcome": "failure"}"#,
            "the configuration has no backend \"elsewhere\"; there are web/b0, web/b1",
        ),
        (
            r#"{"at_ms": 1999, "backend": "web/b0", "outcome": "failure"}"#,
            "at_ms 1999 is before the 2000 of line 1; sort the lines by at_ms",
        ),
    ];
    for (bad, expected) in cases {
        let text = format!("{good}\n\n{bad}\n{good}\n");
        let (line, fault) = parse(text.as_bytes(), &model).unwrap_err();
        assert_eq!(line, 3, "{bad}");
        let fault = fault.to_string();
        assert!(fault.contains(expected), "{bad}: {fault}");
    }
    assert_eq!(
        parse(b"\n\xff\n", &model).unwrap_err(),
        (2, LineError::NotUtf8)
    );
    for backend in &mut model.services[0].backends {
        backend.probes.clear();
    }
    model.services[0].health.clear();
    let (line, fault) = parse(good.as_bytes(), &model).unwrap_err();
    assert_eq!(line, 1);
    assert!(
        fault.to_string().contains("web/b0 is not probed"),
        "{fault}"
    );
}

proptest! {
    /// Whatever the outcomes: the same lines again, in the order of time, each a change.
    #[test]
    fn a_replay_is_the_same_again(
        steps in proptest::collection::vec((0u64..20, 0usize..3, 0usize..4), 0..60),
    ) {
        let model = model("slow_start = \"10s\"", &["", "", "tier = 1"]);
        let mut now = 0;
        let outcomes: Vec<_> = steps
            .into_iter()
            .map(|(pause, n, kind)| {
                now += pause;
                let (outcome, detail) = [OK, BAD, DEAD, SILENT][kind];
                (now, n, outcome, detail)
            })
            .collect();
        let trace = parse(trace(&outcomes).as_bytes(), &model).unwrap();
        let lines = replay(&model, &trace);
        prop_assert_eq!(&lines, &replay(&model, &trace));
        prop_assert!(lines.is_sorted_by_key(|line| line.at_ms));
        let mut last = BTreeMap::new();
        for line in &lines {
            let told = (line.health, line.routing);
            prop_assert_ne!(last.insert(&line.backend, told), Some(told));
        }
        // Nothing drains for ever.
        for (backend, (_, routing)) in last {
            prop_assert_ne!(routing, "draining", "{}", backend);
        }
    }
}
