use super::super::ethtool::Offloads;
use super::super::links::Xdp;
use super::*;

/// A host on which all is well.
fn good() -> Facts {
    let link = Link {
        name: "eth0".into(),
        index: 2,
        up: true,
        carrier: true,
        mtu: 1500,
        driver: Some("mlx5_core".into()),
        offloads: Offloads {
            lro: Some(false),
            gro: Some(true),
            tx_checksum: Some(true),
        },
        rx_queues: 8,
        ..Link::default()
    };
    Facts {
        kernel: "6.1.0-13-amd64".into(),
        capabilities: u64::MAX,
        jit: Some(1),
        bpffs: true,
        own_bpffs: false,
        unprivileged_port: 1024,
        program: Some(Ok(())),
        memlock: Some(8 << 20),
        local_ports: (32768, 60999),
        cpus: 8,
        links: vec![link.clone()],
        all: vec![link],
        ..Facts::default()
    }
}

fn node() -> Node {
    Node {
        interfaces: vec!["eth0".into()],
        xdp_mode: XdpMode::Auto,
        control_socket: "/run/lb/lb.sock".into(),
        http: None,
        http_token_file: None,
        grpc: None,
        haproxy_socket: None,
        shutdown_grace: std::time::Duration::ZERO,
        state_dir: "/var/lib/lb".into(),
        on_exit: crate::model::OnExit::Keep,
        snat_ports: 61000..=65535,
        flow_entries: 1 << 20,
        reset_rate: 10_000,
        chain: None,
        gue_port: 6080,
        tunnel_source4: None,
        tunnel_source6: None,
        answer_ping: true,
        allow_exec: false,
        dns_servers: None,
        dns_max_ttl: std::time::Duration::from_secs(60),
        announce_table: 108,
        certificate_warning: std::time::Duration::from_secs(14 * 86_400),
        probes_in_flight: None,
        probes_per_second: None,
    }
}

/// Checks that are not ok: (check, level, mend).
fn complaints(facts: &Facts, node: &Node) -> Vec<(&'static str, Level, String)> {
    judge(facts, Some(node))
        .into_iter()
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| {
            assert!(!finding.why.is_empty(), "{finding:?}");
            let mend = finding.mend.unwrap_or_default();
            (finding.check, finding.level, mend)
        })
        .collect()
}

#[test]
fn a_good_host_has_nothing_to_mend() {
    assert_eq!(complaints(&good(), &node()), []);
}

/// Makes a good host bad in one way.
type Damage = fn(&mut Facts, &mut Node);

#[test]
fn each_fault_is_found_alone_and_with_its_mend() {
    let table: &[(&str, Level, &str, Damage)] = &[
        ("kernel", Level::Fail, "6.1", |f, _| {
            f.kernel = "5.15.0".into()
        }),
        ("kernel", Level::Fail, "6.1", |f, _| {
            f.kernel = "6.0.19".into()
        }),
        ("capabilities", Level::Fail, "as root", |f, _| {
            f.capabilities &= !(1 << 39)
        }),
        ("cap_sys_admin", Level::Warn, "as root", |f, _| {
            f.capabilities &= !(1 << 21)
        }),
        ("cap_sys_admin", Level::Fail, "as root", |f, _| {
            f.capabilities &= !(1 << 21);
            f.pinned = true;
        }),
        ("cap_sys_admin", Level::Warn, "as root", |f, _| {
            f.capabilities &= !(1 << 18);
            f.own_mounts = true;
        }),
        ("cap_net_raw", Level::Fail, "as root", |f, _| {
            f.capabilities &= !(1 << 13);
            let vips = &mut f.probing.wants.vips;
            vips.insert([203, 0, 113, 20].into(), [].into());
        }),
        (
            "cap_net_bind_service",
            Level::Fail,
            "port from 1024 on",
            |f, n| {
                f.capabilities &= !(1 << 10);
                n.http = "127.0.0.1:80".parse().ok();
            },
        ),
        (
            "cap_net_bind_service",
            Level::Fail,
            "port from 1024 on",
            |f, n| {
                f.capabilities &= !(1 << 10);
                n.grpc = "127.0.0.1:81".parse().ok();
            },
        ),
        ("layout", Level::Fail, "--migrate", |f, _| {
            f.other_layout = Some(3);
        }),
        ("program", Level::Fail, "CONFIG_BPF_SYSCALL", |f, _| {
            f.program = Some(Err("no bpf_loop".into()));
        }),
        (
            "jit",
            Level::Warn,
            "sysctl -w net.core.bpf_jit_enable=1",
            |f, _| f.jit = Some(0),
        ),
        (
            "bpffs",
            Level::Warn,
            "mount -t bpf bpf /sys/fs/bpf",
            |f, _| f.bpffs = false,
        ),
        (
            "bpffs",
            Level::Warn,
            "nsenter --net=/run/netns/NAME",
            |f, _| f.own_bpffs = true,
        ),
        (
            "snat_ports",
            Level::Fail,
            "sysctl -w net.ipv4.ip_local_reserved_ports=8080-8080,50000-65535",
            |f, n| {
                f.reserved_ports = vec![(8080, 8080)];
                n.snat_ports = 50000..=65535;
            },
        ),
        ("interface", Level::Fail, "node.interfaces", |f, _| {
            f.missing = vec!["eth9".into()]
        }),
        (
            "interface",
            Level::Fail,
            "ip link set dev eth0 up",
            |f, _| f.links[0].up = false,
        ),
        ("interface", Level::Warn, "cable", |f, _| {
            f.links[0].carrier = false
        }),
        ("native_xdp", Level::Warn, "native XDP", |f, _| {
            f.links[0].driver = Some("e1000".into())
        }),
        ("native_xdp", Level::Fail, "auto", |f, n| {
            f.links[0].driver = Some("e1000".into());
            n.xdp_mode = XdpMode::Native;
        }),
        (
            "other_xdp",
            Level::Warn,
            "ip link set dev eth0 xdp off",
            |f, _| {
                f.links[0].xdp = Some(Xdp {
                    id: 7,
                    native: true,
                });
            },
        ),
        ("lro", Level::Fail, "ethtool -K eth0 lro off", |f, _| {
            f.links[0].offloads.lro = Some(true);
        }),
        ("mtu", Level::Warn, "mtu 1500", |f, _| f.links[0].mtu = 9000),
        (
            "queues",
            Level::Warn,
            "ethtool -L eth0 combined 8",
            |f, _| f.links[0].rx_queues = 1,
        ),
        (
            "rp_filter",
            Level::Warn,
            "net.ipv4.conf.eth0.rp_filter=2",
            |f, _| {
                f.links.push(f.links[0].clone());
                f.links[0].rp_filter = 1;
            },
        ),
    ];
    for (check, level, mend, damage) in table {
        let (mut facts, mut node) = (good(), node());
        damage(&mut facts, &mut node);
        let found = complaints(&facts, &node);
        assert_eq!(found.len(), 1, "{check}: {found:?}");
        assert_eq!((found[0].0, found[0].1), (*check, *level));
        assert!(found[0].2.contains(mend), "{check}: {:?}", found[0].2);
    }
}

