//! When a NAT flow is over. The XDP program asks before it takes a port again, the agent before it
//! frees one.

use crate::abi::tcp_seen;

/// Seconds without a packet after which a UDP flow is over. RFC 4787, REQ-5 asks for two minutes
/// at the least.
pub const UDP_IDLE: u32 = 120;
/// Seconds after which a TCP flow is over whose handshake was never completed, by the backend or by
/// the client: what Linux's connection tracking grants (`nf_conntrack_tcp_timeout_syn_recv`).
pub const TCP_HANDSHAKE: u32 = 60;
/// Seconds without a packet after which a TCP flow is over that one end has closed. RFC 5382, REQ-5
/// asks for four minutes at the least.
pub const TCP_HALF_CLOSED: u32 = 240;
/// Seconds that a closed TCP flow is kept for late packets.
pub const TCP_CLOSED: u32 = 10;
/// Seconds without a packet after which an established TCP flow is over. RFC 5382, REQ-5 asks for
/// two hours and four minutes at the least.
pub const TCP_IDLE: u32 = 7_500;

/// Whether both ends have closed a TCP flow, or one has reset it.
#[inline(always)]
pub const fn is_closed(forward: u8, reply: u8) -> bool {
    (forward | reply) & tcp_seen::RST != 0
        || (forward & tcp_seen::CLIENT_FIN != 0 && reply & tcp_seen::BACKEND_FIN != 0)
}

/// Seconds a flow may be idle before it is over, from what was seen in both directions.
#[inline(always)]
pub const fn idle_limit(is_tcp: bool, forward: u8, reply: u8) -> u32 {
    if !is_tcp {
        UDP_IDLE
    } else if is_closed(forward, reply) {
        TCP_CLOSED
    } else if reply & tcp_seen::REPLY == 0 || forward & tcp_seen::CLIENT_ACK == 0 {
        TCP_HANDSHAKE
    } else if forward & tcp_seen::CLIENT_FIN != 0 || reply & tcp_seen::BACKEND_FIN != 0 {
        TCP_HALF_CLOSED
    } else {
        TCP_IDLE
    }
}

/// Whether a SYN of the same flow repeats one that its backend has not answered, as far as can be
/// seen: by NAT no answer has come through here, otherwise the client has not gone on.
#[inline(always)]
pub const fn is_unanswered(forward: u8, reply: u8) -> bool {
    forward & (tcp_seen::CLIENT_ACK | tcp_seen::CLIENT_FIN | tcp_seen::RST) == 0 && reply == 0
}

/// How often a flow is known to have been rescued, at the most.
pub const MOST_RESCUES: u32 = 3;

/// How often a flow was rescued, from [`Flow::forward`](crate::abi::Flow::forward).
#[inline(always)]
pub const fn rescues(forward: u8) -> u32 {
    ((forward & tcp_seen::RESCUES) >> tcp_seen::RESCUES_SHIFT) as u32
}

/// [`Flow::forward`](crate::abi::Flow::forward) of a flow that was rescued so often and of which
/// nothing else is known.
#[inline(always)]
pub const fn rescued(times: u32) -> u8 {
    let times = if times < MOST_RESCUES {
        times
    } else {
        MOST_RESCUES
    };
    (times as u8) << tcp_seen::RESCUES_SHIFT
}

/// Seconds that a recorded DSR flow may be idle before its record goes. Only the client's side is
/// seen, so after its FIN or RST the flow is kept as long as a silent UDP flow.
#[inline(always)]
pub const fn tracked_limit(tcp: u8) -> u32 {
    if tcp & tcp_seen::CLIENT_ACK == 0 {
        TCP_HANDSHAKE
    } else if tcp & (tcp_seen::CLIENT_FIN | tcp_seen::RST) != 0 {
        UDP_IDLE
    } else {
        TCP_IDLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::tcp_seen::{BACKEND_FIN, CLIENT_ACK, CLIENT_FIN, REPLY, RST};

    #[test]
    fn a_flow_is_closed_by_both_fins_or_any_reset() {
        assert!(!is_closed(0, REPLY));
        assert!(!is_closed(CLIENT_FIN, REPLY));
        assert!(!is_closed(0, REPLY | BACKEND_FIN));
        assert!(is_closed(CLIENT_FIN, REPLY | BACKEND_FIN));
        assert!(is_closed(RST, 0) && is_closed(0, RST));
    }

    #[test]
    fn rescues_are_counted_beside_what_was_seen() {
        for times in 0..6 {
            let forward = rescued(times);
            assert_eq!(rescues(forward), times.min(3));
            assert_eq!(
                rescues(forward | CLIENT_ACK | CLIENT_FIN | RST | REPLY),
                times.min(3)
            );
            assert!(is_unanswered(forward, 0));
            assert!(!is_unanswered(forward | CLIENT_ACK, 0));
            assert!(!is_unanswered(forward, REPLY));
        }
    }

    #[test]
    fn a_recorded_flow_lasts_as_its_client_shows() {
        assert_eq!(tracked_limit(rescued(1)), TCP_HANDSHAKE);
        assert_eq!(tracked_limit(CLIENT_ACK), TCP_IDLE);
        assert_eq!(tracked_limit(CLIENT_ACK | CLIENT_FIN), UDP_IDLE);
    }

    #[test]
    fn limits_follow_the_state() {
        assert_eq!(idle_limit(false, 0, 0), UDP_IDLE);
        assert_eq!(idle_limit(true, 0, 0), TCP_HANDSHAKE);
        assert_eq!(idle_limit(true, 0, REPLY), TCP_HANDSHAKE);
        assert_eq!(idle_limit(true, CLIENT_ACK, 0), TCP_HANDSHAKE);
        assert_eq!(idle_limit(true, CLIENT_ACK, REPLY), TCP_IDLE);
        assert_eq!(
            idle_limit(true, CLIENT_ACK | CLIENT_FIN, REPLY),
            TCP_HALF_CLOSED
        );
        assert_eq!(
            idle_limit(true, CLIENT_ACK, REPLY | BACKEND_FIN),
            TCP_HALF_CLOSED
        );
        assert_eq!(idle_limit(true, RST, REPLY), TCP_CLOSED);
    }
}
