//! Words of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Parser, Subcommand};
use lb_common::abi::GUE_PORT;
use lb_common::capture::MAX_KEPT;

use super::top::Sort;
use crate::api::capture::DEFAULT_SNAPLEN;
use crate::api::{BackendName, DEFAULT_SOCKET};
use crate::health::SetHealth;
use crate::model::{ConnectionId, Protocol, XdpMode};

const EXAMPLES: &str = "\
Examples:
  lb check /etc/lb/lb.toml             is the configuration valid, and how fast will it eject?
  lb doctor --config /etc/lb/lb.toml   is this host ready?
  lb run --config /etc/lb/lb.toml      the agent, in the foreground
  lb status                            what is routed where, and why
  lb drain web/web-1 --deadline 2m     take a backend out gently
  lb events --follow                   watch what changes

Exit codes: 0 done, 2 wrong usage or config, 3 no agent, 1 anything else.";

/// A layer-4 load balancer in XDP, with health checks.
#[derive(Debug, Parser)]
#[command(name = "lb", version, arg_required_else_help = true, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// The agent's control socket
    #[arg(long, global = true, env = "LB_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground: attach, probe, serve the control socket
    #[command(after_help = "\
The control socket is that of the configuration (node.control_socket). SIGHUP reloads the
configuration, SIGTERM ends the agent. LB_LOG sets what is logged to stderr (error, warn, info,
debug, or a filter such as lb_userspace::probe=debug).

Example: lb run --config /etc/lb/lb.toml")]
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Replace another XDP program that is on an interface
        #[arg(long)]
        replace: bool,
        /// Change over from pinned maps of another layout, at the price of nat's established flows
        #[arg(long)]
        migrate: bool,
    },
    /// Validate a configuration; say how fast it ejects and what it costs
    #[command(after_help = "\
Exit codes: 0 valid, 1 valid but with warnings and --strict, 2 invalid.

Example: lb check --strict /etc/lb/lb.toml")]
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take warnings for errors
        #[arg(long)]
        strict: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is routed where, and why
    #[command(after_help = "\
Examples:
  lb status
  lb status web
  lb status --json | jq '.services[].backends[] | select(.routing == \"out\")'")]
    Status {
        /// Only this service
        service: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Watch services and backends: what happens each second
    #[command(after_help = "\
Keys: q ends, p pauses, s or the left and right arrows sort by another column, the other arrows
scroll. Where standard output is no terminal, it prints one frame after a second and ends.

Examples:
  lb top
  lb top web --sort packets
  lb top --once")]
    Top {
        /// Only this service
        service: Option<String>,
        /// Print one frame and end
        #[arg(long)]
        once: bool,
        /// What to sort by at first
        #[arg(long, value_enum, default_value_t)]
        sort: Sort,
    },
    /// Give a backend no new flows; established ones go on until the deadline
    #[command(after_help = "\
Kept over restarts, until `lb enable`. After the deadline what is left is reset.

Example: lb drain web/web-1 --deadline 2m")]
    Drain {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
        /// How long established flows may go on; default: the service's drain_deadline
        #[arg(long, value_name = "DURATION", value_parser = crate::config::duration::parse)]
        deadline: Option<Duration>,
    },
    /// Take back a drain or a disable
    Enable {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
    },
    /// Take a backend out at once; its flows are reset
    #[command(after_help = "\
Kept over restarts, until `lb enable`. To let flows end first, use `lb drain`.

Example: lb disable web/web-1")]
    Disable {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
    },
    /// Make a backend the active one of its service (mode = "active_passive")
    #[command(after_help = "\
The present one is cut off at once and its flows are reset; with `fence` that must succeed first.

Example: lb promote db/db-2")]
    Promote {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
    },
    /// Set a backend's weight; 0: no new flows
    #[command(after_help = "\
Kept over restarts, until it is set back to the configured one.

Example: lb weight web/web-1 50")]
    Weight {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
        /// Share of new flows, relative to the other backends': 0 to 65535
        #[arg(allow_negative_numbers = true,
            value_parser = clap::value_parser!(u32).range(..=i64::from(u16::MAX)))]
        weight: u32,
    },
    /// Show what changed, when, by whom, and on what evidence
    #[command(after_help = "\