#[test]
fn ports_that_the_host_reserves_do_not_clash() {
    let (mut facts, mut node) = (good(), node());
    node.snat_ports = 50000..=65535;
    facts.reserved_ports = vec![(50000, 55000), (55001, 65535)];
    assert_eq!(complaints(&facts, &node), []);
}

#[test]
fn a_running_agents_program_is_no_stranger() {
    let mut facts = good();
    facts.links[0].xdp = Some(Xdp {
        id: 7,
        native: true,
    });
    facts.agent = true;
    assert_eq!(complaints(&facts, &node()), []);
}

#[test]
fn a_veths_other_end_is_looked_at_if_it_can_be() {
    let mut facts = good();
    facts.links[0].driver = None;
    facts.links[0].kind = Some("veth".into());
    let names = |facts: &Facts| {
        complaints(facts, &node())
            .into_iter()
            .map(|(check, level, _)| (check, level))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&facts),
        [("veth_napi", Level::Warn), ("veth_checksum", Level::Warn)]
    );
    let mut peer = Link {
        name: "veth1".into(),
        index: 9,
        kind: Some("veth".into()),
        ..Link::default()
    };
    peer.offloads.tx_checksum = Some(true);
    facts.links[0].peer = Some(9);
    facts.all.push(peer);
    assert_eq!(
        names(&facts),
        [("veth_napi", Level::Fail), ("veth_checksum", Level::Warn)]
    );
    let peer = facts.all.last_mut().unwrap();
    peer.xdp = Some(Xdp {
        id: 7,
        native: true,
    });
    peer.offloads.tx_checksum = Some(false);
    assert_eq!(names(&facts), []);
}

#[test]
fn a_backend_that_packets_cannot_be_sent_to_is_named() {
    let stacked = Problem::Stacked {
        interface: "eth0.7".into(),
        kind: "vlan".into(),
    };
    let facts = Facts {
        unreachable: [
            ("10.0.0.1".parse().unwrap(), Problem::Local),
            ("10.0.0.2".parse().unwrap(), stacked),
        ]
        .into(),
        ..Facts::default()
    };
    let ways = |mode| {
        let node = Node {
            xdp_mode: mode,
            ..node()
        };
        let findings = judge(&facts, Some(&node)).into_iter();
        let ways = findings.filter(|finding| finding.check == "backend_way");
        ways.map(|finding| finding.what).collect::<Vec<_>>()
    };
    let native = ways(XdpMode::Auto);
    assert_eq!(native.len(), 2);
    assert!(native[0].contains("10.0.0.1: it is an address of this host"));
    assert!(native[1].contains("vlan device eth0.7"), "{native:?}");
    assert_eq!(ways(XdpMode::Generic).len(), 1);
}

#[test]
fn tunnels_want_room_for_their_headers() {
    let model = |forwarding: &str, backend: &str| {
        let text = format!(
            "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
             address = \"203.0.113.10:80\"\nforwarding = \"{forwarding}\"\n\
             [[service.backend]]\naddress = \"{backend}\"\n"
        );
        crate::config::parse(&text, "test").unwrap()
    };
    let mut facts = good();
    let mend = |facts: &Facts, model: &Model| {
        let found = tunnel_mtu(facts, Some(model));
        found
            .into_iter()
            .filter_map(|found| found.mend)
            .collect::<Vec<_>>()
            .join(";")
    };
    assert_eq!(mend(&facts, &model("nat", "10.0.0.11:80")), "");
    assert!(mend(&facts, &model("ipip", "10.0.0.11:80")).contains("mtu 1520,"));
    let deep = model("gue", "[fd00::11]:80");
    assert!(mend(&facts, &deep).contains("mtu 1548,"));
    facts.links[0].mtu = 1548;
    assert_eq!(mend(&facts, &deep), "");
}
