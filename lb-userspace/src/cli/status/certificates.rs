//! Certificates that expire soon.

use jiff::Timestamp;

use super::{seconds, span, tame};
use crate::api::status::{ServiceStatus, Status};

/// What there is to say, a line for each service at the most.
pub(super) fn warnings(status: &Status, now: Timestamp) -> Vec<String> {
    let within = status.node.certificate_warning_seconds as f64;
    let services = status.services.iter();
    services
        .filter_map(|service| warning(service, within, now))
        .collect()
}

/// `web: the certificate that web-1 shows expires in 6d2h (2026-01-07T02:00:00Z), 2 others soon, too`.
fn warning(service: &ServiceStatus, within: f64, now: Timestamp) -> Option<String> {
    let ends = service.backends.iter().filter_map(|backend| {
        let checks = backend.checks.iter();
        let end = checks
            .filter_map(|check| check.certificate_not_after)
            .min()?;
        Some((end, &backend.name))
    });
    let soon: Vec<_> = ends
        .filter(|(end, _)| seconds(now, *end) < within.max(f64::MIN_POSITIVE))
        .collect();
    let (end, name) = soon.iter().min()?;
    let left = seconds(now, *end);
    let when = if left > 0.0 {
        format!("expires in {}", span(left))
    } else {
        format!("expired {} ago", span(-left))
    };
    let others = match soon.len() - 1 {
        0 => String::new(),
        1 => ", 1 other soon, too".to_owned(),
        others => format!(", {others} others soon, too"),
    };
    Some(format!(
        "{}: the certificate that {} shows {when} ({end}){others}",
        tame(&service.name),
        tame(name)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::tests::sample;
    use crate::api::status::{CheckStatus, Health};

    #[test]
    fn the_first_to_expire_is_named() {
        let mut status = sample();
        let now = status.node.at;
        let check = |end: Option<&str>| CheckStatus {
            name: "https".into(),
            health: Health::Healthy,
            since: now,
            reason: String::new(),
            last_probe: None,
            next_probe: None,
            certificate_not_after: end.map(|end| end.parse().unwrap()),
            history: Vec::new(),
        };
        let mut shown = |days: u64, ends: [Option<&str>; 2]| {
            status.node.certificate_warning_seconds = days * 86_400;
            let backends = &mut status.services[0].backends;
            for (backend, end) in backends.iter_mut().zip(ends) {
                backend.checks = vec![check(end), check(None)];
            }
            warnings(&status, now)
        };
        let (soon, sooner) = (Some("2026-01-10T00:01:40Z"), Some("2026-01-07T02:01:40Z"));
        assert_eq!(shown(14, [None, None]), [""; 0]);
        assert_eq!(shown(5, [soon, sooner]), [""; 0]);
        assert_eq!(
            shown(14, [soon, sooner]),
            [
                "web: the certificate that web-2 shows expires in 6d2h (2026-01-07T02:01:40Z), \
              1 other soon, too"
            ]
        );
        assert_eq!(
            shown(7, [soon, sooner]),
            ["web: the certificate that web-2 shows expires in 6d2h (2026-01-07T02:01:40Z)"]
        );
        // None at all is wanted: an expired one is told all the same.
        assert_eq!(
            shown(0, [soon, Some("2025-12-31T21:01:40Z")]),
            ["web: the certificate that web-2 shows expired 3h0m ago (2025-12-31T21:01:40Z)"]
        );
    }
}
