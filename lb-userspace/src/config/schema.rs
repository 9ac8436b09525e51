//! Every key of the configuration, as data: the reader takes types, ranges and defaults from here,
//! and the reference page is checked against it.

/// A table of the file.
#[derive(Debug)]
pub struct Section {
    /// As it stands in the file: `[node]`, `[[service]]`.
    pub header: &'static str,
    pub keys: &'static [Key],
    /// Names under which other tables stand in this one, for instance `health` in `[[service]]`.
    pub tables: &'static [&'static str],
}

/// A key of a table.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Fallback,
    /// One sentence on what it means.
    pub help: &'static str,
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Boolean,
    /// Inclusive range.
    Integer(i64, i64),
    /// Inclusive range, in thousandths.
    Decimal(u32, u32),
    /// `500ms`, `5s`, `1m30s`.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `IP:port`.
    Address,
    /// `IP:port`, `IP:first-last` or `IP:*`.
    Endpoint,
    /// `IP:port`, `IP:*` or `IP`, or a host name in the place of the address.
    Server,
    /// List of `IP` and `IP:port`.
    Addresses,
    /// Octets in hexadecimal.
    Hex,
    Path,
    /// `"16384-32767"`.
    PortRange,
    /// `"172.16.0.0/16"`.
    Prefix4,
    /// `"100::/64"`.
    Prefix6,
    /// List of texts.
    Texts,
    /// List of `"200"` and `"200-299"`.
    Statuses,
    /// `"3/5"`: so many out of so many.
    OutOf,
    /// List of classes of failure.
    Classes,
    /// List of gRPC status codes, by number or name.
    GrpcCodes,
    /// `"name"` or `"name: value"`.
    Header,
    /// List of such.
    HeaderRules,
    /// Inline table of texts.
    Headers,
    /// List of inline tables: the steps of a TCP script.
    Steps,
    IpAddress,
    /// List of IP addresses.
    IpAddresses,
    /// A program and its arguments.
    Command,
}

