//! DNS messages (RFC 1035, section 4), as far as a probe needs them: one question out, the head and
//! the addresses of an answer in.

use std::net::IpAddr;

/// Records of types A and AAAA.
const A: u16 = 1;
const AAAA: u16 = 28;
/// Class IN.
const IN: u16 = 1;
/// Most labels of a name: 255 bytes of two each.
const MAX_LABELS: usize = 128;
/// Records looked at.
const MAX_RECORDS: u16 = 256;

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: u8,
    /// TC: the answer did not fit into the datagram.
    pub truncated: bool,
    /// Records in the answer section.
    pub records: u16,
    pub addresses: Vec<IpAddr>,
}

/// Why a datagram is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Somebody else's: to be ignored, as resolvers do (RFC 5452, section 9.1).
    #[error("another transaction or question")]
    NotOurs,
    #[error("cut short or inconsistent")]
    Malformed,
}

/// A query for `name` (without the final dot; empty: the root), with recursion desired.
///
/// `None`: a label is empty or longer than 63 bytes, or the name longer than 255.
pub fn encode(id: u16, name: &str, query_type: u16) -> Option<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    // RD; one question.
    message.extend_from_slice(&[0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    encode_name(name, &mut message)?;
    message.extend_from_slice(&query_type.to_be_bytes());
    message.extend_from_slice(&IN.to_be_bytes());
    Some(message)
}

fn encode_name(name: &str, message: &mut Vec<u8>) -> Option<()> {
    // Each label has a length before it, and a zero ends the name.
    (name.len() <= 253).then_some(())?;
    for label in name.split('.').filter(|_| !name.is_empty()) {
        let length = u8::try_from(label.len()).ok()?;
        (1..=63).contains(&length).then_some(())?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    Some(())
}

/// Reads the answer to `query`.
pub fn decode(datagram: &[u8], query: &[u8]) -> Result<Answer, MessageError> {
    use MessageError::{Malformed, NotOurs};
    if datagram.len() < 12 {
        return Err(Malformed);
    }
    let [flags, more] = [datagram[2], datagram[3]];
    let is_response = flags & 0x80 != 0;
    if datagram[..2] != query[..2] || !is_response {
        return Err(NotOurs);
    }
    let count = |at: usize| number(datagram, at).ok_or(Malformed);
    let (questions, records) = (count(4)?, count(6)?);
    let mut answer = Answer {
        rcode: more & 0x0f,
        truncated: flags & 0x02 != 0,
        records,
        addresses: Vec::new(),
    };
    // FORMERR and NOTIMP may leave the question out.
    let mut at = 12;
    match questions {
        0 if answer.rcode != 0 => {}
        1 => {
            let question = &query[12..];
            let echoed = datagram.get(12..12 + question.len()).ok_or(Malformed)?;
            // Names are equal whatever their case (RFC 4343).
            if !echoed.eq_ignore_ascii_case(question) {
                return Err(NotOurs);
            }
            at += question.len();
        }
        _ => return Err(Malformed),
    }
    for _ in 0..records.min(MAX_RECORDS) {
        let Some(record) = record(datagram, at) else {
            // A truncated answer may end anywhere.
            if answer.truncated {
                break;
            }
            return Err(Malformed);
        };
        answer.addresses.extend(record.address);
        at = record.end;
    }
    Ok(answer)
}

struct Record {
    address: Option<IpAddr>,
    end: usize,
}

fn record(message: &[u8], at: usize) -> Option<Record> {
    let at = skip_name(message, at)?;
    let kind = number(message, at)?;
    let class = number(message, at + 2)?;
    let length = usize::from(number(message, at + 8)?);
    let data = message.get(at + 10..at + 10 + length)?;
    let address = match (class, kind) {
        (IN, A) => Some(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
        (IN, AAAA) => Some(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
        _ => None,
    };
    Some(Record {
        address,
        end: at + 10 + length,
    })
}

/// The place after the name at `at`. Pointers end a name where they stand; they are not followed,
/// because no name is compared.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..MAX_LABELS {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => {
                message.get(at + 1)?;
                return Some(at + 2);
            }
            64..=191 => return None,
        }
    }
    None
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The answer of a real server (dnsmasq 2.90) to A of web.test, with compression.
    fn answer_to(query: &[u8]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2] = 0x85;
        message[3] = 0x80;
        message[7] = 1;
        message.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1]);
        message
    }

    #[test]
    fn a_query_is_what_the_rfc_says() {
        assert_eq!(
            encode(0x1234, "web.test", A).unwrap(),
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x04test\0\0\x01\0\x01"
        );
        assert_eq!(encode(0, "", 2).unwrap().len(), 12 + 5);
        assert_eq!(encode(0, "a..b", A), None);
        assert_eq!(encode(0, &"x".repeat(64), A), None);
        assert_eq!(encode(0, &["x"; 128].join("."), A), None);
    }

    #[test]
    fn answers_are_read() {
        let query = encode(7, "web.test", A).unwrap();
        let answer = decode(&answer_to(&query), &query).unwrap();
        assert_eq!(answer.rcode, 0);
        assert_eq!(answer.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let shouted = answer_to(&encode(7, "WEB.test", A).unwrap());
        assert_eq!(decode(&shouted, &query).unwrap().records, 1);

        let other = answer_to(&encode(8, "web.test", A).unwrap());
        assert_eq!(decode(&other, &query), Err(MessageError::NotOurs));
        let other = answer_to(&encode(7, "wab.test", A).unwrap());
        assert_eq!(decode(&other, &query), Err(MessageError::NotOurs));
        assert_eq!(decode(&query, &query), Err(MessageError::NotOurs));
        let whole = answer_to(&query);
        for length in 0..whole.len() {
            let cut = decode(&whole[..length], &query);
            assert_eq!(cut, Err(MessageError::Malformed), "{length}");
        }
        let mut refused = query[..12].to_vec();
        (refused[2], refused[3], refused[5]) = (0x80, 0x85, 0);
        assert_eq!(decode(&refused, &query).unwrap().rcode, 5);
    }

    proptest! {
        #[test]
        fn nothing_a_peer_sends_breaks_it(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let query = encode(7, "web.test", A).unwrap();
            let mut message = answer_to(&query);
            let _ = decode(&rest, &query);
            message.truncate(query.len());
            message[7] = rest.first().copied().unwrap_or(0);
            message.extend_from_slice(&rest);
            let _ = decode(&message, &query);
        }
    }
}
