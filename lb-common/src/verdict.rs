//! What can happen to a packet. The number of a verdict is its counter's index, its name the label
//! in metrics, status and documentation.

macro_rules! verdicts {
    ($($(#[doc = $help:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet was passed, answered or dropped. Forwarded packets are counted by backend.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Verdict { $($(#[doc = $help])+ $name,)+ }

        impl Verdict {
            /// Every verdict, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Name in metrics, status and documentation.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// The verdict of this number.
            #[inline(always)]
            pub const fn from_number(number: u8) -> Option<Self> {
                $(if number == Self::$name as u8 { return Some(Self::$name); })+
                None
            }

            /// One sentence for the operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($help),+)),+ }
            }
        }
    };
}

verdicts! {
    /// Not for an address of any service: left to the host.
    PassNotVip = "pass_not_vip",
    /// Neither IPv4 nor IPv6 (ARP, for example), or an IP header cut short: left to the host.
    PassNotIp = "pass_not_ip",
    /// For a VIP, but neither TCP, UDP nor ICMP that is ours to handle: left to the host.
    PassOtherProtocol = "pass_other_protocol",
    /// For a VIP, but no service has this port and protocol: left to the host.
    PassNoService = "pass_no_service",
    /// Reply of a backend sent on to its client.
    NatReply = "nat_reply",
    /// ICMP error about a flow, sent on to the end of the flow that it is for.
    IcmpError = "icmp_error",
    /// Echo request to a VIP, answered.
    EchoReply = "echo_reply",
    /// Repeated SYN, sent to another backend than the one that did not answer; counted there too.
    Rescued = "syn_rescued",
    /// Packet of a flow whose backend is out: answered with a RST.
    ResetBackendOut = "reset_backend_out",
    /// Packet of a backend that is out, for a NAT flow whose client got its RST: answered with one.
    ResetToBackend = "reset_to_backend",
    /// TCP packet without a SYN that belongs to no known NAT flow: answered with a RST.
    ResetNoFlow = "reset_no_flow",
    /// Too long for the way to the backend once in its outer header: the client is told (ICMP).
    TooBig = "too_big",
    /// For a VIP, but its length or its TCP or UDP header is cut short or impossible.
    DropMalformed = "drop_malformed",
    /// Fragment for a VIP whose flow is not known: no first fragment of its datagram came before it.
    DropFragment = "drop_fragment",
    /// For a VIP, with more IPv6 extension headers than are followed.
    DropExtensionHeaders = "drop_extension_headers",
    /// The service has no backend that takes the flow.
    DropNoBackend = "drop_no_backend",
    /// Packet of a UDP flow, or a RST, whose backend is out.
    DropBackendOut = "drop_backend_out",
    /// It would be answered with a RST, but `reset_rate` of them were sent already.
    DropResetRate = "drop_reset_rate",
    /// A RST that belongs to no known NAT flow.
    DropNoFlow = "drop_no_flow",
    /// ICMP error for a `nat` service about a flow that is not known.
    DropIcmpNoFlow = "drop_icmp_no_flow",
    /// RST of a backend to a SYN, kept from the client, whose next SYN goes to another backend.
    DropRefusal = "drop_refusal",
    /// The next hop of the backend is not resolved.
    DropNoNeighbor = "drop_no_neighbor",
    /// No free NAT source port towards the backend.
    DropNoPort = "drop_no_port",
    /// The flow table took no new entry.
    DropFlowTable = "drop_flow_table",
    /// Too long for the way to the backend once in its outer header, and may be fragmented (IPv4).
    DropTooBig = "drop_too_big",
    /// The driver leaves no room in front of the packet for the outer header.
    DropNoHeadroom = "drop_no_headroom",
    /// Time to live or hop limit used up: a loop, or a path too long.
    DropTtl = "drop_ttl",
}

/// Counters kept for each service: a power of two above the number of verdicts.
pub const VERDICT_STRIDE: u32 = 32;

const _: () = assert!(Verdict::ALL.len() <= VERDICT_STRIDE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_order_of_the_list() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
            assert_eq!(Verdict::from_number(index as u8), Some(*verdict));
            assert!(verdict.help().trim().ends_with('.'));
        }
        assert_eq!(Verdict::from_number(Verdict::ALL.len() as u8), None);
    }
}
