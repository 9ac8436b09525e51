//! A blocking HTTP/1.1 client, small enough to know exactly when it opens a connection and what
//! counts as a failure: anything but a 200 with its whole body. It never tries again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use super::{Requester, TIMEOUT};

/// A client of one server, with at most one connection.
#[derive(Debug)]
pub struct Client {
    to: SocketAddr,
    path: &'static str,
    keep: bool,
    connection: Option<BufReader<TcpStream>>,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Length of the body in bytes.
    pub length: u64,
    /// The header `x-backend`.
    pub backend: Option<String>,
    /// Whether the server will close the connection after this answer.
    pub last: bool,
}

impl Client {
    /// A client that keeps its connection between requests, or closes it after each.
    pub fn new(to: SocketAddr, keep: bool) -> Self {
        Self {
            to,
            path: "/",
            keep,
            connection: None,
        }
    }

    /// The same, with another path for its requests as load.
    pub fn asking(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    /// Sends `GET path` and reads the head; the body comes from the reader.
    pub fn get(&mut self, path: &str) -> Result<(Head, &mut BufReader<TcpStream>)> {
        let connection = match self.connection.take() {
            Some(kept) => kept,
            None => BufReader::new(connect(self.to)?),
        };
        let connection = self.connection.insert(connection);
        let (to, wish) = (self.to, if self.keep { "keep-alive" } else { "close" });
        let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: {wish}\r\n\r\n");
        connection
            .get_mut()
            .write_all(request.as_bytes())
            .context("sending the request")?;
        let head = head(connection)?;
        Ok((head, connection))
    }

    /// The open connection, where the body that follows a head is read.
    pub fn body(&mut self) -> Option<&mut BufReader<TcpStream>> {
        self.connection.as_mut()
    }

    /// `GET path` as a whole: status and body.
    pub fn fetch(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        let (head, connection) = self.get(path)?;
        let mut body = Vec::new();
        connection
            .take(head.length)
            .read_to_end(&mut body)
            .context("reading the body")?;
        ensure!(body.len() as u64 == head.length, "the body ended early");
        if (!self.keep || head.last)
            && let Some(mut connection) = self.connection.take()
        {
            // The server closes first, which must come through as well.
            let rest = connection
                .read_to_end(&mut Vec::new())
                .context("reading the end")?;
            ensure!(rest == 0, "{rest} bytes after the body");
        }
        Ok((head.status, body))
    }
}

impl Requester for Client {
    fn request(&mut self) -> Result<String> {
        let result = match self.fetch(self.path) {
            Ok((200, body)) => String::from_utf8(body).context("the body is not text"),
            Ok((status, _)) => Err(anyhow::anyhow!("HTTP {status}")),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.connection = None;
        }
        result
    }
}

/// Connects with the timeouts of a request.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn head(connection: &mut BufReader<TcpStream>) -> Result<Head> {
    let mut line = String::new();
    connection
        .read_line(&mut line)
        .context("reading the answer")?;
    if line.is_empty() {
        bail!("the connection was closed instead of an answer");
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {line:?}"))?;
    let mut head = Head {
        status,
        length: 0,
        backend: None,
        last: false,
    };
    loop {
        line.clear();
        connection
            .read_line(&mut line)
            .context("reading the headers")?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            ensure!(line == "\r\n", "the headers ended early");
            return Ok(head);
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.parse().context("content-length")?,
            "connection" => head.last = value.eq_ignore_ascii_case("close"),
            "x-backend" => head.backend = Some(value.into()),
            _ => {}
        }
    }
}
