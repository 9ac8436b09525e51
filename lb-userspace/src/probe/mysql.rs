//! The MySQL probe: the server's greeting, and with `user` a login without a password.
//!
//! MySQL and MariaDB, protocol 10
//! (<https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase.html>). A
//! server counts connections that end after its greeting as errors of the client's host and blocks
//! the host after `max_connect_errors` of them (100) without a login between; hence `user`.

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::model::MysqlProbe;

/// Longest packet taken.
const MAX_PACKET: usize = 16 * 1024;

/// CLIENT_LONG_PASSWORD, CLIENT_PROTOCOL_41, CLIENT_TRANSACTIONS, CLIENT_SECURE_CONNECTION,
/// CLIENT_PLUGIN_AUTH.
const CAPABILITIES: u32 = 0x0000_0001 | 0x0000_0200 | 0x0000_2000 | 0x0000_8000 | 0x0008_0000;
/// utf8_general_ci, which every version has.
const CHARACTER_SET: u8 = 33;
/// COM_QUIT as a packet of its own.
const QUIT: &[u8] = &[1, 0, 0, 0, 1];

/// Asks and judges.
pub async fn ask<S: ProbeStream>(stream: S, probe: &MysqlProbe, trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "MySQL", trace);
    trace.waiting("no greeting yet");
    let (mut sequence, packet) = packet(&mut wire, trace).await?;
    if packet.first() == Some(&0xff) {
        return Err(error(&packet));
    }
    let greeting = Greeting::parse(&packet)
        .ok_or_else(|| wire.malformed("the greeting is", &packet, trace))?;
    trace.step("greeting", format!("version {}", greeting.version));
    let Some(user) = &probe.user else {
        wire.part(&[]);
        return Ok(Success(format!("MySQL {}", greeting.version)));
    };
    sequence = sequence.wrapping_add(1);
    wire.send(&framed(sequence, &login(user, &greeting.plugin)))
        .await;
    trace.step("request", format!("login as {user}"));
    // One change of method is usual where the account has another than the server's default.
    for _ in 0..2 {
        let (number, packet) = self::packet(&mut wire, trace).await?;
        match packet.first() {
            Some(0x00) => {
                trace.step("answer", "OK");
                wire.part(QUIT);
                return Ok(Success(format!("MySQL {}, login OK", greeting.version)));
            }
            Some(0xff) => return Err(error(&packet)),
            Some(0xfe) => {
                let plugin = packet[1..].split(|byte| *byte == 0).next().unwrap_or(&[]);
                trace.step("answer", format!("asks for {}", text::excerpt(plugin)));
                wire.send(&framed(number.wrapping_add(1), no_password(plugin)))
                    .await;
            }
            _ => return Err(wire.malformed("the answer to the login is", &packet, trace)),
        }
    }
    Err(Failure::new(
        Class::Application,
        format!("user {user} cannot log in without a password; make one that can, or see `user`"),
    ))
}

/// The next packet and its number.
async fn packet<S: ProbeStream>(
    wire: &mut Wire<S>,
    trace: &Trace,
) -> Result<(u8, Vec<u8>), Failure> {
    let header = wire.exact(4).await?;
    let length =
        usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16;
    if length == 0 || length > MAX_PACKET {
        // The length is the text of another protocol.
        let mut shown = header;
        shown.extend_from_slice(wire.received());
        return Err(wire.malformed("the answer begins with", &shown, trace));
    }
    Ok((header[3], wire.exact(length).await?))
}

struct Greeting {
    version: String,
    /// Method of authentication; empty: the server names none.
    plugin: Vec<u8>,
}

impl Greeting {
    /// HandshakeV10.
    fn parse(packet: &[u8]) -> Option<Self> {
        let rest = packet.strip_prefix(&[10])?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let version = text::excerpt(&rest[..end]);
        // Thread (4), first scramble (8) and its zero, then capabilities (2), character set (1),
        // status (2), capabilities (2), length of the scramble (1), reserved (10), second scramble
        // (13 at least), name of the method.
        let rest = rest.get(end + 1 + 4 + 8 + 1 + 2..)?;
        let scramble = usize::from(*rest.get(5).unwrap_or(&0))
            .saturating_sub(8)
            .max(13);
        let plugin = rest.get(6 + 10 + scramble..).unwrap_or(&[]);
        let plugin = plugin.split(|byte| *byte == 0).next().unwrap_or(&[]);
        Some(Self {
            version,
            plugin: plugin.to_vec(),
        })
    }
}

/// HandshakeResponse41 with an empty answer to the scramble: no password.
fn login(user: &str, plugin: &[u8]) -> Vec<u8> {
    let mut body = CAPABILITIES.to_le_bytes().to_vec();
    body.extend_from_slice(&(MAX_PACKET as u32).to_le_bytes());
    body.push(CHARACTER_SET);
    body.extend_from_slice(&[0; 23]);
    body.extend_from_slice(user.as_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(plugin);
    body.push(0);
    body
}

/// What stands for no password in the answer to a change of method.
fn no_password(plugin: &[u8]) -> &'static [u8] {
    match plugin {
        b"caching_sha2_password" | b"sha256_password" => &[0],
        _ => &[],
    }
}

fn framed(sequence: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut packet = vec![length[0], length[1], length[2], sequence];
    packet.extend_from_slice(body);
    packet
}

/// ERR_Packet: 0xff, code, then with protocol 4.1 `#` and a state of five, then a text.
fn error(packet: &[u8]) -> Failure {
    let code = match packet {
        [_, low, high, ..] => u16::from(*low) | u16::from(*high) << 8,
        _ => 0,
    };
    let said = packet.get(3..).unwrap_or(&[]);
    let said = match said {
        [b'#', _, _, _, _, _, said @ ..] => said,
        other => other,
    };
    let shown = text::excerpt(said);
    match code {
        // ER_HOST_IS_BLOCKED: our own doing.
        1129 => Failure::new(
            Class::Application,
            format!(
                "the server has blocked this host (1129) because of connections without a login: \
                 run FLUSH HOSTS there and set `user`: \"{shown}\""
            ),
        ),
        1045 => Failure::new(
            Class::Application,
            format!("login refused (1045), see `user`: \"{shown}\""),
        ),
        code => Failure::new(Class::Application, format!("error {code}: \"{shown}\"")),
    }
}
