//! The PROXY protocol's header on the connections of probes, for servers that demand one.
//!
//! <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>, section 2. A probe is relayed for
//! nobody. Version 2 says so: its command LOCAL is made for health checks and has no addresses
//! (2.2). In version 1 that would be UNKNOWN (2.1), which some servers refuse; as HAProxy's checks do,
//! the probe names its own ends, which are those of the connection anyway.

use std::net::SocketAddr;

use crate::model::ProxyProtocol;

/// Version 2's signature, version and command LOCAL, family and protocol UNSPEC, no addresses.
const LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// The header of a connection from `source` to `destination`.
pub fn header(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let ports = (source.port(), destination.port());
            format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        ProxyProtocol::V2 => LOCAL.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_names_the_ends_of_the_connection() {
        let header = |from: &str, to: &str| {
            let bytes = header(
                ProxyProtocol::V1,
                from.parse().unwrap(),
                to.parse().unwrap(),
            );
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(
            header("10.0.0.1:40000", "10.0.0.11:80"),
            "PROXY TCP4 10.0.0.1 10.0.0.11 40000 80\r\n"
        );
        assert_eq!(
            header("[2001:db8::1]:40000", "[2001:db8::11]:80"),
            "PROXY TCP6 2001:db8::1 2001:db8::11 40000 80\r\n"
        );
    }

    #[test]
    fn version_2_says_that_it_relays_for_nobody() {
        let at = "10.0.0.1:1".parse().unwrap();
        let bytes = header(ProxyProtocol::V2, at, at);
        let signature = [13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10];
        assert_eq!(bytes[..12], signature);
        assert_eq!(bytes[12..], [0x20, 0, 0, 0]);
    }
}