Examples:
  lb events --limit 20
  lb events --follow
  lb events --follow --json | jq 'select(.kind == \"ejected\")'")]
    Events {
        /// Go on with those that come, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// Only those after the event of this number
        #[arg(long, value_name = "ID")]
        since: Option<u64>,
        /// At most this many of the past; 0: all that are remembered
        #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Print JSON, an event a line
        #[arg(long)]
        json: bool,
    },
    /// Probe a backend once, now, step by step; changes nothing
    #[command(after_help = "\
Of several probes all are run, unless one is picked by --probe. With --config it needs no agent and
probes from this process. Exit code 0 whatever the outcome; with --strict 1 unless it is a success.

Examples:
  lb probe web/web-1
  lb probe web/web-1 --probe database
  lb probe --config lb.toml web/web-1 --json")]
    Probe {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
        /// Only the probe of this name
        #[arg(long, value_name = "NAME")]
        probe: Option<String>,
        /// Take the backend and its probes from this file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Exit with 1 unless all probes that count succeed
        #[arg(long)]
        strict: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Pause a backend's probes, resume them, or set what they say of it
    #[command(subcommand)]
    Probes(Probes),
    /// Replay recorded probe outcomes; print what would have changed, and when
    #[command(after_help = "\
Needs no agent and sends nothing: outcomes and their times come from TRACE, a line of JSON each:
  {\"at_ms\": 1500, \"backend\": \"web/web-1\", \"outcome\": \"failure\", \"detail\": \"HTTP 503\"}
The outcome is success, failure (an answer, unless the detail says refused, reset or unreachable)
or timeout. What is printed is JSON, a change a line.

Exit codes: 0 replayed, 2 a configuration or trace that cannot be used.

Example: lb simulate --config lb.toml --trace outage.jsonl")]
    Simulate {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The recorded outcomes, in the order of their times
        #[arg(long, value_name = "TRACE")]
        trace: PathBuf,
    },
    /// Say which backend a flow goes to, and why
    #[command(after_help = "\
Answers for a new connection (its SYN) and for an established one, from what the data plane holds
now. Sends nothing, changes nothing.

Examples:
  lb explain 198.51.100.7:40000 203.0.113.10:80
  lb explain 198.51.100.7:5353 203.0.113.10:53 --protocol udp --json
  lb explain 198.51.100.7:4433 203.0.113.10:443 --protocol udp --connection-id 400a00000b11223344")]
    Explain {
        /// The client's address and port
        #[arg(value_name = "SRC:PORT", value_parser = parse_at)]
        src: SocketAddr,
        /// The service's address and port
        #[arg(value_name = "VIP:PORT", value_parser = parse_at)]
        dst: SocketAddr,
        /// Transport protocol
        #[arg(long, default_value = "tcp", value_parser = protocols())]
        protocol: Protocol,
        /// QUIC: the connection ID that the packet carries, behind a short header or in a Handshake
        /// packet
        #[arg(long, value_name = "HEX")]
        connection_id: Option<ConnectionId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show packets as they come in, with what became of each; or write them for Wireshark
    #[command(after_help = "\
Both directions of a service by nat, requests by dsr: its replies do not pass here. Packets that
are refused before their service is known (fragments, other ports) are captured with --all only.
Ends with Ctrl-C. One capture at a time; what the socket's group may do, it may do to any packet.

Exit codes: 0 ended as told, 1 ended by itself, 2 no such service, 3 no agent.

Examples:
  lb capture web
  lb capture --all --count 20
  lb capture web -w web.pcapng
  lb capture web -w - | wireshark -k -i -")]
    #[command(group(ArgGroup::new("what").required(true).args(["service", "all"])))]
    Capture {
        /// Packets of this service
        service: Option<String>,
        /// Everything that is for a VIP
        #[arg(long)]
        all: bool,
        /// Write a pcapng file; - is standard output
        #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
        write: Option<PathBuf>,
        /// End after so many packets
        #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Keep at most so many bytes of each packet
        #[arg(long, short, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN,
            value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_KEPT)))]
        snaplen: u16,
        /// Print JSON, a packet a line
        #[arg(long)]
        json: bool,
    },
    /// Have the agent read its configuration again; a bad one is refused whole
    Reload,
    /// Take the program off the interfaces, remove what is pinned and end the agent
    #[command(after_help = "\
