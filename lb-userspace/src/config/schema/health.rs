//! Keys of the health checks.

use super::Fallback::{Absent, Derived, Value};
use super::{Kind, Section, key};

/// `[service.health]` and `[defaults.health]`.
pub const HEALTH: Section = Section {
    header: "[service.health]",
    tables: &[],
    keys: &[
        key(
            "probe",
            Kind::Choice(&[
                "tcp", "http", "https", "grpc", "redis", "postgres", "mysql", "smtp", "ldap",
                "dns", "exec", "agent", "none",
            ]),
            Derived("`\"tcp\"` for TCP services, `\"none\"` for UDP services"),
            "What is asked; `none`: backends always count as healthy.",
        ),
        key(
            "interval",
            Kind::Duration,
            Value("\"5s\""),
            "Time between the starts of two probes of one backend.",
        ),
        key(
            "timeout",
            Kind::Duration,
            Value("\"2s\""),
            "One deadline for the whole probe, from the first SYN to the last byte judged; less than every interval.",
        ),
        key(
            "unhealthy_threshold",
            Kind::Integer(1, 1000),
            Value("3"),
            "Failures in a row that make a backend unhealthy.",
        ),
        key(
            "healthy_threshold",
            Kind::Integer(1, 1000),
            Value("2"),
            "Successes in a row that make it healthy again.",
        ),
        key(
            "fast_interval",
            Kind::Duration,
            Derived("`interval`"),
            "Interval while a change is pending or nothing is decided yet.",
        ),
        key(
            "down_interval",
            Kind::Duration,
            Derived("`interval`"),
            "Interval while a backend is unhealthy.",
        ),
        key(
            "jitter",
            Kind::Integer(0, 50),
            Value("5"),
            "Random share of the interval by which a probe may start late, in percent.",
        ),
        key(
            "port",
            Kind::Integer(1, 65535),
            Derived("the backend's port"),
            "Port that is probed.",
        ),
        key(
            "via",
            Kind::Choice(&["direct", "vip"]),
            Value("\"direct\""),
            "`direct`: the backend's own address is probed; `vip` (`dsr`, `ipip`, `gue`): the VIP, and the packets go to the backend as the service's traffic does, see [probes](probes.md#through-the-data-path).",
        ),
        key(
            "source",
            Kind::IpAddress,
            Absent("the kernel's choice"),
            "Address of this host that probes come from.",
        ),
        key(
            "mark",
            Kind::Integer(1, 4_294_967_295),
            Absent("none"),
            "Mark of the probes' packets, for policy routing and firewalls (`SO_MARK`); not with `via = \"vip\"`.",
        ),
        key(
            "interface",
            Kind::Text,
            Absent("as the kernel routes"),
            "Interface that probes leave and answers arrive by (`SO_BINDTODEVICE`); not with `via = \"vip\"`.",
        ),
        key(
            "path",
            Kind::Text,
            Value("\"/\""),
            "`http` and `https`: path and query that is requested.",
        ),
        key(
            "method",
            Kind::Choice(&[
                "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE",
            ]),
            Value("\"GET\""),
            "`http` and `https`: request method.",
        ),
        key(
            "host",
            Kind::Text,
            Derived("the probed address and port"),
            "`http` and `https`: the `Host` header; for `https` also the default of `sni`.",
        ),
        key(
            "headers",
            Kind::Headers,
            Absent("none"),
            "`http`, `https` and `grpc`: further request headers (for `grpc`: metadata).",
        ),
        key(
            "expect_status",
            Kind::Statuses,
            Value("[\"200\"]"),
            "`http` and `https`: status codes that count as a success; ranges are inclusive. Redirects are never followed.",
        ),
        key(
            "expect_body",
            Kind::Text,
            Absent("not looked at"),
            "`http` and `https`: text that must occur in the first 256 KiB of the body.",
        ),
        key(
            "expect_body_regex",
            Kind::Text,
            Absent("not looked at"),
            "`http` and `https`: regular expression that must match in the first 256 KiB of the body.",
        ),
        key(
            "reuse",
            Kind::Duration,
            Absent("a fresh connection each time"),
            "`http` and `https`: how long a connection may serve further probes, see [probes](probes.md#kept-connections).",
        ),
        key(
            "reuse_limit",
            Kind::Integer(2, 1_000_000),
            Value("100"),
            "With `reuse`: probes on one connection.",
        ),
        key(
            "service",
            Kind::Text,
            Value("\"\""),
            "`grpc`: service that is asked for; empty: the server as a whole.",
        ),
        key(
            "authority",
            Kind::Text,
            Derived("the probed address and port"),
            "`grpc`: the `:authority` header; with `tls` also the default of `sni`.",
        ),
        key(
            "watch",
            Kind::Boolean,
            Value("false"),
            "`grpc`: whether a stream of `Health/Watch` is kept open, so that the server says changes at once, see [probes](probes.md#grpc).",
        ),
        key(
            "accept_status",
            Kind::GrpcCodes,
            Value("[]"),
            "`grpc`: status codes other than OK that count as a success, by number or name.",
        ),
        key(
            "tls",
            Kind::Boolean,
            Value("false"),
            "`grpc`, `tcp`, `redis`, `smtp`, `ldap`: whether the probe speaks TLS from the first byte.",
        ),
        key(
            "verify",
            Kind::Boolean,
            Value("false"),
            "With TLS: whether the certificate must be valid for the server name. A bad one is reported either way.",
        ),
        key(
            "ca",
            Kind::Path,
            Absent("the system's roots"),
            "With TLS: PEM file with the roots to trust instead of the system's.",
        ),
        key(
            "sni",
            Kind::Text,
            Derived("`host` or `authority` if that is a name, else none is sent"),
            "With TLS: server name that is sent and verified.",
        ),
        key(
            "client_cert",
            Kind::Path,
            Absent("none is shown"),
            "With TLS: PEM file with the certificate (and its chain) that is shown to servers that ask for one.",
        ),
        key(
            "client_key",
            Kind::Path,
            Absent("none"),
            "With TLS: PEM file with the private key of `client_cert`.",
        ),
        key(
            "half_open",
            Kind::Boolean,
            Value("false"),
            "`tcp`: SYN, SYN-ACK, RST; the application never sees the connection.",
        ),
        key(
            "script",
            Kind::Steps,
            Absent("none"),
            "`tcp`: what is sent and expected once the connection stands, see [probes](probes.md#tcp).",
        ),
        key(
            "user",
            Kind::Text,
            Derived("`redis`: the server's; `postgres`: `\"postgres\"`; `mysql`: no login"),
            "`redis`, `postgres`, `mysql`: who the probe says it is.",
        ),
        key(
            "password_file",
            Kind::Path,
            Absent("no password"),
            "`redis`: file whose first line is the password; read for each probe.",
        ),
        key(
            "role",
            Kind::Choice(&["any", "master", "replica"]),
            Absent("not asked"),
            "`redis`: the role the server must have; a replica's link to its master must be up.",
        ),
        key(
            "database",
            Kind::Text,
            Derived("the user's name, by the server"),
            "`postgres`: database named in the start-up packet.",
        ),
        key(
            "hello",
            Kind::Text,
            Value("\"localhost\""),
            "`smtp`: name given with EHLO.",
        ),
        key(
            "query",
            Kind::Text,
            Derived("required for `dns`"),
            "`dns`: name that is asked for; `.` is the root.",
        ),
        key(
            "query_type",
            Kind::Choice(&[
                "A", "AAAA", "NS", "SOA", "CNAME", "PTR", "MX", "TXT", "SRV", "CAA",
            ]),
            Value("\"A\""),
            "`dns`: type of record that is asked for.",
        ),
        key(
            "expect_rcode",
            Kind::Choice(&["NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED"]),
            Value("\"NOERROR\""),
            "`dns`: response code that counts as a success.",
        ),
        key(
            "expect_answer",
            Kind::IpAddresses,
            Value("[]"),
            "`dns`: addresses that must all be in the answer.",
        ),
        key(
            "command",
            Kind::Command,
            Derived("required for `exec`"),
            "`exec`: program by its absolute path, and its arguments; needs `allow_exec` in `[node]`.",
        ),
    ],
};
