//! Real applications through the balancer: nginx, HAProxy, iperf3, a gRPC stream and WebSocket,
//! whose long connections must not notice what happens to other backends.
//!
//! [`Scenario`] makes the changes, [`Session`]s are the connections, [`Excuses`] tells which of
//! them may break, and [`Report`] sums up.

mod backend;
mod change;
mod excuse;
mod iperf;
mod report;
mod scenario;
mod service;
mod session;
mod talk;

pub use backend::Applications;
pub use excuse::Excuses;
pub use report::{Report, Row};
pub use scenario::{BACKENDS, Scenario, Until, missing};
pub use service::Mode;
pub use session::Session;