/// What stands for a key that is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be written.
    Required,
    /// This TOML value.
    Value(&'static str),
    /// Taken from elsewhere; in words.
    Derived(&'static str),
    /// Nothing: what it would ask for is not asked for; in words.
    Absent(&'static str),
}

impl Kind {
    /// Name in messages and in the reference page.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Boolean => "`true` or `false`".into(),
            Self::Integer(min, max) => format!("integer, {min} to {max}"),
            Self::Decimal(min, max) => {
                let [min, max] = [min, max].map(|bound| f64::from(bound) / 1e3);
                format!("number, {min} to {max}")
            }
            Self::Duration => "duration".into(),
            Self::Choice(words) => words
                .iter()
                .map(|word| format!("`\"{word}\"`"))
                .collect::<Vec<_>>()
                .join(", "),
            Self::Address => "address with port".into(),
            Self::Endpoint => "address with port, ports (`8000-8099`) or `*`".into(),
            Self::Server => "address or host name, with port or `*`".into(),
            Self::Addresses => "list of IP addresses, with or without port".into(),
            Self::Hex => "octets in hexadecimal".into(),
            Self::Path => "path".into(),
            Self::PortRange => "port range".into(),
            Self::Prefix4 => "IPv4 network".into(),
            Self::Prefix6 => "IPv6 network".into(),
            Self::Texts => "list of texts".into(),
            Self::Statuses => "list of HTTP status codes and ranges".into(),
            Self::OutOf => "two numbers, `\"3/5\"`".into(),
            Self::Classes => "list of classes of failure".into(),
            Self::GrpcCodes => "list of gRPC status codes".into(),
            Self::Header => "header, with or without its value".into(),
            Self::HeaderRules => "list of headers, with or without their values".into(),
            Self::Headers => "table of texts".into(),
            Self::Steps => "list of tables".into(),
            Self::IpAddress => "IP address".into(),
            Self::IpAddresses => "list of IP addresses".into(),
            Self::Command => "list of texts".into(),
        }
    }

    /// What it is, with its article, for messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "text",
            Self::Boolean => "true or false",
            Self::Integer(..) => "a whole number",
            Self::Decimal(..) => "a number",
            Self::Duration => "a duration",
            Self::Address | Self::Endpoint | Self::Server => "an address with a port, as text",
            Self::Addresses => "a list of addresses, as texts",
            Self::Hex => "octets in hexadecimal, as text",
            Self::Path => "a path, as text",
            Self::PortRange => "a range of ports, as text",
            Self::Prefix4 => "an IPv4 network, as text",
            Self::Prefix6 => "an IPv6 network, as text",
            Self::Texts => "a list of texts",
            Self::Statuses => "a list of status codes, as texts",
            Self::OutOf => "two numbers with a slash, as text",
            Self::Classes => "a list of classes of failure, as texts",
            Self::GrpcCodes => "a list of gRPC status codes",
            Self::Header => "a header's name, as text",
            Self::HeaderRules => "a list of headers, as texts",
            Self::Headers => "a table of texts",
            Self::Steps => "a list of tables",
            Self::IpAddress => "an IP address, as text",
            Self::IpAddresses => "a list of IP addresses, as texts",
            Self::Command => "a list of texts",
        }
    }

    /// A value to write, for mends.
    pub fn example(self) -> &'static str {
        match self {
            Self::Text => "\"text\"",
            Self::Boolean => "true",
            Self::Integer(..) => "a whole number without quotes",
            Self::Decimal(..) => "a number without quotes",
            Self::Duration => "\"5s\", \"500ms\" or \"1m30s\"",
            Self::Choice(_) => "one of its words in quotes",
            Self::Address | Self::Endpoint | Self::Server => {
                "\"203.0.113.10:80\" or \"[2001:db8::10]:80\""
            }
            Self::Addresses => "[\"192.0.2.53\"]",
            Self::Hex => "\"0a00000b\"",
            Self::Path => "\"/some/path\"",
            Self::PortRange => "\"16384-32767\"",
            Self::Prefix4 => "\"172.16.0.0/16\"",
            Self::Prefix6 => "\"100::/64\"",
            Self::Texts => "[\"eth0\"]",
            Self::Statuses => "[\"200\"] or [\"200-299\"]",
            Self::OutOf => "\"3/5\"",
            Self::Classes => "[\"refused\"]",
            Self::GrpcCodes => "[\"UNIMPLEMENTED\"] or [12]",
            Self::Header => "\"x-draining\" or \"x-draining: yes\"",
            Self::HeaderRules => "[\"x-ready\"] or [\"x-ready: yes\"]",
            Self::Headers => "{ \"X-Probe\" = \"lb\" }",
            Self::Steps => "[{ send = 'PING\\r\\n' }, { expect = '+PONG' }]",
            Self::IpAddress => "\"192.0.2.1\"",
            Self::IpAddresses => "[\"192.0.2.1\"]",
            Self::Command => "[\"/usr/local/bin/check-web\", \"--fast\"]",
        }
    }
}

impl Section {
    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, default: Fallback, help: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        help,
    }
}

mod health;

pub use health::HEALTH;

use Fallback::{Absent, Derived, Required, Value};

/// Every table, in the order of the reference page.
pub const SECTIONS: [&Section; 5] = [&NODE, &SERVICE, &HEALTH, &BACKEND, &DEFAULTS];

/// The file itself.
pub const ROOT: Section = Section {
    header: "the file",
    keys: &[],
    tables: &["node", "service", "defaults"],
};

