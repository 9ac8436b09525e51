//! QUIC connection IDs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Octets of a connection ID at the most: RFC 9000, section 17.2.
const LONGEST: usize = 20;
/// Config rotation of IDs that name no server: draft-ietf-quic-load-balancers-21, section 3.2.
const UNROUTABLE: u8 = 7;

/// A connection ID as a packet carries it, written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConnectionId {
    octets: [u8; LONGEST],
    length: u8,
}

impl ConnectionId {
    /// `None` for no octets, or more than 20.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let mut id = Self {
            octets: [0; LONGEST],
            length: u8::try_from(octets.len())
                .ok()
                .filter(|length| *length > 0)?,
        };
        id.octets.get_mut(..octets.len())?.copy_from_slice(octets);
        Some(id)
    }

    fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    /// The server ID of so many octets (1 to 8) in it, as a number, if it has one.
    pub fn server_id(&self, length: u8) -> Option<u64> {
        let (first, rest) = self.octets().split_first()?;
        if first >> 5 == UNROUTABLE {
            return None;
        }
        let id = rest.get(..usize::from(length))?;
        Some(id.iter().fold(0, |id, octet| id << 8 | u64::from(*octet)))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.octets()
            .iter()
            .try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl FromStr for ConnectionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octet = |pair: &[u8]| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let [high, low] = <[u8; 2]>::try_from(pair).ok()?;
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        };
        let octets: Option<Vec<u8>> = text.as_bytes().chunks(2).map(octet).collect();
        octets.and_then(|octets| Self::new(&octets)).ok_or_else(|| {
            format!("{text:?} is no connection ID: write 1 to {LONGEST} octets in hexadecimal")
        })
    }
}

impl TryFrom<String> for ConnectionId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ConnectionId> for String {
    fn from(id: ConnectionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written() {
        let longest = "40".repeat(LONGEST);
        for text in ["40", "4000c0ffee", &longest] {
            let id: ConnectionId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        let (odd, long) = ("400", "40".repeat(LONGEST + 1));
        for text in ["", odd, "4g", "+1", "0x40", "\u{e9}", &long] {
            assert!(text.parse::<ConnectionId>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_server_id_comes_after_the_first_octet() {
        let id: ConnectionId = "4000c0ffee0011223344".parse().unwrap();
        assert_eq!(id.server_id(1), Some(0));
        assert_eq!(id.server_id(4), Some(0x00c0_ffee));
        assert_eq!(id.server_id(8), Some(0x00c0_ffee_0011_2233));
        let short: ConnectionId = "40c0ff".parse().unwrap();
        assert_eq!(short.server_id(2), Some(0xc0ff));
        assert_eq!(short.server_id(3), None);
        let unroutable: ConnectionId = "e0c0ffee".parse().unwrap();
        assert_eq!(unroutable.server_id(2), None);
    }
}
