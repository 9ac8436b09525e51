//! The status page: one HTML document without scripts or anything from elsewhere.

use std::fmt::Write;

use super::status::{BackendStatus, Routing, ServiceStatus, Status};

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:80em}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd}\
td.n,th.n{text-align:right}.good{color:#176b2c}.bad{color:#b00020;font-weight:bold}\
.soft{color:#8a5a00}.panic{background:#b00020;color:#fff;padding:.5em 1em}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}\
th,td{border-color:#333}.good{color:#6fd388}.bad{color:#ff7b8a}.soft{color:#e0b050}}";

/// The page for a status.
pub fn render(status: &Status) -> String {
    let mut page = String::with_capacity(8 << 10);
    let node = &status.node;
    let state = if node.ready() { "ready" } else { "not ready" };
    // A String takes everything.
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content=\"width=device-width\"><title>lb: {state}</title>\
         <style>{STYLE}</style><h1>lb {version}: {state}</h1><p>{interfaces}. Status of {at}.",
        version = escape(&node.version),
        interfaces = escape(
            &node
                .interfaces
                .iter()
                .map(|interface| format!("{} ({})", interface.name, interface.mode.name()))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        at = node.at,
    );
    for (what, error) in [
        (
            "The data plane does not follow the verdicts",
            &node.datapath_error,
        ),
        ("The last reload was refused", &node.reload_error),
        (
            "The routes of announced VIPs are not as they should be",
            &node.announce_error,
        ),
        (
            "What was said and decided lately would not outlive the agent",
            &node.state_error,
        ),
    ] {
        if let Some(error) = error {
            let _ = write!(page, "<p class=panic>{what}: {}", escape(error));
        }
    }
    for service in &status.services {
        write_service(&mut page, service);
    }
    page
}

fn write_service(page: &mut String, service: &ServiceStatus) {
    let _ = write!(
        page,
        "<h2>{} <small>{} {} {}, {:.1} % healthy</small></h2>",
        escape(&service.name),
        escape(&service.protocol),
        escape(&service.address),
        escape(&service.forwarding),
        service.healthy_percent
    );
    if service.panic {
        page.push_str("<p class=panic>PANIC: too few are healthy, so health is ignored");
    }
    if service.announced == Some(false) {
        let why = service.announced_reason.as_deref().unwrap_or_default();
        let _ = write!(page, "<p class=panic>WITHDRAWN: {}", escape(why));
    }
    page.push_str(
        "<table><tr><th>backend<th>address<th>routing<th>health<th>admin<th class=n>weight\
         <th class=n>flows<th class=n>packets<th>last probe<th>reason<th>since",
    );
    for backend in &service.backends {
        write_backend(page, backend);
    }
    page.push_str("</table>");
}

fn write_backend(page: &mut String, backend: &BackendStatus) {
    let class = match backend.routing {
        Routing::Active => "good",
        Routing::Out | Routing::Panic => "bad",
        Routing::Draining | Routing::Standby => "soft",
    };
    let probe = backend.last_probe.as_ref();
    let probe = probe.map_or_else(
        || "none".to_owned(),
        |probe| format!("{} in {:.1} ms", probe.detail, probe.latency_ms),
    );
    let _ = write!(
        page,
        "<tr><td>{}<td>{}<td class={class}>{}<td>{}<td>{}<td class=n>{}<td class=n>{}\
         <td class=n>{}<td>{}<td>{}<td>{}",
        escape(&backend.name),
        escape(&backend.address),
        backend.routing.name(),
        backend.health.name(),
        backend.admin.name(),
        backend.weight,
        backend.active_flows,
        backend.packets,
        escape(&probe),
        escape(&backend.reason),
        backend.since,
    );
}

/// A probe's detail is the backend's text: nothing in it may become markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::sample;
    use super::*;

    #[test]
    fn a_backends_words_are_shown_and_not_run() {
        let mut status = sample();
        status.services[0].panic = true;
        status.services[0].backends[0].reason = "<script>alert(1)</script>".into();
        let page = render(&status);
        assert!(!page.contains("<script>"));
        assert!(page.contains("&lt;script&gt;"));
        assert!(page.contains("PANIC"));
        assert!(page.contains("connection refused in 0.2 ms"));
    }
}
