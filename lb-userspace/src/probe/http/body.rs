//! The body of an HTTP/1 response, decoded as it comes.

use super::head::Framing;
use crate::probe::text;

/// So much of a body is read; what must occur in it must occur in this part.
pub const MAX_BODY: usize = 256 * 1024;

/// Longest chunk-size line, extensions included.
const MAX_CHUNK_LINE: usize = 1024;

/// Longest trailer section.
const MAX_TRAILERS: usize = 16 * 1024;

/// Whether there is more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    /// The message is complete.
    Complete,
    /// [`MAX_BODY`] is reached; the rest is not read.
    Capped,
}

/// A body that breaks its own framing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("{0}")]
    Malformed(String),
    #[error("trailers longer than {MAX_TRAILERS} bytes")]
    TrailersTooLarge,
    #[error("connection closed after {0}")]
    Truncated(String),
}

/// Decodes a body.
#[derive(Debug)]
pub struct Body {
    state: State,
    /// Bytes of content so far.
    received: u64,
    /// The content, if somebody wants to look into it.
    kept: Option<Vec<u8>>,
    declared: Option<u64>,
    /// Bytes came beyond the message's end.
    surplus: bool,
}

#[derive(Debug)]
enum State {
    Done,
    Fixed {
        left: u64,
    },
    UntilClose,
    ChunkSize {
        line: Vec<u8>,
    },
    ChunkData {
        left: u64,
    },
    /// The CRLF after a chunk's data; how many of its bytes came.
    ChunkEnd {
        seen: usize,
    },
    Trailers {
        section: Vec<u8>,
        line: usize,
    },
}

impl Body {
    /// `keep`: whether [`Self::content`] will be wanted.
    pub fn new(framing: Framing, keep: bool) -> Self {
        let (state, declared) = match framing {
            Framing::None | Framing::Length(0) => (State::Done, None),
            Framing::Length(left) => (State::Fixed { left }, Some(left)),
            Framing::Chunked => (State::ChunkSize { line: Vec::new() }, None),
            Framing::UntilClose => (State::UntilClose, None),
        };
        Self {
            state,
            received: 0,
            kept: keep.then(Vec::new),
            declared,
            surplus: false,
        }
    }