/// `[node]`.
pub const NODE: Section = Section {
    header: "[node]",
    tables: &[],
    keys: &[
        key(
            "interfaces",
            Kind::Texts,
            Required,
            "Network interfaces the XDP program is attached to; no other interface is touched.",
        ),
        key(
            "xdp_mode",
            Kind::Choice(&["auto", "native", "generic"]),
            Value("\"auto\""),
            "`auto` asks for native mode and falls back to generic mode with a warning.",
        ),
        key(
            "control_socket",
            Kind::Path,
            Value("\"/run/lb/lb.sock\""),
            "Unix socket on which the agent serves the command line.",
        ),
        key(
            "http",
            Kind::Address,
            Absent("off"),
            "Address of the agent's HTTP endpoints: `/livez`, `/readyz`, `/startupz`, `/healthz`, `/metrics` and the status page.",
        ),
        key(
            "http_token_file",
            Kind::Path,
            Absent("no token is asked for"),
            "File whose first line is the token that `/metrics`, `/`, `/healthz?verbose` and gRPC's `List` want as `Authorization: Bearer TOKEN`. Read at the start and at each reload.",
        ),
        key(
            "grpc",
            Kind::Address,
            Absent("off"),
            "Address at which the agent answers `grpc.health.v1.Health`, for the node and for each service.",
        ),
        key(
            "haproxy_socket",
            Kind::Path,
            Absent("off"),
            "Unix socket that understands runtime commands of HAProxy, for scripts that were written for it.",
        ),
        key(
            "shutdown_grace",
            Kind::Duration,
            Value("\"0s\""),
            "How long the agent goes on after SIGTERM with its readiness failing. A second SIGTERM, or SIGINT, ends it at once.",
        ),
        key(
            "state_dir",
            Kind::Path,
            Value("\"/var/lib/lb\""),
            "Directory in which what must outlive the agent is kept, such as the operator's word.",
        ),
        key(
            "on_exit",
            Kind::Choice(&["keep", "detach"]),
            Value("\"keep\""),
            "`keep`: the data plane goes on without the agent; `detach`: the agent takes it off when it ends.",
        ),
        key(
            "snat_ports",
            Kind::PortRange,
            Value("\"16384-32767\""),
            "Source ports that NAT uses towards backends; must not overlap the host's `ip_local_port_range`.",
        ),
        key(
            "flow_entries",
            Kind::Integer(1024, 10_000_000),
            Value("262144"),
            "Flows that the flow table has room for; 115 bytes of memory each.",
        ),
        key(
            "reset_rate",
            Kind::Integer(0, 10_000_000),
            Value("10000"),
            "RSTs that the data plane sends at the most, for each CPU and second; packets beyond are dropped. 0: none are sent.",
        ),
        key(
            "chain",
            Kind::Path,
            Absent("what is not for a service goes to the host"),
            "Pinned XDP program that gets what is not for a service, for example `/sys/fs/bpf/other`.",
        ),
        key(
            "gue_port",
            Kind::Integer(1, 65535),
            Value("6080"),
            "UDP port that packets of `forwarding = \"gue\"` go to.",
        ),
        key(
            "tunnel_source4",
            Kind::Prefix4,
            Absent("this host's address on the way to the backend"),
            "`ipip` over IPv4: network out of which each flow gets its outer source address, so that routers and NICs spread the flows.",
        ),
        key(
            "tunnel_source6",
            Kind::Prefix6,
            Absent("this host's address on the way to the backend"),
            "`ipip` over IPv6: the same; the last 32 bits vary at the most.",
        ),
        key(
            "answer_ping",
            Kind::Boolean,
            Value("true"),
            "Whether the data plane answers echo requests (`ping`) to the VIPs, whatever the backends' state; `false`: they are left to the host.",
        ),
        key(
            "allow_exec",
            Kind::Boolean,
            Value("false"),
            "Whether `probe = \"exec\"`, `fence`, `on_announce` and `on_withdraw` may run commands on this host, with the agent's rights.",
        ),
        key(
            "dns_servers",
            Kind::Addresses,
            Absent("as /etc/resolv.conf says"),
            "DNS servers that are asked for the host names of backends, at port 53 unless written.",
        ),
        key(
            "dns_max_ttl",
            Kind::Duration,
            Value("\"60s\""),
            "Longest time between two questions for one host name, whatever its records' TTL; at least `\"1s\"`.",
        ),
        key(
            "announce_table",
            Kind::Integer(1, 4_294_967_295),
            Value("108"),
            "Routing table for the routes of `announce = \"route\"`; 254 is the main one, see [Announcing the VIP](#announcing-the-vip).",
        ),
        key(
            "certificate_warning",
            Kind::Duration,
            Value("\"14d\""),
            "`lb status` warns of certificates that probes are shown and that expire sooner than this; `\"0s\"`: of those that have expired.",
        ),
        key(
            "probes_in_flight",
            Kind::Integer(1, 16384),
            Derived("half of the descriptors that the agent may have, 16384 at the most"),
            "Probes in flight at a time at the most; what is due beyond that starts late, the longest due first.",
        ),
        key(
            "probes_per_second",
            Kind::Integer(1, 1_000_000),
            Absent("no limit"),
            "Probes that are started in a second at the most; what is due beyond that starts late, the longest due first.",
        ),
    ],
};

