//! What happened each second, from two statuses.

use std::collections::BTreeMap;

use crate::api::status::{BackendStatus, ServiceStatus, Status};

/// Two statuses of one agent, the earlier to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    pub before: Option<&'a Status>,
    pub now: &'a Status,
}

/// How much of something there was each second; `None` where there is nothing to compare with.
pub type Rate = Option<f64>;

/// What a backend had each second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub packets: Rate,
    pub bytes: Rate,
    pub new_flows: Rate,
}

impl Rates {
    /// Of two together.
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Rate, b: Rate| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (rate, None) | (None, rate) => rate,
        };
        Self {
            packets: sum(self.packets, other.packets),
            bytes: sum(self.bytes, other.bytes),
            new_flows: sum(self.new_flows, other.new_flows),
        }
    }
}

impl<'a> Pair<'a> {
    fn seconds(self) -> Option<f64> {
        let before = self.before?;
        let seconds = self.now.node.at.duration_since(before.node.at);
        Some(seconds.as_secs_f64()).filter(|seconds| *seconds > 0.0)
    }

    /// A counter that went back was begun anew: nothing can be said.
    fn rate(self, before: u64, now: u64) -> Rate {
        let more = now.checked_sub(before)?;
        Some(more as f64 / self.seconds()?)
    }

    fn earlier(self, service: &ServiceStatus) -> Option<&'a ServiceStatus> {
        let mut services = self.before?.services.iter();
        services.find(|before| before.name == service.name)
    }

    /// What a backend of a service had each second.
    pub fn backend(self, service: &ServiceStatus, backend: &BackendStatus) -> Rates {
        let before = self.earlier(service).and_then(|before| {
            let mut backends = before.backends.iter();
            backends.find(|before| before.name == backend.name && before.address == backend.address)
        });
        let Some(before) = before else {
            return Rates::default();
        };
        Rates {
            packets: self.rate(before.packets, backend.packets),
            bytes: self.rate(before.bytes, backend.bytes),
            new_flows: self.rate(before.new_flows, backend.new_flows),
        }
    }

    /// Packets of a service that were dropped or reset each second, by verdict; those that were.
    pub fn refused(self, service: &ServiceStatus) -> Vec<(String, f64)> {
        match self.earlier(service) {
            Some(before) => self.refusals(&before.verdicts, &service.verdicts),
            None => Vec::new(),
        }
    }

    /// The same of packets that belong to no service.
    pub fn refused_of_none(self) -> Vec<(String, f64)> {
        match self.before {
            Some(before) => self.refusals(&before.node.verdicts, &self.now.node.verdicts),
            None => Vec::new(),
        }
    }

    fn refusals(
        self,
        before: &BTreeMap<String, u64>,
        now: &BTreeMap<String, u64>,
    ) -> Vec<(String, f64)> {
        let refused = |label: &str| label.starts_with("drop_") || label.starts_with("reset_");
        now.iter()
            .filter(|(label, _)| refused(label))
            .filter_map(|(label, count)| {
                // Counters at zero are left out of a status.
                let before = before.get(label).copied().unwrap_or(0);
                let rate = self.rate(before, *count)?;
                (rate > 0.0).then(|| (label.clone(), rate))
            })
            .collect()
    }
}

/// A number in at most five characters: `0`, `0.4`, `950`, `12.3k`, `4.5M`.
pub fn short(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // What would be rounded up to the next unit is written in it.
    match units.iter().find(|(unit, _)| value >= unit * 0.9995) {
        Some((unit, name)) if value >= unit * 99.95 => format!("{:.0}{name}", value / unit),
        Some((unit, name)) => format!("{:.1}{name}", value / unit),
        None if value >= 9.95 || value == 0.0 => format!("{value:.0}"),
        None => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::api::status::tests::sample;

    #[test]
    fn rates_are_by_the_second_and_absent_where_they_cannot_be_known() {
        let before = sample();
        let mut now = sample();
        now.node.at = before.node.at + 2.seconds();
        now.services[0].backends[0].packets += 3000;
        now.services[0].backends[0].bytes += 100;
        now.services[0].backends[0].new_flows = 0;
        let pair = Pair {
            before: Some(&before),
            now: &now,
        };
        let service = &now.services[0];
        let rates = pair.backend(service, &service.backends[0]);
        assert_eq!(
            rates,
            Rates {
                packets: Some(1500.0),
                bytes: Some(50.0),
                new_flows: None
            }
        );
        let alone = Pair {
            before: None,
            ..pair
        };
        assert_eq!(
            alone.backend(service, &service.backends[0]),
            Rates::default()
        );
        // Twice the same status, as of an agent whose loop does not answer.
        let same = Pair {
            now: &before,
            ..pair
        };
        assert_eq!(same.backend(service, &service.backends[0]).packets, None);
        assert_eq!(rates.plus(Rates::default()), rates);
    }

    #[test]
    fn refusals_are_those_of_now() {
        let mut before = sample();
        before.services[0].verdicts = [("drop_ttl".to_owned(), 5)].into();
        let mut now = before.clone();
        now.node.at += 1.second();
        now.services[0].verdicts = [("drop_ttl", 5), ("reset_no_flow", 7), ("nat_reply", 9)]
            .map(|(label, count)| (label.to_owned(), count))
            .into();
        now.node.verdicts = [("drop_fragment".to_owned(), 3)].into();
        let pair = Pair {
            before: Some(&before),
            now: &now,
        };
        let refused = pair.refused(&now.services[0]);
        assert_eq!(refused, [("reset_no_flow".to_owned(), 7.0)]);
        assert_eq!(pair.refused_of_none(), [("drop_fragment".to_owned(), 3.0)]);
    }

    #[test]
    fn numbers_stay_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (0.5, "0.5"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (1234.0, "1.2k"),
            (99_940.0, "99.9k"),
            (99_960.0, "100k"),
            (999_600.0, "1.0M"),
            (4.56e9, "4.6G"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
