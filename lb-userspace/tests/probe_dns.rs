//! DNS probes against scripted servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use lb_userspace::model::{DnsProbe, ProbeKind, ProbeSpec};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use tokio::net::UdpSocket;

async fn probe(target: SocketAddr, kind: ProbeKind) -> Outcome {
    let spec = ProbeSpec {
        target,
        timeout: Duration::from_secs(5),
        kind: kind.into(),
        egress: Default::default(),
    };
    Prober::new().run(&spec).await
}

fn dns(answers: &[&str]) -> ProbeKind {
    ProbeKind::Dns(DnsProbe {
        name: "web.test".to_owned(),
        query_type: ("A", 1),
        rcode: ("NOERROR", 0),
        answers: answers.iter().map(|ip| ip.parse().unwrap()).collect(),
    })
}

/// Loses the first `lost` queries; answers the others by `answer`.
async fn dns_server(
    lost: usize,
    answer: fn(Vec<u8>) -> Vec<Vec<u8>>,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 512];
        for count in 0.. {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            if count >= lost {
                for datagram in answer(buffer[..length].to_vec()) {
                    socket.send_to(&datagram, client).await.unwrap();
                }
            }
        }
    });
    (address, task)
}

/// 192.0.2.1.
fn good_answer(mut query: Vec<u8>) -> Vec<Vec<u8>> {
    query[2] |= 0x80;
    query[7] = 1;
    query.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
    vec![query]
}

#[tokio::test]
async fn dns_answers() {
    let (good, _server) = dns_server(0, good_answer).await;
    let outcome = probe(good, dns(&["192.0.2.1"])).await;
    assert_eq!(outcome.detail, "NOERROR, 1 record: 192.0.2.1");
    assert_eq!(outcome.verdict, Verdict::Success);
    let outcome = probe(good, dns(&["192.0.2.1", "192.0.2.2"])).await;
    assert_eq!(outcome.class, Class::Content);
    assert_eq!(
        outcome.detail,
        "192.0.2.2 is not among the answers: NOERROR, 1 record: 192.0.2.1"
    );

    let (failing, _server) = dns_server(0, |mut query| {
        query[2] |= 0x80;
        query[3] = 2;
        vec![query]
    })
    .await;
    let outcome = probe(failing, dns(&[])).await;
    assert_eq!(outcome.class, Class::Application);
    assert_eq!(outcome.detail, "SERVFAIL for web.test., want NOERROR");

    // Another transaction's answer is skipped; what is none at all is not.
    let (noisy, _server) = dns_server(0, |query| {
        let mut other = good_answer(query.clone()).remove(0);
        other[0] ^= 0xff;
        vec![other, good_answer(query).remove(0)]
    })
    .await;
    assert_eq!(probe(noisy, dns(&[])).await.verdict, Verdict::Success);
    let (broken, _server) = dns_server(0, |_| vec![b"hello".to_vec()]).await;
    assert_eq!(probe(broken, dns(&[])).await.class, Class::Malformed);
}

#[tokio::test]
async fn a_lost_query_is_repeated() {
    let (address, _server) = dns_server(1, good_answer).await;
    let outcome = probe(address, dns(&[])).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let sent = outcome.steps.iter().filter(|step| step.name == "query");
    assert!(sent.count() > 1, "{outcome:?}");
}

#[tokio::test]
async fn dns_without_a_server() {
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let outcome = probe(address, dns(&[])).await;
    assert_eq!(outcome.class, Class::Refused, "{outcome:?}");

    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let spec = ProbeSpec {
        target: silent.local_addr().unwrap(),
        timeout: Duration::from_millis(600),
        kind: dns(&[]).into(),
        egress: Default::default(),
    };
    let outcome = support::judged(async || Prober::new().run(&spec).await).await;
    assert_eq!(outcome.class, Class::Timeout, "{outcome:?}");
    assert!(
        outcome.detail.contains("times, nothing received"),
        "{outcome:?}"
    );
}