/// `[[service]]`.
pub const SERVICE: Section = Section {
    header: "[[service]]",
    tables: &["health", "backend"],
    keys: &[
        key(
            "name",
            Kind::Text,
            Required,
            "Name of the service, unique in the file: letters, digits, `.`, `_`, `-`.",
        ),
        key(
            "address",
            Kind::Endpoint,
            Required,
            "The VIP and port clients connect to; IPv6 in brackets. `203.0.113.10:8000-8099`: a range of ports; `203.0.113.10:*`: all that no other service has.",
        ),
        key(
            "protocol",
            Kind::Choice(&["tcp", "udp"]),
            Value("\"tcp\""),
            "Transport protocol.",
        ),
        key(
            "forwarding",
            Kind::Choice(&["nat", "dsr", "ipip", "gue"]),
            Value("\"nat\""),
            "`nat` rewrites both ends; `dsr` rewrites only the destination MAC, so backends must own the VIP, share a link with this host and listen on the service's port; `ipip` and `gue` put the packet into another, IP-in-IP or Generic UDP Encapsulation, so backends must own the VIP, take the outer header off and listen on the service's port, but may be anywhere.",
        ),
        key(
            "affinity",
            Kind::Choice(&["flow", "client", "quic"]),
            Value("\"flow\""),
            "`flow` hashes the 5-tuple; `client` hashes the client's address, so that a client stays on one backend; `quic` (UDP) is `flow`, but a QUIC packet whose connection ID names a backend goes to that one.",
        ),
        key(
            "mode",
            Kind::Choice(&["balance", "active_passive"]),
            Value("\"balance\""),
            "`balance`: the backends share the traffic; `active_passive`: one has it all and the others stand by, see [One active backend](#one-active-backend).",
        ),
        key(
            "promote_after",
            Kind::Duration,
            Value("\"10s\""),
            "`active_passive`: how long the active backend must have been unhealthy before another becomes active.",
        ),
        key(
            "failback",
            Kind::Boolean,
            Value("false"),
            "`active_passive`: whether a backend that comes earlier in the order becomes active again once it has been healthy for `promote_after`.",
        ),
        key(
            "fence",
            Kind::Command,
            Absent("nothing is run"),
            "`active_passive`: program by its absolute path, and its arguments; it must succeed before another backend becomes active. Needs `allow_exec` in `[node]`.",
        ),
        key(
            "fence_timeout",
            Kind::Duration,
            Value("\"30s\""),
            "`active_passive`: how long `fence` may take; then it is killed and has failed.",
        ),
        key(
            "quic_server_id_length",
            Kind::Integer(1, 8),
            Value("4"),
            "`affinity = \"quic\"`: octets of the server ID in connection IDs.",
        ),
        key(
            "on_death",
            Kind::Choice(&["reset", "rehash"]),
            Derived("`\"reset\"` for `nat`, `\"rehash\"` otherwise"),
            "What becomes of a TCP flow whose backend is out, at its next packet. `reset`: the client gets a RST; `rehash`: the packet goes to the backend that now owns the flow's slot, which resets a flow it does not know. `nat` always resets.",
        ),
        key(
            "syn_rescue",
            Kind::Boolean,
            Derived("`true` for TCP by `nat` with `affinity = \"flow\"`, `false` otherwise"),
            "Whether a repeated SYN goes to another backend than the one that has not answered the first, so that a dead backend costs new connections a second until its probes notice. By `nat`, a backend's refusal (RST) of a SYN is kept from the client once, so that it asks again and finds another backend. Outside of `nat` every flow is recorded for it.",
        ),
        key(
            "panic_threshold",
            Kind::Integer(0, 100),
            Value("50"),
            "Percent of enabled weight that must be healthy; below it health is ignored for this service. 0: never.",
        ),
        key(
            "panic_min_healthy",
            Kind::Integer(0, 65535),
            Value("0"),
            "Backends that must be healthy; fewer are panic, too. 0: their number does not matter.",
        ),
        key(
            "panic_action",
            Kind::Choice(&["all", "fail", "fallback"]),
            Derived("`\"fallback\"` if a backend has `fallback = true`, else `\"all\"`"),
            "Who gets new flows in panic. `all`: every backend that is not administratively out; `fail`: none, so that clients go elsewhere; `fallback`: the backends with `fallback = true`, or all if none of these is healthy.",
        ),
        key(
            "panic_exclude_refused",
            Kind::Boolean,
            Value("true"),
            "Whether a backend that refuses connections on the port that packets go to gets none in panic either, as long as there is one that does not: a closed port is no fault of the probes.",
        ),
        key(
            "drain_deadline",
            Kind::Duration,
            Value("\"30s\""),
            "How long a draining backend keeps its established flows.",
        ),
        key(
            "passive",
            Kind::Choice(&["probe", "off"]),
            Derived("`\"probe\"` for TCP with probes, `\"off\"` otherwise"),
            "What the packet path sees of connections. `probe`: a backend that refuses new connections or leaves them without an answer, while others do not, is probed at once, and ejected for 30 s or more if these probes fail too; `off`: nothing.",
        ),
        key(
            "passive_http",
            Kind::Choice(&["off", "report", "eject"]),
            Value("\"off\""),
            "TCP by `nat`, plain HTTP/1: answers with a status of 500 and above. Also requests that are not answered at all, which make it probe the backend at once. `report`: a backend that gives far more errors than the others is shown; `eject`: it is drained for 30 s or more, whatever its probes say.",
        ),
        key(
            "slow_start",
            Kind::Duration,
            Value("\"0s\""),
            "Time over which a readmitted backend gets its full share of new flows; `0s`: at once. See [Slow start](#slow-start).",
        ),
        key(
            "slow_start_aggression",
            Kind::Decimal(100, 10_000),
            Value("1.0"),
            "With `slow_start`: the share is (time / `slow_start`) ^ (1 / this). 1: it grows evenly; more: fast at first; less: slowly at first.",
        ),
        key(
            "slow_start_min_percent",
            Kind::Integer(5, 100),
            Value("10"),
            "With `slow_start`: percent of its full share that a readmitted backend begins with.",
        ),
        key(
            "max_ejection_percent",
            Kind::Integer(0, 100),
            Value("100"),
            "Percent of the enabled and decided backends that may be out for their health at a time; one always may. See [Limits of ejections](#limits-of-ejections).",
        ),
        key(
            "passive_max_ejection_percent",
            Kind::Integer(0, 100),
            Value("50"),
            "Percent of the backends that their packets may eject (`passive`, `passive_http`) at a time; of several backends one always may.",
        ),
        key(
            "overprovisioning",
            Kind::Integer(100, 10_000),
            Value("140"),
            "Percent of the load that a wholly healthy tier counts for: with 140 a tier carries everything alone as long as 72 % of its weight are healthy. See [Tiers](#tiers).",
        ),
        key(
            "failback_after",
            Kind::Duration,
            Value("\"0s\""),
            "How long a higher tier stays in service, beside the lower ones, when these could carry the load alone again.",
        ),
        key(
            "fail_open_after",
            Kind::Duration,
            Derived("the longest `interval` + `timeout` of its probes"),
            "How long nobody in the service has been healthy before backends without a verdict get traffic.",
        ),
        key(
            "announce",
            Kind::Choice(&["off", "route"]),
            Value("\"off\""),
            "`route`: a route to the VIP stands in `announce_table` while the service has quorum, for a routing daemon to announce, see [Announcing the VIP](#announcing-the-vip); `off`: this service says nothing of its VIP.",
        ),
        key(
            "quorum",
            Kind::Integer(1, 100),
            Value("1"),
            "`announce`: percent of the weight that must be able to serve; below it the VIP is withdrawn. It is in any case if no backend can serve.",
        ),
        key(
            "quorum_hysteresis",
            Kind::Integer(0, 99),
            Value("0"),
            "`announce`: percent of the weight beyond `quorum` that must be able to serve for the VIP to be announced, at first and again.",
        ),
        key(
            "announce_after",
            Kind::Duration,
            Value("\"0s\""),
            "`announce`: how long that must have been so without interruption.",
        ),
        key(
            "on_announce",
            Kind::Command,
            Absent("nothing is run"),
            "`announce`: program by its absolute path, and its arguments, that is run when the VIP's route stands, see [Commands](#commands-at-a-change). Needs `allow_exec` in `[node]`.",
        ),
        key(
            "on_withdraw",
            Kind::Command,
            Absent("nothing is run"),
            "`announce`: the same when the route is gone.",
        ),
    ],
};

