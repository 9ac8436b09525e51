//! Writes pcapng (draft-ietf-opsawg-pcapng): what Wireshark reads, with a comment on each packet.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;

use crate::api::capture::{Opened, Packet};

/// A capture file being written.
pub struct Writer<W> {
    out: W,
    snaplen: u16,
    /// Numbers of the interfaces' blocks, by name.
    interfaces: BTreeMap<String, u32>,
}

/// Types of blocks (section 11.1).
mod block {
    pub const SECTION: u32 = 0x0a0d_0d0a;
    pub const INTERFACE: u32 = 1;
    pub const STATISTICS: u32 = 5;
    pub const PACKET: u32 = 6;
}

/// Options: those of all blocks, then those of a section, an interface, a packet, statistics.
mod option {
    pub const END: u16 = 0;
    pub const COMMENT: u16 = 1;
    pub const SHB_USERAPPL: u16 = 4;
    pub const IF_NAME: u16 = 2;
    pub const IF_TSRESOL: u16 = 9;
    pub const EPB_FLAGS: u16 = 2;
    pub const EPB_VERDICT: u16 = 7;
    pub const ISB_OSDROP: u16 = 7;
}

const LINKTYPE_ETHERNET: u16 = 1;
/// Times are in units of 10⁻⁹ s.
const NANOSECONDS: u8 = 9;
/// Direction of a packet, in the lowest bits of its flags.
const INBOUND: u32 = 1;
/// Whose verdict it is: an XDP program's.
const LINUX_EBPF_XDP: u8 = 2;

/// Options of a block.
#[derive(Default)]
struct Options(Vec<u8>);

impl Options {
    /// Adds an option. A value longer than an option can hold is cut.
    fn add(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.0.extend(code.to_le_bytes());
        self.0.extend((value.len() as u16).to_le_bytes());
        self.0.extend(value);
        pad(&mut self.0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add(option::END, &[]);
        self.0
    }
}

/// Fills up to a multiple of 32 bits.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Time in two halves, the upper first.
fn halves(at: Timestamp) -> [u8; 8] {
    // Until the year 2554.
    let nanoseconds = u64::try_from(at.as_nanosecond()).unwrap_or(0);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&((nanoseconds >> 32) as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(nanoseconds as u32).to_le_bytes());
    bytes
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub fn new(out: W, opened: &Opened) -> io::Result<Self> {
        let mut writer = Self {
            out,
            snaplen: opened.snaplen,
            interfaces: BTreeMap::new(),
        };
        let mut section = Vec::new();
        section.extend(0x1a2b_3c4du32.to_le_bytes());
        section.extend(1u16.to_le_bytes());
        section.extend(0u16.to_le_bytes());
        // How long the section is: not known.
        section.extend(u64::MAX.to_le_bytes());
        let mut options = Options::default();
        let program = concat!("lb ", env!("CARGO_PKG_VERSION"));
        options.add(option::SHB_USERAPPL, program.as_bytes());
        let what = match &opened.service {
            Some(service) => format!("packets of service {service}"),
            None => "packets for all VIPs".to_owned(),
        };
        options.add(option::COMMENT, what.as_bytes());
        section.extend(options.finish());
        writer.block(block::SECTION, section)?;
        for name in &opened.interfaces {
            writer.interface(name)?;
        }
        Ok(writer)
    }

    /// Number of an interface; the first time it is described.
    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let number = self.interfaces.len() as u32;
        let mut body = Vec::new();
        body.extend(LINKTYPE_ETHERNET.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend(u32::from(self.snaplen).to_le_bytes());
        let mut options = Options::default();
        options.add(option::IF_NAME, name.as_bytes());
        options.add(option::IF_TSRESOL, &[NANOSECONDS]);
        body.extend(options.finish());
        self.block(block::INTERFACE, body)?;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Adds a packet.
    pub fn packet(&mut self, packet: &Packet, comment: &str) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(self.interface(&packet.interface)?.to_le_bytes());
        body.extend(halves(packet.at));
        body.extend((packet.data.len() as u32).to_le_bytes());
        body.extend(packet.length.to_le_bytes());
        body.extend(&packet.data);
        pad(&mut body);
        let mut options = Options::default();
        options.add(option::COMMENT, comment.as_bytes());
        options.add(option::EPB_FLAGS, &INBOUND.to_le_bytes());
        let mut verdict = vec![LINUX_EBPF_XDP];
        verdict.extend(packet.action.number().to_le_bytes());
        options.add(option::EPB_VERDICT, &verdict);
        body.extend(options.finish());
        self.block(block::PACKET, body)
    }

    /// Ends the file: how many packets, of all interfaces, are not in it.
    pub fn finish(mut self, at: Timestamp, lost: u64) -> io::Result<()> {
        if !self.interfaces.is_empty() {
            let mut body = Vec::new();
            body.extend(0u32.to_le_bytes());
            body.extend(halves(at));
            let mut options = Options::default();
            let comment = format!("{lost} packets of all interfaces could not be kept");
            options.add(option::COMMENT, comment.as_bytes());
            options.add(option::ISB_OSDROP, &lost.to_le_bytes());
            body.extend(options.finish());
            self.block(block::STATISTICS, body)?;
        }
        self.flush()
    }

    /// Brings what was written so far to its reader.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn block(&mut self, kind: u32, body: Vec<u8>) -> io::Result<()> {
        let length = (body.len() as u32 + 12).to_le_bytes();
        let parts = [&kind.to_le_bytes()[..], &length, &body, &length];
        // At once, so that a reader of a file that is being written seldom finds half a block.
        self.out.write_all(&parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::capture::tests::sample;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Types and bodies of the blocks, whose lengths must agree.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let length = word(bytes, 4) as usize;
            assert!(length.is_multiple_of(4));
            assert_eq!(word(bytes, length - 4) as usize, length);
            blocks.push((word(bytes, 0), bytes[8..length - 4].to_vec()));
            bytes = &bytes[length..];
        }
        blocks
    }

