//! Names and models, without DNS.

use super::*;
use crate::config;

const TEXT: &str = r#"
[node]
interfaces = ["eth0"]
[[service]]
name = "web"
address = "203.0.113.10:80"
[[service.backend]]
name = "app"
address = "app.internal:8080"
[[service.backend]]
name = "fixed"
address = "10.0.0.1:8080"
"#;

fn question() -> Question {
    Question {
        host: "app.internal".into(),
        family: Family::Ipv4,
    }
}

fn found(addresses: &[&str]) -> Answer {
    Answer {
        question: question(),
        result: Ok(addresses.iter().map(|ip| ip.parse().unwrap()).collect()),
    }
}

fn failed(why: &str) -> Answer {
    Answer {
        question: question(),
        result: Err(why.to_owned()),
    }
}

fn model() -> Model {
    config::parse(TEXT, "lb.toml").unwrap()
}

fn backends(names: &Names) -> (Vec<String>, Vec<String>) {
    let (model, problems) = expand(&model(), names);
    let backends = model.services[0].backends.iter();
    (
        backends
            .map(|b| format!("{}={}", b.name, b.address))
            .collect(),
        problems,
    )
}

#[test]
fn a_name_is_a_backend_for_each_address() {
    let mut names = Names::default();
    assert_eq!(questions(&model()), [question()].into());
    assert_eq!(
        backends(&names).0,
        ["fixed=10.0.0.1:8080"],
        "before the first answer"
    );
    let news = names.note(found(&["10.0.0.12", "10.0.0.11"]));
    assert_eq!((news.addresses, news.words), (true, None));
    let expected = [
        "fixed=10.0.0.1:8080",
        "app@10.0.0.11=10.0.0.11:8080",
        "app@10.0.0.12=10.0.0.12:8080",
    ];
    assert_eq!(backends(&names).0, expected);
    assert_eq!(
        names.note(found(&["10.0.0.11", "10.0.0.12"])),
        News::default()
    );
    assert!(names.note(found(&["10.0.0.12"])).addresses);
    assert_eq!(
        backends(&names).0,
        ["fixed=10.0.0.1:8080", "app@10.0.0.12=10.0.0.12:8080"]
    );
}

#[test]
fn what_cannot_be_resolved_keeps_its_last_addresses() {
    let mut names = Names::default();
    let news = names.note(failed("refused"));
    assert_eq!(
        news.words.unwrap(),
        "app.internal (A) cannot be resolved: refused; it has no backends yet"
    );
    names.note(found(&["10.0.0.11", "10.0.0.12"]));
    let before = backends(&names);
    let news = names.note(failed("NXDOMAIN"));
    let words = "app.internal (A) cannot be resolved: NXDOMAIN; its last 2 addresses stay";
    assert_eq!(
        (news.addresses, news.words.as_deref()),
        (false, Some(words))
    );
    assert_eq!(names.note(failed("NXDOMAIN")), News::default(), "said once");
    assert_eq!(backends(&names), before);
    let news = names.note(found(&["10.0.0.11", "10.0.0.12"]));
    assert_eq!(
        (news.addresses, news.words.as_deref()),
        (false, Some("app.internal (A) is resolved again"))
    );
}

#[test]
fn the_addresses_survive_a_restart() {
    let mut names = Names::default();
    names.note(found(&["10.0.0.11"]));
    names.note(failed("timeout"));
    let saved = serde_json::to_string(&names.save()).unwrap();
    let read: Vec<SavedName> = serde_json::from_str(&saved).unwrap();
    let next = Names::restore(&read);
    assert_eq!(backends(&next), backends(&names));
    let mut other = next.clone();
    other.retain(&BTreeSet::new());
    assert_eq!(other, Names::default());
}

#[test]
fn addresses_that_no_backend_can_have_are_left_out() {
    let mut names = Names::default();
    names.note(found(&[
        "10.0.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "203.0.113.10",
        "10.0.0.11",
    ]));
    let (backends, problems) = backends(&names);
    assert_eq!(
        backends,
        ["fixed=10.0.0.1:8080", "app@10.0.0.11=10.0.0.11:8080"]
    );
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(problems.iter().any(|problem| problem
        == "app.internal resolves to 203.0.113.10, which is not used: it is a VIP"));
}

#[test]
fn a_flood_of_addresses_is_bounded() {
    let mut names = Names::default();
    let many = (0..=300u16).map(|n| IpAddr::from([10, 1, (n >> 8) as u8, n as u8]));
    names.note(Answer {
        question: question(),
        result: Ok(many.collect()),
    });
    let (backends, problems) = backends(&names);
    assert_eq!(backends.len(), 1 + MOST_ADDRESSES);
    assert_eq!(problems.len(), 301 - MOST_ADDRESSES);
}