/// `[[service.backend]]`.
pub const BACKEND: Section = Section {
    header: "[[service.backend]]",
    tables: &[],
    keys: &[
        key(
            "name",
            Kind::Text,
            Derived("`address`"),
            "Name of the backend, unique in its service: letters, digits, `.`, `_`, `-`.",
        ),
        key(
            "address",
            Kind::Server,
            Required,
            "The backend's address and port; of the same family as the VIP unless packets go through a tunnel. Without a port or with `*`: the port that the client sends to. A host name stands for a backend at each of its addresses, see [Host names](#host-names).",
        ),
        key(
            "probe_address",
            Kind::IpAddress,
            Derived("that of `address`"),
            "Address of the backend that its probes go to, for example in a network for management; not with `via = \"vip\"` and host names.",
        ),
        key(
            "probe_port",
            Kind::Integer(1, 65535),
            Derived("`port` of `[service.health]`"),
            "Port of this backend that is probed, where each has one of its own; not of a service with several probes.",
        ),
        key(
            "quic_server_id",
            Kind::Hex,
            Derived("the last octets of its IP address, behind zeros if that is shorter"),
            "`affinity = \"quic\"`: the server ID in the connection IDs that it chooses, unique in its service.",
        ),
        key(
            "weight",
            Kind::Integer(0, 65535),
            Value("100"),
            "Its share of new flows relative to the others; 0: no new flows.",
        ),
        key(
            "tier",
            Kind::Integer(0, 255),
            Value("0"),
            "0 first; a higher tier only takes traffic when the lower ones cannot.",
        ),
        key(
            "fallback",
            Kind::Boolean,
            Value("false"),
            "Whether it only takes traffic in panic, for example to say sorry; it counts in no percentage and in no tier.",
        ),
    ],
};

