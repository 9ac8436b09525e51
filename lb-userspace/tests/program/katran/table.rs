//! The packets, and what must become of each.

use lb_common::verdict::Verdict;

use super::{Case, Outcome, Packet};

/// Real servers of Katran's fixtures, in the order of both families.
const V4: &[&str] = &["10.0.0.1", "10.0.0.2", "10.0.0.3"];
const V6: &[&str] = &["fc00::1", "fc00::2", "fc00::3"];

pub const CASES: &[Case] = &[
    Case {
        id: "base_ipip/main/1",
        packet: Packet::Udp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            payload: 15,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 63,
        },
    },
    Case {
        id: "base_ipip/main/2",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/3",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            flags: "A",
            class: 0x8c,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/4",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.2:42",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/5",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.3:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 4,
            length: 55,
        },
    },
    Case {
        id: "base_ipip/main/6",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/7",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x8c,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/10",
        packet: Packet::Icmp {
            from: "192.168.100.1",
            client: "192.168.1.1:31337",
            vip: "10.200.1.1:80",
            kind: (3, 4, 0),
            payload: 15,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 103,
        },
    },
    Case {
        id: "base_ipip/main/11",
        packet: Packet::Icmp {
            from: "fc00:200::1",
            client: "[fc00:2::1]:31337",
            vip: "[fc00:1::1]:80",
            kind: (2, 0, 1280),
            payload: 18,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 126,
        },
    },
    Case {
        id: "base_ipip/main/15",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:82",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "base_ipip/main/16",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:82",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "base_ipip/main/17",
        packet: Packet::Arp,
        outcome: Outcome::Refused(Verdict::PassNotIp),
    },
    Case {
        id: "base_ipip/main/18",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 75,
        },
    },
    Case {
        id: "base_ipip/main/19",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.4:42",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::NotOffered("a hash of the destination port alone"),
    },
    Case {
        id: "base_ipip/main/20",
        packet: Packet::Tcp {
            src: "192.168.1.100:1337",
            dst: "10.200.1.4:42",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::NotOffered("a hash of the destination port alone"),
    },
    Case {
        id: "base_ipip/main/21",
        packet: Packet::Wrapped {
            outer: ("172.16.1.1", "172.16.100.1"),
            gue: None,
            inner: &Packet::Udp {
                src: "192.168.1.1:31337",
                dst: "10.200.1.1:80",
                payload: 15,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "base_ipip/main/22",
        packet: Packet::Wrapped {
            outer: ("100::1", "100::2"),
            gue: None,
            inner: &Packet::Tcp {
                src: "[fc00:2::1]:31337",
                dst: "[fc00:1::1]:80",
                flags: "A",
                class: 0x0,
                options: 0,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "base_ipip/main/23",
        packet: Packet::Wrapped {
            outer: ("100::1", "100::2"),
            gue: None,
            inner: &Packet::Udp {
                src: "192.168.1.1:31337",
                dst: "10.200.1.1:80",
                payload: 15,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "base_ipip/main/24",
        packet: Packet::Udp {
            src: "192.168.1.42:31337",
            dst: "10.200.1.5:443",
            payload: 30,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 78,
        },
    },
    Case {
        id: "base_ipip/main/25",
        packet: Packet::Udp {
            src: "192.168.1.42:31337",
            dst: "10.200.1.5:443",
            payload: 29,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 77,
        },
    },
    Case {
        id: "base_ipip/main/28",
        packet: Packet::Udp {
            src: "[fc00:2::42]:31337",
            dst: "[fc00:1::2]:443",
            payload: 31,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 79,
        },
    },
    Case {
        id: "base_ipip/main/36",
        packet: Packet::Udp {
            src: "192.168.1.42:31337",
            dst: "10.200.1.6:80",
            payload: 10,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 58,
        },
    },
    Case {
        id: "gue/main/13",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:82",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "gue/main/14",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:82",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "gue/main/15",
        packet: Packet::Arp,
        outcome: Outcome::Refused(Verdict::PassNotIp),
    },
    Case {
        id: "gue/main/19",
        packet: Packet::Wrapped {
            outer: ("172.16.1.1", "172.16.100.1"),
            gue: Some((1337, 6080)),
            inner: &Packet::Udp {
                src: "192.168.1.1:31337",
                dst: "10.200.1.1:80",
                payload: 15,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "gue/main/20",
        packet: Packet::Wrapped {
            outer: ("100::1", "100::2"),
            gue: Some((1337, 6080)),
            inner: &Packet::Tcp {
                src: "[fc00:2::1]:31337",
                dst: "[fc00:1::1]:80",
                flags: "A",
                class: 0x0,
                options: 0,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "gue/main/21",
        packet: Packet::Wrapped {
            outer: ("100::1", "100::2"),
            gue: Some((1337, 6080)),
            inner: &Packet::Udp {
                src: "192.168.1.1:31337",
                dst: "10.200.1.1:80",
                payload: 15,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "gue/main/35",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.99:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::DropNoBackend),
    },
    Case {
        id: "gue/main/36",
        packet: Packet::Udp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::11]:80",
            payload: 11,
        },
        outcome: Outcome::Refused(Verdict::DropNoBackend),
    },
    Case {
        id: "tpr_ipip/main/1",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            flags: "S",
            class: 0x0,
            options: 8,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 83,
        },
    },
    Case {
        id: "tpr_ipip/main/6",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Tunnelled {
            to: V4,
            protocol: 4,
            length: 75,
        },
    },
    Case {
        id: "tpr_ipip/main/8",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 12,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 87,
        },
    },
    Case {
        id: "tpr_ipip/main/9",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 8,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 83,
        },
    },
    Case {
        id: "tpr_ipip/main/10",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 4,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 79,
        },
    },
    Case {
        id: "tpr_ipip/main/12",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31332",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 8,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 83,
        },
    },
    Case {
        id: "tpr_ipip/main/14",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.4:42",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::NotOffered("a hash of the destination port alone"),
    },
    Case {
        id: "tpr_ipip/main/16",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:1::1]:80",
            flags: "A",
            class: 0x0,
            options: 8,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 41,
            length: 83,
        },
    },
    Case {
        id: "tpr_ipip/main/17",
        packet: Packet::Tcp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.3:80",
            flags: "A",
            class: 0x0,
            options: 12,
        },
        outcome: Outcome::Tunnelled {
            to: V6,
            protocol: 4,
            length: 67,
        },
    },
    Case {
        id: "cidr_vip/main/5",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:2::200]:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "cidr_vip/main/8",
        packet: Packet::Udp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:4::200]:80",
            payload: 15,
        },
        outcome: Outcome::Refused(Verdict::PassNoService),
    },
    Case {
        id: "cidr_vip/main/9",
        packet: Packet::Tcp {
            src: "[fc00:2::1]:31337",
            dst: "[fc00:5::1]:80",
            flags: "A",
            class: 0x0,
            options: 0,
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "xpop_decap/main/7",
        packet: Packet::Wrapped {
            outer: ("100::64", "fc00::1"),
            gue: Some((31337, 9886)),
            inner: &Packet::Tcp {
                src: "[fc00:2307:1::2]:31337",
                dst: "[fc00:1::1]:80",
                flags: "A",
                class: 0x0,
                options: 0,
            },
        },
        outcome: Outcome::Refused(Verdict::PassNotVip),
    },
    Case {
        id: "hc_ipip/main/1",
        packet: Packet::Udp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            payload: 15,
        },
        outcome: Outcome::NotOffered("no program on the way out: probes are ordinary connections"),
    },
    Case {
        id: "hc_gue/main/1",
        packet: Packet::Udp {
            src: "192.168.1.1:31337",
            dst: "10.200.1.1:80",
            payload: 15,
        },
        outcome: Outcome::NotOffered("no program on the way out: probes are ordinary connections"),
    },
];
