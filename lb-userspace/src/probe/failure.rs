//! Why a probe failed, and which kernel errors mean what.

use std::io;

use super::outcome::{Class, Verdict};

/// A probe that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub verdict: Verdict,
    pub class: Class,
    /// One line for people.
    pub detail: String,
}

impl Failure {
    /// The backend's failure.
    pub fn new(class: Class, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failure,
            class,
            detail: detail.into(),
        }
    }

    /// This side's failure.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Internal,
            class: Class::Internal,
            detail: detail.into(),
        }
    }

    /// This side's failure, for want of something that other probes need too.
    pub fn shortage(detail: impl Into<String>) -> Self {
        Self {
            class: Class::Shortage,
            ..Self::internal(detail)
        }
    }

    /// `error` came from a system call before the connection was established.
    ///
    /// Shortages of this host (descriptors, ports, memory), a local firewall's veto and a missing
    /// address family say nothing about the backend. What ICMP reports in answer to the SYN
    /// (`icmp_err_convert` in net/ipv4/icmp.c, `tab_unreach` in net/ipv6/icmp.c) does; a route of
    /// this host that leads nowhere looks the same and counts the same.
    pub fn connecting(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::new(Class::Refused, "connection refused"),
            Some(libc::ETIMEDOUT) => Self::new(
                Class::Timeout,
                "the kernel gave up connecting: no reply to SYN",
            ),
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => {
                Self::new(Class::Unreachable, "host unreachable")
            }
            Some(libc::ENETUNREACH | libc::ENETDOWN | libc::ENONET) => Self::new(
                Class::Unreachable,
                "network unreachable: no route to the backend",
            ),
            Some(libc::ECONNRESET | libc::ECONNABORTED) => {
                Self::new(Class::Reset, "connection reset while connecting")
            }
            Some(libc::EMFILE) => Self::shortage(
                "no file descriptor left in this process; raise LimitNOFILE (ulimit -n)",
            ),
            Some(libc::ENFILE) => {
                Self::shortage("no file descriptor left on this host; raise fs.file-max")
            }
            Some(libc::EADDRNOTAVAIL) => Self::shortage(
                "no local port left for this backend; widen net.ipv4.ip_local_port_range",
            ),
            // EACCES: "administratively prohibited" by ICMPv6, or a route of type prohibit.
            Some(libc::EACCES) => Self::new(
                Class::Unreachable,
                "unreachable: a router or firewall prohibits it",
            ),
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Self::new(
                Class::Unreachable,
                "unreachable: the host or a router refuses TCP to it (ICMP)",
            ),
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                Self::shortage("this host is short of memory for sockets; see net.ipv4.tcp_mem")
            }
            Some(libc::EPERM) => {
                Self::internal("a firewall rule of this host forbids it (EPERM on connect)")
            }
            _ => Self::internal(format!("cannot open a connection: {error}")),
        }
    }

    /// `error` came from an established connection.
    pub fn established(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => {
                Self::new(Class::Reset, "connection reset by the backend")
            }
            io::ErrorKind::TimedOut => Self::new(
                Class::Timeout,
                "the kernel gave up: the backend acknowledges nothing any more",
            ),
            io::ErrorKind::HostUnreachable => Self::new(Class::Unreachable, "host unreachable"),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
                Self::new(Class::Unreachable, "network unreachable")
            }
            _ if tls_error(error).is_some() => Self::tls(error),
            _ => Self::internal(format!("reading or writing failed: {error}")),
        }
    }

    /// `error` came from a TLS session, during the handshake or after it.
    pub fn tls(error: &io::Error) -> Self {
        let detail = match tls_error(error) {
            Some(rustls::Error::InvalidMessage(_)) => {
                "the peer does not speak TLS on this port".to_owned()
            }
            Some(rustls::Error::InvalidCertificate(problem)) => {
                format!("certificate refused: {problem}")
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                format!("the peer ended TLS with the alert {alert:?}")
            }
            Some(other) => format!("TLS failed: {other}"),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof => "connection closed in the TLS handshake".to_owned(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    "connection reset in the TLS handshake".to_owned()
                }
                _ => format!("the TLS handshake failed: {error}"),
            },
        };
        Self::new(Class::Tls, detail)
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_of_this_host_are_not_the_backends_fault() {
        for (code, class) in [
            (libc::EMFILE, Class::Shortage),
            (libc::ENFILE, Class::Shortage),
            (libc::EADDRNOTAVAIL, Class::Shortage),
            (libc::ENOBUFS, Class::Shortage),
            (libc::ENOMEM, Class::Shortage),
            (libc::EPERM, Class::Internal),
            (libc::EAFNOSUPPORT, Class::Internal),
        ] {
            let failure = Failure::connecting(&io::Error::from_raw_os_error(code));
            assert_eq!(failure.verdict, Verdict::Internal, "{code}");
            assert_eq!(failure.class, class, "{code}");
        }
    }

    #[test]
    fn the_networks_word_is_kept() {
        for (code, class) in [
            (libc::ECONNREFUSED, Class::Refused),
            (libc::EHOSTUNREACH, Class::Unreachable),
            (libc::ENETUNREACH, Class::Unreachable),
            (libc::EACCES, Class::Unreachable),
            (libc::ENOPROTOOPT, Class::Unreachable),
            (libc::ETIMEDOUT, Class::Timeout),
            (libc::ECONNRESET, Class::Reset),
        ] {
            let failure = Failure::connecting(&io::Error::from_raw_os_error(code));
            assert_eq!((failure.verdict, failure.class), (Verdict::Failure, class));
        }
    }
}
