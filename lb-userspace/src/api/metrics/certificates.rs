//! When the certificates of backends expire.

use super::{Encoder, GAUGE};
use crate::api::status::BackendStatus;

/// Only those that were shown.
pub fn encode<'a>(
    text: &mut Encoder,
    backends: impl Iterator<Item = (&'a str, &'a BackendStatus)>,
) {
    const NAME: &str = "lb_probe_certificate_not_after_seconds";
    let mut shown = backends
        .flat_map(|(service, backend)| {
            let checks = backend.checks.iter();
            checks.map(move |check| (service, backend, check))
        })
        .filter_map(|(service, backend, check)| {
            let labels = [
                ("service", service),
                ("backend", &*backend.name),
                ("probe", &*check.name),
            ];
            Some((labels, check.certificate_not_after?))
        })
        .peekable();
    if shown.peek().is_some() {
        text.family(
            NAME,
            GAUGE,
            "When the certificate that the probe was shown last expires, Unix time.",
        );
    }
    for (labels, end) in shown {
        text.sample(NAME, &labels, end.as_second());
    }
}

#[cfg(test)]
mod tests {
    use crate::api::status::tests::sample;
    use crate::api::status::{CheckStatus, Health};

    #[test]
    fn only_probes_that_were_shown_one_tell_of_it() {
        let mut status = sample();
        let told = |status: &crate::api::status::Status| {
            let text = crate::api::metrics::encode(status);
            let lines = text
                .lines()
                .filter(|line| line.contains("lb_probe_certificate"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(told(&status), [""; 0]);
        let check = CheckStatus {
            name: "https".into(),
            health: Health::Healthy,
            since: status.node.at,
            reason: String::new(),
            last_probe: None,
            next_probe: None,
            certificate_not_after: Some("2027-01-01T00:00:00Z".parse().unwrap()),
            history: Vec::new(),
        };
        let plain = CheckStatus {
            name: "tcp".into(),
            certificate_not_after: None,
            ..check.clone()
        };
        status.services[0].backends[0].checks = vec![check, plain];
        assert_eq!(
            told(&status)[1..],
            [
                "# TYPE lb_probe_certificate_not_after_seconds gauge",
                "lb_probe_certificate_not_after_seconds{service=\"web\",backend=\"web-1\",\
                 probe=\"https\"} 1798761600",
            ]
        );
    }
}
