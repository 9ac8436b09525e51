//! One backend: what its packets say, and how often it was ejected for that.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::ejections::Term;
use super::{Doubt, Kind, PERIOD, Reading};

/// New connections in a row without an answer that make a backend suspect.
const RUN: u64 = 4;
/// Connections in a row that are refused.
const FEW: u64 = 3;
/// HTTP answers in a row with a status of 500 and above.
const ERRORS: u64 = 5;
/// How far shares look back.
pub const WINDOW: Duration = Duration::from_secs(2);
/// How much later than a connection its answer may be read.
const LAG: Duration = Duration::from_millis(100);
/// How far [`Kind::OneSided`] looks back.
const SHORT: Duration = Duration::from_millis(200);
/// How far back [`Target::collapsed`] looks for what is new; what came before within [`WINDOW`] is
/// [`EARLIER`] times as long.
const NEW: Duration = Duration::from_millis(400);
const EARLIER: u64 = 4;
/// How far [`Kind::Mute`] looks back.
const MUTE: Duration = Duration::from_millis(500);
/// Connections within [`MUTE`] that make it mean anything.
const MANY: u64 = 8;
/// Connections or answers within [`WINDOW`] that a share needs to mean anything.
const VOLUME: u64 = 20;
/// How long a backend that the probes cleared is not suspected again, at first.
const COOLING: Duration = Duration::from_secs(2);
/// How long at the most.
const COOLEST: Duration = Duration::from_secs(60);
/// How long a suspicion that the probes do not share is shown after it could have come again.
pub(super) const SHOWN: Duration = Duration::from_secs(5);

/// What is known of a backend.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) last: Option<Reading>,
    /// What was added within [`WINDOW`], and when it was read; the latest first.
    pub(super) recent: VecDeque<(Duration, Reading)>,
    /// Since the last answer: new connections, refusals, ICMP errors, and when the first was seen.
    pub(super) unanswered: u64,
    pub(super) refused: u64,
    pub(super) unreachable: u64,
    pub(super) since: Duration,
    /// HTTP errors since the last other answer.
    pub(super) errors: u64,
    /// How long an answer may take.
    pub(super) patience: Duration,
    /// Probes are under way.
    pub(super) asked: bool,
    /// Not suspected before.
    pub(super) not_before: Duration,
    /// How often the probes have cleared it lately.
    pub(super) cleared: u32,
    /// The suspicion that its probes do not share, and how long it is worth showing.
    pub(super) disagrees: Option<(String, Duration)>,
    /// Successes of the configured probe in a row since the ejection; `None` if they end nothing.
    pub(super) passes: Option<u32>,
}

