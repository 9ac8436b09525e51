//! The reading of answers, byte by byte and on any bytes.

use proptest::prelude::*;

use super::body::{Body, BodyError, MAX_BODY, Progress};
use super::head::{self, Framing, HeadError};
use super::request;
use crate::model::{HeaderMatch, HttpProbe};

fn framing(headers: &str) -> Result<Framing, HeadError> {
    let text = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
    let head = head::parse(text.as_bytes(), &HttpProbe::default())?.expect("a whole head");
    assert_eq!(head.length, text.len());
    Ok(head.framing)
}

#[test]
fn framings() {
    for (headers, wanted) in [
        ("", Framing::UntilClose),
        ("Content-Length: 12\r\n", Framing::Length(12)),
        ("content-length:\t0 \r\n", Framing::Length(0)),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            Framing::Length(5),
        ),
        ("Content-Length: 5, 5\r\n", Framing::Length(5)),
        ("Content-Length:\r\n 5\r\n", Framing::Length(5)),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
        ("Transfer-Encoding: CHUNKED\r\n", Framing::Chunked),
        ("Transfer-Encoding:\r\n chunked\r\n", Framing::Chunked),
        ("Transfer-Encoding: gzip, chunked\r\n", Framing::Chunked),
        ("Transfer-Encoding: identity\r\n", Framing::UntilClose),
    ] {
        assert_eq!(framing(headers), Ok(wanted), "{headers:?}");
    }
}

#[test]
fn ambiguous_framings_are_refused() {
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 6\r\n",
        "Content-Length: 5\r\n 6\r\n",
        "Content-Length:\r\n",
        "Content-Length: 5,\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ] {
        assert!(
            matches!(framing(headers), Err(HeadError::Malformed(_))),
            "{headers:?}: {:?}",
            framing(headers)
        );
    }
    let old = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(
        head::parse(old, &HttpProbe::default()),
        Err(HeadError::Malformed(_))
    ));
}

#[test]
fn answers_without_a_body() {
    let framing = |status: u16, method| {
        let text = format!("HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n");
        let head = head::parse(text.as_bytes(), &probe(method, &[]));
        head.unwrap().unwrap().framing
    };
    for status in [100, 103, 204, 304] {
        assert_eq!(framing(status, "GET"), Framing::None, "{status}");
    }
    assert_eq!(framing(200, "HEAD"), Framing::None);
    assert_eq!(framing(200, "GET"), Framing::Length(7));
}

#[test]
fn what_is_no_status_line() {
    for text in [
        "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 200 OK\r\n Folded: first\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: empty\r\n\r\n",
        "<html>",
    ] {
        assert!(
            matches!(
                head::parse(text.as_bytes(), &HttpProbe::default()),
                Err(HeadError::Malformed(_))
            ),
            "{text:?}"
        );
    }
}

/// Feeds `parts` and closes; the content, or the error.
fn decode<'a>(
    framing: Framing,
    parts: impl IntoIterator<Item = &'a [u8]>,
    clean: bool,
) -> Result<Vec<u8>, BodyError> {
    let mut body = Body::new(framing, true);
    let mut progress = body.push(b"")?;
    for part in parts {
        if progress == Progress::More {
            progress = body.push(part)?;
        }
    }
    if progress == Progress::More {
        body.close(clean)?;
    }
    Ok(body.content().to_vec())
}

#[test]
fn bodies() {
    let whole = |framing, text: &'static str| decode(framing, [text.as_bytes()], true);
    assert_eq!(whole(Framing::None, "surplus"), Ok(vec![]));
    assert_eq!(whole(Framing::Length(2), "okEXTRA"), Ok(b"ok".to_vec()));
    assert_eq!(whole(Framing::UntilClose, "ok"), Ok(b"ok".to_vec()));
    for chunks in [
        "2\r\nok\r\n0\r\n\r\n",
        "1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        "0002;a=\"b\"\r\nok\r\n0;last\r\nX: 1\r\n\r\n",
        "2 \r\nok\r\n00\r\n\r\nEXTRA",
    ] {
        assert_eq!(
            whole(Framing::Chunked, chunks),
            Ok(b"ok".to_vec()),
            "{chunks:?}"
        );
    }
}

