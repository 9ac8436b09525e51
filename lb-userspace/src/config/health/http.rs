//! Settings of HTTP, gRPC and TLS.

use super::Settings;
use super::question::{Question, name_in};
use crate::config::reader::{At, Errors, Reader};
use crate::model::{ClientCertificate, HttpProbe, Reuse, StatusRange, TlsOptions};

pub(super) fn http((probe, host): (HttpProbe, Option<String>)) -> Question {
    Question::Http { probe, host }
}

pub(super) fn settings_http(
    settings: &Settings,
    tls: Option<TlsOptions>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<(HttpProbe, Option<String>)> {
    let method = settings.method.as_ref()?;
    let bodies = [
        (
            "expect_body",
            settings.expect_body.as_ref().map(|at| &at.span),
        ),
        (
            "expect_body_regex",
            settings.expect_body_regex.as_ref().map(|at| &at.span),
        ),
        (
            "degraded_body",
            settings.degraded_body.as_ref().map(|at| &at.span),
        ),
    ];
    for (name, body) in bodies {
        let (Some(body), "HEAD") = (body, method.value) else {
            continue;
        };
        let span = if reader.own("method").is_some() {
            &method.span
        } else {
            body
        };
        errors.add(
            span.clone(),
            format!("`{name}` can never be met: answers to HEAD have no body"),
            format!("write method = \"GET\" or remove `{name}`"),
        );
    }
    let drain_status = drain_status(settings, reader, errors)?;
    let probe = HttpProbe {
        degraded_body: settings.degraded_body.as_ref().map(|at| at.value.clone()),
        drain_status,
        drain_header: settings.drain_header.as_ref().map(|at| at.value.clone()),
        method: method.value.into(),
        path: settings.path.as_ref()?.value.clone(),
        host: String::new(),
        headers: match &settings.headers {
            Some(headers) => headers.value.clone(),
            None => Vec::new(),
        },
        expect_status: settings.expect_status.as_ref()?.value.clone(),
        expect_body: settings.expect_body.as_ref().map(|body| body.value.clone()),
        expect_body_regex: settings
            .expect_body_regex
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
    Some((probe, settings.host.as_ref().map(|host| host.value.clone())))
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
/// (`-bin`) would have to be in base64, which nobody checks here, so they are refused.
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
            errors.add(
                headers.span.clone(),
                format!("header `{name}` would be binary metadata, which is not offered"),
                "use a name that does not end in -bin",
            );
            return None;
        }
        metadata.push((name, value.clone()));
    }
    Some(metadata)
}

pub(super) fn tls_options(
    settings: &Settings,
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
        sni,
        verify: settings.verify.as_ref()?.value,
        ca: settings.ca.as_ref().map(|ca| ca.value.clone()),
    })
}
