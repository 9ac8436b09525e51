//! Metrics of services that ask for an announcement, and of their VIPs.

use std::collections::BTreeMap;

use super::{Encoder, GAUGE};
use crate::api::status::ServiceStatus;

/// Of the services that ask for an announcement, and their VIPs.
pub(super) fn encode(text: &mut Encoder, services: &[ServiceStatus]) {
    let quorums = || {
        let services = services.iter();
        services.filter_map(|service| Some((service, service.quorum?)))
    };
    if quorums().next().is_none() {
        return;
    }
    text.family(
        "lb_service_quorum",
        GAUGE,
        "1 while enough of the service can serve; only with announce.",
    );
    for (service, quorum) in quorums() {
        let labels = [("service", service.name.as_str())];
        text.sample("lb_service_quorum", &labels, u8::from(quorum.held));
    }
    text.family(
        "lb_service_serving_ratio",
        GAUGE,
        "Share of the service's weight that can serve for sure, 0 to 1; only with announce.",
    );
    for (service, quorum) in quorums() {
        let labels = [("service", service.name.as_str())];
        text.sample("lb_service_serving_ratio", &labels, quorum.percent / 100.0);
    }
    // Services of one VIP say the same of it.
    let vips: BTreeMap<&str, bool> = quorums()
        .filter_map(|(service, _)| {
            let (vip, _) = service.address.rsplit_once(':')?;
            Some((vip.trim_matches(['[', ']']), service.announced?))
        })
        .collect();
    text.family(
        "lb_vip_announced",
        GAUGE,
        "1 while the VIP's route stands; only with announce.",
    );
    for (vip, announced) in vips {
        text.sample("lb_vip_announced", &[("vip", vip)], u8::from(announced));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use crate::api::metrics::encode;
    use crate::api::status::QuorumStatus;
    use crate::api::status::tests::sample;

    #[test]
    fn what_is_announced_is_a_series_for_each_vip() {
        let mut status = sample();
        assert!(!encode(&status).contains("lb_vip_announced"));
        status.services[0].quorum = Some(QuorumStatus {
            held: false,
            percent: 25.0,
            needed: 50,
            regained_at: 60,
        });
        status.services[0].announced = Some(false);
        let mut six = status.services[0].clone();
        six.name = "six".into();
        six.address = "[2001:db8::10]:80".into();
        six.announced = Some(true);
        status.services.push(six);
        let samples = parse(&encode(&status));
        for (series, value) in [
            (r#"lb_service_quorum{service="web"}"#, 0.0),
            (r#"lb_service_serving_ratio{service="web"}"#, 0.25),
            (r#"lb_vip_announced{vip="203.0.113.10"}"#, 0.0),
            (r#"lb_vip_announced{vip="2001:db8::10"}"#, 1.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
    }
}
