//! Good files, and what they mean.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lb_userspace::config::check::check;
use lb_userspace::config::{self};
use lb_userspace::model::{
    ActivePassive, Affinity, Announce, Assume, Backend, Class, ClientCertificate, DnsProbe, Egress,
    Endpoint, ExecProbe, Family, Fence, Forwarding, HeaderMatch, HealthPolicy, HoldDown, HttpProbe,
    LdapProbe, Match, Mode, Model, MysqlProbe, Node, OnDeath, OnExit, PanicAction, PanicRules,
    PassiveHttp, PassiveRules, Pattern, PoolRules, Ports, PostgresProbe, Prefix, ProbeKind,
    ProbeSpec, Protocol, ProxyProtocol, Question, RedisProbe, RedisRole, Reuse, ScriptStep,
    Service, SlowStart, SmtpProbe, StatusRange, TcpScript, TlsOptions, Via, Window, XdpMode,
};

use super::good;

#[test]
fn the_smallest_file_gets_the_documented_defaults() {
    let model = config::parse(&good("smallest.toml"), "lb.toml").unwrap();
    assert_eq!(
        model.node,
        Node {
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Auto,
            control_socket: "/run/lb/lb.sock".into(),
            http: None,
            http_token_file: None,
            grpc: None,
            haproxy_socket: None,
            shutdown_grace: Duration::ZERO,
            state_dir: "/var/lib/lb".into(),
            on_exit: OnExit::Keep,
            snat_ports: 16384..=32767,
            flow_entries: 262_144,
            reset_rate: 10_000,
            chain: None,
            gue_port: 6080,
            tunnel_source4: None,
            tunnel_source6: None,
            answer_ping: true,
            allow_exec: false,
            dns_servers: None,
            dns_max_ttl: Duration::from_secs(60),
            announce_table: 108,
            certificate_warning: Duration::from_secs(14 * 86_400),
            probes_in_flight: None,
            probes_per_second: None,
        }
    );
    let seconds = Duration::from_secs;
    let target = "10.0.0.11:8080".parse().unwrap();
    assert_eq!(
        model.services,
        [Service {
            name: "web".into(),
            address: Endpoint::from("203.0.113.10:80".parse::<SocketAddr>().unwrap()),
            protocol: Protocol::Tcp,
            forwarding: Forwarding::Nat,
            affinity: Affinity::Flow,
            mode: Mode::Balance,
            panic: PanicRules::default(),
            on_death: OnDeath::Reset,
            syn_rescue: true,
            server_id_length: 0,
            panic_threshold: 50,
            drain_deadline: seconds(30),
            announce: None,
            slow_start: Default::default(),
            pool: Default::default(),
            passive: PassiveRules {
                connections: true,
                http: PassiveHttp::Off,
                max_ejection_percent: 50,
            },
            health: vec![HealthPolicy::default()],
            backends: vec![Backend {
                name: "10.0.0.11:8080".into(),
                address: target,
                server_id: None,
                weight: 100,
                tier: 0,
                fallback: false,
                probes: vec![Arc::new(ProbeSpec {
                    target,
                    timeout: seconds(2),
                    kind: ProbeKind::Tcp.into(),
                    egress: Default::default(),
                })],
            }],
        }]
    );
}

#[test]
fn the_example_with_one_active_backend_is_read_and_its_time_to_promote_told() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("## One active backend").nth(1).unwrap();
    let example = section.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let report = check(example, "lb.toml").unwrap();
    assert_eq!(report.warnings, []);
    assert_eq!(
        report.model.services[0].mode,
        Mode::ActivePassive(ActivePassive {
            promote_after: Duration::from_secs(10),
            failback: false,
            fence: Some(Fence {
                command: vec!["/usr/local/sbin/fence-db".into(), "--power-off".into()],
                timeout: Duration::from_secs(30),
            }),
        })
    );
    assert_eq!(report.model.services[0].panic_threshold, 0);
    let service = &report.services[0];
    assert_eq!(service.promote_worst_ms, Some(27_000));
    assert_eq!(service.fence_timeout_ms, Some(30_000));
}

