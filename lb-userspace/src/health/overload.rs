//! Whether the prober itself is overloaded, and what its timeouts are then worth.
//!
//! A prober that lacks CPU, descriptors or ports sees what a dying backend shows: silence. So a
//! probe is *short* if it failed for want of something on this host ([`Class::Shortage`]) or if the
//! agent started it late. While more than [`ENTER`] percent of a round, which is the last run of
//! each probe, are short, the prober is overloaded, and a timeout becomes an internal outcome: no
//! backend is ejected for silence. What a backend says meanwhile (a RST, a 503, ICMP) still counts,
//! since no shortage here makes it say that; and so does every success.

use std::borrow::Cow;

use crate::probe::{Class, Outcome, Verdict};

/// Percent of a round that must be short for the overload to begin.
pub const ENTER: usize = 10;
/// And to which it must fall for the overload to end.
pub const LEAVE: usize = 5;

/// The state of the prober. Pure: what happens comes in as calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overload {
    /// Whether the last run of each probe was short, by its number; `None` before it has run.
    round: Vec<Option<bool>>,
    ran: usize,
    short: usize,
    active: bool,
    held: u64,
}

impl Overload {
    /// Takes a probe's end into account. Returns what it is to count as: the outcome itself, or an
    /// internal one in the place of a timeout that proves nothing.
    ///
    /// `probe`: its number among those of the configuration ([`super::Engine::place`]); `late`: the
    /// agent started it so late that its own lag, not the backend's, may show.
    pub fn judge<'a>(
        &mut self,
        probe: usize,
        outcome: &'a Outcome,
        late: bool,
    ) -> Cow<'a, Outcome> {
        let short = late || outcome.class == Class::Shortage;
        if self.round.len() <= probe {
            self.round.resize(probe + 1, None);
        }
        match self.round[probe].replace(short) {
            Some(before) => self.short -= usize::from(before),
            None => self.ran += 1,
        }
        self.short += usize::from(short);
        self.decide();
        let silent = (outcome.verdict, outcome.class) == (Verdict::Failure, Class::Timeout);
        if !self.active || !silent {
            return Cow::Borrowed(outcome);
        }
        self.held += 1;
        Cow::Owned(Outcome {
            verdict: Verdict::Internal,
            class: Class::Shortage,
            detail: format!(
                "not counted, since the prober is overloaded: {}",
                outcome.detail
            ),
            ..outcome.clone()
        })
    }

    /// Begins a new round, for another configuration. An overload lasts until that says otherwise.
    pub fn forget(&mut self) {
        self.round.clear();
        (self.ran, self.short) = (0, 0);
    }

    /// Whether the prober is overloaded.
    pub const fn active(&self) -> bool {
        self.active
    }

    /// Probes of the last round that were short, and all of the round.
    pub fn round(&self) -> (usize, usize) {
        (self.short, self.ran)
    }

    /// Timeouts that were not counted.
    pub const fn held(&self) -> u64 {
        self.held
    }

    fn decide(&mut self) {
        let limit = if self.active { LEAVE } else { ENTER };
        self.active = self.short * 100 > limit * self.ran;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of 20 backends, all well.
    fn well() -> Overload {
        let mut overload = Overload::default();
        for number in 0..20 {
            overload.judge(number, &Outcome::of(Class::Ok), false);
        }
        overload
    }

    #[test]
    fn timeouts_count_while_the_prober_is_well() {
        let mut overload = well();
        for number in 0..20 {
            let timeout = Outcome::of(Class::Timeout);
            let counted = overload.judge(number, &timeout, false);
            assert_eq!(*counted, timeout);
        }
        assert!(!overload.active());
    }

    #[test]
    fn a_round_that_is_short_holds_timeouts_and_nothing_else() {
        let mut overload = well();
        for number in 0..2 {
            overload.judge(number, &Outcome::of(Class::Shortage), false);
            assert!(!overload.active(), "10 % is not more than 10 %");
        }
        // Late successes say as much of the prober as a shortage does, and still count.
        let success = Outcome::of(Class::Ok);
        assert_eq!(*overload.judge(2, &success, true), success);
        assert!(overload.active());
        assert_eq!(overload.round(), (3, 20));
        let held = overload
            .judge(3, &Outcome::of(Class::Timeout), false)
            .into_owned();
        assert_eq!(
            (held.verdict, held.class),
            (Verdict::Internal, Class::Shortage)
        );
        assert!(held.detail.contains("timeout"), "{}", held.detail);
        assert_eq!(overload.held(), 1);
        for class in [Class::Refused, Class::Status, Class::Reset] {
            let failure = Outcome::of(class);
            assert_eq!(*overload.judge(4, &failure, false), failure);
        }
        // What was held does not prolong the overload.
        assert_eq!(overload.round(), (3, 20));
    }

    #[test]
    fn it_ends_when_the_shortage_does() {
        let mut overload = well();
        for number in 0..20 {
            overload.judge(number, &Outcome::of(Class::Shortage), false);
        }
        for number in 0..18 {
            overload.judge(number, &Outcome::of(Class::Ok), false);
            assert!(overload.active());
        }
        overload.judge(18, &Outcome::of(Class::Timeout), false);
        assert!(!overload.active(), "one of twenty left");
        let timeout = Outcome::of(Class::Timeout);
        assert_eq!(*overload.judge(18, &timeout, false), timeout);
    }

    #[test]
    fn what_is_wrong_with_one_probe_is_no_overload() {
        let mut overload = well();
        // An unreadable CA file: internal, but no shortage.
        for number in 0..20 {
            overload.judge(number, &Outcome::of(Class::Internal), false);
        }
        assert!(!overload.active());
    }

    #[test]
    fn a_new_configuration_begins_a_new_round() {
        let mut overload = well();
        for number in 0..3 {
            overload.judge(number, &Outcome::of(Class::Shortage), false);
        }
        overload.forget();
        assert!(overload.active(), "until something is known");
        overload.judge(5, &Outcome::of(Class::Ok), false);
        assert_eq!(overload.round(), (0, 1));
        assert!(!overload.active());
    }
}
