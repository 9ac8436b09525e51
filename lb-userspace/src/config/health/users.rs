//! Which kinds of probe use which keys.

use super::Probe;
use crate::config::reader::{Errors, Reader};
use crate::config::schema::HEALTH;

/// Keys that mean something only to a probe over TLS.
const TLS_KEYS: [&str; 6] = ["verify", "ca", "sni", "alpn", "client_cert", "client_key"];

/// Reports keys of this very table that its kind of probe does not use. Inherited ones may be
/// meant for other services.
pub(super) fn refuse_meaningless(
    reader: &Reader<'_>,
    probe: Probe,
    tls: bool,
    errors: &mut Errors<'_>,
) {
    for key in HEALTH.keys {
        let Some(span) = reader.key_span(key.name) else {
            continue;
        };
        let users = users(key.name);
        if !users.contains(&probe) {
            let names: Vec<String> = users
                .iter()
                .map(|user| format!("\"{}\"", user.name()))
                .collect();
            errors.add(
                span,
                format!(
                    "`{}` has no meaning with probe = \"{}\"",
                    key.name,
                    probe.name()
                ),
                format!("remove it, or write probe = {}", names.join(" or ")),
            );
        } else if probe != Probe::Https && !tls && TLS_KEYS.contains(&key.name) {
            errors.add(
                span,
                format!("`{}` has no meaning without TLS", key.name),
                "add tls = true or remove it",
            );
        }
    }
}

/// The kinds of probe that use a key.
pub(super) fn users(key: &str) -> &'static [Probe] {
    use Probe::{
        Agent, Dns, Exec, Grpc, Http, Https, Ldap, Mysql, None, Postgres, Redis, Smtp, Tcp,
    };
    match key {
        "probe" => &[
            None, Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Exec, Agent,
        ],
        "headers" => &[Http, Https, Grpc],
        "path" | "method" | "host" | "body" | "expect_status" | "expect_header"
        | "reject_header" | "expect_body" | "expect_body_regex" | "reject_body"
        | "reject_body_regex" | "degraded_body" | "drain_status" | "drain_header" | "reuse"
        | "reuse_limit" | "degraded_weight" => &[Http, Https],
        // The contract's own example has `service` beside an HTTP probe: it is a warning there.
        "service" => &[Grpc, Http, Https],
        "authority" | "accept_status" | "watch" => &[Grpc],
        "tls" => &[Grpc, Tcp, Redis, Smtp, Ldap],
        key if TLS_KEYS.contains(&key) => &[Https, Grpc, Tcp, Redis, Smtp, Ldap],
        "half_open" | "script" => &[Tcp],
        "user" => &[Redis, Postgres, Mysql],
        "password_file" | "role" | "absent_key" => &[Redis],
        "database" => &[Postgres],
        "hello" => &[Smtp],
        "query" | "query_type" | "expect_rcode" | "expect_answer" => &[Dns],
        "command" => &[Exec],
        "proxy_protocol" => &[
            Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Agent,
        ],
        "via" | "source" | "mark" | "interface" => &[
            Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Agent,
        ],
        _ => &[
            Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Exec, Agent,
        ],
    }
}
