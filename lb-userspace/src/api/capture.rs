//! Captured packets on their way to `lb capture`.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Bytes kept of each packet unless asked otherwise: headers, and how the payload begins.
pub const DEFAULT_SNAPLEN: u16 = 256;

/// The capture is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Whose packets; absent: everything that is for a VIP.
    pub service: Option<String>,
    /// Bytes kept of each packet.
    pub snaplen: u16,
    /// Interfaces that the program is on.
    pub interfaces: Vec<String>,
}

/// A packet as it came in, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// When the program saw it.
    pub at: Timestamp,
    /// The interface that it came in by.
    pub interface: String,
    /// Its length as it came in, from the Ethernet header on.
    pub length: u32,
    /// Absent if no service is at its destination, or it could not be read that far.
    pub service: Option<String>,
    /// `nat` or `dsr`.
    pub forwarding: Option<String>,
    /// The backend that it was for, or from; absent if it went to none.
    pub backend: Option<String>,
    /// The backend's address and port.
    pub address: Option<SocketAddr>,
    /// `forwarded`, or the label of a [`lb_common::verdict::Verdict`].
    pub verdict: String,
    /// What XDP was told.
    pub action: Action,
    /// Its bytes as it came in, as far as they were kept.
    #[serde(with = "hex")]
    pub data: Vec<u8>,
    /// How it began as it was sent on, or the answer to it; empty if nothing was sent.
    #[serde(with = "hex", default)]
    pub sent: Vec<u8>,
}

/// An XDP action, by its number in `enum xdp_action` of linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Aborted = 0,
    Drop = 1,
    Pass = 2,
    Tx = 3,
    Redirect = 4,
}

impl Action {
    /// The action of this number. The kernel takes one that it does not know for `Aborted`.
    pub fn of(number: u32) -> Self {
        let known = [Self::Drop, Self::Pass, Self::Tx, Self::Redirect];
        let mut known = known.into_iter();
        known
            .find(|action| action.number() == u64::from(number))
            .unwrap_or(Self::Aborted)
    }

    pub const fn number(self) -> u64 {
        self as u64
    }
}

/// [`Packet::verdict`] of what went to a backend.
pub const FORWARDED: &str = "forwarded";

/// The capture is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Packets that were captured and could not be kept: they came faster than they were read.
    pub lost: u64,
    /// Why, if not because the client wanted so.
    pub reason: Option<String>,
}

/// A capture under way.
#[derive(Debug)]
pub struct Stream {
    pub opened: Opened,
    /// Ends when all has been said.
    pub packets: mpsc::Receiver<Vec<Packet>>,
    /// Sent to or dropped, it ends the capture; packets that were captured still come.
    pub stop: oneshot::Sender<()>,
    /// The last word.
    pub closed: oneshot::Receiver<Closed>,
}

/// Bytes as two hexadecimal digits each.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let text: String = digits
            .map(|digit| char::from(DIGITS[usize::from(digit)]))
            .collect();
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let bytes: Option<Vec<u8>> = pairs
            .iter()
            .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
            .collect();
        match bytes {
            Some(bytes) if rest.is_empty() => Ok(bytes),
            _ => Err(D::Error::custom("not pairs of hexadecimal digits")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Packet {
        Packet {
            at: "2026-01-01T00:00:00.000001Z".parse().unwrap(),
            interface: "eth0".into(),
            length: 74,
            service: Some("web".into()),
            forwarding: Some("nat".into()),
            backend: Some("web-1".into()),
            address: Some("10.0.0.11:8080".parse().unwrap()),
            verdict: FORWARDED.into(),
            action: Action::Tx,
            data: vec![0x00, 0x7f, 0xff],
            sent: Vec::new(),
        }
    }

    #[test]
    fn packets_survive_the_wire() {
        let packet = sample();
        let text = serde_json::to_string(&packet).unwrap();
        assert!(text.contains(r#""data":"007fff""#), "{text}");
        assert_eq!(serde_json::from_str::<Packet>(&text).unwrap(), packet);
        for wrong in ["007", "0g", "é"] {
            let text = text.replace("007fff", wrong);
            assert!(serde_json::from_str::<Packet>(&text).is_err(), "{wrong}");
        }
    }
}