    /// Takes what came next. Bytes beyond the message's end are ignored, but noted: the connection
    /// must not be used again.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Progress, BodyError> {
        loop {
            if matches!(self.state, State::Done) {
                self.surplus |= !bytes.is_empty();
                return Ok(Progress::Complete);
            }
            if self.received >= MAX_BODY as u64 {
                return Ok(Progress::Capped);
            }
            if bytes.is_empty() {
                return Ok(Progress::More);
            }
            let taken = self.advance(bytes)?;
            bytes = &bytes[taken..];
        }
    }

    /// The connection was closed. `clean`: by the peer's explicit word (FIN, over TLS
    /// close_notify).
    pub fn close(&self, clean: bool) -> Result<(), BodyError> {
        match &self.state {
            State::Done => Ok(()),
            State::UntilClose if clean => Ok(()),
            State::UntilClose => Err(BodyError::Truncated(format!(
                "{} of body without TLS close_notify: it may be cut off",
                text::bytes(self.received)
            ))),
            State::Fixed { .. } => Err(BodyError::Truncated(match self.declared {
                Some(declared) => format!("{} of {declared} bytes of body", self.received),
                None => format!("{} of body", text::bytes(self.received)),
            })),
            State::ChunkSize { .. }
            | State::ChunkData { .. }
            | State::ChunkEnd { .. }
            | State::Trailers { .. } => Err(BodyError::Truncated(format!(
                "{} of body, before the last chunk",
                text::bytes(self.received)
            ))),
        }
    }

    /// The message is complete and nothing came after it.
    pub const fn is_exact(&self) -> bool {
        matches!(self.state, State::Done) && !self.surplus
    }

    /// Bytes of content so far.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// The content so far, if it was to be kept; at most [`MAX_BODY`] bytes.
    pub fn content(&self) -> &[u8] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// Takes one step; returns how many bytes it used, at least one of a non-empty `bytes`.
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        match &mut self.state {
            State::Done => Ok(bytes.len()),
            State::UntilClose => Ok(self.take(bytes, u64::MAX)),
            State::Fixed { left } => {
                let left = *left;
                let taken = self.take(bytes, left);
                self.state = match left - taken as u64 {
                    0 => State::Done,
                    left => State::Fixed { left },
                };
                Ok(taken)
            }
            State::ChunkSize { line } => {
                let (taken, ended) = take_line(bytes);
                line.extend_from_slice(&bytes[..taken]);
                if line.len() > MAX_CHUNK_LINE {
                    return Err(BodyError::Malformed(format!(
                        "a chunk-size line longer than {MAX_CHUNK_LINE} bytes"
                    )));
                }
                if ended {
                    self.state = match chunk_size(line)? {
                        0 => State::Trailers {
                            section: Vec::new(),
                            line: 0,
                        },
                        left => State::ChunkData { left },
                    };
                }
                Ok(taken)
            }
            State::ChunkData { left } => {
                let left = *left;
                let taken = self.take(bytes, left);
                self.state = match left - taken as u64 {
                    0 => State::ChunkEnd { seen: 0 },
                    left => State::ChunkData { left },
                };
                Ok(taken)
            }
            State::ChunkEnd { seen } => {
                if bytes[0] != b"\r\n"[*seen] {
                    return Err(BodyError::Malformed(
                        "a chunk longer than its size says".to_owned(),
                    ));
                }
                *seen += 1;
                if *seen == 2 {
                    self.state = State::ChunkSize { line: Vec::new() };
                }
                Ok(1)
            }
            State::Trailers { section, line } => {
                let (taken, ended) = take_line(bytes);
                section.extend_from_slice(&bytes[..taken]);
                if section.len() > MAX_TRAILERS {
                    return Err(BodyError::TrailersTooLarge);
                }
                if ended {
                    if &section[*line..] == b"\r\n" {
                        self.state = State::Done;
                    } else {
                        check_trailer(&section[*line..])?;
                        *line = section.len();
                    }
                }
                Ok(taken)
            }
        }
    }

    /// Takes content, as much of `bytes` as the framing (`limit`) and the cap allow.
    fn take(&mut self, bytes: &[u8], limit: u64) -> usize {
        let room = (MAX_BODY as u64 - self.received).min(limit);
        let taken = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(&bytes[..taken]);
        }
        self.received += taken as u64;
        taken
    }
}

/// Bytes up to and with the next LF, or all of them; and whether there was one.
fn take_line(bytes: &[u8]) -> (usize, bool) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (end + 1, true),
        None => (bytes.len(), false),
    }
}

/// The size in a chunk-size line `1a;extension\r\n`. The line must end in CRLF and hold no other
/// control character: a bare CR or LF is where parsers part ways.
fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let bad = || BodyError::Malformed(format!("bad chunk size line \"{}\"", text::excerpt(line)));
    let line = line.strip_suffix(b"\r\n").ok_or_else(bad)?;
    if line
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(bad());
    }
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit());
    let (size, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_ascii_start();
    if !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(bad());
    }
    let size = std::str::from_utf8(size).map_err(|_| bad())?;
    u64::from_str_radix(size, 16).map_err(|_| bad())
}

fn check_trailer(line: &[u8]) -> Result<(), BodyError> {
    let mut field = line.to_vec();
    field.extend_from_slice(b"\r\n");
    let mut headers = [httparse::EMPTY_HEADER; 1];
    match httparse::parse_headers(&field, &mut headers) {
        Ok(httparse::Status::Complete(_)) if line.ends_with(b"\r\n") => Ok(()),
        _ => Err(BodyError::Malformed(format!(
            "bad trailer \"{}\"",
            text::excerpt(line)
        ))),
    }
}