    #[test]
    fn a_file_has_a_section_interfaces_packets_and_statistics() {
        let opened = Opened {
            service: Some("web".into()),
            snaplen: 256,
            interfaces: vec!["eth0".into()],
        };
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, &opened).unwrap();
        writer.packet(&sample(), "to web/web-1").unwrap();
        let other = Packet {
            interface: "eth1".into(),
            ..sample()
        };
        writer.packet(&other, "drop_ttl").unwrap();
        writer.finish(sample().at, 3).unwrap();
        let blocks = blocks(&bytes);
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [block::SECTION, 1, 6, 1, 6, 5]);
        let packet = &blocks[2].1;
        // 2026-01-01T00:00:00.000001Z in nanoseconds.
        let at = u64::from(word(packet, 4)) << 32 | u64::from(word(packet, 8));
        assert_eq!(at, 1_767_225_600_000_001_000);
        assert_eq!((word(packet, 12), word(packet, 16)), (3, 74));
        assert_eq!(packet[20..24], [0x00, 0x7f, 0xff, 0]);
        assert_eq!(packet[24..28], [1, 0, 12, 0]);
        assert_eq!(&packet[28..40], b"to web/web-1");
        assert_eq!(packet[40..48], [2, 0, 4, 0, 1, 0, 0, 0]);
        assert_eq!(packet[48..61], [7, 0, 9, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(word(&blocks[4].1, 0), 1, "the second interface");
    }

    #[test]
    fn a_comment_longer_than_an_option_is_cut() {
        let mut options = Options::default();
        options.add(option::COMMENT, &vec![b'x'; 70_000]);
        assert_eq!(options.0.len(), 4 + 65_536);
        assert_eq!(options.0[2..4], [0xff, 0xff]);
    }
}
