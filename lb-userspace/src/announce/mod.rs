//! Which VIPs are announced, and how the rest of the network learns of it.
//!
//! A balancer that cannot serve must not draw traffic. For each VIP whose services ask for it the
//! agent keeps a route in the kernel while all of them have *quorum*; a routing daemon watches the
//! table that it stands in and announces what it finds there. `lb` speaks no routing protocol.
//!
//! [`decide`] is pure: verdicts and what was decided before in, VIPs and what has changed out.
//! [`routes`] makes it so in the kernel.
//!
//! - *Quorum*: percent of the service's weight that can serve. Those that the probes or packets are
//!   against, that the operator took out, that ask to be drained or are there for panic only cannot.
//!   Panic changes nothing in that: it is about what this host does with traffic that still comes,
//!   and here another one can take it. Where panic gives the new flows to nobody or to the fallback,
//!   and while a fence has failed, no backend can serve.
//! - A backend without a verdict of this agent's own speaks *neither for nor against*: it does not
//!   help to announce a VIP, and does not lead to a withdrawal. So an agent that starts announces
//!   nothing before its probes have answered, and what an earlier one announced stays until they say
//!   otherwise.
//! - Hysteresis: withdrawn below `quorum`, announced from `quorum` + `quorum_hysteresis` on.
//! - A VIP is announced only while packets are forwarded by what was decided. That the data plane
//!   falls behind later withdraws nothing: it goes on by its last contents.

mod decide;
pub mod routes;

pub use decide::{Decided, Input, Known, Quorum, State, Turn, Vip, decide};

#[cfg(test)]
mod tests;