#[test]
fn fallback_backends_make_the_panic_action() {
    let text = good("smallest.toml");
    let more = "[[service.backend]]\naddress = \"10.0.0.12:8080\"\nfallback = true\n";
    let model = config::parse(&format!("{text}\n{more}"), "lb.toml").unwrap();
    let service = &model.services[0];
    assert_eq!(service.panic.action, PanicAction::Fallback);
    assert!(!service.backends[0].fallback && service.backends[1].fallback);
}

#[test]
fn the_agents_own_endpoints_are_read() {
    let report = check(&good("endpoints.toml"), "lb.toml").unwrap();
    assert_eq!(report.warnings, [], "beyond loopback, but with a token");
    let node = &report.model.node;
    assert_eq!(
        node.http_token_file.as_deref(),
        Some(Path::new("/etc/lb/token"))
    );
    assert_eq!(node.grpc, Some("[2001:db8::2]:9401".parse().unwrap()));
    let socket = Path::new("/run/lb/haproxy.sock");
    assert_eq!(node.haproxy_socket.as_deref(), Some(socket));
    assert_eq!(node.shutdown_grace, Duration::from_secs(10));
    let logs = |index: usize| report.model.services[index].health[0].always_log_failures;
    assert!(logs(0) && !logs(1));
}

#[test]
fn every_key_of_the_contract_is_read() {
    let model = config::parse(&good("contract.toml"), "lb.toml").unwrap();
    assert_eq!(model.node.http, Some("127.0.0.1:9400".parse().unwrap()));
    let [web, pay, dns, far, farther] = &model.services[..] else {
        panic!("{model:#?}")
    };

    let status = |first, last| StatusRange { first, last };
    assert_eq!(
        *web.backends[0].probes[0],
        ProbeSpec {
            target: "10.0.0.11:8081".parse().unwrap(),
            timeout: Duration::from_secs(2),
            kind: ProbeKind::Http(HttpProbe {
                method: "GET".into(),
                path: "/readyz".into(),
                host: Some("web.example".into()),
                headers: Vec::new(),
                expect_status: vec![status(200, 200), status(204, 206)],
                expect_body: Some("ok".into()),
                tls: None,
                ..HttpProbe::default()
            })
            .into(),
            egress: Default::default(),
        }
    );
    assert_eq!((web.backends[1].weight, web.backends[1].tier), (50, 1));
    let policy = web.health.first().unwrap();
    assert_eq!(policy.unhealthy_threshold, 4, "from [defaults.health]");

    assert_eq!(
        (pay.forwarding, pay.affinity),
        (Forwarding::Dsr, Affinity::Client)
    );
    let policy = pay.health.first().unwrap();
    assert_eq!(policy.unhealthy_threshold, 2, "over [defaults.health]");
    assert_eq!(policy.fast_interval, Duration::from_secs(3));
    assert_eq!(policy.down_interval, Duration::from_secs(90));
    assert_eq!(
        *pay.backends[0].probes[0].kind,
        ProbeKind::Grpc {
            service: "pkg.Payments".into(),
            authority: Some("pay.example".into()),
            accept_status: vec![5, 12],
            metadata: Vec::new(),
            tls: Some(TlsOptions {
                sni: Some("pay.example".into()),
                verify: true,
                ca: Some("/etc/lb/ca.pem".into()),
                ..TlsOptions::default()
            }),
            watch: false
        }
    );

    assert_eq!((dns.protocol, &dns.health), (Protocol::Udp, &vec![]));
    assert!(dns.backends[0].probes.is_empty());

    let prefix = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
    assert_eq!(model.node.gue_port, 6081);
    assert_eq!(model.node.tunnel_source4, prefix("172.16.0.0", 16));
    assert_eq!(model.node.tunnel_source6, prefix("100::", 64));
    let ways = (far.forwarding, farther.forwarding);
    assert_eq!(ways, (Forwarding::Ipip, Forwarding::Gue));
}

