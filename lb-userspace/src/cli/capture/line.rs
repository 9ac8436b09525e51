//! A captured packet in words: what became of it, and a line for the terminal.

use lb_common::verdict::Verdict;

use super::headers::Headers;
use crate::api::capture::{FORWARDED, Packet};
use crate::cli::output::{Palette, tame};

/// What became of a packet: `to web/web-1 (10.0.0.11:8080) by nat, as 10.0.0.1:20017 >
/// 10.0.0.11:8080`.
pub fn fate(packet: &Packet) -> String {
    let service = packet.service.as_deref().unwrap_or("no service");
    let backend = match (&packet.backend, packet.address) {
        (Some(name), Some(address)) => Some(format!("{service}/{name} ({address})")),
        (Some(name), None) => Some(format!("{service}/{name}")),
        (None, _) => None,
    };
    let mut text = match &backend {
        Some(backend) if packet.verdict == FORWARDED => {
            let by = packet.forwarding.as_deref().unwrap_or("?");
            format!("to {backend} by {by}")
        }
        Some(backend) => format!("{} from {backend}", packet.verdict),
        None => format!("{}, {service}", packet.verdict),
    };
    let sent = Headers::read(&packet.sent);
    if let (Some(sent), Some(came)) = (sent, Headers::read(&packet.data)) {
        if backend.is_none() {
            text.push_str(&format!(", answered with {}", sent.inside));
        } else if sent.ends() != came.ends() {
            text.push_str(&format!(", as {}", sent.ends()));
        }
    }
    text
}

/// The sentence that explains the verdict; `None` for what went to a backend.
pub fn help(packet: &Packet) -> Option<&'static str> {
    let mut verdicts = Verdict::ALL.iter();
    let verdict = verdicts.find(|verdict| verdict.label() == packet.verdict);
    verdict.map(|verdict| verdict.help().trim())
}

/// One packet, one line.
pub fn render(packet: &Packet, palette: Palette) -> String {
    let headers = Headers::read(&packet.data);
    let (ends, inside) = match &headers {
        Some(headers) => (headers.ends(), headers.inside.to_string()),
        None => ("not IP, or cut short".to_owned(), String::new()),
    };
    let at = packet.at.strftime("%H:%M:%S%.6f");
    let text = tame(&fate(packet));
    let fate = match packet.verdict.split('_').next() {
        Some("drop" | "reset") => palette.bad(&text),
        Some("pass") => palette.soft(&text),
        _ => text,
    };
    let line = format!(
        "{at} {}  {ends}  {inside} {} bytes  {fate}",
        tame(&packet.interface),
        packet.length,
    );
    line + "\n"
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::super::headers::tests::syn;
    use super::*;
    use crate::api::capture::tests::sample;

    fn frame(src: ([u8; 4], u16), dst: ([u8; 4], u16), reset: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(src.0, dst.0, 64)
            .tcp(src.1, dst.1, 1, 1024);
        let tcp = if reset { tcp.rst() } else { tcp.ack(1) };
        tcp.write(&mut frame, &[]).unwrap();
        frame
    }

    fn shown(packet: &Packet) -> String {
        render(packet, Palette::PLAIN)
    }

    #[test]
    fn a_packet_names_its_backend_and_how_it_left() {
        let nat = Packet {
            data: syn(),
            sent: frame(([10, 0, 0, 1], 20_017), ([10, 0, 0, 11], 8080), false),
            ..sample()
        };
        assert_eq!(
            shown(&nat),
            "00:00:00.000001 eth0  198.51.100.7:40000 > 203.0.113.10:80  tcp S 74 bytes  \
             to web/web-1 (10.0.0.11:8080) by nat, as 10.0.0.1:20017 > 10.0.0.11:8080\n"
        );
        // By direct server return nothing but the MAC addresses is other than before.
        let dsr = Packet {
            forwarding: Some("dsr".into()),
            sent: nat.data.clone(),
            ..nat.clone()
        };
        assert_eq!(fate(&dsr), "to web/web-1 (10.0.0.11:8080) by dsr");
        let reply = Packet {
            data: nat.sent.clone(),
            sent: frame(([203, 0, 113, 10], 80), ([198, 51, 100, 7], 40_000), false),
            verdict: "nat_reply".into(),
            ..nat
        };
        assert_eq!(
            fate(&reply),
            "nat_reply from web/web-1 (10.0.0.11:8080), as 203.0.113.10:80 > 198.51.100.7:40000"
        );
    }

    #[test]
    fn a_refused_packet_tells_why() {
        let refused = |verdict: &str, service: Option<&str>, sent| Packet {
            data: syn(),
            sent,
            verdict: verdict.into(),
            service: service.map(str::to_owned),
            backend: None,
            address: None,
            ..sample()
        };
        let dropped = refused("drop_no_backend", Some("web"), Vec::new());
        assert_eq!(fate(&dropped), "drop_no_backend, web");
        assert_eq!(help(&dropped), Some(Verdict::DropNoBackend.help().trim()));
        let fragment = refused("drop_fragment", None, Vec::new());
        assert_eq!(fate(&fragment), "drop_fragment, no service");
        let rst = frame(([203, 0, 113, 10], 80), ([198, 51, 100, 7], 40_000), true);
        let reset = refused("reset_no_flow", Some("web"), rst);
        assert_eq!(fate(&reset), "reset_no_flow, web, answered with tcp R");
    }

    #[test]
    fn what_cannot_be_read_is_a_line_too() {
        let cut = Packet {
            data: vec![1],
            ..sample()
        };
        assert!(shown(&cut).contains("cut short"), "{}", shown(&cut));
        assert_eq!(help(&cut), None);
    }
}
