//! The messages of `grpc.health.v1`, and gRPC's framing of them.

use std::collections::BTreeMap;

use crate::model::GRPC_CODES;
use prost::Message;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    /// Empty: the server as a whole.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    /// A `ServingStatus`; the number as it came, known or not.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// `grpc.health.v1.HealthListResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthListResponse {
    /// By service.
    #[prost(btree_map = "string, message", tag = "1")]
    pub statuses: BTreeMap<String, HealthCheckResponse>,
}

/// `ServingStatus.SERVING`.
pub const SERVING: i32 = 1;
/// `ServingStatus.NOT_SERVING`.
pub const NOT_SERVING: i32 = 2;
/// `ServingStatus.SERVICE_UNKNOWN`, in answers of `Watch` only.
pub const SERVICE_UNKNOWN: i32 = 3;

/// Name of a `ServingStatus`.
pub fn serving_status(status: i32) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        SERVING => "SERVING".to_owned(),
        NOT_SERVING => "NOT_SERVING".to_owned(),
        SERVICE_UNKNOWN => "SERVICE_UNKNOWN".to_owned(),
        other => format!("health status {other}, which does not exist"),
    }
}

/// Name of a gRPC status code.
pub fn status_name(code: u32) -> String {
    usize::try_from(code)
        .ok()
        .and_then(|code| GRPC_CODES.get(code))
        .map_or_else(|| format!("gRPC status {code}"), |name| (*name).to_owned())
}

/// Length of a message's prefix: one byte of flags, four of length.
const PREFIX: usize = 5;

/// Longest answer that is read, prefix included. The message itself is two bytes; the rest is room
/// for fields to come.
pub const MAX_ANSWER: usize = 1024;

/// The request's body: one message, not compressed.
pub fn encode_request(service: &str) -> Vec<u8> {
    encode(&HealthCheckRequest {
        service: service.to_owned(),
    })
}

/// A message with its prefix, not compressed.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut body = vec![0];
    // Service names come from the configuration and are far below 4 GiB.
    body.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    body.extend_from_slice(&message);
    body
}

/// A body that is not exactly the one message that it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("OK without a message")]
    Missing,
    #[error("the message is compressed, which was not offered")]
    Compressed,
    #[error("the body is not framed as gRPC messages are")]
    Prefix,
    #[error("a message of {0} bytes, where HealthCheckResponse has two")]
    TooLong(u64),
    #[error("the message is cut off")]
    Short,
    #[error("more than one message")]
    Surplus,
    #[error("the message is not a HealthCheckResponse")]
    Invalid,
}

/// Length of the first message in `body`, its prefix included; `None` while that is incomplete.
pub fn first(body: &[u8]) -> Result<Option<usize>, MessageError> {
    check_prefix(&body[..body.len().min(PREFIX)])?;
    let [_, a, b, c, d, ..] = *body else {
        return Ok(None);
    };
    let length = PREFIX + u32::from_be_bytes([a, b, c, d]) as usize;
    Ok((body.len() >= length).then_some(length))
}

/// Whether the body so far can still become an answer. A length that will not be read is refused at
/// once rather than waited for.
pub fn check_prefix(body: &[u8]) -> Result<(), MessageError> {
    if body.len() > MAX_ANSWER {
        return Err(MessageError::TooLong(body.len() as u64));
    }
    match body {
        [1, ..] => Err(MessageError::Compressed),
        [flags, ..] if *flags > 1 => Err(MessageError::Prefix),
        [_, a, b, c, d, ..] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            if u64::from(length) > (MAX_ANSWER - PREFIX) as u64 {
                return Err(MessageError::TooLong(length.into()));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Decodes a complete answer.
pub fn decode_response(body: &[u8]) -> Result<HealthCheckResponse, MessageError> {
    decode(body)
}

/// Decodes a complete body.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, MessageError> {
    if body.is_empty() {
        return Err(MessageError::Missing);
    }
    check_prefix(body)?;
    let (prefix, rest) = body.split_at_checked(PREFIX).ok_or(MessageError::Short)?;
    let length = prefix[1..]
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (message, surplus) = rest.split_at_checked(length).ok_or(MessageError::Short)?;
    if !surplus.is_empty() {
        return Err(MessageError::Surplus);
    }
    M::decode(message).map_err(|_| MessageError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_one_framed_message() {
        assert_eq!(encode_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn an_answer_is_exactly_one_message() {
        let status = |body: &[u8]| decode_response(body).map(|response| response.status);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Ok(SERVING));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Ok(0));
        // Unknown fields are for later versions.
        assert_eq!(status(&[0, 0, 0, 0, 4, 8, 1, 0x10, 7]), Ok(SERVING));
        assert_eq!(status(&[]), Err(MessageError::Missing));
        assert_eq!(status(&[0, 0]), Err(MessageError::Short));
        assert_eq!(status(&[0, 0, 0, 0, 3, 8, 1]), Err(MessageError::Short));
        assert_eq!(
            status(&[1, 0, 0, 0, 2, 8, 1]),
            Err(MessageError::Compressed)
        );
        assert_eq!(
            status(&[0, 0, 0, 0, 2, 8, 1, 0]),
            Err(MessageError::Surplus)
        );
        assert_eq!(status(b"incorrect"), Err(MessageError::Prefix));
        assert_eq!(
            status(&[0, 0x7f, 0xff, 0xff, 0xff, 8, 1]),
            Err(MessageError::TooLong(0x7fff_ffff))
        );
        assert_eq!(
            status(&[0, 0, 0, 0, 2, 0xff, 0xff]),
            Err(MessageError::Invalid)
        );
    }
}
