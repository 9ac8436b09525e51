//! What backends suffer.

use std::time::Duration;

use anyhow::Result;
use lb_tests::server::Order;
use lb_tests::server_handle::HTTP;
use lb_tests::wait::pause;
use lb_tests::{Lab, Server};

/// How long a fault lasts and is looked at.
const OBSERVED: Duration = Duration::from_secs(12);
/// Between a server's word that it will end and its end: more than any of the checks takes to
/// notice.
const NOTICE: Duration = Duration::from_secs(4);
/// For a restarted server to be taken back.
const RETURN: Duration = Duration::from_secs(4);

/// A fault, of `b1` unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Killed,
    Unplugged,
    Filtered,
    Stopped,
    Failing,
    Rolling,
}

impl Fault {
    pub const ALL: [Self; 6] = [
        Self::Killed,
        Self::Unplugged,
        Self::Filtered,
        Self::Stopped,
        Self::Failing,
        Self::Rolling,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Killed => "Process killed (SIGKILL): its port refuses",
            Self::Unplugged => "Host gone: its link is cut",
            Self::Filtered => "Port filtered: a firewall drops what is sent to it",
            Self::Stopped => {
                "Process stopped (SIGSTOP): its kernel accepts connections, nobody answers"
            }
            Self::Failing => "500 to every request, 200 to the readiness check",
            Self::Rolling => {
                "Rolling restart of all three: 503 to the readiness check, 4 s later the end"
            }
        }
    }

    /// Lets it happen and last, calling `look` again and again.
    pub fn happen(
        self,
        lab: &Lab,
        servers: &mut [Server],
        look: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let b1 = lab.backend(1);
        match self {
            Self::Killed => servers[0].kill()?,
            Self::Unplugged => lab.plug(b1, false)?,
            Self::Filtered => {
                let rule = format!(
                    "add table inet fault; \
                     add chain inet fault in {{ type filter hook input priority 0; }}; \
                     add rule inet fault in tcp dport {HTTP} drop"
                );
                b1.namespace.run("nft", &[&rule])?;
            }
            Self::Stopped => servers[0].freeze()?,
            Self::Failing => servers[0].order(Order::Fail)?,
            Self::Rolling => {
                for (host, server) in lab.backends.iter().zip(servers) {
                    server.order(Order::Unready)?;
                    watch(NOTICE, look)?;
                    server.kill()?;
                    *server = Server::start(host)?;
                    watch(RETURN, look)?;
                }
                return Ok(());
            }
        }
        watch(OBSERVED, look)
    }

    /// Makes all well again.
    pub fn mend(self, lab: &Lab, servers: &mut [Server]) -> Result<()> {
        let b1 = lab.backend(1);
        match self {
            Self::Killed => servers[0] = Server::start(b1)?,
            Self::Unplugged => lab.plug(b1, true)?,
            Self::Filtered => {
                b1.namespace.run("nft", &["delete table inet fault"])?;
            }
            Self::Stopped => servers[0].thaw()?,
            Self::Failing => servers[0].order(Order::Work)?,
            Self::Rolling => {}
        }
        Ok(())
    }
}

fn watch(time: Duration, look: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        look()?;
        pause(STEP)?;
    }
    Ok(())
}
