//! Probers: one probe is one async call that ends with an [`Outcome`] before its deadline.

mod outcome;
pub use outcome::{Class, Outcome, Step, Verdict};
