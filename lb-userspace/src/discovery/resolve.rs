//! Asks DNS for the names of backends, each again when its records' time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Answer;
use crate::model::{Family, Question};

/// A name is asked for this often at the most, whatever its TTL.
const SHORTEST: Duration = Duration::from_secs(1);
/// What takes longer has failed, whatever /etc/resolv.conf says of several servers and attempts.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a server of `dns_servers` may take, twice.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is to be asked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub questions: BTreeSet<Question>,
    /// `None`: as /etc/resolv.conf says at the moment of asking.
    pub servers: Option<Vec<SocketAddr>>,
    /// Longest time between two questions for one name.
    pub longest: Duration,
}

/// Reports what the wanted names resolve to, at each attempt, until nobody wants to know.
pub async fn keep_resolving(
    mut wanted: watch::Receiver<Arc<Wanted>>,
    report: mpsc::UnboundedSender<Answer>,
) {
    let mut tasks = JoinSet::new();
    let mut running = BTreeMap::new();
    let mut known = Arc::new(Wanted::default());
    loop {
        let now = wanted.borrow_and_update().clone();
        let same = (&known.servers, known.longest) == (&now.servers, now.longest);
        running.retain(|question, task: &mut tokio::task::AbortHandle| {
            let keep = same && now.questions.contains(question);
            if !keep {
                task.abort();
            }
            keep
        });
        for question in &now.questions {
            if !running.contains_key(question) {
                let asking = keep_asking(question.clone(), now.clone(), report.clone());
                running.insert(question.clone(), tasks.spawn(asking));
            }
        }
        known = now;
        // What has ended was aborted here.
        while tasks.try_join_next().is_some() {}
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_asking(
    question: Question,
    wanted: Arc<Wanted>,
    report: mpsc::UnboundedSender<Answer>,
) {
    let mut failures = 0u32;
    loop {
        let asked = timeout(DEADLINE, ask(&question, wanted.servers.as_deref())).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
        let (ttl, result) = match asked {
            Ok((addresses, ttl)) => {
                failures = 0;
                (Ok(ttl), Ok(addresses))
            }
            Err(error) => {
                failures += 1;
                (Err(failures), Err(error))
            }
        };
        let question = question.clone();
        if report.send(Answer { question, result }).is_err() {
            return;
        }
        sleep(pause(ttl, wanted.longest)).await;
    }
}

/// The addresses of a name and how long they hold.
async fn ask(
    question: &Question,
    servers: Option<&[SocketAddr]>,
) -> Result<(BTreeSet<IpAddr>, Duration), String> {
    let resolver = resolver(question.family, servers).map_err(|error| error.to_string())?;
    let found = resolver.lookup_ip(question.host.as_str()).await;
    let found = found.map_err(|error| explain(question, &error))?;
    let addresses: BTreeSet<IpAddr> = found
        .iter()
        .filter(|ip| Family::of(*ip) == question.family)
        .collect();
    if addresses.is_empty() {
        return Err(no_records(question));
    }
    let ttl = found
        .valid_until()
        .saturating_duration_since(Instant::now());
    Ok((addresses, ttl))
}

/// Made anew for each question: it is cheap, and follows /etc/resolv.conf and /etc/hosts.
fn resolver(family: Family, servers: Option<&[SocketAddr]>) -> Result<TokioResolver, NetError> {
    let mut builder = match servers {
        None => TokioResolver::builder_tokio()?,
        Some(servers) => {
            let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().timeout = TIMEOUT;
            builder.options_mut().attempts = 1;
            builder
        }
    };
    let options = builder.options_mut();
    // What is remembered would be asked for only when it is over.
    options.cache_size = 0;
    options.ip_strategy = match family {
        Family::Ipv4 => LookupIpStrategy::Ipv4Only,
        Family::Ipv6 => LookupIpStrategy::Ipv6Only,
    };
    builder.build()
}

/// When to ask again: after the TTL of what was found, or later after each failure in a row.
fn pause(ttl: Result<Duration, u32>, longest: Duration) -> Duration {
    let pause = match ttl {
        Ok(ttl) => ttl,
        Err(failures) => SHORTEST.saturating_mul(1 << failures.saturating_sub(1).min(16)),
    };
    pause.clamp(SHORTEST, longest.max(SHORTEST))
}

fn server(at: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(at.ip());
    for connection in &mut server.connections {
        let ConnectionConfig { port, .. } = connection;
        *port = at.port();
    }
    server
}

fn explain(question: &Question, error: &NetError) -> String {
    if error.is_nx_domain() {
        "there is no such name (NXDOMAIN)".to_owned()
    } else if error.is_no_records_found() {
        no_records(question)
    } else {
        error.to_string()
    }
}

fn no_records(question: &Question) -> String {
    format!("it has no {} records", question.family.record())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls_are_honoured_between_a_second_and_the_longest() {
        let seconds = Duration::from_secs;
        let after = |ttl, longest| pause(Ok(ttl), seconds(longest));
        assert_eq!(after(seconds(30), 60), seconds(30));
        assert_eq!(after(seconds(86_400), 60), seconds(60));
        assert_eq!(after(Duration::ZERO, 60), seconds(1));
        let failed = |times| pause(Err(times), seconds(20)).as_secs();
        assert_eq!([1, 2, 3, 5, 6, 99].map(failed), [1, 2, 4, 16, 20, 20]);
    }
}