impl Target {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            last: None,
            recent: VecDeque::new(),
            unanswered: 0,
            refused: 0,
            unreachable: 0,
            since: Duration::ZERO,
            errors: 0,
            patience: Duration::ZERO,
            asked: false,
            not_before: Duration::ZERO,
            cleared: 0,
            disagrees: None,
            passes: None,
        }
    }

    pub(super) fn read(&mut self, reading: Reading, patience: Duration, now: Duration) {
        self.patience = patience;
        let Some(new) = self.last.and_then(|last| reading.since(&last)) else {
            self.last = Some(reading);
            self.start_anew();
            return;
        };
        self.last = Some(reading);
        while self
            .recent
            .back()
            .is_some_and(|(at, _)| now >= *at + WINDOW)
        {
            self.recent.pop_back();
        }
        self.recent.push_front((now, new));
        if new.accepted() > 0 {
            (self.unanswered, self.refused, self.unreachable) = (0, 0, 0);
        } else if new.opened + new.refused + new.unreachable > 0 {
            if self.unanswered + self.refused + self.unreachable == 0 {
                self.since = now;
            }
            self.unanswered += new.opened;
            self.refused += new.refused;
            self.unreachable += new.unreachable;
        }
        if new.http_ok > 0 {
            self.errors = 0;
        } else {
            self.errors += new.http_errors;
        }
    }

    pub(super) fn start_anew(&mut self) {
        self.recent.clear();
        (self.unanswered, self.refused, self.unreachable, self.errors) = (0, 0, 0, 0);
    }

    /// Sum of what was added between `from` and `to` before now.
    pub(super) fn sum(&self, now: Duration, from: Duration, to: Duration) -> Reading {
        let age = |at: &Duration| now.saturating_sub(*at);
        let added = self.recent.iter().skip_while(|(at, _)| age(at) < from);
        let added = added.take_while(|(at, _)| age(at) < to);
        added.fold(Reading::default(), |sum, (_, new)| Reading {
            packets: sum.packets + new.packets,
            opened: sum.opened + new.opened,
            answered: sum.answered + new.answered,
            refused: sum.refused + new.refused,
            repeated: sum.repeated + new.repeated,
            unreachable: sum.unreachable + new.unreachable,
            http_ok: sum.http_ok + new.http_ok,
            http_errors: sum.http_errors + new.http_errors,
        })
    }

    /// What was added lately.
    pub(super) fn window(&self, now: Duration) -> Reading {
        self.sum(now, Duration::ZERO, WINDOW)
    }

    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.window(now).opened >= RUN
    }

    /// Runs of connections without an answer, or with a bad one.
    pub(super) fn unanswered(&self, now: Duration) -> Option<(Kind, String)> {
        let in_a_row = |kind, count, how| Some((kind, format!("{count} {how}")));
        if self.refused >= FEW {
            let how = "new connections in a row refused (RST)";
            return in_a_row(Kind::Refused, self.refused, how);
        }
        if self.unreachable >= FEW {
            let how = "ICMP errors in a row: it cannot be reached";
            return in_a_row(Kind::Unreachable, self.unreachable, how);
        }
        let waited = now.saturating_sub(self.since);
        if self.unanswered >= RUN && waited >= self.patience.max(PERIOD) {
            let how = "new connections in a row without an answer";
            return in_a_row(Kind::Silent, self.unanswered, how);
        }
        None
    }

    /// ICMP errors about packets in its tunnel. Whether others get through is not seen, so they need
    /// not come in a row.
    pub(super) fn refused_on_the_way(&self, now: Duration) -> Option<(Kind, String)> {
        let errors = self.window(now).unreachable;
        (errors >= FEW).then(|| {
            let what = format!("{errors} ICMP errors about its tunnel: it cannot be reached");
            (Kind::Unreachable, what)
        })
    }

    /// Connections that should have been answered by now, and those that were.
    pub(super) fn answers(&self, now: Duration) -> (u64, u64) {
        (
            self.sum(now, LAG, WINDOW).opened,
            self.window(now).accepted(),
        )
    }

    /// A share of connections without an answer that the others do not have.
    pub(super) fn failing<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let (asked, answered) = self.answers(now);
        if asked < VOLUME || 2 * answered >= asked {
            return None;
        }
        let (all, good) = others.map(|other| other.answers(now)).fold((0, 0), add);
        (all >= VOLUME && 5 * good >= 4 * all).then(|| {
            let what = format!("{answered} of {asked} new connections answered");
            (Kind::Failing, what)
        })
    }

    /// SYNs without what follows an answer.
    pub(super) fn one_sided<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let followed = |sum: Reading| (sum.opened, sum.others());
        let lately = |target: &Self| followed(target.sum(now, Duration::ZERO, SHORT));
        let (opened, others_packets) = lately(self);
        if opened < RUN || 2 * others_packets >= opened {
            return None;
        }
        let (all, theirs) = others.map(lately).fold((0, 0), add);
        let (before, own) = followed(self.sum(now, SHORT, WINDOW));
        let others_do = all >= RUN && theirs >= all;
        // Nobody to compare with.
        let it_did = all < RUN && before >= RUN && own >= before;
        (others_do || it_did).then(|| {
            let what = format!("{opened} new connections followed by {others_packets} packets");
            (Kind::OneSided, what)
        })
    }

    /// SYNs that come again, since nobody answers them, where those to the others do not: the first of
    /// a dead backend's do after a second. Later than [`Self::one_sided`], but nothing hides it.
    pub(super) fn repeating<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let lately = |target: &Self| {
            let sum = target.window(now);
            (sum.opened, sum.repeated)
        };
        let (opened, repeated) = lately(self);
        if repeated < RUN || 3 * repeated < opened {
            return None;
        }
        let (all, theirs) = others.map(lately).fold((0, 0), add);
        (all >= RUN && 10 * theirs <= all).then(|| {
            let what = format!("{repeated} of {opened} SYNs came again");
            (Kind::Silent, what)
        })
    }

    /// Clients go on connecting, and yet nearly all other packets have ceased at once, which the
    /// others' have not: what is left may be repetitions of connections that nobody answers. Those
    /// would hide from [`Self::one_sided`] that no SYN is followed by anything.
    pub(super) fn collapsed<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let around = |target: &Self| {
            let new = target.sum(now, Duration::ZERO, NEW);
            (new, target.sum(now, NEW, WINDOW))
        };
        let (new, before) = around(self);
        let connecting =
            new.opened >= RUN && before.opened >= RUN && 2 * EARLIER * new.opened >= before.opened;
        let ceased =
            before.others() >= EARLIER * VOLUME && 5 * EARLIER * new.others() <= before.others();
        if !connecting || !ceased {
            return None;
        }
        let (theirs, earlier) = others
            .map(around)
            .map(|(new, before)| (new.others(), before.others()))
            .fold((0, 0), add);
        (earlier >= EARLIER * VOLUME && 2 * EARLIER * theirs >= earlier).then(|| {
            let what = format!(
                "{} new connections, and other packets fell from {} to {} in {NEW:?}",
                new.opened,
                before.others() / EARLIER,
                new.others()
            );
            (Kind::OneSided, what)
        })
    }

    pub(super) fn http<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let answers = |target: &Self| {
            let sum = target.window(now);
            (sum.http_ok + sum.http_errors, sum.http_errors)
        };
        let (own, errors) = answers(self);
        if self.errors < ERRORS && (own < VOLUME || 2 * errors < own) {
            return None;
        }
        let (all, bad) = others.map(answers).fold((0, 0), add);
        (all >= ERRORS && 5 * bad <= all).then(|| {
            let what = format!("{errors} of {own} HTTP answers with a status of 500 and above");
            (Kind::HttpErrors, what)
        })
    }

    /// Connections that are accepted, and requests that nobody answers: a process that is stopped or
    /// stuck, whose kernel goes on.
    pub(super) fn mute<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        now: Duration,
    ) -> Option<(Kind, String)> {
        let lately = |target: &Self| {
            let sum = target.sum(now, Duration::ZERO, MUTE);
            (sum.accepted(), sum.http_ok + sum.http_errors)
        };
        let (accepted, answers) = lately(self);
        if accepted < MANY || answers > 0 {
            return None;
        }
        let (all, theirs) = others.map(lately).fold((0, 0), add);
        (all >= MANY && 2 * theirs >= all).then(|| {
            let what = format!("{accepted} connections accepted and no request answered");
            (Kind::Mute, what)
        })
    }

    /// The probes found nothing.
    pub(super) fn clear(&mut self, what: &str, now: Duration) {
        if now > self.not_before + COOLEST {
            self.cleared = 0;
        }
        let cooling = COOLING * 2_u32.saturating_pow(self.cleared.min(8));
        self.not_before = now + cooling.min(COOLEST);
        self.cleared = self.cleared.saturating_add(1);
        self.disagrees = Some((what.to_owned(), self.not_before + SHOWN));
        self.start_anew();
    }

    pub(super) fn eject(
        &mut self,
        kind: Kind,
        reason: String,
        by_probes: bool,
        term: Term,
        now: Duration,
    ) -> Doubt {
        self.passes = (by_probes && !term.firm).then_some(0);
        self.disagrees = None;
        self.cleared = 0;
        self.start_anew();
        Doubt {
            kind,
            since: now,
            // Who answers with errors is there, and its flows end by themselves.
            gone: kind != Kind::HttpErrors,
            reason: format!(
                "{reason}; ejection {}, held down for {}{:?}",
                term.number,
                if self.passes.is_some() {
                    "at most "
                } else {
                    ""
                },
                term.length
            ),
            until: term.until,
        }
    }

    pub(super) fn end(&mut self) {
        self.passes = None;
        self.start_anew();
    }
}

fn add((a, b): (u64, u64), (c, d): (u64, u64)) -> (u64, u64) {
    (a + c, b + d)
}
