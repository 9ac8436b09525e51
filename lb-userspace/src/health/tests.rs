use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::{
    Affinity, Backend, BackendKey, Forwarding, HealthPolicy, ProbeKind, ProbeSpec, Protocol,
    Service,
};
use crate::probe::{Class, Outcome, Verdict};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn policy() -> HealthPolicy {
    HealthPolicy {
        interval: ms(1000),
        timeout: ms(300),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        fast_interval: ms(1000),
        down_interval: ms(1000),
        jitter: 0,
    }
}

fn service(backends: usize, policy: &HealthPolicy) -> Service {
    let backend = |n: usize| {
        let address = format!("10.0.{}.{}:80", n / 250, n % 250 + 1)
            .parse()
            .unwrap();
        Backend {
            name: format!("b{n}").into(),
            address,
            weight: 100,
            tier: 0,
            probe: Some(ProbeSpec {
                target: address,
                timeout: policy.timeout,
                kind: ProbeKind::Tcp,
            }),
        }
    };
    Service {
        name: "web".into(),
        address: "203.0.113.10:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Nat,
        affinity: Affinity::Flow,
        panic_threshold: 50,
        drain_deadline: ms(30_000),
        slow_start: Duration::ZERO,
        health: Some(policy.clone()),
        backends: (0..backends).map(backend).collect(),
    }
}

fn outcome(class: Class) -> Outcome {
    Outcome {
        verdict: match class {
            Class::Ok => Verdict::Success,
            Class::Internal => Verdict::Internal,
            _ => Verdict::Failure,
        },
        class,
        detail: class.name().to_owned(),
        latency: ms(1),
        steps: Vec::new(),
    }
}

fn key(n: usize) -> BackendKey {
    BackendKey::new("web", Arc::<str>::from(format!("b{n}")))
}

/// Feeds outcomes to a lone backend, each at its due time; gives the state after each.
fn feed(engine: &mut Engine, classes: &[Class]) -> Vec<(Health, bool)> {
    classes
        .iter()
        .map(|&class| {
            let now = engine.next_due().unwrap();
            let start = engine.start_due(now).pop().unwrap();
            engine.finish(&start.key, start.seq, &outcome(class), now + ms(1));
            let view = engine.get(&start.key).unwrap();
            (view.health, view.gone)
        })
        .collect()
}

fn engine(services: &[Service]) -> Engine {
    let mut engine = Engine::new(7);
    engine.configure(services, &BTreeMap::new(), Duration::ZERO);
    engine
}

use Class::{Internal, Ok as Pass, Refused, Status, Timeout};

#[test]
fn thresholds_table() {
    const H: (Health, bool) = (Health::Healthy, false);
    const U: (Health, bool) = (Health::Unknown, false);
    const BAD: (Health, bool) = (Health::Unhealthy, false);
    const GONE: (Health, bool) = (Health::Unhealthy, true);
    type Case<'a> = (&'a str, &'a [Class], &'a [(Health, bool)]);
    let cases: &[Case] = &[
        ("first success admits", &[Pass], &[H]),
        ("first refusal ejects", &[Refused], &[GONE]),
        ("first bad answer ejects", &[Status], &[BAD]),
        (
            "internal decides nothing",
            &[Internal, Internal, Pass],
            &[U, U, H],
        ),
        (
            "three failures eject",
            &[Pass, Refused, Refused, Timeout],
            &[H, H, H, GONE],
        ),
        (
            "a success resets",
            &[Pass, Refused, Refused, Pass, Refused, Refused],
            &[H; 6],
        ),
        (
            "internal neither counts nor resets",
            &[
                Pass, Timeout, Internal, Timeout, Internal, Internal, Timeout,
            ],
            &[H, H, H, H, H, H, GONE],
        ),
        (
            "answers drain",
            &[Pass, Status, Status, Status],
            &[H, H, H, BAD],
        ),
        (
            "one answer among them drains",
            &[Pass, Status, Refused, Refused],
            &[H, H, H, BAD],
        ),
        (
            "silence after an answer: gone by the same threshold",
            &[Pass, Status, Status, Status, Refused, Timeout, Refused],
            &[H, H, H, BAD, BAD, BAD, GONE],
        ),
        (
            "an answer breaks the silence",
            &[
                Pass, Status, Status, Status, Refused, Refused, Status, Refused,
            ],
            &[H, H, H, BAD, BAD, BAD, BAD, BAD],
        ),
        (
            "gone stays gone until healthy",
            &[Refused, Status, Pass, Pass],
            &[GONE, GONE, GONE, H],
        ),
        (
            "readmitted by two in a row",
            &[Status, Pass, Status, Pass, Pass],
            &[BAD, BAD, BAD, BAD, H],
        ),
    ];
    for (name, classes, expected) in cases {
        let mut engine = engine(&[service(1, &policy())]);
        assert_eq!(&feed(&mut engine, classes), expected, "{name}");
    }
}
