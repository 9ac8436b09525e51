//! Settings of HTTP, gRPC and TLS.

use std::ops::Range;

use super::question::name_in;
use super::{Probe, Settings};
use crate::config::reader::{At, Errors, Reader};
use crate::model::{
    BODY_METHODS, ClientCertificate, HeaderMatch, HttpProbe, Pattern, Reuse, StatusRange,
    TlsOptions,
};

pub(super) fn settings_http(
    settings: &Settings,
    tls: Option<TlsOptions>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<HttpProbe> {
    let method = settings.method.as_ref()?;
    let body = request_body(settings, method, reader, errors);
    bodies_of_head(settings, method, reader, errors);
    contradictions(settings, reader, errors);
    let drain_status = drain_status(settings, reader, errors)?;
    let probe = HttpProbe {
        degraded_body: settings.degraded_body.as_ref().map(|at| at.value.clone()),
        drain_status,
        drain_header: settings.drain_header.as_ref().map(|at| at.value.clone()),
        method: method.value.into(),
        body,
        path: settings.path.as_ref()?.value.clone(),
        host: settings.host.as_ref().map(|host| host.value.clone()),
        headers: match &settings.headers {
            Some(headers) => headers.value.clone(),
            None => Vec::new(),
        },
        expect_status: settings.expect_status.as_ref()?.value.clone(),
        expect_header: rules(&settings.expect_header),
        reject_header: rules(&settings.reject_header),
        expect_body: settings.expect_body.as_ref().map(|body| body.value.clone()),
        expect_body_regex: settings
            .expect_body_regex
            .as_ref()
            .map(|regex| regex.value.clone()),
        reject_body: settings.reject_body.as_ref().map(|body| body.value.clone()),
        reject_body_regex: settings
            .reject_body_regex
            .as_ref()
            .map(|regex| regex.value.clone()),
        reuse: match &settings.reuse {
            None => None,
            Some(max_age) => Some(Reuse {
                max_age: max_age.value,
                max_uses: settings.reuse_limit.as_ref()?.value,
            }),
        },
        tls,
    };
    Some(probe)
}

fn rules(written: &Option<At<Vec<HeaderMatch>>>) -> Vec<HeaderMatch> {
    written
        .as_ref()
        .map_or_else(Vec::new, |at| at.value.clone())
}

/// The body that is sent; an error with a method whose requests have none.
fn request_body(
    settings: &Settings,
    method: &At<&'static str>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<String> {
    let body = settings.body.as_ref()?;
    if BODY_METHODS.contains(&method.value) {
        return Some(body.value.clone());
    }
    // An inherited body is meant for the probes that send one.
    if reader.own("body").is_some() || reader.own("method").is_none() {
        errors.add(
            body.span.clone(),
            format!(
                "`body` with method {}: such a request has none",
                method.value
            ),
            "write method = \"POST\", \"PUT\" or \"PATCH\", or remove `body`",
        );
    }
    None
}

/// Reports rules on the body of an answer that has none.
fn bodies_of_head(
    settings: &Settings,
    method: &At<&'static str>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) {
    if method.value != "HEAD" {
        return;
    }
    let text = |at: &Option<At<String>>| at.as_ref().map(|at| at.span.clone());
    let regex = |at: &Option<At<Pattern>>| at.as_ref().map(|at| at.span.clone());
    for (name, body) in [
        ("expect_body", text(&settings.expect_body)),
        ("expect_body_regex", regex(&settings.expect_body_regex)),
        ("reject_body", text(&settings.reject_body)),
        ("reject_body_regex", regex(&settings.reject_body_regex)),
        ("degraded_body", text(&settings.degraded_body)),
    ] {
        let Some(body) = body else { continue };
        let span = match reader.own("method") {
            Some(_) => method.span.clone(),
            None => body,
        };
        let what = match name {
            "reject_body" | "reject_body_regex" => "rejects nothing",
            _ => "can never be met",
        };
        errors.add(
            span,
            format!("`{name}` {what}: answers to HEAD have no body"),
            format!("write method = \"GET\" or remove `{name}`"),
        );
    }
}

/// Reports rules of which no answer can meet both.
fn contradictions(settings: &Settings, reader: &Reader<'_>, errors: &mut Errors<'_>) {
    let mut add = |names: [&'static str; 2], spans: [Range<usize>; 2], what: String| {
        let [wanted, rejected] = spans;
        let span = match reader.own(names[1]) {
            Some(_) => rejected,
            None => wanted,
        };
        errors.add(
            span,
            format!(
                "no answer can meet both `{}` and `{}`: {what}",
                names[0], names[1]
            ),
            "change one of the two",
        );
    };
    if let (Some(wanted), Some(rejected)) = (&settings.expect_body, &settings.reject_body)
        && wanted.value.contains(&rejected.value)
    {
        add(
            ["expect_body", "reject_body"],
            [wanted.span.clone(), rejected.span.clone()],
            "the text that must occur has the one that must not".to_owned(),
        );
    }
    if let (Some(wanted), Some(rejected)) = (&settings.expect_header, &settings.reject_header)
        && let Some(both) = wanted
            .value
            .iter()
            .find(|wanted| rejected.value.iter().any(|rule| rule.covers(wanted)))
    {
        add(
            ["expect_header", "reject_header"],
            [wanted.span.clone(), rejected.span.clone()],
            format!("\"{both}\" is in both"),
        );
    }
}

/// No status can say both that all is well and that the backend wants to leave.
fn drain_status(
    settings: &Settings,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<Vec<StatusRange>> {
    let good = settings.expect_status.as_ref()?;
    let Some(drain) = &settings.drain_status else {
        return Some(Vec::new());
    };
    for range in &drain.value {
        if good.value.iter().any(|good| good.overlaps(*range)) {
            let span = if reader.own("drain_status").is_some() {
                &drain.span
            } else {
                &good.span
            };
            errors.add(
                span.clone(),
                "`drain_status` and `expect_status` have a status code in common",
                "take it out of one of the two",
            );
            return None;
        }
    }
    Some(drain.value.clone())
}

/// Headers as gRPC metadata: names in lower case, none that the call sets itself. Binary values
/// (`-bin`) are in base64, and sent without its padding (gRPC over HTTP/2, Binary-Header).
pub(super) fn metadata(
    headers: &At<Vec<(String, String)>>,
    errors: &mut Errors<'_>,
) -> Option<Vec<(String, String)>> {
    let mut metadata = Vec::new();
    for (name, value) in &headers.value {
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "te" | "content-type") || name.starts_with("grpc-") {
            errors.add(
                headers.span.clone(),
                format!("header `{name}` cannot be set for gRPC"),
                "remove it: the prober sets this header itself",
            );
            return None;
        }
        if name.ends_with("-bin") {
            let bare = value.trim_end_matches('=');
            if data_encoding::BASE64_NOPAD.decode(bare.as_bytes()).is_err() {
                errors.add(
                    headers.span.clone(),
                    format!("the value of `{name}` is not base64"),
                    "write the bytes in base64, as `base64 -w0 FILE` does, or use a name that does not end in -bin",
                );
                return None;
            }
            metadata.push((name, bare.to_owned()));
            continue;
        }
        metadata.push((name, value.clone()));
    }
    Some(metadata)
}

pub(super) fn tls_options(
    settings: &Settings,
    probe: Probe,
    authority: Option<&str>,
    errors: &mut Errors<'_>,
) -> Option<TlsOptions> {
    let sni = match &settings.sni {
        Some(sni) => Some(sni.value.clone()),
        None => authority.and_then(name_in),
    };
    let client = match (&settings.client_cert, &settings.client_key) {
        (Some(certificate), Some(key)) => Some(ClientCertificate {
            certificate: certificate.value.clone(),
            key: key.value.clone(),
        }),
        (None, None) => None,
        (Some(At { span, .. }), None) | (None, Some(At { span, .. })) => {
            errors.add(
                span.clone(),
                "`client_cert` and `client_key` belong together, and one is missing",
                "write both: client_cert = \"/etc/lb/probe.pem\", client_key = \"/etc/lb/probe.key\"",
            );
            return None;
        }
    };
    Some(TlsOptions {
        client,
        alpn: alpn(settings, probe, errors)?,
        sni,
        verify: settings.verify.as_ref()?.value,
        ca: settings.ca.as_ref().map(|ca| ca.value.clone()),
    })
}

/// What is offered by ALPN, if that is written; a probe cannot offer what it does not speak.
/// `None` only if there are errors.
fn alpn(settings: &Settings, probe: Probe, errors: &mut Errors<'_>) -> Option<Option<Vec<String>>> {
    let Some(At { value: names, span }) = &settings.alpn else {
        return Some(None);
    };
    let wrong = match probe {
        Probe::Https if names.iter().any(|name| name == "h2") => Some((
            "`alpn` offers \"h2\", and this probe speaks HTTP/1.1",
            "take \"h2\" out, or write [] to offer nothing",
        )),
        Probe::Grpc if !names.is_empty() && !names.iter().any(|name| name == "h2") => Some((
            "`alpn` lacks \"h2\", and gRPC is HTTP/2",
            "add \"h2\", or write [] to offer nothing",
        )),
        _ => None,
    };
    match wrong {
        Some((message, help)) => {
            errors.add(span.clone(), message, help);
            None
        }
        None => Some(Some(names.clone())),
    }
}
