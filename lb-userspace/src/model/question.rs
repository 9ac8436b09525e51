//! What the probes of further protocols ask and accept.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Pattern, TlsOptions};

/// A conversation over TCP: what to say and what to hear, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpScript {
    pub steps: Vec<ScriptStep>,
    pub tls: Option<TlsOptions>,
}

impl TcpScript {
    /// What is played on one connection after another: the port of each, if it is not the probed one,
    /// and its steps.
    pub fn parts(&self) -> Vec<(Option<u16>, &[ScriptStep])> {
        let mut parts = Vec::new();
        let (mut port, mut steps) = (None, self.steps.as_slice());
        let connects = |step: &ScriptStep| match step {
            ScriptStep::Connect(port) => Some(*port),
            ScriptStep::Send(_) | ScriptStep::Receive { .. } => None,
        };
        while let Some((at, next)) =
            (steps.iter().enumerate()).find_map(|(at, step)| connects(step).map(|port| (at, port)))
        {
            parts.push((port, &steps[..at]));
            (port, steps) = (Some(next), &steps[at + 1..]);
        }
        parts.push((port, steps));
        parts
    }
}

/// A step of a [`TcpScript`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ScriptStep {
    /// The connection is closed, and one to this port of the same address is opened.
    Connect(u16),
    /// What was received and not consumed is dropped, and these bytes are sent.
    Send(Vec<u8>),
    /// Waits until what was received has all of this, then consumes it to the end of the match.
    Receive {
        expect: Option<Match>,
        /// Fails at once if it occurs.
        unless: Option<Match>,
        /// So much must have arrived before `unless` alone is satisfied, bytes.
        min_bytes: usize,
    },
}

/// What to look for in received bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// Occurs anywhere.
    Contains(Vec<u8>),
    /// The bytes begin with it; other bytes fail at once.
    Prefix(Vec<u8>),
    Regex(Pattern),
}

/// A Redis PING, or EXISTS in its place, with AUTH before it and ROLE after it as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RedisProbe {
    /// User of the ACL; `None`: `default`.
    pub user: Option<String>,
    /// File whose first line is the password; `None`: no AUTH.
    pub password_file: Option<PathBuf>,
    /// `None`: ROLE is not asked.
    pub role: Option<RedisRole>,
    /// Key that must not exist, for instance because who maintains the server sets it.
    pub absent_key: Option<String>,
    pub tls: Option<TlsOptions>,
}

/// Which role a Redis server must have. A replica must have its link to the master up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedisRole {
    Any,
    Master,
    Replica,
}

/// A PostgreSQL start-up packet, answered by a request for authentication or by readiness.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PostgresProbe {
    pub user: String,
    /// `None`: the server takes the user's name.
    pub database: Option<String>,
}

/// A MySQL handshake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MysqlProbe {
    /// Logged in without a password; `None`: the greeting is enough.
    pub user: Option<String>,
}

/// An anonymous LDAP bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LdapProbe {
    pub tls: Option<TlsOptions>,
}

/// An SMTP greeting and EHLO.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SmtpProbe {
    /// Name given with EHLO.
    pub hello: String,
    pub tls: Option<TlsOptions>,
}

/// A DNS query over UDP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsProbe {
    /// Fully qualified, without the final dot; empty: the root.
    pub name: String,
    /// Name and number of the query type.
    pub query_type: (&'static str, u16),
    /// Name and number of the response code wanted.
    pub rcode: (&'static str, u8),
    /// Each must be among the A and AAAA records of the answer.
    pub answers: Vec<IpAddr>,
}

/// A command of this host; exit status 0 is a success.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecProbe {
    /// Absolute path of the program, then its arguments.
    pub command: Vec<String>,
    /// Names told to it.
    pub service: Arc<str>,
    pub backend: Arc<str>,
}