Traffic for the VIPs is no longer forwarded afterwards. Works without an agent too.")]
    Detach,
    /// On a backend: take the outer headers of `ipip` and `gue` off, without a tunnel device
    #[command(after_help = "\
Runs in the foreground on the backend, needs no configuration and no agent, and leaves nothing behind.
It looks at packets to the interface's own addresses only; the VIP must be on a local interface, see
docs/backends.md.

Example: lb decap --interface eth0")]
    Decap {
        /// Network interface that the packets come in by
        #[arg(long, value_name = "IF")]
        interface: String,
        /// native, generic, or auto: native, else generic with a warning
        #[arg(long, default_value = "auto", value_parser = xdp_modes())]
        xdp_mode: XdpMode,
        /// UDP port of GUE; the balancer's node.gue_port
        #[arg(long, value_name = "N", default_value_t = GUE_PORT,
              value_parser = clap::value_parser!(u16).range(1..))]
        gue_port: u16,
        /// Print JSON, an object when it has begun and one with the counters at the end
        #[arg(long)]
        json: bool,
    },
    /// Tell what on this host keeps lb from working or makes it slow, with the mend
    #[command(after_help = "\
Exit codes: 0 nothing keeps lb from working (there may be warnings), 1 something does.

Example: lb doctor --config /etc/lb/lb.toml")]
    Doctor {
        /// Check against this configuration; without it, every interface that is up
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `lb probes`.
#[derive(Debug, Subcommand)]
pub enum Probes {
    /// Send no probes to a backend; its health stays what it is
    #[command(after_help = "\
Kept over restarts, until `lb probes resume`. A backend that dies meanwhile keeps its traffic, unless
the packets of its flows give it away.

Example: lb probes pause web/web-1")]
    Pause {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
    },
    /// Probe it again, beginning now
    Resume {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
    },
    /// Set what a backend's probes say of it, until they say otherwise
    #[command(after_help = "\
From then on its probes count as ever, by their thresholds; while they are paused it stays so.

Example: lb probes set web/web-1 unhealthy")]
    Set {
        /// Which backend
        #[arg(value_name = "SERVICE/BACKEND")]
        backend: BackendName,
        /// `leaving`: healthy, and asking to be drained
        #[arg(value_name = "HEALTH", value_parser = healths())]
        health: SetHealth,
    },
}

fn healths() -> impl TypedValueParser<Value = SetHealth> {
    PossibleValuesParser::new(SetHealth::ALL.map(SetHealth::name)).map(|name| match name.as_str() {
        "leaving" => SetHealth::Leaving,
        "unhealthy" => SetHealth::Unhealthy,
        _ => SetHealth::Healthy,
    })
}

fn parse_at(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not ADDRESS:PORT, for example 198.51.100.7:40000 or [2001:db8::7]:40000"
        )
    })
}

fn protocols() -> impl TypedValueParser<Value = Protocol> {
    let names = [Protocol::Tcp, Protocol::Udp].map(Protocol::name);
    PossibleValuesParser::new(names).map(|name| match name.as_str() {
        "udp" => Protocol::Udp,
        _ => Protocol::Tcp,
    })
}

fn xdp_modes() -> impl TypedValueParser<Value = XdpMode> {
    PossibleValuesParser::new(["auto", "native", "generic"]).map(|name| match name.as_str() {
        "native" => XdpMode::Native,
        "generic" => XdpMode::Generic,
        _ => XdpMode::Auto,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Args::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
