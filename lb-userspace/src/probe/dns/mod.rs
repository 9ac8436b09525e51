//! The DNS probe: one question over UDP.

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::io;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::dial::Dialer;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::{Answer as Judged, Success, text};
use crate::model::{DnsProbe, ProbeSpec};

mod message;

use message::MessageError;

/// The query is sent so often within the deadline: a datagram may be lost without the server's
/// being at fault.
const SENDINGS: u32 = 3;
/// Largest answer: without EDNS servers send 512 bytes at most (RFC 1035, 4.2.1), with slack for
/// those that do not care.
const MAX_ANSWER: usize = 4096;
/// Names of response codes (RFC 1035, 4.1.1; RFC 2136, 2.2).
const RCODES: [&str; 11] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
    "NXRRSET", "NOTAUTH", "NOTZONE",
];

/// Asks and judges.
pub async fn ask(dialer: &Dialer, spec: &ProbeSpec, probe: &DnsProbe, trace: &mut Trace) -> Judged {
    let target = spec.target;
    // The kernel chooses the port at random; the number need not withstand more than chance.
    let id = RandomState::new().hash_one(target) as u16;
    let (type_name, type_number) = probe.query_type;
    let query = message::encode(id, &probe.name, type_number)
        .ok_or_else(|| Failure::internal(format!("\"{}\" cannot be asked for", probe.name)))?;
    let (socket, ticket) = dialer.datagrams(spec).await?;
    let asked = format!("{type_name} {}.", probe.name);
    for sending in 1..=SENDINGS {
        socket
            .send(&query)
            .await
            .map_err(|error| Failure::connecting(&error))?;
        if sending == 1 {
            trace.step("query", format!("{asked} to {target}"));
        } else {
            trace.step("query", format!("again, number {sending}"));
        }
        trace.waiting(format!(
            "query sent {}, nothing received",
            if sending == 1 {
                "once".to_owned()
            } else {
                format!("{sending} times")
            }
        ));
        match timeout(spec.timeout / SENDINGS, receive(&socket, &query, trace)).await {
            Ok(answer) => return judge(&answer?, probe, trace),
            Err(_) => {
                if let Some(ticket) = &ticket {
                    dialer.verify(ticket).await?;
                }
            }
        }
    }
    // The whole probe's deadline is now.
    std::future::pending().await
}

async fn receive(
    socket: &UdpSocket,
    query: &[u8],
    trace: &mut Trace,
) -> Result<message::Answer, Failure> {
    let mut buffer = [0; MAX_ANSWER];
    loop {
        let length = socket
            .recv(&mut buffer)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::new(
                    Class::Refused,
                    "nobody listens on this port (ICMP port unreachable)",
                ),
                _ => Failure::connecting(&error),
            })?;
        let datagram = &buffer[..length];
        match message::decode(datagram, query) {
            Ok(answer) => return Ok(answer),
            Err(MessageError::NotOurs) => {
                trace.waiting("received only what does not answer the query");
            }
            Err(MessageError::Malformed) => {
                return Err(Failure::new(
                    Class::Malformed,
                    format!(
                        "not a DNS answer: {}, \"{}\"",
                        text::bytes(length as u64),
                        text::excerpt(datagram)
                    ),
                ));
            }
        }
    }
}

fn judge(answer: &message::Answer, probe: &DnsProbe, trace: &mut Trace) -> Judged {
    let rcode = match RCODES.get(usize::from(answer.rcode)) {
        Some(name) => (*name).to_owned(),
        None => format!("response code {}", answer.rcode),
    };
    let mut detail = format!("{rcode}, {} records", answer.records);
    if answer.records == 1 {
        detail.pop();
    }
    for (count, address) in answer.addresses.iter().take(4).enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(detail, "{} {address}", if count == 0 { ":" } else { "," });
    }
    trace.step("answer", detail.clone());
    let (wanted, number) = probe.rcode;
    if answer.rcode != number {
        return Err(Failure::new(
            Class::Application,
            format!("{rcode} for {}., want {wanted}", probe.name),
        ));
    }
    let missing = (probe.answers.iter()).find(|wanted| !answer.addresses.contains(wanted));
    if let Some(missing) = missing {
        let cut = if answer.truncated {
            "; the answer was truncated"
        } else {
            ""
        };
        return Err(Failure::new(
            Class::Content,
            format!("{missing} is not among the answers: {detail}{cut}"),
        ));
    }
    Ok(Success(detail))
}