#[test]
fn broken_bodies() {
    for chunks in [
        "\r\nok\r\n0\r\n\r\n",
        "x\r\nok\r\n0\r\n\r\n",
        "+2\r\nok\r\n0\r\n\r\n",
        "0x2\r\nok\r\n0\r\n\r\n",
        "-1\r\nok\r\n0\r\n\r\n",
        "2\nok\r\n0\r\n\r\n",
        "2\r\nokay\r\n0\r\n\r\n",
        "2\r\nok\n0\r\n\r\n",
        "2 2\r\nok\r\n0\r\n\r\n",
        "2;a\0\r\nok\r\n0\r\n\r\n",
        "10000000000000000\r\nok\r\n0\r\n\r\n",
        "2\r\nok\r\n0\r\nno colon\r\n\r\n",
        "2\r\nok\r\n0\r\nX: 1\n\r\n",
    ] {
        let result = decode(Framing::Chunked, [chunks.as_bytes()], true);
        assert!(
            matches!(result, Err(BodyError::Malformed(_))),
            "{chunks:?}: {result:?}"
        );
    }
    for chunks in [
        "",
        "2",
        "2\r\n",
        "2\r\no",
        "2\r\nok",
        "2\r\nok\r\n",
        "2\r\nok\r\n0\r\n",
    ] {
        let result = decode(Framing::Chunked, [chunks.as_bytes()], true);
        assert!(
            matches!(result, Err(BodyError::Truncated(_))),
            "{chunks:?}: {result:?}"
        );
    }
    let short = decode(Framing::Length(3), [b"ok".as_slice()], true);
    assert!(matches!(short, Err(BodyError::Truncated(_))));
    let cut = decode(Framing::UntilClose, [b"ok".as_slice()], false);
    assert!(matches!(cut, Err(BodyError::Truncated(_))));
}

#[test]
fn a_body_beyond_the_cap_is_not_kept() {
    let part = vec![b'x'; 100_000];
    for framing in [Framing::UntilClose, Framing::Length(u64::MAX)] {
        let mut body = Body::new(framing, true);
        let mut pushes = 0;
        while body.push(&part).unwrap() == Progress::More {
            pushes += 1;
        }
        assert_eq!(pushes, 2);
        assert_eq!(body.content().len(), MAX_BODY);
    }
    // A body of exactly the cap is complete, not capped.
    let mut body = Body::new(Framing::Length(MAX_BODY as u64), false);
    assert_eq!(body.push(&vec![0; MAX_BODY]), Ok(Progress::Complete));
}

