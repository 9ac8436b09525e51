//! Whether enough of a service can serve for its VIP to be announced, in `lb status`.

use serde::{Deserialize, Serialize};

/// How much of a service can serve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// Whether it is enough.
    pub held: bool,
    /// Percent of the weight that can serve for sure.
    pub percent: f64,
    /// Percent under which the VIP is withdrawn.
    pub needed: u8,
    /// Percent from which on it is announced.
    pub regained_at: u8,
}