#[test]
fn what_decides_is_read() {
    let model = config::parse(&good("deciding.toml"), "lb.toml").unwrap();
    let month = Duration::from_secs(30 * 86_400);
    assert_eq!(model.node.certificate_warning, month);
    let (shop, agents) = (&model.services[0], &model.services[1]);
    let [web, db] = &shop.health[..] else {
        panic!("{shop:#?}")
    };
    assert_eq!((&*web.name, &*db.name), ("http", "database"));
    let window = |failures, outcomes| Some(Window { failures, outcomes });
    assert_eq!(web.unhealthy_window, window(3, 10));
    assert_eq!(web.immediate_on, [Class::Application, Class::Refused]);
    assert_eq!((web.degraded_weight, db.degraded_weight), (25, 50));
    let held = HoldDown {
        base: Duration::from_secs(30),
        most: Duration::from_secs(600),
    };
    assert_eq!((web.hold_down, db.hold_down), (Some(held), None));
    assert_eq!((web.unhealthy_threshold, db.unhealthy_threshold), (4, 5));
    let ports = |service: &Service| -> Vec<u16> {
        let probes = service.backends[0].probes.iter();
        probes.map(|probe| probe.target.port()).collect()
    };
    assert_eq!(ports(shop), [8080, 5432]);
    assert_eq!(ports(agents), [8080, 9707]);
    assert_eq!(*agents.backends[0].probes[1].kind, ProbeKind::Agent);
    let ProbeKind::Http(http) = &*shop.backends[0].probes[0].kind else {
        panic!("{shop:#?}")
    };
    assert_eq!(http.degraded_body.as_deref(), Some("cache: cold"));
    let status = |first, last| StatusRange { first, last };
    assert_eq!(http.drain_status, [status(404, 404), status(410, 419)]);
    let header = HeaderMatch {
        name: "x-draining".into(),
        value: Some("yes".into()),
    };
    assert_eq!(http.drain_header, Some(header));

    let report = check(&good("deciding.toml"), "lb.toml").unwrap();
    let [shop, agents] = &report.services[..] else {
        panic!("{report:#?}")
    };
    assert_eq!(shop.probe, "http + tcp");
    let budget = shop.budget.unwrap();
    // The slower of the two, 5 x 10s + 2s; the hold-down is apart.
    assert_eq!(budget.eject_worst_ms, 52_000);
    assert_eq!(budget.hold_down_ms, Some(30_000));
    assert_eq!(budget.hold_down_max_ms, Some(600_000));
    // Both services probe the same two addresses with the same HTTP probe: that is one.
    let sum = budget.probes_per_second + agents.budget.unwrap().probes_per_second;
    assert!((sum - (0.4 + 0.2 + 0.4 + 0.2)).abs() < 1e-9, "{sum}");
    assert!((report.probes_per_second - 0.8).abs() < 1e-9);
}