/// `[defaults]`.
pub const DEFAULTS: Section = Section {
    header: "[defaults]",
    keys: &[],
    tables: &["health"],
};

/// Words of other balancers and near misses that are too far apart for spelling to find:
/// (what is written, what is meant).
pub const ALIASES: &[(&str, &str)] = &[
    ("vip", "address"),
    ("ip", "address"),
    ("listen", "address"),
    ("server", "backend"),
    ("servers", "backend"),
    ("target", "backend"),
    ("upstream", "backend"),
    ("rise", "healthy_threshold"),
    ("fall", "unhealthy_threshold"),
    ("inter", "interval"),
    ("window", "unhealthy_window"),
    ("immediate", "immediate_on"),
    ("disable_on_404", "drain_status"),
    ("base_ejection_time", "hold_down"),
    ("overprovisioning_factor", "overprovisioning"),
    ("min_weight_percent", "slow_start_min_percent"),
    ("init_state", "assume"),
    ("max_ejection_time", "hold_down_max"),
    ("fastinter", "fast_interval"),
    ("downinter", "down_interval"),
    ("uri", "path"),
    ("url", "path"),
    ("type", "probe"),
    ("check", "probe"),
    ("status", "expect_status"),
    ("expected_codes", "expect_status"),
    ("body", "expect_body"),
    ("hostname", "host"),
    ("server_name", "sni"),
    ("mode", "xdp_mode"),
    ("stats_socket", "haproxy_socket"),
    ("always_log_health_check_failures", "always_log_failures"),
    ("interface", "interfaces"),
    ("nics", "interfaces"),
    ("socket", "control_socket"),
    ("proto", "protocol"),
    ("priority", "tier"),
    ("health_check", "health"),
];