proptest! {
    #[test]
    fn no_bytes_break_the_head(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = head::parse(&bytes, &HttpProbe::default());
        let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
        text.extend_from_slice(&bytes);
        if let Ok(Some(head)) = head::parse(&text, &HttpProbe::default()) {
            prop_assert!(head.length <= text.len());
        }
    }

    #[test]
    fn no_bytes_break_a_chunked_body(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(Framing::Chunked, [bytes.as_slice()], true);
    }

    /// How the network cuts a message into segments makes no difference.
    #[test]
    fn cuts_make_no_difference(
        text in "([0-3a]{1,2}(;x)?\r?\n(ok|xyz)?\r\n|0\r\n(X: 1\r\n)?\r\n){0,4}",
        cuts in prop::collection::vec(1usize..6, 1..40),
    ) {
        let bytes = text.as_bytes();
        let mut parts = Vec::new();
        let mut rest = bytes;
        for cut in cuts {
            let (part, after) = rest.split_at(cut.min(rest.len()));
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        prop_assert_eq!(
            decode(Framing::Chunked, parts, true),
            decode(Framing::Chunked, [bytes], true)
        );
    }
}

fn probe(method: &str, headers: &[(&str, &str)]) -> HttpProbe {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    HttpProbe {
        method: method.to_owned(),
        path: "/readyz".to_owned(),
        headers: headers.iter().map(own).collect(),
        expect_status: Vec::new(),
        expect_body: None,
        tls: None,
        ..HttpProbe::default()
    }
}

fn encoded(probe: &HttpProbe) -> String {
    String::from_utf8(request::encode(probe, "web.example").unwrap()).unwrap()
}

#[test]
fn requests() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        encoded(&probe("GET", &[("X-Probe", "a b")])),
        format!(
            "GET /readyz HTTP/1.1\r\nHost: web.example\r\nUser-Agent: lb/{version}\r\n\
             Accept: */*\r\nX-Probe: a b\r\nConnection: close\r\n\r\n"
        )
    );
    let own = encoded(&probe(
        "POST",
        &[
            ("user-agent", "me"),
            ("HOST", "other"),
            ("Connection", "keep-alive"),
        ],
    ));
    assert_eq!(
        own,
        "POST /readyz HTTP/1.1\r\nAccept: */*\r\nuser-agent: me\r\nHOST: other\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn requests_with_a_body() {
    let post = |headers: &[(&str, &str)], body: &str| {
        encoded(&HttpProbe {
            body: Some(body.to_owned()),
            ..probe("POST", headers)
        })
    };
    let plain = post(&[], "r\u{e9}ady?\r\n");
    let end = "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\
               Connection: close\r\n\r\nr\u{e9}ady?\r\n";
    assert!(plain.ends_with(end), "{plain}");
    // The type may be another; the length is what it is.
    let json = post(
        &[
            ("content-type", "application/json"),
            ("Content-Length", "1"),
        ],
        "{}",
    );
    let end = "\r\ncontent-type: application/json\r\nContent-Length: 2\r\n\
               Connection: close\r\n\r\n{}";
    assert!(json.ends_with(end), "{json}");
    assert!(!json.contains("text/plain"), "{json}");
}

#[test]
fn requests_that_would_smuggle_are_refused() {
    let mut bad = probe("GET", &[]);
    bad.path = "/x HTTP/1.1\r\nX: y".to_owned();
    assert!(request::encode(&bad, "host").is_err());
    assert!(request::encode(&probe("GET\r\n", &[]), "host").is_err());
    assert!(request::encode(&probe("GET", &[("X", "a\r\nY: b")]), "host").is_err());
    assert!(request::encode(&probe("GET", &[("X:", "a")]), "host").is_err());
    assert!(request::encode(&probe("GET", &[]), "host\r\nX: y").is_err());
}

#[test]
fn a_header_to_look_for_is_found_by_name_and_value() {
    let drains = |name: &str, value: Option<&str>, line: &str| {
        let header = HeaderMatch {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        let rules = HttpProbe {
            expect_header: vec![header.clone()],
            drain_header: Some(header.clone()),
            ..HttpProbe::default()
        };
        let text = format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n");
        let head = head::parse(text.as_bytes(), &rules).unwrap().unwrap();
        assert_eq!(head.broken.is_none(), head.drains, "{line}");
        let rejecting = HttpProbe {
            reject_header: vec![header],
            ..HttpProbe::default()
        };
        let rejected = head::parse(text.as_bytes(), &rejecting).unwrap().unwrap();
        assert_eq!(rejected.broken.is_some(), head.drains, "{line}");
        head.drains
    };
    assert!(drains("x-draining", None, "X-Draining:"));
    assert!(drains("x-draining", None, "x-draining: no"));
    assert!(!drains("x-draining", None, "x-drainings: yes"));
    assert!(drains("x-draining", Some("yes"), "x-draining: YES "));
    assert!(drains(
        "x-draining",
        Some("yes"),
        "x-draining: no\r\nx-draining: yes"
    ));
    assert!(!drains(
        "x-draining",
        Some("yes"),
        "x-draining: yes, please"
    ));
}