#[test]
fn every_kind_of_probe_is_read() {
    let model = config::parse(&good("kinds.toml"), "lb.toml").unwrap();
    let kind = |name: &str| {
        let backends = &model.service(name).unwrap().backends;
        ProbeKind::clone(&backends[0].probes[0].kind)
    };
    let regex = |text| Some(Match::Regex(Pattern::new(text).unwrap()));
    let script = vec![
        ScriptStep::Send(b"version\r\n".to_vec()),
        ScriptStep::Receive {
            expect: regex(r"^VERSION 1\.\d+"),
            unless: Some(Match::Contains(b"ERROR".to_vec())),
            min_bytes: 1,
        },
        ScriptStep::Connect(11212),
        ScriptStep::Send(b"quit\r\n".to_vec()),
    ];
    assert_eq!(
        kind("script"),
        ProbeKind::TcpScript(TcpScript {
            steps: script,
            tls: None
        })
    );
    assert_eq!(kind("half-open"), ProbeKind::TcpHalfOpen);
    let ProbeKind::TcpScript(TcpScript { steps, tls }) = kind("tls") else {
        panic!("{:?}", kind("tls"));
    };
    assert_eq!(steps, []);
    assert_eq!(tls.unwrap().sni.as_deref(), Some("ldap.example"));
    assert_eq!(
        kind("redis"),
        ProbeKind::Redis(RedisProbe {
            user: Some("lb".into()),
            password_file: Some("/etc/lb/redis.password".into()),
            role: Some(RedisRole::Master),
            absent_key: Some("maintenance".into()),
            tls: None,
        })
    );
    assert_eq!(
        kind("postgres"),
        ProbeKind::Postgres(PostgresProbe {
            user: "lb".into(),
            database: None,
        })
    );
    let user = Some("lb".into());
    assert_eq!(kind("mysql"), ProbeKind::Mysql(MysqlProbe { user }));
    assert_eq!(
        kind("smtp"),
        ProbeKind::Smtp(SmtpProbe {
            hello: "lb.example".into(),
            tls: None,
        })
    );
    assert_eq!(
        kind("dns"),
        ProbeKind::Dns(DnsProbe {
            name: "www.example.org".into(),
            query_type: ("A", 1),
            rcode: ("NOERROR", 0),
            answers: vec!["192.0.2.1".parse().unwrap()],
        })
    );
    assert_eq!(
        kind("exec"),
        ProbeKind::Exec(ExecProbe {
            command: vec!["/usr/local/bin/check-app".into(), "--fast".into()],
            service: "exec".into(),
            backend: "app-1".into(),
        })
    );
    assert_eq!(kind("agent"), ProbeKind::Agent);
    assert_eq!(kind("ldap"), ProbeKind::Ldap(LdapProbe { tls: None }));
    let ProbeKind::Http(http) = kind("https") else {
        panic!("{:?}", kind("https"));
    };
    let regex = http.expect_body_regex.unwrap();
    assert_eq!(regex.as_str(), r#""ready":\s*true"#);
    assert_eq!(
        http.reuse,
        Some(Reuse {
            max_age: Duration::from_secs(60),
            max_uses: 100
        })
    );
    let tls = http.tls.unwrap();
    let alpn = tls.alpn.unwrap();
    assert_eq!(alpn, ["http/1.0", "http/1.1"]);
    assert_eq!(
        tls.client,
        Some(ClientCertificate {
            certificate: "/etc/lb/probe.pem".into(),
            key: "/etc/lb/probe.key".into(),
        })
    );
    let ProbeKind::Http(post) = kind("post") else {
        panic!("{:?}", kind("post"));
    };
    assert_eq!(post.body.as_deref(), Some(r#"{"ask": "ready"}"#));
    let shown = |rules: &[HeaderMatch]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&post.expect_header), ["x-ready: yes", "x-zone"]);
    assert_eq!(shown(&post.reject_header), ["x-error"]);
    assert_eq!(post.reject_body.as_deref(), Some("error"));
    let regex = post.reject_body_regex.unwrap();
    assert_eq!(regex.as_str(), r#""lag":\s*\d{4,}"#);
    let way = |name: &str| {
        let backends = &model.service(name).unwrap().backends;
        let spec = &backends[0].probes[0];
        (spec.target, spec.egress.clone())
    };
    let via = Egress {
        source: Some("10.0.0.2".parse().unwrap()),
        via: Some(Via {
            backend: "2001:db8::11".parse().unwrap(),
            forwarding: Forwarding::Gue,
        }),
        ..Egress::default()
    };
    assert_eq!(way("via"), ("203.0.113.20:81".parse().unwrap(), via));
    let marked = Egress {
        mark: Some(7),
        interface: Some("eth1".into()),
        ..Egress::default()
    };
    assert_eq!(way("marked"), ("10.0.0.11:80".parse().unwrap(), marked));
    assert_eq!(way("half-open").0, "10.9.0.11:2222".parse().unwrap());
    assert_eq!(way("redis").1.proxy_protocol, Some(ProxyProtocol::V2));
    let ProbeKind::TcpScript(script) = kind("script") else {
        panic!("{:?}", kind("script"));
    };
    let ports: Vec<_> = script.parts().iter().map(|(port, _)| *port).collect();
    assert_eq!(ports, [None, Some(11212)]);
    let ProbeKind::Grpc {
        metadata, watch, ..
    } = kind("grpc")
    else {
        panic!("{:?}", kind("grpc"));
    };
    assert!(watch);
    // Binary metadata goes without padding.
    let wanted = [("x-tenant", "lb"), ("x-trace-bin", "AAEC/w")];
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(metadata, wanted);
}

/// Where there is no connection that it could begin, it is meant for others.
#[test]
fn an_inherited_header_holds_where_it_can() {
    let text = good("kinds.toml").replace(
        "[node]",
        "[defaults.health]\nproxy_protocol = \"v1\"\n\n[node]",
    );
    let model = config::parse(&text, "lb.toml").unwrap();
    let header = |name: &str| {
        let backends = &model.service(name).unwrap().backends;
        backends[0].probes[0].egress.proxy_protocol
    };
    assert_eq!(header("post"), Some(ProxyProtocol::V1));
    assert_eq!(header("via"), Some(ProxyProtocol::V1));
    assert_eq!(header("redis"), Some(ProxyProtocol::V2));
    for name in ["half-open", "dns", "exec"] {
        assert_eq!(header(name), None, "{name}");
    }
}

#[test]
fn an_inherited_way_of_probes_holds_where_it_can() {
    let text = good("kinds.toml").replace(
        "[node]",
        "[defaults.health]\nvia = \"vip\"\nsource = \"10.0.0.2\"\n\n[node]",
    );
    let model = config::parse(&text, "lb.toml").unwrap();
    let egress = |name: &str| {
        let backends = &model.service(name).unwrap().backends;
        backends[0].probes[0].egress.clone()
    };
    assert!(egress("via").via.is_some());
    let source = Some("10.0.0.2".parse().unwrap());
    for name in ["smtp", "marked"] {
        assert_eq!(
            (egress(name).via, egress(name).source),
            (None, source),
            "{name}: by NAT"
        );
    }
    assert_eq!(egress("exec"), Egress::default());
}

#[test]
fn backends_by_host_name_are_templates() {
    let model = config::parse(&good("names.toml"), "lb.toml").unwrap();
    let servers = vec![
        "10.0.0.53:53".parse().unwrap(),
        "[fd00::53]:5353".parse().unwrap(),
    ];
    assert_eq!(model.node.dns_servers, Some(servers));
    assert_eq!(model.node.dns_max_ttl, Duration::from_secs(5));
    assert_eq!(model.service("web").unwrap().backends.len(), 1);
    let [app, pay, quic] = &model.names[..] else {
        panic!("{:#?}", model.names)
    };
    let question = |host: &str, family| Question {
        host: host.into(),
        family,
    };
    assert_eq!(app.question, question("app.internal", Family::Ipv4));
    assert_eq!(pay.question, question("pay.internal.", Family::Ipv6));
    assert_eq!(quic.question, question("app.internal", Family::Ipv4));

    let at = app.at("10.0.0.11".parse().unwrap(), model.service("web").unwrap());
    assert_eq!((&*at.name, at.weight), ("app@10.0.0.11", 50));
    assert_eq!(at.address, "10.0.0.11:8443".parse().unwrap());
    let probe = ProbeSpec::clone(&at.probes[0]);
    assert_eq!(probe.target, at.address);
    let ProbeKind::Http(http) = &*probe.kind else {
        panic!("{probe:?}")
    };
    assert_eq!(probe.authority(), "app.internal:8443");
    assert_eq!(
        http.tls.clone().unwrap().sni.as_deref(),
        Some("app.internal")
    );

    let at = pay.at(
        "2001:db8::11".parse().unwrap(),
        model.service("direct").unwrap(),
    );
    assert_eq!(&*at.name, "pay.internal.@2001:db8::11");
    assert_eq!(at.address.port(), 443);
    let probe = ProbeSpec::clone(&at.probes[0]);
    assert_eq!(probe.target, "[2001:db8::10]:443".parse().unwrap());
    assert_eq!(probe.egress.via.unwrap().backend, at.address.ip());
    let ProbeKind::Grpc { tls, .. } = &*probe.kind else {
        panic!("{probe:?}")
    };
    assert_eq!(probe.authority(), "pay.example");
    assert_eq!(tls.clone().unwrap().sni.as_deref(), Some("pay.example"));

    let at = quic.at("10.0.0.11".parse().unwrap(), model.service("quic").unwrap());
    assert_eq!(at.server_id, Some(0x0a00_000b));

    let report = check(&good("names.toml"), "lb.toml").unwrap();
    let counts: Vec<_> = report
        .services
        .iter()
        .map(|s| (s.backends, s.probe.as_str()))
        .collect();
    assert_eq!(counts, [(2, "https"), (1, "grpc"), (1, "none")]);
    let ids: Vec<_> = report
        .warnings
        .iter()
        .filter_map(|warning| warning.id)
        .collect();
    assert!(!ids.contains(&"single-backend"), "{ids:?}");
}

/// The probe of the one backend of the smallest file with this health table.
fn probe(health: &str, backend: &str) -> Arc<ProbeSpec> {
    let text = good("smallest.toml").replace("10.0.0.11:8080", backend);
    let table = format!("[service.health]\n{health}\n\n[[service.backend]]");
    let text = text.replace("[[service.backend]]", &table);
    let model = config::parse(&text, "lb.toml").unwrap();
    model.services[0].backends[0].probes[0].clone()
}

#[test]
fn host_and_sni_follow_from_each_other() {
    for (health, backend, host, sni) in [
        ("probe = \"http\"", "10.0.0.11:8080", "10.0.0.11:8080", None),
        ("probe = \"http\"", "10.0.0.11:80", "10.0.0.11", None),
        ("probe = \"https\"", "10.0.0.11:443", "10.0.0.11", None),
        (
            "probe = \"https\"\nhost = \"a.example:8443\"",
            "10.0.0.11:443",
            "a.example:8443",
            Some("a.example"),
        ),
        (
            "probe = \"https\"\nhost = \"10.0.0.1\"",
            "10.0.0.11:443",
            "10.0.0.1",
            None,
        ),
        (
            "probe = \"https\"\nsni = \"b.example\"",
            "10.0.0.11:444",
            "10.0.0.11:444",
            Some("b.example"),
        ),
    ] {
        let probe = probe(health, backend);
        let ProbeKind::Http(http) = &*probe.kind else {
            panic!("{health}")
        };
        assert_eq!(probe.authority(), host, "{health}");
        let found = http.tls.as_ref().and_then(|tls| tls.sni.as_deref());
        assert_eq!(found, sni, "{health}");
    }
}

#[test]
fn backends_that_are_asked_the_same_share_the_question() {
    for health in ["probe = \"tcp\"", "probe = \"https\"", "probe = \"grpc\""] {
        let table = format!("[service.health]\n{health}\n\n[[service.backend]]");
        let text = good("smallest.toml").replace("[[service.backend]]", &table);
        let second = "[[service.backend]]\naddress = \"10.0.0.12:8080\"\n";
        let model = config::parse(&format!("{text}\n{second}"), "lb.toml").unwrap();
        let probes = model.services[0].backends.iter().map(|one| &one.probes[0]);
        let [one, two] = probes.collect::<Vec<_>>()[..] else {
            panic!("{model:#?}")
        };
        assert!(Arc::ptr_eq(&one.kind, &two.kind), "{health}");
        // As long as nothing else is said it goes by the target, which is each one's own.
        assert!(health.contains("tcp") || one.authority() != two.authority());
    }
}

#[test]
fn defaults_for_other_probes_do_not_disturb_a_service() {
    let text = format!(
        "[defaults.health]\nprobe = \"http\"\npath = \"/readyz\"\n\n{}",
        good("smallest.toml")
    );
    let model = config::parse(&text, "lb.toml").unwrap();
    let kind = |model: &Model| ProbeKind::clone(&model.services[0].backends[0].probes[0].kind);
    assert!(matches!(kind(&model), ProbeKind::Http(http) if http.path == "/readyz"));

    let table = "[service.health]\nprobe = \"tcp\"\n\n[[service.backend]]";
    let text = text.replace("[[service.backend]]", table);
    let model = config::parse(&text, "lb.toml").unwrap();
    assert_eq!(kind(&model), ProbeKind::Tcp);
}

#[test]
fn what_is_announced_is_read() {
    let model = config::parse(&good("announced.toml"), "lb.toml").unwrap();
    assert_eq!(model.node.announce_table, 110);
    let of = |name: &str| model.service(name).unwrap().announce.clone();
    let web = Announce {
        quorum: 50,
        hysteresis: 25,
        after: Duration::from_secs(30),
        on_announce: Some(vec!["/usr/local/sbin/vip".into(), "up".into()]),
        on_withdraw: Some(vec!["/usr/local/sbin/vip".into(), "down".into()]),
    };
    assert_eq!(web.regained_at(), 75);
    assert_eq!(of("web"), Some(web));
    let usual = Announce {
        quorum: 1,
        hysteresis: 0,
        after: Duration::ZERO,
        on_announce: None,
        on_withdraw: None,
    };
    assert_eq!(of("web-tls"), Some(usual));
    assert_eq!(of("admin"), None);
    let report = check(&good("announced.toml"), "lb.toml").unwrap();
    let ids: Vec<_> = report.warnings.iter().map(|found| found.id).collect();
    assert!(!ids.contains(&Some("announce-no-spare")), "{ids:?}");
}

#[test]
fn ports_and_server_ids_are_read() {
    let model = config::parse(&good("ranges.toml"), "lb.toml").unwrap();
    let of = |name: &str| model.service(name).unwrap();
    let addresses = |name| -> Vec<String> {
        let backends = of(name).backends.iter();
        backends
            .map(|backend| backend.address.to_string())
            .collect()
    };
    let ftp = of("passive-ftp");
    assert_eq!(ftp.address.ports, Ports::Range(8000, 8099));
    assert_eq!(ftp.address.to_string(), "203.0.113.10:8000-8099");
    assert_eq!(addresses("passive-ftp"), ["10.0.0.11:0", "10.0.0.12:0"]);
    let names: Vec<&str> = ftp.backends.iter().map(|backend| &*backend.name).collect();
    assert_eq!(names, ["10.0.0.11:*", "10.0.0.12:*"]);
    let target = |backend: &Backend| backend.probes[0].target.port();
    assert!(ftp.backends.iter().all(|backend| target(backend) == 8080));
    // A service with one port has no other to keep.
    assert_eq!(addresses("one-port"), ["10.0.0.11:8050", "10.0.0.12:8050"]);
    assert_eq!(target(&of("one-port").backends[1]), 8050);
    assert_eq!(of("rest").address.ports, Ports::Any);
    let quic = of("http3");
    assert_eq!((quic.affinity, quic.server_id_length), (Affinity::Quic, 2));
    let ids: Vec<_> = quic
        .backends
        .iter()
        .map(|backend| backend.server_id)
        .collect();
    assert_eq!(ids, [Some(0x010b), Some(0x0a1b)]);
    assert_eq!(ftp.backends[0].server_id, None);
}

#[test]
fn how_much_of_a_pool_serves_is_read() {
    let model = config::parse(&good("pool.toml"), "lb.toml").unwrap();
    let node = &model.node;
    assert_eq!(
        (node.probes_in_flight, node.probes_per_second),
        (Some(200), Some(50))
    );
    let [web, api] = &model.services[..] else {
        panic!("{model:#?}")
    };
    let seconds = Duration::from_secs;
    let pool = PoolRules {
        max_ejection_percent: 40,
        overprovisioning: 120,
        failback_after: seconds(120),
        fail_open_after: Some(seconds(20)),
    };
    assert_eq!((web.pool, api.pool), (pool, PoolRules::default()));
    assert_eq!(web.passive.max_ejection_percent, 25);
    assert_eq!(api.passive.max_ejection_percent, 50);
    let slow_start = |aggression, least| SlowStart {
        window: seconds(30),
        aggression,
        least,
    };
    assert_eq!(web.slow_start, slow_start(1.5, 5));
    assert_eq!(api.slow_start, slow_start(2.0, 10));
    assert_eq!(web.fail_open_after(), seconds(20));
    // The longest interval and timeout of its probes.
    assert_eq!(api.fail_open_after(), seconds(7));
    let assume = |service: &Service| service.health[0].assume;
    assert_eq!((assume(web), assume(api)), (Assume::Up, Assume::Down));
    let report = check(&good("pool.toml"), "lb.toml").unwrap();
    assert!(
        report
            .warnings
            .iter()
            .all(|warning| warning.id != Some("probe-load"))
    );
}
